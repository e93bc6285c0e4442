//! The log accepts no events for a while: new connections are refused, open ones stay, and no disconnect is lost.

use crate::client::Heard;
use crate::house::{House, connect, dial, wait_until};
use rollcall::log::Error;
use serde_json::json;
use std::sync::Arc;

fn full() -> Error {
    Error::Write(Arc::from("the disk is full"))
}

#[tokio::test(flavor = "multi_thread")]
async fn nobody_comes_in_nobody_goes_and_ends_arrive_later() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&["--lease-every-ms", "200"]).await;
    let mut stays = connect(&gateway, "stays", "web", "tab", "login").await;
    let goes = connect(&gateway, "goes", "web", "tab", "login").await;
    let mut leaves = connect(&gateway, "leaves", "web", "tab", "login").await;
    house.log.fail_appends(crate::house::FOR_NOW, full());
    // The first connection detects it for all others.
    wait_until("it is noticed", async || !gateway.edge().log_is_well()).await;
    let refused = dial(&gateway, "new", "web", "tab", "login").refused().await;
    assert_eq!((refused.status, &*refused.code), (503, "log_unavailable"));
    assert!(refused.retry_after.is_some());
    drop(goes);
    // A logout that waits in the queue is as safe as one in the log.
    assert_eq!(
        leaves.ask(json!({"type": "logout", "id": 1})).await,
        json!({"type": "done", "id": 1})
    );
    assert_eq!(leaves.hear().await, Heard::Closed(1000));
    stays.beat().await;
    let answer = stays
        .ask(json!({"type": "custom_status", "text": "waiting", "id": 2}))
        .await;
    assert_eq!((&answer["code"], &answer["id"]), (&json!("log_unavailable"), &json!(2)));
    assert!(house.events_of("disconnect", "goes").is_empty() && house.events_of("logout", "leaves").is_empty());
    house.log.heal();
    house.causes("goes", "closed").await;
    house.causes("leaves", "logout").await;
    // By name, since the engine may not know its number any more.
    wait_until("the heartbeat arrives too", async || house.named_beats_of("stays") > 0).await;
    wait_until("it is well again", async || gateway.edge().log_is_well()).await;
    let mut new = connect(&gateway, "new", "web", "tab", "login").await;
    new.beat().await;
    stays.beat().await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_log_does_not_take_is_told_to_come_later() {
    let house = House::new(json!({})).await;
    // No lease may notice it first.
    let gateway = house
        .gateway(&["--lease-ms", "600000", "--lease-every-ms", "300000"])
        .await;
    house.log.fail_appends(crate::house::FOR_NOW, Error::Busy);
    let mut client = dial(&gateway, "alice", "web", "tab", "login")
        .open()
        .await
        .expect("let in");
    let said = client.frame().await;
    assert_eq!(said["code"], "log_unavailable");
    assert!(said["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0));
    assert_eq!(client.hear().await, Heard::Closed(1013));
    house.log.heal();
    // Nobody knows whether its connect is in the log, so its end is.
    house.published("disconnect", "alice").await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ends_that_wait_survive_a_restart_of_the_gateway() {
    let house = House::new(json!({"login": "multi", "platforms": {"web": {"push": true}}})).await;
    let gateway = house.gateway(&["--lease-every-ms", "200"]).await;
    let mut clients = Vec::new();
    for number in 0..50 {
        clients.push(connect(&gateway, &format!("user-{number}"), "web", "tab", "login").await);
    }
    for number in 0..50 {
        house.causes(&format!("user-{number}"), "login").await;
    }
    house.log.fail_appends(crate::house::FOR_NOW, full());
    for client in &mut clients {
        client.say(json!({"type": "logout"})).await;
    }
    for client in &mut clients {
        assert_eq!(client.closed().await, Heard::Closed(1000));
    }
    gateway.stop(false).await;
    assert!(house.events().iter().all(|event| event["type"] != "logout"));
    house.log.heal();
    let gateway = house.gateway(&[]).await;
    for number in 0..50 {
        let causes = house.causes(&format!("user-{number}"), "logout").await;
        // The lease of the first gateway could not be ended, so the next one's ended it, before the logout or after.
        assert!(
            causes == ["login", "gateway_lost", "logout"] || causes == ["login", "logout"],
            "{causes:?}"
        );
    }
    gateway.stop(false).await;
}
