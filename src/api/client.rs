//! The client of a running server: one request and its answer as types, or a subscription.
//!
//! It never retries and has only the time-outs of the HTTP client that it is given: each caller decides whether to wait
//! and ask again. The server's URL may have a path.

use super::error::{ErrorAnswer, ErrorDetail};
use super::routes::{RouteId, RouteMethod};
use super::sse::{EventReader, StreamEvent};
use reqwest::header::{CONTENT_TYPE, HeaderName};
use reqwest::{IntoUrl, Method, RequestBuilder, Response, StatusCode, Url};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

/// Above the longest event that a server sends.
const EVENT_BYTES_MAX: usize = 4 << 20;
const LAST_EVENT_ID: HeaderName = HeaderName::from_static("last-event-id");

/// Why a request has no usable answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// The server was not reached, or the connection broke before the end of the answer.
    #[error("{0}")]
    Unreached(#[from] reqwest::Error),
    /// The answer has another status than success. The detail is empty if the body is not an API error.
    #[error("{status}: {}", detail.message)]
    Refused {
        status: StatusCode,
        detail: Box<ErrorDetail>,
        /// Whether the body is an API error: if not, the URL is probably of another service.
        is_ours: bool,
    },
    #[error("{path} of the server is not what was expected: {why}")]
    Unreadable { path: &'static str, why: String },
}

/// A request for a route without a varying segment, as it goes over the wire: who signs requests signs this.
#[derive(Clone, Debug)]
pub struct RouteRequest {
    route: RouteId,
    /// The parameters in the form of a query string, if there are any.
    query: Option<String>,
    /// JSON.
    body: Option<Vec<u8>>,
}

impl RouteRequest {
    pub fn new(route: RouteId, query: &[(&str, &str)]) -> RouteRequest {
        let mut pairs = form_urlencoded::Serializer::new(String::new());
        let query = (!query.is_empty()).then(|| pairs.extend_pairs(query).finish());
        RouteRequest {
            route,
            query,
            body: None,
        }
    }

    /// The same with a body that is JSON already.
    pub fn with_body(self, body: Vec<u8>) -> RouteRequest {
        RouteRequest {
            body: Some(body),
            ..self
        }
    }

    pub fn route(&self) -> RouteId {
        self.route
    }

    pub fn method(&self) -> Method {
        match self.route.route().method {
            RouteMethod::Get => Method::GET,
            RouteMethod::Post => Method::POST,
        }
    }

    /// Returns the path with its query.
    pub fn target(&self) -> String {
        let path = self.route.route().path;
        match &self.query {
            Some(query) => format!("{path}?{query}"),
            None => path.to_owned(),
        }
    }

    /// Returns where the route is at a server whose URL may have a path.
    fn url_at(&self, server: &Url) -> Url {
        let mut url = server.clone();
        let path = server.path().trim_end_matches('/');
        url.set_path(&format!("{path}{}", self.route.route().path));
        if let Some(query) = &self.query {
            url.set_query(Some(query));
        }
        url
    }

    /// Begins to send it to a URL that has its target already.
    pub fn begin(self, http: &reqwest::Client, url: impl IntoUrl) -> RequestBuilder {
        let request = http.request(self.method(), url);
        match self.body {
            Some(body) => request.header(CONTENT_TYPE, "application/json").body(body),
            None => request,
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Client {
    http: reqwest::Client,
    url: Url,
    token: Option<Arc<str>>,
}

impl Client {
    /// Returns a client of the server at a URL, with a bearer token if the server needs one.
    pub fn new(http: reqwest::Client, url: &Url, token: Option<&str>) -> Client {
        Client {
            http,
            url: url.clone(),
            token: token.map(Arc::from),
        }
    }

    fn request(&self, asked: RouteRequest) -> RequestBuilder {
        let url = asked.url_at(&self.url);
        let request = asked.begin(&self.http, url);
        match &self.token {
            Some(token) => request.bearer_auth(token),
            None => request,
        }
    }

    /// Asks for a route and returns the body of its answer.
    pub async fn get_bytes(&self, route: RouteId) -> Result<Vec<u8>, ClientError> {
        self.send_bytes(RouteRequest::new(route, &[])).await
    }

    /// Asks for a route.
    pub async fn get<T: DeserializeOwned>(&self, route: RouteId) -> Result<T, ClientError> {
        read(route, &self.get_bytes(route).await?)
    }

    /// Sends a request and returns the body of its answer.
    pub async fn send_bytes(&self, asked: RouteRequest) -> Result<Vec<u8>, ClientError> {
        answered(self.request(asked)).await
    }

    /// Posts a body that is JSON already and returns that of the answer.
    pub async fn post_bytes(&self, route: RouteId, body: Vec<u8>) -> Result<Vec<u8>, ClientError> {
        self.send_bytes(RouteRequest::new(route, &[]).with_body(body)).await
    }

    /// Like [`Client::post_bytes`], for a request that belongs to a trace.
    pub async fn post_traced(&self, route: RouteId, body: Vec<u8>, traceparent: &str) -> Result<Vec<u8>, ClientError> {
        let request = self.request(RouteRequest::new(route, &[]).with_body(body));
        answered(request.header("traceparent", traceparent)).await
    }

    /// Posts a body.
    pub async fn post<T: DeserializeOwned>(&self, route: RouteId, body: &impl Serialize) -> Result<T, ClientError> {
        let body = serde_json::to_vec(body).map_err(|error| unreadable(route, &error))?;
        read(route, &self.post_bytes(route, body).await?)
    }

    /// Opens a subscription. A cursor that is given goes into the header `Last-Event-ID`: the subscription continues there.
    pub async fn follow(
        &self,
        route: RouteId,
        query: &[(&str, &str)],
        last_event_id: Option<&str>,
    ) -> Result<EventStream, ClientError> {
        let mut request = self.request(RouteRequest::new(route, query));
        if let Some(cursor) = last_event_id {
            request = request.header(LAST_EVENT_ID, cursor);
        }
        let response = request.send().await?;
        let status = response.status();
        if status != StatusCode::OK {
            return Err(refused(status, &response.bytes().await?));
        }
        Ok(EventStream {
            response,
            reader: EventReader::new(EVENT_BYTES_MAX),
            ready: VecDeque::new(),
        })
    }
}

async fn answered(request: RequestBuilder) -> Result<Vec<u8>, ClientError> {
    let response = request.send().await?;
    let status = response.status();
    let body = response.bytes().await?;
    match status.is_success() {
        true => Ok(body.to_vec()),
        false => Err(refused(status, &body)),
    }
}

/// Whether a refusal with this status passes by itself: the same request may succeed later.
pub fn passes(status: StatusCode) -> bool {
    !status.is_client_error() || status == StatusCode::TOO_MANY_REQUESTS
}

fn refused(status: StatusCode, body: &[u8]) -> ClientError {
    let read = serde_json::from_slice::<ErrorAnswer>(body);
    ClientError::Refused {
        status,
        is_ours: read.is_ok(),
        detail: Box::new(read.map(|answer| answer.error).unwrap_or_default()),
    }
}

/// Reads an answer of any status.
pub fn read_answer<T: DeserializeOwned>(route: RouteId, status: StatusCode, body: &[u8]) -> Result<T, ClientError> {
    match status.is_success() {
        true => read(route, body),
        false => Err(refused(status, body)),
    }
}

/// Reads the answer of a success.
pub fn read<T: DeserializeOwned>(route: RouteId, body: &[u8]) -> Result<T, ClientError> {
    serde_json::from_slice(body).map_err(|error| unreadable(route, &error))
}

fn unreadable(route: RouteId, error: &serde_json::Error) -> ClientError {
    ClientError::Unreadable {
        path: route.route().path,
        why: error.to_string(),
    }
}

/// Why a subscription has ended.
#[derive(Debug, thiserror::Error)]
pub enum StreamEnd {
    #[error("the subscription has ended")]
    Ended,
    #[error("{0}")]
    Broken(#[from] reqwest::Error),
    #[error("{0}")]
    TooLong(#[from] super::sse::TooLong),
}

/// An open subscription.
pub struct EventStream {
    response: Response,
    reader: EventReader,
    ready: VecDeque<StreamEvent>,
}

impl EventStream {
    /// Returns the next event, cursor or comment. Cancel safe.
    pub async fn next(&mut self) -> Result<StreamEvent, StreamEnd> {
        loop {
            if let Some(event) = self.ready.pop_front() {
                return Ok(event);
            }
            let chunk = self.response.chunk().await?.ok_or(StreamEnd::Ended)?;
            self.ready.extend(self.reader.push(&chunk)?);
        }
    }

    /// Like [`EventStream::next`], but returns None after `silence` without anything.
    pub async fn next_within(&mut self, silence: Duration) -> Option<Result<StreamEvent, StreamEnd>> {
        tokio::time::timeout(silence, self.next()).await.ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn routes_are_below_the_path_of_the_server() {
        for (url, changes) in [
            ("http://127.0.0.1:8080", "http://127.0.0.1:8080/v1/changes?after=0%3A1"),
            ("http://127.0.0.1:8080/", "http://127.0.0.1:8080/v1/changes?after=0%3A1"),
            (
                "https://example.com/presence/",
                "https://example.com/presence/v1/changes?after=0%3A1",
            ),
        ] {
            let client = Client::new(reqwest::Client::new(), &Url::parse(url).expect("a URL"), None);
            let asked = RouteRequest::new(RouteId::Changes, &[("after", "0:1")]);
            let request = client.request(asked.clone()).build().expect("a request");
            assert_eq!(request.url().as_str(), changes);
            assert!(changes.ends_with(&asked.target()), "{}", asked.target());
        }
    }

    #[test]
    fn what_a_parameter_contains_ends_no_parameter() {
        let asked = RouteRequest::new(RouteId::UserById, &[("id", "a&b=c d/é+#"), ("at_least", "7")]);
        assert_eq!(asked.target(), "/v1/user?id=a%26b%3Dc+d%2F%C3%A9%2B%23&at_least=7");
        let server = Url::parse("http://127.0.0.1:8080").expect("a URL");
        let sent = asked.url_at(&server);
        assert_eq!(
            format!("{}?{}", sent.path(), sent.query().unwrap_or_default()),
            asked.target()
        );
    }
}
