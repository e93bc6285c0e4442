//! Rollcall: an event-sourced presence engine.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)
)]

pub mod clock;
pub mod command;
pub mod config;
pub mod demo;
pub mod engine;
pub mod http;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod schema;
pub mod sim;
pub mod store;
