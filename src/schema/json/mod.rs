//! JSON, as `rollcall fold` reads and prints it and as the HTTP face speaks it (`docs/rules.md` sections 3 and 8).
//!
//! Reading is strict where the rules are (`1.0` and `true` are no integers) and lenient where they say so (unknown
//! fields are skipped, but must be JSON). Writing gives the keys in the order shown there, without spaces.

mod conns;
mod read;
mod request;
mod skip;
mod write;

pub use read::{BadEvent, InputLine, LineError, NewEvent, policy_event, read_line};
pub use request::{NewEvents, read_new_events, read_request, read_request_lines};
pub use write::{
    Object, event_line, malformed_event_line, malformed_line, output_line, partition_line, quarantined_line,
    user_fields, user_line,
};
