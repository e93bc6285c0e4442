//! The keys that verify tokens: HS256, RS256 and ES256, from a file or a JSON Web Key Set.
//!
//! A key is used only for its own algorithm, whatever the token's header says. Otherwise a public key could be
//! presented as the secret of a token that anybody can make. Keys can be reloaded without a restart; if that fails, the
//! previous keys stay in force. An issuer may change its keys at any moment, so a token that no key verifies triggers
//! an immediate reload, at most once every few seconds. A key of a set that cannot be used is skipped with a warning. A
//! token is verified once, when its connection begins.

use crate::cause::reason;
use crate::clock::Clock;
use crate::config::address::masked;
use crate::config::gateway::Tokens;
use crate::presence::event::bounds;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::errors::ErrorKind;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde::Deserialize;
use serde_json::{Map, Value};
use std::io::Read as _;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

const SECRET_BYTES_MIN: usize = 32;
/// The time limit for fetching a key set from a URL.
const FETCH: Duration = Duration::from_secs(5);
/// The greatest size of a key or a key set.
const BYTES_MAX: usize = 1 << 20;
/// The greatest number of keys of one set. A token without a `kid` is tried with each of them.
const KEYS_MAX: usize = 256;
/// How often, at most, a token that no key verifies triggers a reload.
const AGAIN_MS: u64 = 5_000;
/// Clock tolerance: a token is accepted this much before and after its period of validity, since issuers' clocks
/// differ.
pub const LEEWAY_S: u64 = 60;
/// The greatest time that an event can have.
const TIME_MS_MAX: u64 = (1 << 53) - 1;

struct VerificationKey {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

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
            keys.extend(key_set(bytes, from_file)?);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = sources;
        Ok(true)
    }

    async fn fetch(&self, place: &str) -> Result<Vec<u8>, BadKeys> {
        if !is_url(place) {
            return file(Path::new(place));
        }
        let shown = masked(place);
        let failed = |error: reqwest::Error| {
            BadKeys::Unavailable(format!("fetching the key set from {shown} failed: {}", reason(error)))
        };
        let mut answer = self.client.get(place).send().await.map_err(failed)?;
        let status = answer.status();
        if !status.is_success() {
            let hint = if status.is_redirection() {
                "; redirects are not followed"
            } else {
                ""
            };
            return Err(BadKeys::Unavailable(format!(
                "fetching the key set from {shown} failed: it responded with {status}{hint}"
            )));
        }
        let mut bytes = Vec::new();
        while let Some(chunk) = answer.chunk().await.map_err(failed)? {
            if bytes.len() + chunk.len() > BYTES_MAX {
                return Err(BadKeys::Unavailable(format!(
                    "the key set at {shown} has more than {BYTES_MAX} bytes, which is the limit"
                )));
            }
            bytes.extend_from_slice(&chunk);
        }
        Ok(bytes)
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
        validation.leeway = LEEWAY_S;
        validation.validate_nbf = true;
        validation.validate_aud = self.settings.audience.is_some();
        let mut required = vec!["exp"];
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
        let auth_at_ms = claims.get("iat").and_then(time_ms);
        Ok(Bearer { user, auth_at_ms })
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

/// Converts a time in seconds, possibly with a fraction, to milliseconds.
fn time_ms(value: &Value) -> Option<u64> {
    let ms = match value.as_u64() {
        Some(seconds) => seconds.checked_mul(1_000)?,
        // Negative values, NaN and values that are too large become the nearest possible one.
        None => (value.as_f64()? * 1_000.0) as u64,
    };
    (ms <= TIME_MS_MAX).then_some(ms)
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

#[derive(Deserialize)]
struct KeySet {
    /// Each key is parsed separately, so that an unusable one does not affect the others.
    keys: Vec<Value>,
}

/// Returns the keys of a set that verify signatures of a supported algorithm. The others are skipped: with a warning,
/// if they seem to be meant for verification.
fn key_set(bytes: &[u8], from_file: bool) -> Result<Vec<VerificationKey>, BadKeys> {
    let set: KeySet = serde_json::from_slice(bytes)
        .map_err(|error| BadKeys::Unusable(format!("this is not a JSON Web Key Set: {error}")))?;
    let mut keys = Vec::new();
    for (number, value) in set.keys.iter().enumerate() {
        if keys.len() == KEYS_MAX {
            tracing::warn!("the key set has more than {KEYS_MAX} usable keys, skipping the others");
            break;
        }
        match key_of(value, from_file) {
            Ok(Some(key)) => keys.push(key),
            Ok(None) => {}
            Err(why) => {
                let kid = value.get("kid").and_then(Value::as_str).unwrap_or_default();
                tracing::warn!(number, kid, %why, "skipping a key of the key set");
            }
        }
    }
    if keys.is_empty() {
        return Err(BadKeys::Unusable(
            "the key set has no key that verifies RS256, ES256 or HS256 signatures".to_owned(),
        ));
    }
    Ok(keys)
}

/// Converts a key of a set. `None` if it is not for signatures we verify; an error if it seems to be but cannot be
/// used.
fn key_of(value: &Value, from_file: bool) -> Result<Option<VerificationKey>, String> {
    // Another kind of key has other fields.
    if !matches!(value.get("kty").and_then(Value::as_str), Some("RSA" | "EC" | "oct")) {
        return Ok(None);
    }
    let jwk = Jwk::deserialize(value).map_err(|error| error.to_string())?;
    // The library takes a key that lacks a field for one of a kind that it does not know.
    if !matches!(
        jwk.algorithm,
        AlgorithmParameters::RSA(_) | AlgorithmParameters::EllipticCurve(_) | AlgorithmParameters::OctetKey(_)
    ) {
        return Err("a field that a key of its kind must have is missing or has the wrong type".to_owned());
    }
    let for_signatures = matches!(jwk.common.public_key_use, None | Some(PublicKeyUse::Signature));
    let operations = jwk.common.key_operations.as_deref();
    let verifies = operations.is_none_or(|operations| operations.contains(&KeyOperations::Verify));
    if !for_signatures || !verifies {
        return Ok(None);
    }
    let algorithm = match &jwk.algorithm {
        AlgorithmParameters::RSA(_) => Algorithm::RS256,
        AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => Algorithm::ES256,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return Ok(None),
    };
    let meant = match jwk.common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
        Some(KeyAlgorithm::HS256) => algorithm == Algorithm::HS256,
        Some(_) => false,
    };
    if !meant {
        return Ok(None);
    }
    if let AlgorithmParameters::OctetKey(parameters) = &jwk.algorithm {
        if !from_file {
            return Err("it is a secret (`oct`), which must not be published at a URL; give it as a file".to_owned());
        }
        let bytes = BASE64_URL_SAFE_NO_PAD.decode(&parameters.value);
        let bytes = bytes.map_err(|error| format!("`k` is not base64url: {error}"))?;
        if bytes.len() < SECRET_BYTES_MIN {
            let count = bytes.len();
            return Err(format!(
                "a secret must have at least {SECRET_BYTES_MIN} bytes, not {count}"
            ));
        }
    }
    Ok(Some(VerificationKey {
        id: jwk.common.key_id.clone(),
        algorithm,
        key: DecodingKey::from_jwk(&jwk).map_err(|error| error.to_string())?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn key(value: Value, from_file: bool) -> &'static str {
        match key_of(&value, from_file) {
            Ok(Some(_)) => "used",
            Ok(None) => "not ours",
            Err(_) => "warned of",
        }
    }

    #[test]
    fn a_key_is_used_for_what_it_is_meant_for_and_secrets_only_from_a_file() {
        let long = BASE64_URL_SAFE_NO_PAD.encode([7; 32]);
        let short = BASE64_URL_SAFE_NO_PAD.encode([7; 31]);
        assert_eq!(key(json!({"kty": "oct", "k": long}), true), "used");
        assert_eq!(key(json!({"kty": "oct", "k": long}), false), "warned of");
        for k in ["", "AA", &short, "=", "!!"] {
            assert_eq!(key(json!({"kty": "oct", "k": k}), true), "warned of", "{k:?}");
        }
        let secret = |more: Value| {
            let mut secret = json!({"kty": "oct", "k": long});
            let fields = secret.as_object_mut().expect("an object");
            fields.extend(more.as_object().expect("an object").clone());
            key(secret, true)
        };
        assert_eq!(
            secret(json!({"use": "sig", "key_ops": ["sign", "verify"], "alg": "HS256"})),
            "used"
        );
        for other in [
            json!({"use": "enc"}),
            json!({"use": "tls"}),
            json!({"key_ops": ["encrypt"]}),
            json!({"key_ops": ["attest"]}),
            json!({"key_ops": []}),
            json!({"alg": "HS512"}),
            json!({"alg": "RS256"}),
        ] {
            assert_eq!(secret(other.clone()), "not ours", "{other}");
        }
        assert_eq!(secret(json!({"kid": 7})), "warned of");
        for odd in [
            json!({"kty": "AKP", "pub": "x"}),
            json!({"kid": "x"}),
            json!({"kty": "OKP"}),
            json!(7),
            json!([]),
        ] {
            assert_eq!(key(odd.clone(), true), "not ours", "{odd}");
        }
        for broken in [
            json!({"kty": "RSA", "e": "AQAB"}),
            json!({"kty": "RSA", "n": 7, "e": "AQAB"}),
            json!({"kty": "EC", "crv": "P-256", "x": "AA"}),
            json!({"kty": "RSA", "n": "!!", "e": "AQAB"}),
        ] {
            assert_eq!(key(broken.clone(), true), "warned of", "{broken}");
        }
    }

    #[test]
    fn ids_are_text_or_integers_and_times_are_seconds() {
        assert_eq!(id(&json!("alice")).as_deref(), Some("alice"));
        assert_eq!(id(&json!(1234)).as_deref(), Some("1234"));
        assert_eq!(id(&json!(u64::MAX)).as_deref(), Some("18446744073709551615"));
        assert_eq!(id(&json!(-5)).as_deref(), Some("-5"));
        for other in [json!(12.5), json!(true), json!(null), json!([1]), json!({})] {
            assert_eq!(id(&other), None, "{other}");
        }
        assert_eq!(time_ms(&json!(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(time_ms(&json!(1.5)), Some(1_500));
        assert_eq!(time_ms(&json!(-1)), Some(0));
        for beyond in [json!(u64::MAX), json!(1e300), json!("7"), json!(null)] {
            assert_eq!(time_ms(&beyond), None, "{beyond}");
        }
    }
}
