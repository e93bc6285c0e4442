//! Rollcall: an event-sourced presence engine.

pub mod clock;
pub mod command;
pub mod engine;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod schema;
pub mod sim;
pub mod store;
