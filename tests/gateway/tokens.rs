//! Authentication: tokens of three kinds, sent in three ways, with keys that change.

use crate::client::{Client, Dial, Heard};
use crate::house::{House, flags, path, wait_until};
use jsonwebtoken::jwk::{Jwk, JwkSet};
use jsonwebtoken::{Algorithm, EncodingKey, Header, encode};
use rollcall::gateway::Gateway;
use serde_json::{Value, json};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime, UNIX_EPOCH};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

const SECRET: &[u8] = b"a secret of at least thirty-two bytes";

fn now_s() -> u64 {
    SystemTime::now()
        .duration_since(UNIX_EPOCH)
        .expect("after 1970")
        .as_secs()
}

fn claims(user: &str) -> Value {
    json!({"sub": user, "exp": now_s() + 600})
}

fn hs256(claims: &Value) -> String {
    encode(
        &Header::new(Algorithm::HS256),
        claims,
        &EncodingKey::from_secret(SECRET),
    )
    .expect("signed")
}

fn dial(gateway: &Gateway) -> Dial {
    Dial::new(gateway.address(), "platform=web&device=tab&intent=login")
}

async fn user_of(client: &mut Client) -> String {
    let hello = client.frame().await;
    assert_eq!(hello["type"], "hello", "{hello}");
    hello["user"].as_str().expect("a user").to_owned()
}

async fn in_header(gateway: &Gateway, token: &str) -> Result<String, u16> {
    let dial = dial(gateway).header("authorization", format!("Bearer {token}"));
    match dial.open().await {
        Ok(mut client) => Ok(user_of(&mut client).await),
        Err(refused) => {
            assert_eq!(refused.code, "unauthorized");
            Err(refused.status)
        }
    }
}

/// Shows a token as pages do, and returns the sentence with which it is refused.
async fn why_unauthorized(gateway: &Gateway, token: &str) -> String {
    let dialled = dial(gateway).header("sec-websocket-protocol", format!("rollcall.v1, bearer.{token}"));
    let mut client = dialled.open().await.expect("a WebSocket");
    let said = client.frame().await;
    assert_eq!(said["code"], "unauthorized");
    assert_eq!(client.hear().await, Heard::Closed(4010));
    said["message"].as_str().expect("a sentence").to_owned()
}

/// A gateway with the secret above.
async fn with_secret(house: &House, more: &[&str]) -> Gateway {
    let file = house.data.path().join("secret");
    std::fs::write(&file, [SECRET, b"\n"].concat()).expect("written");
    let arguments: Vec<&str> = ["--jwt-key", path(&file)].iter().chain(more).copied().collect();
    house.gateway(&arguments).await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_is_shown_in_the_header_the_subprotocol_or_the_first_frame() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &[]).await;
    assert_eq!(
        in_header(&gateway, &hs256(&claims("alice"))).await,
        Ok("alice".to_owned())
    );

    let token = hs256(&claims("bob"));
    let dialled = dial(&gateway).header("sec-websocket-protocol", format!("rollcall.v1, bearer.{token}"));
    assert_eq!(user_of(&mut dialled.open().await.expect("let in")).await, "bob");

    let mut client = dial(&gateway).open().await.expect("let in");
    client
        .say(json!({"type": "auth", "token": hs256(&claims("carol"))}))
        .await;
    assert_eq!(user_of(&mut client).await, "carol");
    // `?user=` is nothing here.
    let query = "platform=web&device=tab&intent=login&user=eve";
    let token = hs256(&claims("dave"));
    let dialled = Dial::new(gateway.address(), query).header("authorization", format!("bearer {token}"));
    assert_eq!(user_of(&mut dialled.open().await.expect("let in")).await, "dave");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_wrong_with_a_token_nobody_comes_in() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(
        &house,
        &[
            "--jwt-issuer",
            "us",
            "--jwt-audience",
            "chat",
            "--jwt-device-claim",
            "dev",
        ],
    )
    .await;
    let good = json!({"sub": "alice", "exp": now_s() + 600, "iss": "us", "aud": ["chat", "more"], "dev": "tab"});
    assert_eq!(in_header(&gateway, &hs256(&good)).await, Ok("alice".to_owned()));
    let with = |key: &str, value: Value| {
        let mut claims = good.clone();
        match value {
            Value::Null => claims.as_object_mut().expect("an object").remove(key),
            value => claims.as_object_mut().expect("an object").insert(key.to_owned(), value),
        };
        hs256(&claims)
    };
    let forged = encode(
        &Header::new(Algorithm::HS256),
        &good,
        &EncodingKey::from_secret(b"another secret of thirty-two bytes."),
    );
    let stronger = encode(&Header::new(Algorithm::HS512), &good, &EncodingKey::from_secret(SECRET));
    let unsigned = {
        let header_and_claims = hs256(&good);
        let claims = header_and_claims.split('.').nth(1).expect("claims");
        // {"alg":"none"}
        format!("eyJhbGciOiJub25lIn0.{claims}.")
    };
    let critical = {
        let rest = hs256(&good);
        let claims = rest.split('.').nth(1).expect("claims");
        // {"alg":"HS256","crit":["x"],"x":1}
        format!("eyJhbGciOiJIUzI1NiIsImNyaXQiOlsieCJdLCJ4IjoxfQ.{claims}.AAAA")
    };
    let bad = [
        ("with demands", critical),
        ("expired", with("exp", json!(now_s() - 120))),
        ("without an end", with("exp", Value::Null)),
        ("not yet", with("nbf", json!(now_s() + 600))),
        ("of a beginning that is text", with("nbf", json!("x"))),
        ("of an end in milliseconds", with("exp", json!((now_s() + 600) * 1_000))),
        ("issued later", with("iat", json!(now_s() + 600))),
        ("issued in milliseconds", with("iat", json!(now_s() * 1_000))),
        ("issued at no time", with("iat", json!("x"))),
        ("issued after all times", with("iat", json!(1u64 << 63))),
        ("of another issuer", with("iss", json!("them"))),
        ("without an issuer", with("iss", Value::Null)),
        ("for others", with("aud", json!("mail"))),
        ("for nobody", with("aud", Value::Null)),
        ("of another device", with("dev", json!("phone"))),
        ("without a user", with("sub", Value::Null)),
        ("of a fraction", with("sub", json!(7.5))),
        ("of a list", with("sub", json!(["alice"]))),
        ("of nobody", with("sub", json!(""))),
        ("of too long a name", with("sub", json!("x".repeat(129)))),
        ("forged", forged.expect("signed")),
        ("of another algorithm", stronger.expect("signed")),
        ("unsigned", unsigned),
        ("no token", "nothing.of.this".to_owned()),
    ];
    for (what, token) in &bad {
        assert_eq!(in_header(&gateway, token).await, Err(401), "{what}");
        // A page cannot see the status, so it gets a close code.
        let protocols = format!("rollcall.v1, bearer.{token}");
        if let Ok(mut client) = dial(&gateway).header("sec-websocket-protocol", protocols).open().await {
            assert_eq!(client.frame().await["code"], "unauthorized", "{what}");
            assert_eq!(client.hear().await, Heard::Closed(4010), "{what}");
        }
    }
    let mut client = dial(&gateway).open().await.expect("let in");
    client.say(json!({"type": "auth", "token": bad[0].1})).await;
    assert_eq!(client.closed().await, Heard::Closed(4010));
    let mut client = dial(&gateway).open().await.expect("let in");
    client.say(json!({"type": "heartbeat"})).await;
    assert_eq!(client.closed().await, Heard::Closed(4010));
    let mut client = dial(&gateway).open().await.expect("let in");
    client.say(json!({"type": "auth", "token": "x".repeat(80_000)})).await;
    assert_eq!(client.closed().await, Heard::Closed(1009));
    let events = house.events();
    let connects = events.iter().filter(|event| event["type"] == "connect").count();
    assert_eq!(connects, 1, "only the good one is in the log");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_user_may_be_an_integer_and_too_long_a_name_is_refused_by_name() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &["--jwt-device-claim", "dev"]).await;
    let number = hs256(&json!({"sub": 1234, "exp": now_s() + 600}));
    assert_eq!(in_header(&gateway, &number).await, Ok("1234".to_owned()));
    let most = "x".repeat(128);
    assert_eq!(in_header(&gateway, &hs256(&claims(&most))).await, Ok(most));
    for bytes in [129, 255] {
        let said = why_unauthorized(&gateway, &hs256(&claims(&"x".repeat(bytes)))).await;
        assert!(
            said.contains("`sub`") && said.contains("128") && said.contains(&bytes.to_string()),
            "{said}"
        );
    }
    // A device that is an integer in the token is text in the address.
    let token = hs256(&json!({"sub": "alice", "exp": now_s() + 600, "dev": 7}));
    let dialled = Dial::new(gateway.address(), "platform=web&device=7&intent=login");
    let dialled = dialled.header("authorization", format!("Bearer {token}"));
    assert_eq!(user_of(&mut dialled.open().await.expect("let in")).await, "alice");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_token_from_before_a_kick_lets_nobody_in_again() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &[]).await;
    let token = |iat: Value| hs256(&json!({"sub": "alice", "exp": now_s() + 600, "iat": iat}));
    let come_in = async |token: &str| {
        let dialled = dial(&gateway).header("authorization", format!("Bearer {token}"));
        let mut client = dialled.open().await.expect("let in");
        assert_eq!(user_of(&mut client).await, "alice");
        client
    };
    let before = now_s() - 5;
    let old = token(json!(before));
    let mut first = come_in(&old).await;
    let connect = house.published("connect", "alice").await;
    assert_eq!(
        connect["auth_at"],
        before * 1_000,
        "seconds of the token, milliseconds of the log"
    );
    house.publish(json!({"type": "kick", "user": "alice"}));
    assert_eq!(first.closed().await, Heard::Closed(4003));
    // The same token is of before the kick, with a fraction too; one that was made later is good.
    for iat in [json!(before), json!(before as f64 + 0.5)] {
        assert_eq!(come_in(&token(iat)).await.closed().await, Heard::Closed(4003));
    }
    let mut new = come_in(&token(json!(now_s() + 2))).await;
    new.beat().await;
    assert_eq!(house.causes("alice", "login").await, ["login", "kicked", "login"]);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_without_a_token_is_refused_at_once() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &[]).await;
    for header in ["Bearer", "Bearer ", "bearer", "Basic YTpi", "Token x", ""] {
        for protocols in [None, Some("rollcall.v1")] {
            let mut dial = dial(&gateway).header("authorization", header);
            if let Some(protocols) = protocols {
                dial = dial.header("sec-websocket-protocol", protocols);
            }
            let refused = dial.refused().await;
            assert_eq!((refused.status, &*refused.code), (401, "unauthorized"), "{header:?}");
        }
    }
    // A browser adds the password of a site by itself.
    let token = hs256(&claims("alice"));
    let dialled = dial(&gateway)
        .header("authorization", "Basic YTpi")
        .header("sec-websocket-protocol", format!("rollcall.v1, bearer.{token}"));
    assert_eq!(user_of(&mut dialled.open().await.expect("let in")).await, "alice");
    gateway.stop(false).await;
}

/// Otherwise no kick would ever bar it.
#[tokio::test(flavor = "multi_thread")]
async fn a_token_whose_time_cannot_be_right_is_refused_by_the_name_of_the_claim() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &[]).await;
    for (claim, value) in [
        ("iat", json!(now_s() * 1_000)),
        ("iat", json!(now_s() + 90)),
        ("iat", json!("x")),
        ("iat", json!(1u64 << 63)),
        ("nbf", json!("x")),
        ("exp", json!("x")),
        ("exp", json!(1e30)),
        ("exp", json!(now_s() * 1_000)),
    ] {
        let mut claims = claims("alice");
        claims[claim] = value.clone();
        let token = hs256(&claims);
        assert_eq!(in_header(&gateway, &token).await, Err(401), "{claim}: {value}");
        let said = why_unauthorized(&gateway, &token).await;
        assert!(said.contains(&format!("`{claim}`")), "{claim}: {value}: {said}");
    }
    assert!(house.events_of("connect", "alice").is_empty());
    gateway.stop(false).await;
}

/// An issuer: its answer, which may change, and how often it was asked.
struct Issuer {
    url: String,
    answer: Arc<Mutex<String>>,
    asked: Arc<AtomicUsize>,
    serving: tokio::task::JoinHandle<()>,
}

impl Issuer {
    async fn new(set: &str) -> Issuer {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
        let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
        let answer = Arc::new(Mutex::new(Issuer::ok(set)));
        let asked = Arc::new(AtomicUsize::new(0));
        let (answers, count) = (answer.clone(), asked.clone());
        let serving = tokio::spawn(async move {
            loop {
                let (mut stream, _) = listener.accept().await.expect("accepted");
                count.fetch_add(1, Ordering::SeqCst);
                let mut request = [0; 4_096];
                let _ = stream.read(&mut request).await.expect("asked");
                let text = answers.lock().expect("unpoisoned").clone();
                // It may have read enough.
                let _ = stream.write_all(text.as_bytes()).await;
            }
        });
        Issuer {
            url,
            answer,
            asked,
            serving,
        }
    }

    fn ok(set: &str) -> String {
        format!("HTTP/1.1 200 OK\r\nConnection: close\r\n\r\n{set}")
    }

    fn gives(&self, answer: String) {
        *self.answer.lock().expect("unpoisoned") = answer;
    }

    fn asked(&self) -> usize {
        self.asked.load(Ordering::SeqCst)
    }
}

/// A key of a set, and a token that it verifies.
fn signed(id: &str, algorithm: Algorithm) -> (Jwk, String) {
    let (signs, _) = key_pair(algorithm);
    let mut jwk = Jwk::from_encoding_key(&signs, algorithm).expect("a key of a set");
    jwk.common.key_id = Some(id.to_owned());
    let mut header = Header::new(algorithm);
    header.kid = Some(id.to_owned());
    let token = encode(&header, &claims(id), &signs).expect("signed");
    (jwk, token)
}

fn set(keys: &[&Jwk]) -> String {
    json!({"keys": keys}).to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_issuer_changes_its_key_the_next_client_is_let_in_at_once() {
    let house = House::new(json!({})).await;
    let (first, first_token) = signed("first", Algorithm::ES256);
    let (second, second_token) = signed("second", Algorithm::ES256);
    // Some issuers keep the name of a key that is another one.
    let (mut third, third_token) = signed("first", Algorithm::ES256);
    third.common.key_id = Some("first".to_owned());
    let issuer = Issuer::new(&set(&[&first])).await;
    let gateway = house
        .gateway(&["--jwks", &issuer.url, "--reload-seconds", "3600"])
        .await;
    assert_eq!(in_header(&gateway, &first_token).await, Ok("first".to_owned()));
    assert_eq!(issuer.asked(), 1);
    issuer.gives(Issuer::ok(&set(&[&second])));
    assert_eq!(in_header(&gateway, &second_token).await, Ok("second".to_owned()));
    assert_eq!(issuer.asked(), 2);
    // The issuer is asked once in five seconds, no matter how many tokens come.
    let began = Instant::now();
    for number in 0..100 {
        let (_, token) = signed(&format!("odd-{number}"), Algorithm::ES256);
        assert_eq!(in_header(&gateway, &token).await, Err(401));
    }
    let may = 3 + began.elapsed().as_secs() as usize / 5;
    assert!(issuer.asked() <= may, "{} of {may}", issuer.asked());
    issuer.gives(Issuer::ok(&set(&[&third])));
    wait_until("the third is known", async || {
        in_header(&gateway, &third_token).await.is_ok()
    })
    .await;
    assert_eq!(in_header(&gateway, &first_token).await, Err(401));
    // An issuer that is away, sends elsewhere or never ends changes nothing.
    for answer in [
        "HTTP/1.1 500 Sorry\r\nConnection: close\r\n\r\n".to_owned(),
        format!(
            "HTTP/1.1 302 Found\r\nLocation: {}\r\nConnection: close\r\n\r\n",
            issuer.url
        ),
        Issuer::ok(&" ".repeat(2 << 20)),
        Issuer::ok("{}"),
    ] {
        issuer.gives(answer);
        gateway.edge().reload_keys().await;
        assert_eq!(in_header(&gateway, &third_token).await, Ok("first".to_owned()));
    }
    gateway.stop(false).await;
    issuer.serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn odd_keys_of_a_set_are_skipped_and_a_secret_at_an_address_is_none() {
    let house = House::new(json!({})).await;
    let (good, token) = signed("good", Algorithm::RS256);
    let mut keys = vec![
        json!({"kty": "RSA", "kid": "padded", "n": "AQAB==", "e": "AQAB", "use": "sig", "alg": "RS256"}),
        json!({"kty": "RSA", "e": "AQAB"}),
        json!({"kty": "EC", "crv": "P-256", "kid": 7, "x": "AA", "y": "AA"}),
        json!({"kty": "AKP", "kid": "pq", "alg": "ML-DSA-65", "pub": "AAAA"}),
        json!({"kty": "oct", "k": ""}),
        json!("not even an object"),
    ];
    let forged = |secret: &[u8]| {
        encode(
            &Header::new(Algorithm::HS256),
            &claims("mallory"),
            &EncodingKey::from_secret(secret),
        )
        .expect("signed")
    };
    keys.push(serde_json::to_value(&good).expect("JSON"));
    let file = house.data.path().join("odd.json");
    std::fs::write(&file, json!({"keys": keys}).to_string()).expect("written");
    let gateway = house.gateway(&["--jwks", path(&file), "--gateway-name", "file"]).await;
    assert_eq!(in_header(&gateway, &token).await, Ok("good".to_owned()));
    assert_eq!(in_header(&gateway, &forged(b"")).await, Err(401));
    gateway.stop(false).await;
    // A secret that is long enough is one in a file, and none at an address.
    let k = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY";
    keys.push(json!({"kty": "oct", "k": k}));
    std::fs::write(&file, json!({"keys": keys}).to_string()).expect("written");
    let issuer = Issuer::new(&json!({"keys": keys}).to_string()).await;
    for (place, let_in) in [(path(&file), true), (issuer.url.as_str(), false)] {
        let gateway = house.gateway(&["--jwks", place, "--gateway-name", "secret"]).await;
        assert_eq!(in_header(&gateway, &token).await, Ok("good".to_owned()));
        let answer = in_header(&gateway, &forged(b"0123456789abcdef0123456789abcdef")).await;
        assert_eq!(answer.is_ok(), let_in, "{place}: {answer:?}");
        gateway.stop(false).await;
    }
    issuer.serving.abort();
}

/// RS256 and ES256 keys: what signs, and the public key as PEM.
fn key_pair(algorithm: Algorithm) -> (EncodingKey, String) {
    let kind = match algorithm {
        Algorithm::RS256 => &rcgen::PKCS_RSA_SHA256,
        _ => &rcgen::PKCS_ECDSA_P256_SHA256,
    };
    let pair = rcgen::KeyPair::generate_for(kind).expect("made");
    let private = pair.serialize_pem();
    let signs = match algorithm {
        Algorithm::RS256 => EncodingKey::from_rsa_pem(private.as_bytes()),
        _ => EncodingKey::from_ec_pem(private.as_bytes()),
    };
    (signs.expect("usable"), pair.public_key_pem())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_public_key_of_either_kind_is_no_secret_for_others() {
    let house = House::new(json!({})).await;
    for (name, algorithm) in [("rsa", Algorithm::RS256), ("ec", Algorithm::ES256)] {
        let (signs, public) = key_pair(algorithm);
        let file = house.data.path().join(format!("{name}.pem"));
        std::fs::write(&file, &public).expect("written");
        let gateway = house.gateway(&["--jwt-key", path(&file), "--gateway-name", name]).await;
        let token = encode(&Header::new(algorithm), &claims("alice"), &signs).expect("signed");
        assert_eq!(in_header(&gateway, &token).await, Ok("alice".to_owned()));
        // Everybody has the public key, and could sign with it as if it were the secret of HS256.
        let forged = encode(
            &Header::new(Algorithm::HS256),
            &claims("alice"),
            &EncodingKey::from_secret(public.as_bytes()),
        );
        assert_eq!(in_header(&gateway, &forged.expect("signed")).await, Err(401));
        gateway.stop(false).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_is_read_again_without_a_restart_and_a_broken_one_changes_nothing() {
    let house = House::new(json!({})).await;
    let file = house.data.path().join("jwks.json");
    let key = |id: &str, algorithm: Algorithm| {
        let (signs, _) = key_pair(algorithm);
        let mut jwk = Jwk::from_encoding_key(&signs, algorithm).expect("a key of a set");
        jwk.common.key_id = Some(id.to_owned());
        let mut header = Header::new(algorithm);
        header.kid = Some(id.to_owned());
        let token = encode(&header, &claims(id), &signs).expect("signed");
        (jwk, token)
    };
    let write = |keys: Vec<Jwk>| {
        let text = serde_json::to_string(&JwkSet { keys }).expect("JSON");
        std::fs::write(&file, text).expect("written");
    };
    let (first, first_token) = key("first", Algorithm::RS256);
    let (second, second_token) = key("second", Algorithm::ES256);
    write(vec![first.clone()]);
    let gateway = house.gateway(&["--jwks", path(&file), "--reload-seconds", "1"]).await;
    assert_eq!(in_header(&gateway, &first_token).await, Ok("first".to_owned()));
    assert_eq!(in_header(&gateway, &second_token).await, Err(401));
    std::fs::write(&file, "{").expect("written");
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    assert_eq!(in_header(&gateway, &first_token).await, Ok("first".to_owned()));
    write(vec![second]);
    wait_until("the new key is known", async || {
        in_header(&gateway, &second_token).await.is_ok()
    })
    .await;
    assert_eq!(in_header(&gateway, &first_token).await, Err(401));
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_set_at_an_address_is_waited_for() {
    let house = House::new(json!({})).await;
    let (signs, _) = key_pair(Algorithm::ES256);
    let jwk = Jwk::from_encoding_key(&signs, Algorithm::ES256).expect("a key of a set");
    let set = serde_json::to_string(&JwkSet { keys: vec![jwk] }).expect("JSON");
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("a port");
    let url = format!("http://{}/jwks.json", listener.local_addr().expect("an address"));
    // The first time there is nothing to be had.
    let serving = tokio::spawn(async move {
        for answer in ["500 Sorry", "200 OK", "200 OK", "200 OK"] {
            let (mut stream, _) = listener.accept().await.expect("accepted");
            let mut request = [0; 4_096];
            let _ = stream.read(&mut request).await.expect("asked");
            let length = set.len();
            let text = format!("HTTP/1.1 {answer}\r\nContent-Length: {length}\r\nConnection: close\r\n\r\n{set}");
            stream.write_all(text.as_bytes()).await.expect("answered");
        }
    });
    let gateway = house.gateway(&["--jwks", &url]).await;
    let token = encode(&Header::new(Algorithm::ES256), &claims("alice"), &signs).expect("signed");
    assert_eq!(in_header(&gateway, &token).await, Ok("alice".to_owned()));
    gateway.stop(false).await;
    serving.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_user_may_be_in_another_claim() {
    let house = House::new(json!({})).await;
    let gateway = with_secret(&house, &["--jwt-user-claim", "uid"]).await;
    let token = hs256(&json!({"sub": "not me", "uid": "alice", "exp": now_s() + 60}));
    assert_eq!(in_header(&gateway, &token).await, Ok("alice".to_owned()));
    gateway.stop(false).await;
}

#[test]
fn settings_that_would_let_everybody_in_are_refused() {
    let config = |more: &[&str], listen: &str, insecure: bool| {
        let mut flags = flags(more);
        flags.gateway_insecure = insecure;
        let config = flags.config(listen.parse().expect("an address"), "data".into());
        config.map(drop).map_err(|error| error.to_string())
    };
    let said = config(&[], "127.0.0.1:0", false).expect_err("no keys");
    assert!(
        said.contains("--jwt-key") && said.contains("--gateway-insecure"),
        "{said}"
    );
    let said = config(&[], "0.0.0.0:0", true).expect_err("not of this machine");
    assert!(said.contains("for a loopback address"), "{said}");
    let said = config(&["--jwt-key", "file"], "127.0.0.1:0", true).expect_err("both");
    assert!(said.contains("cannot be combined"), "{said}");
    assert_eq!(config(&["--jwt-key", "file"], "0.0.0.0:0", false), Ok(()));
}
