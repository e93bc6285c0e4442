//! Three hundred simulated worlds: whatever goes wrong, outputs and state are as the rules say.

use rollcall::sim::world::{Options, run};

const SEEDS: u64 = 300;
const THREADS: u64 = 4;

#[test]
fn three_hundred_worlds_come_out_as_the_rules_say() {
    let options = Options::default();
    let wrong = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|thread| {
            let options = &options;
            scope.spawn(move || {
                let seeds = (1..=SEEDS).filter(|seed| seed % THREADS == thread);
                let failed = seeds.filter_map(|seed| Some((seed, run(seed, options).err()?)));
                failed.collect::<Vec<_>>()
            })
        });
        let threads: Vec<_> = threads.collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("runs catch panics"));
        joined.flatten().collect::<Vec<_>>()
    });
    let told: Vec<_> = wrong
        .iter()
        .map(|(seed, what)| format!("rollcall sim --seeds {seed}: {what}"))
        .collect();
    assert!(told.is_empty(), "{}", told.join("\n"));
}

#[test]
fn the_same_seed_gives_the_same_bytes() {
    let options = Options::default();
    for seed in [1, 24, 77, 174] {
        assert!(run(seed, &options).is_ok_and(|report| !report.transcript.is_empty()));
        assert_eq!(run(seed, &options), run(seed, &options), "seed {seed}");
    }
}
