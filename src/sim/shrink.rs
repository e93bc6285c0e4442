//! The least of a failing world that still fails: fewer records first, then fewer kinds of faults.

use super::fault::Fault;
use super::world::{Options, run};

/// Another failure counts too: it is at least as easy to find.
pub fn shrink(seed: u64, options: &Options) -> (Options, Option<String>) {
    let mut least = options.clone();
    let mut said = None;
    let fails = |options: &Options| run(seed, options).err();
    for _ in 0..2 {
        // Not every prefix of a failing one passes or fails in order, so this finds a short one, not the shortest.
        let mut passes = 0;
        while least.records - passes > 1 {
            let records = passes + (least.records - passes) / 2;
            let shorter = Options {
                records,
                ..least.clone()
            };
            match fails(&shorter) {
                Some(what) => {
                    least = shorter;
                    said = Some(what);
                }
                None => passes = records,
            }
        }
        for fault in Fault::ALL {
            if least.without.contains(fault) {
                continue;
            }
            let mut fewer = least.clone();
            fewer.without.push(*fault);
            if let Some(what) = fails(&fewer) {
                least = fewer;
                said = Some(what);
            }
        }
    }
    (least, said)
}
