//! What holds the core against its rules: a second reading of them, and histories to read.
//!
//! [`oracle`] is the rules of `docs/rules.md` once more, written as naively as they can be, with nothing in common with
//! the core but the vocabulary. [`history`] makes random hostile histories. Where the two folds of one history differ,
//! one of them, or the text, has a bug. [`oracle_input`] does the same for reading JSON lines.
//!
//! [`world`] plays such histories through the real engine, over a simulated log (`broker`) and simulated disks
//! (`disk`), among processes that run its worker, die, stand still and are deposed (`process`, `cast`, `group`), and
//! checks all of its results and answers against the oracle (`input`, `shelf`, `questions`), and what subscriptions get
//! (`followers`). `docs/simulation.md` says how to use it.

mod broker;
mod cast;
mod disk;
pub mod fault;
mod followers;
mod group;
pub mod history;
mod input;
pub mod many;
pub mod oracle;
pub mod oracle_input;
pub mod oracle_lines;
mod oracle_state;
#[cfg(test)]
mod planted;
mod process;
mod questions;
mod shelf;
pub mod shrink;
pub mod world;

pub use broker::BrokerBug;
