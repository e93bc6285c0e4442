//! The runs there are; how long each is, whoever runs it says.

use crate::faults::Fault;
use crate::run::Plan;
use std::time::Duration;

/// The steps of the walk at which an engine can be told to die, see `ROLLCALL_FAILPOINT`.
pub const STEPS: [&str; 6] = ["1", "2", "3", "4", "5", "6"];

fn plan(name: &'static str, faults: Vec<Fault>) -> Plan {
    Plan {
        name,
        nodes: 2,
        partitions: 4,
        rate: 800,
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

/// At each step, when it is reached for the n-th time.
pub fn failpoints(nths: &[u32]) -> Plan {
    let points = nths
        .iter()
        .flat_map(|nth| STEPS.map(|step| Fault::Failpoint(step, *nth)));
    plan("failpoints", points.collect())
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

pub fn stores(count: usize) -> Plan {
    let faults = [Fault::StoreDeleted, Fault::StoreForeign, Fault::StoreOld];
    plan("stores", in_turn(&faults, count))
}

// These need three brokers of their own.

pub fn brokers(count: usize) -> Plan {
    plan(
        "brokers",
        in_turn(&[Fault::BrokerKilled, Fault::CoordinatorMoved], count),
    )
}

pub fn pauses(count: usize) -> Plan {
    let pauses = [50, 300, 1_500, 100, 6_000, 20, 800, 9_000].map(Fault::BrokersPaused);
    plan("pauses", in_turn(&pauses, count))
}

pub fn blackout(long: Duration) -> Plan {
    plan("blackout", vec![Fault::AllDown(long)])
}
