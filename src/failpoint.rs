//! Places where a test has the process die: `ROLLCALL_FAILPOINT=offsets:3` ends it the third time that it comes to
//! `offsets`. Off, and one comparison, where the variable is not set.
//!
//! | place | between |
//! |---|---|
//! | `poll` | records were read · decoded |
//! | `fetch` | decoded, and their users fetched · folded |
//! | `fold` | folded · committed |
//! | `begin` | a transaction was begun · anything was sent in it |
//! | `send` | outputs were sent · the position |
//! | `offsets` | the position was sent · the commit |
//! | `commit` | the log was committed · known to be |
//! | `store` | the log was committed · the store |
//! | `stored` | the store was committed · anything after |
//! | `take-up` | the fence is taken · the position read |

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every place, as in the table.
pub const PLACES: [&str; 10] = [
    "poll", "fetch", "fold", "begin", "send", "offsets", "commit", "store", "stored", "take-up",
];

struct Failpoint {
    place: String,
    left: AtomicU64,
}

fn chosen() -> Option<&'static Failpoint> {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    let read = || {
        let text = std::env::var("ROLLCALL_FAILPOINT").ok()?;
        let (place, times) = text.split_once(':').unwrap_or((&text, "1"));
        let times = times.parse().ok().filter(|times| *times > 0);
        if !PLACES.contains(&place) || times.is_none() {
            let places = PLACES.join(", ");
            eprintln!("error: ROLLCALL_FAILPOINT must be one of {places}, with :N for the N-th time, not {text:?}");
            std::process::exit(2);
        }
        tracing::warn!("this process will die at the failpoint {text}");
        Some(Failpoint {
            place: place.to_owned(),
            left: AtomicU64::new(times?),
        })
    };
    CHOSEN.get_or_init(read).as_ref()
}

/// Dies here, if it was asked to.
pub fn reach(place: &'static str) {
    if let Some(chosen) = chosen()
        && chosen.place == place
        && chosen.left.fetch_sub(1, Ordering::AcqRel) == 1
    {
        // No destructors, no buffers: as if it were killed.
        std::process::abort();
    }
}
