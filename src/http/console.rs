//! The console: one page, the files it consists of, and where the gateway is that it tries devices on.
//!
//! Everything it loads is from here. Its policy lets it talk to this listener and to the gateway of this process, and
//! to nobody else.

use super::{ApiError, AppState, answer};
use crate::api::answers::{Edge, EdgeAddress};
use axum::extract::State;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderValue, Uri, header};
use axum::response::{Html, IntoResponse, Response};
use std::net::SocketAddr;

/// What browsers load without a token: it is in the repository and says nothing of this server.
const FILES: [(&str, &str); 16] = [
    ("/rollcall.js", include_str!("../../clients/js/rollcall.js")),
    ("/console/style.css", include_str!("console/style.css")),
    ("/console/changes.js", include_str!("console/changes.js")),
    ("/console/chart.js", include_str!("console/chart.js")),
    ("/console/dom.js", include_str!("console/dom.js")),
    ("/console/incidents.js", include_str!("console/incidents.js")),
    ("/console/kicks.js", include_str!("console/kicks.js")),
    ("/console/main.js", include_str!("console/main.js")),
    ("/console/operator.js", include_str!("console/operator.js")),
    ("/console/past.js", include_str!("console/past.js")),
    ("/console/pretend.js", include_str!("console/pretend.js")),
    ("/console/sentences.js", include_str!("console/sentences.js")),
    ("/console/server.js", include_str!("console/server.js")),
    ("/console/try.js", include_str!("console/try.js")),
    ("/console/user.js", include_str!("console/user.js")),
    ("/console/watch.js", include_str!("console/watch.js")),
];

/// The gateway of this process, for clients that ask where to connect.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct GatewayAddress {
    /// Where it listens.
    pub address: SocketAddr,
    /// Whether with TLS.
    pub tls: bool,
    /// Whether it asks for a token; else it takes `?user=`.
    pub token: bool,
}

impl GatewayAddress {
    /// Its URL, for a client that reached this listener by the name in its `Host`. `None` if that is no name or address.
    fn url(&self, headers: &HeaderMap) -> Option<String> {
        let scheme = if self.tls { "wss" } else { "ws" };
        let address = self.address;
        // A certificate is for a name, and "everywhere" is no place to go.
        if !self.tls && !address.ip().is_unspecified() {
            return Some(format!("{scheme}://{address}"));
        }
        let host: Authority = headers.get(header::HOST)?.to_str().ok()?.parse().ok()?;
        Some(format!("{scheme}://{}:{}", host.host(), address.port()))
    }
}

/// `GET /v1/edge`: where clients connect, if this process has a gateway.
pub async fn edge(State(app): State<AppState>, headers: HeaderMap) -> Response {
    let edge = *app.edge.borrow();
    let shown = edge.and_then(|edge| {
        Some(EdgeAddress {
            url: edge.url(&headers)?,
            token: edge.token,
        })
    });
    answer(&Edge { edge: shown })
}

/// `GET /`: the page.
pub async fn page(State(app): State<AppState>, headers: HeaderMap) -> Response {
    let edge = *app.edge.borrow();
    let mut page = Html(include_str!("console/page.html")).into_response();
    let sent = page.headers_mut();
    sent.insert(header::CONTENT_SECURITY_POLICY, policy(edge, &headers));
    sent.insert(header::X_FRAME_OPTIONS, HeaderValue::from_static("DENY"));
    shared(sent);
    page
}

/// `GET /rollcall.js`, `GET /console/…`: one of the [`FILES`].
pub async fn file(uri: Uri) -> Result<Response, ApiError> {
    let found = FILES.iter().find(|(path, _)| *path == uri.path());
    let (path, text) = found.ok_or_else(super::nothing_here)?;
    let kind = match path.ends_with(".css") {
        true => HeaderValue::from_static("text/css; charset=utf-8"),
        false => HeaderValue::from_static("text/javascript; charset=utf-8"),
    };
    let mut file = ([(header::CONTENT_TYPE, kind)], *text).into_response();
    shared(file.headers_mut());
    Ok(file)
}

/// Asked for again each time, since another version may serve another page.
pub const REVALIDATED: HeaderValue = HeaderValue::from_static("no-cache");

fn shared(headers: &mut HeaderMap) {
    headers.insert(header::CACHE_CONTROL, REVALIDATED);
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
}

/// What the page may load and whom it may talk to.
fn policy(edge: Option<GatewayAddress>, headers: &HeaderMap) -> HeaderValue {
    let url = edge.and_then(|edge| edge.url(headers));
    let plain = |url: &str| {
        url.bytes()
            .all(|byte| byte.is_ascii_alphanumeric() || b":/.-".contains(&byte))
    };
    let gateway = match url {
        // Nothing in a name may end the directive that it is in.
        Some(url) if plain(&url) => format!(" {url}"),
        // Such a policy has no way to write an IPv6 address.
        Some(url) if url.contains('[') => format!(" {}:", if url.starts_with("wss") { "wss" } else { "ws" }),
        _ => String::new(),
    };
    let text = format!(
        "default-src 'none'; script-src 'self'; style-src 'self'; \
         connect-src 'self'{gateway}; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    );
    HeaderValue::from_str(&text).unwrap_or(HeaderValue::from_static("default-src 'none'"))
}
