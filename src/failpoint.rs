//! Places where a test makes the process die: `ROLLCALL_FAILPOINT=offsets:3` aborts it the third time that it reaches
//! `offsets`. With `panic:` in front the thread panics instead. `record:7` makes every fold of a record at offset 7
//! panic. Without the variable, failpoints are off and cost one comparison.
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
//! | `tail`, `owners`, `source`, `together`, `checkpoints`, `assignments` | a turn of that task · the next |
//! | `record` | see above |

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Every place, as in the table.
pub const PLACES: [&str; 17] = [
    "poll",
    "fetch",
    "fold",
    "begin",
    "send",
    "offsets",
    "commit",
    "store",
    "stored",
    "take-up",
    "tail",
    "owners",
    "source",
    "together",
    "checkpoints",
    "assignments",
    RECORD,
];

const RECORD: &str = "record";

struct Failpoint {
    place: String,
    panics: bool,
    /// How many times this place is still to be reached; for [`RECORD`], the offset.
    left: AtomicU64,
}

fn chosen() -> Option<&'static Failpoint> {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    let read = || {
        let text = std::env::var("ROLLCALL_FAILPOINT").ok()?;
        let (panics, rest) = match text.strip_prefix("panic:") {
            Some(rest) => (true, rest),
            None => (false, text.as_str()),
        };
        let (place, times) = rest.split_once(':').unwrap_or((rest, "1"));
        let times = times.parse().ok().filter(|times| *times > 0 || place == RECORD);
        if !PLACES.contains(&place) || times.is_none() {
            let places = PLACES.join(", ");
            eprintln!("error: ROLLCALL_FAILPOINT must be one of {places}, with :N for the N-th time, not {text:?}");
            std::process::exit(2);
        }
        tracing::warn!("failpoint {text} is set, this process will die there");
        Some(Failpoint {
            place: place.to_owned(),
            panics,
            left: AtomicU64::new(times?),
        })
    };
    CHOSEN.get_or_init(read).as_ref()
}

/// Dies here if this failpoint is set.
pub fn reach(place: &'static str) {
    if let Some(chosen) = chosen()
        && chosen.place == place
        && chosen.left.fetch_sub(1, Ordering::AcqRel) == 1
    {
        assert!(!chosen.panics, "the failpoint {place} is set");
        // No destructors run and no buffers are written, as if the process were killed.
        std::process::abort();
    }
}

/// Panics if a test has set the failpoint for the record at this offset.
pub fn fold_record(offset: u64) {
    if let Some(chosen) = chosen() {
        let is_chosen = chosen.place == RECORD && chosen.left.load(Ordering::Relaxed) == offset;
        assert!(!is_chosen, "the failpoint record:{offset} is set");
    }
}
