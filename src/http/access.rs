//! Who may do what.
//!
//! The table of routes says what each needs ([`Need`]); a path or a method that is not in it needs the scope read even to
//! learn that, so that nothing is open by mistake. All of it is decided by the head of a request, before its body is read.
//!
//! With a token file or an issuer ([`Issuer`]) every request but the console and the probes needs a bearer token with the right
//! scope.
//! Without one (loopback only) a web page of somebody else must not reach in through the user's browser: a request
//! from another origin, or to a name that is not this machine's, is refused.

use super::oidc::Issuer;
use super::query::parameter;
use super::tickets::{self, Limited};
use super::{ApiError, AppState, follow};
use crate::api::routes::{Need, Route};
use crate::config::Scopes;
use axum::extract::{MatchedPath, Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, SocketAddr};
use std::sync::{Arc, PoisonError, RwLock};
use tokio::sync::watch;

/// The route that a request is for. None: there is no such path, or it does not take this method.
fn route_of(request: &Request) -> Option<&'static Route> {
    let path = request.extensions().get::<MatchedPath>()?;
    Route::find(request.method().as_str(), path.as_str())
}

/// Who calls, and what that allows.
#[derive(Clone, Debug)]
pub struct Grant {
    pub scopes: Arc<Scopes>,
    /// For the log: the token's name or line, never the token.
    pub who: Arc<str>,
    /// The hash of the token. `None` if the server has no tokens.
    token: Option<blake3::Hash>,
    /// It came with a ticket, which may say of whom.
    pub limited: Option<Limited>,
    /// Until when a token of an issuer is accepted, in milliseconds since 1970.
    pub expires_ms: Option<u64>,
}

impl Grant {
    /// Another node may ask what nodes ask each other.
    fn of_a_node() -> Grant {
        let scopes = Scopes {
            read: true,
            ..Scopes::default()
        };
        Grant {
            scopes: Arc::new(scopes),
            who: "another node".into(),
            token: None,
            limited: None,
            expires_ms: None,
        }
    }
}

/// See the module.
pub struct Access {
    /// Hashes, so that comparing them tells nothing about a token by its time. None: everybody is let in.
    tokens: Option<RwLock<Arc<[KnownToken]>>>,
    /// Whose tokens are accepted beside these.
    issuer: Option<Arc<Issuer>>,
    /// Counts replacements of the tokens.
    replaced: watch::Sender<u64>,
    loopback: bool,
    /// Origins whose pages are let in from elsewhere.
    origins: Vec<String>,
}

struct KnownToken {
    hash: blake3::Hash,
    scopes: Arc<Scopes>,
    who: Arc<str>,
}

fn known(tokens: &[(String, Scopes)]) -> Arc<[KnownToken]> {
    let known = tokens.iter().enumerate().map(|(number, (token, scopes))| KnownToken {
        hash: blake3::hash(token.as_bytes()),
        scopes: Arc::new(scopes.clone()),
        who: match &scopes.name {
            Some(name) => name.as_str().into(),
            None => format!("token {}", number + 1).into(),
        },
    });
    known.collect()
}

impl Access {
    pub fn new(tokens: Option<&[(String, Scopes)]>, listen: SocketAddr) -> Access {
        Access {
            tokens: tokens.map(|tokens| RwLock::new(known(tokens))),
            issuer: None,
            replaced: watch::channel(0).0,
            loopback: listen.ip().is_loopback(),
            origins: Vec::new(),
        }
    }

    /// The same, with pages of these origins let in.
    pub fn with_origins(self, origins: Vec<String>) -> Access {
        Access { origins, ..self }
    }

    /// The same, with tokens of this issuer accepted too. Where everybody was let in, a token is needed from now on.
    pub fn with_issuer(self, issuer: Arc<Issuer>) -> Access {
        Access {
            tokens: Some(self.tokens.unwrap_or_else(|| RwLock::new(known(&[])))),
            issuer: Some(issuer),
            ..self
        }
    }

    /// What tickets of a caller are signed with.
    pub fn signing(grant: &Grant) -> blake3::Hash {
        // Where everybody is let in a ticket proves nothing, and is not looked at.
        grant.token.unwrap_or_else(|| blake3::hash(b""))
    }

    /// What a ticket grants.
    fn with_ticket(&self, ticket: &str, now_ms: u64) -> Result<Grant, ApiError> {
        let tokens = self.tokens().unwrap_or_default();
        let readers = || tokens.iter().filter(|known| known.scopes.read);
        let (token, limited) = tickets::verify(ticket, readers().map(|known| &known.hash), now_ms)?;
        let known = readers().find(|known| known.hash == *token);
        let known = known.ok_or_else(|| ApiError::bad_request("unknown_ticket", "its token is gone"))?;
        Ok(Grant {
            scopes: known.scopes.clone(),
            who: known.who.clone(),
            token: Some(known.hash),
            limited: Some(limited),
            expires_ms: None,
        })
    }

    /// Takes other tokens from now on. Subscriptions of a token that is no longer there end.
    pub fn replace(&self, tokens: &[(String, Scopes)]) {
        let Some(current) = &self.tokens else { return };
        *current.write().unwrap_or_else(PoisonError::into_inner) = known(tokens);
        self.replaced.send_modify(|count| *count += 1);
    }

    /// Moves whenever the tokens were replaced.
    pub fn replaced(&self) -> watch::Receiver<u64> {
        self.replaced.subscribe()
    }

    /// Whether what was granted would be granted again.
    pub fn still_allows(&self, grant: &Grant) -> bool {
        let (Some(tokens), Some(hash)) = (self.tokens(), grant.token) else {
            return true;
        };
        tokens
            .iter()
            .any(|known| known.hash == hash && known.scopes == grant.scopes)
    }

    fn tokens(&self) -> Option<Arc<[KnownToken]>> {
        let tokens = self.tokens.as_ref()?;
        Some(tokens.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    async fn grant(&self, headers: &HeaderMap) -> Result<Grant, ApiError> {
        let Some(tokens) = self.tokens() else {
            return Ok(Grant {
                scopes: Arc::new(Scopes::everything()),
                who: "anyone on this machine".into(),
                token: None,
                limited: None,
                expires_ms: None,
            });
        };
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let scheme_and_token = authorization.and_then(|value| value.split_once(' '));
        let Some((_, token)) = scheme_and_token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            let message = "an Authorization header with a bearer token is needed";
            return Err(ApiError::new(StatusCode::UNAUTHORIZED, "no_token", message));
        };
        let token = token.trim();
        let hash = blake3::hash(token.as_bytes());
        let known = tokens.iter().find(|known| known.hash == hash);
        // A token with two dots may be of the issuer.
        if let (None, Some(issuer)) = (known, &self.issuer)
            && token.matches('.').count() == 2
        {
            let issued = issuer.grant(token, hash).await?;
            return Ok(Grant {
                scopes: issued.scopes,
                who: issued.who,
                token: None,
                limited: None,
                expires_ms: Some(issued.expires_ms),
            });
        }
        let known = known.ok_or_else(|| {
            let message = "this bearer token is not known here";
            ApiError::new(StatusCode::UNAUTHORIZED, "unknown_token", message)
        })?;
        Ok(Grant {
            scopes: known.scopes.clone(),
            who: known.who.clone(),
            token: Some(hash),
            limited: None,
            expires_ms: None,
        })
    }

    /// Only where no token protects: see the module.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), ApiError> {
        if self.tokens.is_some() || !self.loopback {
            return Ok(());
        }
        let text = |name| headers.get(name).and_then(|value| value.to_str().ok());
        let host = text(header::HOST).unwrap_or_default();
        let name = host.rsplit_once(':').map_or(host, |(name, port)| {
            if port.bytes().all(|digit| digit.is_ascii_digit()) {
                name
            } else {
                host
            }
        });
        let is_address = name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok();
        let foreign = |what: &str| {
            let message = format!("{what}; only this machine is served without --token-file and --oidc-issuer");
            Err(ApiError::new(StatusCode::FORBIDDEN, "foreign_origin", message))
        };
        if !host.is_empty() && name != "localhost" && !is_address {
            return foreign(&format!("the host {name:?} is not an address of this machine"));
        }
        match text(header::ORIGIN) {
            Some(origin) if self.origins.iter().any(|known| known == origin) => Ok(()),
            Some(origin) if origin.split_once("://").map(|(_, authority)| authority) != Some(host) => {
                foreign(&format!("the request comes from the page of another origin, {origin}"))
            }
            _ => Ok(()),
        }
    }
}

/// Lets a request through with what it is granted, or refuses it.
pub async fn check(State(app): State<AppState>, mut request: Request, next: Next) -> Response {
    let route = route_of(&request);
    let need = route.map_or(Need::Read, |route| route.need);
    if need == Need::Nothing {
        return next.run(request).await;
    }
    if let Some(peers) = &app.peers
        && let Err(api_error) = peers.check_certificate(&request)
    {
        return api_error.into_response();
    }
    if let Some(peers) = &app.peers
        && let Some(proven) = peers.proven(&request, route)
    {
        return match proven {
            Ok(proof) => {
                request.extensions_mut().insert(Grant::of_a_node());
                peers.clone().answer(proof, request, next).await
            }
            Err(api_error) => api_error.into_response(),
        };
    }
    let ticket = match need {
        Need::Follow => parameter(request.uri().query(), "ticket"),
        Need::Nothing | Need::Read | Need::Publish | Need::Metrics | Need::UserSig => None,
    };
    let headers = request.headers();
    // A browser's EventSource is shown no refusal but one that it can follow.
    let refuse = |api_error: ApiError| match need {
        Need::Follow => follow::refused(headers, api_error),
        Need::Nothing | Need::Read | Need::Publish | Need::Metrics | Need::UserSig => api_error.into_response(),
    };
    let allowed = match (app.access.check_origin(headers), &ticket) {
        (Err(api_error), _) => Err(api_error),
        (Ok(()), Some(ticket)) if app.access.tokens.is_some() => app.access.with_ticket(ticket, app.engine.now_ms()),
        (Ok(()), Some(_) | None) => app.access.grant(headers).await,
    };
    let grant = match allowed {
        Ok(grant) => grant,
        Err(api_error) => return refuse(api_error),
    };
    let scopes = &grant.scopes;
    let lacks = match need {
        Need::Nothing => None,
        // Routes that ask for a UserSig are not behind this check; one that were would be closed.
        Need::UserSig => Some(forbidden("usersig")),
        Need::Read | Need::Follow => (!scopes.read).then(|| forbidden("read")),
        // Which events they are is not known yet.
        Need::Publish => (!scopes.publish && !scopes.admin).then(|| lacking(NO_PUBLISHER.to_owned())),
        Need::Metrics => (!scopes.metrics && !scopes.read).then(|| forbidden("metrics")),
    };
    if let Some(lacks) = lacks {
        return refuse(lacks);
    }
    request.extensions_mut().insert(grant);
    next.run(request).await
}

const NO_PUBLISHER: &str = "this bearer token has neither the scope publish, which events need, nor admin, which kick, policy, \
                            forget and revision need";

/// The token lacks a scope.
pub fn forbidden(scope: &str) -> ApiError {
    lacking(format!(
        "this bearer token does not have the scope {scope}, which this needs"
    ))
}

fn lacking(message: String) -> ApiError {
    ApiError::new(StatusCode::FORBIDDEN, "forbidden", message)
}
