//! The subcommands, a module each: what it is asked (clap), and the run.

pub mod fold;
pub mod log;

use crate::presence::policy::Policy;
use crate::schema::policy::parse_policy;
use anyhow::{Context as _, anyhow};
use std::io;
use std::path::Path;

/// Reads a policy file; the default policy where there is none.
pub fn read_policy(file: Option<&Path>) -> anyhow::Result<Option<Policy>> {
    let Some(file) = file else { return Ok(None) };
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read the policy {}", file.display()))?;
    let policy = parse_policy(&text).map_err(|invalid| anyhow!("{invalid}"));
    policy
        .with_context(|| format!("the policy {} is not valid", file.display()))
        .map(Some)
}

/// Whether whoever reads our output has gone away.
fn is_broken_pipe(error: &anyhow::Error) -> bool {
    let io = error.chain().find_map(|cause| cause.downcast_ref::<io::Error>());
    io.is_some_and(|io| io.kind() == io::ErrorKind::BrokenPipe)
}
