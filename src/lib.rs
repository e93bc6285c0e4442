//! Rollcall: an event-sourced presence engine.
//!
//! Gateways publish what happens to their connections to a log; a fold over it, with deadlines, knows who is online, and
//! every change comes out exactly once and in order. The modules, in the order data flows:
//!
//! | module | what it does |
//! |---|---|
//! | [`gateway`] | clients' WebSockets: connections become events, kicks close them |
//! | [`api`] | what is said over HTTP: the table of routes, for who serves and who asks |
//! | [`http`] | takes events in; at the other end answers questions and lets changes and kicks be followed |
//! | [`log`] | keeps records durably, partition by partition, and writes outputs and position in one step |
//! | [`schema`] | bytes to values and back; whatever comes in is judged here, once |
//! | [`registry`] | asks a schema registry what an id stands for |
//! | [`presence`] | the core: the rules as a pure fold; values in, values out, nothing of the outside world |
//! | [`store`] | keeps a partition's state on disk; may be behind the log, never ahead of it |
//! | [`checkpoint`] | copies of stores, where another machine can take them from |
//! | [`engine`] | the walk of a batch through the four above, a worker a partition |
//!
//! Log, store and schema never import each other; the engine composes them. Beside the flow: [`command`] (the command
//! line) and [`config`] start it, [`clock`] is the only file that reads the machine's clock, [`metrics`] counts, [`version`] is
//! what was built, [`tasks`] watches helper threads, [`rocks`] knows what RocksDB's errors mean,
//! [`failpoint`] lets tests kill it where it hurts, and [`demo`] has simulated users, [`load`] many of them on real
//! connections; [`webhook`] posts changes as callbacks, from a process of its own. [`sim`] holds the core against a
//! second, naive reading of its rules.
//!
//! The rules are in `docs/rules.md`, how it all fits together and which test holds what in `ARCHITECTURE.md`.
#![cfg_attr(
    not(test),
    deny(clippy::disallowed_methods, clippy::undocumented_unsafe_blocks, clippy::unwrap_used)
)]

pub mod api;
pub mod audit;
#[cfg(test)]
#[path = "../tests/bless/mod.rs"]
mod bless;
pub mod cause;
pub mod checkpoint;
pub mod clock;
pub mod command;
pub mod config;
pub mod demo;
pub mod engine;
pub mod failpoint;
pub mod gateway;
pub mod http;
pub mod load;
pub mod log;
pub mod metrics;
pub mod presence;
pub mod registry;
pub mod rocks;
pub mod schema;
pub mod sim;
pub mod store;
pub mod tasks;
pub mod version;
pub mod webhook;
