//! The HTTP server: publishing events, queries, subscriptions, health, and the console.
//!
//! It reads through the engine and from the log, and writes only by appending events. Every error has the same
//! shape: `{"error":{"code","message",…}}`. The table in [`api::routes`](crate::api::routes) lists the routes and what
//! each route requires of its caller. This module assigns a handler to each entry.

mod access;
mod api_error;
mod console;
mod failures;
mod follow;
pub(crate) mod following;
mod found;
mod history;
mod incidents;
mod ingest;
mod oidc;
mod outcomes;
mod overview;
mod past;
mod payload;
mod peer_key;
mod peers;
mod query;
mod server;
mod standby;
pub(crate) mod tail;
mod tickets;
mod tim;
mod traced;
mod transport;
mod users;
pub(crate) mod usersig;

use crate::api::openapi;
use crate::api::routes::{ROUTES, Route, RouteId, RouteMethod};
use crate::clock::Clock;
use crate::config::{Scopes, Tim};
use crate::engine::Engine;
use crate::presence::Partition;
use crate::topics::Topic;
pub use access::Access;
use api_error::ApiError;
use axum::Router;
use axum::body::Bytes;
use axum::extract::FromRef;
use axum::http::{HeaderName, HeaderValue, Method, StatusCode, header};
use axum::middleware;
use axum::response::{IntoResponse, Response};
use axum::routing::{MethodFilter, MethodRouter, on};
pub use console::GatewayAddress;
pub use oidc::Issuer;
pub use payload::{BODY_BYTES_MAX, BUDGET_BYTES_DEFAULT, Budget};
pub use peer_key::PeerKey;
pub use peers::{PeerTrust, Peers};
use serde::Serialize;
pub use server::{Limits, serve, serve_with};
use std::net::SocketAddr;
use std::sync::{Arc, LazyLock};
use std::time::Duration;
use tail::{Tail, TailOwner};
use tokio::sync::{Semaphore, watch};
use tower_http::cors::{AllowOrigin, CorsLayer};
pub use transport::ConnectionTimeouts;

/// The default for the maximum number of open subscriptions.
const SUBSCRIPTIONS_DEFAULT: usize = 3_072;

/// The state that every handler receives.
#[derive(Clone)]
pub struct AppState {
    engine: Arc<Engine>,
    access: Arc<Access>,
    /// The other nodes. `None` if this node serves every partition itself.
    peers: Option<Peers>,
    /// The tails of the two topics that clients can subscribe to.
    changes: Arc<TailOwner>,
    kicks: Arc<TailOwner>,
    /// Becomes true when the process is stopping. Events are then refused and subscriptions end.
    stopping: watch::Receiver<bool>,
    /// The Tencent-compatible routes, if they are enabled.
    tim: Option<tim::TimAccess>,
    /// The address of the gateway in this process, once it has one.
    edge: watch::Receiver<Option<GatewayAddress>>,
    history: history::Samples,
    incidents: incidents::KnownIncidents,
    past: past::PastBounds,
    /// The other origins whose pages may call this server.
    origins: Vec<String>,
    /// The memory budget that the bodies of all requests share.
    budget: Budget,
    /// The permits for open subscriptions. They are limited so that connections remain for other requests.
    subscriptions: Arc<Semaphore>,
}

impl FromRef<AppState> for Budget {
    fn from_ref(app: &AppState) -> Budget {
        app.budget.clone()
    }
}

/// Returns the handler of a route, or `None` if [`tim`] serves the route.
fn handler(route: &Route) -> Option<MethodRouter<AppState>> {
    let method = match route.method {
        RouteMethod::Get => MethodFilter::GET,
        RouteMethod::Post => MethodFilter::POST,
    };
    Some(match route.id {
        RouteId::Events => on(method, ingest::events),
        RouteId::User => on(method, users::user),
        RouteId::UserById => on(method, users::user_by_id),
        RouteId::UsersQuery => on(method, users::query),
        RouteId::UserChanges => on(method, past::changes),
        RouteId::UserChangesById => on(method, past::changes_by_id),
        RouteId::UserHistory => on(method, past::history),
        RouteId::UserHistoryById => on(method, past::history_by_id),
        RouteId::UserWhy => on(method, past::why),
        RouteId::UserWhyById => on(method, past::why_by_id),
        RouteId::At => on(method, past::at),
        RouteId::Changes => on(method, follow::changes),
        RouteId::Kicks => on(method, follow::kicks),
        RouteId::ChangesQuery => on(method, follow::changes_of),
        RouteId::KicksQuery => on(method, follow::kicks_of),
        RouteId::Tickets => on(method, tickets::ticket),
        RouteId::Policy => on(method, overview::policy),
        RouteId::Gateways => on(method, overview::gateways),
        RouteId::Stats => on(method, overview::stats),
        RouteId::StatsHistory => on(method, history::history),
        RouteId::Incidents => on(method, incidents::incidents),
        RouteId::Edge => on(method, console::edge),
        RouteId::Metrics => on(method, overview::metrics),
        RouteId::Healthz => on(method, overview::healthz),
        RouteId::Readyz => on(method, overview::readyz),
        RouteId::OpenApi => on(method, openapi),
        RouteId::Page => on(method, console::page),
        RouteId::RollcallJs | RouteId::ConsoleFile => on(method, console::file),
        RouteId::Outcomes => on(method, outcomes::outcomes),
        RouteId::TimQueryOnlineStatus | RouteId::TimQueryState | RouteId::TimKick => return None,
    })
}

impl AppState {
    /// Creates the state for an engine.
    ///
    /// `tokens` are the accepted bearer tokens; `None` accepts every caller. `listen` is the address that the server
    /// listens on. `peers` are the other nodes, if there are any. Returns an error if a thread cannot be started.
    pub fn new(
        engine: Arc<Engine>,
        tokens: Option<&[(String, Scopes)]>,
        listen: SocketAddr,
        peers: Option<Peers>,
        stopping: watch::Receiver<bool>,
    ) -> std::io::Result<AppState> {
        let start = |topic| Tail::start(topic, engine.log().clone(), engine.schemas().clone());
        let (changes, kicks) = (Arc::new(start(Topic::Changes)?), Arc::new(start(Topic::Kicks)?));
        let (changed, kicked) = (Arc::downgrade(&changes), Arc::downgrade(&kicks));
        engine.log().listen(Box::new(move |topic, partition| {
            let tail = match topic {
                Topic::Changes => changed.upgrade(),
                Topic::Kicks => kicked.upgrade(),
                Topic::Events | Topic::Quarantine => None,
            };
            if let Some(tail) = tail {
                tail.added(partition);
            }
        }));
        Ok(AppState {
            engine,
            access: Arc::new(Access::new(tokens, listen)),
            peers,
            changes,
            kicks,
            stopping,
            tim: None,
            edge: watch::channel(None).1,
            history: history::Samples::default(),
            incidents: incidents::KnownIncidents::default(),
            past: past::PastBounds::default(),
            origins: Vec::new(),
            budget: Budget::new(BUDGET_BYTES_DEFAULT),
            subscriptions: Arc::new(Semaphore::new(SUBSCRIPTIONS_DEFAULT)),
        })
    }

    /// Returns the answer about a partition that no node has.
    fn moving(&self, partition: Partition) -> ApiError {
        peers::moving(partition, self.engine.log().refusal())
    }

    /// Limits the memory that all request bodies use together, in bytes, and the number of open subscriptions.
    pub fn with_bounds(self, body_bytes: usize, subscriptions: usize) -> AppState {
        AppState {
            budget: Budget::new(body_bytes),
            subscriptions: Arc::new(Semaphore::new(subscriptions)),
            ..self
        }
    }

    /// Limits how many records of a partition are read to answer a question about the past.
    pub fn with_past_records(self, records: u64) -> AppState {
        AppState {
            past: past::PastBounds::new(records),
            ..self
        }
    }

    /// Allows pages of other origins to call this server.
    pub fn with_origins(self, origins: Vec<String>) -> AppState {
        let access = Arc::into_inner(self.access).map(|access| access.with_origins(origins.clone()));
        AppState {
            access: Arc::new(access.expect("nobody has the access yet")),
            origins,
            ..self
        }
    }

    /// Accepts tokens of an issuer beside those that it was created with.
    pub fn with_issuer(self, issuer: Arc<Issuer>) -> AppState {
        let access = Arc::into_inner(self.access).map(|access| access.with_issuer(issuer));
        AppState {
            access: Arc::new(access.expect("nobody has the access yet")),
            ..self
        }
    }

    /// Returns the access rules. Their tokens can be replaced while the server runs.
    pub fn access(&self) -> Arc<Access> {
        self.access.clone()
    }

    /// Sets the source of the address of this process's gateway. The console tries devices at that address.
    pub fn with_edge(self, edge: watch::Receiver<Option<GatewayAddress>>) -> AppState {
        AppState { edge, ..self }
    }

    /// Adds the Tencent-compatible routes below `/v4`.
    ///
    /// `clock` decides when their signatures expire.
    pub fn with_tim(self, tim: Tim, clock: Arc<dyn Clock>) -> AppState {
        let tim = Some(tim::TimAccess::new(tim, clock));
        AppState { tim, ..self }
    }

    /// Records a history of the number of users online, until the process stops.
    pub async fn keep_history(self) {
        history::keep(self).await;
    }

    /// Has mass departures found while this node has partition 0, until the process stops.
    pub async fn find_incidents(self) {
        incidents::keep(self).await;
    }

    pub fn router(self) -> Router {
        let mut router = Router::new();
        for route in &ROUTES {
            if let Some(handler) = handler(route) {
                router = router.route(route.path, handler);
            }
        }
        let ours = router
            .fallback(async || nothing_here())
            .method_not_allowed_fallback(async |method: Method| ApiError::method(&method))
            .layer(middleware::from_fn_with_state(self.clone(), access::check))
            .with_state(self.clone());
        let ours = match self.origins.is_empty() {
            true => ours,
            // This layer is outside the access check: a browser sends its preflight request without a token.
            false => ours.layer(cors(&self.origins)),
        };
        match self.tim.clone() {
            // These routes are outside the access check: callers present a signature, from any origin.
            Some(terms) => ours.merge(tim::TimState { app: self, terms }.router()),
            None => ours,
        }
    }
}

/// Handles `GET /openapi.json`.
async fn openapi() -> Response {
    static DOCUMENT: LazyLock<Vec<u8>> = LazyLock::new(|| openapi::document().to_string().into_bytes());
    let mut document = json(DOCUMENT.clone());
    document
        .headers_mut()
        .insert(header::CACHE_CONTROL, console::REVALIDATED);
    document
}

/// Returns the error for a path that does not exist.
fn nothing_here() -> ApiError {
    ApiError::not_found("not_found", "there is nothing at this path")
}

/// Returns the CORS layer for pages of these origins. They may do everything that their token, or this machine, may
/// do. The server does not use cookies, so the layer does not allow browsers to send them.
fn cors(origins: &[String]) -> CorsLayer {
    let origins = origins.iter().filter_map(|origin| HeaderValue::from_str(origin).ok());
    CorsLayer::new()
        .allow_origin(AllowOrigin::list(origins))
        .allow_methods([Method::GET, Method::POST])
        .allow_headers([
            header::AUTHORIZATION,
            header::CONTENT_TYPE,
            header::CONTENT_ENCODING,
            header::ACCEPT,
            header::CACHE_CONTROL,
            HeaderName::from_static("last-event-id"),
        ])
        .expose_headers([header::RETRY_AFTER])
        .max_age(Duration::from_secs(600))
}

/// Returns another node's response unchanged.
fn passed_on(status: StatusCode, body: Bytes) -> Response {
    let mut response = json(body.to_vec());
    *response.status_mut() = status;
    if status == StatusCode::SERVICE_UNAVAILABLE {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(1));
    }
    response
}

/// Serializes an answer into a JSON response.
fn answer(answer: &impl Serialize) -> Response {
    json(written(answer))
}

/// Returns an answer as JSON.
fn written(answer: &impl Serialize) -> Vec<u8> {
    serde_json::to_vec(answer).expect("an answer is made of names, numbers and text")
}

/// Returns a response with this JSON body.
fn json(body: Vec<u8>) -> Response {
    (
        [
            (header::CONTENT_TYPE, HeaderValue::from_static("application/json")),
            // Caches must not store who is online.
            (header::CACHE_CONTROL, HeaderValue::from_static("no-store")),
            (header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff")),
        ],
        body,
    )
        .into_response()
}
