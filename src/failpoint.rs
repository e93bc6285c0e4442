//! Places where a test makes the process die: `ROLLCALL_FAILPOINT=offsets:3` aborts it the third time that it reaches
//! `offsets`. With `panic:` in front the thread panics instead, with `hang:` it waits for ever, and with `leak:` it keeps a descriptor
//! and 1 MiB for ever and goes on. `offsets:3+` means from the third time on. With `alter:` in front something else is read at a
//! place of [`ALTERED`] than is there. `record:7` makes every fold of a record at offset 7 panic. Without the variable, failpoints
//! are off and cost one comparison.
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
//! | `tail`, `owners`, `source`, `standbys`, `checkpoints`, `assignments` | a turn of that task · the next |
//! | `rd_kafka_…` | a helper was given that call of librdkafka · the call |
//! | `append` | appends were taken from the queue of the embedded log · anything of them was written |
//! | `record` | see above |
//! | `copied` | events were appended to a new log · they are known to be there |
//! | `left` | nobody can write to the old log any more · the rest is copied |
//! | `compared` | the states of both logs were compared · the new log is finished |
//! | `finished` | the new log is finished · anything after |

use std::fs::File;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicI64, Ordering};

/// Every place, as in the table, but the calls of librdkafka.
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
    "standbys",
    "checkpoints",
    "assignments",
    RECORD,
];

/// The places of `rollcall reshard`.
pub const RESHARD_PLACES: [&str; 4] = ["copied", "left", "compared", "finished"];

/// The places of the embedded log.
pub const LOCAL_PLACES: [&str; 1] = ["append"];

/// Not a step that is reached again and again: the number is an offset, and the thread panics.
pub const RECORD: &str = "record";
/// What the names of librdkafka's calls begin with.
const CALL: &str = "rd_kafka_";

/// Where something that is read can be altered. At `skipped-event` an event moves log time and is not applied.
pub const ALTERED: [&str; 3] = ["second-reading", "last-record", "skipped-event"];

#[derive(Clone, Copy, PartialEq, Eq)]
enum Effect {
    Abort,
    Panic,
    Hang,
    Leak,
    Alter,
}

/// What a leak keeps each time.
const LEAKED_BYTES: usize = 1 << 20;

struct Failpoint {
    place: String,
    effect: Effect,
    /// How many times this place is still to be reached; for [`RECORD`], the offset.
    left: AtomicI64,
    /// It happens each time from then on.
    repeats: bool,
}

fn chosen() -> Option<&'static Failpoint> {
    static CHOSEN: OnceLock<Option<Failpoint>> = OnceLock::new();
    let read = || {
        let text = std::env::var("ROLLCALL_FAILPOINT").ok()?;
        let (effect, rest) = match text.split_once(':') {
            Some(("panic", rest)) => (Effect::Panic, rest),
            Some(("hang", rest)) => (Effect::Hang, rest),
            Some(("leak", rest)) => (Effect::Leak, rest),
            Some(("alter", rest)) => (Effect::Alter, rest),
            _ => (Effect::Abort, text.as_str()),
        };
        let (place, times) = rest.split_once(':').unwrap_or((rest, "1"));
        let (times, repeats) = times.strip_suffix('+').map_or((times, false), |times| (times, true));
        let times = times
            .parse()
            .ok()
            .filter(|times| *times > 0 || (place == RECORD && *times == 0));
        let is_known = match effect {
            Effect::Alter => ALTERED.contains(&place),
            Effect::Abort | Effect::Panic | Effect::Hang | Effect::Leak => {
                let all = [&PLACES[..], &RESHARD_PLACES, &LOCAL_PLACES].concat();
                all.contains(&place) || place.starts_with(CALL)
            }
        };
        if !is_known || times.is_none() {
            let places = [&PLACES[..], &RESHARD_PLACES, &LOCAL_PLACES].concat().join(", ");
            eprintln!(
                "error: ROLLCALL_FAILPOINT must be one of {places} or a call ({CALL}…), with :N for the N-th time, not {text:?}"
            );
            std::process::exit(2);
        }
        tracing::warn!("failpoint {text} is set, this process will fail there");
        Some(Failpoint {
            place: place.to_owned(),
            effect,
            left: AtomicI64::new(times?),
            repeats,
        })
    };
    CHOSEN.get_or_init(read).as_ref()
}

/// Whether it is to happen now, if this is the place.
fn is_due(chosen: &Failpoint, place: &str) -> bool {
    if chosen.place != place {
        return false;
    }
    let left = chosen.left.fetch_sub(1, Ordering::AcqRel);
    left == 1 || (chosen.repeats && left < 1)
}

/// Dies, panics or waits here if this failpoint is set.
pub fn reach(place: &'static str) {
    if let Some(chosen) = chosen()
        && is_due(chosen, place)
    {
        match chosen.effect {
            // No destructors run and no buffers are written, as if the process were killed.
            Effect::Abort => std::process::abort(),
            Effect::Panic => panic!("the failpoint {place} is set"),
            Effect::Hang => loop {
                std::thread::park();
            },
            Effect::Leak => leak(),
            Effect::Alter => {}
        }
    }
}

fn leak() {
    // Written to, so that it is resident, and seen from outside, so that the compiler does not leave it out.
    std::mem::forget(std::hint::black_box(vec![1u8; LEAKED_BYTES]));
    match File::open("/dev/null") {
        Ok(file) => std::mem::forget(file),
        Err(error) => tracing::warn!(%error, "the failpoint cannot leak a descriptor"),
    }
}

/// Whether what is read here is to be altered.
pub fn alters(place: &'static str) -> bool {
    chosen().is_some_and(|chosen| chosen.effect == Effect::Alter && is_due(chosen, place))
}

/// Whether a test makes something hang: then what it may take is waited for a shorter time.
pub fn is_hanging() -> bool {
    chosen().is_some_and(|chosen| chosen.effect == Effect::Hang)
}

/// Panics if a test has set the failpoint for the record at this offset.
pub fn fold_record(offset: u64) {
    if let Some(chosen) = chosen() {
        let is_chosen = chosen.place == RECORD && u64::try_from(chosen.left.load(Ordering::Relaxed)) == Ok(offset);
        assert!(!is_chosen, "the failpoint record:{offset} is set");
    }
}
