//! The keys that verify clients' tokens: HS256, RS256 and ES256 from a file, and a JSON Web Key Set ([`jwks`]).
//!
//! A key is used only for its own algorithm, whatever the token's header says. Keys can be reloaded without a restart; if that fails, the
//! previous keys stay in force. An issuer may change its keys at any moment, so a token that no key verifies triggers
//! an immediate reload, at most once every few seconds. A
//! token is verified once, when its connection begins.

use crate::clock::Clock;
use crate::config::gateway::Tokens;
use crate::jwks::{self, BYTES_MAX, KeySetPlace, SECRET_BYTES_MIN, VerificationKey};
use crate::presence::event::bounds;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

/// The time limit for fetching a key set from a URL.
const FETCH: Duration = Duration::from_secs(5);
/// How often, at most, a token that no key verifies triggers a reload.
const AGAIN_MS: u64 = 5_000;

/// The keys in force.
pub struct Keys {
    settings: Tokens,
    clock: Arc<dyn Clock>,
    current: RwLock<Arc<Vec<VerificationKey>>>,
    /// The bytes that the keys were parsed from.
    read: Mutex<Sources>,
    /// When a token that no key verified last triggered a reload. The lock lets only one reload run at a time.
    reading: tokio::sync::Mutex<Option<u64>>,
    client: reqwest::Client,
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Sources {
    key: Option<Vec<u8>>,
    jwks: Option<Vec<u8>>,
}

/// Why keys cannot be loaded.
#[derive(Debug, thiserror::Error)]
pub enum BadKeys {
    /// The keys are wrong; the operator must act.
    #[error("{0}")]
    Unusable(String),
    /// The URL of the keys does not respond correctly at the moment.
    #[error("{0}")]
    Unavailable(String),
}

/// The user whom a token authenticates.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bearer {
    pub user: String,
    /// When the user authenticated (`iat`), in ms of the issuer's clock.
    pub auth_at_ms: Option<u64>,
}

/// Why a token is refused.
enum TokenRefusal {
    /// No key here verifies it; the issuer may have published new keys.
    NoKey(String),
    Bad(String),
}

impl Keys {
    /// Loads the keys for the first time. An error ends the start.
    pub async fn open(settings: Tokens, clock: Arc<dyn Clock>) -> Result<Keys, BadKeys> {
        // Redirects are not followed: their target is not the URL that was configured.
        let client = reqwest::Client::builder()
            .timeout(FETCH)
            .redirect(reqwest::redirect::Policy::none())
            .build();
        let keys = Keys {
            settings,
            clock,
            current: RwLock::default(),
            read: Mutex::default(),
            reading: tokio::sync::Mutex::default(),
            client: client.map_err(|error| BadKeys::Unusable(format!("creating an HTTP client failed: {error}")))?,
        };
        keys.reload().await?;
        Ok(keys)
    }

    /// Reloads the keys. Returns whether they changed.
    pub async fn reload(&self) -> Result<bool, BadKeys> {
        let _alone = self.reading.lock().await;
        self.read_again().await
    }

    async fn read_again(&self) -> Result<bool, BadKeys> {
        let sources = Sources {
            key: self.settings.key.as_deref().map(file).transpose()?,
            jwks: match &self.settings.jwks {
                None => None,
                Some(place) => Some(self.fetch(place).await?),
            },
        };
        if *self.read.lock().unwrap_or_else(PoisonError::into_inner) == sources {
            return Ok(false);
        }
        let mut keys = Vec::new();
        if let Some(bytes) = &sources.key {
            keys.push(one_key(bytes)?);
        }
        if let Some(bytes) = &sources.jwks {
            let from_file = self.settings.jwks.as_deref().is_some_and(|place| !is_url(place));
            let place = if from_file { KeySetPlace::File } else { KeySetPlace::Url };
            keys.extend(jwks::key_set(bytes, place).map_err(BadKeys::Unusable)?);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = sources;
        Ok(true)
    }

    async fn fetch(&self, place: &str) -> Result<Vec<u8>, BadKeys> {
        if !is_url(place) {
            return file(Path::new(place));
        }
        jwks::fetch(&self.client, place, "the key set")
            .await
            .map_err(BadKeys::Unavailable)
    }

    /// Verifies a token for a connection of this platform and device. The error says what is wrong, without the token.
    pub async fn bearer(&self, token: &str, platform: &str, device: &str) -> Result<Bearer, String> {
        let known = self.current();
        match self.judge(&known, token, platform, device) {
            Ok(bearer) => return Ok(bearer),
            Err(TokenRefusal::Bad(why)) => return Err(why),
            Err(TokenRefusal::NoKey(_)) => {}
        }
        let newest = self.newer_than(&known).await;
        self.judge(&newest, token, platform, device)
            .map_err(|(TokenRefusal::NoKey(why) | TokenRefusal::Bad(why))| why)
    }

    fn current(&self) -> Arc<Vec<VerificationKey>> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Returns the keys after a reload, unless a reload has just been done. `known` are the keys that did not verify a
    /// token.
    async fn newer_than(&self, known: &Arc<Vec<VerificationKey>>) -> Arc<Vec<VerificationKey>> {
        let mut read_ms = self.reading.lock().await;
        let current = self.current();
        let now_ms = self.clock.monotonic_ms();
        if !Arc::ptr_eq(known, &current) || read_ms.is_some_and(|read_ms| now_ms < read_ms + AGAIN_MS) {
            return current;
        }
        *read_ms = Some(now_ms);
        match self.read_again().await {
            Ok(true) => tracing::info!("token keys reloaded, because no key verified a token"),
            Ok(false) => {}
            Err(error) => tracing::warn!(%error, "reloading the token keys failed, keeping the previous ones"),
        }
        self.current()
    }

    fn judge(
        &self,
        keys: &[VerificationKey],
        token: &str,
        platform: &str,
        device: &str,
    ) -> Result<Bearer, TokenRefusal> {
        let header = decode_header(token).map_err(|_| TokenRefusal::Bad("this is not a JSON Web Token".to_owned()))?;
        if header.crit.is_some() {
            let why = "the token's header requires extensions (`crit`), and this gateway supports none";
            return Err(TokenRefusal::Bad(why.to_owned()));
        }
        let named = |key: &&VerificationKey| match (&key.id, &header.kid) {
            (Some(id), Some(kid)) => id == kid,
            (None, _) | (_, None) => true,
        };
        let mut wrong = format!("this gateway has no key for {:?} and the token's `kid`", header.alg);
        for key in keys.iter().filter(named).filter(|key| key.algorithm == header.alg) {
            let claims = decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm));
            match claims {
                Ok(token) => return self.admit(&token.claims, platform, device).map_err(TokenRefusal::Bad),
                Err(error) => {
                    let why = format!("the token is refused: {error}");
                    if !matches!(error.kind(), ErrorKind::InvalidSignature) {
                        // This key signed it, so trying other keys cannot help.
                        return Err(TokenRefusal::Bad(why));
                    }
                    wrong = why;
                }
            }
        }
        Err(TokenRefusal::NoKey(wrong))
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
        // The times are judged in `admit`: the library would round them, and call one that it cannot read missing.
        validation.validate_exp = false;
        validation.validate_nbf = false;
        validation.validate_aud = self.settings.audience.is_some();
        let mut required = Vec::new();
        if let Some(audience) = &self.settings.audience {
            validation.set_audience(&[audience]);
            required.push("aud");
        }
        if let Some(issuer) = &self.settings.issuer {
            validation.set_issuer(&[issuer]);
            required.push("iss");
        }
        validation.set_required_spec_claims(&required);
        validation
    }

    fn admit(&self, claims: &Map<String, Value>, platform: &str, device: &str) -> Result<Bearer, String> {
        let times =
            jwks::token_times(claims, self.clock.now_ms()).map_err(|why| format!("the token is refused: {why}"))?;
        let name = &self.settings.user_claim;
        let Some(user) = claims.get(name).and_then(id) else {
            return Err(format!(
                "the token's claim `{name}`, which names the user, must be a string or an integer"
            ));
        };
        let (least, most) = bounds::USER_BYTES;
        if !(least..=most).contains(&user.len()) {
            return Err(format!(
                "the token's claim `{name}`, which names the user, must have {least} to {most} bytes, not {}",
                user.len()
            ));
        }
        for (claim, is) in [
            (&self.settings.platform_claim, platform),
            (&self.settings.device_claim, device),
        ] {
            if let Some(claim) = claim
                && let Some(must) = claims.get(claim)
                && id(must).as_deref() != Some(is)
            {
                return Err(format!("the token's `{claim}` differs from the connection's"));
            }
        }
        Ok(Bearer {
            user,
            auth_at_ms: times.issued_ms,
        })
    }
}

/// Returns the id in a claim. Many issuers use integers for users; they become their decimal text.
fn id(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Number(number) if number.is_u64() || number.is_i64() => Some(number.to_string()),
        _ => None,
    }
}

fn is_url(place: &str) -> bool {
    place.starts_with("https://") || place.starts_with("http://")
}

fn file(path: &Path) -> Result<Vec<u8>, BadKeys> {
    let unreadable = |error| BadKeys::Unusable(format!("reading the key {} failed: {error}", path.display()));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX as u64 + 1)
        .read_to_end(&mut bytes)
        .map_err(unreadable)?;
    if bytes.len() > BYTES_MAX {
        let path = path.display();
        return Err(BadKeys::Unusable(format!(
            "the key {path} has more than {BYTES_MAX} bytes"
        )));
    }
    Ok(bytes)
}

fn one_key(bytes: &[u8]) -> Result<VerificationKey, BadKeys> {
    let key = |algorithm, key| VerificationKey {
        id: None,
        algorithm,
        key,
    };
    if bytes.windows(5).any(|window| window == b"-----") {
        if let Ok(rsa) = DecodingKey::from_rsa_pem(bytes) {
            return Ok(key(Algorithm::RS256, rsa));
        }
        return match DecodingKey::from_ec_pem(bytes) {
            Ok(ec) => Ok(key(Algorithm::ES256, ec)),
            Err(error) => Err(BadKeys::Unusable(format!(
                "the key is PEM, but neither an RSA nor an elliptic public key: {error}"
            ))),
        };
    }
    // Editors end the last line with a line feed, which is not part of the secret.
    let secret = bytes.trim_ascii_end();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(BadKeys::Unusable(format!(
            "a secret must have at least {SECRET_BYTES_MIN} bytes, not {}",
            secret.len()
        )));
    }
    Ok(key(Algorithm::HS256, DecodingKey::from_secret(secret)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_are_text_or_integers() {
        assert_eq!(id(&json!("alice")).as_deref(), Some("alice"));
        assert_eq!(id(&json!(1234)).as_deref(), Some("1234"));
        assert_eq!(id(&json!(u64::MAX)).as_deref(), Some("18446744073709551615"));
        assert_eq!(id(&json!(-5)).as_deref(), Some("-5"));
        for other in [json!(12.5), json!(true), json!(null), json!([1]), json!({})] {
            assert_eq!(id(&other), None, "{other}");
        }
    }
}
