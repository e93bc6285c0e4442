//! `rollcall audit at`: who was online at a time.

use super::source::{AuditSource, Beginning, SourceFlags, gone};
use super::{json_line, parse_time, shown};
use crate::audit::Knowledge;
use crate::audit::snapshot::{Filter, Snapshot, Totals, UserLine};
use crate::command::table;
use crate::presence::change::Change;
use crate::presence::{LogTime, Offset, Partition, Status};
use crate::topics::Topic;
use std::collections::{BTreeMap, BTreeSet};
use std::io::Write;
use std::ops::ControlFlow;

/// Who was online at a time
///
/// With everything that is known by now, or with --as-known as it was known then: a device that fell silent at 12:00 is found
/// out minutes later.
#[derive(clap::Args)]
pub struct Args {
    /// RFC 3339, milliseconds since 1970, or a span before now such as -3h
    #[arg(allow_hyphen_values = true)]
    time: String,
    /// Only this user, as often as needed: a line for each
    #[arg(long, value_name = "USER")]
    user: Vec<String>,
    /// Only users with a device on this platform that was not offline
    #[arg(long)]
    platform: Option<String>,
    /// Only users of this status
    #[arg(long, value_parser = status)]
    status: Option<Status>,
    /// As this engine had answered then
    #[arg(long)]
    as_known: bool,
    /// A line for every user instead of the totals
    #[arg(long, conflicts_with = "user")]
    list: bool,
    #[command(flatten)]
    source: SourceFlags,
}

fn status(name: &str) -> Result<Status, String> {
    Status::named(name).ok_or_else(|| "expected online, push_online or offline".to_owned())
}

/// What a partition has to say about a time.
struct PartAt {
    totals: Totals,
    users: Vec<(usize, UserLine)>,
    all: Vec<UserLine>,
    behind: Option<u32>,
    /// None if there was a change by then.
    beginning: Option<Beginning>,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let time = parse_time(&args.time)?;
    let knowledge = if args.as_known {
        Knowledge::AsKnown
    } else {
        Knowledge::True
    };
    let filter = Filter {
        platform: args.platform.clone(),
        status: args.status,
    };
    let source = args.source.checked()?;
    let parts = source.each_partition(|source, partition| {
        let mut wanted: Vec<(usize, &String)> = Vec::new();
        for (at, user) in args.user.iter().enumerate() {
            if source.asked_partition_of(user)? == partition {
                wanted.push((at, user));
            }
        }
        let behind = source.log_time(partition)?.is_none_or(|log_time| log_time < time);
        let is_cut = source.range(Topic::Changes, partition)?.start > Offset(0);
        if is_cut && args.user.is_empty() {
            return Err(gone(source, partition, "to count users"));
        }
        let mut snapshot = Snapshot::default();
        // Users of whom all changes are kept.
        let mut whole = BTreeSet::new();
        let mut has_changes = false;
        if args.user.is_empty() || !wanted.is_empty() {
            changes_until(source, partition, time, knowledge, |change| {
                has_changes = true;
                if args.user.is_empty() || wanted.iter().any(|(_, user)| **user == *change.user) {
                    if is_cut && change.version == 1 {
                        whole.insert(change.user.clone());
                    }
                    snapshot.apply(change);
                }
            })?;
        }
        if is_cut && let Some((_, user)) = wanted.iter().find(|(_, user)| !whole.contains(user.as_str())) {
            return Err(gone(source, partition, &format!("for what was of {user:?}")));
        }
        let users = wanted.into_iter();
        Ok(PartAt {
            totals: snapshot.totals(&filter),
            users: users
                .filter_map(|(at, user)| Some((at, snapshot.user(user, &filter)?)))
                .collect(),
            all: if args.list { snapshot.all(&filter) } else { Vec::new() },
            behind: behind.then_some(partition.0),
            beginning: match has_changes {
                true => None,
                false => Some(source.beginning(partition)?),
            },
        })
    })?;
    let too_early = too_early(time, parts.iter().map(|part| part.beginning));
    let is_table = !args.source.json && !args.list && args.user.is_empty();
    if let Some(too_early) = &too_early
        && !is_table
    {
        eprintln!("warning: {too_early}");
    }
    let behind: Vec<u32> = parts.iter().filter_map(|part| part.behind).collect();
    if !args.user.is_empty() || args.list {
        if !behind.is_empty() {
            eprintln!(
                "warning: the log time of these partitions is before {}: {behind:?}",
                shown(time.0)
            );
        }
        let lines = if args.list {
            let mut all: Vec<UserLine> = parts.into_iter().flat_map(|part| part.all).collect();
            all.sort_unstable_by(|a, b| a.user.cmp(&b.user));
            all.into_iter().map(Some).collect()
        } else {
            let mut lines = vec![None; args.user.len()];
            for (at, line) in parts.into_iter().flat_map(|part| part.users) {
                lines[at] = Some(line);
            }
            lines
        };
        return if args.source.json {
            lines.iter().try_for_each(|line| json_line(output, line)).map(|()| 0)
        } else {
            users_table(args, &lines, output)
        };
    }
    let mut totals = Totals::default();
    parts.iter().for_each(|part| totals.add(&part.totals));
    let line = totals.line(time, args.as_known, behind);
    if args.source.json {
        json_line(output, &line)?;
        return Ok(0);
    }
    let users = &line.users;
    writeln!(
        output,
        "{}: {} users online, {} reachable by push, {} offline",
        shown(line.time),
        users.online,
        users.push_online,
        users.offline
    )?;
    let mut rows = vec![["platform", "online", "push_online"].map(str::to_owned).to_vec()];
    let mut platforms: Vec<_> = line
        .devices
        .online
        .keys()
        .chain(line.devices.push_online.keys())
        .collect();
    platforms.sort_unstable();
    platforms.dedup();
    for platform in platforms {
        let count = |of: &BTreeMap<String, u64>| of.get(platform).copied().unwrap_or(0).to_string();
        rows.push(vec![
            platform.to_string(),
            count(&line.devices.online),
            count(&line.devices.push_online),
        ]);
    }
    output.write_all(table::columns(&rows).as_bytes())?;
    if !line.behind.is_empty() {
        writeln!(
            output,
            "The log time of these partitions is before that time, so they may not know everything yet: {:?}",
            line.behind
        )?;
    }
    if let Some(too_early) = too_early {
        writeln!(output, "{too_early}")?;
    }
    Ok(0)
}

/// Says that nothing was known because no partition had a record by then: seconds for milliseconds, for one, are a time in 1970.
fn too_early(time: LogTime, beginnings: impl Iterator<Item = Option<Beginning>>) -> Option<String> {
    let mut first = None;
    for beginning in beginnings {
        match beginning? {
            Beginning::At(at) if at > time => first = Some(first.map_or(at, |first: LogTime| first.min(at))),
            Beginning::At(_) | Beginning::Gone => return None,
            Beginning::Empty => {}
        }
    }
    Some(match first {
        Some(first) => format!(
            "Nothing was known at {}: the log begins at {}.",
            shown(time.0),
            shown(first.0)
        ),
        None => "Nothing is known: the log has no records.".to_owned(),
    })
}

fn users_table(args: &Args, lines: &[Option<UserLine>], output: &mut impl Write) -> anyhow::Result<u8> {
    let mut rows = vec![
        ["user", "status", "since", "change", "devices"]
            .map(str::to_owned)
            .to_vec(),
    ];
    let nothing = match args.platform.is_none() && args.status.is_none() {
        true => "nothing known",
        false => "nothing known, or it does not match",
    };
    for (at, line) in lines.iter().enumerate() {
        let Some(line) = line else {
            let user = args.user.get(at).cloned().unwrap_or_default();
            rows.push(vec![user, nothing.to_owned()]);
            continue;
        };
        let devices: Vec<String> = line
            .devices
            .iter()
            .map(|one| format!("{}/{} {}", one.platform, one.device, one.status))
            .collect();
        rows.push(vec![
            line.user.clone(),
            line.status.to_owned(),
            shown(line.since),
            line.change.clone(),
            devices.join(", "),
        ]);
    }
    output.write_all(table::columns(&rows).as_bytes())?;
    Ok(0)
}

/// Reads a partition's changes that count at a time, from the beginning on.
fn changes_until(
    source: &mut AuditSource<'_>,
    partition: Partition,
    time: LogTime,
    knowledge: Knowledge,
    mut each: impl FnMut(&Change),
) -> anyhow::Result<()> {
    source.changes(partition, |change| {
        // Neither time goes back within a partition, so what counts is a prefix.
        if knowledge.time_of(&change) > time {
            return Ok(ControlFlow::Break(()));
        }
        each(&change);
        Ok(ControlFlow::Continue(()))
    })
}
