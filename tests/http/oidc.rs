//! Tokens of an issuer: an issuer of the test's own, with keys that it makes, and everything that may be wrong with a token.

use crate::house::{House, connect, says, wait_until};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD;
use futures_util::FutureExt as _;
use jsonwebtoken::jwk::Jwk;
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rollcall::clock::ManualClock;
use rollcall::config::{Oidc, Scopes};
use rollcall::http::Issuer;
use serde_json::{Value, json};
use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::sync::watch;

/// When it is, in seconds since 1970.
const NOW: i64 = 1_000_000;
const AUDIENCE: &str = "presence";
const FILE_TOKEN: &str = "a-token-of-the-file";

/// An HTTP server that answers the two paths of an issuer, and may be away.
#[derive(Clone)]
struct TestIssuer {
    url: String,
    /// What it answers for its discovery document and for its keys. None: it closes the connection.
    answers: Arc<Mutex<[Option<String>; 2]>>,
    asked: Arc<AtomicUsize>,
    /// Lets every question wait.
    is_slow: Arc<AtomicBool>,
}

impl TestIssuer {
    fn new(keys: &[&Key]) -> TestIssuer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let url = format!("http://{}", listener.local_addr().expect("an address"));
        let document = json!({"issuer": url, "jwks_uri": format!("{url}/keys"), "unknown": [1]}).to_string();
        let issuer = TestIssuer {
            url,
            answers: Arc::new(Mutex::new([Some(document), None])),
            asked: Arc::default(),
            is_slow: Arc::default(),
        };
        issuer.publish(keys);
        let serving = issuer.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(mut stream) = stream else { return };
                let mut request = [0; 4_096];
                let count = stream.read(&mut request).unwrap_or(0);
                let is_document = request[..count].starts_with(b"GET /.well-known/openid-configuration ");
                serving.asked.fetch_add(1, Ordering::SeqCst);
                while serving.is_slow.load(Ordering::SeqCst) {
                    std::thread::sleep(Duration::from_millis(1));
                }
                let answer = serving.answers.lock().expect("unpoisoned")[usize::from(!is_document)].clone();
                if let Some(body) = answer {
                    // The server may have read enough.
                    let _ = write!(stream, "HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{body}");
                }
            }
        });
        issuer
    }

    fn answers(&self, number: usize, body: Option<String>) {
        self.answers.lock().expect("unpoisoned")[number] = body;
    }

    fn publish(&self, keys: &[&Key]) {
        let keys: Vec<&Value> = keys.iter().map(|key| &key.public).collect();
        self.answers(1, Some(json!({"keys": keys}).to_string()));
    }

    fn settings(&self) -> Oidc {
        Oidc {
            issuer: self.url.clone(),
            audience: AUDIENCE.to_owned(),
            scope_claim: "scope".to_owned(),
            scope_prefix: "rollcall:".to_owned(),
            name_claim: "sub".to_owned(),
            ca: None,
        }
    }

    /// What a token that is accepted says, with changes; null removes a claim.
    fn claims(&self, changes: Value) -> Value {
        let mut claims = json!({"iss": self.url, "aud": ["other", AUDIENCE], "sub": "alice", "exp": NOW + 600, "iat": NOW,
            "scope": "openid rollcall:read"});
        let all = claims.as_object_mut().expect("an object");
        for (name, value) in changes.as_object().expect("an object") {
            match value {
                Value::Null => drop(all.remove(name)),
                value => drop(all.insert(name.clone(), value.clone())),
            }
        }
        claims
    }
}

struct Key {
    id: String,
    algorithm: Algorithm,
    signs: EncodingKey,
    public: Value,
    pem: String,
}

impl Key {
    fn new(id: &str, algorithm: Algorithm) -> Key {
        let kind = match algorithm {
            Algorithm::RS256 => &rcgen::PKCS_RSA_SHA256,
            Algorithm::EdDSA => &rcgen::PKCS_ED25519,
            _ => &rcgen::PKCS_ECDSA_P256_SHA256,
        };
        let pair = rcgen::KeyPair::generate_for(kind).expect("made");
        let private = pair.serialize_pem();
        let signs = match algorithm {
            Algorithm::RS256 => EncodingKey::from_rsa_pem(private.as_bytes()),
            Algorithm::EdDSA => EncodingKey::from_ed_pem(private.as_bytes()),
            _ => EncodingKey::from_ec_pem(private.as_bytes()),
        };
        let signs = signs.expect("usable");
        let public = match algorithm {
            // The library makes none from a private key that has the public one beside it.
            Algorithm::EdDSA => {
                let x = BASE64_URL_SAFE_NO_PAD.encode(pair.public_key_raw());
                json!({"kty": "OKP", "crv": "Ed25519", "x": x, "kid": id, "alg": "EdDSA", "use": "sig"})
            }
            _ => {
                let mut public = Jwk::from_encoding_key(&signs, algorithm).expect("a key of a set");
                public.common.key_id = Some(id.to_owned());
                serde_json::to_value(public).expect("JSON")
            }
        };
        Key {
            id: id.to_owned(),
            algorithm,
            signs,
            public,
            pem: pair.public_key_pem(),
        }
    }

    fn sign(&self, claims: &Value) -> String {
        self.sign_as(Some(&self.id), claims)
    }

    fn sign_as(&self, kid: Option<&str>, claims: &Value) -> String {
        let mut header = Header::new(self.algorithm);
        header.kid = kid.map(str::to_owned);
        encode(&header, claims, &self.signs).expect("signed")
    }
}

/// A server with this issuer, whose keys it knows.
fn house(issuer: &TestIssuer) -> House {
    let scopes = Scopes {
        read: true,
        ..Scopes::default()
    };
    let house = House::with_issuer(Some(&[(FILE_TOKEN.to_owned(), scopes)]), issuer.settings());
    wait_until("its keys are fetched", || issuer.asked.load(Ordering::SeqCst) >= 2);
    house
}

#[test]
fn a_token_allows_what_its_scopes_say_and_nothing_else() {
    let keys = [Algorithm::RS256, Algorithm::ES256, Algorithm::EdDSA].map(|kind| Key::new(&format!("{kind:?}"), kind));
    let issuer = TestIssuer::new(&[&keys[0], &keys[1], &keys[2]]);
    let house = house(&issuer);
    for key in &keys {
        let token = key.sign(&issuer.claims(json!({})));
        wait_until("its key is known", || {
            house.token(&token).get("/v1/stats").status == 200
        });
        // A second time, when it is remembered.
        house.token(&token).get("/v1/stats").ok();
        house.token(&token).post("/v1/events", "[]").error(403, "forbidden");
    }
    let with = |scope: Value| house.token(&keys[1].sign(&issuer.claims(json!({"scope": scope, "exp": NOW + 601}))));
    // Nothing that has another prefix or another form.
    for scope in [
        json!(null),
        json!(""),
        json!("read admin"),
        json!("openid rollcall"),
        json!({"rollcall:read": 1}),
        json!(7),
    ] {
        with(scope).get("/v1/stats").error(403, "forbidden");
    }
    with(json!(["rollcall:metrics"]))
        .get("/v1/stats")
        .error(403, "forbidden");
    let metrics = with(json!(["rollcall:metrics"])).get("/metrics");
    assert_eq!(metrics.status, 200);
    let fetched = "rollcall_oidc_keys_fetched_timestamp_seconds";
    let fetched = format!("{fetched}{{issuer=\"{}\"}} {NOW}\n", issuer.url);
    assert!(metrics.body.contains(&fetched), "{fetched}");
    let bound = with(json!("rollcall:publish:g1"));
    bound.publish(&[connect("alice", 1)]);
    let mut other = connect("alice", 2);
    other["gateway"] = json!("g2");
    let refused = bound
        .post("/v1/events", json!([other]).to_string())
        .error(403, "forbidden");
    assert_eq!(refused["field"], "gateway");
    let kick = json!([{"type": "kick", "user": "alice"}]).to_string();
    bound.post("/v1/events", &kick).error(403, "forbidden");
    with(json!("rollcall:publish")).publish(&[other, says("alice", "hello")]);
    with(json!("rollcall:admin")).post("/v1/events", &kick).ok();
    // Beside it the file's tokens are good, and without any token there is nothing.
    house.token(FILE_TOKEN).get("/v1/stats").ok();
    house.get("/v1/stats").error(401, "no_token");
    house.token("x").get("/v1/stats").error(401, "unknown_token");
    // Tickets are signed with tokens that every node has.
    with(json!("rollcall:read"))
        .post("/v1/tickets", "")
        .error(403, "forbidden");
}

#[test]
fn whatever_is_wrong_with_a_token_it_is_refused_and_the_sentence_says_why() {
    let key = Key::new("k", Algorithm::ES256);
    let issuer = TestIssuer::new(&[&key]);
    let house = house(&issuer);
    let refused = |token: &str| {
        let error = house.token(token).get("/v1/stats").error(401, "bad_token");
        let message = error["message"].as_str().expect("a message").to_owned();
        assert!(!message.contains(token), "{message}");
        message
    };
    let good = key.sign(&issuer.claims(json!({})));
    wait_until("its key is known", || house.token(&good).get("/v1/stats").status == 200);
    for (changes, says) in [
        (json!({"iss": "https://login.example.com"}), "another one"),
        (json!({"iss": format!("{}/", issuer.url)}), "another one"),
        (json!({"iss": null}), "another one"),
        (json!({"aud": "other"}), "not for the audience"),
        (json!({"aud": ["other", ["presence"]]}), "not for the audience"),
        (json!({"aud": null}), "not for the audience"),
        (json!({"exp": null}), "never expires"),
        (json!({"exp": "600"}), "not a number"),
        (json!({"exp": NOW - 60}), "has expired"),
        (json!({"nbf": NOW + 61}), "has not come yet"),
        (json!({"iat": NOW + 61}), "has not come yet"),
        (json!({"sub": null}), "whose it is"),
        (json!({"sub": "\u{7}\n"}), "whose it is"),
    ] {
        let message = refused(&key.sign(&issuer.claims(changes.clone())));
        assert!(message.contains(says), "{changes}: {message}");
    }
    // Within a minute of tolerance.
    for changes in [
        json!({"exp": NOW - 59, "nbf": NOW + 60, "iat": NOW + 60}),
        json!({"aud": AUDIENCE}),
        json!({"exp": NOW as f64 + 0.5}),
    ] {
        house.token(&key.sign(&issuer.claims(changes))).get("/v1/stats").ok();
    }
    // Signed by somebody else: with another key of this name, and with no key.
    let claims = issuer.claims(json!({}));
    assert!(refused(&Key::new("k", Algorithm::ES256).sign(&claims)).contains("signature"));
    assert!(refused(&Key::new("k", Algorithm::RS256).sign(&claims)).contains("no key for RS256"));
    assert!(refused(&key.sign_as(Some("other"), &claims)).contains("no key for ES256"));
    let (head, rest) = good.split_once('.').expect("three parts");
    let (body, signature) = rest.split_once('.').expect("three parts");
    let part = |value: Value| BASE64_URL_SAFE_NO_PAD.encode(value.to_string());
    for alg in ["none", "None", "", "HS256x"] {
        refused(&format!("{}.{body}.", part(json!({"alg": alg, "kid": "k"}))));
        refused(&format!("{}.{body}.{signature}", part(json!({"alg": alg, "kid": "k"}))));
    }
    let admin = part(issuer.claims(json!({"scope": "rollcall:admin"})));
    refused(&format!("{head}.{admin}.{signature}"));
    refused(&format!(
        "{}.{body}.{signature}",
        part(json!({"alg": "ES256", "kid": "k", "crit": ["b64"]}))
    ));
    // Everybody has the public key, and could sign with it as if it were a secret.
    let published = serde_json::to_string(&key.public).expect("JSON");
    for secret in [key.pem.as_bytes(), key.pem.trim().as_bytes(), published.as_bytes()] {
        let mut header = Header::new(Algorithm::HS256);
        header.kid = Some("k".to_owned());
        let forged = encode(&header, &claims, &EncodingKey::from_secret(secret)).expect("signed");
        assert!(refused(&forged).contains("HS256"));
    }
    // A token names its key, unless there is only one.
    house.token(&key.sign_as(None, &claims)).get("/v1/stats").ok();
    for odd in [
        "..",
        "a.b.c",
        &format!("{head}.{body}"),
        &format!(".{body}.{signature}"),
        &format!("{good}x"),
    ] {
        let reply = house.token(odd).get("/v1/stats");
        assert_eq!(reply.status, 401, "{odd}");
    }
    let long = key.sign(&issuer.claims(json!({"more": "x".repeat(8 << 10)})));
    assert!(refused(&long).contains("at most 8192"));
    // None of all that had the issuer asked again, and a key that is known never has.
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
    house.clock.advance_ms(10_000);
    assert!(refused(&Key::new("k", Algorithm::ES256).sign(&claims)).contains("signature"));
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
}

#[test]
fn keys_are_fetched_again_for_a_new_key_but_not_for_every_token_that_names_one() {
    let (first, second) = (
        Key::new("first", Algorithm::ES256),
        Key::new("second", Algorithm::ES256),
    );
    let issuer = TestIssuer::new(&[&first]);
    let house = house(&issuer);
    let token = |key: &Key| key.sign(&issuer.claims(json!({"exp": NOW + 1_000_000})));
    let (old, new) = (token(&first), token(&second));
    wait_until("its key is known", || house.token(&old).get("/v1/stats").status == 200);
    issuer.publish(&[&second]);
    // Keys were fetched just now.
    for _ in 0..20 {
        house.token(&new).get("/v1/stats").error(401, "bad_token");
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 2);
    house.clock.advance_ms(10_000);
    house.token(&new).get("/v1/stats").ok();
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 4);
    // The key is gone, and with it what it had signed, also if that was accepted before.
    house.token(&old).get("/v1/stats").error(401, "bad_token");
    for number in 0..20 {
        let unknown = second.sign_as(Some(&format!("key-{number}")), &issuer.claims(json!({})));
        house.token(&unknown).get("/v1/stats").error(401, "bad_token");
    }
    assert_eq!(issuer.asked.load(Ordering::SeqCst), 4, "at most every ten seconds");
    // The issuer is away: who is known stays known, and a key that cannot be fetched lets nobody in.
    issuer.answers(0, None);
    house.clock.advance_ms(10_000);
    house.token(&token(&first)).get("/v1/stats").error(401, "bad_token");
    house.token(&new).get("/v1/stats").ok();
    // For a day. Then it could be that the key was withdrawn because it was stolen.
    house.clock.advance_ms(24 * 3_600_000);
    let error = house.token(&new).get("/v1/stats").error(503, "issuer_unavailable");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains(&issuer.url)),
        "{error}"
    );
    house.token(FILE_TOKEN).get("/v1/stats").ok();
}

#[tokio::test]
async fn keys_arrive_also_if_the_caller_has_gone_and_few_wait_for_them() {
    let (first, second) = (
        Key::new("first", Algorithm::ES256),
        Key::new("second", Algorithm::ES256),
    );
    let test_issuer = TestIssuer::new(&[&first]);
    let clock = Arc::new(ManualClock::new(NOW as u64 * 1_000));
    let issuer = Arc::new(Issuer::new(test_issuer.settings(), clock.clone()).expect("usable"));
    let (_stop, stopping) = watch::channel(false);
    tokio::spawn(issuer.clone().keep(stopping));
    let ask = |token: String| {
        let issuer = issuer.clone();
        async move { issuer.grant(&token, blake3::hash(token.as_bytes())).await.is_ok() }
    };
    let until = async |token: String| {
        for _ in 0..10_000 {
            if ask(token.clone()).await {
                return;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        panic!("its key never became known");
    };
    until(first.sign(&test_issuer.claims(json!({})))).await;
    clock.advance_ms(10_000);
    test_issuer.publish(&[&second]);
    let asked = test_issuer.asked.load(Ordering::SeqCst);
    test_issuer.is_slow.store(true, Ordering::SeqCst);
    let unknown = |number: usize| {
        let token = second.sign_as(Some(&format!("key-{number}")), &test_issuer.claims(json!({})));
        Box::pin(ask(token))
    };
    let mut waiting: Vec<_> = (0..32).map(unknown).collect();
    for one in &mut waiting {
        assert!(one.now_or_never().is_none());
    }
    // There is no place for more, so the others are judged with the keys that are there.
    for number in 32..40 {
        assert_eq!(unknown(number).now_or_never(), Some(false));
    }
    while test_issuer.asked.load(Ordering::SeqCst) == asked {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    // All go away, also the one for which keys are fetched.
    drop(waiting);
    test_issuer.is_slow.store(false, Ordering::SeqCst);
    until(second.sign(&test_issuer.claims(json!({})))).await;
    assert_eq!(test_issuer.asked.load(Ordering::SeqCst), asked + 2);
}

#[test]
fn an_issuer_that_cannot_be_understood_lets_nobody_in_and_stops_nothing() {
    let key = Key::new("k", Algorithm::ES256);
    let secret = json!({"keys": [{"kty": "oct", "kid": "k", "k": "MDEyMzQ1Njc4OTAxMjM0NTY3ODkwMTIzNDU2Nzg5MDE"}]});
    let public = &key.public;
    // Away, no JSON, of another issuer, without keys, with a secret, and too large.
    let issuers = [
        (0, None),
        (0, Some("<html>".to_owned())),
        (
            0,
            Some(json!({"issuer": "https://other.example.com", "jwks_uri": "ITSELF/keys"}).to_string()),
        ),
        // Not of this machine, says the address, although this test answers there.
        (
            0,
            Some(json!({"issuer": "ITSELF", "jwks_uri": "ELSEWHERE/keys"}).to_string()),
        ),
        (1, Some("{}".to_owned())),
        (1, Some(secret.to_string())),
        (
            1,
            Some(format!("{{\"keys\":[{public}],\"x\":\"{}\"}}", "x".repeat(3 << 20))),
        ),
    ];
    let all = issuers.map(|(number, answer)| {
        let issuer = TestIssuer::new(&[&key]);
        let elsewhere = issuer.url.replace("127.0.0.1", "0.0.0.0");
        let answer = answer.map(|answer| answer.replace("ITSELF", &issuer.url).replace("ELSEWHERE", &elsewhere));
        let shown = format!("{answer:.80?}");
        issuer.answers(number, answer);
        let house = House::with_issuer(None, issuer.settings());
        (issuer, house, number, shown)
    });
    for (issuer, house, number, shown) in all {
        // Before it is asked again, it was judged.
        wait_until("it was asked again", || {
            issuer.asked.load(Ordering::SeqCst) > number + 1
        });
        let token = house.token(&key.sign(&issuer.claims(json!({}))));
        let reply = token.get("/v1/stats");
        assert!(reply.error(503, "issuer_unavailable")["message"].is_string(), "{shown}");
        assert_eq!(reply.header("retry-after"), Some("1"));
        house.get("/v1/stats").error(401, "no_token");
        assert_eq!(house.get("/readyz").status, 200);
    }
}

#[test]
fn a_subscription_ends_when_its_token_expires() {
    let key = Key::new("k", Algorithm::EdDSA);
    let issuer = TestIssuer::new(&[&key]);
    let house = house(&issuer);
    // With a minute of tolerance it is accepted for half a second more.
    let token = house.token(&key.sign(&issuer.claims(json!({"exp": NOW as f64 - 59.5}))));
    wait_until("its key is known", || token.get("/v1/stats").status == 200);
    let mut follower = token.follow("/v1/changes");
    assert!(follower.next_or_end().is_none());
    house.clock.advance_ms(2_000);
    let error = token.get("/v1/stats").error(401, "bad_token");
    assert!(
        error["message"]
            .as_str()
            .is_some_and(|message| message.contains("has expired")),
        "{error}"
    );
}
