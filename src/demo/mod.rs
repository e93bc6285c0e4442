//! Simulated users for `serve --demo N`, coming in through the same door as everybody else: `POST /v1/events`.
//!
//! [`world`] is who they are and what they do, without IO; [`poster`] sends it, on one thread of its own. It has no
//! other path into the server: what it can do, any publisher can. Deliberately absent: it does not listen to kicks.

mod dice;
mod people;
mod poster;
pub mod world;

use crate::clock::Clock;
use poster::Poster;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;
use world::DemoWorld;

/// How many users there may be.
pub const USERS: std::ops::RangeInclusive<u32> = 1..=100_000;

/// What may be chosen.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// Of the server, with scheme and port and nothing after it: `http://127.0.0.1:8080`.
    pub url: String,
    /// Sent as `Authorization: Bearer`. One that may publish; without the right of an operator there are no kicks.
    pub token: Option<String>,
    /// How many, within [`USERS`]; what is outside is taken as its nearest end.
    pub users: u32,
}

/// The running demo. It goes on until it is stopped or dropped.
pub struct Demo {
    /// None when it is stopping.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How often the world moves on.
const STEP: Duration = Duration::from_millis(250);

/// Sets the world going. The server may still be starting: the first events wait for it.
pub fn start(settings: DemoSettings, clock: Arc<dyn Clock>) -> Demo {
    let (stop, stopping) = mpsc::sync_channel(1);
    let run = move || {
        let users = settings.users.clamp(*USERS.start(), *USERS.end());
        // Wall time may step; the world's people do not. So only its beginning is taken from there.
        let began_ms = clock.now_ms();
        let began = clock.monotonic_ms();
        let mut world = DemoWorld::new(users, began_ms);
        let mut poster = Poster::new(&settings.url, settings.token, stopping);
        loop {
            let now_ms = began_ms + clock.monotonic_ms().saturating_sub(began);
            // While the server takes nothing, the world stands still behind this.
            if poster.post(world.advance(now_ms)).is_break() || poster.pause(STEP).is_break() {
                return;
            }
        }
    };
    let thread = std::thread::Builder::new().name("demo".into()).spawn(run);
    let thread = thread
        .inspect_err(|error| tracing::warn!(%error, "the simulated users stay at home: no thread for them"))
        .ok();
    Demo {
        stop: Some(stop),
        thread,
    }
}

impl Demo {
    /// Sends nothing more and waits for what is under way: at most one request.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The poster takes it as the end that nobody can tell it anything any more.
        self.stop = None;
        if let Some(thread) = self.thread.take()
            && thread.join().is_err()
        {
            tracing::error!("the simulated world panicked");
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits on the channel that says the end; whether it came.
fn is_over(stopping: &mpsc::Receiver<()>, within: Duration) -> bool {
    stopping.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
}
