//! `rollcall doctor`: looks for what is wrong with a machine, a cluster and a server, and says what to do about each.
//!
//! It changes nothing, and may run beside servers. It knows only what can be seen from outside: `rollcall audit verify` compares
//! the outputs with the events.

mod data;

use super::cluster::Cluster;
use super::remote::{NoServer, Server};
use super::table::plain;
use super::{connect, descriptors, is_broken_pipe, topics};
use crate::api::answers::Stats;
use crate::api::routes::RouteId;
use crate::clock::{Clock, SystemClock};
use crate::config::{DEFAULT_DATA, DEFAULT_GROUP};
use crate::log::kafka::admin::{self, Readable};
use crate::log::kafka::settings::Connection;
use crate::log::kafka::topics::Severity;
use crate::log::{self, Limit, Position, Reader};
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use crate::version;
use serde::Serialize;
use std::fmt;
use std::io::{self, Write};
use std::path::PathBuf;
use std::time::Duration;

/// Looks for what is wrong with this machine, the topics and a running server, and says what to do
///
/// Changes nothing, and may run beside servers. Exit status 1 if something is wrong; a warning alone is status 0.
#[derive(clap::Args)]
pub struct Args {
    /// The data directory of a server on this machine
    #[arg(long, value_name = "DIR", env = "ROLLCALL_DATA", default_value = DEFAULT_DATA)]
    data: PathBuf,
    /// The brokers, as host:port, separated by commas; without them only the machine and the server are looked at
    #[arg(long, value_name = "BOOTSTRAP", env = "ROLLCALL_KAFKA")]
    kafka: Option<String>,
    #[command(flatten)]
    cluster: Cluster,
    /// The group of the servers
    #[arg(long, value_name = "NAME", env = "ROLLCALL_GROUP", default_value = DEFAULT_GROUP)]
    group: String,
    /// Where servers on Kafka keep checkpoints, to compare them with how far the log reaches back. Those of a server with the embedded
    /// log are not looked at
    #[arg(
        long,
        value_name = "URL",
        env = "ROLLCALL_CHECKPOINTS",
        hide_env_values = true,
        requires = "kafka"
    )]
    checkpoints: Option<String>,
    #[command(flatten)]
    server: Server,
}

/// How a check ended.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
enum Verdict {
    Well,
    Warning,
    Wrong,
    /// There was nothing to look at.
    Skipped,
}

/// A check, and what it found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
struct Diagnosis {
    check: &'static str,
    verdict: Verdict,
    found: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    fix: String,
}

impl Diagnosis {
    fn new(check: &'static str, verdict: Verdict, found: impl Into<String>, fix: impl Into<String>) -> Diagnosis {
        Diagnosis {
            check,
            verdict,
            found: found.into(),
            fix: fix.into(),
        }
    }

    fn well(check: &'static str, found: impl Into<String>) -> Diagnosis {
        Diagnosis::new(check, Verdict::Well, found, "")
    }
}

impl fmt::Display for Diagnosis {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let verdict = match self.verdict {
            Verdict::Well => "well",
            Verdict::Warning => "warning",
            Verdict::Wrong => "WRONG",
            Verdict::Skipped => "skipped",
        };
        write!(f, "{verdict:<8} {:<13} {}", self.check, plain(&self.found))?;
        if !self.fix.is_empty() {
            write!(f, "\n{:23}to do: {}", "", plain(&self.fix))?;
        }
        Ok(())
    }
}

/// Prints what was found and returns the exit status: 1 if something is wrong, else 0.
pub fn run(args: Args) -> anyhow::Result<u8> {
    let mut found = vec![clock(), files()];
    found.extend(data::disk(&args.data));
    found.extend(data::embedded_log(&args.data, args.kafka.as_deref()));
    if let Some(bootstrap) = &args.kafka {
        let connection = connect::of_flags(bootstrap, &args.cluster)?;
        cluster(&connection, &args, &mut found);
    }
    server(&args.server, &mut found)?;
    let is_wrong = found.iter().any(|one| one.verdict == Verdict::Wrong);
    match print(&found, args.server.json) {
        Err(error) if !is_broken_pipe(&error) => return Err(error),
        _ => {}
    }
    Ok(is_wrong.into())
}

fn print(found: &[Diagnosis], as_json: bool) -> anyhow::Result<()> {
    let mut output = io::stdout().lock();
    if as_json {
        serde_json::to_writer(&mut output, found)?;
        writeln!(output)?;
        return Ok(());
    }
    for one in found {
        writeln!(output, "{one}")?;
    }
    Ok(())
}

/// The first records of a log get the machine's time. This is the beginning of 2025.
const EARLIEST_MS: u64 = 1_735_689_600_000;

fn clock() -> Diagnosis {
    let now_ms = SystemClock::new().now_ms();
    if now_ms < EARLIEST_MS {
        let found = "this machine's clock is before 2025";
        return Diagnosis::new("clock", Verdict::Wrong, found, "set the clock, best with NTP or chrony");
    }
    Diagnosis::well(
        "clock",
        "is after 2025; whether it is right, only another clock can say",
    )
}

/// A node of four partitions with the embedded log, and as many connections as the server accepts by default.
const FILES_WANTED: u64 = 64 + 5 * 288 + 4_096;

fn files() -> Diagnosis {
    let limit = descriptors::raise().limit;
    let found = format!("{limit} may be open in a process");
    if limit >= FILES_WANTED {
        return Diagnosis::well("open files", found);
    }
    let fix = format!("raise the limit to {FILES_WANTED} or more: ulimit -n, LimitNOFILE= in systemd");
    Diagnosis::new("open files", Verdict::Warning, found, fix)
}

/// What the topics, the group and open transactions are like.
fn cluster(connection: &Connection, args: &Args, found: &mut Vec<Diagnosis>) {
    let checked = match admin::check(connection) {
        Ok(checked) => checked,
        Err(error) => {
            let fix = "start the brokers, or correct --kafka and the settings of the client";
            found.push(Diagnosis::new("brokers", Verdict::Wrong, error.to_string(), fix));
            return;
        }
    };
    found.push(Diagnosis::well("brokers", format!("{} answer", checked.brokers)));
    for finding in &checked.findings {
        let verdict = match finding.weight {
            Severity::Refused => Verdict::Wrong,
            Severity::Warning => Verdict::Warning,
        };
        let what = format!("{}: {}", finding.topic, finding.what);
        found.push(Diagnosis::new("topics", verdict, what, finding.fix.clone()));
    }
    if checked.findings.is_empty() {
        let what = format!("{} partitions, and every setting as it should be", checked.partitions);
        found.push(Diagnosis::well("topics", what));
    }
    if checked.partitions == 0 {
        return;
    }
    transactions(connection, checked.partitions, found);
    positions(connection, args, found);
    if let Some(url) = &args.checkpoints {
        match topics::checkpoint_warnings(connection.clone(), url, &args.group) {
            Ok(warnings) => {
                if warnings.is_empty() {
                    let what = "each is of this log, and the log reaches back to it";
                    found.push(Diagnosis::well("checkpoints", what));
                }
                let fix = "keep events for longer, or find out why checkpoints are not published; give each log a location \
                           of its own for checkpoints";
                let each = |warning| Diagnosis::new("checkpoints", Verdict::Warning, warning, fix);
                found.extend(warnings.into_iter().map(each));
            }
            Err(error) => found.push(Diagnosis::new(
                "checkpoints",
                Verdict::Wrong,
                format!("{error:#}"),
                "correct the URL or the access to it",
            )),
        }
    }
}

/// Between two looks: a transaction that is ended within it does no harm.
const LOOKS_APART: Duration = Duration::from_secs(5);

fn transactions(connection: &Connection, partitions: u32, found: &mut Vec<Diagnosis>) {
    let looks = admin::readable(connection, partitions).and_then(|first| {
        if first.iter().all(|one| one.last_stable >= one.end) {
            return Ok((first.clone(), first));
        }
        std::thread::sleep(LOOKS_APART);
        Ok((first, admin::readable(connection, partitions)?))
    });
    match looks {
        Ok((first, second)) => found.extend(held(&connection.topic(Topic::Events), &first, &second)),
        Err(error) => found.push(Diagnosis::new("transactions", Verdict::Skipped, error.to_string(), "")),
    }
}

/// Partitions whose readers got no further between two looks, although there are records.
fn held(events: &str, first: &[Readable], second: &[Readable]) -> Vec<Diagnosis> {
    let is_held = |(first, second): &(&Readable, &Readable)| {
        first.last_stable < first.end && second.last_stable == first.last_stable && second.last_stable < second.end
    };
    let held: Vec<Diagnosis> = first
        .iter()
        .zip(second)
        .filter(is_held)
        .map(|(_, now)| {
            let (partition, behind) = (now.partition, now.end - now.last_stable);
            let what = format!("an open transaction holds partition {partition}: {behind} offsets behind it cannot be read");
            let fix = format!(
                "kafka-transactions.sh --bootstrap-server … describe-producers --topic {events} --partition {partition}, then \
                 abort it; publish without transactions"
            );
            Diagnosis::new("transactions", Verdict::Wrong, what, fix)
        })
        .collect();
    match held.is_empty() {
        true => vec![Diagnosis::well("transactions", "none is open for long")],
        false => held,
    }
}

fn positions(connection: &Connection, args: &Args, found: &mut Vec<Diagnosis>) {
    let Some(bootstrap) = &args.kafka else { return };
    let looked = connect::reader(bootstrap, &args.cluster).and_then(|mut reader| {
        let mut wrong = Vec::new();
        for partition in (0..reader.partitions()).map(Partition) {
            wrong.extend(position_of(&mut *reader, &args.group, partition)?);
        }
        Ok((reader.partitions(), wrong))
    });
    match looked {
        Ok((partitions, wrong)) if wrong.is_empty() => {
            let what = format!(
                "group {:?} fits the topics in {partitions} partitions of {}",
                args.group,
                connection.topic(Topic::Events)
            );
            found.push(Diagnosis::well("positions", what));
        }
        Ok((_, wrong)) => found.extend(wrong),
        Err(error) => {
            let fix = "the message says what; `rollcall serve` would halt here as well";
            found.push(Diagnosis::new("positions", Verdict::Wrong, format!("{error:#}"), fix));
        }
    }
}

/// What is wrong with a position, from outside. Whether it is equal to the last output, a start of the partition says.
fn position_of(reader: &mut dyn Reader, group: &str, partition: Partition) -> Result<Option<Diagnosis>, log::Error> {
    let mut position = reader.position(group, partition)?;
    let has_changes = position == Position::default() && has_changes(reader, partition)?;
    if has_changes {
        // The first changes may have been committed since, and the position with them.
        position = reader.position(group, partition)?;
    }
    // After the position, because events only become more.
    let events = reader.range(Topic::Events, partition)?.end;
    Ok(position_problem(partition, group, position, events, has_changes))
}

/// Returns whether a change can be read. The offsets alone do not say it: records that were aborted have offsets too.
fn has_changes(reader: &mut dyn Reader, partition: Partition) -> Result<bool, log::Error> {
    let range = reader.range(Topic::Changes, partition)?;
    let mut records = Vec::new();
    if range.start < range.end {
        let one = Limit { records: 1, bytes: 1 };
        reader.read(Topic::Changes, partition, range.start, one, &mut records)?;
    }
    Ok(!records.is_empty())
}

fn position_problem(
    partition: Partition,
    group: &str,
    position: Position,
    events: Offset,
    has_changes: bool,
) -> Option<Diagnosis> {
    if position == Position::default() && has_changes {
        let what = format!("partition {partition}: there are changes, but group {group:?} has no position");
        let fix = "correct --group; or start the servers once with --adopt-tail";
        return Some(Diagnosis::new("positions", Verdict::Wrong, what, fix));
    }
    if position.next > events {
        let what = format!(
            "partition {partition}: events end at {events}, but were folded up to {} already",
            position.next
        );
        let fix = "bring back a replica that has the records, or begin again with other topics";
        return Some(Diagnosis::new("positions", Verdict::Wrong, what, fix));
    }
    None
}

fn server(server: &Server, found: &mut Vec<Diagnosis>) -> anyhow::Result<()> {
    let client = server.client()?;
    let answer = client.get(RouteId::Stats).and_then(|answer| answer.read::<Stats>());
    let stats = match answer {
        Ok(stats) => stats,
        Err(error) => {
            let fix = "if a server should run there: rollcall health, and the end of its log";
            // No server need run at the default URL. One that answers with an error, or hangs, is there.
            let verdict = match error.is::<NoServer>() && !server.is_named() {
                true => Verdict::Skipped,
                false => Verdict::Wrong,
            };
            found.push(Diagnosis::new("server", verdict, format!("{error:#}"), fix));
            return Ok(());
        }
    };
    let mut of_server = server_of(&stats);
    // The counts are those of the cluster, which other nodes may keep up.
    if let Err(error) = client.get(RouteId::Readyz) {
        of_server.retain(|one| one.verdict != Verdict::Well);
        let fix = "the message says what it waits for; docs/operating.md, when a message appears";
        of_server.push(Diagnosis::new("server", Verdict::Wrong, format!("{error:#}"), fix));
    }
    found.extend(of_server);
    Ok(())
}

/// What the answer of a server says about it and the cluster.
fn server_of(stats: &Stats) -> Vec<Diagnosis> {
    let mut found = Vec::new();
    if stats.version != version::VERSION {
        let what = format!(
            "the server has version {}, and this program {}",
            stats.version,
            version::VERSION
        );
        found.push(Diagnosis::new(
            "version",
            Verdict::Warning,
            what,
            "run the doctor of the server's version",
        ));
    }
    for one in &stats.partitions {
        let verdict = match &*one.state {
            "live" if one.warning.is_none() => continue,
            // The others pass by themselves, for example while servers are restarted one after the other.
            "live" | "restoring" | "fencing" | "moving" | "busy" | "waiting" => Verdict::Warning,
            _ => Verdict::Wrong,
        };
        let reasons = [&one.error, &one.warning].into_iter().flatten();
        let reasons: Vec<&str> = reasons.map(String::as_str).collect();
        let what = format!("partition {} is {}; {}", one.partition, one.state, reasons.join("; "));
        let fix = "docs/operating.md, when a message appears";
        found.push(Diagnosis::new("partitions", verdict, what.trim_end_matches("; "), fix));
    }
    let malformed: u64 = stats.malformed.iter().map(|group| group.count).sum();
    if malformed > 0 {
        let what = format!("{malformed} malformed records since the partitions were taken up");
        found.push(Diagnosis::new(
            "quarantine",
            Verdict::Warning,
            what,
            "rollcall log quarantine prints them with their reasons",
        ));
    }
    if found.is_empty() {
        let what = format!(
            "{} partitions are live, and nothing was malformed",
            stats.partitions.len()
        );
        found.push(Diagnosis::well("server", what));
    }
    found
}

#[cfg(test)]
mod tests {
    use super::*;

    fn readable(last_stable: i64, end: i64) -> Readable {
        Readable {
            partition: 3,
            last_stable,
            end,
        }
    }

    #[test]
    fn a_transaction_counts_only_if_readers_get_no_further() {
        let verdicts = |first, second| {
            let held = held("presence.events", &[first], &[second]);
            held.into_iter().map(|one| one.verdict).collect::<Vec<_>>()
        };
        assert_eq!(verdicts(readable(10, 12), readable(10, 20)), [Verdict::Wrong]);
        assert_eq!(
            verdicts(readable(10, 12), readable(12, 20)),
            [Verdict::Well],
            "it ended"
        );
        assert_eq!(verdicts(readable(10, 12), readable(10, 10)), [Verdict::Well]);
        assert_eq!(
            verdicts(readable(10, 10), readable(10, 20)),
            [Verdict::Well],
            "it has just begun"
        );
    }

    #[test]
    fn states_that_pass_by_themselves_are_warnings() {
        let verdict_of = |state: &str| {
            let stats = serde_json::json!({
                "version": version::VERSION, "users": {"known": 0, "online": 0, "push_online": 0, "offline": 0},
                "devices": {"online": {}, "push_online": {}}, "partitions": [{"partition": 0, "state": state}],
            });
            let found = server_of(&serde_json::from_value(stats).expect("an answer"));
            assert_eq!(found.len(), 1, "{found:?}");
            found[0].verdict
        };
        assert_eq!(verdict_of("live"), Verdict::Well);
        for state in ["restoring", "fencing", "moving", "busy", "waiting"] {
            assert_eq!(verdict_of(state), Verdict::Warning, "{state}");
        }
        for state in ["held", "stalled", "failed"] {
            assert_eq!(verdict_of(state), Verdict::Wrong, "{state}");
        }
    }

    /// Topics with four offsets of changes, of which some can be read.
    struct Topics {
        readable: usize,
        /// From the first to the last answer, which is given again.
        positions: Vec<Position>,
        asked: std::cell::Cell<usize>,
    }

    impl Reader for Topics {
        fn partitions(&self) -> u32 {
            1
        }

        fn range(&self, _: Topic, _: Partition) -> Result<log::Range, log::Error> {
            Ok(log::Range {
                start: Offset(0),
                end: Offset(4),
            })
        }

        fn read(
            &mut self,
            _: Topic,
            _: Partition,
            from: Offset,
            _: Limit,
            into: &mut Vec<log::Record>,
        ) -> Result<(), log::Error> {
            let record = log::Record {
                offset: from,
                ts: 0,
                key: None,
                value: Vec::new(),
                is_null: true,
                headers: None,
            };
            into.extend(std::iter::repeat_n(record, self.readable));
            Ok(())
        }

        fn reached(&self, _: Topic, _: Partition) -> Result<Offset, log::Error> {
            Ok(Offset(4))
        }

        fn position(&self, _: &str, _: Partition) -> Result<Position, log::Error> {
            let asked = self.asked.get();
            self.asked.set(asked + 1);
            Ok(self.positions[asked.min(self.positions.len() - 1)])
        }

        fn may_recover(&self, _: &log::Error) -> bool {
            false
        }
    }

    #[test]
    fn only_changes_that_can_be_read_need_a_position() {
        let begun = Position {
            next: Offset(2),
            seq: 1,
            ..Position::default()
        };
        let is_wrong = |readable, positions: &[Position]| {
            let mut topics = Topics {
                readable,
                positions: positions.to_vec(),
                asked: std::cell::Cell::default(),
            };
            let found = position_of(&mut topics, "rollcall", Partition(0)).expect("it can be read");
            found.is_some()
        };
        assert!(is_wrong(1, &[Position::default()]));
        assert!(!is_wrong(0, &[Position::default()]), "all of them were aborted");
        assert!(
            !is_wrong(1, &[Position::default(), begun]),
            "committed while it was looking"
        );
        assert!(!is_wrong(1, &[begun]));
    }

    #[test]
    fn a_position_must_be_there_beside_changes_and_within_the_events() {
        let at = |next| Position {
            next: Offset(next),
            seq: 1,
            ..Position::default()
        };
        let is_wrong = |position, events, has_changes| {
            position_problem(Partition(0), "rollcall", position, Offset(events), has_changes).is_some()
        };
        assert!(!is_wrong(Position::default(), 10, false), "a new cluster");
        assert!(is_wrong(Position::default(), 10, true), "the group's offsets are gone");
        assert!(!is_wrong(at(10), 10, true));
        assert!(is_wrong(at(11), 10, true), "the log was cut");
    }
}
