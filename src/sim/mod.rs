//! What holds the core against its rules: a second reading of them, and histories to read.
//!
//! [`oracle`] is the rules of `docs/rules.md` once more, written as naively as they can be, with nothing in common with
//! the core but the vocabulary. [`history`] makes random hostile histories. Where the two folds of one history differ,
//! one of them, or the text, has a bug. [`oracle_input`] does the same for reading JSON lines.

pub mod history;
pub mod oracle;
pub mod oracle_input;
