//! Rollcall: an event-sourced presence engine.

pub mod clock;
pub mod command;
pub mod log;
pub mod presence;
pub mod schema;
pub mod sim;
