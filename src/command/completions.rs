//! `rollcall completions`: prints a script for shell completion.

use clap_complete::{Shell, generate};
use std::io::{self, Write as _};

/// Prints a script that completes commands and options in a shell
///
/// For bash: `rollcall completions bash > /usr/share/bash-completion/completions/rollcall`. For zsh: write it to a file
/// `_rollcall` in a directory of $fpath. For fish: `~/.config/fish/completions/rollcall.fish`.
#[derive(clap::Args)]
pub struct Args {
    /// The shell
    #[arg(value_enum)]
    shell: Shell,
}

/// Prints the script for `cli`, the whole command line.
pub fn run(args: Args, mut cli: clap::Command) -> anyhow::Result<()> {
    let name = cli.get_name().to_owned();
    let mut script = Vec::new();
    generate(args.shell, &mut cli, name, &mut script);
    match io::stdout().lock().write_all(&script) {
        // The reader has closed the pipe: not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
