//! `rollcall quarantine requeue`: publishes malformed events that can be read now.
//!
//! A record stays in the quarantine with the error of its day. Its event may become readable later: a schema is registered, a
//! newer version reads more, or only the key or the partition was wrong. Such an event is published like any other, to the
//! partition of its user. A file lists the records that were requeued, so that a second run does nothing. Deliberately
//! absent: events that are about a moment that has passed (heartbeats, leases, ticks, policies, revisions). Published now,
//! they would state as current what was true then.

use super::cluster::Cluster;
use super::log::{open, schemas};
use super::remote::{Server, printed};
use crate::api::routes::RouteId;
use crate::clock::{Clock as _, SystemClock};
use crate::config::SecretUrl;
use crate::log::{Limit, Reader, Topic};
use crate::presence::event::Event;
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::avro::{self, Quarantined};
use crate::schema::json::{self, Object};
use anyhow::{Context as _, bail};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io::{Read as _, Write};
use std::path::{Path, PathBuf};

/// Requeues malformed events that can be read now (`rollcall log quarantine` shows all of them)
#[derive(clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(clap::Subcommand)]
enum Command {
    Requeue(Box<Requeue>),
}

/// Publishes malformed events again, if they can be read now
///
/// Prints one JSON line for each record, with what is done with it. Without --yes nothing is published. Heartbeats, leases,
/// ticks, policies and revisions are never requeued: they are about a moment that has passed.
#[derive(clap::Args)]
struct Requeue {
    /// The server's data directory; its log has the quarantine
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./rollcall-data",
        conflicts_with = "kafka"
    )]
    data: PathBuf,
    /// Reads the quarantine from Apache Kafka instead: the brokers, separated by commas
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// The schema registry, if records were written with one
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
    /// Only this partition, from 0
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Ignores older records, 0 to 31536000 seconds; 0: no limit
    #[arg(long, value_name = "S", default_value_t = 3_600, value_parser = clap::value_parser!(u64).range(0..=31_536_000))]
    max_age_s: u64,
    /// File that lists the requeued records, one line each
    #[arg(long, value_name = "FILE", default_value = "rollcall-requeued")]
    done: PathBuf,
    /// Publishes the events; without it they are only shown
    #[arg(long)]
    yes: bool,
    #[command(flatten)]
    server: Server,
}

/// The most that one read returns.
const LIMIT: Limit = Limit {
    records: 1_000,
    bytes: 4 << 20,
};
const ONE: Limit = Limit { records: 1, bytes: 1 };

/// What is done with a record, and why.
enum Verdict {
    Requeue(Value),
    Stays(String),
}

pub fn run(args: Args) -> anyhow::Result<()> {
    let Command::Requeue(args) = args.command;
    printed(requeue(&args))
}

fn requeue(args: &Requeue) -> anyhow::Result<()> {
    let mut reader = open(args.kafka.as_deref(), &args.data, &args.cluster)?;
    let (schemas, _runtime) = schemas(args.registry.as_ref())?;
    let mut done = Done::open(&args.done)?;
    let client = args.server.client()?;
    let oldest_ms = match args.max_age_s {
        0 => 0,
        age_s => SystemClock::new().now_ms().saturating_sub(age_s * 1_000),
    };
    let partitions = reader.partitions();
    let wanted = match args.partition {
        Some(one) if one >= partitions => bail!(
            "--partition {one} does not exist; the log has {partitions} partitions, 0 to {}",
            partitions.saturating_sub(1)
        ),
        Some(one) => one..one + 1,
        None => 0..partitions,
    };
    let (mut requeued, mut left) = (0, 0);
    let mut output = std::io::stdout().lock();
    for partition in wanted.map(Partition) {
        let range = reader.range(Topic::Quarantine, partition)?;
        let mut next = range.start;
        while next < range.end {
            let mut records = Vec::new();
            reader.read(Topic::Quarantine, partition, next, LIMIT, &mut records)?;
            if records.is_empty() {
                break;
            }
            for record in &records {
                next = Offset(record.offset.0 + 1);
                schemas.learn([record.framed()])?;
                let quarantined = avro::decode_quarantined_with(&record.value, &schemas);
                let quarantined = quarantined.with_context(|| {
                    format!(
                        "cannot read offset {} of the quarantine in partition {partition}",
                        record.offset
                    )
                })?;
                let verdict = match judge(&mut *reader, &schemas, &quarantined, oldest_ms)? {
                    Verdict::Requeue(_) if done.has(&quarantined) => {
                        Verdict::Stays("it was requeued before".to_owned())
                    }
                    verdict => verdict,
                };
                let what = match verdict {
                    Verdict::Stays(why) => {
                        left += 1;
                        why
                    }
                    Verdict::Requeue(event) if args.yes => {
                        client.post(RouteId::Events, &[event])?;
                        done.add(&quarantined)?;
                        requeued += 1;
                        "requeued".to_owned()
                    }
                    Verdict::Requeue(_) => {
                        requeued += 1;
                        "would be requeued".to_owned()
                    }
                };
                show(&mut output, &quarantined, &what)?;
            }
        }
    }
    output.flush()?;
    match args.yes {
        true => eprintln!("{requeued} requeued, {left} left"),
        false => eprintln!("{requeued} would be requeued, {left} left; add --yes to publish them"),
    }
    Ok(())
}

fn judge(
    reader: &mut dyn Reader,
    schemas: &Schemas,
    quarantined: &Quarantined<'_>,
    oldest_ms: u64,
) -> anyhow::Result<Verdict> {
    if quarantined.ts < oldest_ms {
        return Ok(Verdict::Stays("it is older than --max-age-s".to_owned()));
    }
    let value = quarantined.value.as_deref().unwrap_or_default();
    schemas.learn([(None, value)])?;
    let why = match avro::decode_event_with(value, schemas) {
        Ok(event) => return Ok(publishable(&event)),
        Err(malformed) => malformed.to_string(),
    };
    // The original record, if the log still has it, may have a header that names its schema.
    let (partition, offset) = (quarantined.partition, quarantined.offset);
    if reader.range(Topic::Events, partition)?.start <= offset {
        let mut records = Vec::new();
        reader.read(Topic::Events, partition, offset, ONE, &mut records)?;
        if let Some(record) = records.first().filter(|record| record.offset == offset) {
            schemas.learn([record.framed()])?;
            let header = record.schema_header.as_deref();
            return Ok(match avro::decode_event_of(header, &record.value, schemas) {
                Ok(event) => publishable(&event),
                Err(malformed) => Verdict::Stays(format!("it still cannot be read: {malformed}")),
            });
        }
    }
    Ok(Verdict::Stays(format!("it still cannot be read: {why}")))
}

/// Returns the event in the form to publish, or why it is not published.
fn publishable(event: &Event<'_>) -> Verdict {
    let stays = |why: &str| Verdict::Stays(why.to_owned());
    match event {
        Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => stays("it is about a moment that has passed"),
        Event::Connect { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Disconnect { .. }
        | Event::Logout { .. }
        | Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. } => {
            let mut line = Vec::new();
            json::event_line(&mut line, Offset(0), 0, event);
            match serde_json::from_slice(&line) {
                Ok(Value::Object(mut event)) => {
                    // The log assigns offset and time.
                    event.remove("offset");
                    event.remove("ts");
                    Verdict::Requeue(Value::Object(event))
                }
                _ => stays("it cannot be written as JSON"),
            }
        }
    }
}

fn show(output: &mut impl Write, quarantined: &Quarantined<'_>, what: &str) -> anyhow::Result<()> {
    let mut line = Vec::new();
    let mut object = Object::new(&mut line);
    object
        .number("partition", quarantined.partition.0.into())
        .number("offset", quarantined.offset.0)
        .number("ts", quarantined.ts)
        .text("what", what)
        .text("error", &quarantined.error)
        .end();
    line.push(b'\n');
    output.write_all(&line)?;
    Ok(())
}

/// The file of `--done`: which records were requeued.
struct Done {
    file: File,
    records: BTreeSet<(u32, u64)>,
}

impl Done {
    fn open(path: &Path) -> anyhow::Result<Done> {
        let what = || format!("cannot use {} (--done)", path.display());
        let file = File::options().create(true).read(true).append(true).open(path);
        let mut file = file.with_context(what)?;
        if file.try_lock().is_err() {
            bail!(
                "another process uses {} (--done); wait until it has ended",
                path.display()
            );
        }
        let mut text = String::new();
        file.read_to_string(&mut text).with_context(what)?;
        let mut records = BTreeSet::new();
        for line in text.lines() {
            let position = line
                .split_once(':')
                .and_then(|(partition, offset)| Some((partition.parse().ok()?, offset.parse().ok()?)));
            let Some(position) = position else {
                bail!(
                    "{} (--done) has the line {line:?}, but each line must be PARTITION:OFFSET, such as 0:12; name another file",
                    path.display()
                );
            };
            records.insert(position);
        }
        Ok(Done { file, records })
    }

    fn has(&self, quarantined: &Quarantined<'_>) -> bool {
        let position = (quarantined.partition.0, quarantined.offset.0);
        self.records.contains(&position)
    }

    fn add(&mut self, quarantined: &Quarantined<'_>) -> anyhow::Result<()> {
        let position = (quarantined.partition.0, quarantined.offset.0);
        let line = format!("{}:{}\n", position.0, position.1);
        let written = self
            .file
            .write_all(line.as_bytes())
            .and_then(|()| self.file.sync_data());
        written.with_context(|| {
            format!(
                "partition {} offset {} was requeued, but --done cannot record it, so a second run would publish it again",
                position.0, position.1
            )
        })?;
        self.records.insert(position);
        Ok(())
    }
}
