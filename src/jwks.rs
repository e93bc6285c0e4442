//! JSON Web Key Sets: the public keys of an issuer, by which its tokens are verified.
//!
//! A key is used only for its own algorithm, whatever a token's header says. Otherwise a public key could be presented as the
//! secret of a token that anybody can make. A key of a set that cannot be used is skipped with a warning.

use crate::cause::reason;
use crate::config::masked;
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use jsonwebtoken::jwk::{AlgorithmParameters, EllipticCurve, Jwk, KeyAlgorithm, KeyOperations, PublicKeyUse};
use jsonwebtoken::{Algorithm, DecodingKey};
use serde::Deserialize;
use serde_json::{Map, Value};

/// The fewest bytes of a secret of HS256.
pub const SECRET_BYTES_MIN: usize = 32;
/// The greatest size of a key or a key set.
pub const BYTES_MAX: usize = 1 << 20;
/// The greatest number of keys of one set.
const KEYS_MAX: usize = 256;
/// The most characters of an issuer's text that are shown, and the most keys of a set that a warning is for.
const SHOWN_CHARS_MAX: usize = 200;
const WARNINGS_MAX: usize = 16;
/// The end of the year 9999. A later time of a token is in milliseconds or nonsense.
const TIME_MS_MAX: u64 = 253_402_300_800_000;
/// Clock tolerance: a token is accepted this much before and after its period of validity, since issuers' clocks differ.
pub const LEEWAY_MS: u64 = 60_000;

/// A key, and the only algorithm that it is used for.
pub struct VerificationKey {
    pub id: Option<String>,
    pub algorithm: Algorithm,
    pub key: DecodingKey,
}

/// A text of an issuer, for the log and for errors: it may have any length, and anything in it.
pub fn shown(text: &str) -> String {
    text.chars().filter(|c| !c.is_control()).take(SHOWN_CHARS_MAX).collect()
}

/// Where a key set is from. What is published can have no secrets.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum KeySetPlace {
    File,
    Url,
}

/// Fetches a document, at most [`BYTES_MAX`] of it. The client has the time-out. `what` names it in errors.
pub async fn fetch(client: &reqwest::Client, url: &str, what: &str) -> Result<Vec<u8>, String> {
    let shown = shown(&masked(url));
    let failed = |error: reqwest::Error| format!("fetching {what} from {shown} failed: {}", reason(error));
    let mut answer = client.get(url).send().await.map_err(failed)?;
    let status = answer.status();
    if !status.is_success() {
        let hint = if status.is_redirection() {
            "; redirects are not followed"
        } else {
            ""
        };
        return Err(format!(
            "fetching {what} from {shown} failed: it responded with {status}{hint}"
        ));
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = answer.chunk().await.map_err(failed)? {
        if bytes.len() + chunk.len() > BYTES_MAX {
            return Err(format!(
                "{what} at {shown} has more than {BYTES_MAX} bytes, which is the limit"
            ));
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// The times in the claims of a token, in milliseconds of the issuer's clock.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TokenTimes {
    pub expires_ms: u64,
    pub issued_ms: Option<u64>,
}

/// Returns the times of a token that is valid at `now_ms`, or what is wrong with them: a clause about the token as `it`. A time that is
/// there and cannot be right is refused. Taken as missing, it would make a token valid for longer, or exempt it from kicks.
pub fn token_times(claims: &Map<String, Value>, now_ms: u64) -> Result<TokenTimes, String> {
    let time = |name: &str| {
        match claims.get(name) {
        None => Ok(None),
        Some(value) => time_ms(value).map(Some).ok_or_else(|| {
            format!("its time `{name}` is not a number of seconds since 1970 before the year 10000 (are these milliseconds?)")
        }),
    }
    };
    let expires_ms = time("exp")?.ok_or("it never expires (`exp` is missing)")?;
    if expires_ms.saturating_add(LEEWAY_MS) <= now_ms {
        return Err("it has expired (`exp`); get a new one from the issuer".to_owned());
    }
    for name in ["nbf", "iat"] {
        if time(name)?.is_some_and(|from_ms| from_ms > now_ms.saturating_add(LEEWAY_MS)) {
            return Err(format!(
                "its time `{name}` has not come yet; compare this machine's clock with the issuer's"
            ));
        }
    }
    Ok(TokenTimes {
        expires_ms,
        issued_ms: time("iat")?,
    })
}

/// Converts a time in seconds, possibly with a fraction, to milliseconds. `None` if no token can mean it.
fn time_ms(value: &Value) -> Option<u64> {
    let ms = match value.as_u64() {
        Some(seconds) => seconds.checked_mul(1_000)?,
        // Negative values, NaN and values that are too large become the nearest possible one.
        None => (value.as_f64()? * 1_000.0) as u64,
    };
    (ms <= TIME_MS_MAX).then_some(ms)
}

#[derive(Deserialize)]
struct KeySet {
    /// Each key is parsed separately, so that an unusable one does not affect the others.
    keys: Vec<Value>,
}

/// Returns the keys of a set that verify signatures of a supported algorithm. The others are skipped: with a warning,
/// if they seem to be meant for verification.
pub fn key_set(bytes: &[u8], place: KeySetPlace) -> Result<Vec<VerificationKey>, String> {
    let set: KeySet = serde_json::from_slice(bytes)
        .map_err(|error| format!("this is not a JSON Web Key Set: {}", shown(&error.to_string())))?;
    let mut keys = Vec::new();
    let mut skipped = 0;
    for (number, value) in set.keys.iter().enumerate() {
        if keys.len() == KEYS_MAX {
            tracing::warn!("the key set has more than {KEYS_MAX} usable keys, skipping the others");
            break;
        }
        match key_of(value, place) {
            Ok(Some(key)) => keys.push(key),
            Ok(None) => {}
            Err(why) => {
                skipped += 1;
                if skipped <= WARNINGS_MAX {
                    let kid = shown(value.get("kid").and_then(Value::as_str).unwrap_or_default());
                    tracing::warn!(number, kid, why = shown(&why), "skipping a key of the key set");
                }
            }
        }
    }
    if skipped > WARNINGS_MAX {
        tracing::warn!(skipped, "skipping more keys of the key set");
    }
    if keys.is_empty() {
        return Err("the key set has no key that verifies RS256, ES256, EdDSA or HS256 signatures".to_owned());
    }
    Ok(keys)
}

/// Converts a key of a set. `None` if it is not for signatures we verify; an error if it seems to be but cannot be
/// used.
fn key_of(value: &Value, place: KeySetPlace) -> Result<Option<VerificationKey>, String> {
    // Another kind of key has other fields.
    if !matches!(
        value.get("kty").and_then(Value::as_str),
        Some("RSA" | "EC" | "OKP" | "oct")
    ) {
        return Ok(None);
    }
    let jwk = Jwk::deserialize(value).map_err(|error| error.to_string())?;
    // The library takes a key that lacks a field for one of a kind that it does not know.
    if !matches!(
        jwk.algorithm,
        AlgorithmParameters::RSA(_)
            | AlgorithmParameters::EllipticCurve(_)
            | AlgorithmParameters::OctetKeyPair(_)
            | AlgorithmParameters::OctetKey(_)
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
        AlgorithmParameters::OctetKeyPair(parameters) if parameters.curve == EllipticCurve::Ed25519 => Algorithm::EdDSA,
        AlgorithmParameters::OctetKey(_) => Algorithm::HS256,
        _ => return Ok(None),
    };
    let meant = match jwk.common.key_algorithm {
        None => true,
        Some(KeyAlgorithm::RS256) => algorithm == Algorithm::RS256,
        Some(KeyAlgorithm::ES256) => algorithm == Algorithm::ES256,
        Some(KeyAlgorithm::EdDSA) => algorithm == Algorithm::EdDSA,
        Some(KeyAlgorithm::HS256) => algorithm == Algorithm::HS256,
        Some(_) => false,
    };
    if !meant {
        return Ok(None);
    }
    if let AlgorithmParameters::OctetKey(parameters) = &jwk.algorithm {
        if place == KeySetPlace::Url {
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
        let place = if from_file { KeySetPlace::File } else { KeySetPlace::Url };
        match key_of(&value, place) {
            Ok(Some(_)) => "used",
            Ok(None) => "not ours",
            Err(_) => "warned of",
        }
    }

    #[test]
    fn no_text_of_an_issuer_is_longer_in_an_error_than_a_line() {
        let long = "x\n".repeat(1_000);
        assert_eq!(shown(&long), "x".repeat(200));
        let set = json!({"keys": long}).to_string();
        let error = key_set(set.as_bytes(), KeySetPlace::Url).err().expect("no set");
        assert!(error.len() < 300, "{error}");
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
            json!({"kty": "OKP"}),
            json!({"kty": "OKP", "crv": "Ed25519"}),
        ] {
            assert_eq!(key(broken.clone(), true), "warned of", "{broken}");
        }
    }

    #[test]
    fn times_are_seconds() {
        assert_eq!(time_ms(&json!(1_700_000_000)), Some(1_700_000_000_000));
        assert_eq!(time_ms(&json!(1.5)), Some(1_500));
        assert_eq!(time_ms(&json!(-1)), Some(0));
        assert_eq!(time_ms(&json!(253_402_300_799u64)), Some(253_402_300_799_000));
        for beyond in [
            json!(u64::MAX),
            json!(1_700_000_000_000u64),
            json!(1e300),
            json!("7"),
            json!(null),
        ] {
            assert_eq!(time_ms(&beyond), None, "{beyond}");
        }
    }

    #[test]
    fn a_token_is_refused_for_each_of_its_times_that_cannot_be_right() {
        let now_s = 1_700_000_000;
        let judge = |name: &str, value: Value| {
            let mut claims = json!({"exp": now_s + 600, "nbf": now_s, "iat": now_s});
            claims[name] = value;
            token_times(claims.as_object().expect("an object"), now_s * 1_000)
        };
        for name in ["exp", "nbf", "iat"] {
            for bad in [
                json!("x"),
                json!((now_s + 600).to_string()),
                json!(1u64 << 63),
                json!(1e30),
                json!(now_s * 1_000),
                json!(null),
                json!(true),
                json!([]),
            ] {
                let why = judge(name, bad.clone()).expect_err("refused");
                assert!(
                    why.contains(&format!("`{name}`")) && why.contains("seconds"),
                    "{bad}: {why}"
                );
            }
        }
        for (name, bad, says) in [
            ("nbf", now_s + 61, "has not come yet"),
            ("iat", now_s + 61, "has not come yet"),
            ("exp", now_s - 60, "has expired"),
        ] {
            let why = judge(name, json!(bad)).expect_err("refused");
            assert!(why.contains(&format!("`{name}`")) && why.contains(says), "{why}");
        }
        // Within a minute of tolerance.
        let times = judge("iat", json!(now_s + 60)).expect("accepted");
        assert_eq!(times.issued_ms, Some((now_s + 60) * 1_000));
        assert!(judge("nbf", json!(now_s + 60)).is_ok());
        assert!(judge("exp", json!(now_s - 59)).is_ok());
        let claims = json!({"exp": now_s + 600});
        let times = token_times(claims.as_object().expect("an object"), now_s * 1_000).expect("accepted");
        assert_eq!((times.expires_ms, times.issued_ms), ((now_s + 600) * 1_000, None));
    }
}
