//! What `--status` serves: `/metrics`, `/healthz` and `/readyz`, without a token.

use crate::http::Limits;
use crate::metrics;
use anyhow::anyhow;
use axum::Router;
use axum::http::StatusCode;
use axum::routing::get;
use std::net::SocketAddr;
use tokio::net::TcpListener;
use tokio::sync::watch;

/// Connections for metrics and probes.
const CONNECTIONS: usize = 64;

pub async fn bind(address: SocketAddr) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.map_err(|error| {
        anyhow!("cannot listen on {address} for /metrics: {error}; another port can be chosen with --status")
    })
}

/// Whether other machines can read what is served.
pub fn is_exposed(address: SocketAddr) -> bool {
    !address.ip().to_canonical().is_loopback()
}

/// Serves until the process ends. `troubles` says, for `/readyz`, why the process is not ready; nothing if it is.
pub async fn serve(listener: TcpListener, troubles: impl Fn() -> Vec<String> + Clone + Send + Sync + 'static) {
    let router = Router::new()
        .route("/metrics", get(async || metrics::text()))
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(async move || readiness(&troubles())));
    let never = watch::channel(false).1;
    crate::http::serve(listener, router, Limits::of(CONNECTIONS), never).await;
}

fn readiness(troubles: &[String]) -> (StatusCode, String) {
    match troubles {
        [] => (StatusCode::OK, "ready\n".to_owned()),
        troubles => (StatusCode::SERVICE_UNAVAILABLE, format!("{}\n", troubles.join("\n"))),
    }
}
