//! `rollcall audit incidents`: when many devices lost their link at once, and what they had in common (`docs/incidents.md`).
//!
//! The change topic is read twice: for the counts of each second, and for what departed in the incidents. With `--clients` the
//! event topic is read as well.

use super::source::{AuditSource, SourceFlags};
use super::{json_line, shown};
use crate::audit::incidents::{
    DepartedClients, DeviceDigest, IncidentCounts, IncidentRule, IncidentSpan, Seconds, is_departure, second_of,
};
use crate::command::table;
use crate::config::units::{Seconds as SecondsSpan, Span};
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::schema::avro::IncidentRecord;
use crate::topics::Topic;
use std::io::Write;
use std::ops::ControlFlow;

/// When many devices lost their link at once, and what they had in common
///
/// A deterministic rule over the changes of all partitions, by log time: at least --least departures, and at least --share percent of
/// the devices online, within --window.
#[derive(clap::Args)]
pub struct Args {
    /// The window, 1 to 3600 seconds
    #[arg(long, value_name = "S", default_value_t = Span(IncidentRule::default().window_s * 1_000))]
    window: SecondsSpan,
    /// The least number of departures within the window
    #[arg(long, value_name = "COUNT", default_value_t = IncidentRule::default().least, value_parser = clap::value_parser!(u64).range(1..))]
    least: u64,
    /// The least percentage of the devices that were online when the window began, 0 to 100
    #[arg(long, value_name = "PERCENT", default_value_t = IncidentRule::default().share_percent, value_parser = clap::value_parser!(u64).range(0..=100))]
    share: u64,
    /// Counts also by `client`, what clients said of themselves when they connected. Reads the events
    #[arg(long)]
    clients: bool,
    #[command(flatten)]
    source: SourceFlags,
}

/// How many lines of each kind the text shows.
const SHOWN: usize = 5;

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let rule = IncidentRule {
        window_s: SecondsSpan::within("window", Some(args.window), 0, 1_000, 3_600_000)? / 1_000,
        least: args.least,
        share_percent: args.share,
    };
    let source = args.source.checked()?;
    let seconds = source.each_partition(|source, partition| {
        warn_if_cut(source, partition)?;
        let mut seconds = Seconds::default();
        source.changes(partition, |change| {
            seconds.apply(&change);
            Ok(ControlFlow::Continue(()))
        })?;
        Ok(seconds)
    })?;
    let mut all = Seconds::default();
    seconds.iter().for_each(|one| all.add(one));
    let spans = all.spans(&rule);
    let mut incidents: Vec<IncidentCounts> = spans.iter().map(|_| IncidentCounts::default()).collect();
    if !spans.is_empty() {
        let counts = source.each_partition(|source, partition| departed(args, source, partition, &spans))?;
        for of_partition in counts {
            for (incident, counts) in incidents.iter_mut().zip(of_partition) {
                incident.add(counts);
            }
        }
    }
    for (span, counts) in spans.iter().zip(incidents) {
        let line = counts.record(&rule, span, args.clients);
        match args.source.json {
            true => json_line(output, &line)?,
            false => print(output, &line)?,
        }
    }
    if spans.is_empty() && !args.source.json {
        writeln!(
            output,
            "no incident: never did {} devices and {} % of those online lose their link within {} s",
            rule.least, rule.share_percent, rule.window_s
        )?;
    }
    Ok(0)
}

/// Says that devices are missing in the number of those online where the first changes are gone.
fn warn_if_cut(source: &AuditSource<'_>, partition: Partition) -> anyhow::Result<()> {
    let start = source.range(Topic::Changes, partition)?.start;
    if start > Offset(0) {
        eprintln!(
            "warning: the changes of partition {partition} before offset {start} are gone (retention): devices that were online then \
             are not counted as online until they change, so shares are too large at the beginning"
        );
    }
    Ok(())
}

/// Counts what departed of a partition in each incident.
fn departed(
    args: &Args,
    source: &mut AuditSource<'_>,
    partition: Partition,
    spans: &[IncidentSpan],
) -> anyhow::Result<Vec<IncidentCounts>> {
    let mut counts: Vec<IncidentCounts> = spans.iter().map(|_| IncidentCounts::default()).collect();
    let mut clients = DepartedClients::default();
    source.changes(partition, |change| {
        let second = second_of(change.at);
        let number = spans.partition_point(|span| span.last_second < second);
        if spans.get(number).is_none_or(|span| second < span.first_second) {
            return Ok(ControlFlow::Continue(()));
        }
        for device in change.devices.iter().filter(|device| is_departure(&change, device)) {
            counts[number].take(&change, device);
            if args.clients {
                let digest = DeviceDigest::of(&change.user, &device.platform, &device.device);
                clients.depart(digest, change.id.offset, number);
            }
        }
        Ok(ControlFlow::Continue(()))
    })?;
    if !args.clients {
        return Ok(counts);
    }
    source.events(partition, |offset, _, event| {
        let Ok(Event::Connect { who, client, .. }) = &event else {
            return Ok(ControlFlow::Continue(()));
        };
        let device = DeviceDigest::of(&who.user, &who.platform, &who.device);
        clients.connect(device, offset, client.as_deref(), |incident, client| {
            counts[incident].take_client(client, 1);
        });
        Ok(ControlFlow::Continue(()))
    })?;
    clients.end(|incident, client| counts[incident].take_client(client, 1));
    Ok(counts)
}

fn print(output: &mut impl Write, line: &IncidentRecord) -> anyhow::Result<()> {
    let IncidentRecord {
        from,
        to,
        departures,
        devices,
        online_before,
        ..
    } = line;
    writeln!(
        output,
        "{}: {departures} departures of {devices} devices within {} s; {online_before} were online before",
        shown(*from),
        (to - from).div_ceil(1_000)
    )?;
    let kinds = [
        ("cause", Some(&line.causes)),
        ("gateway", Some(&line.gateways)),
        ("platform", Some(&line.platforms)),
        ("client", line.clients.as_ref()),
    ];
    for (kind, counts) in kinds {
        let mut counts: Vec<(&String, &u64)> = counts.into_iter().flatten().collect();
        counts.sort_by_key(|(name, count)| (std::cmp::Reverse(**count), *name));
        for (name, count) in counts.iter().take(SHOWN) {
            let percent = **count * 100 / (*departures).max(1);
            // Any publisher may have chosen it.
            let name = table::plain(name);
            writeln!(output, "  {kind} {name}: {count} ({percent} %)")?;
        }
        if counts.len() > SHOWN {
            let more: u64 = counts[SHOWN..].iter().map(|(_, count)| **count).sum();
            writeln!(output, "  {} more of {kind}: {more}", counts.len() - SHOWN)?;
        }
    }
    Ok(())
}
