//! UserSig version 2: who calls, for which app and until when, signed with the app's secret key.
//!
//! zlib of a JSON object in a Base64 whose `+ / =` are `* - _`. HMAC-SHA256 goes over four lines (five with a userbuf)
//! and not over the JSON, so the order of its keys does not matter. Nothing of a signature is believed before it is
//! verified but what decides which error it is.

use crate::config::Credential;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use flate2::read::ZlibDecoder;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Map, Value};
use sha2::Sha256;
use std::io::Read as _;

/// Far more than a UserSig has once it is inflated; a few bytes of zlib could be gigabytes.
const JSON_BYTES_MAX: u64 = 64 << 10;

/// Why a signature is not taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum SignatureRefusal {
    Empty,
    /// Not a UserSig of version 2, or cut off.
    Unreadable,
    /// What is signed has a control character, or a userbuf that is not Base64: the lines that are signed would have
    /// more than one reading.
    Ambiguous,
    /// This field is a number with a fraction.
    Fraction(&'static str),
    OtherApp,
    OtherIdentifier,
    Forged,
    Expired,
}

/// Verifies a signature for an app and an identifier, at a time in seconds since 1970.
pub fn verify(usersig: &str, app: u64, key: &Credential, identifier: &str, now_s: u64) -> Result<(), SignatureRefusal> {
    if usersig.is_empty() {
        return Err(SignatureRefusal::Empty);
    }
    let fields = read(usersig).ok_or(SignatureRefusal::Unreadable)?;
    let text = |name: &str| fields.get(name).and_then(Value::as_str);
    for name in ["TLS.sdkappid", "TLS.time", "TLS.expire"] {
        if fields.get(name).is_some_and(Value::is_f64) {
            return Err(SignatureRefusal::Fraction(name));
        }
    }
    let signed_app = number(&fields, "TLS.sdkappid").ok_or(SignatureRefusal::Unreadable)?;
    let signed_for = text("TLS.identifier").ok_or(SignatureRefusal::Unreadable)?;
    let time = number(&fields, "TLS.time").ok_or(SignatureRefusal::Unreadable)?;
    let expire = number(&fields, "TLS.expire").ok_or(SignatureRefusal::Unreadable)?;
    let signature = text("TLS.sig").and_then(|text| STANDARD.decode(text).ok());
    let signature = signature.ok_or(SignatureRefusal::Unreadable)?;
    if text("TLS.ver") != Some("2.0") {
        return Err(SignatureRefusal::Unreadable);
    }
    let userbuf = match fields.get("TLS.userbuf") {
        None | Some(Value::Null) => None,
        Some(Value::String(userbuf)) if is_base64(userbuf) => Some(userbuf),
        Some(_) => return Err(SignatureRefusal::Ambiguous),
    };
    if signed_for.contains(is_control) || identifier.contains(is_control) {
        return Err(SignatureRefusal::Ambiguous);
    }
    if u64::try_from(signed_app) != Ok(app) {
        return Err(SignatureRefusal::OtherApp);
    }
    if signed_for != identifier {
        return Err(SignatureRefusal::OtherIdentifier);
    }
    let mut signed =
        format!("TLS.identifier:{signed_for}\nTLS.sdkappid:{signed_app}\nTLS.time:{time}\nTLS.expire:{expire}\n");
    if let Some(userbuf) = userbuf {
        signed.push_str(&format!("TLS.userbuf:{userbuf}\n"));
    }
    let mut hmac = Hmac::<Sha256>::new_from_slice(key.reveal().as_bytes()).map_err(|_| SignatureRefusal::Forged)?;
    hmac.update(signed.as_bytes());
    // In constant time.
    hmac.verify_slice(&signature).map_err(|_| SignatureRefusal::Forged)?;
    let now_s = i64::try_from(now_s).unwrap_or(i64::MAX);
    if time.saturating_add(expire) <= now_s {
        return Err(SignatureRefusal::Expired);
    }
    Ok(())
}

/// Whether a character could end a line of the signed text. Identifiers with such a character are refused.
fn is_control(char: char) -> bool {
    char.is_control() || matches!(char, '\u{2028}' | '\u{2029}')
}

fn is_base64(text: &str) -> bool {
    text.bytes()
        .all(|byte| byte.is_ascii_alphanumeric() || b"+/=-_*".contains(&byte))
}

fn read(usersig: &str) -> Option<Map<String, Value>> {
    let base64: String = usersig
        .chars()
        .map(|char| match char {
            '*' => '+',
            '-' => '/',
            '_' => '=',
            other => other,
        })
        .collect();
    let zlib = STANDARD.decode(base64).ok()?;
    let mut json = Vec::new();
    let inflated = ZlibDecoder::new(&*zlib).take(JSON_BYTES_MAX).read_to_end(&mut json);
    inflated.ok()?;
    serde_json::from_slice(&json).ok()
}

/// An integer, which some libraries write as text.
fn number(fields: &Map<String, Value>, name: &str) -> Option<i64> {
    match fields.get(name)? {
        Value::Number(number) => number.as_i64(),
        // Only as it would be written, since the text is what was signed.
        Value::String(text) => text.parse().ok().filter(|number: &i64| number.to_string() == *text),
        Value::Null | Value::Bool(_) | Value::Array(_) | Value::Object(_) => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use flate2::Compression;
    use flate2::write::ZlibEncoder;
    use serde_json::json;
    use std::io::Write as _;

    const APP: u64 = 1_400_000_000;
    const NOW: u64 = 1_800_000_000;

    fn key() -> Credential {
        Credential::new("5bd2850fff3ecb11d7c805251c51ee46")
    }

    fn pack(json: &[u8]) -> String {
        let mut zlib = ZlibEncoder::new(Vec::new(), Compression::default());
        zlib.write_all(json).expect("in memory");
        let base64 = STANDARD.encode(zlib.finish().expect("in memory"));
        base64.replace('+', "*").replace('/', "-").replace('=', "_")
    }

    /// Signs as the libraries do, then lets the fields be altered.
    fn sign(key: &str, alter: impl Fn(&mut Value)) -> String {
        let mut fields = json!({"TLS.ver": "2.0", "TLS.identifier": "administrator", "TLS.sdkappid": APP,
            "TLS.time": NOW - 10, "TLS.expire": 60});
        let text = format!(
            "TLS.identifier:administrator\nTLS.sdkappid:{APP}\nTLS.time:{}\nTLS.expire:60\n",
            NOW - 10
        );
        let mut hmac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).expect("any length");
        hmac.update(text.as_bytes());
        fields["TLS.sig"] = json!(STANDARD.encode(hmac.finalize().into_bytes()));
        alter(&mut fields);
        pack(fields.to_string().as_bytes())
    }

    fn verified_at(usersig: &str, now_s: u64) -> Result<(), SignatureRefusal> {
        verify(usersig, APP, &key(), "administrator", now_s)
    }

    #[test]
    fn a_signature_counts_until_it_expires() {
        let usersig = sign(key().reveal(), |_| {});
        assert_eq!(verified_at(&usersig, NOW), Ok(()));
        assert_eq!(verified_at(&usersig, NOW + 49), Ok(()));
        assert_eq!(verified_at(&usersig, NOW + 50), Err(SignatureRefusal::Expired));
        assert_eq!(verified_at(&usersig, u64::MAX), Err(SignatureRefusal::Expired));
        assert_eq!(
            verify(&usersig, 1, &key(), "administrator", NOW),
            Err(SignatureRefusal::OtherApp)
        );
        assert_eq!(
            verify(&usersig, APP, &key(), "bob", NOW),
            Err(SignatureRefusal::OtherIdentifier)
        );
    }

    #[test]
    fn whatever_is_altered_is_refused() {
        let altered = |name: &str, value: Value| {
            let usersig = sign(key().reveal(), |fields| fields[name] = value.clone());
            verified_at(&usersig, NOW)
        };
        assert_eq!(
            verified_at(&sign("another key", |_| {}), NOW),
            Err(SignatureRefusal::Forged)
        );
        assert_eq!(altered("TLS.expire", json!(6_000)), Err(SignatureRefusal::Forged));
        assert_eq!(altered("TLS.time", json!(NOW)), Err(SignatureRefusal::Forged));
        assert_eq!(altered("TLS.userbuf", json!("YWJj")), Err(SignatureRefusal::Forged));
        assert_eq!(altered("TLS.sig", json!("")), Err(SignatureRefusal::Forged));
        assert_eq!(
            altered("TLS.identifier", json!("bob")),
            Err(SignatureRefusal::OtherIdentifier)
        );
        assert_eq!(altered("TLS.sdkappid", json!(1)), Err(SignatureRefusal::OtherApp));
        assert_eq!(altered("TLS.sdkappid", json!(APP.to_string())), Ok(()));
        for (name, value) in [
            ("TLS.ver", json!("1.0")),
            ("TLS.ver", Value::Null),
            ("TLS.sig", json!("not Base64!")),
            ("TLS.sig", json!(7)),
            ("TLS.identifier", json!(7)),
            ("TLS.time", json!("+1")),
            ("TLS.expire", json!([])),
        ] {
            assert_eq!(
                altered(name, value.clone()),
                Err(SignatureRefusal::Unreadable),
                "{name} {value}"
            );
        }
    }

    #[test]
    fn one_signature_has_one_reading() {
        // What is signed for a user of this name is, byte by byte, what would be signed for the administrator, with
        // another expiry and the rest as its userbuf.
        let (time, name) = (NOW - 10, "administrator");
        let evil = format!("{name}\nTLS.sdkappid:{APP}\nTLS.time:{time}\nTLS.expire:315360000\nTLS.userbuf:x");
        let signed = format!("TLS.identifier:{evil}\nTLS.sdkappid:{APP}\nTLS.time:{time}\nTLS.expire:180\n");
        let mut hmac = Hmac::<Sha256>::new_from_slice(key().reveal().as_bytes()).expect("any length");
        hmac.update(signed.as_bytes());
        let signature = STANDARD.encode(hmac.finalize().into_bytes());
        let fields = |identifier: &str, expire: u64| {
            json!({"TLS.ver": "2.0", "TLS.identifier": identifier, "TLS.sdkappid": APP, "TLS.time": time,
                "TLS.expire": expire, "TLS.sig": signature})
        };
        let as_user = pack(fields(&evil, 180).to_string().as_bytes());
        assert_eq!(
            verify(&as_user, APP, &key(), &evil, NOW),
            Err(SignatureRefusal::Ambiguous)
        );
        let mut forged = fields(name, 315_360_000);
        forged["TLS.userbuf"] = json!(format!("x\nTLS.sdkappid:{APP}\nTLS.time:{time}\nTLS.expire:180"));
        assert_eq!(
            verified_at(&pack(forged.to_string().as_bytes()), NOW),
            Err(SignatureRefusal::Ambiguous)
        );
        for control in ["\n", "\r", "\0", "\t", "\u{7f}", "\u{85}", "\u{2028}"] {
            let name = format!("a{control}b");
            let usersig = pack(fields(&name, 180).to_string().as_bytes());
            assert_eq!(
                verify(&usersig, APP, &key(), &name, NOW),
                Err(SignatureRefusal::Ambiguous),
                "{name:?}"
            );
        }
        for userbuf in [
            json!(7),
            json!(true),
            json!(["YWJj"]),
            json!({}),
            json!("a b"),
            json!("\n"),
        ] {
            let usersig = sign(key().reveal(), |fields| fields["TLS.userbuf"] = userbuf.clone());
            assert_eq!(
                verified_at(&usersig, NOW),
                Err(SignatureRefusal::Ambiguous),
                "{userbuf}"
            );
        }
        for name in ["TLS.time", "TLS.expire", "TLS.sdkappid"] {
            let usersig = sign(key().reveal(), |fields| fields[name] = json!(1.5));
            assert_eq!(verified_at(&usersig, NOW), Err(SignatureRefusal::Fraction(name)));
        }
    }

    #[test]
    fn what_is_no_signature_is_refused_and_a_bomb_is_not_inflated() {
        assert_eq!(verified_at("", NOW), Err(SignatureRefusal::Empty));
        let whole = sign(key().reveal(), |_| {});
        for cut in 1..whole.len() {
            let refused = verified_at(&whole[..cut], NOW);
            assert_eq!(refused, Err(SignatureRefusal::Unreadable), "{}", &whole[..cut]);
        }
        for text in ["x", "%", "eJw", "äöü", &pack(b"[]"), &pack(b"{}"), &pack(b"\xff")] {
            assert_eq!(verified_at(text, NOW), Err(SignatureRefusal::Unreadable), "{text}");
        }
        let bomb = pack(&vec![b' '; 64 << 20]);
        assert!(bomb.len() < 128 << 10);
        assert_eq!(verified_at(&bomb, NOW), Err(SignatureRefusal::Unreadable));
    }
}
