//! Leases and epochs: the users of a dead gateway go offline, and a restarted gateway has another epoch.

use crate::client::{Heard, PATIENCE};
use crate::house::{House, connect, flags, greet, wait_until};
use rollcall::gateway::uplink::Uplink as _;
use rollcall::gateway::uplink::log::LogUplink;
use rollcall::gateway::{Error, Gateway};
use rollcall::log::Error as LogError;
use rollcall::presence::Epoch;
use serde_json::{Value, json};
use std::sync::Arc;

fn leases(house: &House) -> Vec<Value> {
    let mut events = house.events();
    events.retain(|event| event["type"] == "lease");
    events
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_is_in_every_partition_before_the_first_connection_and_ends_with_the_gateway() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&["--lease-ms", "2000", "--lease-every-ms", "100"]).await;
    // In each partition right after the policy; some may have been renewed already.
    let first = leases(&house);
    let after_policy = first.iter().filter(|lease| lease["offset"] == 1).count();
    assert_eq!(after_policy, crate::house::PARTITIONS as usize);
    assert!(
        first
            .iter()
            .all(|lease| lease["epoch"] == 1 && lease["ttl_ms"] == 2_000)
    );
    wait_until("it is renewed", async || leases(&house).len() >= 9).await;
    gateway.stop(false).await;
    let ended = leases(&house).iter().filter(|lease| lease["ttl_ms"] == 0).count();
    assert_eq!(ended, crate::house::PARTITIONS as usize);
    let (_, hello) = greet(&house.gateway(&[]).await, "alice", "web", "tab", "login").await;
    assert_eq!(hello["epoch"], 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_is_greater_than_what_the_engine_knows_even_when_the_directory_is_lost() {
    let house = House::new(json!({})).await;
    house.publish(json!({"type": "lease", "gateway": "edge", "epoch": 41, "ttl_ms": 1_000}));
    wait_until("it is known", async || {
        let known = house.engine.gateways(rollcall::presence::Partition(0)).await;
        known.unwrap_or_default().iter().any(|gateway| gateway.epoch.0 == 41)
    })
    .await;
    let gateway = house.gateway(&[]).await;
    let (_client, hello) = greet(&gateway, "alice", "web", "tab", "login").await;
    assert_eq!(hello["epoch"], 42);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn two_processes_do_not_share_a_directory() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let config = crate::house::flags(&[]);
    let listen = "127.0.0.1:0".parse().expect("an address");
    let config = config.config(listen, house.data.path().to_owned()).expect("settings");
    let uplink = rollcall::gateway::uplink::log::LogUplink::new(house.engine.clone());
    let second = Gateway::start(config, std::sync::Arc::new(uplink), house.clock.clone()).await;
    assert!(matches!(second.map(drop), Err(Error::Epoch(_))));
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_name_somebody_else_took_ends_without_a_word() {
    let house = House::new(json!({})).await;
    let mut gateway = house.gateway(&[]).await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    house.causes("alice", "login").await;
    house.publish(json!({"type": "lease", "gateway": "edge", "epoch": 7, "ttl_ms": 60_000}));
    house.causes("alice", "gateway_lost").await;
    // Its next event is stale, and it gets a `stale` kick.
    client.say(json!({"type": "heartbeat"})).await;
    let error = tokio::time::timeout(PATIENCE, gateway.superseded())
        .await
        .expect("it learns of it");
    let said = error.to_string();
    assert!(
        said.contains("with epoch 7, which is greater than this process's own 1.") && said.contains("token"),
        "{said}"
    );
    let published = house.events().len();
    gateway.abandon().await;
    assert!(matches!(client.closed().await, Heard::Closed(1012 | 4005)));
    let events = house.events();
    let after = events
        .iter()
        .filter(|event| event["type"] == "disconnect" || event["ttl_ms"] == 0);
    assert_eq!(after.count(), 0, "of {published}");
}

/// The lease of a lesser epoch is acknowledged, and nothing else of it is stale.
#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_whose_clients_are_silent_learns_that_somebody_else_took_its_name() {
    let house = House::new(json!({})).await;
    for (clients, name) in [(0, "empty"), (1, "quiet")] {
        let mut gateway = house
            .gateway(&["--gateway-name", name, "--lease-every-ms", "200"])
            .await;
        let mut open = Vec::new();
        for _ in 0..clients {
            open.push(connect(&gateway, "alice", "web", "tab", "login").await);
        }
        house.publish(json!({"type": "lease", "gateway": name, "epoch": 7, "ttl_ms": 60_000}));
        let error = tokio::time::timeout(PATIENCE, gateway.superseded())
            .await
            .expect("it learns of it");
        assert!(error.to_string().contains("with epoch 7"), "{error}");
        gateway.abandon().await;
        for mut client in open {
            assert_eq!(client.closed().await, Heard::Closed(1012));
        }
    }
}

/// A client that may publish can write any epoch.
#[tokio::test(flavor = "multi_thread")]
async fn an_epoch_that_has_no_successor_is_an_error_with_a_sentence() {
    let house = House::new(json!({})).await;
    let greatest = i64::MAX as u64;
    house.publish(json!({"type": "lease", "gateway": "edge", "epoch": greatest - 1, "ttl_ms": 60_000}));
    let known = async |epoch| {
        let uplink = LogUplink::new(house.engine.clone());
        wait_until("the epoch is known", async || {
            uplink.epoch("edge").await.expect("answered") == Some(Epoch(epoch))
        })
        .await;
    };
    known(greatest - 1).await;
    let gateway = house.gateway(&[]).await;
    let (mut client, hello) = greet(&gateway, "alice", "web", "tab", "login").await;
    assert_eq!(hello["epoch"], greatest);
    client.beat().await;
    gateway.stop(false).await;
    // Its lease is in the log, but may not be folded yet.
    known(greatest).await;
    for data in [None, Some(tempfile::tempdir().expect("a directory"))] {
        let data = data.as_ref().map_or(house.data.path(), |data| data.path());
        let config = flags(&[]).config("127.0.0.1:0".parse().expect("an address"), data.to_owned());
        let uplink = Arc::new(LogUplink::new(house.engine.clone()));
        let started = Gateway::start(config.expect("settings"), uplink, house.clock.clone()).await;
        let said = started.map(drop).expect_err("no epoch is left").to_string();
        assert!(
            said.contains("no epoch is left") && said.contains("--gateway-name"),
            "{said}"
        );
    }
    house.gateway(&["--gateway-name", "other"]).await.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stale_connection_alone_ends_no_gateway() {
    let house = House::new(json!({})).await;
    let mut gateway = house.gateway(&[]).await;
    let mut alice = connect(&gateway, "alice", "web", "tab", "login").await;
    for conn in 100..110 {
        house.publish(
            json!({"type": "heartbeat", "user": "alice", "platform": "web", "device": "tab",
                             "gateway": "edge", "epoch": 1, "conn": conn}),
        );
    }
    let bob = connect(&gateway, "bob", "web", "tab", "login").await;
    drop(bob);
    house.causes("bob", "closed").await;
    let superseded = tokio::time::timeout(std::time::Duration::from_millis(1_500), gateway.superseded()).await;
    assert!(superseded.is_err());
    alice.beat().await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_goes_elsewhere_while_a_gateway_stops_does_not_flap() {
    let house = House::new(json!({})).await;
    let first = house.gateway(&["--gateway-name", "first", "--drain-ms", "6000"]).await;
    let second = house.gateway(&["--gateway-name", "second"]).await;
    let mut goes_over = connect(&first, "over", "web", "tab", "login").await;
    let mut closes_first = connect(&first, "first", "web", "tab", "login").await;
    let mut stays = connect(&first, "stays", "web", "tab", "login").await;
    for user in ["over", "first", "stays"] {
        house.causes(user, "login").await;
    }
    let address = first.address();
    let stopping = tokio::spawn(first.stop(true));
    for client in [&mut goes_over, &mut closes_first, &mut stays] {
        let frame = client.frame().await;
        assert_eq!(frame["type"], "reconnect");
        assert!(frame["after_ms"].as_u64().is_some_and(|ms| ms <= 3_000), "{frame}");
    }
    wait_until("nobody new is let in", async || {
        tokio::net::TcpStream::connect(address).await.is_err()
    })
    .await;
    // One connects before it closes, the other closes before it connects.
    let mut over = connect(&second, "over", "web", "tab", "resume").await;
    assert_eq!(goes_over.closed().await, Heard::Closed(4001));
    drop(closes_first);
    let mut back = connect(&second, "first", "web", "tab", "resume").await;
    assert_eq!(stays.closed().await, Heard::Closed(1012));
    stopping.await.expect("it stops");
    assert_eq!(house.causes("stays", "gateway_lost").await, ["login", "gateway_lost"]);
    over.beat().await;
    back.beat().await;
    for user in ["over", "first"] {
        assert_eq!(
            house.causes(user, "login").await,
            ["login"],
            "{user} was online all the time"
        );
    }
    second.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_lease_that_came_too_late_is_followed_by_heartbeats_of_everybody() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&["--lease-ms", "3000", "--lease-every-ms", "200"]).await;
    let mut clients = Vec::new();
    for number in 0..20 {
        clients.push(connect(&gateway, &format!("user-{number}"), "web", "tab", "login").await);
    }
    house.log.fail_appends(crate::house::FOR_NOW, LogError::Busy);
    // Longer than any lease in the log lasts.
    tokio::time::sleep(std::time::Duration::from_millis(3_200)).await;
    house.log.heal();
    // They said nothing, yet they are back.
    for number in 0..20 {
        let causes = house.causes(&format!("user-{number}"), "revive").await;
        assert_eq!(causes, ["login", "gateway_lost", "revive"]);
    }
    gateway.stop(false).await;
}
