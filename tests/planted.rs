//! Does the simulator find bugs? Eleven are planted, one after the other, and each must be found within CI's seeds.

use rollcall::engine::planted::{Bug, plant};
use rollcall::sim::BrokerBug;
use rollcall::sim::world::{Options, run};

const SEEDS: u64 = 300;
const THREADS: u64 = 4;

fn found(walk: Option<Bug>, broker: Option<BrokerBug>) -> Vec<u64> {
    let options = Options {
        bug: broker,
        ..Options::default()
    };
    let mut found = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let options = &options;
            scope.spawn(move || {
                plant(walk);
                let seeds = (1..=SEEDS).filter(|seed| seed % THREADS == thread);
                seeds.filter(|seed| run(*seed, options).is_err()).collect::<Vec<_>>()
            })
        });
        let threads: Vec<_> = threads.collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("runs catch panics"));
        joined.flatten().collect::<Vec<_>>()
    });
    found.sort_unstable();
    found
}

#[test]
fn every_planted_bug_is_found() {
    // What is found is told by the seeds, not by a page of panics.
    std::panic::set_hook(Box::new(|_| {}));
    let walk = Bug::ALL.map(|bug| (format!("{bug:?}"), Some(bug), None));
    let broker = BrokerBug::ALL.map(|bug| (format!("{bug:?}"), None, Some(bug)));
    let mut missed = Vec::new();
    for (name, walk, broker) in walk.into_iter().chain(broker) {
        let found = found(walk, broker);
        let first = found.first().map_or("none".to_owned(), u64::to_string);
        println!(
            "{name}: found in {} of {SEEDS} seeds, the first is {first}",
            found.len()
        );
        if found.is_empty() {
            missed.push(name);
        }
    }
    let _ = std::panic::take_hook();
    assert!(missed.is_empty(), "not found: {}", missed.join(", "));
}
