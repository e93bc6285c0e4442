//! Rollcall: an event-sourced presence engine.

pub mod presence;
pub mod sim;
