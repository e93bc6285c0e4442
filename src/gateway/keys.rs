//! What tokens are checked with: HS256, RS256 and ES256, keys from a file or a JSON Web Key Set.
//!
//! A key is used for its own algorithm only, whatever a token says of itself: else a public key could be shown as the
//! secret of a token that anybody can make. Keys are read again without a restart; what cannot be read then leaves
//! those before in force. A token is looked at once, when its connection begins.

use crate::cause::reason;
use crate::config::address::masked;
use crate::config::gateway::Tokens;
use crate::presence::event::bounds;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, JwkSet, KeyAlgorithm};
use jsonwebtoken::{Algorithm, DecodingKey, Validation, decode, decode_header};
use serde_json::{Map, Value};
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

const SECRET_BYTES_MIN: usize = 32;
const FETCH: Duration = Duration::from_secs(10);
const JWKS_BYTES_MAX: usize = 1 << 20;

struct Key {
    id: Option<String>,
    algorithm: Algorithm,
    key: DecodingKey,
}

/// The keys in force.
pub struct Keys {
    settings: Tokens,
    current: RwLock<Arc<Vec<Key>>>,
    /// The bytes that they were read from.
    read: Mutex<Sources>,
    client: reqwest::Client,
}

#[derive(Clone, PartialEq, Eq, Default)]
struct Sources {
    key: Option<Vec<u8>>,
    jwks: Option<Vec<u8>>,
}

/// What is wrong with keys.
#[derive(Debug, thiserror::Error)]
pub enum BadKeys {
    /// They are not what they should be; somebody must act.
    #[error("{0}")]
    Unusable(String),
    /// They are at an address that does not give them at the moment.
    #[error("{0}")]
    Unavailable(String),
}

/// Whom a token is of.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Bearer {
    pub user: String,
}

impl Keys {
    /// Reads them for the first time; an error ends the start.
    pub async fn open(settings: Tokens) -> Result<Keys, BadKeys> {
        let client = reqwest::Client::builder().timeout(FETCH).build();
        let keys = Keys {
            settings,
            current: RwLock::default(),
            read: Mutex::default(),
            client: client.map_err(|error| BadKeys::Unusable(format!("no HTTP client can be made: {error}")))?,
        };
        keys.reload().await?;
        Ok(keys)
    }

    /// Reads them again; whether they are others now.
    pub async fn reload(&self) -> Result<bool, BadKeys> {
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
            keys.extend(key_set(bytes)?);
        }
        *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(keys);
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = sources;
        Ok(true)
    }

    async fn fetch(&self, place: &str) -> Result<Vec<u8>, BadKeys> {
        if !place.starts_with("https://") && !place.starts_with("http://") {
            return file(Path::new(place));
        }
        let shown = masked(place);
        let failed = |error: reqwest::Error| {
            BadKeys::Unavailable(format!("the key set at {shown} cannot be fetched: {}", reason(error)))
        };
        let answer = self.client.get(place).send().await.map_err(failed)?;
        let bytes = answer
            .error_for_status()
            .map_err(failed)?
            .bytes()
            .await
            .map_err(failed)?;
        if bytes.len() > JWKS_BYTES_MAX {
            return Err(BadKeys::Unusable(format!(
                "the key set at {shown} has more than {JWKS_BYTES_MAX} bytes"
            )));
        }
        Ok(bytes.to_vec())
    }

    /// Whom a token is of, for a connection of this platform and device; or what is wrong with it, without the token.
    pub fn bearer(&self, token: &str, platform: &str, device: &str) -> Result<Bearer, String> {
        let header = decode_header(token).map_err(|_| "this is no token".to_owned())?;
        let keys = self.current.read().unwrap_or_else(PoisonError::into_inner).clone();
        let named = |key: &&Key| match (&key.id, &header.kid) {
            (Some(id), Some(kid)) => id == kid,
            (None, _) | (_, None) => true,
        };
        let mut wrong = format!("no key here is for {:?} and the token's kid", header.alg);
        for key in keys.iter().filter(named).filter(|key| key.algorithm == header.alg) {
            let claims = decode::<Map<String, Value>>(token, &key.key, &self.validation(key.algorithm));
            match claims {
                Ok(token) => return self.judge(&token.claims, platform, device),
                Err(error) => wrong = format!("the token is refused: {error}"),
            }
        }
        Err(wrong)
    }

    fn validation(&self, algorithm: Algorithm) -> Validation {
        let mut validation = Validation::new(algorithm);
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

    fn judge(&self, claims: &Map<String, Value>, platform: &str, device: &str) -> Result<Bearer, String> {
        let name = &self.settings.user_claim;
        let Some(user) = claims.get(name).and_then(Value::as_str) else {
            return Err(format!("the token has no text as `{name}`, which names the user"));
        };
        let (least, most) = bounds::USER_BYTES;
        if !(least..=most).contains(&user.len()) {
            return Err(format!(
                "`{name}` must have {least} to {most} bytes, not {}",
                user.len()
            ));
        }
        for (claim, is) in [
            (&self.settings.platform_claim, platform),
            (&self.settings.device_claim, device),
        ] {
            if let Some(claim) = claim
                && let Some(must) = claims.get(claim)
                && must.as_str() != Some(is)
            {
                return Err(format!("the token's `{claim}` is of another one"));
            }
        }
        Ok(Bearer { user: user.to_owned() })
    }
}

fn file(path: &Path) -> Result<Vec<u8>, BadKeys> {
    std::fs::read(path)
        .map_err(|error| BadKeys::Unusable(format!("the key {} cannot be read: {error}", path.display())))
}

fn one_key(bytes: &[u8]) -> Result<Key, BadKeys> {
    let key = |algorithm, key| Key {
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
    // An editor ends the last line; that is no part of a secret.
    let secret = bytes.trim_ascii_end();
    if secret.len() < SECRET_BYTES_MIN {
        return Err(BadKeys::Unusable(format!(
            "a secret must have at least {SECRET_BYTES_MIN} bytes, not {}",
            secret.len()
        )));
    }
    Ok(key(Algorithm::HS256, DecodingKey::from_secret(secret)))
}

/// The keys of a set that are for an algorithm known here; others are left aside.
fn key_set(bytes: &[u8]) -> Result<Vec<Key>, BadKeys> {
    let set: JwkSet = serde_json::from_slice(bytes)
        .map_err(|error| BadKeys::Unusable(format!("this is no JSON Web Key Set: {error}")))?;
    let mut keys = Vec::new();
    for jwk in &set.keys {
        let algorithm = match &jwk.algorithm {
            AlgorithmParameters::RSA(_) => Algorithm::RS256,
            AlgorithmParameters::EllipticCurve(parameters) if parameters.curve == EllipticCurve::P256 => {
                Algorithm::ES256
            }
            AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
            _ => continue,
        };
        let meant = match jwk.common.key_algorithm {
            None => true,
            Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
            Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
            Some(KeyAlgorithm::HS256) => algorithm == Algorithm::HS256,
            Some(_) => false,
        };
        if !meant {
            continue;
        }
        let key = DecodingKey::from_jwk(jwk).map_err(|error| {
            BadKeys::Unusable(format!(
                "a key of the set cannot be used ({:?}): {error}",
                jwk.common.key_id
            ))
        })?;
        keys.push(Key {
            id: jwk.common.key_id.clone(),
            algorithm,
            key,
        });
    }
    if keys.is_empty() {
        return Err(BadKeys::Unusable(
            "the key set has no key for RS256, ES256 or HS256".to_owned(),
        ));
    }
    Ok(keys)
}
