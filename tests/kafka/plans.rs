//! The kinds of runs; the caller sets their length.

use crate::faults::Fault;
use crate::run::{PATIENCE, Plan};
use std::time::Duration;

/// Settings of the brokers, for groups whose members do not say for themselves how long their sessions last (KIP-848):
/// as short as those of the others in tests.
pub const GROUP: [&str; 4] = [
    "group.consumer.min.session.timeout.ms=4000",
    "group.consumer.session.timeout.ms=4000",
    "group.consumer.min.heartbeat.interval.ms=500",
    "group.consumer.heartbeat.interval.ms=500",
];

fn plan(name: &'static str, faults: Vec<Fault>) -> Plan {
    Plan {
        name,
        nodes: 2,
        partitions: 4,
        rate: 800,
        checkpoints: false,
        arguments: &[],
        of_every_second: &[],
        network: None,
        leaders_move: false,
        patience: PATIENCE,
        faults,
    }
}

/// So many of these, in turn.
fn in_turn(faults: &[Fault], count: usize) -> Vec<Fault> {
    faults.iter().cycle().take(count).cloned().collect()
}

pub fn kills(times: u32) -> Plan {
    plan("kills", vec![Fault::Kills(times)])
}

/// At each of these places, when it is reached for the n-th time.
pub fn failpoints(places: &[&'static str], nths: &[u32]) -> Plan {
    let at = |nth: u32| places.iter().map(move |place| Fault::Failpoint(place, nth));
    plan("failpoints", nths.iter().flat_map(|nth| at(*nth)).collect())
}

pub fn sleepers(count: usize) -> Plan {
    plan("sleepers", in_turn(&[Fault::Sleep, Fault::Nap], count))
}

pub fn storms(nodes: usize, times: u32) -> Plan {
    Plan {
        nodes,
        ..plan("storms", vec![Fault::Storm(times)])
    }
}

/// The same where the brokers share the partitions out (KIP-848): all nodes leave it to them, or every second one, as
/// while a group is moved from one protocol to the other.
pub fn shared_by_brokers(nodes: usize, times: u32, all: bool) -> Plan {
    let protocol = &["--kafka-set", "group.protocol=consumer"];
    let plan = storms(nodes, times);
    if all {
        Plan {
            name: "group-protocol-consumer",
            arguments: protocol,
            ..plan
        }
    } else {
        Plan {
            name: "group-protocols-mixed",
            of_every_second: protocol,
            ..plan
        }
    }
}

pub fn stores(count: usize) -> Plan {
    let faults = [Fault::StoreDeleted, Fault::StoreForeign, Fault::StoreOld];
    plan("stores", in_turn(&faults, count))
}

pub fn checkpoints(count: usize) -> Plan {
    Plan {
        checkpoints: true,
        ..plan("checkpoints", in_turn(&[Fault::CheckpointDamaged], count))
    }
}

// These need three brokers of their own.

pub fn brokers(count: usize) -> Plan {
    let faults = [Fault::BrokerKilled, Fault::BrokersPaused(300), Fault::CoordinatorMoved];
    plan("brokers", in_turn(&faults, count))
}

/// Something happens to requests all the time, beside faults of engines and brokers.
pub fn network(count: usize, every: Duration) -> Plan {
    let faults = [
        Fault::Kills(8),
        Fault::BrokerKilled,
        Fault::BrokersPaused(300),
        Fault::Nap,
        Fault::Storm(6),
        Fault::CoordinatorMoved,
        Fault::Sleep,
    ];
    Plan {
        network: Some(every),
        ..plan("network", in_turn(&faults, count))
    }
}

/// Leaders move all the time, beside faults of engines and brokers. No partition may stand still for long once its brokers
/// are back.
pub fn leaders(count: usize) -> Plan {
    let faults = [
        Fault::Kills(6),
        Fault::BrokerKilled,
        Fault::BrokersPaused(300),
        Fault::CoordinatorMoved,
    ];
    Plan {
        leaders_move: true,
        patience: Duration::from_secs(60),
        ..plan("leaders", in_turn(&faults, count))
    }
}

pub fn pauses(count: usize) -> Plan {
    let pauses = [6_000, 50, 300, 1_500, 100, 9_000, 20, 800].map(Fault::BrokersPaused);
    plan("pauses", in_turn(&pauses, count))
}

pub fn blackout(long: Duration) -> Plan {
    plan("blackout", vec![Fault::AllDown(long)])
}
