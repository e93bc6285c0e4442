//! Bearer tokens of an OpenID Connect issuer: whose they are, what they allow, until when.
//!
//! A token is accepted if a key that the issuer publishes has signed it, and it names this issuer, this audience and a time
//! that has not passed. What it allows is in one claim, with a prefix of its own; what is not there is denied. Signatures are
//! RS256, ES256 or EdDSA, each only by a key of its kind.
//!
//! Keys are fetched in the background and kept. A token that names a key that is not known has them fetched again at once, at
//! most every ten seconds, however many such tokens come: few requests wait for that, and it goes on if they are gone. While the
//! issuer does not answer, known keys stay in force for a day; without
//! any, a token cannot be judged and is answered with 503. Nothing here keeps the engine from running.

use super::ApiError;
use crate::clock::Clock;
use crate::config::{Oidc, Scopes, is_loopback};
use crate::jwks::{self, KeySetPlace, LEEWAY_MS, VerificationKey, shown};
use crate::metrics;
use crate::tls::{BadFiles, trusting};
use axum::http::StatusCode;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, Validation, decode, decode_header};
use reqwest::Url;
use serde::Deserialize;
use serde_json::{Map, Value};
use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;
use tokio::sync::{OwnedMutexGuard, Semaphore, watch};

const ALGORITHMS: [Algorithm; 3] = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA];
const TOKEN_BYTES_MAX: usize = 8 << 10;
/// The time limit for fetching one document.
const FETCH: Duration = Duration::from_secs(5);
/// How often keys are fetched, and how soon after a failure.
const FETCH_EVERY: Duration = Duration::from_secs(600);
const RETRY: Duration = Duration::from_secs(10);
/// For how long a token whose key is not known waits while keys are being fetched.
const TURN: Duration = Duration::from_secs(1);
/// How many requests, at most, wait for that at a time.
const WAITING_MAX: usize = 32;
/// How often, at most, a token whose key is not known has keys fetched.
const AGAIN_MS: u64 = 10_000;
/// For how long keys stay in force that cannot be fetched again.
const KEPT_MS: u64 = 24 * 3_600_000;
/// The most signatures that are checked for one token. Keys with one id and one algorithm are rarely more than one.
const TRIED_MAX: usize = 4;
/// The most accepted tokens that are remembered.
const REMEMBERED_MAX: usize = 4_096;
const NAME_CHARS_MAX: usize = 128;

/// What an accepted token says.
#[derive(Clone, Debug)]
pub struct IssuedGrant {
    pub scopes: Arc<Scopes>,
    /// For the log.
    pub who: Arc<str>,
    /// Until when it is accepted, in milliseconds since 1970.
    pub expires_ms: u64,
}

/// The keys that an issuer has published.
struct IssuerKeys {
    keys: Vec<VerificationKey>,
    /// When they were fetched last, in monotonic time.
    fetched_ms: u64,
}

impl IssuerKeys {
    fn ids(&self) -> impl Iterator<Item = Option<&str>> {
        self.keys.iter().map(|key| key.id.as_deref())
    }
}

/// See the module.
pub struct Issuer {
    settings: Oidc,
    clock: Arc<dyn Clock>,
    client: reqwest::Client,
    current: RwLock<Option<Arc<IssuerKeys>>>,
    /// Lets only one fetch run at a time.
    fetching: Arc<tokio::sync::Mutex<()>>,
    /// When the last fetch ended, whether or not it worked, in monotonic time.
    fetched_ms: Mutex<Option<u64>>,
    /// How many fetches failed, one after the other.
    failures: AtomicU32,
    /// Has a place for each request that waits for keys.
    waiting: Semaphore,
    /// Tokens that were accepted, by their hashes: checking a signature costs a tenth of a millisecond. Nobody gets in here
    /// without a valid token.
    remembered: Mutex<HashMap<blake3::Hash, IssuedGrant>>,
}

/// Why a token is not accepted.
#[derive(Debug)]
enum Refused {
    /// No key verifies it; the issuer may have published new ones.
    NoKey(String),
    Bad(String),
}

#[derive(Deserialize)]
struct Discovery {
    issuer: String,
    jwks_uri: String,
}

impl Issuer {
    /// Fetches nothing yet: see [`Issuer::keep`].
    pub fn new(settings: Oidc, clock: Arc<dyn Clock>) -> Result<Issuer, BadFiles> {
        // Redirects are not followed: their target is not what was configured.
        let client = reqwest::Client::builder()
            .timeout(FETCH)
            .redirect(reqwest::redirect::Policy::none());
        let client = match settings.issuer.starts_with("http://") {
            // It is on this machine.
            true => client.no_proxy(),
            false => client,
        };
        let client = trusting(client, settings.ca.as_deref())?.build();
        metrics::oidc_keys_fetched(&settings.issuer, 0);
        Ok(Issuer {
            client: client.map_err(|error| BadFiles(format!("an HTTP client cannot be created: {error}")))?,
            settings,
            clock,
            current: RwLock::new(None),
            fetching: Arc::default(),
            fetched_ms: Mutex::default(),
            failures: AtomicU32::new(0),
            waiting: Semaphore::new(WAITING_MAX),
            remembered: Mutex::default(),
        })
    }

    /// Fetches keys, again and again, until the process stops.
    pub async fn keep(self: Arc<Self>, mut stopping: watch::Receiver<bool>) {
        loop {
            let guard = self.fetching.clone().lock_owned().await;
            let pause = match self.fetch(guard).await {
                true => FETCH_EVERY,
                false => RETRY,
            };
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                _ = stopping.wait_for(|stopping| *stopping) => return,
            }
        }
    }

    /// The keys in force, if there are any.
    fn keys(&self) -> Option<Arc<IssuerKeys>> {
        let keys = self.current.read().unwrap_or_else(PoisonError::into_inner).clone()?;
        (self.clock.monotonic_ms() < keys.fetched_ms.saturating_add(KEPT_MS)).then_some(keys)
    }

    /// Fetches keys, while no other fetch runs. Returns whether that worked.
    async fn fetch(&self, _guard: OwnedMutexGuard<()>) -> bool {
        let discovered = self.discover().await;
        let now_ms = self.clock.monotonic_ms();
        let is_known = self.take(discovered, now_ms);
        // After the keys, so that nobody is judged with the old ones who waited for new ones.
        *self.fetched_ms.lock().unwrap_or_else(PoisonError::into_inner) = Some(now_ms);
        is_known
    }

    /// Puts keys in force, and logs what is new. Returns whether there are any.
    fn take(&self, discovered: Result<Vec<VerificationKey>, String>, now_ms: u64) -> bool {
        let issuer = &self.settings.issuer;
        let keys = match discovered {
            Ok(keys) => keys,
            Err(why) => {
                metrics::oidc_failed();
                let failures = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1);
                // At the first, second, fourth, eighth failure and so on: anybody can cause a fetch.
                if failures.is_power_of_two() {
                    let keys_known = self.keys().is_some();
                    tracing::warn!(
                        issuer,
                        failures,
                        keys_known,
                        "the issuer's keys cannot be fetched, trying again: {why}"
                    );
                }
                return false;
            }
        };
        let failures = self.failures.swap(0, Ordering::Relaxed);
        let keys = Arc::new(IssuerKeys {
            keys,
            fetched_ms: now_ms,
        });
        let before = self
            .current
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .replace(keys.clone());
        metrics::oidc_keys_fetched(issuer, self.clock.now_ms() / 1_000);
        // A key that is gone must not live on in what it has signed.
        self.remembered().clear();
        let are_same = before.is_some_and(|before| before.ids().eq(keys.ids()));
        if failures > 0 || !are_same {
            tracing::info!(issuer, keys = keys.keys.len(), "the issuer's keys are known");
        }
        true
    }

    /// Finds the issuer's keys by its discovery document.
    async fn discover(&self) -> Result<Vec<VerificationKey>, String> {
        let issuer = &self.settings.issuer;
        let url = format!("{}/.well-known/openid-configuration", issuer.trim_end_matches('/'));
        let document = jwks::fetch(&self.client, &url, "the discovery document").await?;
        let document: Discovery = serde_json::from_slice(&document).map_err(|error| {
            let error = shown(&error.to_string());
            format!("{url} is not a discovery document of OpenID Connect: {error}")
        })?;
        if document.issuer != *issuer {
            return Err(format!(
                "{url} is of the issuer {:?}, but --oidc-issuer is {issuer:?}; both must be the same, also a slash at the end",
                shown(&document.issuer)
            ));
        }
        // Keys that come without TLS could be anybody's, unless they come from this machine.
        let place = Url::parse(&document.jwks_uri);
        let is_safe = place.is_ok_and(|place| match place.scheme() {
            "https" => true,
            "http" => issuer.starts_with("http://") && is_loopback(&place),
            _ => false,
        });
        if !is_safe {
            return Err(format!("the jwks_uri in {url} does not begin with https://"));
        }
        let keys = jwks::fetch(&self.client, &document.jwks_uri, "the issuer's keys").await?;
        let mut keys = jwks::key_set(&keys, KeySetPlace::Url)?;
        keys.retain(|key| ALGORITHMS.contains(&key.algorithm));
        Ok(keys)
    }

    fn remembered(&self) -> std::sync::MutexGuard<'_, HashMap<blake3::Hash, IssuedGrant>> {
        self.remembered.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What a token allows.
    pub async fn grant(self: &Arc<Self>, token: &str, hash: blake3::Hash) -> Result<IssuedGrant, ApiError> {
        let now_ms = self.clock.now_ms();
        if token.len() > TOKEN_BYTES_MAX {
            let why = format!(
                "it has {} bytes, and at most {TOKEN_BYTES_MAX} are accepted",
                token.len()
            );
            return Err(bad_token(&why));
        }
        let known = self.remembered().get(&hash).cloned();
        if let Some(known) = known.filter(|known| now_ms < known.expires_ms)
            && self.keys().is_some()
        {
            return Ok(known);
        }
        let keys = self.keys().ok_or_else(|| self.unavailable())?;
        let (granted, by) = match self.judge(&keys.keys, token, now_ms) {
            Ok(granted) => (granted, keys),
            Err(Refused::Bad(why)) => return Err(bad_token(&why)),
            Err(Refused::NoKey(why)) => {
                self.fetch_again(&keys).await;
                let newest = self.keys().ok_or_else(|| self.unavailable())?;
                if Arc::ptr_eq(&newest, &keys) {
                    return Err(bad_token(&why));
                }
                let judged = self.judge(&newest.keys, token, now_ms);
                let granted = judged.map_err(|(Refused::NoKey(why) | Refused::Bad(why))| bad_token(&why))?;
                (granted, newest)
            }
        };
        let mut remembered = self.remembered();
        // Keys that came meanwhile have not verified it.
        if !self.keys().is_some_and(|keys| Arc::ptr_eq(&keys, &by)) {
            return Ok(granted);
        }
        if remembered.len() >= REMEMBERED_MAX {
            remembered.clear();
        }
        remembered.insert(hash, granted.clone());
        Ok(granted)
    }

    fn unavailable(&self) -> ApiError {
        let issuer = &self.settings.issuer;
        let message = format!(
            "the keys of the issuer {issuer} are not known, so its tokens cannot be checked; the log says why. Tokens of \
             --token-file are accepted"
        );
        ApiError::unavailable("issuer_unavailable", message)
    }

    /// Whether a fetch was made just now, or these keys are not the newest ones any more.
    fn is_settled(&self, known: &Arc<IssuerKeys>) -> bool {
        let fetched_ms = *self.fetched_ms.lock().unwrap_or_else(PoisonError::into_inner);
        let now_ms = self.clock.monotonic_ms();
        fetched_ms.is_some_and(|fetched_ms| now_ms < fetched_ms + AGAIN_MS)
            || !self.keys().is_some_and(|keys| Arc::ptr_eq(known, &keys))
    }

    /// Fetches keys again, unless that was done just now. `known` did not verify a token.
    async fn fetch_again(self: &Arc<Self>, known: &Arc<IssuerKeys>) {
        if self.is_settled(known) {
            return;
        }
        // Requests must not gather behind an issuer that does not answer.
        let Ok(_place) = self.waiting.try_acquire() else { return };
        let Ok(guard) = tokio::time::timeout(TURN, self.fetching.clone().lock_owned()).await else {
            return;
        };
        if self.is_settled(known) {
            return;
        }
        let issuer = self.clone();
        // The caller may go away, and the others wait for these keys too.
        let fetching = tokio::spawn(async move { issuer.fetch(guard).await });
        // It can only fail by our own bug, and then there are no newer keys.
        let _ = fetching.await;
    }

    fn judge(&self, keys: &[VerificationKey], token: &str, now_ms: u64) -> Result<IssuedGrant, Refused> {
        let bad = |why: &str| Refused::Bad(why.to_owned());
        let header = decode_header(token).map_err(|_| bad("it is not a JSON Web Token with a known algorithm"))?;
        if header.crit.is_some() {
            return Err(bad("its header requires extensions (`crit`), and none is supported"));
        }
        if !ALGORITHMS.contains(&header.alg) {
            return Err(Refused::Bad(format!(
                "it is signed with {:?}; RS256, ES256 and EdDSA are accepted",
                header.alg
            )));
        }
        let of_algorithm = || keys.iter().filter(|key| key.algorithm == header.alg);
        let named: Vec<&VerificationKey> = match &header.kid {
            Some(kid) => of_algorithm()
                .filter(|key| key.id.as_ref().is_none_or(|id| id == kid))
                .take(TRIED_MAX)
                .collect(),
            // To try them all would be work that anybody can cause.
            None if of_algorithm().count() > 1 => return Err(bad("it has no `kid`, and the issuer has several keys")),
            None => of_algorithm().collect(),
        };
        let mut wrong = format!("the issuer has no key for {:?} and its `kid`", header.alg);
        let mut is_known = false;
        for key in named {
            match decode::<Map<String, Value>>(token, &key.key, &signature_only(header.alg)) {
                Ok(token) => return self.admit(&token.claims, now_ms).map_err(Refused::Bad),
                Err(error) if matches!(error.kind(), ErrorKind::InvalidSignature) => {
                    // The key is known, so another fetch would bring nothing.
                    is_known |= key.id.is_some() && key.id == header.kid;
                    wrong = "its signature is wrong".to_owned();
                }
                Err(error) => return Err(Refused::Bad(format!("it cannot be read: {error}"))),
            }
        }
        match is_known {
            true => Err(Refused::Bad(wrong)),
            false => Err(Refused::NoKey(wrong)),
        }
    }

    /// Judges the claims of a token whose signature is right.
    fn admit(&self, claims: &Map<String, Value>, now_ms: u64) -> Result<IssuedGrant, String> {
        let settings = &self.settings;
        if claims.get("iss").and_then(Value::as_str) != Some(&settings.issuer) {
            return Err("its issuer (`iss`) is another one".to_owned());
        }
        let is_ours = match claims.get("aud") {
            Some(Value::String(audience)) => *audience == settings.audience,
            Some(Value::Array(audiences)) => audiences.iter().any(|one| one.as_str() == Some(&settings.audience)),
            _ => false,
        };
        if !is_ours {
            return Err(format!("it is not for the audience {:?} (`aud`)", settings.audience));
        }
        let times = jwks::token_times(claims, now_ms)?;
        let expires_ms = times.expires_ms.saturating_add(LEEWAY_MS);
        let name = claims
            .get(&settings.name_claim)
            .and_then(Value::as_str)
            .unwrap_or_default();
        let name: String = name.chars().filter(|c| !c.is_control()).take(NAME_CHARS_MAX).collect();
        if name.is_empty() {
            let claim = &settings.name_claim;
            return Err(format!(
                "it does not say whose it is: the claim `{claim}` is missing or no text"
            ));
        }
        Ok(IssuedGrant {
            scopes: Arc::new(self.scopes(claims, &name)),
            who: format!("oidc:{name}").into(),
            expires_ms,
        })
    }

    /// The scopes in the claim that has them. What is not ours is passed over.
    fn scopes(&self, claims: &Map<String, Value>, name: &str) -> Scopes {
        let claim = &self.settings.scope_claim;
        // A name with dots is a name (`https://example.com/roles`) or a path (`realm_access.roles`).
        let value = claims.get(claim).or_else(|| {
            let mut parts = claim.split('.');
            let first = claims.get(parts.next()?)?;
            parts.try_fold(first, |value, part| value.get(part))
        });
        let texts: Vec<&str> = match value {
            Some(Value::String(text)) => text.split_ascii_whitespace().collect(),
            Some(Value::Array(values)) => values.iter().filter_map(Value::as_str).collect(),
            _ => Vec::new(),
        };
        let ours = texts
            .iter()
            .filter_map(|text| text.strip_prefix(&self.settings.scope_prefix));
        Scopes::of_issued(ours, &format!("oidc:{name}"))
    }
}

/// Checks the signature and nothing else: the library would read the machine's clock.
fn signature_only(algorithm: Algorithm) -> Validation {
    let mut validation = Validation::new(algorithm);
    validation.validate_exp = false;
    validation.validate_nbf = false;
    validation.validate_aud = false;
    validation.required_spec_claims = HashSet::new();
    validation
}

fn bad_token(why: &str) -> ApiError {
    let message = format!("this token of the issuer is refused: {why}");
    ApiError::new(StatusCode::UNAUTHORIZED, "bad_token", message)
}
