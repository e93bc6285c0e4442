//! The handshake: turns an accepted socket into an authenticated user, or refuses it with a reason.
//!
//! A page in a browser sees neither the status nor the body of a refused handshake, only how a WebSocket was closed. So
//! a client that offers `rollcall.v1` is refused after the WebSocket is open, with a frame and a close code. Other
//! clients, and clients that send a token in a header, are refused with a status and a body. The request is parsed here
//! and not by the library, because the library sends no response to a request that is not a WebSocket, and because it
//! cannot wait for the keys to be read.

use super::frames::{self, Close};
use super::keys::Bearer;
use super::limits::{Permit, network_of};
use super::session;
use super::uplink::Pace;
use super::{GatewayState, Phase, unanswered};
use crate::api::frames::{self as messages, ClientMessage};
use crate::config::gateway::Admission;
use crate::jwks;
use crate::log::TRACE_HEADER;
use crate::metrics;
use crate::presence::event::{Intent, bounds};
use crate::tasks::guarded;
use crate::tls::{NoHandshake, Stream};
use crate::traces::is_traceparent;
use futures_util::{SinkExt as _, StreamExt as _};
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::error::{Error as WsError, ProtocolError};
use tokio_tungstenite::tungstenite::handshake::machine::TryParse as _;
use tokio_tungstenite::tungstenite::handshake::server::{
    ErrorResponse, Request, Response, create_response, write_response,
};
use tokio_tungstenite::tungstenite::http::{self, HeaderMap, HeaderValue, StatusCode, header};
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Message, Role, WebSocketConfig};

/// The subprotocol of a gateway; what a client offers beside a token in the subprotocol header.
pub const PROTOCOL: &str = "rollcall.v1";
const BEARER_PREFIX: &str = "bearer.";
/// A connection is idle nearly all the time, and its buffer is there all the time. A heartbeat and its frame fit, and longer
/// messages are read in parts of this size.
const READ_BUFFER_BYTES: usize = 128;
/// After how many seconds a client that was refused temporarily may retry: the minimum, and the greatest random
/// addition.
const RETRY_AFTER_S: (u64, u64) = (1, 5);
/// How long the client may take to close after the gateway has sent its close frame.
pub const CLOSING: Duration = Duration::from_secs(5);
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The greatest size of a request's head, which may contain a token.
const HEAD_BYTES_MAX: usize = 32 << 10;
const NOT_WEBSOCKET: &str = "this is a WebSocket endpoint: connect to it with ws:// or wss:// and the parameters platform, \
                             device and intent";

/// A client in the handshake, as its request describes it.
#[derive(Debug)]
pub struct Visitor {
    pub platform: String,
    pub device: String,
    pub intent: Intent,
    /// Address and version of the client, for the log.
    pub client: String,
    /// The user, if it is known already.
    user: Option<String>,
    /// When the user authenticated, according to the token.
    pub auth_at_ms: Option<u64>,
    /// A token that was not verified yet.
    token: Option<String>,
    address: Permit<IpAddr>,
    /// The trace of the request, if it has one.
    pub traceparent: Option<Box<str>>,
}

impl Visitor {
    fn let_in(&mut self, bearer: Bearer) {
        self.user = Some(bearer.user);
        self.auth_at_ms = bearer.auth_at_ms;
    }
}

/// A client that passed the handshake.
pub struct AdmittedClient {
    pub user: String,
    pub visitor: Visitor,
    pub pace: Pace,
    place: Permit<Box<str>>,
}

/// What a connection uses of the limits; given back when this is dropped.
pub struct Places {
    _user: Permit<Box<str>>,
    _address: Permit<IpAddr>,
}

impl AdmittedClient {
    /// Keeps only what a connection needs for as long as it lasts.
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
    /// Refuse with this status whatever the client offers: it sent a header, so it can read a status.
    always_http: bool,
}

fn refusal(status: StatusCode, code: &'static str, message: impl Into<String>) -> Refusal {
    Refusal {
        status,
        code,
        message: message.into(),
        retry: false,
        always_http: false,
    }
}

/// The refusal of what is in the header `Authorization`.
fn bad_header(message: String) -> Refusal {
    Refusal {
        always_http: true,
        ..refusal(StatusCode::UNAUTHORIZED, "unauthorized", message)
    }
}

fn later(status: StatusCode, code: &'static str, message: &str) -> Refusal {
    Refusal {
        retry: true,
        ..refusal(status, code, message)
    }
}

/// Returns a random number of seconds, so that clients that were refused together do not come back together.
fn retry_after_s(edge: &GatewayState) -> u64 {
    RETRY_AFTER_S.0 + edge.chance(RETRY_AFTER_S.1 - RETRY_AFTER_S.0 + 1)
}

impl Refusal {
    fn response(&self, edge: &GatewayState) -> ErrorResponse {
        let body = serde_json::json!({"error": {"code": self.code, "message": self.message}}).to_string();
        let mut response = ErrorResponse::new(None);
        *response.status_mut() = self.status;
        let headers = response.headers_mut();
        headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
        headers.insert(header::CONTENT_LENGTH, HeaderValue::from(body.len()));
        headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
        match self.status {
            StatusCode::UNAUTHORIZED => {
                headers.insert(header::WWW_AUTHENTICATE, HeaderValue::from_static("Bearer"));
            }
            StatusCode::UPGRADE_REQUIRED => {
                headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade, close"));
                headers.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
                headers.insert(header::SEC_WEBSOCKET_VERSION, HeaderValue::from_static("13"));
            }
            StatusCode::METHOD_NOT_ALLOWED => {
                headers.insert(header::ALLOW, HeaderValue::from_static("GET"));
            }
            _ => {}
        }
        if self.retry {
            headers.insert(header::RETRY_AFTER, HeaderValue::from(retry_after_s(edge)));
        }
        *response.body_mut() = Some(body);
        response
    }

    /// The close code with the same meaning, for a refusal after the WebSocket is open.
    fn close(&self) -> Close {
        if self.retry { Close::Later } else { Close::BadRequest }
    }
}

/// Returns one value of the query string.
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

/// Where the token is: in a header, or after `bearer.` among the subprotocols.
enum TokenSource {
    Header(String),
    /// In the header is something else.
    OtherHeader,
    Subprotocol(String),
    Nothing,
}

fn subprotocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    let values = headers.get_all(header::SEC_WEBSOCKET_PROTOCOL).into_iter();
    let texts = values.filter_map(|value| value.to_str().ok());
    texts.flat_map(|text| text.split(',')).map(str::trim)
}

fn shown(headers: &HeaderMap) -> TokenSource {
    let header = headers.get(header::AUTHORIZATION);
    if let Some(text) = header.and_then(|value| value.to_str().ok()) {
        let (scheme, token) = text.split_once(' ').unwrap_or((text, ""));
        if scheme.eq_ignore_ascii_case("bearer") {
            return TokenSource::Header(token.trim().to_owned());
        }
    }
    // A page has no influence on this header: a browser adds the password of a site by itself.
    let mut bearer = subprotocols(headers).filter_map(|text| text.strip_prefix(BEARER_PREFIX));
    match (bearer.next(), header) {
        (Some(token), _) => TokenSource::Subprotocol(token.to_owned()),
        (None, Some(_)) => TokenSource::OtherHeader,
        (None, None) => TokenSource::Nothing,
    }
}

/// Returns whether the request comes from a page of this machine. Without tokens, a page from elsewhere could connect
/// through a user's browser.
fn is_of_this_machine(headers: &HeaderMap) -> bool {
    let Some(origin) = headers.get(header::ORIGIN) else {
        return true;
    };
    let origin = origin.to_str().ok().and_then(|text| url::Url::parse(text).ok());
    // A browser extension has an origin of another scheme; it is no page.
    let origin = origin.filter(|origin| matches!(origin.scheme(), "http" | "https"));
    match origin.as_ref().and_then(url::Url::host) {
        Some(url::Host::Domain(name)) => name == "localhost",
        Some(url::Host::Ipv4(address)) => address.is_loopback(),
        Some(url::Host::Ipv6(address)) => address.is_loopback(),
        None => false,
    }
}

fn address_of(edge: &GatewayState, headers: &HeaderMap, peer: SocketAddr) -> IpAddr {
    if !edge.config.trust_forwarded {
        return peer.ip();
    }
    forwarded(headers).unwrap_or_else(|last| {
        if let Some(requests) = edge.unknown_addresses.due(edge.clock.monotonic_ms()) {
            tracing::warn!(
                requests,
                last = jwks::shown(&last),
                proxy = %peer.ip(),
                "requests have no address at the end of X-Forwarded-For, using the proxy's, which has one limit for all of them: \
                 let the proxy append the client's address, or do not set --trust-forwarded"
            );
        }
        peer.ip()
    })
}

/// Returns the last address of `X-Forwarded-For`, without its port, or the text that is there and is no address.
fn forwarded(headers: &HeaderMap) -> Result<IpAddr, String> {
    let header = headers.get_all("x-forwarded-for").into_iter().next_back();
    let text = header.map_or_else(Default::default, |value| String::from_utf8_lossy(value.as_bytes()));
    let last = text.rsplit(',').next().unwrap_or_default().trim();
    let bare = last.strip_prefix('[').and_then(|rest| rest.strip_suffix(']'));
    let address = match last.parse::<SocketAddr>() {
        Ok(address) => Ok(address.ip()),
        Err(_) => bare.unwrap_or(last).parse(),
    };
    address.map_err(|_| last.to_owned())
}

fn traceparent(headers: &HeaderMap) -> Option<Box<str>> {
    let text = headers.get(TRACE_HEADER)?.to_str().ok()?;
    is_traceparent(text.as_bytes()).then(|| text.into())
}

/// Checks a request against limits, parameters and keys.
async fn judge(edge: &GatewayState, request: &Request, peer: SocketAddr) -> Result<Visitor, Refusal> {
    let unavailable = StatusCode::SERVICE_UNAVAILABLE;
    match edge.phase() {
        Phase::Open => {}
        Phase::Stopping => {
            return Err(later(
                unavailable,
                "stopping",
                "this gateway is stopping; connect to another one",
            ));
        }
    }
    if !edge.log_is_well() {
        let message = "the log is unavailable, so no client can connect here; retry later";
        return Err(later(unavailable, "log_unavailable", message));
    }
    if edge.roster.count() >= edge.config.connections_max {
        return Err(later(
            unavailable,
            "full",
            "this gateway has reached its maximum number of connections",
        ));
    }
    let headers = request.headers();
    let address = address_of(edge, headers, peer);
    let Some(place) = edge.addresses.take(network_of(address)) else {
        let message = "too many connections from this address";
        return Err(later(StatusCode::TOO_MANY_REQUESTS, "too_many_of_address", message));
    };
    let query = request.uri().query().unwrap_or_default();
    let platform = bounded(query, "platform", bounds::PLATFORM_BYTES)?;
    let device = bounded(query, "device", bounds::DEVICE_BYTES)?;
    let intent = match parameter(query, "intent").as_deref() {
        Some("login") => Intent::Login,
        Some("resume") => Intent::Resume,
        _ => {
            let message = "`intent` must be login (a person logs in) or resume (the client reconnects by itself)";
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
        auth_at_ms: None,
        token: None,
        address: place,
        traceparent: traceparent(headers),
    };
    match (&edge.config.admission, shown(headers)) {
        (Admission::Insecure, _) => {
            if !is_of_this_machine(headers) {
                let message = "this gateway has no tokens configured, so it accepts only pages from this machine";
                return Err(refusal(StatusCode::FORBIDDEN, "foreign_origin", message));
            }
            visitor.user = Some(bounded(query, "user", bounds::USER_BYTES)?);
        }
        (Admission::Tokens(_), TokenSource::OtherHeader) => {
            return Err(bad_header(
                "the header `Authorization` must be `Bearer TOKEN`".to_owned(),
            ));
        }
        (Admission::Tokens(_), TokenSource::Header(token)) if token.is_empty() => {
            let message = "the header `Authorization` has no token; it must be `Bearer TOKEN`";
            return Err(bad_header(message.to_owned()));
        }
        (Admission::Tokens(_), TokenSource::Header(token)) => {
            let bearer = edge.bearer(&token, &visitor).await.map_err(bad_header)?;
            visitor.let_in(bearer);
        }
        (Admission::Tokens(_), TokenSource::Subprotocol(token)) => visitor.token = Some(token),
        (Admission::Tokens(_), TokenSource::Nothing) => {}
    }
    Ok(visitor)
}

/// Performs the handshake of a socket within the time allowed, and then runs its session. A client whose WebSocket is open is never left
/// without a reason: if the time is over by then, it gets a frame and a close code.
pub async fn enter(edge: Arc<GatewayState>, stream: TcpStream, peer: SocketAddr) {
    let until = edge.clock.monotonic() + edge.config.handshake;
    let (mut socket, judged) = match timeout(edge.config.handshake, open(&edge, stream, peer)).await {
        Ok(Some(opened)) => opened,
        Ok(None) => return,
        Err(_) => return metrics::gateway_refused("handshake_time"),
    };
    match identify(&edge, &mut socket, judged, until).await {
        Ok(guest) => {
            // A separate task, so that the handshake's memory is freed.
            tokio::spawn(guarded("connection", session::run(edge, socket, guest)));
        }
        Err(NotAdmitted::Gone) => {
            let _ = timeout(CLOSING, read_to_end(&mut socket)).await;
        }
        Err(NotAdmitted::Refused(close, code, message)) => {
            metrics::gateway_refused(code);
            let _ = timeout(CLOSING, turn_away(&edge, &mut socket, close, code, &message)).await;
        }
    }
}

pub type Socket = WebSocketStream<Stream>;

/// Reads the head of a request. `None` if the client closed before the head was complete.
async fn read_head(stream: &mut Stream) -> Option<Result<Request, Refusal>> {
    let mut head = Vec::with_capacity(1_024);
    loop {
        match Request::try_parse(&head) {
            Ok(Some((end, _))) if end < head.len() => {
                let message = "a request must have no body, and frames may be sent only after the response to it";
                return Some(Err(refusal(StatusCode::BAD_REQUEST, "bad_request", message)));
            }
            Ok(Some((_, request))) => return Some(Ok(request)),
            Ok(None) if head.len() < HEAD_BYTES_MAX => {}
            Ok(None) => {
                let message = format!("the head of the request has more than {HEAD_BYTES_MAX} bytes");
                let status = StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE;
                return Some(Err(refusal(status, "head_too_big", message)));
            }
            Err(WsError::Protocol(ProtocolError::WrongHttpMethod)) => {
                return Some(Err(refusal(
                    StatusCode::METHOD_NOT_ALLOWED,
                    "bad_method",
                    NOT_WEBSOCKET,
                )));
            }
            Err(error) => {
                let message = format!("this is not a WebSocket request: {error}");
                return Some(Err(refusal(StatusCode::BAD_REQUEST, "bad_request", message)));
            }
        }
        let room = HEAD_BYTES_MAX - head.len();
        match (&mut *stream).take(room as u64).read_buf(&mut head).await {
            Ok(1..) => {}
            Ok(0) | Err(_) => return None,
        }
    }
}

/// Returns the response to a WebSocket request, or the refusal of one that is not.
fn upgrade(request: &Request) -> Result<Response, Refusal> {
    let mut response = create_response(request).map_err(|error| match error {
        WsError::Protocol(ProtocolError::MissingSecWebSocketKey) => refusal(
            StatusCode::BAD_REQUEST,
            "bad_request",
            "the header Sec-WebSocket-Key is missing",
        ),
        _ => refusal(StatusCode::UPGRADE_REQUIRED, "upgrade_required", NOT_WEBSOCKET),
    })?;
    if offers_protocol(request) {
        let protocol = HeaderValue::from_static(PROTOCOL);
        response.headers_mut().insert(header::SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

fn offers_protocol(request: &Request) -> bool {
    subprotocols(request.headers()).any(|text| text == PROTOCOL)
}

async fn write_head<T>(stream: &mut Stream, response: &http::Response<T>, body: &str) -> Option<()> {
    let mut bytes = Vec::with_capacity(256);
    write_response(&mut bytes, response).ok()?;
    bytes.extend_from_slice(body.as_bytes());
    stream.write_all(&bytes).await.ok()?;
    stream.flush().await.ok()
}

/// Refuses with a status and waits until the client has read it.
async fn refuse(edge: &GatewayState, mut stream: Stream, refusal: &Refusal) {
    metrics::gateway_refused(refusal.code);
    let response = refusal.response(edge);
    let body = response.body().as_deref().unwrap_or_default();
    if write_head(&mut stream, &response, body).await.is_some() {
        drain(&mut stream).await;
    }
}

/// Opens the WebSocket, also of a client that is to be refused with a close code. `None` if there is no WebSocket.
async fn open(edge: &GatewayState, stream: TcpStream, peer: SocketAddr) -> Option<(Socket, Result<Visitor, Refusal>)> {
    let mut stream = match &edge.certificate {
        Some(certificate) => match certificate.accept(stream).await {
            Ok(stream) => stream,
            Err(failed) => {
                if let NoHandshake::Failed(error) = failed {
                    tracing::debug!("TLS handshake with {peer} failed: {error}");
                }
                metrics::gateway_refused("tls");
                return None;
            }
        },
        None => Stream::Plain(stream),
    };
    let upgraded = read_head(&mut stream).await?.and_then(|request| {
        let response = upgrade(&request)?;
        Ok((request, response))
    });
    let (request, response) = match upgraded {
        Ok(upgraded) => upgraded,
        Err(refusal) => {
            refuse(edge, stream, &refusal).await;
            return None;
        }
    };
    let judged = judge(edge, &request, peer).await;
    if let Err(refusal) = &judged
        && (refusal.always_http || !offers_protocol(&request))
    {
        refuse(edge, stream, refusal).await;
        return None;
    }
    write_head(&mut stream, &response, "").await?;
    let config = WebSocketConfig::default()
        .read_buffer_size(READ_BUFFER_BYTES)
        .write_buffer_size(0)
        .max_message_size(Some(edge.config.message_bytes_max))
        .max_frame_size(Some(edge.config.message_bytes_max));
    Some((
        Socket::from_raw_socket(stream, Role::Server, Some(config)).await,
        judged,
    ))
}

/// Why a client whose WebSocket is open is not let in.
enum NotAdmitted {
    /// It went away. If it sent a close frame, that is to be answered.
    Gone,
    /// The close code, the code in the frame before it, and a sentence.
    Refused(Close, &'static str, String),
}

fn unauthorized(message: impl Into<String>) -> NotAdmitted {
    NotAdmitted::Refused(Close::Unauthorized, "unauthorized", message.into())
}

/// Finds out who a client is, and lets it in if the limits allow that. `until` is the monotonic time at which the handshake must be over.
async fn identify(
    edge: &GatewayState,
    socket: &mut Socket,
    judged: Result<Visitor, Refusal>,
    until: Duration,
) -> Result<AdmittedClient, NotAdmitted> {
    let mut visitor = judged.map_err(|refusal| NotAdmitted::Refused(refusal.close(), refusal.code, refusal.message))?;
    let left = || until.saturating_sub(edge.clock.monotonic());
    if visitor.user.is_none() && visitor.token.is_none() {
        visitor.token = match timeout(left(), first_token(edge, socket)).await {
            Ok(token) => Some(token?),
            Err(_) => {
                let allowed_ms = edge.config.handshake.as_millis();
                let message = format!(
                    "no token came within {allowed_ms} ms; send it in the header `Authorization: Bearer TOKEN`, as the \
                     subprotocol `bearer.TOKEN`, or in the first frame, `auth`"
                );
                return Err(unauthorized(message));
            }
        };
    }
    let admitting = async {
        if let Some(token) = visitor.token.take() {
            let bearer = edge.bearer(&token, &visitor).await.map_err(unauthorized)?;
            visitor.let_in(bearer);
        }
        admit(edge, visitor).await
    };
    match timeout(left(), admitting).await {
        Ok(admitted) => admitted,
        Err(_) => {
            let message = "the gateway could not find out in time who may connect; retry later";
            Err(NotAdmitted::Refused(Close::Later, "not_ready", message.to_owned()))
        }
    }
}

/// Reads the token from the first frame.
async fn first_token(edge: &GatewayState, socket: &mut Socket) -> Result<String, NotAdmitted> {
    let other = || unauthorized("the first frame must be `auth` with a token");
    loop {
        match socket.next().await.ok_or(NotAdmitted::Gone)? {
            Ok(Message::Text(text)) if text.len() <= TOKEN_BYTES_MAX => match messages::read(&text) {
                Ok((ClientMessage::Auth { token }, _)) => return Ok(token),
                _ => return Err(other()),
            },
            Ok(Message::Text(_) | Message::Binary(_)) => return Err(other()),
            Ok(Message::Ping(_) | Message::Pong(_) | Message::Frame(_)) => {}
            Ok(Message::Close(_)) => return Err(NotAdmitted::Gone),
            Err(error) => {
                let close = Close::of_error(&error).ok_or(NotAdmitted::Gone)?;
                let message = match close {
                    Close::TooBig => format!("a message has more than {} bytes", edge.config.message_bytes_max),
                    _ => format!("this is not a valid WebSocket message: {error}"),
                };
                return Err(NotAdmitted::Refused(close, close.name(), message));
            }
        }
    }
}

async fn admit(edge: &GatewayState, mut visitor: Visitor) -> Result<AdmittedClient, NotAdmitted> {
    let user = visitor.user.take().unwrap_or_default();
    let pace = match edge.pace(&visitor.platform).await {
        Ok(Some(pace)) => pace,
        Ok(None) => {
            let message = format!("the policy has no platform {:?}", visitor.platform);
            return Err(NotAdmitted::Refused(Close::BadRequest, "unknown_platform", message));
        }
        Err(error) => {
            let message = unanswered(&error).to_owned();
            return Err(NotAdmitted::Refused(Close::Later, "not_ready", message));
        }
    };
    let Some(place) = edge.users.take(user.as_str().into()) else {
        let message = "this user has too many connections to this gateway".to_owned();
        return Err(NotAdmitted::Refused(Close::TooMany, "too_many_of_user", message));
    };
    Ok(AdmittedClient {
        user,
        visitor,
        pace,
        place,
    })
}

/// Sends the reason in a frame and closes. The caller bounds the time.
async fn turn_away(edge: &GatewayState, socket: &mut Socket, close: Close, code: &str, message: &str) {
    let retry_ms = (close == Close::Later).then(|| retry_after_s(edge) * 1_000);
    let said = frames::error(None, code, message, retry_ms);
    let _ = socket.send(Message::Text(said.into())).await;
    close_with(socket, close).await;
}

/// Closes and waits until the client has closed too. The caller bounds the time.
pub async fn close_with(socket: &mut Socket, close: Close) {
    let frame = CloseFrame {
        code: close.code().into(),
        reason: close.name().into(),
    };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        read_to_end(socket).await;
    }
}

/// Reads until the client has closed. If it sent a close frame, this sends the answer, which the library has prepared. The caller bounds
/// the time.
pub async fn read_to_end(socket: &mut Socket) {
    while let Some(Ok(_)) = socket.next().await {}
    drain(socket.get_mut()).await;
}

/// Shuts down our direction and reads until the client has closed too. The caller bounds the time. If unread bytes were
/// left when the socket is closed, the kernel would reset the connection, and our last message would be lost.
async fn drain(stream: &mut Stream) {
    let mut unread = [0; 1_024];
    if stream.shutdown().await.is_ok() {
        while let Ok(1..) = stream.read(&mut unread).await {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_forwarded_address_may_have_a_port() {
        let of = |lines: &[&'static str]| {
            let mut headers = HeaderMap::new();
            for line in lines {
                headers.append("x-forwarded-for", HeaderValue::from_static(line));
            }
            forwarded(&headers)
        };
        for (lines, address) in [
            (&["1.2.3.4, 5.6.7.8"][..], "5.6.7.8"),
            (&[" 5.6.7.8 "], "5.6.7.8"),
            (&["1.1.1.1", "5.6.7.8"], "5.6.7.8"),
            (&["1.1.1.1,5.6.7.8:443"], "5.6.7.8"),
            (&["2001:db8::1"], "2001:db8::1"),
            (&["[2001:db8::1]"], "2001:db8::1"),
            (&["5.6.7.8, [2001:db8::1]:443"], "2001:db8::1"),
        ] {
            assert_eq!(of(lines), Ok(address.parse().expect("an address")), "{lines:?}");
        }
        for (lines, last) in [
            (&[][..], ""),
            (&["5.6.7.8,"], ""),
            (&["5.6.7.8, unknown"], "unknown"),
            (&["5.6.7.8", "garbage"], "garbage"),
            (&["for=5.6.7.8"], "for=5.6.7.8"),
            (&["[5.6.7.8"], "[5.6.7.8"),
        ] {
            assert_eq!(of(lines), Err(last.to_owned()), "{lines:?}");
        }
    }
}
