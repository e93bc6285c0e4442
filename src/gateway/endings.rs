//! Disconnects and logouts, on their way to the log: what a connection's end depends on must not be lost with it.
//!
//! While the log takes them they go there at once, many together. While it does not they wait in a file, synced, and
//! follow in their order when it does again, also after a restart of the gateway: the rules let them come late, since
//! only the connection that a device is still on can be ended by them. The file is bounded. When it is full, a logout
//! is refused and its client told so; a disconnect is counted and logged, and its device goes offline when the engine
//! decides on its silence, later than it could have but rightly.

use super::Edge;
use crate::metrics;
use crate::presence::Offset;
use crate::presence::event::{Event, Via, Who};
use crate::schema::json::{event_line, read_line};
use std::fs::{File, OpenOptions};
use std::io::{self, BufRead as _, BufReader, Seek as _, SeekFrom, Write as _};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot};

/// Taken to the log or to the file together.
const BATCH: usize = 1_000;
const RETRY: Duration = Duration::from_secs(1);

/// One end.
pub struct Ending {
    pub event: Event<'static>,
    /// Told whether it is durable, here or in the log.
    pub done: Option<oneshot::Sender<bool>>,
}

/// Where they are put.
pub type Sender = mpsc::UnboundedSender<Ending>;

/// What waits, in a file: a line an event, read from `next` on.
pub struct Queue {
    file: File,
    next: u64,
    end: u64,
    bytes_max: u64,
}

impl Queue {
    /// Opens what is there from before. A last line that a crash has cut is taken off: nobody was told that it is safe.
    pub fn open(directory: &Path, bytes_max: u64) -> io::Result<Queue> {
        let path = directory.join("queue.jsonl");
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

    /// Adds as many as there is room for, durably; how many.
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
            // A piece of it may be there.
            self.file.set_len(self.end)?;
            return Err(error);
        }
        self.end += text.len() as u64;
        Ok(added)
    }

    /// The next ones, with where they end.
    fn read(&mut self) -> io::Result<(Vec<Event<'static>>, u64)> {
        self.file.seek(SeekFrom::Start(self.next))?;
        let mut reader = BufReader::new(&mut self.file);
        let mut events = Vec::new();
        let mut upto = self.next;
        let mut line = String::new();
        while events.len() < BATCH && upto < self.end {
            line.clear();
            upto += reader.read_line(&mut line)? as u64;
            match read_line(&line).map(|line| line.event) {
                Ok(Ok(Event::Disconnect { who, via, reason })) => events.push(Event::Disconnect {
                    who: own(who),
                    via: own_via(via),
                    reason,
                }),
                Ok(Ok(Event::Logout { who, via })) => events.push(Event::Logout {
                    who: own(who),
                    via: own_via(via),
                }),
                _ => tracing::error!("a line of the queue of endings is none and is left aside: {line:?}"),
            }
        }
        Ok((events, upto))
    }

    /// They are in the log. When all are, the file is empty again.
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

fn own(who: Who<'_>) -> Who<'static> {
    Who {
        user: who.user.into_owned().into(),
        platform: who.platform.into_owned().into(),
        device: who.device.into_owned().into(),
    }
}

fn own_via(via: Via<'_>) -> Via<'static> {
    Via {
        gateway: via.gateway.into_owned().into(),
        epoch: via.epoch,
        conn: via.conn,
    }
}

/// Runs until everybody who may put something in is gone and the log has all of it, or does not take it.
pub async fn run(edge: Arc<Edge>, mut queue: Queue, mut endings: mpsc::UnboundedReceiver<Ending>) {
    let mut batch = Vec::new();
    let mut open = true;
    let mut refused = false;
    while open || !(queue.is_empty() || refused) {
        if !open {
            // Nothing more comes; what waits is taken to the log, as long as it takes it.
        } else if queue.is_empty() {
            open = endings.recv_many(&mut batch, BATCH).await > 0;
        } else {
            // What waits goes first; what comes meanwhile waits behind it.
            let pause = if refused || !edge.log_is_well() {
                RETRY
            } else {
                Duration::ZERO
            };
            tokio::select! {
                count = endings.recv_many(&mut batch, BATCH) => open = count > 0,
                () = tokio::time::sleep(pause) => {}
            }
        }
        if queue.is_empty() && !batch.is_empty() {
            let events = batch.iter().map(|ending: &Ending| ending.event.clone()).collect();
            match edge.uplink.append(events).await {
                Ok(()) => batch.drain(..).for_each(|ending| answer(ending, true)),
                Err(error) => edge.log_failed(&error),
            }
        }
        if !batch.is_empty() {
            let waiting = std::mem::take(&mut batch);
            match tokio::task::spawn_blocking(move || put_by(queue, waiting)).await {
                Ok(after) => queue = after,
                Err(_) => return,
            }
        }
        refused = false;
        if !queue.is_empty() && (edge.log_is_well() || !open) {
            match tokio::task::spawn_blocking(move || queue.read().map(|read| (queue, read))).await {
                Ok(Ok((after, (events, upto)))) => {
                    queue = after;
                    let sent = match events.is_empty() {
                        true => Ok(()),
                        false => edge.uplink.append(events).await,
                    };
                    match sent.map(|()| queue.passed(upto)) {
                        Ok(Ok(())) => {}
                        Ok(Err(error)) => {
                            refused = true;
                            tracing::error!("the queue of endings cannot be emptied: {error}");
                        }
                        Err(error) => {
                            refused = true;
                            edge.log_failed(&error);
                        }
                    }
                }
                Ok(Err(error)) => {
                    tracing::error!("the queue of endings cannot be read, and what is in it is left there: {error}");
                    return;
                }
                Err(_) => return,
            }
        }
    }
}

/// Puts endings into the file, as far as there is room.
fn put_by(mut queue: Queue, waiting: Vec<Ending>) -> Queue {
    let events: Vec<&Event<'static>> = waiting.iter().map(|ending| &ending.event).collect();
    let added = queue.add(&events).unwrap_or_else(|error| {
        tracing::error!("the queue of endings cannot be written: {error}");
        0
    });
    let lost = waiting.len() - added;
    if lost > 0 {
        metrics::gateway_endings_refused(lost);
        tracing::error!(
            "the log is unavailable and the queue of endings has no room: {lost} connections that ended go offline \
             only when the engine decides on their silence"
        );
    }
    for (number, ending) in waiting.into_iter().enumerate() {
        answer(ending, number < added);
    }
    queue
}

fn answer(ending: Ending, durable: bool) {
    if let Some(done) = ending.done {
        // Its client may have gone meanwhile.
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
            who: Who {
                user: "alice".into(),
                platform: "web".into(),
                device: "tab".into(),
            },
            via: Via {
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
    fn a_full_queue_takes_what_fits_and_says_how_much() {
        let directory = tempfile::tempdir().expect("a directory");
        let mut queue = Queue::open(directory.path(), 400).expect("opened");
        let events: Vec<Event<'static>> = (0..10).map(disconnect).collect();
        let refs: Vec<&Event<'static>> = events.iter().collect();
        let added = queue.add(&refs).expect("written");
        assert!((1..10).contains(&added), "{added}");
        let (done, told) = oneshot::channel();
        let queue = put_by(
            queue,
            vec![Ending {
                event: disconnect(11),
                done: Some(done),
            }],
        );
        assert_eq!(told.blocking_recv(), Ok(false));
        assert!(!queue.is_empty());
    }
}
