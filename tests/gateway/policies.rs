//! Several devices of a user, under each kind of login, through real sockets.

use crate::client::{Client, Heard};
use crate::house::{House, connect};
use rollcall::gateway::Gateway;
use serde_json::json;

/// Still open, and answered.
async fn stays(client: &mut Client) {
    client.beat().await;
}

async fn goes(client: &mut Client, code: u16) {
    assert_eq!(client.closed().await, Heard::Closed(code));
}

async fn login(gateway: &Gateway, platform: &str) -> Client {
    connect(gateway, "alice", platform, &format!("{platform}-1"), "login").await
}

#[tokio::test(flavor = "multi_thread")]
async fn single_leaves_one_device_of_all() {
    let house = House::new(json!({"login": "single"})).await;
    let gateway = house.gateway(&[]).await;
    let mut android = login(&gateway, "android").await;
    let mut windows = login(&gateway, "windows").await;
    goes(&mut android, 4002).await;
    let mut web = login(&gateway, "web").await;
    goes(&mut windows, 4002).await;
    stays(&mut web).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn dual_leaves_a_page_beside_one_device() {
    let house = House::new(json!({"login": "dual"})).await;
    let gateway = house.gateway(&[]).await;
    let mut web = login(&gateway, "web").await;
    let mut android = login(&gateway, "android").await;
    stays(&mut web).await;
    let mut mac = login(&gateway, "mac").await;
    goes(&mut android, 4002).await;
    stays(&mut web).await;
    stays(&mut mac).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn triple_leaves_a_phone_a_desktop_and_a_page() {
    let house = House::new(json!({"login": "triple"})).await;
    let gateway = house.gateway(&[]).await;
    let mut web = login(&gateway, "web").await;
    let mut android = login(&gateway, "android").await;
    let mut windows = login(&gateway, "windows").await;
    let mut ipad = login(&gateway, "ipad").await;
    goes(&mut android, 4002).await;
    let mut linux = login(&gateway, "linux").await;
    goes(&mut windows, 4002).await;
    for client in [&mut web, &mut ipad, &mut linux] {
        stays(client).await;
    }
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn multi_leaves_all_kinds_and_as_many_of_each_as_there_may_be() {
    let house = House::new(json!({"login": "multi", "instances": {"web": 2}})).await;
    let gateway = house.gateway(&[]).await;
    let mut clients = Vec::new();
    for platform in ["android", "iphone", "ipad", "mac", "windows", "linux", "web"] {
        clients.push(login(&gateway, platform).await);
    }
    let mut second = connect(&gateway, "alice", "web", "web-2", "login").await;
    for client in &mut clients {
        stays(client).await;
    }
    let mut third = connect(&gateway, "alice", "web", "web-3", "login").await;
    goes(clients.last_mut().expect("the first page"), 4002).await;
    stays(&mut second).await;
    stays(&mut third).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn one_displaced_while_its_network_was_down_is_refused_when_it_resumes() {
    let house = House::new(json!({"login": "single"})).await;
    let gateway = house.gateway(&[]).await;
    drop(login(&gateway, "android").await);
    house.causes("alice", "closed").await;
    let mut web = login(&gateway, "web").await;
    // A resume displaces no device; a login does.
    let mut android = connect(&gateway, "alice", "android", "android-1", "resume").await;
    assert_eq!(
        android.frame_of("kicked").await,
        json!({"type": "kicked", "reason": "displaced", "reconnect": false})
    );
    goes(&mut android, 4002).await;
    stays(&mut web).await;
    let mut android = login(&gateway, "android").await;
    goes(&mut web, 4002).await;
    stays(&mut android).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_device_that_comes_back_on_another_gateway_is_closed_on_the_first() {
    let house = House::new(json!({})).await;
    let first = house.gateway(&["--gateway-name", "first"]).await;
    let second = house.gateway(&["--gateway-name", "second"]).await;
    let mut before = connect(&first, "alice", "web", "tab", "login").await;
    let mut after = connect(&second, "alice", "web", "tab", "resume").await;
    goes(&mut before, 4001).await;
    stays(&mut after).await;
    assert_eq!(
        house.causes("alice", "login").await,
        ["login"],
        "a take-over changes nothing for others"
    );
    first.stop(false).await;
    second.stop(false).await;
}
