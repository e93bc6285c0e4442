//! `rollcall audit verify` and `heads`: whether the topics are what the events say.

use super::json_line;
use super::source::{AuditSource, FoundOutputs, SourceFlags, topic_of};
use crate::audit::verify::{Compared, Difference, Verified, Verifier, hex};
use crate::command::{hash_seed, table};
use crate::log::{Position, Topic};
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use anyhow::bail;
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::Write;
use std::ops::ControlFlow;

/// Folds the events again and compares every change, kick and quarantined record with the topics
#[derive(clap::Args)]
pub struct Args {
    /// The history must also pass through this head, which `rollcall audit heads` printed before; for one partition
    #[arg(long, value_name = "HEX", value_parser = head)]
    head: Option<Head>,
    #[command(flatten)]
    source: SourceFlags,
}

/// The chain over all outputs of each partition, to be kept elsewhere for `verify --head`
#[derive(clap::Args)]
pub struct HeadsArgs {
    #[command(flatten)]
    source: SourceFlags,
}

type Head = [u8; 32];

fn head(text: &str) -> Result<Head, String> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let bytes: Option<Vec<u8>> = (0..32).map(|byte| digit(2 * byte)).collect();
    let bytes = bytes
        .filter(|_| text.len() == 64)
        .and_then(|bytes| bytes.try_into().ok());
    bytes.ok_or_else(|| "expected the 64 hexadecimal digits that `rollcall audit heads` prints".to_owned())
}

enum Checked {
    Right(Verified),
    Wrong(Box<Difference>),
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let policy = args.source.first_policy()?;
    let checked = args
        .source
        .each_partition(|source, partition| verify_partition(args, &policy, source, partition))?;
    if args.head.is_some() && checked.len() > 1 {
        bail!("--head is the head of one partition; name it with --partition");
    }
    let mut status = 0;
    for one in &checked {
        match one {
            Checked::Right(verified) if args.source.json => json_line(output, verified)?,
            Checked::Wrong(difference) if args.source.json => json_line(output, difference)?,
            Checked::Right(verified) => writeln!(
                output,
                "partition {}: verified, {} events, {} changes, {} kicks, {} quarantined, head {}",
                verified.partition,
                verified.events,
                verified.changes,
                verified.kicks,
                verified.quarantined,
                verified.head
            )?,
            Checked::Wrong(difference) => {
                let json = |value: &Option<Box<RawValue>>| {
                    value
                        .as_ref()
                        .map_or_else(|| "nothing".to_owned(), |value| table::plain(value.get()))
                };
                writeln!(
                    output,
                    "partition {}: NOT verified. The first difference is in {} for the event at offset {}.\n  found:    {}\n  \
                     expected: {}",
                    difference.partition,
                    difference.topic,
                    difference.offset,
                    json(&difference.found),
                    json(&difference.expected)
                )?;
            }
        }
        if matches!(one, Checked::Wrong(_)) {
            status = 1;
        }
    }
    Ok(status)
}

fn verify_partition(
    args: &Args,
    policy: &Policy,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<Checked> {
    for topic in [Topic::Events, Topic::Changes, Topic::Kicks] {
        source.reaches_the_beginning(topic, partition, "`verify`")?;
    }
    // Before the topics are read: they have everything up to it.
    let position = source.position(partition)?;
    let until = position.map(|position| position.next);
    let mut outputs = args.source.open()?;
    let mut found = FoundOutputs::open(&outputs, partition)?;
    let mut verifier = Verifier::new(partition, policy.clone(), hash_seed());
    let mut passed_head = args.head.is_none_or(|head| head == [0; 32]);
    let mut difference = None;
    source.events(partition, |offset, ts, event| {
        if until.is_some_and(|until| offset >= until) {
            return Ok(ControlFlow::Break(()));
        }
        let mut heads = |chain: &Head| passed_head |= args.head.is_some_and(|head| head == *chain);
        match &event {
            Ok(event) => verifier.fold(offset, ts, Ok(event), &mut heads),
            Err(malformed) => verifier.fold(offset, ts, Err(malformed.clone()), &mut heads),
        }
        match compare_ready(&mut verifier, &mut found, &mut outputs)? {
            Ok(()) => Ok(ControlFlow::Continue(())),
            Err(one) => {
                difference = Some(one);
                Ok(ControlFlow::Break(()))
            }
        }
    })?;
    if let Some(difference) = difference {
        return Ok(Checked::Wrong(difference));
    }
    if let Err(difference) = compare_rest(&mut verifier, &mut found, &mut outputs, until)? {
        return Ok(Checked::Wrong(difference));
    }
    let (chain, changes) = verifier.head();
    let is_whole = |position: &Position| position.outputs == 0;
    if let Some(position) = position.filter(is_whole)
        && (position.chain, position.seq) != (chain, changes)
    {
        return Ok(Checked::Wrong(verifier.other_head("position", Some(&position.chain))));
    }
    if !passed_head {
        return Ok(Checked::Wrong(verifier.other_head("head", args.head.as_ref())));
    }
    Ok(Checked::Right(verifier.verified()))
}

type Compare = Result<(), Box<Difference>>;

/// Compares every folded output with the next record of its topic.
fn compare_ready(
    verifier: &mut Verifier,
    found: &mut FoundOutputs,
    outputs: &mut AuditSource<'_>,
) -> anyhow::Result<Compare> {
    for topic in Compared::ALL {
        if !outputs.has(topic_of(topic)) {
            verifier.skip(topic);
        }
        while verifier.expected(topic) > 0 {
            if let Err(difference) = verifier.compare(topic, found.next(topic, outputs)?) {
                return Ok(Err(difference));
            }
        }
    }
    Ok(Ok(()))
}

/// Reports the first record that a topic has beyond what the events give. What a running engine has added meanwhile is left out.
fn compare_rest(
    verifier: &mut Verifier,
    found: &mut FoundOutputs,
    outputs: &mut AuditSource<'_>,
    until: Option<Offset>,
) -> anyhow::Result<Compare> {
    for topic in Compared::ALL {
        if let Some(record) = found.next(topic, outputs)?
            && until.is_none_or(|until| record.offset() < until)
        {
            return Ok(verifier.compare(topic, Some(record)));
        }
    }
    Ok(Ok(()))
}

/// The head of a partition, as it is printed.
#[derive(Serialize)]
struct HeadLine {
    partition: u32,
    /// The next event to be folded.
    next: u64,
    changes: u64,
    head: String,
}

pub fn heads(args: &HeadsArgs, output: &mut impl Write) -> anyhow::Result<u8> {
    let policy = args.source.first_policy()?;
    let heads = args.source.each_partition(|source, partition| {
        if let Some(position) = source.position(partition)? {
            return Ok(HeadLine {
                partition: partition.0,
                next: position.next.0,
                changes: position.seq,
                head: hex(&position.chain),
            });
        }
        let mut verifier = Verifier::new(partition, policy.clone(), hash_seed());
        let mut next = 0;
        source.events(partition, |offset, ts, event| {
            verifier.fold(offset, ts, event.as_ref().map_err(Clone::clone), &mut |_| {});
            for topic in Compared::ALL {
                verifier.skip(topic);
            }
            next = offset.0 + 1;
            Ok(ControlFlow::Continue(()))
        })?;
        let (chain, changes) = verifier.head();
        Ok(HeadLine {
            partition: partition.0,
            next,
            changes,
            head: hex(&chain),
        })
    })?;
    for head in &heads {
        if args.source.json {
            json_line(output, head)?;
        } else {
            writeln!(
                output,
                "partition {}: {} (events before offset {}, {} changes)",
                head.partition, head.head, head.next, head.changes
            )?;
        }
    }
    if heads.is_empty() {
        bail!("the log has no partitions");
    }
    Ok(0)
}
