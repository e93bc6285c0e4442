//! JSON, as `rollcall fold` reads and prints it and as the HTTP API uses it (`docs/rules.md` sections 3 and 8).
//!
//! Reading is as strict as the rules (`1.0` and `true` are not integers) and as lenient (unknown fields are skipped,
//! but must be JSON). Writing outputs the keys in the order of the rules, without spaces.

mod bad_event;
mod conns;
mod fields;
mod items;
mod judged;
mod line;
mod policy_event;
mod raw;
mod request;
mod skip;
mod write;

pub use bad_event::BadEvent;
pub use fields::NewEvent;
pub use line::{InputLine, LineError, read_line};
pub use policy_event::policy_event;
pub use request::{NewEvents, read_new_events, read_request, read_request_lines};
pub use write::{
    Object, device_change, event_line, list, malformed_event_line, malformed_line, output_line, partition_line,
    quarantined_line, user_fields, user_line,
};
