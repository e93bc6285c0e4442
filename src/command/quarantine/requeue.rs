//! `rollcall quarantine requeue`: publishes malformed events that can be read now.
//!
//! A record stays in the quarantine with the error of its day. Its event may become readable later: a schema is registered, a
//! newer version reads more, or only the key or the partition was wrong. Such an event is published like any other, to the
//! partition of its user, so it takes effect as of now (`docs/rules.md` section 2: the log sets the time). What the log has had
//! since decides whether it still may (module `candidates`). Deliberately absent: events that are about a moment that has passed
//! (heartbeats, leases, ticks, policies, revisions). Published now, they would state as current what was true then.

use super::super::progress::ReadProgress;
use super::super::remote::{Client, Server};
use super::candidates::{Appended, Candidate, Candidates, STEP_BACK_MS, Since, sort};
use super::{ONE, Quarantine, Source};
use crate::api::routes::RouteId;
use crate::clock::{Clock as _, Deadline, SystemClock};
use crate::config::units::{Seconds, Span};
use crate::engine::rejected::decode;
use crate::log::Range;
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::schema::avro::{self, Quarantined};
use crate::schema::json::{self, Object};
use crate::schema::partitioner::partition_of;
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::collections::BTreeMap;
use std::io::Write;
use std::thread;
use std::time::Duration;

/// Publishes malformed events again, if they can be read now and still hold
///
/// Prints one JSON line for each record, with what is done with it. Without --yes nothing is published. An event that the log
/// has already, and one that a later event of its device or user has overtaken, are not published, so the command may be run
/// again at any time. If the log's retention has removed events since, it can no longer tell, and the event is not published
/// without --unchecked. Heartbeats, leases, ticks, policies and revisions are never requeued: they are about a moment that has
/// passed.
#[derive(clap::Args)]
pub struct RequeueArgs {
    #[command(flatten)]
    source: Source,
    /// Only this partition, from 0
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Ignores older records, 0 to 31536000 seconds; 0: no limit
    #[arg(long, value_name = "S", default_value_t = Span(3_600_000))]
    max_age_s: Seconds,
    /// The most events to publish, the oldest first, 1 to 1000000
    #[arg(long, value_name = "N", default_value_t = 10_000, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    limit: u32,
    /// Publishes the events; without it they are only shown
    #[arg(long)]
    yes: bool,
    /// Also publishes events of which the log can no longer tell whether it had them or a later one, because of its retention
    #[arg(long)]
    unchecked: bool,
    #[command(flatten)]
    server: Server,
}

/// Where the search for a time ends and reading begins.
const SEARCHED_RECORDS: u64 = 1_000;
/// How many candidates are examined at a time, or more if --limit is larger. Each time the log since then is read.
const EXAMINED: usize = 10_000;
/// What the log has had is asked again before this many events are published.
const CHUNK: usize = 100;
/// How long a request of an earlier run that was killed may take to reach the log.
const SETTLE: Duration = Duration::from_secs(1);
/// How long the first event that was published may take to be in the log that is read.
const SEEN_WITHIN: Duration = Duration::from_secs(10);
const SEEN_PAUSE: Duration = Duration::from_millis(100);

/// Whether a record can come in again, apart from what the log has had since.
pub enum Verdict {
    Candidate(Box<Candidate>),
    Stays(String),
}

#[derive(Default)]
struct Counts {
    requeued: u64,
    left: u64,
    /// Among those that are left: the log can no longer tell.
    unchecked: u64,
    /// Beyond --limit.
    later: u64,
}

pub fn requeue(args: &RequeueArgs) -> anyhow::Result<()> {
    let age_ms = Seconds::within("max-age-s", Some(args.max_age_s), 3_600_000, 0, 31_536_000_000)?;
    let mut quarantine = args.source.open()?;
    let client = args.server.client()?;
    let oldest_ms = match age_ms {
        0 => 0,
        age_ms => SystemClock::new().now_ms().saturating_sub(age_ms),
    };
    let mut output = std::io::stdout().lock();
    let mut counts = Counts::default();
    let mut after = None;
    // Those that the log has already, or that are overtaken, do not count towards --limit.
    while counts.requeued < u64::from(args.limit) {
        let found = find(&mut quarantine, args, (oldest_ms, after), &mut counts, &mut output)?;
        let Some(last) = found.last() else { break };
        after = Some(last.appended());
        publish_all(
            &mut quarantine,
            args,
            &client,
            Candidates::new(found),
            &mut counts,
            &mut output,
        )?;
    }
    output.flush()?;
    let Counts {
        requeued,
        left,
        unchecked,
        later,
    } = counts;
    match args.yes {
        true => eprintln!("{requeued} requeued, {left} left"),
        false => eprintln!("{requeued} would be requeued, {left} left; add --yes to publish them"),
    }
    if unchecked > 0 {
        eprintln!(
            "{unchecked} of those left are not published because the log no longer has all events since; check their users \
             (rollcall users get), then add --unchecked"
        );
    }
    if later > 0 {
        eprintln!(
            "{later} more are beyond --limit {}; run the command again for them",
            args.limit
        );
    }
    Ok(())
}

/// Publishes what the log has not had, up to the limit.
fn publish_all(
    quarantine: &mut Quarantine,
    args: &RequeueArgs,
    client: &Client,
    mut candidates: Candidates,
    counts: &mut Counts,
    output: &mut impl Write,
) -> anyhow::Result<()> {
    let mut since = LogSince::begin(quarantine, &mut candidates)?;
    since.read(quarantine, &mut candidates)?;
    if args.yes && candidates.all.iter().any(|candidate| candidate.since == Since::Nothing) {
        thread::sleep(SETTLE);
        since.read(quarantine, &mut candidates)?;
    }
    for first in (0..candidates.all.len()).step_by(CHUNK) {
        if first > 0 && args.yes {
            since.read(quarantine, &mut candidates)?;
            eprintln!("{first} of {} events are done", candidates.all.len());
        }
        for index in first..candidates.all.len().min(first + CHUNK) {
            let candidate = &candidates.all[index];
            let home = candidate.home;
            let mut is_published = false;
            let what = match candidate.since {
                Since::Itself(offset) => {
                    counts.left += 1;
                    format!("it is in the log already, in partition {home} at offset {offset}")
                }
                Since::Overtaken(offset) => {
                    counts.left += 1;
                    format!("a later event has overtaken it, in partition {home} at offset {offset}")
                }
                Since::Repeats(partition, offset) => {
                    counts.left += 1;
                    format!("it repeats the event of partition {partition} at offset {offset}")
                }
                Since::Nothing if candidate.is_unchecked && !args.unchecked => {
                    counts.left += 1;
                    counts.unchecked += 1;
                    "the log no longer has all events since then (retention), so whether it had this event or a later one is not \
                     known; --unchecked publishes it nevertheless"
                        .to_owned()
                }
                Since::Nothing if counts.requeued >= u64::from(args.limit) => {
                    counts.later += 1;
                    continue;
                }
                Since::Nothing => {
                    if args.yes {
                        publish(client, candidate)?;
                    }
                    counts.requeued += 1;
                    is_published = true;
                    match args.yes {
                        true => "requeued".to_owned(),
                        false => "would be requeued".to_owned(),
                    }
                }
            };
            let (partition, offset) = (candidate.partition, candidate.offset);
            show(output, (partition, offset, candidate.ts), &what, &candidate.error)?;
            if is_published {
                candidates.published(index);
            }
            if args.yes && counts.requeued == 1 && is_published {
                since.wait_for(index, quarantine, &mut candidates, client)?;
            }
        }
    }
    Ok(())
}

/// Returns the oldest candidates that were appended after the given one. The first time it also prints every other record.
fn find(
    quarantine: &mut Quarantine,
    args: &RequeueArgs,
    (oldest_ms, after): (u64, Option<Appended>),
    counts: &mut Counts,
    output: &mut impl Write,
) -> anyhow::Result<Vec<Candidate>> {
    let most = EXAMINED.max(args.limit as usize);
    counts.later = 0;
    let mut found = Vec::new();
    for partition in quarantine.partitions(args.partition)?.map(Partition) {
        let range = quarantine.range(Topic::Quarantine, partition)?;
        let mut progress = ReadProgress::new(Topic::Quarantine, partition, range.start, range.end);
        let mut next = range.start;
        loop {
            let records = quarantine.batch(Topic::Quarantine, partition, &mut next, range.end)?;
            let Some(last) = records.last() else { break };
            progress.tell(next, last.ts);
            for record in &records {
                let malformed = quarantine.quarantined(partition, record)?;
                match judge(quarantine, &malformed, oldest_ms)? {
                    Verdict::Candidate(candidate) if after.is_none_or(|after| candidate.appended() > after) => {
                        found.push(*candidate);
                    }
                    Verdict::Candidate(_) => {}
                    Verdict::Stays(_) if after.is_some() => {}
                    Verdict::Stays(why) => {
                        counts.left += 1;
                        let (partition, offset) = (malformed.partition, malformed.offset);
                        show(output, (partition, offset, malformed.ts), &why, &malformed.error)?;
                    }
                }
                if found.len() >= 2 * most {
                    counts.later += keep_oldest(&mut found, most);
                }
            }
        }
    }
    counts.later += keep_oldest(&mut found, most);
    Ok(found)
}

/// Drops all but the oldest candidates. Returns how many were dropped.
fn keep_oldest(found: &mut Vec<Candidate>, most: usize) -> u64 {
    sort(found);
    let dropped = found.len().saturating_sub(most);
    found.truncate(most);
    dropped as u64
}

/// Returns the event of a malformed record if it can be read now and may be published.
pub fn judge(quarantine: &mut Quarantine, malformed: &Quarantined<'_>, oldest_ms: u64) -> anyhow::Result<Verdict> {
    if malformed.ts < oldest_ms {
        return Ok(Verdict::Stays("it is older than --max-age-s".to_owned()));
    }
    let value = malformed.value.as_deref().unwrap_or_default();
    let learned = quarantine.schemas.learn([(None, value)])?;
    let partitions = quarantine.reader.partitions();
    if let Ok(event) = avro::decode_event_with(value, &learned) {
        return Ok(candidate(malformed, &event, partitions));
    }
    // The original record, if the log still has it, may have a header that names its schema.
    let original = quarantine.original(malformed)?;
    let learned = quarantine.schemas.learn([original.framed()])?;
    let (header, value) = original.framed();
    Ok(match avro::decode_event_of(header, value, &learned) {
        Ok(event) => candidate(malformed, &event, partitions),
        Err(malformed) => Verdict::Stays(format!("it still cannot be read: {malformed}")),
    })
}

fn candidate(malformed: &Quarantined<'_>, event: &Event<'_>, partitions: u32) -> Verdict {
    let user = match event {
        Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => None,
        Event::Connect { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Disconnect { .. }
        | Event::Logout { .. }
        | Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. } => event.user(),
    };
    let Some(user) = user else {
        return Verdict::Stays("it is about a moment that has passed".to_owned());
    };
    let mut encoded = Vec::new();
    avro::encode_event(event, &mut encoded);
    Verdict::Candidate(Box::new(Candidate {
        partition: malformed.partition,
        offset: malformed.offset,
        ts: malformed.ts,
        error: malformed.error.clone().into_owned(),
        user: user.into(),
        home: partition_of(user, partitions),
        encoded,
        since: Since::Nothing,
        is_unchecked: false,
    }))
}

/// What the log has had since the malformed records: how far each partition is read.
struct LogSince(BTreeMap<Partition, Offset>);

impl LogSince {
    /// Finds where reading begins: behind the malformed record in its own partition, and by its time in another.
    fn begin(quarantine: &mut Quarantine, candidates: &mut Candidates) -> anyhow::Result<LogSince> {
        let mut begin: BTreeMap<Partition, Offset> = BTreeMap::new();
        let mut times: BTreeMap<Partition, u64> = BTreeMap::new();
        for candidate in &candidates.all {
            let home = candidate.home;
            if candidate.partition == home {
                let behind = Offset(candidate.offset.0 + 1);
                begin
                    .entry(home)
                    .and_modify(|from| *from = behind.min(*from))
                    .or_insert(behind);
            } else {
                times.entry(home).or_insert(candidate.ts);
            }
        }
        for (partition, ts) in times {
            let from = first_at(quarantine, partition, ts)?;
            begin
                .entry(partition)
                .and_modify(|other| *other = from.min(*other))
                .or_insert(from);
        }
        for (partition, from) in &mut begin {
            let range = quarantine.range(Topic::Events, *partition)?;
            if range.start > Offset(0) {
                note_removed(quarantine, *partition, range, candidates)?;
            }
            *from = range.start.max(*from);
        }
        Ok(LogSince(begin))
    }

    /// Reads what the log has now.
    fn read(&mut self, quarantine: &mut Quarantine, candidates: &mut Candidates) -> anyhow::Result<()> {
        quarantine.reader.refresh()?;
        let partitions = quarantine.reader.partitions();
        for (partition, next) in &mut self.0 {
            let range = quarantine.range(Topic::Events, *partition)?;
            if range.start > *next {
                note_removed(quarantine, *partition, range, candidates)?;
                *next = range.start;
            }
            let end = range.end;
            let mut progress = ReadProgress::new(Topic::Events, *partition, *next, end);
            loop {
                let records = quarantine.batch(Topic::Events, *partition, next, end)?;
                let Some(last) = records.last() else { break };
                progress.tell(*next, last.ts);
                for record in &records {
                    if !candidates.concerns(record.key.as_deref()) {
                        continue;
                    }
                    let learned = quarantine.schemas.learn([record.framed()])?;
                    if let Ok(event) = decode(record, *partition, partitions, &learned) {
                        candidates.see(*partition, record.offset, record.ts, &event);
                    }
                }
            }
        }
        Ok(())
    }

    /// Waits until the first event that was published is in the log. It never is if the server has another log.
    fn wait_for(
        &mut self,
        index: usize,
        quarantine: &mut Quarantine,
        candidates: &mut Candidates,
        client: &Client,
    ) -> anyhow::Result<()> {
        let clock = SystemClock::new();
        let deadline = Deadline::after(&clock, SEEN_WITHIN);
        loop {
            self.read(quarantine, candidates)?;
            if candidates.all[index].since != Since::Nothing {
                return Ok(());
            }
            if deadline.has_passed(&clock) {
                bail!(
                    "the server accepted one event, but this log does not have it after {} s; check that {} (--url) is a server \
                     of the log that is read (--data, --kafka)",
                    SEEN_WITHIN.as_secs(),
                    client.url()
                );
            }
            thread::sleep(SEEN_PAUSE);
        }
    }
}

/// Notes for which candidates the log no longer has all events since the malformed record.
fn note_removed(
    quarantine: &mut Quarantine,
    partition: Partition,
    Range { start, end }: Range,
    candidates: &mut Candidates,
) -> anyhow::Result<()> {
    let mut records = Vec::new();
    if start < end {
        quarantine
            .reader
            .read(Topic::Events, partition, start, ONE, &mut records)?;
    }
    // Without one it is not known how old the removed events were.
    let oldest_ts = records.first().map(|record| record.ts);
    candidates.has_only_from(partition, start, oldest_ts);
    Ok(())
}

/// Returns an offset before which every event is older than a time, near the first that is not.
fn first_at(quarantine: &mut Quarantine, partition: Partition, ts: u64) -> anyhow::Result<Offset> {
    let range = quarantine.range(Topic::Events, partition)?;
    let (mut low, mut high) = (range.start.0, range.end.0);
    while high.saturating_sub(low) > SEARCHED_RECORDS {
        let middle = Offset(low + (high - low) / 2);
        let mut records = Vec::new();
        quarantine
            .reader
            .read(Topic::Events, partition, middle, ONE, &mut records)?;
        match records.first() {
            Some(record) if record.ts.saturating_add(STEP_BACK_MS) < ts && record.offset.0 < high => {
                low = record.offset.0 + 1;
            }
            _ => high = middle.0,
        }
    }
    Ok(Offset(low))
}

fn publish(client: &Client, candidate: &Candidate) -> anyhow::Result<()> {
    let mut line = Vec::new();
    json::event_line(&mut line, Offset(0), 0, &candidate.event());
    let mut event: serde_json::Map<String, Value> =
        serde_json::from_slice(&line).context("an event cannot be written as JSON")?;
    // The log assigns offset and time.
    event.remove("offset");
    event.remove("ts");
    let published = client.post(RouteId::Events, &[event]);
    published.map(drop).with_context(|| {
        format!(
            "the event of partition {} at offset {} was not published, or is not known to be; run the command again, which \
             publishes no event that is in the log",
            candidate.partition, candidate.offset
        )
    })
}

fn show(
    output: &mut impl Write,
    (partition, offset, ts): (Partition, Offset, u64),
    what: &str,
    error: &str,
) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let mut object = Object::new(&mut line);
    object
        .number("partition", partition.0.into())
        .number("offset", offset.0)
        .number("ts", ts)
        .text("what", what)
        .text("error", error)
        .end();
    line.push(b'\n');
    output.write_all(&line)?;
    Ok(())
}
