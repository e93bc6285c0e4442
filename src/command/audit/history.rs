//! `rollcall audit history`: what held of a user, and when.

use super::source::{SourceFlags, gone};
use super::{json_line, parse_time, shown};
use crate::api::answers::StatusInterval;
use crate::audit::history::History;
use crate::command::table;
use crate::presence::Offset;
use crate::topics::Topic;
use anyhow::bail;
use std::io::Write;
use std::ops::ControlFlow;

/// What held of a user, and when
#[derive(clap::Args)]
pub struct Args {
    user: String,
    /// Leaves out what began before this time and ended by then
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Leaves out what began after this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    #[command(flatten)]
    source: SourceFlags,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let bound = |text: &Option<String>| text.as_deref().map(parse_time).transpose();
    let (from, to) = (bound(&args.from)?, bound(&args.to)?);
    if let (Some(from), Some(to)) = (from, to)
        && from > to
    {
        bail!("--from {} is after --to {}", shown(from.0), shown(to.0));
    }
    let source = args.source.checked()?;
    let mut source = source.open()?;
    let partition = source.asked_partition_of(&args.user)?;
    let is_cut = source.range(Topic::Changes, partition)?.start > Offset(0);
    let mut history = History::within(&args.user, from, to);
    let (mut first, mut is_whole) = (None, false);
    source.changes(partition, |change| {
        first.get_or_insert(change.at);
        is_whole |= *change.user == *args.user && change.version == 1;
        history.apply(&change);
        Ok(ControlFlow::Continue(()))
    })?;
    if is_cut && !is_whole {
        let what_for = format!("for the history of {:?}", args.user);
        match from.filter(|from| first.is_some_and(|first| first <= *from)) {
            Some(_) => eprintln!(
                "warning: {}; intervals that began before are left out",
                gone(&mut source, partition, &what_for)
            ),
            None => {
                return Err(gone(
                    &mut source,
                    partition,
                    &format!("{what_for} (a later --from has an answer)"),
                ));
            }
        }
    }
    let lines: Vec<StatusInterval> = history.lines().collect();
    if args.source.json {
        lines.iter().try_for_each(|line| json_line(output, line))?;
        return Ok(0);
    }
    if lines.is_empty() {
        writeln!(output, "nothing is known of {:?} in that time", args.user)?;
        return Ok(0);
    }
    let head = ["device", "status", "from", "to", "because", "record", "until"];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    for line in &lines {
        rows.push(history_row(line));
    }
    output.write_all(table::columns(&rows).as_bytes())?;
    Ok(0)
}

fn history_row(line: &StatusInterval) -> Vec<String> {
    let device = match (&line.platform, &line.device) {
        (Some(platform), Some(device)) => format!("{platform}/{device}"),
        _ => "(user)".to_owned(),
    };
    vec![
        device,
        line.status.to_string(),
        shown(line.from),
        line.to.map_or_else(|| "now".to_owned(), shown),
        line.cause.to_string(),
        line.evidence.to_string(),
        line.end_cause.as_deref().unwrap_or_default().to_owned(),
    ]
}
