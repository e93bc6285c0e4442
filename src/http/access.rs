//! Who may do what.
//!
//! With a token file every request but the console and the probes needs a bearer token with the right scope.
//! Without one (loopback only) a web page of somebody else must not reach in through the user's browser: a request
//! from another origin, or to a name that is not this machine's, is refused.

use super::{Face, Fault, console};
use crate::config::Scopes;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, Method, StatusCode, header};
use axum::middleware::Next;
use axum::response::{IntoResponse, Response};
use std::net::{IpAddr, SocketAddr};

pub struct Access {
    /// Hashes, so that comparing them tells nothing about a token by its time.
    tokens: Option<Vec<(blake3::Hash, Scopes)>>,
    loopback: bool,
}

const EVERYTHING: Scopes = Scopes {
    read: true,
    publish: true,
    admin: true,
};

impl Access {
    pub fn new(tokens: Option<&[(String, Scopes)]>, listen: SocketAddr) -> Access {
        let hashed = |(token, scopes): &(String, Scopes)| (blake3::hash(token.as_bytes()), *scopes);
        Access {
            tokens: tokens.map(|tokens| tokens.iter().map(hashed).collect()),
            loopback: listen.ip().is_loopback(),
        }
    }

    fn scopes(&self, headers: &HeaderMap) -> Result<Scopes, Fault> {
        let Some(tokens) = &self.tokens else {
            return Ok(EVERYTHING);
        };
        let authorization = headers.get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let scheme_and_token = authorization.and_then(|value| value.split_once(' '));
        let Some((_, token)) = scheme_and_token.filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer")) else {
            let message = "an Authorization header with a bearer token is needed";
            return Err(Fault::new(StatusCode::UNAUTHORIZED, "no_token", message));
        };
        let hash = blake3::hash(token.trim().as_bytes());
        let known = tokens.iter().find(|(known, _)| *known == hash);
        known.map(|(_, scopes)| *scopes).ok_or_else(|| {
            let message = "this bearer token is not known here";
            Fault::new(StatusCode::UNAUTHORIZED, "unknown_token", message)
        })
    }

    /// Only where no token protects: see the module.
    fn check_origin(&self, headers: &HeaderMap) -> Result<(), Fault> {
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
            let message = format!("{what}; only this machine is served without --token-file");
            Err(Fault::new(StatusCode::FORBIDDEN, "foreign_origin", message))
        };
        if !host.is_empty() && name != "localhost" && !is_address {
            return foreign(&format!("the host {name:?} is not an address of this machine"));
        }
        match text(header::ORIGIN) {
            Some(origin) if origin.split_once("://").map(|(_, authority)| authority) != Some(host) => {
                foreign(&format!("the request comes from the page of another origin, {origin}"))
            }
            _ => Ok(()),
        }
    }
}

/// Lets a request through with its scopes, or refuses it.
pub async fn check(State(face): State<Face>, mut request: Request, next: Next) -> Response {
    let path = request.uri().path();
    let is_file = console::FILES.iter().any(|(file, _)| *file == path);
    if is_file || matches!(path, "/" | "/healthz" | "/readyz") {
        return next.run(request).await;
    }
    if let Some(peers) = &face.peers
        && let Some(proven) = peers.proven(&request)
    {
        return match proven {
            Ok(proof) => {
                request.extensions_mut().insert(Scopes {
                    read: true,
                    ..Scopes::default()
                });
                peers.clone().answer(proof, request, next).await
            }
            Err(fault) => fault.into_response(),
        };
    }
    let allowed = face
        .access
        .check_origin(request.headers())
        .and_then(|()| face.access.scopes(request.headers()));
    let scopes = match allowed {
        Ok(scopes) => scopes,
        Err(fault) => return fault.into_response(),
    };
    let publishes = request.method() == Method::POST && path == "/v1/events";
    let (needed, has) = match publishes {
        true => ("publish", scopes.publish || scopes.admin),
        false => ("read", scopes.read),
    };
    if !has {
        return forbidden(needed).into_response();
    }
    request.extensions_mut().insert(scopes);
    next.run(request).await
}

/// The token lacks a scope.
pub fn forbidden(scope: &str) -> Fault {
    let message = format!("this bearer token does not have the scope {scope}, which this needs");
    Fault::new(StatusCode::FORBIDDEN, "forbidden", message)
}
