//! The command line: one line per subcommand.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)
)]

use clap::{CommandFactory as _, FromArgMatches as _, Parser, Subcommand};
use rollcall::allocator::Allocator;
use rollcall::command::{self, usage};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Who is online, as a log and a pure fold over it
#[derive(Parser)]
#[command(name = "rollcall", version = rollcall::version::LINE.as_str(), about, max_term_width = 100)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    Serve(Box<rollcall::config::Flags>),
    Gateway(Box<command::gateway::Args>),
    Fold(command::fold::Args),
    Log(command::log::Args),
    Audit(Box<command::audit::Args>),
    Quarantine(command::quarantine::Args),
    Lake(Box<command::lake::Args>),
    Reshard(Box<command::reshard::Args>),
    Load(command::load::Args),
    Sim(command::sim::Args),
    Topics(command::topics::Args),
    Webhook(Box<command::webhook::Args>),
    Health(command::health::Args),
    Doctor(Box<command::doctor::Args>),
    Completions(command::completions::Args),
    Man(command::man::Args),
    Users(command::users::Args),
    Kick(command::kick::Args),
    Forget(command::forget::Args),
    Policy(command::policy::Args),
    Stats(command::stats::Args),
    Top(command::stats::TopArgs),
    Upgrade(command::upgrade::Args),
}

fn main() {
    let status = run();
    // Some threads are still running: readers of the log, threads that wait for brokers. Exit handlers of C++ libraries
    // would destroy what these threads use (`pthread lock: Invalid argument`), so none is run. Everything is durable by
    // now.
    command::leave(status)
}

fn run() -> u8 {
    let arguments: Vec<_> = std::env::args_os().collect();
    let mut known = Cli::command();
    let parsed = known
        .try_get_matches_from_mut(&arguments)
        .and_then(|matches| Ok((Cli::from_arg_matches(&matches)?, matches)));
    let (cli, matches) = match parsed {
        Ok(parsed) => parsed,
        Err(error) => {
            let Some(refusal) = usage::refusal(&error, &known, &arguments) else {
                error.exit();
            };
            eprint!("{refusal}");
            return 2;
        }
    };
    let result = match cli.command {
        Command::Serve(flags) => command::serve::run(*flags),
        Command::Gateway(args) => command::gateway::run(*args),
        Command::Fold(args) => command::fold::run(args),
        Command::Log(args) => command::log::run(args),
        Command::Audit(args) => match command::audit::run(*args) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Quarantine(args) => command::quarantine::run(args),
        Command::Lake(args) => command::lake::run(&args),
        Command::Reshard(args) => command::reshard::run(&args),
        Command::Load(args) => command::load::run(args),
        Command::Sim(args) => command::sim::run(args),
        Command::Topics(args) => command::topics::run(args),
        Command::Webhook(args) => command::webhook::run(*args),
        Command::Health(args) => return command::health::run(args),
        Command::Doctor(args) => match command::doctor::run(*args) {
            Ok(status) => return status,
            Err(error) => Err(error),
        },
        Command::Completions(args) => command::completions::run(args, Cli::command()),
        Command::Man(args) => command::man::run(args, Cli::command()),
        Command::Users(args) => command::users::run(args),
        Command::Kick(args) => command::kick::run(args),
        Command::Forget(args) => command::forget::run(args),
        Command::Policy(args) => command::policy::run(args),
        Command::Stats(args) => command::stats::run(args),
        Command::Top(args) => command::stats::top(args),
        Command::Upgrade(args) => command::upgrade::run(args),
    };
    match result {
        Ok(()) => 0,
        Err(error) => {
            eprintln!("error: {}", usage::explain(&error, &known, &matches));
            2
        }
    }
}
