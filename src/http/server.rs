//! Serves HTTP with hyper on a listener, with a bound on the number of connections and with timeouts for everything
//! that a client may leave unfinished.
//!
//! When all connections are in use, the one that has been idle for the longest is closed, so that a client that opens
//! connections and sends nothing cannot keep others out. If no connection is idle, the new one is refused with an error
//! message. If more than a quarter of the connections are in their TLS handshake, the oldest of these is closed instead: a client
//! that opens many and finishes no handshake closes mostly its own.

use super::api_error::ApiError;
use super::transport::{ConnectionTimeouts, HEAD_BYTES_MAX, Requests, Watched, WriteLimited};
use crate::metrics;
use crate::tasks::guarded;
use crate::tls::{Certificate, HasCertificate, NoHandshake, Stream};
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::{Frame, SizeHint};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::{GracefulShutdown, Watcher};
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// The pause after a failure to accept a connection, for example because all descriptors are in use.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// One of so many connections may be in its TLS handshake before handshakes are closed to make room.
const HANDSHAKES_PART: usize = 4;
/// The label `task` of the metric when serving one connection panics.
const CONNECTION: &str = "http-connection";
/// How long an idle connection may take to close.
const EVICTION: Duration = Duration::from_millis(100);

/// The bytes of a connection whose client must go on reading.
type Limited = Stream<WriteLimited<TcpStream>>;

/// The limits of a server.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    pub connections: usize,
    pub patience: ConnectionTimeouts,
}

impl Limits {
    pub fn of(connections: usize) -> Limits {
        Limits {
            connections,
            patience: ConnectionTimeouts::default(),
        }
    }
}

/// Serves without TLS until `stopping` is set and every request that had begun by then is answered.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, stopping: watch::Receiver<bool>) {
    serve_with(listener, None, router, limits, stopping).await;
}

/// Like [`serve`], with TLS if there is a certificate.
pub async fn serve_with(
    listener: TcpListener,
    certificate: Option<Arc<Certificate>>,
    router: Router,
    limits: Limits,
    mut stopping: watch::Receiver<bool>,
) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let idle = Arc::new(Idle::new(limits.connections / HANDSHAKES_PART));
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(_) = stopping.wait_for(|stopping| *stopping) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // The failure concerns this one connection, or descriptors are used up, which other connections will
                // free.
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = place(&places, &idle).await else {
            // With TLS there is nothing that the client could read before a handshake.
            if certificate.is_none() {
                refuse(&stream, limits.connections);
            }
            continue;
        };
        // Responses are small and wanted at once. If this call fails, they only take longer.
        let _ = stream.set_nodelay(true);
        let (watcher, router, patience) = (graceful.watcher(), router.clone(), limits.patience);
        let Some(certificate) = certificate.clone() else {
            let connection = Connection::new(idle.clone(), Stage::Open);
            let stream = Stream::Plain(WriteLimited::new(stream, patience.write));
            tokio::spawn(guarded(
                CONNECTION,
                run(stream, connection, router, patience, watcher, place),
            ));
            continue;
        };
        let connection = Connection::new(idle.clone(), Stage::Handshake);
        let stopping = stopping.clone();
        tokio::spawn(guarded(CONNECTION, async move {
            let secured = secure(&certificate, stream, &connection, patience, stopping).await;
            connection.leave();
            if let Some(stream) = secured {
                connection.clone().wait(Stage::Open);
                run(stream, connection, router, patience, watcher, place).await;
            }
        }));
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Performs the TLS handshake of a connection. `None` if it failed, took too long, or its place is needed.
async fn secure(
    certificate: &Certificate,
    stream: TcpStream,
    connection: &Connection,
    patience: ConnectionTimeouts,
    mut stopping: watch::Receiver<bool>,
) -> Option<Limited> {
    let handshake = certificate.accept_through(stream, |stream| WriteLimited::new(stream, patience.write));
    let accepted = tokio::select! {
        accepted = tokio::time::timeout(patience.head, handshake) => accepted,
        () = connection.evicted.notified() => {
            metrics::http_handshake_failed("evicted");
            return None;
        }
        Ok(_) = stopping.wait_for(|stopping| *stopping) => return None,
    };
    let reason = match accepted {
        Ok(Ok(stream)) => return Some(stream),
        Ok(Err(NoHandshake::Plain)) => "plain_http",
        Ok(Err(NoHandshake::Failed(error))) => {
            tracing::debug!(%error, "a TLS handshake failed");
            "tls"
        }
        Err(_) => "time",
    };
    metrics::http_handshake_failed(reason);
    None
}

/// Takes a place for a connection. If no place is free, closes the connection that has been idle for the longest.
async fn place(places: &Arc<Semaphore>, idle: &Idle) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        if !idle.evict() {
            return None;
        }
        // The idle connection closes at once, unless it received a request at this moment.
        let freed = tokio::time::timeout(EVICTION, places.clone().acquire_owned()).await;
        if let Ok(Ok(place)) = freed {
            return Some(place);
        }
    }
}

/// Sends the error that no place is free, as far as the socket accepts it without waiting.
fn refuse(stream: &TcpStream, connections: usize) {
    let message = format!("all {connections} connections are in use; try again shortly");
    let answer = ApiError::unavailable("busy", message).raw();
    let _ = stream.try_write(&answer);
}

fn run(
    stream: Limited,
    connection: Arc<Connection>,
    router: Router,
    patience: ConnectionTimeouts,
    watcher: Watcher,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> {
    let service = TowerToHyperService::new(router);
    let held = connection.clone();
    let has_certificate = stream.has_client_certificate();
    let service = service_fn(move |mut request: Request<hyper::body::Incoming>| {
        if has_certificate {
            request.extensions_mut().insert(HasCertificate);
        }
        let under_way = InFlight::of(held.clone());
        let requests = held.requests.clone();
        let answered = service.call(request.map(|body| Sent {
            body,
            ended: false,
            requests,
        }));
        let requests = held.requests.clone();
        async move {
            let mut response: Response<Body> = answered.await?;
            if requests.is_unread() {
                // The unread rest of the body cannot be distinguished from a next request, so the connection closes
                // after this response. The header informs the client.
                response
                    .headers_mut()
                    .insert(header::CONNECTION, HeaderValue::from_static("close"));
            }
            Ok::<_, std::convert::Infallible>(response.map(|body| Held {
                body,
                _under_way: under_way,
            }))
        }
    });
    let stream = TokioIo::new(Watched::new(stream, connection.requests.clone(), patience));
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        // This bounds idle time and head together; `transport` distinguishes the two. Without it hyper does not check
        // an idle connection.
        .header_read_timeout(patience.idle + patience.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(stream, service);
    let served = watcher.watch(served);
    async move {
        let _place = place;
        // The future is boxed so that it can be dropped before the connection leaves: that drop ends a request that is
        // cut off.
        let mut served = Box::pin(served);
        loop {
            tokio::select! {
                ended = &mut served => {
                    if let Err(error) = ended {
                        tracing::debug!(%error, "a connection broke");
                    }
                    break;
                }
                () = connection.evicted.notified() => {
                    if !connection.requests.any() {
                        break;
                    }
                }
            }
        }
        drop(served);
        connection.leave();
    }
}

/// Connections without a request: those in their handshake, and those that are idle, the one that is so for the longest first.
struct Idle {
    /// With more handshakes these are closed first, else an idle connection.
    handshakes_max: usize,
    order: Mutex<IdleOrder>,
}

#[derive(Default)]
struct IdleOrder {
    next: u64,
    handshakes: usize,
    waiting: BTreeMap<(Stage, u64), Arc<Connection>>,
}

impl IdleOrder {
    fn remove(&mut self, number: (Stage, u64)) -> Option<Arc<Connection>> {
        let removed = self.waiting.remove(&number)?;
        self.handshakes -= usize::from(number.0 == Stage::Handshake);
        Some(removed)
    }
}

/// What a connection without a request is in.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Stage {
    Handshake,
    Open,
}

impl Idle {
    fn new(handshakes_max: usize) -> Idle {
        Idle {
            handshakes_max,
            order: Mutex::default(),
        }
    }

    fn order(&self) -> MutexGuard<'_, IdleOrder> {
        self.order.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Closes the connection that has been idle, or in its handshake, for the longest. Returns false if there are no connections to close.
    fn evict(&self) -> bool {
        let mut order = self.order();
        let handshake = order.waiting.keys().next().copied();
        let idle = order
            .waiting
            .range((Stage::Open, 0)..)
            .next()
            .map(|(number, _)| *number);
        let number = match order.handshakes > self.handshakes_max {
            true => handshake,
            false => idle.or(handshake),
        };
        let Some(connection) = number.and_then(|number| order.remove(number)) else {
            return false;
        };
        connection.evicted.notify_one();
        true
    }
}

struct Connection {
    idle: Arc<Idle>,
    requests: Arc<Requests>,
    evicted: Notify,
    /// The position in the idle order, while the connection is idle.
    number: Mutex<Option<(Stage, u64)>>,
}

impl Connection {
    fn new(idle: Arc<Idle>, stage: Stage) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            idle,
            requests: Arc::default(),
            evicted: Notify::new(),
            number: Mutex::new(None),
        });
        connection.clone().wait(stage);
        connection
    }

    fn wait(self: Arc<Self>, stage: Stage) {
        let mut order = self.idle.order();
        order.next += 1;
        let number = (stage, order.next);
        *self.number.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
        order.handshakes += usize::from(stage == Stage::Handshake);
        order.waiting.insert(number, self.clone());
    }

    fn leave(&self) {
        let mut order = self.idle.order();
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(number) = number {
            order.remove(number);
        }
    }
}

/// A request and its response, until the last byte of the response is handed over.
struct InFlight(Arc<Connection>);

impl InFlight {
    fn of(connection: Arc<Connection>) -> InFlight {
        connection.requests.begin();
        connection.leave();
        InFlight(connection)
    }
}

impl Drop for InFlight {
    fn drop(&mut self) {
        self.0.requests.end();
        self.0.clone().wait(Stage::Open);
    }
}

/// The body of a request. It records whether it was dropped before its end was read.
struct Sent {
    body: hyper::body::Incoming,
    ended: bool,
    requests: Arc<Requests>,
}

impl HttpBody for Sent {
    type Data = Bytes;
    type Error = hyper::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, hyper::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        self.ended |= matches!(polled, Poll::Ready(None));
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

impl Drop for Sent {
    fn drop(&mut self) {
        if !self.ended && !self.body.is_end_stream() {
            self.requests.leave_unread();
        }
    }
}

/// The body of a response. It keeps its request counted as in flight.
struct Held {
    body: Body,
    _under_way: InFlight,
}

impl HttpBody for Held {
    type Data = Bytes;
    type Error = axum::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, axum::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures_util::FutureExt as _;

    #[test]
    fn idle_connections_make_room_for_others_and_too_many_handshakes_for_themselves() {
        let idle = Arc::new(Idle::new(2));
        let of = |stage| Connection::new(idle.clone(), stage);
        let is_closed = |connection: &Connection| connection.evicted.notified().now_or_never().is_some();
        let open = [of(Stage::Open), of(Stage::Open)];
        let handshakes = [of(Stage::Handshake), of(Stage::Handshake)];
        assert!(idle.evict());
        assert!(is_closed(&open[0]), "two handshakes are not too many");
        let third = of(Stage::Handshake);
        assert!(idle.evict());
        assert!(is_closed(&handshakes[0]), "the oldest of three");
        // It is done, and idle from now on.
        third.leave();
        third.clone().wait(Stage::Open);
        assert!(idle.evict() && idle.evict());
        assert!(is_closed(&open[1]) && is_closed(&third));
        assert!(!is_closed(&handshakes[1]));
        assert!(idle.evict(), "nothing else is left");
        assert!(is_closed(&handshakes[1]));
        assert!(!idle.evict());
    }
}
