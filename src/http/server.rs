//! The server of an HTTP face: hyper on a listener, with a bound on connections and time-outs for whatever a client may
//! leave undone.
//!
//! When all places are taken, the connection that has been idle for the longest is closed: a client that opens connections and
//! sends nothing cannot keep others out. Without an idle one the newcomer is refused, with a sentence.

use super::api_error::ApiError;
use super::transport::{ConnectionTimeouts, Requests, Watched};
use axum::Router;
use axum::body::{Body, Bytes, HttpBody};
use axum::http::{HeaderValue, Request, Response, header};
use hyper::body::{Frame, SizeHint};
use hyper::service::{Service as _, service_fn};
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::graceful::GracefulShutdown;
use hyper_util::service::TowerToHyperService;
use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore, watch};

/// The largest head of a request, in bytes: its address and its header fields. As much is buffered of an answer.
pub const HEAD_BYTES_MAX: usize = 64 << 10;
/// After accepting failed, descriptors being used up say, it is tried again this much later.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// How long an idle connection may take to end.
const EVICTION: Duration = Duration::from_millis(100);

/// The bounds of a server.
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

/// Serves until it is told to stop and every request that was begun then is answered.
pub async fn serve(listener: TcpListener, router: Router, limits: Limits, mut stopping: watch::Receiver<bool>) {
    let places = Arc::new(Semaphore::new(limits.connections));
    let idle = Arc::new(Idle::default());
    let graceful = GracefulShutdown::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            Ok(_) = stopping.wait_for(|stopping| *stopping) => break,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                // Of this one connection alone, or of descriptors, which others will give back.
                tracing::debug!(%error, "a connection could not be accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Some(place) = place(&places, &idle).await else {
            refuse(&stream, limits.connections);
            continue;
        };
        // Answers are small and wanted at once; a failure only costs time.
        let _ = stream.set_nodelay(true);
        let connection = Connection::new(idle.clone());
        tokio::spawn(run(
            stream,
            connection,
            router.clone(),
            limits.patience,
            &graceful,
            place,
        ));
    }
    drop(listener);
    graceful.shutdown().await;
}

/// Takes a place, that of the longest idle connection if there is no other.
async fn place(places: &Arc<Semaphore>, idle: &Idle) -> Option<OwnedSemaphorePermit> {
    loop {
        if let Ok(place) = places.clone().try_acquire_owned() {
            return Some(place);
        }
        if !idle.evict() {
            return None;
        }
        // Unless a request of it came at this moment, it goes at once.
        let freed = tokio::time::timeout(EVICTION, places.clone().acquire_owned()).await;
        if let Ok(Ok(place)) = freed {
            return Some(place);
        }
    }
}

/// Says that there is no room, as far as the socket takes it at once.
fn refuse(stream: &TcpStream, connections: usize) {
    let message = format!("all {connections} connections are in use; try again shortly");
    let answer = ApiError::unavailable("busy", message).raw();
    let _ = stream.try_write(&answer);
}

fn run(
    stream: TcpStream,
    connection: Arc<Connection>,
    router: Router,
    patience: ConnectionTimeouts,
    graceful: &GracefulShutdown,
    place: OwnedSemaphorePermit,
) -> impl Future<Output = ()> + use<> {
    let service = TowerToHyperService::new(router);
    let held = connection.clone();
    let service = service_fn(move |request: Request<hyper::body::Incoming>| {
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
                // What is still to come cannot be told from another request, so the connection ends; the client is to know.
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
        // Over idleness and head together, which transport tells apart; and with it hyper looks at an idle connection.
        .header_read_timeout(patience.idle + patience.head)
        .max_buf_size(HEAD_BYTES_MAX)
        .serve_connection(stream, service);
    let served = graceful.watch(served);
    async move {
        let _place = place;
        // Boxed, to be gone before the connection leaves: a request that is cut off with it comes to its end then.
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

/// Connections without a request, the longest idle first.
#[derive(Default)]
struct Idle(Mutex<IdleOrder>);

#[derive(Default)]
struct IdleOrder {
    next: u64,
    waiting: BTreeMap<u64, Arc<Connection>>,
}

impl Idle {
    fn order(&self) -> MutexGuard<'_, IdleOrder> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the longest idle connection end; false if none is idle.
    fn evict(&self) -> bool {
        let first = self.order().waiting.pop_first();
        match first {
            Some((_, connection)) => {
                connection.evicted.notify_one();
                true
            }
            None => false,
        }
    }
}

struct Connection {
    idle: Arc<Idle>,
    requests: Arc<Requests>,
    evicted: Notify,
    /// Its place in the order, while it is idle.
    number: Mutex<Option<u64>>,
}

impl Connection {
    fn new(idle: Arc<Idle>) -> Arc<Connection> {
        let connection = Arc::new(Connection {
            idle,
            requests: Arc::default(),
            evicted: Notify::new(),
            number: Mutex::new(None),
        });
        connection.clone().wait();
        connection
    }

    fn wait(self: Arc<Self>) {
        let mut order = self.idle.order();
        order.next += 1;
        let number = order.next;
        *self.number.lock().unwrap_or_else(PoisonError::into_inner) = Some(number);
        order.waiting.insert(number, self.clone());
    }

    fn leave(&self) {
        let mut order = self.idle.order();
        let number = self.number.lock().unwrap_or_else(PoisonError::into_inner).take();
        if let Some(number) = number {
            order.waiting.remove(&number);
        }
    }
}

/// A request and its response, until the last byte of that is handed over.
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
        self.0.clone().wait();
    }
}

/// A request's body, which notes that it was not read to its end.
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

/// A response's body, which holds its request under way.
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
