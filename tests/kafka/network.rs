//! Random faults of the network, for the proxy: every so often one request, of an API that is chosen first, so that rare
//! requests get their share.

use crate::frames::{Api, Frame};
use crate::proxy::Action;
use crate::timeline::{Target, Timeline};
use rollcall::random::Random;
use std::collections::BTreeMap;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant, SystemTime};

/// What an engine needs to commit, and the rest.
pub const APIS: [Api; 9] = [
    Api::EndTxn,
    Api::TxnOffsetCommit,
    Api::Produce,
    Api::AddPartitionsToTxn,
    Api::AddOffsetsToTxn,
    Api::OffsetFetch,
    Api::Fetch,
    Api::Heartbeat,
    Api::InitProducerId,
];

/// How long to wait for a request of the chosen API; some are rare.
const CHOICE_MAX: Duration = Duration::from_millis(100);

/// The files of answers to fetches: the one that is written, and the one before it.
const FETCHED: [&str; 2] = ["fetched", "fetched-before"];
/// Of the answers to fetches, twice this much is kept.
const FETCHED_BYTES_MAX: u64 = 64 << 20;

pub struct RandomFaults {
    random: Random,
    every: Duration,
    due: Instant,
    api: Api,
    chosen: Instant,
    /// How many there were of each kind.
    pub struck: BTreeMap<&'static str, u32>,
    fetched: Fetched,
    timeline: Arc<Timeline>,
    /// The engines' group, whose name is in the ids of their producers.
    group: String,
}

/// What engines were given of the topics: a file, and the one before it.
struct Fetched {
    directory: PathBuf,
    file: File,
    bytes: u64,
}

/// Copies the answers to fetches beside the directory in which a run is explained.
pub fn copy_fetched(from: &Path, beside: &Path) {
    for name in FETCHED {
        let to = beside.with_extension(name);
        if let Ok(bytes) = std::fs::copy(from.join(name), &to) {
            println!("what the engines were given, {bytes} bytes, copied to {}", to.display());
        }
    }
}

impl RandomFaults {
    /// One every so often on average, each noted in the timeline. The answers to fetches are kept in the directory.
    pub fn new(seed: u64, every: Duration, directory: PathBuf, timeline: Arc<Timeline>, group: &str) -> RandomFaults {
        let now = Instant::now();
        let file = File::create(directory.join(FETCHED[0])).expect("a file");
        RandomFaults {
            random: Random(seed),
            every,
            due: now,
            api: Api::EndTxn,
            chosen: now,
            struck: BTreeMap::new(),
            fetched: Fetched {
                directory,
                file,
                bytes: 0,
            },
            timeline,
            group: group.to_owned(),
        }
    }

    /// What happens to a request, if anything does.
    pub fn strike(&mut self, connection: u64, request: &Frame) -> Option<Action> {
        self.timeline.learn(connection, &self.group, request);
        let api = request.api();
        let now = Instant::now();
        if now < self.due {
            return None;
        }
        if now > self.chosen + CHOICE_MAX {
            self.choose(now);
        }
        if api != self.api {
            return None;
        }
        let (kind, action) = self.action();
        *self.struck.entry(kind).or_default() += 1;
        let (from, lasts) = (SystemTime::now(), action.lasts());
        let target = match action {
            Action::CutOff(_) => Target::Brokers,
            _ => Target::Connection(connection),
        };
        self.timeline.note_until(kind, target, from, from + lasts);
        let twice = self.every.as_millis() as usize * 2;
        self.due = now + Duration::from_millis(self.random.index(twice + 1) as u64);
        self.choose(self.due);
        Some(action)
    }

    fn choose(&mut self, now: Instant) {
        self.api = APIS[self.random.index(APIS.len())];
        self.chosen = now;
    }

    fn time(&mut self, most_ms: usize) -> Duration {
        Duration::from_millis(1 + self.random.index(most_ms) as u64)
    }

    fn action(&mut self) -> (&'static str, Action) {
        match self.random.index(20) {
            0..4 => ("network: request late", Action::Delay(self.time(700))),
            4..8 => ("network: answer late", Action::DelayAnswer(self.time(700))),
            8..11 => ("network: request lost, connection reset", Action::Lose),
            11..15 => ("network: answer lost, connection reset", Action::LoseAnswer),
            15..19 => (
                "network: connection reset, request delivered afterwards",
                Action::DeliverLate(self.time(800)),
            ),
            _ => ("network: broker cut off", Action::CutOff(self.time(1_000))),
        }
    }

    /// Keeps what an engine was given, so that a wrong run can be explained: the connection's number, the length, the answer.
    pub fn keep_fetched(&mut self, connection: u64, answer: &Frame) {
        let fetched = &mut self.fetched;
        let record = [&connection.to_be_bytes(), &*answer.to_bytes()].concat();
        fetched.file.write_all(&record).expect("there is room");
        fetched.bytes += record.len() as u64;
        if fetched.bytes > FETCHED_BYTES_MAX {
            let [path, before] = FETCHED.map(|name| fetched.directory.join(name));
            std::fs::rename(&path, before).expect("renamed");
            fetched.file = File::create(&path).expect("a file");
            fetched.bytes = 0;
        }
    }
}
