//! The HTTP face: events in, questions, subscriptions, health, and the console.
//!
//! It reads through the engine's answers and the log, and writes only by appending events. Every error has the same
//! shape: `{"error":{"code","message",…}}`.

mod access;
mod console;
mod fault;
mod follow;
mod history;
mod ingest;
mod overview;
mod peer_key;
mod peers;
mod tim;
mod users;
mod usersig;

use crate::clock::Clock;
use crate::config::{Scopes, Tim};
use crate::engine::Engine;
use crate::log::Topic;
use access::Access;
use axum::Router;
use axum::body::Bytes;
use axum::extract::DefaultBodyLimit;
use axum::http::{HeaderValue, Method, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
pub use console::Edge;
use fault::Fault;
pub use peer_key::PeerKey;
pub use peers::{Peers, Trust};
use std::net::SocketAddr;
use std::sync::Arc;
use tokio::sync::watch;

/// The largest body of a request, in bytes.
pub const BODY_BYTES_MAX: usize = 8 << 20;

/// What every handler has.
#[derive(Clone)]
pub struct Face {
    engine: Arc<Engine>,
    access: Arc<Access>,
    /// The other nodes; none where this one has everything.
    peers: Option<Peers>,
    /// Moves whenever changes became readable.
    changes: watch::Receiver<u64>,
    /// Moves whenever kicks became readable.
    kicks: watch::Receiver<u64>,
    /// True once the process is stopping: no events are taken and subscriptions end.
    stopping: watch::Receiver<bool>,
    /// The Tencent-compatible routes, if they are wanted.
    tim: Option<tim::Terms>,
    /// The gateway of this process, once there is one.
    edge: watch::Receiver<Option<Edge>>,
    history: history::History,
}

impl Face {
    /// For an engine, with the tokens that are let in (none: everybody is), served at this address, beside other nodes
    /// or alone.
    pub fn new(
        engine: Arc<Engine>,
        tokens: Option<&[(String, Scopes)]>,
        listen: SocketAddr,
        peers: Option<Peers>,
        stopping: watch::Receiver<bool>,
    ) -> Face {
        let (changed, changes) = watch::channel(0);
        let (kicked, kicks) = watch::channel(0);
        engine.log().listen(Box::new(move |topic, _| match topic {
            Topic::Changes => changed.send_modify(|count| *count += 1),
            Topic::Kicks => kicked.send_modify(|count| *count += 1),
            Topic::Events | Topic::Quarantine => {}
        }));
        Face {
            engine,
            access: Arc::new(Access::new(tokens, listen)),
            peers,
            changes,
            kicks,
            stopping,
            tim: None,
            edge: watch::channel(None).1,
            history: history::History::default(),
        }
    }

    /// Tells where this process has a gateway, once it has: the console tries devices there.
    pub fn with_edge(self, edge: watch::Receiver<Option<Edge>>) -> Face {
        Face { edge, ..self }
    }

    /// Adds the Tencent-compatible routes below `/v4`.
    ///
    /// Their signatures expire by this clock.
    pub fn with_tim(self, tim: Tim, clock: Arc<dyn Clock>) -> Face {
        let tim = Some(tim::Terms::new(tim, clock));
        Face { tim, ..self }
    }

    /// Keeps a history of how many are online, until the process stops.
    pub async fn keep_history(self) {
        history::keep(self).await;
    }

    pub fn router(self) -> Router {
        let mut ours = Router::new();
        for (path, text) in console::FILES {
            ours = ours.route(path, get(async move || console::file(path, text)));
        }
        let ours = ours
            .route("/", get(console::page))
            .route("/v1/events", post(ingest::events))
            .route("/v1/users/query", post(users::query).get(users::user_named_query))
            .route("/v1/users/{user}", get(users::user))
            .route("/v1/users/{user}/changes", get(users::changes))
            .route("/v1/changes", get(follow::changes))
            .route("/v1/kicks", get(follow::kicks))
            .route("/v1/policy", get(overview::policy))
            .route("/v1/gateways", get(overview::gateways))
            .route("/v1/edge", get(console::edge))
            .route("/v1/stats", get(overview::stats))
            .route("/v1/stats/history", get(history::history))
            .route("/metrics", get(overview::metrics))
            .route("/healthz", get(overview::healthz))
            .route("/readyz", get(overview::readyz))
            .fallback(async || Fault::not_found("not_found", "there is nothing at this path"))
            .method_not_allowed_fallback(async |method: Method| Fault::method(&method))
            .layer(DefaultBodyLimit::max(BODY_BYTES_MAX))
            .layer(middleware::from_fn_with_state(self.clone(), access::check))
            .with_state(self.clone());
        match self.tim.clone() {
            // Outside of the check above: who calls there shows a signature, from wherever.
            Some(terms) => ours.nest("/v4", tim::Desk { face: self, terms }.router()),
            None => ours,
        }
    }
}

/// Another node's answer, as it is.
fn passed_on(status: StatusCode, body: Bytes) -> Response {
    let mut response = json(body.to_vec());
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    response
}

/// A body of JSON.
fn json(body: Vec<u8>) -> Response {
    (
        [(header::CONTENT_TYPE, HeaderValue::from_static("application/json"))],
        body,
    )
        .into_response()
}
