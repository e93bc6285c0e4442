//! A small HTTP client over a socket: it sends any bytes, valid or not, and each of its waits is bounded.

use serde_json::Value;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

/// No answer within this is a failure; far more than any test needs.
pub const PATIENCE: Duration = Duration::from_secs(60);

pub struct Reply {
    pub status: u16,
    headers: Vec<(String, String)>,
    pub body: String,
}

impl Reply {
    pub fn header(&self, name: &str) -> Option<&str> {
        find(&self.headers, name)
    }

    #[track_caller]
    pub fn json(&self) -> Value {
        assert_eq!(self.header("content-type"), Some("application/json"), "{}", self.body);
        serde_json::from_str(&self.body).unwrap_or_else(|error| panic!("{error}: {}", self.body))
    }

    /// The JSON of a request that worked.
    #[track_caller]
    pub fn ok(&self) -> Value {
        assert_eq!(self.status, 200, "{}", self.body);
        self.json()
    }

    /// The `error` of a request that did not, which always has the one shape.
    #[track_caller]
    pub fn error(&self, status: u16, code: &str) -> Value {
        assert_eq!(self.status, status, "{}", self.body);
        let json = self.json();
        assert_eq!(json.as_object().map(|object| object.len()), Some(1), "{json}");
        let error = &json["error"];
        assert_eq!(error["code"], code, "{json}");
        let message = error["message"].as_str().unwrap_or_default();
        assert!(!message.is_empty(), "{json}");
        error.clone()
    }
}

fn find<'h>(headers: &'h [(String, String)], name: &str) -> Option<&'h str> {
    let mut headers = headers.iter();
    headers
        .find(|(other, _)| other.eq_ignore_ascii_case(name))
        .map(|(_, value)| value.as_str())
}

/// Someone at an address, with headers that go with everything they send.
#[derive(Clone)]
pub struct Client {
    pub address: SocketAddr,
    headers: Vec<(String, String)>,
}

impl Client {
    pub fn new(address: SocketAddr) -> Client {
        Client {
            address,
            headers: Vec::new(),
        }
    }

    /// The same with one more header, or another `Host`.
    pub fn with(&self, name: &str, value: impl Into<String>) -> Client {
        let mut client = self.clone();
        client.headers.push((name.to_owned(), value.into()));
        client
    }

    pub fn token(&self, token: &str) -> Client {
        self.with("Authorization", format!("Bearer {token}"))
    }

    #[track_caller]
    pub fn get(&self, path: &str) -> Reply {
        self.send("GET", path, b"")
    }

    #[track_caller]
    pub fn post(&self, path: &str, body: impl AsRef<[u8]>) -> Reply {
        self.send("POST", path, body.as_ref())
    }

    #[track_caller]
    pub fn send(&self, method: &str, path: &str, body: &[u8]) -> Reply {
        let mut stream = self.open(method, path, Some(body.len()));
        // A server may answer before it has read the whole body.
        let _ = stream.write_all(body);
        let (status, headers, mut rest) = head(stream);
        let mut bytes = Vec::new();
        // A subscription has no end; tests do not use this function for one.
        if find(&headers, "content-type") == Some("text/event-stream") {
            rest = BufReader::new(Box::new(io::empty()));
        }
        rest.read_to_end(&mut bytes).expect("the body is readable");
        Reply {
            status,
            headers,
            body: String::from_utf8(bytes).expect("UTF-8"),
        }
    }

    /// Sends the head of a request, and nothing more.
    pub fn open(&self, method: &str, path: &str, length: Option<usize>) -> TcpStream {
        let mut text = format!("{method} {path} HTTP/1.1\r\n");
        if find(&self.headers, "host").is_none() {
            text.push_str(&format!("Host: {}\r\n", self.address));
        }
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        if let Some(length) = length {
            text.push_str(&format!("Content-Length: {length}\r\nConnection: close\r\n"));
        }
        text.push_str("\r\n");
        let mut stream = TcpStream::connect(self.address).expect("connected");
        stream.set_read_timeout(Some(PATIENCE)).expect("set");
        stream.set_write_timeout(Some(PATIENCE)).expect("set");
        stream.write_all(text.as_bytes()).expect("the head is taken");
        stream
    }

    /// Opens a subscription. It has begun: what is appended from now on, it sees.
    #[track_caller]
    pub fn follow(&self, path: &str) -> Follower {
        let (status, headers, lines) = head(self.open("GET", path, None));
        assert_eq!(status, 200);
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        let mut follower = Follower { lines };
        let hello = follower.block().expect("it begins with a comment");
        assert!(hello.contains("\n: from "), "{hello:?}");
        follower
    }

    /// Opens a subscription that is refused within the stream; how.
    #[track_caller]
    pub fn follow_refused(&self, path: &str) -> Received {
        let (status, headers, lines) = head(self.open("GET", path, None));
        assert_eq!(status, 200);
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        Follower { lines }.next()
    }

    /// Opens a subscription whose filter is a body.
    #[track_caller]
    pub fn follow_with(&self, path: &str, body: &str) -> Follower {
        let mut stream = self.open("POST", path, Some(body.len()));
        stream.write_all(body.as_bytes()).expect("the body is taken");
        let (status, headers, lines) = head(stream);
        assert_eq!(status, 200);
        assert_eq!(find(&headers, "content-type"), Some("text/event-stream"));
        let mut follower = Follower { lines };
        let hello = follower.block().expect("it begins with a comment");
        assert!(hello.contains("\n: from "), "{hello:?}");
        follower
    }

    /// Waits until the record at an offset of a user's partition is folded. The server waits a few seconds for it, so
    /// on a slow machine it is asked again.
    #[track_caller]
    pub fn user_at(&self, user: &str, offset: &Value) -> Reply {
        let began = Instant::now();
        loop {
            let reply = self.get(&format!("/v1/users/{}?at_least={offset}", encoded(user)));
            if reply.status != 503 || began.elapsed() > PATIENCE {
                return reply;
            }
        }
    }

    /// Posts events that are fine; what was appended.
    #[track_caller]
    pub fn publish(&self, events: &[Value]) -> Vec<Value> {
        let reply = self.post("/v1/events", serde_json::to_vec(events).expect("JSON"));
        let appended = reply.ok()["appended"].as_array().expect("an array").clone();
        assert_eq!(appended.len(), events.len());
        appended
    }
}

/// A text as one segment of a path.
pub fn encoded(text: &str) -> String {
    text.bytes()
        .map(|byte| match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' => char::from(byte).to_string(),
            _ => format!("%{byte:02X}"),
        })
        .collect()
}

type Body = BufReader<Box<dyn Read + Send>>;

fn head(stream: TcpStream) -> (u16, Vec<(String, String)>, Body) {
    let mut stream = BufReader::new(stream);
    let mut line = || {
        let mut line = String::new();
        stream.read_line(&mut line).expect("an answer");
        assert!(line.ends_with("\r\n"), "the answer is cut off: {line:?}");
        line.trim_end().to_owned()
    };
    let status = line();
    let status = status.split(' ').nth(1).and_then(|status| status.parse().ok());
    let mut headers = Vec::new();
    loop {
        let line = line();
        let Some((name, value)) = line.split_once(':') else {
            break;
        };
        headers.push((name.to_owned(), value.trim().to_owned()));
    }
    let body: Box<dyn Read + Send> = match find(&headers, "transfer-encoding") {
        Some("chunked") => Box::new(Chunked { stream, left: 0 }),
        _ => {
            let length = find(&headers, "content-length").map_or(0, |length| length.parse().expect("a length"));
            Box::new(stream.take(length))
        }
    };
    (status.expect("a status"), headers, BufReader::new(body))
}

/// Takes a chunked body apart.
struct Chunked {
    stream: BufReader<TcpStream>,
    left: usize,
}

impl Chunked {
    fn line(&mut self) -> io::Result<String> {
        let mut line = String::new();
        self.stream.read_line(&mut line)?;
        Ok(line.trim_end().to_owned())
    }
}

impl Read for Chunked {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        if self.left == 0 {
            let size = self.line()?;
            self.left = usize::from_str_radix(&size, 16)
                .map_err(|_| io::Error::new(io::ErrorKind::UnexpectedEof, "the body is cut off"))?;
            if self.left == 0 {
                self.line()?;
                return Ok(0);
            }
        }
        let most = into.len().min(self.left);
        let count = self.stream.read(&mut into[..most])?;
        self.left -= count;
        if self.left == 0 {
            self.line()?;
        }
        Ok(count)
    }
}

/// What a subscription brings.
#[derive(Clone, PartialEq, Debug)]
pub struct Received {
    pub name: String,
    pub id: String,
    pub data: String,
}

impl Received {
    #[track_caller]
    pub fn json(&self) -> Value {
        serde_json::from_str(&self.data).expect("JSON")
    }
}

/// An open subscription. It is taken apart here, and not by the reader of the API, since what is on the wire is tested; other tests
/// read with `tests/stream`.
pub struct Follower {
    lines: Body,
}

impl Follower {
    /// The next lines up to an empty one; none where the stream has ended as it should.
    pub fn block(&mut self) -> Option<String> {
        let mut block = String::new();
        loop {
            let before = block.len();
            match self
                .lines
                .read_line(&mut block)
                .expect("the stream goes on or ends well")
            {
                0 if block.is_empty() => return None,
                0 => panic!("the stream is cut off after {block:?}"),
                _ if &block[before..] == "\n" => {
                    block.truncate(before);
                    return Some(block);
                }
                _ => {}
            }
        }
    }

    /// The next event, past comments and bare cursors; none at the end.
    pub fn next_or_end(&mut self) -> Option<Received> {
        let mut waited = 0;
        loop {
            let block = self.block()?;
            // These come for ever, ten seconds apart.
            waited += u64::from(block == ": still here\n") * 10;
            assert!(waited <= PATIENCE.as_secs(), "what is waited for does not come");
            let field = |name: &str| {
                let line = block.lines().find_map(|line| line.strip_prefix(name));
                line.and_then(|line| line.strip_prefix(": ")).map(str::to_owned)
            };
            if let Some(data) = field("data") {
                return Some(Received {
                    name: field("event").unwrap_or_default(),
                    id: field("id").unwrap_or_default(),
                    data,
                });
            }
        }
    }

    #[track_caller]
    pub fn next(&mut self) -> Received {
        self.next_or_end().expect("the stream goes on")
    }

    #[track_caller]
    pub fn take(&mut self, count: usize) -> Vec<Received> {
        (0..count).map(|_| self.next()).collect()
    }
}
