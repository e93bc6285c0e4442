//! Checks that the simulator finds bugs. Twenty-three bugs are planted, one after the other, and each must be found within
//! CI's seeds. This is only a test: no build except that of the library's own tests contains bugs to plant.

use super::world::{Options, run};
use super::{BrokerBug, many};
use crate::engine::planted::{Bug, plant};
use std::io::{Write, stderr};

const SEEDS: u64 = 300;

fn found(processor: Option<Bug>, broker: Option<BrokerBug>) -> Vec<u64> {
    let options = Options {
        bug: broker,
        ..Options::default()
    };
    let found = many::each(1..=SEEDS, |seed| {
        plant(processor);
        run(seed, &options).err()
    });
    found.into_iter().map(|(seed, _)| seed).collect()
}

#[test]
fn every_planted_bug_is_found() {
    // Planted bugs are reported by their seeds, without a page of panics. Panics in other tests are printed as usual.
    let print = std::panic::take_hook();
    std::panic::set_hook(Box::new(move |panic| {
        if std::thread::current().name() != Some(many::THREAD_NAME) {
            print(panic);
        }
    }));
    let processor = Bug::ALL.map(|bug| (format!("{bug:?}"), Some(bug), None));
    let broker = BrokerBug::ALL.map(|bug| (format!("{bug:?}"), None, Some(bug)));
    let mut missed = Vec::new();
    for (name, processor, broker) in processor.into_iter().chain(broker) {
        let found = found(processor, broker);
        let first = found.first().map_or("none".to_owned(), u64::to_string);
        // The test harness does not capture `stderr()`, so the figures are printed also when the test passes.
        let count = found.len();
        writeln!(
            stderr(),
            "{name}: found in {count} of {SEEDS} seeds, the first is {first}"
        )
        .expect("stderr is there");
        if found.is_empty() {
            missed.push(name);
        }
    }
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
