//! A node that is given a partition, and has to wait until the node that had it before is fenced.

use crate::house::{House, connect, wait_until};
use rollcall::clock::{Clock as _, ManualClock};
use rollcall::engine::{Engine, Services, Standbys, Tuning};
use rollcall::log::memory::MemoryLog;
use rollcall::log::{
    Acknowledge, Error, Group, GroupEvent, IncidentWriter, Limit, Listener, Log, NewRecord, OwnedPartition, Owners,
    Range, Record, StandbyNodes, StandbyPartition,
};
use rollcall::presence::{Offset, Partition, Revision};
use rollcall::topics::Topic;
use serde_json::json;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Arc, Mutex};

const P: Partition = Partition(0);

/// A log in memory whose fence waits at a gate.
struct SlowFence {
    log: Arc<MemoryLog>,
    gate: Arc<Mutex<()>>,
    is_fencing: Arc<AtomicBool>,
}

impl Log for SlowFence {
    fn take_up(&self, partition: Partition) -> Result<Box<dyn OwnedPartition>, Error> {
        self.is_fencing.store(true, Ordering::SeqCst);
        drop(self.gate.lock());
        self.log.take_up(partition)
    }

    fn stand_by(&self, partition: Partition) -> Result<Box<dyn StandbyPartition>, Error> {
        self.log.stand_by(partition)
    }

    fn partitions(&self) -> u32 {
        self.log.partitions()
    }

    fn append(&self, records: Vec<(Partition, NewRecord)>, acknowledge: Acknowledge) {
        self.log.append(records, acknowledge);
    }

    fn read(
        &self,
        topic: Topic,
        partition: Partition,
        from: Offset,
        limit: Limit,
        into: &mut Vec<Record>,
    ) -> Result<(), Error> {
        self.log.read(topic, partition, from, limit, into)
    }

    fn range(&self, topic: Topic, partition: Partition) -> Result<Range, Error> {
        self.log.range(topic, partition)
    }

    fn write_incidents(&self) -> Result<Box<dyn IncidentWriter>, Error> {
        self.log.write_incidents()
    }

    fn read_incidents(&self, from: Offset, limit: Limit, into: &mut Vec<Record>) -> Result<Range, Error> {
        self.log.read_incidents(from, limit, into)
    }

    fn listen(&self, listener: Listener) {
        self.log.listen(listener);
    }
}

/// A group that says what the test says.
struct TestGroup(Receiver<GroupEvent>);

impl Group for TestGroup {
    fn poll(&mut self) -> Result<Option<GroupEvent>, Error> {
        Ok(self.0.try_recv().ok())
    }

    fn poll_every_ms(&self) -> Option<u64> {
        Some(5)
    }

    fn let_go(&mut self, _: &[Partition]) {}

    fn leave(&mut self) {}
}

/// This node stands by for a partition that another one has.
struct TwoNodes;

impl StandbyNodes for TwoNodes {
    fn this_node(&self) -> &str {
        "http://this:1"
    }

    fn nodes(&self) -> Vec<String> {
        vec![self.this_node().to_owned()]
    }

    fn announce(&self, _: Vec<Partition>) {}

    fn leave(&self) {}
}

impl Owners for TwoNodes {
    fn url_of(&self, _: Partition) -> Option<String> {
        Some("http://earlier:1".to_owned())
    }

    fn lowest_revision(&self) -> Option<Revision> {
        None
    }
}

#[test]
fn a_standby_that_is_promoted_says_that_it_fences_and_since_when() {
    let (gate, is_fencing) = (Arc::new(Mutex::new(())), Arc::new(AtomicBool::new(false)));
    let clock = Arc::new(ManualClock::new(1_000));
    let log = Arc::new(MemoryLog::new(1, clock.clone()));
    let slow = SlowFence {
        log: log.clone(),
        gate: gate.clone(),
        is_fencing: is_fencing.clone(),
    };
    let services = Services {
        owners: Some(Arc::new(TwoNodes)),
        standbys: Some(Standbys {
            count: 1,
            nodes: Arc::new(TwoNodes),
        }),
        ..Services::default()
    };
    let (group, events) = channel();
    group.send(GroupEvent::Assigned(vec![P])).expect("the group is there");
    let engine = Engine::join(
        Arc::new(slow),
        Box::new(TestGroup(events)),
        None,
        clock.clone(),
        Tuning::default(),
        services,
    );
    let house = House::joined(log, clock, engine.expect("started"));
    house.publish(&[connect("alice", 1)]);
    house.wait_until_folded();
    group.send(GroupEvent::Revoked(vec![P])).expect("the group is there");
    wait_until("it stands by", || {
        house.clock.advance_ms(500);
        house.get("/v1/users/alice").body.contains("\"standby\":true")
    });

    let closed = gate.lock().expect("nobody has panicked");
    is_fencing.store(false, Ordering::SeqCst);
    group.send(GroupEvent::Assigned(vec![P])).expect("the group is there");
    wait_until("it fences", || is_fencing.load(Ordering::SeqCst));
    let since = house.clock.now_ms();
    let fencing = house.get("/v1/stats").ok()["partitions"][0].clone();
    assert_eq!(
        (&fencing["state"], &fencing["since"]),
        (&json!("fencing"), &json!(since))
    );
    let why = fencing["error"].as_str().unwrap_or_default();
    assert!(why.starts_with("it fences the node that had"), "{fencing}");
    house.clock.advance_ms(12_000);
    let ready = house.get("/readyz").error(503, "not_ready");
    let said = ready["message"].as_str().unwrap_or_default();
    assert!(
        said.starts_with("partition 0 is fencing: ") && said.contains("(12 s so far)"),
        "{said}"
    );
    let refused = house.get("/v1/users/alice");
    refused.error(503, "not_ready");
    assert_eq!(refused.header("retry-after"), Some("1"));
    house.get("/v1/policy").error(503, "not_ready");

    drop(closed);
    wait_until("it answers as the owner", || {
        let reply = house.get("/v1/users/alice");
        reply.status == 200 && !reply.body.contains("standby")
    });
    let live = house.get("/v1/stats").ok()["partitions"][0].clone();
    assert_eq!((&live["state"], &live["since"]), (&json!("live"), &json!(null)));
}
