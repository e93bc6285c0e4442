//! Tasks of the gateway fail in the middle of their work: no event is lost, and the failure is reported.

use crate::client::Heard;
use crate::house::{House, connect, flags, wait_until};
use rollcall::gateway::uplink::log::LogUplink;
use rollcall::gateway::uplink::{Asked, Kick, Pace, Uplink, UserSnapshot, UserUpdate};
use rollcall::log::Error;
use rollcall::presence::event::Event;
use rollcall::presence::{Epoch, Partition};
use serde_json::json;
use std::collections::BTreeMap;
use std::io::{Seek as _, SeekFrom, Write as _};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use tokio::sync::{mpsc, watch};

/// An uplink in which the code panics, or subscriptions end, when a test says so.
struct Faulty {
    uplink: LogUplink,
    /// So many appends of this type of event panic.
    panics: AtomicUsize,
    of: &'static str,
    /// Subscriptions end whenever this moves.
    cut: watch::Sender<u64>,
}

impl Faulty {
    fn new(house: &House, of: &'static str, panics: usize) -> Arc<Faulty> {
        Arc::new(Faulty {
            uplink: LogUplink::new(house.engine.clone()),
            panics: AtomicUsize::new(panics),
            of,
            cut: watch::Sender::new(0),
        })
    }

    fn until_cut<T: Send + 'static>(&self, asked: Asked<mpsc::Receiver<T>>) -> Asked<mpsc::Receiver<T>> {
        let mut cut = self.cut.subscribe();
        Box::pin(async move {
            let mut receiver = asked.await?;
            let (sender, cuttable) = mpsc::channel(1);
            tokio::spawn(async move {
                loop {
                    let one = tokio::select! {
                        one = receiver.recv() => one,
                        _ = cut.changed() => None,
                    };
                    let Some(one) = one else { return };
                    if sender.send(one).await.is_err() {
                        return;
                    }
                }
            });
            Ok(cuttable)
        })
    }
}

impl Uplink for Faulty {
    fn partitions(&self) -> u32 {
        self.uplink.partitions()
    }

    fn append_to(&self, events: Vec<(Option<Partition>, Event<'static>)>) -> Asked<()> {
        let concerned = events.iter().any(|(_, event)| event.name() == self.of);
        let fewer = |count: usize| count.checked_sub(1);
        if concerned
            && self
                .panics
                .fetch_update(Ordering::SeqCst, Ordering::SeqCst, fewer)
                .is_ok()
        {
            panic!("a bug over a {}", self.of);
        }
        self.uplink.append_to(events)
    }

    fn kicks(&self, gateway: &str) -> Asked<mpsc::Receiver<Kick>> {
        self.until_cut(self.uplink.kicks(gateway))
    }

    fn changes(&self) -> Asked<mpsc::Receiver<UserUpdate>> {
        self.until_cut(self.uplink.changes())
    }

    fn users(&self, users: Vec<String>) -> Asked<Vec<Option<UserSnapshot>>> {
        self.uplink.users(users)
    }

    fn platforms(&self) -> Asked<BTreeMap<String, Pace>> {
        self.uplink.platforms()
    }

    fn epoch(&self, gateway: &str) -> Asked<Option<Epoch>> {
        self.uplink.epoch(gateway)
    }
}

fn failures(task: &str) -> u64 {
    let text = rollcall::metrics::text();
    let line = format!("rollcall_task_failures_total{{task=\"{task}\"}} ");
    let count = text.lines().find_map(|text| text.strip_prefix(&line));
    count.and_then(|count| count.parse().ok()).unwrap_or_default()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_over_a_disconnect_loses_none_and_the_gateway_is_not_ready_for_a_while() {
    let house = House::new(json!({"login": "multi"})).await;
    let uplink = Faulty::new(&house, "disconnect", 1);
    let gateway = house.gateway_on(uplink, flags(&[])).await;
    assert!(gateway.edge().troubles().is_empty());
    let before = failures("disconnects");
    drop(connect(&gateway, "alice", "web", "tab", "login").await);
    assert_eq!(house.causes("alice", "closed").await, ["login", "closed"]);
    assert_eq!(failures("disconnects"), before + 1);
    let troubles = gateway.edge().troubles();
    assert!(
        troubles
            .iter()
            .any(|trouble| trouble.contains("a bug over a disconnect")),
        "{troubles:?}"
    );
    drop(connect(&gateway, "bob", "web", "tab", "login").await);
    house.causes("bob", "closed").await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_of_a_lease_or_of_a_heartbeat_stops_neither() {
    let house = House::new(json!({"login": "multi"})).await;
    let uplink = Faulty::new(&house, "alive", 1);
    let gateway = house
        .gateway_on(uplink.clone(), flags(&["--lease-every-ms", "100"]))
        .await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    client.beat().await;
    wait_until("it is noticed", async || failures("heartbeats") > 0).await;
    // The item that was processed is lost with the panic; the next one is not.
    wait_until("a heartbeat", async || {
        tokio::time::sleep(std::time::Duration::from_millis(100)).await;
        client.beat().await;
        house.beats_of("alice") > 0
    })
    .await;
    gateway.stop(false).await;
    let uplink = Faulty::new(&house, "lease", 0);
    let gateway = house
        .gateway_on(uplink.clone(), flags(&["--lease-every-ms", "100"]))
        .await;
    uplink.panics.store(1, Ordering::SeqCst);
    wait_until("it is noticed", async || failures("lease") > 0).await;
    let leases = || house.events().iter().filter(|event| event["type"] == "lease").count();
    let before = leases();
    wait_until("more leases", async || leases() > before).await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_panic_in_a_connection_ends_that_connection_and_its_end_is_published() {
    let house = House::new(json!({"login": "multi"})).await;
    let uplink = Faulty::new(&house, "background", 1);
    let gateway = house.gateway_on(uplink, flags(&[])).await;
    let mut stays = connect(&gateway, "stays", "web", "tab", "login").await;
    let mut client = connect(&gateway, "alice", "web", "tab", "login").await;
    client.ask(json!({"type": "subscribe", "users": ["stays"]})).await;
    client.say(json!({"type": "background"})).await;
    assert_eq!(client.hear().await, Heard::Gone);
    assert_eq!(house.causes("alice", "closed").await, ["login", "closed"]);
    wait_until("only the other is left", async || gateway.edge().roster.count() == 1).await;
    wait_until("it is counted", async || failures("connection") > 0).await;
    stays.beat().await;
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_subscriptions_end_kicks_still_close_and_no_change_is_missed() {
    let house = House::new(json!({"login": "multi"})).await;
    let uplink = Faulty::new(&house, "nothing", 0);
    let gateway = house.gateway_on(uplink.clone(), flags(&[])).await;
    let mut watches = connect(&gateway, "watches", "web", "tab", "login").await;
    let mut kicked = connect(&gateway, "kicked", "web", "tab", "login").await;
    watches.ask(json!({"type": "subscribe", "users": ["bob"]})).await;
    uplink.cut.send_modify(|count| *count += 1);
    // A client that was subscribed reconnects and asks again, since it may have missed something.
    assert_eq!(watches.closed().await, Heard::Closed(1012));
    let mut watches = connect(&gateway, "watches", "web", "tab", "resume").await;
    watches.ask(json!({"type": "subscribe", "users": ["bob"]})).await;
    let _bob = connect(&gateway, "bob", "web", "tab", "login").await;
    assert_eq!(watches.frame_of("change").await["user"], "bob");
    wait_until("kicks are followed again", async || failures("kicks") > 0).await;
    wait_until("a kick arrives", async || {
        house.publish(json!({"type": "kick", "user": "kicked"}));
        let heard = tokio::time::timeout(std::time::Duration::from_secs(1), kicked.closed()).await;
        heard == Ok(Heard::Closed(4003))
    })
    .await;
    assert_eq!(house.causes("watches", "login").await, ["login"], "nobody saw it go");
    gateway.stop(false).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_queue_costs_what_is_damaged_and_no_end_after_it() {
    let house = House::new(json!({"login": "multi"})).await;
    let gateway = house.gateway(&["--lease-every-ms", "200"]).await;
    let mut clients = Vec::new();
    for number in 0..5 {
        clients.push(connect(&gateway, &format!("user-{number}"), "web", "tab", "login").await);
    }
    let last = connect(&gateway, "last", "web", "tab", "login").await;
    house
        .log
        .fail_appends(crate::house::FOR_NOW, Error::Write(Arc::from("the disk is full")));
    wait_until("it is noticed", async || !gateway.edge().log_is_well()).await;
    let path = house.data.path().join("edge").join("queue.jsonl");
    for client in clients {
        let before = std::fs::metadata(&path).expect("there").len();
        drop(client);
        wait_until("it is in the queue", async || {
            std::fs::metadata(&path).expect("there").len() > before
        })
        .await;
    }
    // The first line is not UTF-8 any more; the others are as they were.
    let mut file = std::fs::OpenOptions::new().write(true).open(&path).expect("opened");
    file.seek(SeekFrom::Start(3)).expect("sought");
    file.write_all(&[0xff, 0xfe]).expect("written");
    house.log.heal();
    for number in 1..5 {
        house.published("disconnect", &format!("user-{number}")).await;
    }
    assert!(house.events_of("disconnect", "user-0").is_empty());
    drop(last);
    house.published("disconnect", "last").await;
    wait_until("it is well", async || gateway.edge().troubles().is_empty()).await;
    gateway.stop(false).await;
}
