//! Rollcall: an event-sourced presence engine.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)
)]

pub mod command;
pub mod log;
pub mod presence;
pub mod schema;
pub mod sim;
