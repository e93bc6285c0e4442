//! The subcommands, one module each: its arguments (clap) and its `run`.

pub mod audit;
mod cluster;
pub mod completions;
mod connect;
mod descriptors;
mod directories;
pub mod doctor;
mod first_policy;
pub mod fold;
pub mod forget;
pub mod gateway;
pub mod health;
pub mod kick;
pub mod lake;
pub mod load;
pub mod log;
mod logging;
pub mod man;
pub mod policy;
mod progress;
pub mod quarantine;
mod remote;
pub mod reshard;
mod schemas;
pub mod serve;
mod signals;
pub mod sim;
pub mod stats;
mod status;
mod table;
pub mod topics;
mod traces;
pub mod upgrade;
pub mod usage;
pub mod users;
pub mod webhook;

use crate::presence::state::HashSeed;
use crate::tasks;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::hash::{BuildHasher, RandomState};
use std::io;
use std::path::{Path, PathBuf};

/// Opens a file to read it. The error has its name, also if it is a directory.
pub fn open_file(path: &Path) -> anyhow::Result<File> {
    let cannot = || format!("cannot read {}", path.display());
    let file = File::open(path).with_context(cannot)?;
    if file.metadata().with_context(cannot)?.is_dir() {
        bail!("{}: it is a directory; name a file", cannot());
    }
    Ok(file)
}

/// Returns the directory of the embedded log within a data directory.
pub fn log_directory(data: &Path) -> PathBuf {
    data.join("log")
}

/// Ends the process with this status at once: no exit handler runs, and no thread is joined. Call it only when everything
/// that must be written is written.
pub fn leave(status: u8) -> ! {
    use std::io::Write as _;
    // An error here cannot be reported any more.
    let _ = io::stdout().flush();
    tasks::exit(status)
}

/// Returns a random seed, secret to this process, for hash tables whose keys are chosen by clients.
pub fn hash_seed() -> HashSeed {
    HashSeed(RandomState::new().hash_one(0))
}

/// Whether the error is that the reader of our output has closed the pipe.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
}
