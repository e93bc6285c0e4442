//! Those who only read, in threads of the soak: queries over HTTP, subscribers to changes, and a WebSocket client that watches
//! users. Each comes and goes, since what a server keeps for them must go with them.

use crate::journal::Got;
use serde_json::json;
use std::io::{ErrorKind, Read as _, Write as _};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tokio_tungstenite::tungstenite::{self, Message};

/// Between two rounds of queries.
const PAUSE: Duration = Duration::from_secs(2);
/// How long a subscriber stays.
const STAY: Duration = Duration::from_secs(20);
/// How long a read waits; then it is looked whether all is over.
const READ: Duration = Duration::from_millis(500);

pub struct Readers {
    ends: Arc<AtomicBool>,
    got: Arc<Mutex<Got>>,
    threads: Vec<JoinHandle<()>>,
}

impl Readers {
    /// Of these engines (their URLs) and this gateway (host and port). `users` are asked about.
    pub fn start(engines: &[String], gateway: &str, users: &[String]) -> Readers {
        let ends = Arc::<AtomicBool>::default();
        let got = Arc::<Mutex<Got>>::default();
        let mut threads = Vec::new();
        for engine in engines {
            let (ends, got) = (ends.clone(), got.clone());
            let host = engine.strip_prefix("http://").expect("a URL of ours").to_owned();
            threads.push(thread::spawn(move || {
                while !ends.load(Ordering::Relaxed) {
                    // A server that is away refuses.
                    let _ = subscribe(&host, &ends, &got);
                    rest(&ends, PAUSE);
                }
            }));
        }
        let (over, answers, engines, asked) = (ends.clone(), got.clone(), engines.to_vec(), users.to_vec());
        threads.push(thread::spawn(move || {
            let mut round = 0;
            while !over.load(Ordering::Relaxed) {
                query(&engines[round % engines.len()], &asked, round, &answers);
                round += 1;
                rest(&over, PAUSE);
            }
        }));
        let (over, frames, gateway, watched) = (ends.clone(), got.clone(), gateway.to_owned(), users.to_vec());
        threads.push(thread::spawn(move || {
            while !over.load(Ordering::Relaxed) {
                let _ = watch(&gateway, &watched, &over, &frames);
                rest(&over, PAUSE);
            }
        }));
        Readers { ends, got, threads }
    }

    pub fn got(&self) -> Got {
        lock(&self.got).clone()
    }
}

impl Drop for Readers {
    fn drop(&mut self) {
        self.ends.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn rest(ends: &AtomicBool, long: Duration) {
    let begun = Instant::now();
    while begun.elapsed() < long && !ends.load(Ordering::Relaxed) {
        thread::sleep(Duration::from_millis(100));
    }
}

/// Each kind of question once. What is asked about the past is of a fixed length.
fn query(engine: &str, users: &[String], round: usize, got: &Mutex<Got>) {
    let config = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(10)))
        .build();
    let agent = ureq::Agent::new_with_config(config);
    let user = users[round % users.len()].replace(' ', "%20");
    let paths = [
        format!("/v1/users/{user}"),
        format!("/v1/users/{user}/changes"),
        // Of the whole log it would grow with the log, and with it what an engine needs to answer: no load that stays the same.
        format!("/v1/users/{user}/history?from=-5m"),
        format!("/v1/users/{user}/why"),
        "/v1/stats".to_owned(),
        "/v1/stats/history".to_owned(),
        "/v1/gateways".to_owned(),
        "/v1/incidents".to_owned(),
        "/v1/policy".to_owned(),
        "/metrics".to_owned(),
    ];
    for path in paths {
        let answer = agent.get(format!("{engine}{path}")).call();
        let (status, body) = match answer {
            Ok(mut answer) => {
                let body = answer.body_mut().read_to_string().unwrap_or_default();
                (answer.status().as_u16(), body)
            }
            Err(_) => (0, String::new()),
        };
        let mut got = lock(got);
        *got.answers.entry(status).or_default() += 1;
        // A user may be unknown or forgotten, and a node may be away or busy.
        let is_expected = matches!(status, 0 | 200 | 404 | 410 | 503);
        if !is_expected && got.complaints.len() < 10 {
            got.complaints.push(format!("GET {path}: {status} {body}"));
        }
    }
}

/// Follows the changes for a while, and leaves by closing the connection.
fn subscribe(host: &str, ends: &AtomicBool, got: &Mutex<Got>) -> std::io::Result<()> {
    let mut stream = TcpStream::connect(host)?;
    stream.set_read_timeout(Some(READ))?;
    write!(
        stream,
        "GET /v1/changes HTTP/1.1\r\nHost: {host}\r\nAccept: text/event-stream\r\n\r\n"
    )?;
    lock(got).subscriptions += 1;
    let begun = Instant::now();
    let mut text = Vec::new();
    let mut bytes = [0; 16_384];
    while begun.elapsed() < STAY && !ends.load(Ordering::Relaxed) {
        match stream.read(&mut bytes) {
            Ok(0) => break,
            Ok(length) => text.extend_from_slice(&bytes[..length]),
            Err(error) if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    let changes = String::from_utf8_lossy(&text).matches("event: change\n").count();
    lock(got).changes += changes as u64;
    Ok(())
}

/// A client that subscribes to users and leaves after a while.
fn watch(gateway: &str, users: &[String], ends: &AtomicBool, got: &Mutex<Got>) -> Result<(), tungstenite::Error> {
    let stream = TcpStream::connect(gateway)?;
    // For the handshake, in which the gateway answers once the connection is in the log.
    stream.set_read_timeout(Some(Duration::from_secs(20)))?;
    let url = format!("ws://{gateway}/?user=watcher&platform=windows&device=desk&intent=login");
    let (mut socket, _) = tungstenite::client(url, stream).map_err(|_| tungstenite::Error::ConnectionClosed)?;
    socket.get_ref().set_read_timeout(Some(READ))?;
    lock(got).watchers += 1;
    let subscription = json!({"type": "subscribe", "users": users.iter().take(200).collect::<Vec<_>>()});
    socket.send(Message::text(subscription.to_string()))?;
    let begun = Instant::now();
    while begun.elapsed() < STAY && !ends.load(Ordering::Relaxed) {
        match socket.read() {
            Ok(Message::Text(text)) if text.contains("\"type\":\"change\"") => lock(got).watched += 1,
            Ok(_) => {}
            Err(tungstenite::Error::Io(error))
                if matches!(error.kind(), ErrorKind::WouldBlock | ErrorKind::TimedOut) => {}
            Err(error) => return Err(error),
        }
    }
    socket.close(None)
}
