//! `rollcall policy check` and `history`: what a policy would change, in words, and which ones there were.

use super::{differences, in_force};
use crate::command::audit::source::SourceFlags;
use crate::command::audit::what_if;
use crate::command::directories;
use crate::command::remote::Server;
use crate::command::table::plain;
use crate::config::read_policy;
use crate::presence::event::Event;
use crate::presence::policy::Policy;
use crate::schema::policy::policy_json;
use crate::topics::Topic;
use anyhow::{Context as _, anyhow, bail};
use clap::Parser as _;
use serde_json::{Value, json};
use std::io::Write as _;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

#[derive(clap::Args, Debug)]
pub struct CheckArgs {
    /// JSON file with the policy
    file: PathBuf,
    /// Also says what the events of a log would have given under this policy: a data directory, or the brokers of Kafka. For
    /// more choices see `rollcall audit what-if`
    #[arg(long, value_name = "DIR|HOST:PORT")]
    against: Option<String>,
    /// With --against: counts what happened from this time on
    #[arg(long, value_name = "TIME", default_value = "-7d", allow_hyphen_values = true)]
    from: String,
    #[command(flatten)]
    server: Server,
}

#[derive(clap::Args, Debug)]
pub struct HistoryArgs {
    #[command(flatten)]
    source: SourceFlags,
}

/// The arguments of `audit what-if`, to be filled in as on the command line.
#[derive(clap::Parser)]
struct WhatIf {
    #[command(flatten)]
    args: what_if::Args,
}

pub fn check(args: &CheckArgs) -> anyhow::Result<()> {
    let policy = read_policy(Some(&args.file))?.context("the file has no policy")?;
    let policy: Value = serde_json::from_str(&policy_json(&policy))?;
    let before = in_force(&args.server.client()?)?;
    let mut changes = Vec::new();
    differences("", &before, &policy, &mut changes);
    let mut output = std::io::stdout().lock();
    if args.server.json {
        writeln!(output, "{}", json!({ "differences": changes }))?;
    } else if changes.is_empty() {
        writeln!(output, "valid; nothing would change")?;
    } else {
        writeln!(output, "valid; this would change:")?;
        for change in &changes {
            writeln!(output, "  {}", plain(change))?;
            let path = change.split(": ").next().unwrap_or_default();
            if let Some(words) = words(path) {
                writeln!(output, "    {}", plain(&words))?;
            }
        }
        writeln!(
            output,
            "Deadlines and statuses that are already set do not change; the policy applies to what happens after it."
        )?;
    }
    let Some(against) = &args.against else { return Ok(()) };
    let file = args.file.to_string_lossy();
    let from = format!("--from={}", args.from);
    let place = place(against)?;
    let mut words = vec!["what-if", "--policy", &file, &from, place, against];
    if args.server.json {
        words.push("--json");
    }
    let parsed = WhatIf::try_parse_from(words).map_err(|error| anyhow!("{error}"))?;
    what_if::run(&parsed.args, &mut output)?;
    Ok(())
}

/// Returns the flag for the place of a log: a data directory, or brokers.
fn place(against: &str) -> anyhow::Result<&'static str> {
    let is_broker = |name: &str| {
        let port = name.trim().rsplit_once(':').map(|(_, port)| port.parse::<u16>());
        matches!(port, Some(Ok(_)))
    };
    match Path::new(against).is_dir() {
        true => Ok("--data"),
        false if against.split(',').all(is_broker) => Ok("--kafka"),
        false => {
            let is_there = directories::exists(Path::new(against)).context("--against cannot be used")?;
            let what = if is_there {
                "it is no directory"
            } else {
                "there is no such directory"
            };
            bail!("--against {against:?}: {what}, and brokers are named as HOST:PORT, with commas between them")
        }
    }
}

/// What a setting decides, by its path.
fn words(path: &str) -> Option<String> {
    let (section, key) = path.rsplit_once('.').unwrap_or(("", path));
    let platform = section.strip_prefix("platforms.");
    Some(match (platform, key) {
        (Some(name), "timeout_ms") => format!(
            "How long a device on {name} may be silent before it leaves online. A shorter time finds losses earlier, and \
             reports more devices as lost that come back."
        ),
        (Some(name), "heartbeat_ms") => {
            format!("How often clients on {name} are asked to send a heartbeat; no rule uses it.")
        }
        (Some(name), "closed_ms") => format!("How long a device on {name} stays online after its link was closed."),
        (Some(name), "exit_ms") => {
            format!("How long a device on {name} stays online after its exit button was pressed.")
        }
        (Some(name), "background_ms") => {
            format!("How long a device on {name} stays online in the background; null: as in the foreground.")
        }
        (Some(name), "push") => format!("Whether a device on {name} without a link is reachable by push, or offline."),
        (Some(name), "away_ms") => format!("How long a device on {name} without a link stays logged in."),
        (Some(name), "kind") => format!("The platforms with which {name} shares its limit of devices and its groups."),
        (None, "login") => "Which kinds of devices displace each other when a user logs in.".to_owned(),
        (None, "exclusive") => {
            "Groups of kinds: in each group a user is logged in on one kind at a time; null: the groups of login."
                .to_owned()
        }
        (None, "kicked_max") => {
            "How many kicked devices of a user are remembered, so that they cannot come back by themselves.".to_owned()
        }
        (None, "custom_keep_ms") => "How long a custom status is kept when the link is lost.".to_owned(),
        (None, "silence_ms") => {
            "After a silence of the whole log of this length no device is marked as lost; 0: switched off.".to_owned()
        }
        (None, "grace_ms") => "How long after such a silence no device is marked as lost.".to_owned(),
        (None, _) if section == "instances" => {
            format!("On how many devices of kind {key} a user may be logged in at once.")
        }
        _ => {
            return path
                .strip_prefix("platforms.")
                .map(|name| format!("The platform {name} is new."));
        }
    })
}

pub fn history(args: &HistoryArgs) -> anyhow::Result<()> {
    let first = args.source.first_policy()?;
    let found = args.source.each_partition(|source, partition| {
        source.reaches_the_beginning(Topic::Events, partition, "`policy history`")?;
        let mut policies = Vec::new();
        source.events(partition, |offset, ts, event| {
            if let Ok(Event::Policy { policy, .. }) = &event {
                policies.push((offset, ts, Policy::clone(policy)));
            }
            Ok(ControlFlow::Continue(()))
        })?;
        Ok((partition, policies))
    })?;
    let mut output = std::io::stdout().lock();
    for (partition, policies) in found {
        let mut in_force = first.clone();
        if policies.is_empty() && !args.source.json {
            let which = match args.source.policy.as_ref() {
                Some(_) => "that of --policy",
                None => "the default policy, which has no outage grace",
            };
            writeln!(output, "partition {partition}: no policy was published; {which} holds")?;
        }
        for (offset, ts, policy) in policies {
            // As the rules have it (section 4).
            let missing = policy.lacks(&in_force);
            let document: Value = serde_json::from_str(&policy_json(&policy))?;
            if args.source.json {
                let line = json!({"partition": partition.0, "offset": offset.0, "ts": ts, "ignored": missing.is_some(), "policy": document});
                writeln!(output, "{line}")?;
            } else {
                let time = crate::command::audit::shown(ts);
                writeln!(output, "partition {partition}, offset {offset}, {time}:")?;
                match &missing {
                    Some(name) => writeln!(
                        output,
                        "  ignored: it lacks the platform {}, which is in force",
                        plain(name)
                    )?,
                    None => {
                        let before: Value = serde_json::from_str(&policy_json(&in_force))?;
                        let mut changes = Vec::new();
                        differences("", &before, &document, &mut changes);
                        for change in &changes {
                            writeln!(output, "  {}", plain(change))?;
                        }
                        if changes.is_empty() {
                            writeln!(output, "  no differences")?;
                        }
                    }
                }
            }
            if missing.is_none() {
                in_force = policy;
            }
        }
    }
    Ok(())
}
