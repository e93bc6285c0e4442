//! `rollcall reshard`: copies the events of a log into a log with more partitions, or from a data directory into topics of Kafka. The
//! engine then goes on with the new log (`docs/resharding.md`).
//!
//! What is copied where is decided in `split`, `copying` does it and checks it, `compare` compares the states of both logs. This file
//! has the steps of a move: copy while the old log is in use, keep everybody from writing to it, copy the rest, compare, finish.

mod compare;
mod copying;
mod source;
mod split;
#[cfg(test)]
mod tests;

use super::cluster::Cluster;
use super::connect::TopicSet;
use super::directories;
use super::log::on_interrupt;
use super::remote::printed;
use super::schemas::schemas_of;
use crate::clock::{Clock as _, SystemClock};
use crate::config::{DEFAULT_DATA, SecretUrl};
use crate::failpoint;
use crate::log::FillingLog;
use crate::log::local::{LocalFilling, MAX_PARTITIONS};
use anyhow::{Context as _, anyhow, bail};
use copying::Copying;
use source::{OldDirectory, OldLog, OldTopics};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;

/// Moves a log to one with more partitions, or from a data directory to Kafka, with every state, version and event
///
/// Copies every event of the old log, at the time that it has there. Without --follow and --finish it ends when everything is
/// copied that the old log has at that time; a server may be using the old log. --finish is the last step: it keeps everybody from
/// writing to the old log, copies the rest, compares the states of all users in both logs, and only then makes the new log usable.
/// It may be killed at any time and run again with the same arguments. docs/resharding.md describes the whole procedure.
#[derive(clap::Args)]
pub struct Args {
    /// The data directory of the old log [default: ./rollcall-data, and with --kafka the old log is on Kafka]
    #[arg(long, value_name = "DIR")]
    data: Option<PathBuf>,
    /// The data directory of the new log; it may not have another log
    #[arg(long, value_name = "DIR", conflicts_with = "kafka")]
    to_data: Option<PathBuf>,
    /// Moves to topics of Apache Kafka: the brokers, separated by commas. With --data from that directory, else from the topics of
    /// --topic-prefix
    #[arg(long, value_name = "HOST:PORT", env = "ROLLCALL_KAFKA", requires = "to_prefix")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// On Kafka: the prefix of the new topics, which are created
    #[arg(long, value_name = "PREFIX", requires = "kafka")]
    to_prefix: Option<String>,
    /// On Kafka: how many brokers keep a copy of each new partition [default: 3, or the number of brokers if fewer]
    #[arg(long, value_name = "N", requires = "kafka")]
    replication: Option<usize>,
    /// How many partitions the new log gets: a multiple of the old number, at most 1024
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=i64::from(MAX_PARTITIONS)))]
    partitions: u32,
    /// The policy that the old log began with, a JSON file, if it is not the default policy and no record of the log
    #[arg(long, value_name = "FILE")]
    policy: Option<PathBuf>,
    /// The schema registry, if records were written with one
    #[arg(long, value_name = "URL", env = "ROLLCALL_REGISTRY", hide_env_values = true)]
    registry: Option<SecretUrl>,
    /// Goes on with new events until it is interrupted
    #[arg(long, conflicts_with_all = ["finish", "dry_run"])]
    follow: bool,
    /// Ends the move. Without Kafka the server of the old log must have ended
    #[arg(long, conflicts_with = "dry_run")]
    finish: bool,
    /// With --finish: finishes although users differ
    #[arg(long, requires = "finish")]
    accept_differences: bool,
    /// Writes nothing: looks at the place of the new log, reads the old log, splits it in memory, and compares
    #[arg(long)]
    dry_run: bool,
}

/// How often new events are looked for when there were none.
const POLL: Duration = Duration::from_millis(200);
/// Between two lines of progress, while there is something to copy and when there is nothing.
const PROGRESS_MS: u64 = 2_000;
const QUIET_PROGRESS_MS: u64 = 10_000;

pub fn run(args: &Args) -> anyhow::Result<()> {
    printed(reshard(args))
}

fn reshard(args: &Args) -> anyhow::Result<()> {
    let interrupted = on_interrupt()?;
    let Move { from, to: target } = Move::of(args)?;
    let mut source: Box<dyn OldLog> = match &from {
        Place::Directory(data) => Box::new(OldDirectory::open(data)?),
        Place::Topics(old) => Box::new(OldTopics::open(old.clone())?),
    };
    let count = source.reader().partitions();
    if !args.partitions.is_multiple_of(count) {
        bail!(
            "--partitions {} is not a multiple of {count}, the number of partitions of the old log. Each new partition must be a part \
             of one old partition: leases, policies and outage grace have a time of their own in each partition, and two of these \
             cannot be in one partition without changing when users go offline",
            args.partitions
        );
    }
    // Before anything is written: what is taken for malformed would go to the wrong partition.
    let (schemas, _runtime) = schemas_of(source.reader(), args.registry.as_ref())?;
    target.check(&from)?;
    let not_ours = || {
        anyhow!(
            "{} is not a log that this command was filling: it is finished, or an engine uses it. Expected an empty place, or one \
             that an earlier run with the same flags was filling",
            target.described()
        )
    };
    let filling = match args.dry_run {
        true if target.can_be_filled(args)? => None,
        true => return Err(not_ours()),
        false => match target.fill(args)? {
            Some(filling) => Some(filling),
            None if args.finish && source.is_left()? => return report_finished(&target.next_step(&from)),
            None => return Err(not_ours()),
        },
    };
    let policy = crate::config::read_policy(args.policy.as_deref())?.unwrap_or_default();
    let mut copying = Copying::new(&mut *source, schemas, &policy, (args.partitions, filling))?;
    let mut progress = Progress::new();
    // The last events: when nobody can write any more, and when no transaction is open.
    let (mut is_left, mut is_last) = (!args.finish, !args.finish);
    let mut warned = String::new();
    let mut warn = |why: String| {
        if warned != why {
            eprintln!("{why}");
            warned = why;
        }
    };
    let to = format!("{} with {} partitions", target.described(), args.partitions);
    loop {
        let is_up_to_date = copying.step(&mut *source)?;
        progress.tell(&copying, is_up_to_date);
        if is_up_to_date && !is_left {
            match source.leave(&to)? {
                None => {
                    is_left = true;
                    eprintln!("nobody can write to the old log any more");
                    failpoint::reach("left");
                }
                Some(why) => warn(why),
            }
        } else if is_up_to_date && !is_last {
            let held = source.held()?;
            is_last = held.is_none();
            held.into_iter().for_each(&mut warn);
        } else if is_up_to_date && !args.follow {
            break;
        }
        let pause = if is_up_to_date { POLL } else { Duration::ZERO };
        if is_interrupted(&interrupted, pause) {
            if args.follow && is_up_to_date {
                break;
            }
            bail!(
                "interrupted with {} events still to be copied; run the command again to go on",
                copying.behind()
            );
        }
    }
    conclude(args, copying, &target, &target.next_step(&from))
}

/// Compares, and finishes if that is asked for.
fn conclude(args: &Args, mut copying: Copying, target: &Place, next_step: &str) -> anyhow::Result<()> {
    copying.check_end()?;
    let counts = copying.counts();
    let (differences, filling) = copying.compare();
    let mut output = std::io::stdout().lock();
    writeln!(
        output,
        "read        {} events, {} of them malformed",
        counts.read, counts.malformed
    )?;
    match args.dry_run {
        true => writeln!(
            output,
            "would copy  {} records to {} partitions",
            counts.copied, args.partitions
        )?,
        false => writeln!(
            output,
            "copied      {} records to {} partitions; {} were there",
            counts.copied, args.partitions, counts.there
        )?,
    }
    writeln!(
        output,
        "compared    {} users, {} differences",
        differences.users, differences.count
    )?;
    for difference in &differences.described {
        writeln!(output, "{difference}")?;
    }
    if differences.count > 0 && !args.accept_differences {
        let otherwise = match args.finish {
            true => {
                "; the new log is not finished. To finish nevertheless, run the command again with --accept-differences"
            }
            false => "",
        };
        bail!(
            "{} differences between the old log and the new one; docs/resharding.md says what can differ{otherwise}",
            differences.count
        );
    }
    failpoint::reach("compared");
    match filling {
        Some(mut filling) if args.finish => {
            filling.finish()?;
            failpoint::reach("finished");
            writeln!(output, "finished    {next_step}")?;
        }
        Some(_) => writeln!(
            output,
            "not finished: {} is not usable before the command has ended with --finish",
            target.described()
        )?,
        None => {}
    }
    output.flush()?;
    Ok(())
}

/// Where a log is.
enum Place {
    Directory(PathBuf),
    Topics(TopicSet),
}

struct Move {
    from: Place,
    to: Place,
}

impl Move {
    fn of(args: &Args) -> anyhow::Result<Move> {
        let (from, to) = match (&args.kafka, &args.to_prefix, &args.to_data) {
            (Some(bootstrap), Some(prefix), None) => {
                let new = TopicSet::with_prefix(bootstrap, &args.cluster, prefix)?;
                let from = match &args.data {
                    Some(data) if args.cluster.topic_prefix.is_some() => bail!(
                        "with --data {} the old log is in that directory, so --topic-prefix (or ROLLCALL_TOPIC_PREFIX) names nothing; \
                         the prefix of the new topics is --to-prefix",
                        data.display()
                    ),
                    Some(data) => Place::Directory(data.clone()),
                    None => Place::Topics(TopicSet::of_flags(bootstrap, &args.cluster)?),
                };
                if matches!(&from, Place::Topics(old) if old.has_prefix_of(&new)) {
                    bail!("--to-prefix {prefix} is the prefix of the old topics; the new log needs topics of its own");
                }
                (from, Place::Topics(new))
            }
            (None, None, Some(data)) => {
                let old = args.data.clone().unwrap_or_else(|| DEFAULT_DATA.into());
                (Place::Directory(old), Place::Directory(data.clone()))
            }
            (Some(_), ..) => bail!("--kafka requires --to-prefix, the prefix of the new topics"),
            (None, ..) => bail!("--to-data is missing: the directory of the new log, or --kafka with --to-prefix"),
        };
        Ok(Move { from, to })
    }
}

impl Place {
    /// Refuses a directory for the new log that is for something else. Writes nothing.
    fn check(&self, from: &Place) -> anyhow::Result<()> {
        let Place::Directory(data) = self else {
            return Ok(());
        };
        if let Place::Directory(old) = from {
            let log_of = super::log_directory;
            if directories::are_same(data, old) || directories::are_same(&log_of(data), &log_of(old)) {
                bail!("--data and --to-data name the same directory; the new log needs one of its own");
            }
            if directories::is_within(data, old) {
                bail!(
                    "--to-data names {}, which is within {}, the directory of the old log (--data); name a directory outside of it",
                    data.display(),
                    old.display()
                );
            }
        }
        directories::fit_for_a_new_log("--to-data", data)
    }

    /// Returns whether [`Place::fill`] would open the new log. The errors are those that it would give. Writes nothing.
    fn can_be_filled(&self, args: &Args) -> anyhow::Result<bool> {
        let data = match self {
            Place::Topics(new) => return new.can_be_filled(args.partitions, args.replication),
            Place::Directory(data) => data,
        };
        let to = super::log_directory(data);
        let cannot = || format!("cannot fill the log in {}", to.display());
        directories::check_can_create(&to).with_context(cannot)?;
        LocalFilling::judge(&to, args.partitions).with_context(cannot)
    }

    /// Opens the new log to fill it. Returns `None` if that is not possible any more.
    fn fill(&self, args: &Args) -> anyhow::Result<Option<Box<dyn FillingLog>>> {
        let data = match self {
            Place::Topics(new) => return new.fill(args.partitions, args.replication),
            Place::Directory(data) => data,
        };
        directories::keep_to_ourselves();
        let to = super::log_directory(data);
        let filling = LocalFilling::open(&to, args.partitions, Arc::new(SystemClock::new()))
            .with_context(|| format!("cannot fill the log in {}", to.display()))?;
        Ok(filling.map(|filling| Box::new(filling) as Box<dyn FillingLog>))
    }

    fn described(&self) -> String {
        match self {
            Place::Directory(data) => super::log_directory(data).display().to_string(),
            Place::Topics(new) => new.flags(),
        }
    }

    /// What is to be done when this is the new log, and is finished.
    fn next_step(&self, from: &Place) -> String {
        match (self, from) {
            (Place::Directory(data), _) => format!("start the server with --data {}", data.display()),
            (Place::Topics(new), Place::Topics(_)) => format!("start engines with {} and another --group", new.flags()),
            (Place::Topics(new), Place::Directory(_)) => {
                format!("start engines with {}, each with a --data of its own", new.flags())
            }
        }
    }
}

/// Answers a repeated --finish: an earlier one may have been killed after its last step.
fn report_finished(next_step: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "finished already; {next_step}")?;
    Ok(())
}

/// Waits, and returns whether the process is asked to end.
fn is_interrupted(interrupted: &Receiver<()>, pause: Duration) -> bool {
    match pause {
        Duration::ZERO => interrupted.try_recv() != Err(TryRecvError::Empty),
        pause => interrupted.recv_timeout(pause) != Err(RecvTimeoutError::Timeout),
    }
}

/// Says on standard error how far the copying is.
struct Progress {
    clock: SystemClock,
    said_ms: u64,
    said_read: u64,
    was_up_to_date: bool,
}

impl Progress {
    fn new() -> Progress {
        let clock = SystemClock::new();
        Progress {
            said_ms: clock.monotonic_ms(),
            clock,
            said_read: 0,
            was_up_to_date: false,
        }
    }

    fn tell(&mut self, copying: &Copying, is_up_to_date: bool) {
        let passed_ms = self.clock.monotonic_ms().saturating_sub(self.said_ms);
        let is_news = is_up_to_date && !self.was_up_to_date;
        let pause_ms = if is_up_to_date { QUIET_PROGRESS_MS } else { PROGRESS_MS };
        if passed_ms < pause_ms && !is_news {
            return;
        }
        let counts = copying.counts();
        let rate = (counts.read - self.said_read) * 1_000 / passed_ms.max(1);
        let time = copying
            .time()
            .and_then(|time| chrono::DateTime::from_timestamp_millis(time.0 as i64));
        let behind_s = copying.time().filter(|_| !is_up_to_date);
        let behind_s = behind_s.map_or(0, |time| self.clock.now_ms().saturating_sub(time.0) / 1_000);
        eprintln!(
            "{} events read, {rate} per second; {} were there, {} copied; {} events or {behind_s} s behind, log time {}",
            counts.read,
            counts.there,
            counts.copied,
            copying.behind(),
            time.map(|time| time.to_rfc3339()).unwrap_or_default()
        );
        self.said_ms = self.clock.monotonic_ms();
        self.said_read = counts.read;
        self.was_up_to_date = is_up_to_date;
    }
}
