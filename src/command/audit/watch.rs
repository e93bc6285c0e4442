//! `rollcall audit watch`: verifies what an engine commits, as it commits it, from another process.
//!
//! A few threads share the partitions. Each reads the committed position of a partition, folds the events before it, and
//! compares the outputs in the topics and the chain with its own. Nothing is read again, so memory depends on the users only.

use super::heads::read_key;
use super::interrupt::Interrupted;
use super::source::{AuditSource, FoundOutputs, SourceFlags};
use super::verify::{print_difference, print_verified, restored, verifier_from};
use super::{json_line, source};
use crate::audit::attested::{Head, SignedHead, leaf_of};
use crate::audit::merkle::Tree;
use crate::audit::verify::{Compared, Difference, OutputRecord, Verified, Verifier, hex};
use crate::audit::watch::{MissingTimer, Standing, troubles};
use crate::clock::{Clock, SystemClock};
use crate::command::signals::Signals;
use crate::command::status;
use crate::config::{
    address,
    units::{Seconds, Span},
};
use crate::log::{self, Position};
use crate::metrics;
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use anyhow::{Context as _, bail};
use aws_lc_rs::signature::Ed25519KeyPair;
use std::fs::File;
use std::io::Write;
use std::net::SocketAddr;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;
use tokio::sync::mpsc;

/// How long a thread waits after a turn in which nothing was new.
const PAUSE: Duration = Duration::from_millis(250);
/// Outputs that were committed and are not in their topic for so long are missing. On Kafka each topic learns by itself that
/// a transaction is committed, and some of its brokers may be away.
const MISSING_MS: u64 = 120_000;
/// So many folded outputs wait for their records, then the fold waits.
const PENDING_MAX: usize = 50_000;

/// Verifies what an engine commits while it runs, from another process, until it is interrupted
///
/// Folds the events and compares every change, kick and quarantined record, and the chain over all outputs, as soon as they
/// are committed. Exit status, after SIGTERM or Ctrl-C: 1: a difference was found.
#[derive(clap::Args)]
pub struct Args {
    /// Address that serves /metrics, /healthz and /readyz, without a token
    #[arg(long, value_name = "ADDR:PORT", default_value = "127.0.0.1:8095", value_parser = address::listen)]
    status: SocketAddr,
    /// Appends a signed head of each partition to the file of --heads. An Ed25519 key as `openssl genpkey -algorithm ed25519` makes it
    #[arg(long, value_name = "KEYFILE", requires = "heads", conflicts_with = "from_checkpoint")]
    sign: Option<PathBuf>,
    /// The file to which signed heads are appended, for `prove` and `check-proof`
    #[arg(long, value_name = "FILE", requires = "sign")]
    heads: Option<PathBuf>,
    /// How often heads are signed, of partitions with new changes, 1 to 86400 seconds
    #[arg(long, value_name = "S", default_value_t = Span(60_000), requires = "sign")]
    sign_every: Seconds,
    /// Begins with the newest checkpoint of each partition. What came before is not read
    #[arg(long, requires = "checkpoints")]
    from_checkpoint: bool,
    /// Where the engines keep checkpoints: file:///DIRECTORY or s3://BUCKET/PREFIX
    #[arg(long, value_name = "URL", env = "ROLLCALL_CHECKPOINTS", hide_env_values = true)]
    checkpoints: Option<String>,
    #[command(flatten)]
    source: SourceFlags,
}

/// What all threads share.
struct Shared {
    clock: SystemClock,
    is_stopped: AtomicBool,
    standings: Mutex<Vec<Standing>>,
    policy: Policy,
    signer: Option<Signer>,
}

/// Signs heads and appends them to a file.
struct Signer {
    key: Ed25519KeyPair,
    file: Mutex<File>,
    path: PathBuf,
    every_ms: u64,
}

impl Shared {
    fn standings(&self) -> MutexGuard<'_, Vec<Standing>> {
        self.standings.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn update(&self, partition: Partition, change: impl FnOnce(&mut Standing)) {
        let mut standings = self.standings();
        if let Some(standing) = standings.iter_mut().find(|standing| standing.partition == partition) {
            change(standing);
        }
    }
}

/// What a thread sends to the main one.
enum WatchMessage {
    Difference(Box<Difference>),
    /// It has ended by itself: nothing else can be done for its partitions.
    Ended,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let every_ms = Seconds::within("sign_every", Some(args.sign_every), 0, 1_000, 86_400_000)?;
    let signer = match (&args.sign, &args.heads) {
        (Some(key), Some(path)) => Some(Signer {
            key: read_key(key)?,
            file: Mutex::new(
                File::options()
                    .create(true)
                    .append(true)
                    .open(path)
                    .with_context(|| format!("cannot write {}", path.display()))?,
            ),
            path: path.clone(),
            every_ms,
        }),
        _ => None,
    };
    if args.source.has_files() {
        bail!("`watch` follows a log: give --data or --kafka. Files are compared by `rollcall audit verify`");
    }
    let partitions = args.source.open()?.asked()?;
    let clock = SystemClock::new();
    let standings = partitions
        .iter()
        .map(|partition| Standing::new(*partition, clock.monotonic_ms()));
    let shared = Arc::new(Shared {
        standings: Mutex::new(standings.collect()),
        clock,
        is_stopped: AtomicBool::new(false),
        policy: args.source.first_policy()?,
        signer,
    });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_all()
        .build();
    let runtime = runtime.context("cannot start the async runtime")?;
    let mut signals = {
        let _entered = runtime.enter();
        Signals::listen()?
    };
    serve_status(args, &runtime, &shared)?;
    let (sender, mut messages) = mpsc::unbounded_channel();
    let (reported, ended) = thread::scope(|scope| {
        let threads = thread::available_parallelism()
            .map_or(1, |cores| cores.get())
            .min(partitions.len());
        let shares = (0..threads).map(|first| partitions.iter().copied().skip(first).step_by(threads));
        let threads: Vec<_> = shares
            .map(|share| {
                let share: Vec<Partition> = share.collect();
                let (shared, sender) = (&*shared, sender.clone());
                scope.spawn(move || {
                    let verified = follow(args, &share, shared, &sender);
                    // Nobody may listen any more.
                    let _ = sender.send(WatchMessage::Ended);
                    verified
                })
            })
            .collect();
        let reported = runtime.block_on(async {
            loop {
                tokio::select! {
                    () = signals.asked_to_stop() => return anyhow::Ok(()),
                    one = messages.recv() => match one {
                        Some(WatchMessage::Difference(difference)) => print(args, output, &difference)?,
                        Some(WatchMessage::Ended) | None => return Ok(()),
                    },
                }
            }
        });
        shared.is_stopped.store(true, Ordering::Relaxed);
        let panicked = || bail!("a thread that follows partitions panicked");
        let ended: Vec<anyhow::Result<Vec<Verified>>> = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| panicked()))
            .collect();
        (reported, ended)
    });
    runtime.shutdown_background();
    reported?;
    // What was found while the threads ended.
    while let Ok(one) = messages.try_recv() {
        if let WatchMessage::Difference(difference) = one {
            print(args, output, &difference)?;
        }
    }
    let (mut verified, mut failed) = (Vec::new(), None);
    for one in ended {
        match one {
            Ok(share) => verified.extend(share),
            Err(error) => failed = Some(error),
        }
    }
    verified.sort_by_key(|one| one.partition);
    for one in &verified {
        match args.source.json {
            true => json_line(output, one)?,
            false => print_verified(output, one)?,
        }
    }
    let has_difference = shared.standings().iter().any(|standing| standing.difference.is_some());
    match failed {
        Some(error) if has_difference => eprintln!("warning: {error:#}"),
        Some(error) => return Err(error),
        None => {}
    }
    Ok(u8::from(has_difference))
}

fn print(args: &Args, output: &mut impl Write, difference: &Difference) -> anyhow::Result<()> {
    match args.source.json {
        true => json_line(output, difference)?,
        false => print_difference(output, difference)?,
    }
    Ok(output.flush()?)
}

fn serve_status(args: &Args, runtime: &tokio::runtime::Runtime, shared: &Arc<Shared>) -> anyhow::Result<()> {
    let address = args.status;
    let listener = runtime.block_on(status::bind(address))?;
    eprintln!("status   http://{}", listener.local_addr().unwrap_or(address));
    if status::is_exposed(address) {
        eprintln!(
            "warning: --status {address} is not a loopback address: other machines can read /metrics without a token"
        );
    }
    let shared = shared.clone();
    runtime.spawn(status::serve(listener, move || {
        troubles(&shared.standings(), shared.clock.monotonic_ms())
    }));
    Ok(())
}

/// Follows partitions until the process is asked to stop. Returns what was verified of those of which everything that was
/// committed is verified.
fn follow(
    args: &Args,
    share: &[Partition],
    shared: &Shared,
    sender: &mpsc::UnboundedSender<WatchMessage>,
) -> anyhow::Result<Vec<Verified>> {
    let (mut events, mut outputs) = (args.source.open()?, args.source.open()?);
    let mut followed = Vec::new();
    for partition in share {
        followed.push(Followed::begin(args, *partition, &mut events, &mut outputs, shared)?);
    }
    let mut warned = String::new();
    'turns: while !shared.is_stopped.load(Ordering::Relaxed) {
        let mut is_quiet = true;
        for one in &mut followed {
            if one.has_difference {
                continue;
            }
            let partition = one.partition;
            match one.turn(&mut events, &mut outputs, shared) {
                Ok(Turn { is_new, difference }) => {
                    is_quiet &= !is_new;
                    if let Some(difference) = difference {
                        one.has_difference = true;
                        metrics::audit_difference(partition.0);
                        shared.update(partition, |standing| standing.difference = Some((*difference).clone()));
                        // Nobody listens any more once the process is asked to stop.
                        let _ = sender.send(WatchMessage::Difference(difference));
                    }
                }
                Err(error) if error.is::<Interrupted>() => break 'turns,
                Err(error) if source::may_pass(&error) => {
                    one.is_verified = false;
                    one.missing.restart();
                    let words = format!("{error:#}");
                    shared.update(partition, |standing| standing.unread = Some(words.clone()));
                    if warned != words {
                        eprintln!("warning: {words}; trying again");
                        warned = words;
                    }
                }
                Err(error) => return Err(explained(error)),
            }
        }
        if is_quiet {
            thread::sleep(PAUSE);
        }
    }
    let mut verified = Vec::new();
    for one in followed {
        if one.is_verified {
            verified.push(one.verifier.verified());
        } else if !one.has_difference {
            eprintln!(
                "warning: partition {}: not everything that the engine has committed was verified before the end",
                one.partition
            );
        }
    }
    Ok(verified)
}

/// Says what can be done where retention was faster than the watch.
fn explained(error: anyhow::Error) -> anyhow::Error {
    if !matches!(error.downcast_ref(), Some(log::Error::Gone { .. })) {
        return error;
    }
    error.context(
        "retention has removed records that `watch` had not verified yet; keep records longer, or begin with a newer checkpoint \
         (--from-checkpoint)",
    )
}

/// A partition that is followed.
struct Followed {
    partition: Partition,
    verifier: Verifier,
    found: FoundOutputs,
    /// The next event to be folded.
    next: Offset,
    missing: MissingTimer,
    /// The tree over the changes, if heads are signed, and when the last head was.
    tree: Option<Tree>,
    signed_ms: u64,
    signed_changes: u64,
    /// Whether everything that was committed at the last turn is verified.
    is_verified: bool,
    /// Whether the committed position went back, and that was said.
    has_gone_back: bool,
    has_difference: bool,
}

/// What a turn has found.
struct Turn {
    /// Whether there was anything to fold or to compare.
    is_new: bool,
    difference: Option<Box<Difference>>,
}

/// Whether the topics had all outputs of the folded events.
enum Ready {
    All,
    Missing,
}

impl Followed {
    fn begin(
        args: &Args,
        partition: Partition,
        events: &mut AuditSource<'_>,
        outputs: &mut AuditSource<'_>,
        shared: &Shared,
    ) -> anyhow::Result<Followed> {
        let stored = match &args.checkpoints {
            Some(url) if args.from_checkpoint => {
                let stored =
                    restored(url, events, args.source.group(), partition)?.filter(|stored| stored.is_between_records());
                Some(stored.with_context(|| format!("there is no checkpoint of partition {partition} to begin with"))?)
            }
            Some(_) | None => None,
        };
        let from_the_beginning = "`watch` without --from-checkpoint";
        let (verifier, next) = verifier_from(stored, events, partition, &shared.policy, from_the_beginning)?;
        Ok(Followed {
            partition,
            verifier,
            found: FoundOutputs::open(outputs, partition, next)?,
            next,
            missing: MissingTimer::default(),
            tree: shared.signer.as_ref().map(|_| Tree::default()),
            signed_ms: 0,
            signed_changes: 0,
            is_verified: false,
            has_gone_back: false,
            has_difference: false,
        })
    }

    fn turn(
        &mut self,
        events: &mut AuditSource<'_>,
        outputs: &mut AuditSource<'_>,
        shared: &Shared,
    ) -> anyhow::Result<Turn> {
        let partition = self.partition;
        events.refresh()?;
        let position = match self.next {
            Offset(0) => events.position(partition)?,
            _ => events.committed(partition)?,
        };
        let position = position.unwrap_or_default();
        if position.next < self.next {
            self.went_back(position.next, shared);
            return Ok(Turn {
                is_new: false,
                difference: None,
            });
        }
        self.has_gone_back = false;
        // After the position: what it includes is in the topics.
        outputs.refresh()?;
        let before = self.next;
        let mut difference = self.fold_to(position.next, events, outputs)?;
        let mut is_missing = self.next < position.next;
        if difference.is_none() {
            match self.compare(outputs)? {
                Ok(Ready::All) => {}
                Ok(Ready::Missing) => is_missing = true,
                Err(one) => difference = Some(one),
            }
        }
        if difference.is_none() && self.next == position.next {
            difference = self.compare_head(&position).err();
        }
        if difference.is_none() && !is_missing {
            difference = self.compare_rest(outputs)?.err();
        }
        let now_ms = shared.clock.monotonic_ms();
        if !is_missing {
            self.missing.restart();
        } else if difference.is_none() {
            let first = self.verifier.first_expected().unwrap_or((self.next, 0));
            if self.missing.missing_ms(first, now_ms) >= MISSING_MS {
                difference = Some(self.missing()?);
            }
        }
        self.is_verified = difference.is_none() && !is_missing;
        let is_verified = self.is_verified;
        shared.update(partition, |standing| {
            standing.committed = position.next;
            standing.read_ms = now_ms;
            standing.unread = None;
            standing.has_gone_back = false;
            if is_verified {
                standing.verified = self.next;
                standing.has_caught_up = true;
            }
        });
        if is_verified {
            metrics::audit_verified(partition.0, self.next.0);
            if self.next == position.next {
                self.sign(&position, now_ms, shared)?;
            }
        }
        Ok(Turn {
            is_new: self.next > before,
            difference,
        })
    }

    /// Takes note of a committed position before what was verified.
    fn went_back(&mut self, committed: Offset, shared: &Shared) {
        self.is_verified = false;
        let now_ms = shared.clock.monotonic_ms();
        shared.update(self.partition, |standing| {
            standing.committed = committed;
            standing.verified = self.next;
            standing.read_ms = now_ms;
            standing.unread = None;
            standing.has_gone_back = true;
        });
        if !std::mem::replace(&mut self.has_gone_back, true) {
            eprintln!(
                "warning: partition {}: the committed position went back from offset {} to {committed}; nothing is verified until it \
                 has come back. Check whether the group's offsets have expired or were reset",
                self.partition, self.next
            );
        }
    }

    /// Folds the events before an offset, and compares the outputs that are there on the way. It stops early while too many
    /// outputs are not there yet.
    fn fold_to(
        &mut self,
        until: Offset,
        events: &mut AuditSource<'_>,
        outputs: &mut AuditSource<'_>,
    ) -> anyhow::Result<Option<Box<Difference>>> {
        if until <= self.next {
            return Ok(None);
        }
        let end = events.range(Topic::Events, self.partition)?.end;
        let (mut difference, mut is_early) = (None, false);
        events.all_events_from(self.partition, self.next, |offset, ts, event| {
            if offset >= until {
                return Ok(ControlFlow::Break(()));
            }
            match &event {
                Ok(event) => self.verifier.fold(offset, ts, Ok(event), &mut |_| {}),
                Err(malformed) => self.verifier.fold(offset, ts, Err(malformed.clone()), &mut |_| {}),
            }
            self.next = Offset(offset.0 + 1);
            self.is_verified = false;
            match self.compare(outputs)? {
                Ok(_) => {}
                Err(one) => difference = Some(one),
            }
            let pending: usize = Compared::ALL.iter().map(|topic| self.verifier.expected(*topic)).sum();
            is_early = difference.is_some() || pending > PENDING_MAX;
            Ok(match is_early {
                true => ControlFlow::Break(()),
                false => ControlFlow::Continue(()),
            })
        })?;
        if !is_early && end >= until {
            // Every event before the end was read. Behind the last one there may be marks of transactions.
            self.next = until;
        }
        Ok(difference)
    }

    /// Compares what was folded with the records that are there.
    fn compare(&mut self, outputs: &mut AuditSource<'_>) -> anyhow::Result<Result<Ready, Box<Difference>>> {
        let mut ready = Ready::All;
        for topic in Compared::ALL {
            while self.verifier.expected(topic) > 0 {
                let Some(record) = self.found.next(topic, outputs)? else {
                    ready = Ready::Missing;
                    break;
                };
                let leaf = match (&record, &self.tree) {
                    (OutputRecord::Change(change), Some(_)) => Some(leaf_of(change)),
                    _ => None,
                };
                if let Err(difference) = self.verifier.compare(topic, Some(record)) {
                    self.found.may_differ(topic)?;
                    return Ok(Err(difference));
                }
                self.found.was_right(topic);
                if let (Some(tree), Some(leaf)) = (&mut self.tree, leaf) {
                    tree.push(leaf);
                }
            }
        }
        Ok(Ok(ready))
    }

    fn compare_head(&self, position: &Position) -> Result<(), Box<Difference>> {
        let is_whole = position.outputs == 0;
        if is_whole && (position.chain, position.seq) != self.verifier.head() {
            return Err(self.verifier.other_head("position", Some(&position.chain)));
        }
        Ok(())
    }

    /// Reports a record that belongs to an event that was folded, although nothing more was expected.
    fn compare_rest(&mut self, outputs: &mut AuditSource<'_>) -> anyhow::Result<Result<(), Box<Difference>>> {
        for topic in Compared::ALL {
            let is_extra = self.found.peek(topic, outputs)?.is_some_and(|record| {
                record.offset() < self.next || record.partition().is_some_and(|of| of != self.partition)
            });
            if is_extra {
                let record = self.found.next(topic, outputs)?;
                return Ok(self.verifier.compare(topic, record));
            }
        }
        Ok(Ok(()))
    }

    /// Returns the difference of something that was committed and is not there.
    fn missing(&mut self) -> anyhow::Result<Box<Difference>> {
        let pending = Compared::ALL
            .into_iter()
            .find(|topic| self.verifier.expected(*topic) > 0);
        let Some(topic) = pending else {
            return Ok(self.verifier.missing_events(self.next));
        };
        self.found.may_differ(topic)?;
        let compared = self.verifier.compare(topic, None);
        Ok(compared
            .err()
            .unwrap_or_else(|| self.verifier.missing_events(self.next)))
    }

    fn sign(&mut self, position: &Position, now_ms: u64, shared: &Shared) -> anyhow::Result<()> {
        let (Some(signer), Some(tree)) = (&shared.signer, &self.tree) else {
            return Ok(());
        };
        let is_due = self.signed_ms == 0 || now_ms >= self.signed_ms + signer.every_ms;
        if !is_due || tree.leaves() == self.signed_changes || tree.leaves() != position.seq {
            return Ok(());
        }
        (self.signed_ms, self.signed_changes) = (now_ms, tree.leaves());
        let head = Head {
            partition: self.partition.0,
            next: position.next.0,
            changes: position.seq,
            head: hex(&position.chain),
        };
        let signed = SignedHead::sign(head, 1, &tree.root(), shared.clock.now_ms(), &signer.key);
        let mut line = Vec::new();
        json_line(&mut line, &signed)?;
        let mut file = signer.file.lock().unwrap_or_else(PoisonError::into_inner);
        file.write_all(&line)
            .and_then(|()| file.sync_data())
            .with_context(|| format!("cannot write {}", signer.path.display()))
    }
}
