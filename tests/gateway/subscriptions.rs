//! Changes of other users: from the answer to a subscription on, each is sent once and none is missing.

use crate::client::Heard;
use crate::house::{House, connect};
use rollcall::gateway::Gateway;
use serde_json::{Value, json};

async fn statuses(house: &House, user: &str, texts: std::ops::Range<usize>) {
    for number in texts {
        house.publish(json!({"type": "custom_status", "user": user, "text": format!("{number}")}));
    }
}

async fn version_of(gateway: &Gateway, user: &str) -> u64 {
    let mut client = connect(gateway, "asker", "web", "asking", "login").await;
    let answer = client.ask(json!({"type": "query", "users": [user]})).await;
    answer["users"][0]["version"].as_u64().unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_subscription_begins_with_how_it_stands_and_goes_on_without_a_gap_or_a_repeat() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&[]).await;
    let _watched = connect(&gateway, "watched", "android", "a", "login").await;
    house.causes("watched", "login").await;
    // While the user changes all the time, watchers come.
    // Fewer in all than may wait for a connection, however seldom its task runs.
    let total = 240;
    let writing = async {
        for part in 0..24 {
            statuses(&house, "watched", part * 10..(part + 1) * 10).await;
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    };
    let watch = async |name: String| {
        let mut watcher = connect(&gateway, &name, "web", "w", "login").await;
        let answer = watcher
            .ask(json!({"type": "subscribe", "id": 3, "users": ["watched", "nobody"]}))
            .await;
        assert_eq!((&answer["type"], &answer["id"]), (&json!("subscribed"), &json!(3)));
        assert_eq!(
            (&answer["unknown"], &answer["evicted"]),
            (&json!(["nobody"]), &json!([]))
        );
        let mut version = answer["users"][0]["version"].as_u64().expect("a version");
        while version < 1 + total as u64 {
            let change = watcher.frame().await;
            assert_eq!(change["type"], "change");
            assert_eq!(change["version"], version + 1, "neither a gap nor a repeat");
            version += 1;
        }
    };
    let watching = async {
        let mut watchers = Vec::new();
        for number in 0..10 {
            watchers.push(watch(format!("watcher-{number}")));
            tokio::time::sleep(std::time::Duration::from_millis(8)).await;
        }
        futures_util::future::join_all(watchers).await;
    };
    tokio::join!(writing, watching);
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_change_says_what_others_may_know_and_no_more() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let mut watcher = connect(&gateway, "watcher", "web", "w", "login").await;
    let answer = watcher.ask(json!({"type": "subscribe", "users": ["alice"]})).await;
    assert_eq!(answer["unknown"], json!(["alice"]));
    let mut alice = connect(&gateway, "alice", "android", "a1", "login").await;
    let change = watcher.frame().await;
    let at = change["at"].as_u64().expect("a time");
    assert_eq!(
        change,
        json!({"type": "change", "user": "alice", "status": "online", "version": 1, "at": at, "cause": "login",
               "custom_status": null,
               "devices": [{"platform": "android", "before": "offline", "after": "online"}]})
    );
    alice.say(json!({"type": "logout"})).await;
    let change = watcher.frame().await;
    assert_eq!(
        (&change["cause"], &change["status"]),
        (&json!("logout"), &json!("offline"))
    );
    assert_eq!(
        watcher
            .ask(json!({"type": "unsubscribe", "id": 9, "users": ["alice"]}))
            .await,
        json!({"type": "done", "id": 9})
    );
    let _again = connect(&gateway, "alice", "android", "a1", "login").await;
    house.causes("alice", "login").await;
    assert_eq!(version_of(&gateway, "alice").await, 3);
    assert_eq!(
        watcher.ask(json!({"type": "heartbeat"})).await,
        json!({"type": "alive"}),
        "and nothing before it"
    );
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn of_more_than_two_hundred_the_oldest_go_and_the_client_is_told() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let mut watcher = connect(&gateway, "watcher", "web", "w", "login").await;
    let users =
        |numbers: std::ops::Range<usize>| -> Vec<String> { numbers.map(|number| format!("user-{number}")).collect() };
    let answer = watcher.ask(json!({"type": "subscribe", "users": users(0..200)})).await;
    assert_eq!(answer["evicted"], json!([]));
    // Who is subscribed to again is young again.
    let answer = watcher.ask(json!({"type": "subscribe", "users": users(0..10)})).await;
    assert_eq!(answer["evicted"], json!([]));
    let answer = watcher
        .ask(json!({"type": "subscribe", "users": users(200..205)}))
        .await;
    assert_eq!(answer["evicted"], json!(users(10..15)));
    let (mut received, mut clients) = (Vec::new(), Vec::new());
    for user in ["user-12", "user-3", "user-203"] {
        clients.push(connect(&gateway, user, "web", "w", "login").await);
        if user != "user-12" {
            received.push(watcher.frame().await["user"].clone());
        }
        house.causes(user, "login").await;
    }
    assert_eq!(json!(received), json!(["user-3", "user-203"]));
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_forgotten_begins_again_and_watchers_see_both() {
    let house = House::new(json!({})).await;
    let gateway = house.gateway(&[]).await;
    let mut watcher = connect(&gateway, "watcher", "web", "w", "login").await;
    let mut alice = connect(&gateway, "alice", "android", "a1", "login").await;
    house.causes("alice", "login").await;
    watcher.ask(json!({"type": "subscribe", "users": ["alice"]})).await;
    house.publish(json!({"type": "forget", "user": "alice"}));
    assert_eq!(alice.closed().await, Heard::Closed(4004));
    let _again = connect(&gateway, "alice", "android", "a1", "login").await;
    let seen: Vec<Value> = vec![watcher.frame().await, watcher.frame().await];
    let seen: Vec<_> = seen
        .iter()
        .map(|change| (change["cause"].clone(), change["version"].clone()))
        .collect();
    assert_eq!(json!(seen), json!([["forgotten", 2], ["login", 1]]));
    gateway.stop(false).await;
}
