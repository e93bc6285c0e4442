//! The subcommands, a module each: what it is asked (clap), and the run.

pub mod fold;
pub mod serve;
pub mod sim;

use std::path::{Path, PathBuf};

/// The embedded log within a data directory.
pub fn log_directory(data: &Path) -> PathBuf {
    data.join("log")
}
