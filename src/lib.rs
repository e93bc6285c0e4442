//! Rollcall: an event-sourced presence engine.
//!
//! Gateways publish what happens to their connections to a log. A fold over the log, with deadlines, computes who is
//! online. Every change is published exactly once and in order. The modules, in the order in which data flows:
//!
//! | module | what it does |
//! |---|---|
//! | [`gateway`] | serves clients' WebSocket connections: publishes their events, closes kicked ones |
//! | [`api`] | declares the HTTP API: one table of routes for servers and clients |
//! | [`http`] | accepts events, answers queries, streams changes and kicks |
//! | [`log`] | stores records durably by partition; commits outputs and position atomically |
//! | [`schema`] | converts bytes to values and back; validates all input once |
//! | [`registry`] | looks up schemas in a schema registry |
//! | [`presence`] | the core: the rules as a pure fold from values to values, without I/O |
//! | [`store`] | stores a partition's state on disk; may lag behind the log, never leads it |
//! | [`checkpoint`] | stores copies of stores where other machines can restore them |
//! | [`engine`] | processes each partition with a worker that composes log, schema, presence and store |
//!
//! Log, store and schema never import each other; the engine composes them. Which topics there are is in [`topics`]. Beside the flow: [`command`] (the command
//! line) and [`config`] start the process, whose memory is from [`allocator`]; [`clock`] is the only file that reads the machine's clock; [`metrics`]
//! declares every metric; [`version`] holds the version of the build; [`tasks`] watches helper threads; [`traces`] makes spans of traced events; [`tls`] reads certificates, [`jwks`] key sets; [`rocks`]
//! interprets RocksDB's errors; [`objects`] opens directories and buckets; [`failpoint`] lets tests kill the process at chosen places; [`demo`] simulates users;
//! [`load`] simulates many users on real connections; [`webhook`] posts changes as callbacks from a process of its own;
//! [`lake`] keeps tables for analysts up to date;
//! [`sim`] compares the core with a second, naive implementation of the rules.
//!
//! The rules are in `docs/rules.md`. `ARCHITECTURE.md` describes how the parts fit together and which test checks which
//! invariant.
// Where it is needed, with the reason beside it.
#![deny(unsafe_code)]
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)
)]

pub mod allocator;
pub mod api;
pub mod audit;
pub mod backoff;
#[cfg(test)]
#[path = "../tests/bless/mod.rs"]
mod bless;
pub mod cause;
pub mod checkpoint;
pub mod clock;
pub mod command;
pub mod config;
pub mod demo;
pub mod directory;
pub mod engine;
pub mod failpoint;
#[cfg(test)]
#[path = "../tests/fuzz/mod.rs"]
#[expect(unsafe_code, reason = "an allocator that counts")]
mod fuzz;
pub mod gateway;
pub mod http;
pub mod incidents;
pub mod jwks;
pub mod lake;
pub mod layout;
pub mod load;
pub mod log;
pub mod metrics;
pub mod objects;
pub mod presence;
pub mod random;
pub mod registry;
pub mod rocks;
pub mod schema;
pub mod sim;
pub mod store;
pub mod tasks;
pub mod tls;
pub mod topics;
pub mod traces;
pub mod varint;
pub mod version;
pub mod webhook;
