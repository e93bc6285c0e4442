//! `rollcall log`: prints the log, record by record, as JSON lines.
//!
//! Events are printed in the form that `rollcall fold` reads, changes and kicks in the form that it prints, so that one can be
//! piped into the other. Records of the quarantine come with their error. The command only reads: a server may own the log
//! and write to it meanwhile. No record is skipped: an unreadable event is printed as malformed, any other unreadable record
//! is an error.

mod incidents;

use super::cluster::Cluster;
use super::schemas::schemas;
use super::{connect, directories};
use crate::config::SecretUrl;
use crate::engine::rejected::{Rejected, decode};
use crate::log::local::LocalLog;
use crate::log::{Error, Limit, Range, Reader, Record};
use crate::presence::change::Output;
use crate::presence::{Offset, Partition};
use crate::registry::Schemas;
use crate::schema::{avro, json};
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use std::io::{self, IsTerminal as _, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// Prints the records of the log as JSON lines
///
/// Events have the form that `rollcall fold` reads, changes and kicks the form that it prints. A server may be running on
/// the same directory. Without --partition, all partitions are printed, one after the other.
#[derive(clap::Args)]
pub struct Args {
    /// What to print
    #[arg(value_enum)]
    topic: Sequence,
    /// The server's data directory; the log is in its subdirectory `log`
    #[arg(
        long,
        value_name = "DIR",
        default_value = "./rollcall-data",
        conflicts_with = "kafka"
    )]
    data: PathBuf,
    /// Reads committed records from Apache Kafka instead: the brokers, separated by commas
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
    /// Starts at this offset of each partition, not at the oldest record that is kept
    #[arg(long, value_name = "OFFSET")]
    from: Option<u64>,
    /// Continues with new records until interrupted
    #[arg(long)]
    follow: bool,
}

#[derive(clap::ValueEnum, Clone, Copy, Debug)]
enum Sequence {
    /// The input: what happened
    Events,
    /// Changes of users' status
    Changes,
    /// Requests to gateways to close a connection
    Kicks,
    /// Malformed events, complete, each with its error
    Quarantine,
    /// Mass departures
    Incidents,
}

/// The most that one read returns.
const LIMIT: Limit = Limit {
    records: 10_000,
    bytes: 4 << 20,
};

/// How often `--follow` checks for new records.
const POLL: Duration = Duration::from_millis(200);

/// A partition, and the offset of its next record to print.
struct PrintCursor {
    partition: Partition,
    next: Offset,
}

/// Opens the log of a data directory, or of a cluster, to look on.
pub(super) fn open(kafka: Option<&str>, data: &Path, cluster: &Cluster) -> anyhow::Result<Box<dyn Reader>> {
    if let Some(bootstrap) = kafka {
        return connect::reader(bootstrap, cluster);
    }
    let directory = super::log_directory(data);
    if !directories::exists(&directory)? {
        bail!(
            "there is no log in {}; give the data directory of a server with --data, such as ./rollcall-data, or the \
             brokers of a server on Kafka with --kafka",
            data.display()
        );
    }
    Ok(Box::new(LocalLog::follow(&directory)?))
}

struct Printer<W> {
    reader: Box<dyn Reader>,
    topic: Topic,
    /// Standard output is a terminal, not a pipe or file.
    is_terminal: bool,
    output: W,
    schemas: Schemas,
    records: Vec<Record>,
    line: Vec<u8>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    // From here on an interrupt does not end the process at once, so that the reader can remove its temporary files.
    let interrupted = on_interrupt()?;
    let reader = open(args.kafka.as_deref(), &args.data, &args.cluster)?;
    let topic = match args.topic {
        Sequence::Events => Topic::Events,
        Sequence::Changes => Topic::Changes,
        Sequence::Kicks => Topic::Kicks,
        Sequence::Quarantine => Topic::Quarantine,
        Sequence::Incidents => return incidents::run(reader, &args, &interrupted),
    };
    let mut cursors = cursors(&*reader, topic, args.partition, args.from)?;
    let (schemas, _runtime) = schemas(args.registry.as_ref())?;
    let mut printer = Printer {
        reader,
        topic,
        schemas,
        is_terminal: io::stdout().is_terminal(),
        output: io::BufWriter::with_capacity(1 << 16, io::stdout().lock()),
        records: Vec::new(),
        line: Vec::new(),
    };
    let printed = if args.follow {
        printer.follow(&mut cursors, &interrupted)
    } else {
        printer.print_all(&mut cursors, &interrupted)
    };
    match printed {
        // The reader has closed the pipe: not an error.
        Err(error) if super::is_broken_pipe(&error) => Ok(()),
        printed => printed,
    }
}

/// Returns where each partition starts. Fails before anything is printed if the offset is no longer in the log.
fn cursors(
    reader: &dyn Reader,
    topic: Topic,
    partition: Option<u32>,
    from: Option<u64>,
) -> anyhow::Result<Vec<PrintCursor>> {
    let count = reader.partitions();
    if let Some(partition) = partition
        && partition >= count
    {
        bail!(
            "--partition {partition} does not exist; the log has {count} partitions, 0 to {}",
            count.saturating_sub(1)
        );
    }
    let partitions = partition.map_or(0..count, |partition| partition..partition + 1);
    let mut cursors = Vec::new();
    let mut furthest = (Offset(0), Partition(0));
    for partition in partitions.map(Partition) {
        let Range { start, end } = reader.range(topic, partition)?;
        furthest = furthest.max((end, partition));
        let next = from.map_or(start, Offset);
        if next < start {
            bail!(Error::Gone {
                topic,
                partition,
                wanted: next,
                start,
            });
        }
        cursors.push(PrintCursor { partition, next });
    }
    let (end, longest) = furthest;
    if let Some(from) = from
        && Offset(from) > end
    {
        let name = topic.name();
        bail!("--from {from} is beyond the end of {name}: partition {longest} ends at {end}; give {end} or less");
    }
    Ok(cursors)
}

impl<W: Write> Printer<W> {
    /// Prints the records that exist now, partition by partition.
    fn print_all(&mut self, cursors: &mut [PrintCursor], interrupted: &Receiver<()>) -> anyhow::Result<()> {
        'all: for cursor in cursors {
            while self.print_some(cursor)? {
                if interrupted.try_recv() != Err(TryRecvError::Empty) {
                    break 'all;
                }
            }
        }
        self.output.flush()?;
        Ok(())
    }

    /// Prints existing and new records, the partitions in turn, until interrupted.
    fn follow(&mut self, cursors: &mut [PrintCursor], interrupted: &Receiver<()>) -> anyhow::Result<()> {
        let mut warned = String::new();
        loop {
            let mut more = false;
            for cursor in &mut *cursors {
                match self.print_some(cursor) {
                    Ok(any) => more |= any,
                    Err(error) if error.downcast_ref().is_some_and(|error| self.reader.may_recover(error)) => {
                        let words = format!("{error:#}");
                        if warned != words {
                            eprintln!("warning: {words}; retrying until interrupted");
                            warned = words;
                        }
                    }
                    Err(error) => return Err(error),
                }
            }
            let pause = if more {
                Duration::ZERO
            } else {
                self.output.flush()?;
                POLL
            };
            if interrupted.recv_timeout(pause) != Err(RecvTimeoutError::Timeout) {
                self.output.flush()?;
                return Ok(());
            }
            if !more {
                self.reader.refresh()?;
            }
        }
    }

    /// Prints the next records of a partition. Returns whether there were any.
    fn print_some(&mut self, cursor: &mut PrintCursor) -> anyhow::Result<bool> {
        let mut records = std::mem::take(&mut self.records);
        records.clear();
        self.reader
            .read(self.topic, cursor.partition, cursor.next, LIMIT, &mut records)?;
        for record in &records {
            self.line.clear();
            self.record_line(cursor.partition, record)?;
            if self.is_terminal {
                self.line = for_terminal(&self.line);
            }
            self.line.push(b'\n');
            self.output.write_all(&self.line)?;
            cursor.next = Offset(record.offset.0 + 1);
        }
        let any = !records.is_empty();
        self.records = records;
        Ok(any)
    }

    fn record_line(&mut self, partition: Partition, record: &Record) -> anyhow::Result<()> {
        let partitions = self.reader.partitions();
        let line = &mut self.line;
        let topic = self.topic;
        let unreadable = || {
            format!(
                "offset {} of {topic} in partition {partition} cannot be read",
                record.offset
            )
        };
        let learned = self.schemas.learn([record.framed()])?;
        let output = match self.topic {
            Topic::Events => {
                match decode(record, partition, partitions, &learned) {
                    Ok(event) => json::event_line(line, record.offset, record.ts, &event),
                    Err(Rejected { reason, error }) => {
                        let key = record.key.as_deref();
                        json::malformed_event_line(line, record.offset, record.ts, reason.name(), &error, key);
                    }
                }
                return Ok(());
            }
            Topic::Changes => avro::decode_change_with(&record.value, &learned).map(Output::Change),
            Topic::Kicks => avro::decode_kick_with(&record.value, &learned).map(Output::Kick),
            Topic::Quarantine => {
                let quarantined = avro::decode_quarantined_with(&record.value, &learned).with_context(unreadable)?;
                let value = quarantined.value.as_deref().unwrap_or_default();
                let learned = self.schemas.learn([(None, value)])?;
                let event = avro::decode_event_with(value, &learned).ok();
                json::quarantined_line(line, &quarantined, event.as_ref());
                return Ok(());
            }
        };
        let output = output.with_context(unreadable)?;
        json::output_line(line, &output);
        Ok(())
    }
}

/// Escapes what a terminal would act on in a line of JSON: C1 controls, which begin escape sequences, and direction marks,
/// which change where the following text appears. Both occur only within strings, where the escape means the same.
fn for_terminal(line: &[u8]) -> Vec<u8> {
    let mut safe = Vec::with_capacity(line.len());
    for chunk in line.utf8_chunks() {
        for c in chunk.valid().chars() {
            match c {
                '\u{80}'..='\u{9f}'
                | '\u{61c}'
                | '\u{200e}'
                | '\u{200f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => safe.extend_from_slice(format!("\\u{:04x}", u32::from(c)).as_bytes()),
                c => safe.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes()),
            }
        }
        safe.extend_from_slice(chunk.invalid());
    }
    safe
}

/// Returns a channel that receives once when the process is asked to end. A second request ends the process at once, because
/// it may be blocked on a reader that never reads again.
pub(super) fn on_interrupt() -> anyhow::Result<Receiver<()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build();
    let runtime = runtime.context("cannot wait for signals")?;
    let (mut interrupt, mut terminate) = {
        let _entered = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    let (notify, interrupted) = mpsc::sync_channel(1);
    let wait = move || {
        runtime.block_on(async {
            for asked in 0..2 {
                tokio::select! {
                    _ = interrupt.recv() => {}
                    _ = terminate.recv() => {}
                }
                if asked == 0 {
                    // The receiver is gone if the process is already ending.
                    let _ = notify.send(());
                }
            }
        });
        std::process::exit(130);
    };
    std::thread::Builder::new()
        .name("log-signals".into())
        .spawn(wait)
        .context("cannot wait for signals")?;
    Ok(interrupted)
}

#[cfg(test)]
mod tests {
    use super::for_terminal;

    #[test]
    fn nothing_in_an_id_acts_on_a_terminal() {
        let line = "{\"user\":\"a\u{9b}31mb\u{202e}c é 用 \u{200d}\"}";
        let safe = String::from_utf8(for_terminal(line.as_bytes())).unwrap();
        assert_eq!(safe, "{\"user\":\"a\\u009b31mb\\u202ec é 用 \u{200d}\"}");
        let read = |text: &str| serde_json::from_str::<serde_json::Value>(text).unwrap();
        assert_eq!(read(&safe), read(line));
    }
}
