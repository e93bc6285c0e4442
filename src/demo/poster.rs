//! Sends the world's events to the server, in order, until it is asked to stop.
//!
//! A request that the server did not accept (it is busy, stopping, or not there) is sent again, with growing pauses.
//! The server recognizes duplicates, since no connection begins twice. A request that the server refuses is dropped.
//! Each of the two is logged once, and again only after a success in between.

use super::is_over;
use super::world::DemoEvent;
use crate::api::client::{Client, ClientError, passes};
use crate::api::routes::RouteId;
use crate::backoff;
use crate::cause::reason;
use reqwest::{StatusCode, Url};
use std::ops::ControlFlow;
use std::sync::mpsc::Receiver;
use std::time::Duration;
use tokio::runtime::Runtime;

/// The greatest number of events in one request.
const EVENTS_MAX: usize = 1_000;
const BODY_BYTES_MAX: usize = 512 * 1024;
const TIMEOUT: Duration = Duration::from_secs(5);

pub struct Poster {
    runtime: Runtime,
    server: Client,
    stopping: Receiver<()>,
    /// Whether a warning was logged and no request has succeeded since.
    is_warned: bool,
    /// Whether the server does not allow us what operators may do.
    is_no_operator: bool,
}

impl Poster {
    pub fn new(url: &Url, token: Option<&str>, stopping: Receiver<()>) -> anyhow::Result<Poster> {
        // The server is this process, so no proxy is used, whatever the environment says.
        let http = reqwest::Client::builder().no_proxy().timeout(TIMEOUT).build()?;
        Ok(Poster {
            runtime: tokio::runtime::Builder::new_current_thread().enable_all().build()?,
            server: Client::new(http, url, token),
            stopping,
            is_warned: false,
            is_no_operator: false,
        })
    }

    /// Sends all events, retrying as often as needed. Breaks when it is time to stop.
    pub fn post(&mut self, happenings: Vec<DemoEvent>) -> ControlFlow<()> {
        for part in requests(&happenings) {
            let by_operator = part.first().is_some_and(|first| first.by_operator);
            if by_operator && self.is_no_operator {
                continue;
            }
            let body = body(part);
            let mut backoff = backoff::DEMO.start();
            loop {
                if is_over(&self.stopping, Duration::ZERO) {
                    return ControlFlow::Break(());
                }
                let posted = self.server.post_bytes(RouteId::Events, body.clone());
                let why = match self.runtime.block_on(posted) {
                    Ok(_) => {
                        self.is_warned = false;
                        break;
                    }
                    Err(ClientError::Refused { status, .. }) if by_operator && status == StatusCode::FORBIDDEN => {
                        self.is_no_operator = true;
                        break;
                    }
                    Err(ClientError::Refused { status, detail, .. }) if !passes(status) => {
                        self.warn(&format!("the server refused them, {status}: {}", detail.message));
                        break;
                    }
                    Err(ClientError::Unreached(error)) => format!("the server is unreachable: {}", reason(error)),
                    Err(error @ (ClientError::Refused { .. } | ClientError::Unreadable { .. })) => {
                        format!("the server responded with {error}")
                    }
                };
                self.warn(&why);
                self.pause(backoff.pause())?;
            }
        }
        ControlFlow::Continue(())
    }

    /// Pauses. Breaks when it is time to stop.
    pub fn pause(&self, pause: Duration) -> ControlFlow<()> {
        match is_over(&self.stopping, pause) {
            true => ControlFlow::Break(()),
            false => ControlFlow::Continue(()),
        }
    }

    fn warn(&mut self, why: &str) {
        if !self.is_warned {
            self.is_warned = true;
            tracing::warn!("events of the simulated users are delayed or lost: {why}");
        }
    }
}

/// Splits events into requests. An operator's event goes alone, since the server may refuse only that one.
fn requests(happenings: &[DemoEvent]) -> Vec<&[DemoEvent]> {
    let mut requests = Vec::new();
    let (mut start, mut bytes) = (0, 0);
    for (number, happening) in happenings.iter().enumerate() {
        bytes += happening.json.len() + 1;
        let is_full = number - start == EVENTS_MAX || bytes > BODY_BYTES_MAX;
        let is_apart = number > start && (happening.by_operator || happenings[number - 1].by_operator);
        if number > start && (is_full || is_apart) {
            requests.push(&happenings[start..number]);
            (start, bytes) = (number, happening.json.len() + 1);
        }
    }
    if start < happenings.len() {
        requests.push(&happenings[start..]);
    }
    requests
}

fn body(happenings: &[DemoEvent]) -> Vec<u8> {
    let events: Vec<&str> = happenings.iter().map(|happening| happening.json.as_str()).collect();
    format!("[{}]", events.join(",")).into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead as _, BufReader, Read as _, Write as _};
    use std::net::{TcpListener, TcpStream};
    use std::sync::mpsc;

    fn happening(json: &str, by_operator: bool) -> DemoEvent {
        DemoEvent {
            json: json.to_owned(),
            by_operator,
        }
    }

    #[test]
    fn requests_are_bounded_and_operators_go_alone() {
        let lengths = |happenings: &[DemoEvent]| -> Vec<usize> {
            requests(happenings).iter().map(|request| request.len()).collect()
        };
        let plain = happening("{}", false);
        let kick = happening("{}", true);
        assert_eq!(lengths(&[]), Vec::<usize>::new());
        assert_eq!(lengths(&vec![plain.clone(); 2_500]), [1_000, 1_000, 500]);
        let mixed = [&kick, &plain, &plain, &kick, &kick, &plain].map(DemoEvent::clone);
        assert_eq!(lengths(&mixed), [1, 2, 1, 1, 1]);
        let large = happening(&"x".repeat(300 * 1024), false);
        assert_eq!(lengths(&[large.clone(), plain, large.clone(), large]), [2, 1, 1]);
    }

    fn url(listener: &TcpListener) -> Url {
        let address = listener.local_addr().unwrap();
        format!("http://{address}").parse().unwrap()
    }

    /// Responds to each request on one connection with the next status. Returns each request's head and body.
    fn serve(listener: TcpListener, statuses: &'static [u16]) -> mpsc::Receiver<(String, String)> {
        let (sender, requests) = mpsc::channel();
        std::thread::spawn(move || {
            let mut stream: TcpStream = listener.accept().unwrap().0;
            let mut reader = BufReader::new(stream.try_clone().unwrap());
            for status in statuses {
                let mut head = String::new();
                while !head.ends_with("\r\n\r\n") {
                    assert!(reader.read_line(&mut head).unwrap() > 0);
                }
                let head = head.to_lowercase();
                let length = head.split("content-length: ").nth(1).unwrap();
                let mut body = vec![0; length.split("\r\n").next().unwrap().parse().unwrap()];
                reader.read_exact(&mut body).unwrap();
                sender.send((head, String::from_utf8(body).unwrap())).unwrap();
                write!(stream, "HTTP/1.1 {status} Whatever\r\nContent-Length: 2\r\n\r\n[]").unwrap();
            }
        });
        requests
    }

    #[test]
    fn what_was_not_taken_is_sent_again_and_what_was_refused_is_not() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = url(&listener);
        let received = serve(listener, &[503, 200, 403, 400, 200]);
        let (_stop, stopping) = mpsc::sync_channel(1);
        let mut poster = Poster::new(&url, Some("secret"), stopping).unwrap();
        let mut post = |happenings: &[DemoEvent]| assert!(poster.post(happenings.to_vec()).is_continue());
        post(&[happening("1", false), happening("2", false)]);
        post(&[happening("3", true), happening("4", false), happening("5", true)]);
        post(&[happening("6", false)]);
        let bodies: Vec<String> = received
            .iter()
            .map(|(head, body)| {
                assert!(head.starts_with("post /v1/events http/1.1\r\n"), "{head}");
                assert!(head.contains("authorization: bearer secret\r\n"), "{head}");
                body
            })
            .collect();
        assert_eq!(bodies, ["[1,2]", "[1,2]", "[3]", "[4]", "[6]"]);
    }

    #[test]
    fn it_stops_while_nobody_is_there() {
        // Nobody listens there any more.
        let url = url(&TcpListener::bind("127.0.0.1:0").unwrap());
        let settings = crate::demo::DemoSettings {
            url,
            token: None,
            users: 10,
        };
        let clock = std::sync::Arc::new(crate::clock::SystemClock::new());
        let demo = crate::demo::start(settings, clock);
        std::thread::sleep(Duration::from_millis(600));
        demo.stop();
    }
}
