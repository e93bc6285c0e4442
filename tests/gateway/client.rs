//! A client on a real socket.

use futures_util::{SinkExt as _, StreamExt as _};
use serde_json::{Value, json};
use std::net::SocketAddr;
use std::time::Duration;
use tokio::net::{TcpSocket, TcpStream};
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::error::Error;
use tokio_tungstenite::tungstenite::http::{HeaderName, HeaderValue};
use tokio_tungstenite::{WebSocketStream, client_async};

/// Longer than anything here takes; what is waited for longer does not come.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// What a client receives.
#[derive(Clone, PartialEq, Debug)]
pub enum Heard {
    Frame(Value),
    /// The code with which the gateway closed.
    Closed(u16),
    /// The connection ended without a close frame.
    Gone,
}

pub struct Client {
    pub socket: WebSocketStream<TcpStream>,
}

/// A connection that was refused before it was a WebSocket.
#[derive(Debug)]
pub struct Refused {
    pub status: u16,
    pub code: String,
    pub retry_after: Option<u64>,
}

/// How to connect.
#[derive(Clone)]
pub struct Dial {
    pub address: SocketAddr,
    /// Where the connection comes from, if that matters.
    pub from: Option<&'static str>,
    pub query: String,
    pub headers: Vec<(&'static str, String)>,
}

impl Dial {
    pub fn new(address: SocketAddr, query: impl Into<String>) -> Dial {
        Dial {
            address,
            from: None,
            query: query.into(),
            headers: Vec::new(),
        }
    }

    pub fn header(mut self, name: &'static str, value: impl Into<String>) -> Dial {
        self.headers.push((name, value.into()));
        self
    }

    pub async fn stream(&self) -> TcpStream {
        let socket = TcpSocket::new_v4().expect("a socket");
        if let Some(from) = self.from {
            let from = format!("{from}:0").parse().expect("an address");
            socket.bind(from).expect("one of this machine");
        }
        socket.connect(self.address).await.expect("connected")
    }

    pub async fn open(&self) -> Result<Client, Refused> {
        let url = format!("ws://{}/?{}", self.address, self.query);
        let mut request = url.into_client_request().expect("an address");
        for (name, value) in &self.headers {
            let value = HeaderValue::from_str(value).expect("a header");
            request.headers_mut().insert(HeaderName::from_static(name), value);
        }
        let opened = tokio::time::timeout(PATIENCE, client_async(request, self.stream().await)).await;
        match opened.expect("answered") {
            Ok((socket, _)) => Ok(Client { socket }),
            Err(Error::Http(response)) => {
                let header = response
                    .headers()
                    .get("retry-after")
                    .and_then(|value| value.to_str().ok());
                let body: Value =
                    serde_json::from_slice(response.body().as_deref().unwrap_or_default()).unwrap_or_default();
                Err(Refused {
                    status: response.status().as_u16(),
                    code: body["error"]["code"].as_str().unwrap_or_default().to_owned(),
                    retry_after: header.and_then(|value| value.parse().ok()),
                })
            }
            Err(error) => panic!("{error}"),
        }
    }

    pub async fn refused(&self) -> Refused {
        match self.open().await {
            Ok(_) => panic!("it was let in: {}", self.query),
            Err(refused) => refused,
        }
    }
}

impl Client {
    /// What comes next but pings, which are answered.
    pub async fn hear(&mut self) -> Heard {
        let next = async {
            loop {
                match self.socket.next().await {
                    Some(Ok(Message::Ping(_))) => {}
                    other => return other,
                }
            }
        };
        match tokio::time::timeout(PATIENCE, next).await.expect("something comes") {
            Some(Ok(Message::Text(text))) => Heard::Frame(serde_json::from_str(&text).expect("JSON")),
            Some(Ok(Message::Close(frame))) => Heard::Closed(frame.map_or(0, |frame| frame.code.into())),
            Some(Ok(other)) => panic!("nothing of this kind is sent: {other:?}"),
            Some(Err(_)) | None => Heard::Gone,
        }
    }

    /// The next frame.
    pub async fn frame(&mut self) -> Value {
        match self.hear().await {
            Heard::Frame(frame) => frame,
            other => panic!("no frame but {other:?}"),
        }
    }

    /// The next frame of a type; others are passed over.
    pub async fn frame_of(&mut self, kind: &str) -> Value {
        loop {
            let frame = self.frame().await;
            if frame["type"] == kind {
                return frame;
            }
        }
    }

    /// How it was closed, past frames.
    pub async fn closed(&mut self) -> Heard {
        loop {
            match self.hear().await {
                Heard::Frame(_) => {}
                other => return other,
            }
        }
    }

    pub async fn say(&mut self, frame: Value) {
        self.send(Message::text(frame.to_string())).await;
    }

    pub async fn send(&mut self, message: Message) {
        self.socket.send(message).await.expect("sent");
    }

    /// Says something and gives the answer.
    pub async fn ask(&mut self, frame: Value) -> Value {
        self.say(frame).await;
        self.frame().await
    }

    /// Sends a heartbeat and waits until it was answered.
    pub async fn beat(&mut self) {
        self.say(json!({"type": "heartbeat"})).await;
        self.frame_of("alive").await;
    }
}
