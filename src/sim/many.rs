//! Many seeds in several threads, for tests: the command plays them in one.

use std::ops::RangeInclusive;

const THREADS: u64 = 4;
/// By which a panic hook knows that nobody else panics.
pub const THREAD_NAME: &str = "worlds";

/// What is given for each seed for which anything is, in the order of the seeds.
pub fn each<T: Send>(seeds: RangeInclusive<u64>, give: impl Fn(u64) -> Option<T> + Sync) -> Vec<(u64, T)> {
    let mut given = std::thread::scope(|scope| {
        let threads = (0..THREADS).map(|number| {
            let (seeds, give) = (seeds.clone(), &give);
            let share = move || {
                let share = seeds.filter(|seed| seed % THREADS == number);
                share.filter_map(|seed| Some((seed, give(seed)?))).collect::<Vec<_>>()
            };
            let thread = std::thread::Builder::new().name(THREAD_NAME.to_owned());
            thread.spawn_scoped(scope, share).expect("a thread can be started")
        });
        let threads: Vec<_> = threads.collect();
        let joined = threads
            .into_iter()
            .map(|thread| thread.join().expect("runs catch panics"));
        joined.flatten().collect::<Vec<_>>()
    });
    given.sort_unstable_by_key(|(seed, _)| *seed);
    given
}
