//! The door: from an accepted socket to a known user, or to a refusal that says why.
//!
//! What can be judged before the WebSocket begins is answered as HTTP: who stands at the door is told with a status and
//! a body. A token in the subprotocol is judged afterwards, since a page in a browser is shown no status, only how a
//! WebSocket was closed.

use super::frames::{self, Close, Said};
use super::limits::{Place, network_of};
use super::session;
use super::tls::Stream;
use super::uplink::Pace;
use super::{Edge, Phase, unanswered};
use crate::config::gateway::Admission;
use crate::metrics;
use crate::presence::event::{Intent, bounds};
use futures_util::{SinkExt as _, StreamExt as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::handshake::server::{ErrorResponse, Request, Response};
use tokio_tungstenite::tungstenite::http::{HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, WebSocketConfig};
use tokio_tungstenite::{WebSocketStream, accept_hdr_async_with_config};

/// What a gateway speaks; what a client offers beside a token in the subprotocol.
pub const PROTOCOL: &str = "rollcall.v1";
const BEARER_PREFIX: &str = "bearer.";
/// A connection is idle nearly always, so its buffer is small; a longer frame lets it grow.
const READ_BUFFER_BYTES: usize = 1 << 10;
/// Seconds after which who was refused for a while may try again: at least, and how much chance may add.
const RETRY_AFTER_S: (u64, u64) = (1, 5);
const TOKEN_BYTES_MAX: usize = 8 << 10;

/// Who stands at the door, by what the request says.
#[derive(Debug)]
pub struct Visitor {
    pub platform: String,
    pub device: String,
    pub intent: Intent,
    /// Address and version of the client, for the log.
    pub client: String,
    /// Who they are, if that is known already.
    user: Option<String>,
    /// A token that was not looked at yet.
    token: Option<String>,
    address: Place<IpAddr>,
}

/// Who was let in.
pub struct Guest {
    pub user: String,
    pub visitor: Visitor,
    pub pace: Pace,
    place: Place<Box<str>>,
}

/// What a connection takes of the limits, given back with it.
pub struct Places {
    _user: Place<Box<str>>,
    _address: Place<IpAddr>,
}

impl Guest {
    /// Only what a connection keeps for as long as it lasts.
    pub fn places(self) -> Places {
        Places {
            _user: self.place,
            _address: self.visitor.address,
        }
    }
}

struct Refusal {
    status: StatusCode,
    code: &'static str,
    message: String,
    retry: bool,
}

fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal {
        status,
        code,
        message: message.into(),
        retry: false,
    }
}

fn later(status: StatusCode, code: &'static str, message: &str) -> Refusal {
    Refusal {
        retry: true,
        ..refusal(status, code, message)
    }
}

/// Seconds, spread so that those who were refused together do not come back together.
fn retry_after_s(edge: &Edge) -> u64 {
    RETRY_AFTER_S.0 + edge.chance(RETRY_AFTER_S.1 - RETRY_AFTER_S.0 + 1)
}

impl Refusal {
    fn response(self, edge: &Edge) -> ErrorResponse {
        metrics::gateway_refused(self.code);
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}}).to_string();
        let mut response = ErrorResponse::new(None);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        if self.status == StatusCode::UNAUTHORIZED {
            headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
        }
        if self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s(edge)));
        }
        *response.body_mut() = Some(body);
        response
    }
}

/// One value of the query string.
fn parameter(query: &str, name: &str) -> Option<String> {
    let mut pairs = form_urlencoded::parse(query.as_bytes());
    pairs.find(|(key, _)| key == name).map(|(_, value)| value.into_owned())
}

fn bounded(query: &str, name: &'static str, (least, most): (usize, usize)) -> Result<String, Refusal> {
    let value = parameter(query, name).unwrap_or_default();
    if (least..=most).contains(&value.len()) {
        return Ok(value);
    }
    let message = format!("`{name}` must have {least} to {most} bytes, not {}", value.len());
    Err(refusal(StatusCode::BAD_REQUEST, "bad_parameter", message))
}

/// Where a token stands: in the header, or after `bearer.` among the subprotocols.
enum Shown {
    Header(String),
    Subprotocol(String),
    Nothing,
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim)
}

fn shown(headers: &HeaderMap) -> Shown {
    let header = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
    if let Some((scheme, token)) = header.and_then(|text| text.split_once(' '))
        && scheme.eq_ignore_ascii_case("bearer")
    {
        return Shown::Header(token.trim().to_owned());
    }
    let mut bearer = subprotocols(headers).filter_map(|text| text.strip_prefix(BEARER_PREFIX));
    bearer
        .next()
        .map_or(Shown::Nothing, |token| Shown::Subprotocol(token.to_owned()))
}

/// Without tokens a page from elsewhere could come in through somebody's browser, so it must be of this machine.
fn is_of_this_machine(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let origin = origin.to_str().ok().and_then(|text| url::Url::parse(text).ok());
    match origin.as_ref().and_then(url::Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn address_of(edge: &Edge, headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
    let forwarded = || {
        let last = headers.get_all("x-forwarded-for").into_iter().next_back()?;
        last.to_str().ok()?.rsplit(',').next()?.trim().parse().ok()
    };
    let forwarded = if edge.config.trust_forwarded { forwarded() } else { None };
    forwarded.unwrap_or(peer.ip())
}

/// Judges a request.
fn judge(edge: &Edge, request: &Request, peer: SocketAddr) -> Result<Visitor, Refusal> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match edge.phase() {
        Phase::Open => {}
        Phase::Stopping => {
            return Err(later(
                unavailable,
                "stopping",
                "this gateway is stopping; connect to another",
            ));
        }
    }
    if !edge.log_is_well() {
        let message = "the log takes nothing at the moment, so nobody can come online here";
        return Err(later(unavailable, "log_unavailable", message));
    }
    if edge.roster.count() >= edge.config.connections_max {
        return Err(later(
            unavailable,
            "full",
            "this gateway has as many connections as it may",
        ));
    }
    let headers = request.headers();
    let address = address_of(edge, headers, peer);
    let Some(place) = edge.addresses.take(network_of(address)) else {
        let message = "there are too many connections from this address";
        return Err(later(StatusCode::TOO_MANY_REQUESTS, "too_many_of_address", message));
    };
    let query = request.uri().query().unwrap_or_default();
    let platform = bounded(query, "platform", bounds::PLATFORM_BYTES)?;
    let device = bounded(query, "device", bounds::DEVICE_BYTES)?;
    let intent = match parameter(query, "intent").as_deref() {
        Some("login") => Intent::Login,
        Some("resume") => Intent::Resume,
        _ => {
            let message = "`intent` must be login (a person logs in) or resume (the client comes back by itself)";
            return Err(refusal(StatusCode::BAD_REQUEST, "bad_parameter", message));
        }
    };
    let mut client = address.to_string();
    if let Some(app) = parameter(query, "app").filter(|app| !app.is_empty()) {
        client = format!("{client} {app}");
        client.truncate(client.floor_char_boundary(bounds::CLIENT_BYTES.1));
    }
    let mut visitor = Visitor {
        platform,
        device,
        intent,
        client,
        user: None,
        token: None,
        address: place,
    };
    match (&edge.config.admission, shown(headers)) {
        (Admission::Insecure, _) => {
            if !is_of_this_machine(headers) {
                let message = "without tokens only pages of this machine are served";
                return Err(refusal(StatusCode::FORBIDDEN, "foreign_origin", message));
            }
            visitor.user = Some(bounded(query, "user", bounds::USER_BYTES)?);
        }
        (Admission::Tokens(_), Shown::Header(token)) => {
            let bearer = edge.bearer(&token, &visitor);
            let refused = |message| refusal(StatusCode::UNAUTHORIZED, "unauthorized", message);
            visitor.user = Some(bearer.map_err(refused)?);
        }
        (Admission::Tokens(_), Shown::Subprotocol(token)) => visitor.token = Some(token),
        (Admission::Tokens(_), Shown::Nothing) => {}
    }
    Ok(visitor)
}

/// Takes a socket through the door, within the time that a handshake may take.
pub async fn enter(edge: Arc<Edge>, stream: TcpStream, peer: SocketAddr) {
    let entering = tokio::time::timeout(edge.config.handshake, handshake(&edge, stream, peer));
    match entering.await {
        Ok(Some((socket, guest))) => {
            // A task of its own, for the handshake's memory to go.
            tokio::spawn(session::run(edge, socket, guest));
        }
        Ok(None) => {}
        Err(_) => metrics::gateway_refused("handshake_time"),
    }
}

pub type Socket = WebSocketStream<Stream>;

#[expect(clippy::result_large_err, reason = "the library's callback answers so")]
async fn handshake(edge: &Edge, stream: TcpStream, peer: SocketAddr) -> Option<(Socket, Guest)> {
    let stream = match &edge.certificate {
        Some(certificate) => match certificate.accept(stream).await {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!("no TLS with {peer}: {error}");
                metrics::gateway_refused("tls");
                return None;
            }
        },
        None => Stream::Plain(stream),
    };
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(edge.config.message_bytes_max))
        .max_frame_size(Some(edge.config.message_bytes_max));
    let mut visitor = None;
    let callback = |request: &Request, mut response: Response| match judge(edge, request, peer) {
        Ok(who) => {
            visitor = Some(who);
            if subprotocols(request.headers()).any(|text| text == PROTOCOL) {
                let protocol = HeaderValue::from_static(PROTOCOL);
                response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
            }
            Ok(response)
        }
        Err(refusal) => Err(refusal.response(edge)),
    };
    let mut socket = match accept_hdr_async_with_config(stream, callback, Some(config)).await {
        Ok(socket) => socket,
        Err(error) => {
            tracing::debug!("no WebSocket with {peer}: {error}");
            return None;
        }
    };
    let mut visitor = visitor?;
    let user = match visitor.user.take() {
        Some(user) => Ok(user),
        None => token(edge, &mut socket, &mut visitor).await?,
    };
    match admit(edge, user, visitor).await {
        Ok(guest) => Some((socket, guest)),
        Err((close, code, message)) => {
            metrics::gateway_refused(code);
            turn_away(edge, &mut socket, close, code, &message).await;
            None
        }
    }
}

/// The user of the token in the subprotocol or in the first frame; none if the client went away.
async fn token(edge: &Edge, socket: &mut Socket, visitor: &mut Visitor) -> Option<Result<String, String>> {
    if let Some(token) = visitor.token.take() {
        return Some(edge.bearer(&token, visitor));
    }
    loop {
        match socket.next().await?.ok()? {
            Message::Text(text) if text.len() <= TOKEN_BYTES_MAX => {
                let Ok((Said::Auth { token }, _)) = frames::read(&text) else {
                    return Some(Err("the first frame must be `auth` with a token".to_owned()));
                };
                return Some(edge.bearer(&token, visitor));
            }
            Message::Text(_) | Message::Binary(_) => {
                return Some(Err("the first frame must be `auth` with a token".to_owned()));
            }
            Message::Close(_) => return None,
            Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => {}
        }
    }
}

type TurnedAway = (Close, &'static str, String);

async fn admit(edge: &Edge, user: Result<String, String>, visitor: Visitor) -> Result<Guest, TurnedAway> {
    let user = user.map_err(|message| (Close::Unauthorized, "unauthorized", message))?;
    let pace = match edge.pace(&visitor.platform).await {
        Ok(Some(pace)) => pace,
        Ok(None) => {
            let message = format!("there is no platform {:?} in the policy", visitor.platform);
            return Err((Close::BadRequest, "unknown_platform", message));
        }
        Err(error) => return Err((Close::Later, "not_ready", unanswered(&error).to_owned())),
    };
    let Some(place) = edge.users.take(user.as_str().into()) else {
        let message = "this user has too many connections here".to_owned();
        return Err((Close::TooMany, "too_many_of_user", message));
    };
    Ok(Guest {
        user,
        visitor,
        pace,
        place,
    })
}

/// Says why in a frame, then closes; all of it within the time of the handshake.
async fn turn_away(edge: &Edge, socket: &mut Socket, close: Close, code: &str, message: &str) {
    let retry_ms = (close == Close::Later).then(|| retry_after_s(edge) * 1_000);
    let said = frames::error(None, code, message, retry_ms);
    let _ = socket.send(Message::Text(said.into())).await;
    close_with(socket, close).await;
}

/// Closes and waits for the other end to do so too; the caller bounds the time.
pub async fn close_with(socket: &mut Socket, close: Close) {
    let frame = CloseFrame {
        code: close.code().into(),
        reason: close.name().into(),
    };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        while let Some(Ok(_)) = socket.next().await {}
    }
}
