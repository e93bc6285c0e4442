//! Simulated users for `serve --demo N`, which use the same interface as every publisher: `POST /v1/events`.
//!
//! [`world`] simulates what the users do, without I/O. [`poster`] sends it, on a thread of its own. The demo has no
//! other access to the server, so it can do only what any publisher can. It deliberately does not listen to kicks.

mod people;
mod poster;
pub mod world;

use crate::clock::Clock;
use crate::tasks::{self, End};
use poster::Poster;
use reqwest::Url;
use std::sync::Arc;
use std::sync::mpsc::{self, RecvTimeoutError, SyncSender};
use std::thread::JoinHandle;
use std::time::Duration;
use world::DemoWorld;

/// The allowed number of users.
pub const USERS: std::ops::RangeInclusive<u32> = 1..=100_000;

/// The settings of the demo.
#[derive(Clone, Debug)]
pub struct DemoSettings {
    /// The server's URL: `http://127.0.0.1:8080`.
    pub url: Url,
    /// Sent as `Authorization: Bearer`. The token must allow publishing; if it lacks the rights of an operator, there
    /// are no kicks.
    pub token: Option<String>,
    /// How many users. A number outside of [`USERS`] becomes the nearest one in it.
    pub users: u32,
}

/// The running demo. It runs until it is stopped or dropped.
pub struct Demo {
    /// `None` when it is stopping.
    stop: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

/// How often the world advances.
const STEP: Duration = Duration::from_millis(250);

/// Starts the demo. The server may still be starting: the first events wait for it.
pub fn start(settings: DemoSettings, clock: Arc<dyn Clock>) -> Demo {
    let (stop, stopping) = mpsc::sync_channel(1);
    let run = move || {
        let users = settings.users.clamp(*USERS.start(), *USERS.end());
        // Wall time may step; the world's people do not. So only the beginning is taken from wall time.
        let began_ms = clock.now_ms();
        let began = clock.monotonic_ms();
        let mut world = DemoWorld::new(users, began_ms);
        let poster = Poster::new(&settings.url, settings.token.as_deref(), stopping);
        let mut poster = match poster {
            Ok(poster) => poster,
            Err(error) => {
                tracing::warn!(%error, "cannot make a client for the simulated users, running without them");
                return End::Asked;
            }
        };
        loop {
            let now_ms = began_ms + clock.monotonic_ms().saturating_sub(began);
            // While the server accepts nothing, the world waits here.
            if poster.post(world.advance(now_ms)).is_break() || poster.pause(STEP).is_break() {
                return End::Asked;
            }
        }
    };
    let thread = tasks::spawn("demo", run)
        .inspect_err(
            |error| tracing::warn!(%error, "cannot start the thread of the simulated users, running without them"),
        )
        .ok();
    Demo {
        stop: Some(stop),
        thread,
    }
}

impl Demo {
    /// Sends nothing more and waits for the request in progress, if any.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        // The poster treats the closed channel as the signal to stop.
        self.stop = None;
        if let Some(thread) = self.thread.take() {
            // A panic was noted where it was caught.
            let _ = thread.join();
        }
    }
}

impl Drop for Demo {
    fn drop(&mut self) {
        self.end();
    }
}

/// Waits on the channel that signals the end. Returns whether the end came.
fn is_over(stopping: &mpsc::Receiver<()>, within: Duration) -> bool {
    stopping.recv_timeout(within) != Err(RecvTimeoutError::Timeout)
}
