//! Disconnects and logouts that wait to be appended to the log.
//!
//! While the log accepts events, they are appended at once, in batches. While it does not, they wait in a synced file
//! and are appended in order when the log works again, also after a restart of the gateway. The rules allow late ends,
//! since an end affects only a device that is still on that connection. The size of the file is bounded. When it is
//! full, a logout is refused and its client is informed; a disconnect is counted and logged, and its device goes
//! offline when the engine's time-out for it expires.
//!
//! The task must not end before the gateway does. Every failure (the file cannot be read or written, a line is damaged,
//! the code panics) is logged, counted and retried with a growing pause, and meanwhile the gateway is not ready. The
//! file and the events in progress belong to the [`Outbox`], not to the task, so a restarted task continues with them.
//! Events wait in a bounded channel: when it is full, connections that end wait.

use super::GatewayState;
use super::health::End;
use crate::backoff::{self, Backoff};
use crate::layout;
use crate::metrics;
use crate::presence::Offset;
use crate::presence::event::{ConnRef, DeviceRef, Event};
use crate::schema::json::{event_line, read_line};
use crate::tasks::message;
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{Mutex, mpsc, oneshot};

/// How many events are sent to the log, or written to the file, together.
const BATCH: usize = 1_000;
/// How many events may wait for the task. When more arrive, connections that end have to wait.
pub const WAITING: usize = 8_192;
const RETRY: Duration = Duration::from_secs(1);
/// The name of this task in logs, metrics and `/readyz`.
pub const TASK: &str = "disconnects";

/// One disconnect or logout.
pub struct QueuedDisconnect {
    pub event: Event<'static>,
    /// Receives whether the event is durable, in the file or in the log.
    pub done: Option<oneshot::Sender<bool>>,
}

/// The sending end of the queue.
pub type Sender = mpsc::Sender<QueuedDisconnect>;

/// The file of waiting events: one JSON event per line, read from `next` on.
pub struct Queue {
    file: File,
    next: u64,
    end: u64,
    bytes_max: u64,
}

impl Queue {
    /// Opens the file that an earlier process may have left. Truncates an incomplete last line, which a crash has cut:
    /// nobody was notified that it is durable. A file of a later layout is an error and stays as it is.
    pub fn open(directory: &Path, bytes_max: u64) -> io::Result<Queue> {
        let path = directory.join("queue.jsonl");
        layout::check_file(&path)?;
        let mut file = OpenOptions::new().read(true).append(true).create(true).open(path)?;
        let mut end = 0;
        let mut line = Vec::new();
        let mut reader = BufReader::new(&mut file);
        loop {
            line.clear();
            match reader.read_until(b'\n', &mut line)? {
                0 => break,
                bytes if line.ends_with(b"\n") => end += bytes as u64,
                _ => break,
            }
        }
        file.set_len(end)?;
        Ok(Queue {
            file,
            next: 0,
            end,
            bytes_max,
        })
    }

    pub fn is_empty(&self) -> bool {
        self.next == self.end
    }

    /// Appends as many events as fit and syncs the file. Returns how many.
    fn add(&mut self, events: &[&Event<'static>]) -> io::Result<usize> {
        let mut text = Vec::new();
        let mut added = 0;
        for event in events {
            let before = text.len();
            event_line(&mut text, Offset(0), 0, event);
            text.push(b'\n');
            if self.end + text.len() as u64 > self.bytes_max {
                text.truncate(before);
                break;
            }
            added += 1;
        }
        let written = self.file.write_all(&text).and_then(|()| self.file.sync_data());
        if let Err(error) = written {
            // A part of the event may have been written.
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.end += text.len() as u64;
        Ok(added)
    }

    /// Reads the next events and the offset after them. Counts a damaged line as lost and continues with the next line.
    fn read(&mut self) -> io::Result<(Vec<Event<'static>>, u64)> {
        self.file.seek(SeekFrom::Start(self.next))?;
        let mut reader = BufReader::new(&mut self.file);
        let mut events = Vec::new();
        let mut upto = self.next;
        let mut line = Vec::new();
        while events.len() < BATCH && upto < self.end {
            line.clear();
            let bytes = reader.read_until(b'\n', &mut line)? as u64;
            if bytes == 0 {
                let missing_bytes = self.end - upto;
                lose(1);
                tracing::error!(
                    missing_bytes,
                    "the disconnect queue is shorter than what was written to it, its disconnects are lost"
                );
                self.end = upto;
                break;
            }
            upto += bytes;
            match event_of(&line) {
                Some(event) => events.push(event),
                None => {
                    lose(1);
                    let line = String::from_utf8_lossy(&line);
                    tracing::error!(%line, "skipping an unreadable line in the disconnect queue");
                }
            }
        }
        Ok((events, upto.min(self.end)))
    }

    /// Marks events up to this offset as appended to the log. Truncates the file when all of them are.
    fn passed(&mut self, upto: u64) -> io::Result<()> {
        self.next = upto;
        if self.is_empty() {
            self.file.set_len(0)?;
            self.file.sync_data()?;
            (self.next, self.end) = (0, 0);
        }
        Ok(())
    }
}

/// Parses a line. Returns `None` unless it is an event that this queue writes.
fn event_of(line: &[u8]) -> Option<Event<'static>> {
    let line = std::str::from_utf8(line).ok()?;
    match read_line(line).ok()?.event.ok()? {
        Event::Disconnect { who, via, reason } => Some(Event::Disconnect {
            who: own(who),
            via: own_via(via),
            reason,
        }),
        Event::Logout { who, via } => Some(Event::Logout {
            who: own(who),
            via: own_via(via),
        }),
        Event::Connect { .. }
        | Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. }
        | Event::Lease { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => None,
    }
}

/// Counts disconnects that will never be appended to the log.
fn lose(count: usize) {
    metrics::gateway_endings_refused(count);
}

fn own(who: DeviceRef<'_>) -> DeviceRef<'static> {
    DeviceRef {
        user: who.user.into_owned().into(),
        platform: who.platform.into_owned().into(),
        device: who.device.into_owned().into(),
    }
}

fn own_via(via: ConnRef<'_>) -> ConnRef<'static> {
    ConnRef {
        gateway: via.gateway.into_owned().into(),
        epoch: via.epoch,
        conn: via.conn,
    }
}

/// The file and the events in progress. It outlives the task that sends them.
pub struct Outbox {
    directory: PathBuf,
    bytes_max: u64,
    /// `None` when the file has to be opened again.
    queue: Option<Queue>,
    /// Events that were received from the channel and are neither in the log nor in the file yet.
    batch: Vec<QueuedDisconnect>,
    receiver: mpsc::Receiver<QueuedDisconnect>,
}

impl Outbox {
    /// Opens the file. What is put into the sender is appended to the log by [`run`].
    pub fn open(directory: &Path, bytes_max: u64) -> io::Result<(Sender, Outbox)> {
        let (sender, receiver) = mpsc::channel(WAITING);
        let outbox = Outbox {
            directory: directory.to_owned(),
            bytes_max,
            queue: Some(Queue::open(directory, bytes_max)?),
            batch: Vec::new(),
            receiver,
        };
        Ok((sender, outbox))
    }

    /// Returns whether no event waits in the file; false while the file is not open.
    fn is_empty(&self) -> bool {
        self.queue.as_ref().is_some_and(Queue::is_empty)
    }

    /// Collects new events until the pause is over. Returns whether more may come.
    async fn gather(&mut self, pause: Option<Duration>) -> bool {
        let coming = self.receiver.recv_many(&mut self.batch, BATCH);
        match pause {
            None => coming.await > 0,
            Some(pause) => tokio::select! {
                count = coming => count > 0,
                () = tokio::time::sleep(pause) => true,
            },
        }
    }

    /// Runs an operation on the file in a blocking thread. A panic becomes an error, after which the file is opened
    /// again.
    async fn with_file<T: Send + 'static>(
        &mut self,
        work: impl FnOnce(&mut Queue) -> io::Result<T> + Send + 'static,
    ) -> io::Result<T> {
        let (queue, directory, bytes_max) = (self.queue.take(), self.directory.clone(), self.bytes_max);
        let worked = tokio::task::spawn_blocking(move || {
            let mut queue = match queue {
                Some(queue) => queue,
                None => match Queue::open(&directory, bytes_max) {
                    Ok(queue) => queue,
                    Err(error) => return (None, Err(error)),
                },
            };
            match catch_unwind(AssertUnwindSafe(|| work(&mut queue))) {
                Ok(result) => (Some(queue), result),
                Err(panic) => (None, Err(io::Error::other(format!("panicked: {}", message(&*panic))))),
            }
        });
        let (queue, result) = worked.await.map_err(io::Error::other)?;
        self.queue = queue;
        result
    }

    /// Writes the batch to the file as far as it fits. Counts and logs the rest as lost.
    async fn put_by(&mut self) -> io::Result<()> {
        let events: Vec<Event<'static>> = self.batch.iter().map(|ending| ending.event.clone()).collect();
        let added = self
            .with_file(move |queue| queue.add(&events.iter().collect::<Vec<_>>()))
            .await;
        let (added, result) = match added {
            Ok(added) => (added, Ok(())),
            Err(error) => (0, Err(error)),
        };
        let lost = self.batch.len() - added;
        if lost > 0 {
            lose(lost);
            tracing::error!(
                lost,
                "disconnects lost: the log is unavailable and the queue is full; their devices go offline when the \
                 engine's time-out expires"
            );
        }
        for (number, ending) in self.batch.drain(..).enumerate() {
            answer(ending, number < added);
        }
        result
    }
}

/// Whether the file works, and the pause between retries.
struct FileState {
    /// The next pause, while the file does not work.
    pause: Option<Duration>,
    backoff: Backoff,
}

impl FileState {
    fn failed(&mut self, edge: &GatewayState, error: &io::Error) {
        let pause = self.backoff.pause();
        self.pause = Some(pause);
        let pause_ms = pause.as_millis() as u64;
        tracing::error!(%error, pause_ms, "the disconnect queue failed, retrying");
        edge.health.fails(TASK, format!("the disconnect queue failed: {error}"));
    }

    fn works(&mut self, edge: &GatewayState) {
        if self.pause.take().is_some() {
            self.backoff.reset();
            tracing::info!("the disconnect queue works again");
            edge.health.works(TASK);
        }
    }
}

/// Runs until every sender is gone, and until the log has every event or refuses it.
pub async fn run(edge: Arc<GatewayState>, outbox: Arc<Mutex<Outbox>>) -> End {
    let mut outbox = outbox.lock().await;
    let mut file = FileState {
        pause: None,
        backoff: backoff::DISCONNECT_QUEUE.start(),
    };
    let mut open = true;
    let mut refused = false;
    while open || !outbox.batch.is_empty() || !(outbox.is_empty() || refused || file.pause.is_some()) {
        if open && outbox.batch.is_empty() {
            let pause = match file.pause {
                Some(pause) => Some(pause),
                None if outbox.is_empty() => None,
                // Events in the file go first; new ones are queued behind them.
                None if refused || !edge.log_is_well() => Some(RETRY),
                None => Some(Duration::ZERO),
            };
            open = outbox.gather(pause).await;
        }
        // New events do not wait for a file that does not work: order matters only within one connection, and a
        // connection ends once.
        if !outbox.batch.is_empty() && (outbox.is_empty() || file.pause.is_some()) {
            let events = outbox.batch.iter().map(|ending| ending.event.clone()).collect();
            match edge.uplink.append(events).await {
                Ok(()) => outbox.batch.drain(..).for_each(|ending| answer(ending, true)),
                Err(error) => edge.log_failed(&error),
            }
        }
        if !outbox.batch.is_empty()
            && let Err(error) = outbox.put_by().await
        {
            file.failed(&edge, &error);
            continue;
        }
        refused = false;
        if outbox.is_empty() {
            file.works(&edge);
            continue;
        }
        if !edge.log_is_well() && open {
            continue;
        }
        let (events, upto) = match outbox.with_file(Queue::read).await {
            Ok(read) => read,
            Err(error) => {
                // The file is opened again at the next attempt.
                outbox.queue = None;
                file.failed(&edge, &error);
                continue;
            }
        };
        if !events.is_empty()
            && let Err(error) = edge.uplink.append(events).await
        {
            refused = true;
            edge.log_failed(&error);
            continue;
        }
        match outbox.with_file(move |queue| queue.passed(upto)).await {
            Ok(()) => file.works(&edge),
            Err(error) => file.failed(&edge, &error),
        }
    }
    End::Done
}

fn answer(ending: QueuedDisconnect, durable: bool) {
    if let Some(done) = ending.done {
        // The client may have gone in the meantime.
        let _ = done.send(durable);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::presence::event::Ending as Reason;
    use crate::presence::{Conn, Epoch};

    fn disconnect(conn: u64) -> Event<'static> {
        Event::Disconnect {
            who: DeviceRef {
                user: "alice".into(),
                platform: "web".into(),
                device: "tab".into(),
            },
            via: ConnRef {
                gateway: "edge".into(),
                epoch: Epoch(3),
                conn: Conn(conn),
            },
            reason: Reason::Closed,
        }
    }

    #[test]
    fn what_waits_is_there_after_a_restart_and_a_cut_line_is_not() {
        let directory = tempfile::tempdir().expect("a directory");
        let events: Vec<Event<'static>> = (0..3).map(disconnect).collect();
        let refs: Vec<&Event<'static>> = events.iter().collect();
        let mut queue = Queue::open(directory.path(), 1 << 20).expect("opened");
        assert_eq!(queue.add(&refs).expect("written"), 3);
        drop(queue);
        let path = directory.path().join("queue.jsonl");
        let mut text = std::fs::read(&path).expect("read");
        text.extend_from_slice(br#"{"type":"disc"#);
        std::fs::write(&path, text).expect("written");
        let mut queue = Queue::open(directory.path(), 1 << 20).expect("opened");
        assert_eq!(queue.add(&refs[..1]).expect("written"), 1);
        let (read, upto) = queue.read().expect("read");
        assert_eq!(read.len(), 4);
        assert_eq!(read[..3], events);
        queue.passed(upto).expect("emptied");
        assert!(queue.is_empty());
        assert_eq!(std::fs::metadata(&path).expect("there").len(), 0);
    }

    #[test]
    fn the_file_is_written_and_read_as_its_golden_file_has_it() {
        let Event::Disconnect { who, via, .. } = disconnect(7) else {
            unreachable!("it is a disconnect")
        };
        let exit = Event::Disconnect {
            who: who.clone(),
            via: via.clone(),
            reason: Reason::Exit,
        };
        let events = [disconnect(7), exit, Event::Logout { who, via }];
        let refs: Vec<&Event<'static>> = events.iter().collect();
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("queue.jsonl");
        let mut queue = Queue::open(directory.path(), 1 << 20).expect("opened");
        assert_eq!(queue.add(&refs).expect("written"), 3);
        drop(queue);
        let written = std::fs::read_to_string(&path).expect("read");

        std::fs::write(&path, include_str!("../../tests/golden/disconnect-queue.txt")).expect("written");
        let mut queue = Queue::open(directory.path(), 1 << 20).expect("opened");
        let (read, _) = queue.read().expect("read");
        crate::bless::check([("tests/golden/disconnect-queue.txt", written.as_str())]);
        assert_eq!(read, events);
    }

    #[tokio::test]
    async fn a_full_queue_takes_what_fits_and_says_how_much() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut queue = Queue::open(directory.path(), 400).expect("opened");
        let events: Vec<Event<'static>> = (0..10).map(disconnect).collect();
        let refs: Vec<&Event<'static>> = events.iter().collect();
        let added = queue.add(&refs).expect("written");
        assert!((1..10).contains(&added), "{added}");
        drop(queue);
        let (sender, mut outbox) = Outbox::open(directory.path(), 400).expect("opened");
        let (done, durable) = oneshot::channel();
        outbox.batch.push(QueuedDisconnect {
            event: disconnect(11),
            done: Some(done),
        });
        outbox.put_by().await.expect("written");
        assert_eq!(durable.await, Ok(false));
        assert!(outbox.batch.is_empty() && !outbox.is_empty());
        drop(sender);
    }

    #[test]
    fn damaged_lines_and_a_shorter_file_hold_up_nothing() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut queue = Queue::open(directory.path(), 1 << 20).expect("opened");
        let events: Vec<Event<'static>> = (0..3).map(disconnect).collect();
        let refs: Vec<&Event<'static>> = events.iter().collect();
        queue.add(&refs).expect("written");
        let path = directory.path().join("queue.jsonl");
        let mut text = std::fs::read(&path).expect("read");
        // Not UTF-8, in the first line.
        text[5] = 0xff;
        std::fs::write(&path, &text).expect("written");
        let (read, upto) = queue.read().expect("read");
        assert_eq!((&read[..], upto), (&events[1..], text.len() as u64));
        std::fs::write(&path, &text[..text.len() / 2]).expect("written");
        let (read, upto) = queue.read().expect("read");
        assert_eq!(read.len(), 0, "the only whole line is the damaged one");
        queue.passed(upto).expect("passed");
        assert!(queue.is_empty(), "it does not wait for what is not there");
    }

    #[tokio::test]
    async fn a_panic_over_the_file_is_an_error_and_the_file_is_opened_again() {
        let directory = tempfile::tempdir().expect("a directory");
        let (_sender, mut outbox) = Outbox::open(directory.path(), 1 << 20).expect("opened");
        let panicked = outbox.with_file(|_| -> io::Result<()> { panic!("on purpose") }).await;
        assert_eq!(panicked.expect_err("an error").to_string(), "panicked: on purpose");
        let added = outbox.with_file(|queue| queue.add(&[&disconnect(1)])).await;
        assert_eq!(added.expect("written"), 1);
    }
}
