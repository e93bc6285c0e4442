//! The other nodes: a node that does not have a partition asks the node that has.
//!
//! Who has which partition the owners say themselves, in the log ([`Owners`]). A request that comes from a node is
//! answered from what is here and goes no further, so that none runs in circles while partitions move; what nobody can
//! answer at the moment is a 503 with a moment to wait, never a guess. Nodes know each other by a secret of their own
//! ([`PeerKey`]), and if a CA is given by certificates too; what a caller has shown to one of them is never sent to another.

use super::ApiError;
use super::peer_key::{self, PeerKey, PeerQuestion, Proof};
use crate::api::client::{ClientError, RouteRequest, read_answer};
use crate::api::error::ErrorDetail;
use crate::api::routes::{Route, RouteId};
use crate::cause::reason;
use crate::clock::Clock;
use crate::log::{self, Owners};
use crate::metrics;
use crate::presence::Partition;
use crate::tls::{HasCertificate, TrustedClient};
use axum::body::{Body, Bytes, to_bytes};
use axum::extract::Request;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use serde::Serialize;
use serde::de::DeserializeOwned;
use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// In every request of a node to another: its URL.
const FROM_NODE: HeaderName = HeaderName::from_static("rollcall-from-node");
const CONNECT: Duration = Duration::from_secs(1);
/// Longer than a question may wait for `at_least`.
const ANSWER: Duration = Duration::from_secs(8);
/// The largest answer of a node to another.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// So many questions may be on their way to one other node. A node that answers has them answered in milliseconds; one that
/// does not would otherwise hold as many as there are connections here, each for [`ANSWER`].
const ASKED_MAX: usize = 256;

/// How many questions are on their way to which node. A node that is not asked has no entry.
type Asked = Arc<Mutex<BTreeMap<Box<str>, usize>>>;

/// A question that is on its way, until it is dropped.
struct OnItsWay {
    asked: Asked,
    url: Box<str>,
}

impl OnItsWay {
    /// `None`: as many as may be are on their way to this node.
    fn begin(asked: &Asked, url: &str) -> Option<OnItsWay> {
        let mut counts = asked.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(url.into()).or_default();
        if *count >= ASKED_MAX {
            return None;
        }
        *count += 1;
        Some(OnItsWay {
            asked: asked.clone(),
            url: url.into(),
        })
    }
}

impl Drop for OnItsWay {
    fn drop(&mut self) {
        let mut counts = self.asked.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.url) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.url);
            }
        }
    }
}

/// See the module.
#[derive(Clone)]
pub struct Peers {
    owners: Arc<dyn Owners>,
    asked: Asked,
    me: HeaderValue,
    transport: PeerTransport,
    trust: PeerTrust,
    clock: Arc<dyn Clock>,
}

/// How other nodes are reached.
#[derive(Clone)]
enum PeerTransport {
    Plain(reqwest::Client),
    /// With a CA for the certificates of nodes. `required`: a node without one is neither asked nor answered.
    Certified {
        client: Arc<TrustedClient>,
        required: bool,
    },
}

/// How other nodes are known.
#[derive(Clone)]
pub enum PeerTrust {
    /// By the secret that all nodes have.
    Key(PeerKey),
    /// Everybody on this machine may ask everything, and so may its nodes.
    Everybody,
    /// Not at all: callers need a token here, and nodes have nothing that they could show.
    Nobody,
}

/// On whose behalf a request is made.
#[derive(Clone, Copy)]
pub struct Asker {
    from_node: bool,
}

impl Asker {
    pub fn of(headers: &HeaderMap) -> Asker {
        Asker {
            from_node: headers.contains_key(FROM_NODE),
        }
    }

    /// Somebody who was let in here.
    pub fn caller() -> Asker {
        Asker { from_node: false }
    }

    /// Whether another node asks, which wants to know what is here and no more.
    pub fn is_node(&self) -> bool {
        self.from_node
    }
}

/// Why there is nothing of another node that can be used.
#[derive(Debug)]
pub enum NoAnswer {
    /// It was not asked, or did not answer, or did not prove that it is a node of this cluster.
    Unreached(ApiError),
    Refused {
        url: Box<str>,
        status: StatusCode,
        detail: Box<ErrorDetail>,
        /// Whether the body is an API error.
        is_ours: bool,
    },
    Unreadable {
        url: Box<str>,
    },
}

impl From<NoAnswer> for ApiError {
    fn from(no_answer: NoAnswer) -> ApiError {
        match no_answer {
            NoAnswer::Unreached(api_error) => api_error,
            NoAnswer::Refused {
                url,
                status,
                detail,
                is_ours,
            } => {
                let why = if is_ours {
                    detail.message.as_str()
                } else {
                    "no reason given"
                };
                let message = format!("the node {url} cannot answer at the moment ({status}): {why}");
                ApiError::unavailable("moving", message)
            }
            NoAnswer::Unreadable { url } => unreadable(&url),
        }
    }
}

/// What there is to say of an answer of another node that is not in the form of its route.
pub fn unreadable(url: &str) -> ApiError {
    ApiError::unavailable("moving", format!("node {url} returned an unreadable response"))
}

impl Peers {
    /// `url` is where the others reach this node.
    pub fn new(owners: Arc<dyn Owners>, url: &str, trust: PeerTrust, clock: Arc<dyn Clock>) -> anyhow::Result<Peers> {
        Ok(Peers {
            owners,
            asked: Asked::default(),
            me: HeaderValue::from_str(url)?,
            transport: PeerTransport::Plain(Peers::client().build()?),
            trust,
            clock,
        })
    }

    /// The same, with nodes that know each other by certificates. Where these are `required`, a request of a node without one
    /// is refused, and no node is asked without TLS.
    pub fn with_certificates(self, client: Arc<TrustedClient>, required: bool) -> Peers {
        Peers {
            transport: PeerTransport::Certified { client, required },
            ..self
        }
    }

    /// The settings of a client that asks other nodes.
    pub fn client() -> reqwest::ClientBuilder {
        reqwest::Client::builder()
            .connect_timeout(CONNECT)
            .timeout(ANSWER)
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy()
    }

    /// Where the others reach this node.
    pub fn me(&self) -> &str {
        self.me.to_str().unwrap_or_default()
    }

    /// Where a partition was last taken up: the start of a URL.
    pub fn owner(&self, partition: Partition) -> Option<String> {
        self.owners.url_of(partition)
    }

    /// Where other nodes answer that have a standby of a partition ready.
    pub fn standbys(&self, partition: Partition) -> Vec<String> {
        let mut urls = self.owners.standbys_of(partition);
        urls.retain(|url| self.me != url.as_str());
        urls
    }

    /// Whom to ask for a partition that is not here, if there is somebody.
    pub fn elsewhere(&self, partition: Partition, asker: &Asker) -> Option<String> {
        let (owned, _) = self.by_owner(std::iter::once(partition));
        owned.into_keys().next().filter(|_| !asker.is_node())
    }

    /// Groups partitions by owner. Partitions with no owner, or recorded as ours although we no longer hold them, are
    /// returned separately as moving.
    pub fn by_owner(
        &self,
        partitions: impl Iterator<Item = Partition>,
    ) -> (BTreeMap<String, Vec<Partition>>, Vec<Partition>) {
        let mut owned: BTreeMap<String, Vec<Partition>> = BTreeMap::new();
        let mut moving = Vec::new();
        for partition in partitions {
            match self.owner(partition) {
                Some(url) if self.me != url => owned.entry(url).or_default().push(partition),
                Some(_) | None => moving.push(partition),
            }
        }
        (owned, moving)
    }

    /// What is to be said of asking other nodes, if they are not asked.
    pub fn warning(&self) -> Option<&'static str> {
        match self.trust {
            PeerTrust::Nobody => Some(NO_KEY),
            PeerTrust::Key(_) | PeerTrust::Everybody => None,
        }
    }

    /// Asks a node.
    pub async fn ask<T: DeserializeOwned>(&self, url: &str, asked: RouteRequest) -> Result<T, NoAnswer> {
        let route = asked.route();
        let (status, body) = self.send(url, asked).await.map_err(NoAnswer::Unreached)?;
        read_answer(route, status, &body).map_err(|error| match error {
            ClientError::Refused {
                status,
                detail,
                is_ours,
            } => NoAnswer::Refused {
                url: url.into(),
                status,
                detail,
                is_ours,
            },
            ClientError::Unreached(_) | ClientError::Unreadable { .. } => NoAnswer::Unreadable { url: url.into() },
        })
    }

    /// Asks a node with a body.
    pub async fn post<T: DeserializeOwned>(
        &self,
        url: &str,
        route: RouteId,
        body: &impl Serialize,
    ) -> Result<T, NoAnswer> {
        let body = serde_json::to_vec(body).map_err(|error| NoAnswer::Unreached(ApiError::json(&error)))?;
        self.ask(url, RouteRequest::new(route, &[]).with_body(body)).await
    }

    /// Sends a request to a node and returns its answer as it is, to be passed on.
    pub async fn send(&self, url: &str, asked: RouteRequest) -> Result<(StatusCode, Bytes), ApiError> {
        let client = match &self.transport {
            PeerTransport::Plain(client) => client.clone(),
            // Somebody who may write to the topic of owners must not learn who is asked for.
            PeerTransport::Certified { required: true, .. } if !url.starts_with("https://") => {
                let message = format!(
                    "the node {url} advertises no https:// URL, and with --peer-ca nodes ask each other only over TLS; give \
                     it --http-tls-cert, or set --peer-certificates optional here until it has one"
                );
                return Err(ApiError::unavailable("unknown_peer", message));
            }
            PeerTransport::Certified { client, .. } => client.current(),
        };
        let (method, path) = (asked.method(), asked.target());
        let request = asked.begin(&client, format!("{url}{path}"));
        let mut request = request.header(FROM_NODE, self.me.clone());
        let proof = match &self.trust {
            PeerTrust::Everybody => None,
            PeerTrust::Nobody => return Err(ApiError::unavailable("no_peer_token", NO_KEY)),
            PeerTrust::Key(key) => {
                let question = PeerQuestion {
                    from: self.me(),
                    to: url,
                    method: &method,
                    path: &path,
                };
                let (proof, header) = key.prove(self.clock.now_ms(), question);
                request = request.header(peer_key::PROOF, header);
                Some((key, proof))
            }
        };
        let Some(_on_its_way) = OnItsWay::begin(&self.asked, url) else {
            metrics::question_refused();
            let message =
                format!("{ASKED_MAX} questions are waiting for the node {url}, which is the limit; try again shortly");
            return Err(ApiError::unavailable("busy", message));
        };
        // Its certificate may be the reason, and an error of TLS does not say which CAs were expected.
        let hint = match &self.transport {
            PeerTransport::Plain(_) if url.starts_with("https://") => NO_CA,
            PeerTransport::Plain(_) | PeerTransport::Certified { .. } => "",
        };
        let unreached = |error: reqwest::Error| {
            let why = reason(error);
            ApiError::unavailable(
                "moving",
                format!("the node {url}, which had the partition last, does not answer: {why}{hint}"),
            )
        };
        let response = request.send().await.map_err(unreached)?;
        let (status, headers) = (response.status(), response.headers().clone());
        let body = response.bytes().await.map_err(unreached)?;
        if proof.is_some_and(|(key, proof)| !key.is_answered(proof, status, &headers, &body)) {
            let message = format!(
                "{url}, which the topic of owners names, did not prove that it is a node of this cluster ({status}); \
                 check that --peer-token-file is the same on all nodes"
            );
            return Err(ApiError::unavailable("unknown_peer", message));
        }
        Ok((status, body))
    }

    /// Refuses a request that claims to be a node's and came without the certificate that nodes must show.
    pub fn check_certificate(&self, request: &Request) -> Result<(), ApiError> {
        let is_required = matches!(&self.transport, PeerTransport::Certified { required: true, .. });
        let headers = request.headers();
        let claims = headers.contains_key(FROM_NODE) || headers.contains_key(peer_key::PROOF);
        if !is_required || !claims || request.extensions().get::<HasCertificate>().is_some() {
            return Ok(());
        }
        let message = "this request says that it is from a node, but its connection has no certificate of --peer-ca; check \
                       that the node has the same --peer-ca, and a certificate for clients and servers";
        Err(ApiError::new(StatusCode::UNAUTHORIZED, "unknown_peer", message))
    }

    /// Whether a request claims to be a node's, and if so, whether it is. None: it is anybody's.
    pub fn proven(&self, request: &Request, route: Option<&Route>) -> Option<Result<Proof, ApiError>> {
        let PeerTrust::Key(key) = &self.trust else { return None };
        let headers = request.headers();
        headers.get(peer_key::PROOF)?;
        let refused = |why: &str| {
            let message = format!("this request is not from a node of this cluster: {why}");
            Err(ApiError::new(StatusCode::UNAUTHORIZED, "unknown_peer", message))
        };
        let path = request.uri().path_and_query().map_or("", |path| path.as_str());
        let question = PeerQuestion {
            from: headers
                .get(FROM_NODE)
                .and_then(|url| url.to_str().ok())
                .unwrap_or_default(),
            to: self.me(),
            method: request.method(),
            path,
        };
        let proof = match key.check(headers, self.clock.now_ms(), question) {
            Ok(proof) => proof,
            Err(why) => return Some(refused(why)),
        };
        if !route.is_some_and(|route| route.by_nodes) {
            return Some(refused("nodes do not ask for this path"));
        }
        Some(Ok(proof))
    }

    /// Answers another node, in a way that it can believe.
    pub async fn answer(&self, proof: Proof, request: Request, next: Next) -> Response {
        let (mut parts, body) = next.run(request).await.into_parts();
        let PeerTrust::Key(key) = &self.trust else {
            return Response::from_parts(parts, body);
        };
        match to_bytes(body, ANSWER_BYTES_MAX).await {
            Ok(body) => {
                let answer = key.answer(proof, parts.status, &body);
                parts.headers.insert(peer_key::ANSWER, answer);
                Response::from_parts(parts, Body::from(body))
            }
            Err(error) => {
                let message = format!("the answer cannot be given to another node: {error}");
                ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message).into_response()
            }
        }
    }
}

/// Why no other node is asked.
const NO_KEY: &str = "this node asks no other node, because there is a --token-file or an --oidc-issuer and no \
                      --peer-token-file: give all nodes the same secret with --peer-token-file";

/// After an error of a node with TLS, where no CA is given for nodes.
const NO_CA: &str = "; without --peer-ca its certificate must be of a CA that this machine trusts";

/// What there is to say of a partition that nobody can be asked about. Without brokers no node has one, however long one waits.
pub fn moving(partition: Partition, refusal: Option<log::Error>) -> ApiError {
    let message = match refusal {
        None => format!("partition {partition} is moving between two nodes; try again shortly"),
        Some(refusal) => format!("no node has partition {partition} at the moment: {refusal}"),
    };
    ApiError::unavailable("moving", message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::presence::Revision;
    use futures_util::future::join_all;
    use std::pin::pin;
    use tokio::net::TcpListener;

    struct Nobody;

    impl Owners for Nobody {
        fn url_of(&self, _: Partition) -> Option<String> {
            None
        }

        fn lowest_revision(&self) -> Option<Revision> {
            None
        }
    }

    #[tokio::test]
    async fn a_node_that_does_not_answer_holds_a_number_of_questions_and_others_are_asked_as_before() {
        let owners = Arc::new(Nobody);
        let clock = Arc::new(SystemClock::new());
        let peers = Peers::new(owners, "http://127.0.0.1:1", PeerTrust::Everybody, clock).expect("a client");
        // They accept connections and answer nothing.
        let silent = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let other = TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = |listener: &TcpListener| format!("http://{}", listener.local_addr().expect("an address"));
        let (silent_url, other_url) = (url(&silent), url(&other));
        let stats = || RouteRequest::new(RouteId::Stats, &[]);
        let on_their_way = || peers.asked.lock().expect("nobody has panicked").clone();
        {
            let ask = || peers.send(&silent_url, stats());
            let mut waiting = pin!(join_all((0..ASKED_MAX).map(|_| ask())));
            assert!(futures_util::poll!(waiting.as_mut()).is_pending());
            assert_eq!(on_their_way().get(&*silent_url), Some(&ASKED_MAX));
            let refused = ask().await.expect_err("there is no room");
            assert_eq!(
                (refused.status(), refused.code()),
                (StatusCode::SERVICE_UNAVAILABLE, "busy")
            );
            assert!(refused.message().contains(&silent_url), "{}", refused.message());
            let mut elsewhere = pin!(peers.send(&other_url, stats()));
            assert!(
                futures_util::poll!(elsewhere.as_mut()).is_pending(),
                "another node is asked"
            );
        }
        // Nobody waits any more.
        assert_eq!(on_their_way(), BTreeMap::new());
        let mut again = pin!(peers.send(&silent_url, stats()));
        assert!(futures_util::poll!(again.as_mut()).is_pending(), "it is asked again");
    }
}
