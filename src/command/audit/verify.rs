//! `rollcall audit verify`: whether the topics are what the events say.

use super::interrupt::check_interrupted;
use super::json_line;
use super::source::{AuditSource, FoundOutputs, SourceFlags, topic_of};
use crate::audit::attested::bytes;
use crate::audit::stored::StoredFold;
use crate::audit::verify::{Compared, Difference, OutputRecord, Verified, Verifier};
use crate::checkpoint::{Checkpoints, Origin};
use crate::clock::{Deadline, SystemClock};
use crate::command::{hash_seed, table};
use crate::log::Position;
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::schema::avro::UserState;
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use serde_json::value::RawValue;
use std::collections::BTreeMap;
use std::io::Write;
use std::ops::ControlFlow;
use std::thread;
use std::time::Duration;

/// Folds the events again and compares every change, kick and quarantined record with the topics
#[derive(clap::Args)]
pub struct Args {
    /// The history must also pass through this head, which `rollcall audit heads` printed before; for one partition
    #[arg(long, value_name = "HEX", value_parser = head)]
    head: Option<Head>,
    /// Begins with the newest checkpoint of each partition and verifies what came after it. What came before is not read
    #[arg(long, requires = "checkpoints")]
    from_checkpoint: bool,
    /// Where the engines keep checkpoints: file:///DIRECTORY or s3://BUCKET/PREFIX. Without --from-checkpoint the newest one is
    /// compared with the fold
    #[arg(long, value_name = "URL", env = "ROLLCALL_CHECKPOINTS", hide_env_values = true)]
    checkpoints: Option<String>,
    #[command(flatten)]
    source: SourceFlags,
}

type Head = [u8; 32];

fn head(text: &str) -> Result<Head, String> {
    bytes(text).ok_or_else(|| "expected the 64 hexadecimal digits that `rollcall audit heads` prints".to_owned())
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
            Checked::Right(verified) => print_verified(output, verified)?,
            Checked::Wrong(difference) => print_difference(output, difference)?,
        }
        if let Checked::Wrong(difference) = one {
            status = 1;
            of_another_partition(args, difference);
        }
    }
    Ok(status)
}

/// Says so where the first difference may come from files of another partition than the one that was verified.
fn of_another_partition(args: &Args, difference: &Difference) {
    let found = difference.found.as_ref();
    let found = found.and_then(|found| serde_json::from_str::<serde_json::Value>(found.get()).ok());
    let id = found.as_ref().and_then(|found| found["id"].as_str());
    let Some(named) = id.and_then(|id| id.split('-').next()?.parse::<u32>().ok()) else {
        return;
    };
    if args.source.has_files() && named != difference.partition {
        eprintln!(
            "note: the record that was found is of partition {named}, and the files were verified as those of partition {}; if they \
             are of partition {named}, name it with --partition {named}",
            difference.partition
        );
    }
}

/// Prints the summary of a partition for people.
pub(super) fn print_verified(output: &mut impl Write, verified: &Verified) -> anyhow::Result<()> {
    let Verified {
        partition,
        events,
        changes,
        kicks,
        quarantined,
        head,
        ..
    } = verified;
    Ok(writeln!(
        output,
        "partition {partition}: verified, {events} events, {changes} changes, {kicks} kicks, {quarantined} quarantined, head {head}"
    )?)
}

/// Prints a difference for people.
pub(super) fn print_difference(output: &mut impl Write, difference: &Difference) -> anyhow::Result<()> {
    let json = |value: &Option<Box<RawValue>>| {
        value
            .as_ref()
            .map_or_else(|| "nothing".to_owned(), |value| table::plain(value.get()))
    };
    if difference.topic == "head" {
        return Ok(writeln!(
            output,
            "partition {}: NOT verified: it never had the head of --head. Either that head is of another partition or log, or records \
             before it were changed.\n  --head:          {}\n  its head at {}: {}",
            difference.partition,
            json(&difference.found),
            difference.offset,
            json(&difference.expected)
        )?);
    }
    Ok(writeln!(
        output,
        "partition {}: NOT verified. The first difference is in {} for the event at offset {}.\n  found:    {}\n  expected: {}",
        difference.partition,
        difference.topic,
        difference.offset,
        json(&difference.found),
        json(&difference.expected)
    )?)
}

fn verify_partition(
    args: &Args,
    policy: &Policy,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<Checked> {
    let mut stored = stored_folds(args, source, partition)?;
    let begin = match stored.iter().position(|(place, _)| *place == CHECKPOINT) {
        Some(at) if args.from_checkpoint => Some(stored.swap_remove(at).1),
        None if args.from_checkpoint => bail!(
            "there is no checkpoint of partition {partition} that `verify` can begin with; leave --from-checkpoint out to verify \
             from the beginning"
        ),
        Some(_) | None => None,
    };
    let (mut verifier, from) = verifier_from(begin, source, partition, policy, "`verify`")?;
    // Before the topics are read: they have everything up to it. After the stores, which never lead it.
    let position = source.position(partition)?;
    let until = position.map(|position| position.next);
    let mut outputs = args.source.open()?;
    let mut found = FoundOutputs::open(&mut outputs, partition, from)?;
    let (first_head, _) = verifier.head();
    let mut passed_head = args.head.is_none_or(|head| head == first_head);
    let mut difference = None;
    source.all_events_from(partition, from, |offset, ts, event| {
        if until.is_some_and(|until| offset >= until) {
            return Ok(ControlFlow::Break(()));
        }
        if let Err(one) = compare_stored(&verifier, &mut stored, offset) {
            difference = Some(one);
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
    if let Err(difference) = compare_rest(&mut verifier, &mut found, &mut outputs, partition, until)? {
        return Ok(Checked::Wrong(difference));
    }
    if let Err(difference) = compare_stored(&verifier, &mut stored, Offset(u64::MAX)) {
        return Ok(Checked::Wrong(difference));
    }
    if let Err(difference) = compare_current(&verifier, source, partition, position.as_ref())? {
        return Ok(Checked::Wrong(difference));
    }
    let events_end = match position {
        Some(_) => source.range(Topic::Events, partition)?.end,
        None => Offset(u64::MAX),
    };
    if position.is_some_and(|position| events_end < position.next) {
        return Ok(Checked::Wrong(verifier.missing_events(events_end)));
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

/// Returns a verifier and the first event that it has to fold: those of a stored state, or of the beginning. An error if events
/// or outputs from there on are gone; `what` needs the beginning.
pub(super) fn verifier_from(
    stored: Option<StoredFold>,
    source: &AuditSource<'_>,
    partition: Partition,
    policy: &Policy,
    what: &str,
) -> anyhow::Result<(Verifier, Offset)> {
    let Some(stored) = stored else {
        for topic in [Topic::Events, Topic::Changes, Topic::Kicks] {
            source.reaches_the_beginning(topic, partition, what)?;
        }
        return Ok((Verifier::new(partition, policy.clone(), hash_seed()), Offset(0)));
    };
    let from = stored.applied.next;
    reaches_checkpoint(source, partition, from)?;
    Ok((Verifier::resume(stored), from))
}

/// Refuses to go on if events after a checkpoint are gone.
fn reaches_checkpoint(source: &AuditSource<'_>, partition: Partition, from: Offset) -> anyhow::Result<()> {
    if source.range(Topic::Events, partition)?.start > from {
        bail!(
            "the events of partition {partition} after its newest checkpoint, at offset {from}, are gone (retention); events must \
             be kept for longer than the time between two checkpoints"
        );
    }
    Ok(())
}

/// What the engine's own store and a checkpoint are called where they differ.
const STORE: &str = "store";
const CHECKPOINT: &str = "checkpoint";
/// A running engine may remove a file of its store that is just being opened; then it is tried again.
const ATTEMPTS: usize = 10;

/// Reads the stores that a partition's fold can be compared with.
fn stored_folds(
    args: &Args,
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<Vec<(&'static str, StoredFold)>> {
    let mut folds = Vec::new();
    if let Some(directory) = source.store_directory(partition)? {
        let mut read = StoredFold::read(&directory, partition, hash_seed());
        for _ in 1..ATTEMPTS {
            if read.is_ok() {
                break;
            }
            read = StoredFold::read(&directory, partition, hash_seed());
        }
        match read {
            Ok(stored) => folds.extend(stored.map(|stored| (STORE, stored))),
            Err(error) => eprintln!("warning: the newest states of partition {partition} are not compared: {error}"),
        }
    }
    if let Some(url) = &args.checkpoints {
        let restored = restored(url, source, args.source.group(), partition)?;
        folds.extend(restored.map(|stored| (CHECKPOINT, stored)));
    }
    folds.retain(|(place, stored)| {
        let is_usable = stored.is_between_records();
        if !is_usable {
            eprintln!(
                "warning: the {place} of partition {partition} is not compared: it was taken in the middle of the record at offset {}",
                stored.applied.next
            );
        }
        is_usable
    });
    Ok(folds)
}

/// Restores the newest checkpoint of a partition, but none of another log, into a directory of its own, which is removed again.
pub(super) fn restored(
    url: &str,
    source: &mut AuditSource<'_>,
    group: &str,
    partition: Partition,
) -> anyhow::Result<Option<StoredFold>> {
    let runtime = tokio::runtime::Runtime::new().context("cannot start the async runtime")?;
    let handle = runtime.handle().clone();
    // Nothing is deleted here, so no limit applies.
    let checkpoints = Checkpoints::open(url, group, usize::MAX, std::env::vars(), handle)?;
    let listed = checkpoints.newest(partition)?;
    // A checkpoint may be newer than what was seen of the log.
    source.refresh()?;
    let name = format!("rollcall-audit-{}-{partition}", std::process::id());
    let directory = std::env::temp_dir().join(name);
    let mut restore = || {
        for one in &listed {
            if source.origin(partition, one)? == Origin::OtherLog {
                let at = checkpoints.shown(partition);
                eprintln!(
                    "warning: the checkpoint {} in {at} is of another log and is not used",
                    one.name
                );
            } else if checkpoints.restore_one(partition, one, &directory)?.is_some() {
                return Ok(StoredFold::read(&directory, partition, hash_seed())?);
            }
        }
        Ok(None)
    };
    let stored = restore();
    if directory.exists() {
        std::fs::remove_dir_all(&directory).with_context(|| format!("cannot remove {}", directory.display()))?;
    }
    stored
}

/// Compares with each store that has come just as far, before the event at an offset is folded.
fn compare_stored(verifier: &Verifier, stored: &mut Vec<(&'static str, StoredFold)>, next: Offset) -> Compare {
    while let Some(at) = stored.iter().position(|(_, stored)| stored.applied.next <= next) {
        let (place, stored) = stored.swap_remove(at);
        verifier.compare_stored(&stored, place)?;
    }
    Ok(())
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
            let record = next_output(found, topic, outputs)?;
            if let Err(difference) = verifier.compare(topic, record) {
                found.may_differ(topic)?;
                return Ok(Err(difference));
            }
            found.was_right(topic);
        }
    }
    Ok(Ok(()))
}

/// How long a record that is committed may take until it can be read.
const LATE: Duration = Duration::from_secs(10);
const LATE_PAUSE: Duration = Duration::from_millis(100);
/// Until the newest states are read again after a difference.
const CURRENT_PAUSE: Duration = Duration::from_secs(2);

/// Returns the next record of a topic that must have one; waits for it where it may be late.
fn next_output(
    found: &mut FoundOutputs,
    topic: Compared,
    outputs: &mut AuditSource<'_>,
) -> anyhow::Result<Option<OutputRecord>> {
    let clock = SystemClock::new();
    let deadline = Deadline::after(&clock, LATE);
    loop {
        let record = found.next(topic, outputs)?;
        if record.is_some() || !outputs.may_be_late() || deadline.has_passed(&clock) {
            return Ok(record);
        }
        check_interrupted()?;
        thread::sleep(LATE_PAUSE);
    }
}

/// Compares with the newest states that the log keeps, if it keeps them; once more where they may be late.
fn compare_current(
    verifier: &Verifier,
    source: &mut AuditSource<'_>,
    partition: Partition,
    position: Option<&Position>,
) -> anyhow::Result<Compare> {
    let Some(position) = position.filter(|position| position.outputs == 0) else {
        return Ok(Ok(()));
    };
    let compared = compare_current_once(verifier, source, partition, position)?;
    if compared.is_ok() || !source.may_be_late() {
        return Ok(compared);
    }
    thread::sleep(CURRENT_PAUSE);
    compare_current_once(verifier, source, partition, position)
}

fn compare_current_once(
    verifier: &Verifier,
    source: &mut AuditSource<'_>,
    partition: Partition,
    position: &Position,
) -> anyhow::Result<Compare> {
    let mut states = BTreeMap::new();
    let is_kept = source.current_states(partition, |user, state| {
        states.insert(user.to_owned(), state.map(|state| state.map(UserState::into_owned)));
    })?;
    if !is_kept {
        return Ok(Ok(()));
    }
    // Both after the states: a state can be read only after its event.
    let is_settled = source.position(partition)? == Some(*position);
    let events_end = source.range(Topic::Events, partition)?.end;
    Ok(verifier.compare_current(&states, position.next..events_end, is_settled))
}

/// Reports the first record that a topic has beyond what the events give. What a running engine has added meanwhile is left out.
fn compare_rest(
    verifier: &mut Verifier,
    found: &mut FoundOutputs,
    outputs: &mut AuditSource<'_>,
    partition: Partition,
    until: Option<Offset>,
) -> anyhow::Result<Compare> {
    for topic in Compared::ALL {
        if let Some(record) = found.next(topic, outputs)? {
            // Read after the record: an output can be read only after its event.
            let is_newer = match until {
                Some(until) => {
                    record.offset() >= until && record.offset() < outputs.range(Topic::Events, partition)?.end
                }
                None => false,
            };
            if !is_newer || record.partition().is_some_and(|of| of != partition) {
                return Ok(verifier.compare(topic, Some(record)));
            }
        }
    }
    Ok(Ok(()))
}
