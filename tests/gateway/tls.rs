//! TLS by certificate files that change while connections are open.

use crate::certificate::{certify, trusting};
use crate::client::PATIENCE;
use crate::house::{House, path, wait_until};
use futures_util::{SinkExt as _, StreamExt as _};
use rollcall::gateway::Gateway;
use serde_json::{Value, json};
use std::sync::Arc;
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_rustls::rustls::pki_types::CertificateDer;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::{WebSocketStream, client_async};

/// Connects, trusting only this certificate; none if that is not what the gateway shows.
async fn open(gateway: &Gateway, trusted: &CertificateDer<'static>) -> Option<WebSocketStream<TlsStream<TcpStream>>> {
    let stream = TcpStream::connect(gateway.address()).await.expect("connected");
    let name = "localhost".try_into().expect("a name");
    let stream = trusting(trusted.clone()).connect(name, stream).await.ok()?;
    let url = "wss://localhost/?user=alice&platform=web&device=tab&intent=login";
    let (socket, _) = client_async(url, stream).await.expect("let in");
    Some(socket)
}

async fn hear(socket: &mut WebSocketStream<TlsStream<TcpStream>>) -> Value {
    let next = tokio::time::timeout(PATIENCE, socket.next()).await;
    match next.expect("something comes") {
        Some(Ok(Message::Text(text))) => serde_json::from_str(&text).expect("JSON"),
        other => panic!("no frame but {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_certificate_is_taken_up_without_a_restart_and_a_broken_one_is_not() {
    let house = House::new(json!({})).await;
    let first = certify(house.data.path());
    let (cert, key) = (house.data.path().join("cert.pem"), house.data.path().join("key.pem"));
    let tls = [
        "--tls-cert",
        path(&cert),
        "--tls-key",
        path(&key),
        "--reload-seconds",
        "1",
    ];
    let gateway = house.gateway(&tls).await;
    let mut early = open(&gateway, &first).await.expect("the first certificate");
    assert_eq!(hear(&mut early).await["type"], "hello");
    // The new key and the old chain do not fit together. They are never both new where the gateway reads them.
    let elsewhere = tempfile::tempdir().expect("a directory");
    let second = certify(elsewhere.path());
    std::fs::copy(elsewhere.path().join("key.pem"), &key).expect("copied");
    tokio::time::sleep(std::time::Duration::from_millis(1_200)).await;
    assert!(open(&gateway, &first).await.is_some());
    let third = certify(house.data.path());
    wait_until("the new certificate is shown", async || {
        open(&gateway, &third).await.is_some()
    })
    .await;
    assert!(open(&gateway, &first).await.is_none() && open(&gateway, &second).await.is_none());
    early
        .send(Message::text(r#"{"type":"heartbeat"}"#))
        .await
        .expect("sent");
    // Later connections of this device have replaced it, or it is still answered.
    let heard = hear(&mut early).await;
    assert!(heard["type"] == "alive" || heard["reason"] == "replaced", "{heard}");
    // A client without TLS is refused.
    let plain = TcpStream::connect(gateway.address()).await.expect("connected");
    let url = "ws://localhost/?user=alice&platform=web&device=tab&intent=login";
    let refused = tokio::time::timeout(PATIENCE, client_async(url, plain)).await;
    assert!(refused.expect("answered").is_err());
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_certificate_that_cannot_be_used_ends_the_start_with_a_sentence() {
    let house = House::new(json!({})).await;
    certify(house.data.path());
    let (cert, key) = (house.data.path().join("cert.pem"), house.data.path().join("key.pem"));
    std::fs::write(&key, "nothing").expect("written");
    let flags = crate::house::flags(&["--tls-cert", path(&cert), "--tls-key", path(&key)]);
    let listen = "127.0.0.1:0".parse().expect("an address");
    let config = flags.config(listen, house.data.path().to_owned()).expect("settings");
    let uplink = rollcall::gateway::uplink::log::LogUplink::new(house.engine.clone());
    let started = Gateway::start(config, Arc::new(uplink), house.clock.clone()).await;
    let said = started.map(drop).expect_err("no key").to_string();
    assert!(said.contains("the private key is not PEM"), "{said}");
}
