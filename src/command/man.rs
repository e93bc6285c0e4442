//! `rollcall man`: prints the manual page, or writes those of all commands into a directory.

use anyhow::Context as _;
use clap_mangen::{Man, generate_to};
use std::fs;
use std::io::{self, Write as _};
use std::path::PathBuf;

/// Prints the manual page; with --to, writes a page for each command into a directory
///
/// To read it: `rollcall man | man -l -`. To install all pages: `rollcall man --to /usr/local/share/man/man1`.
#[derive(clap::Args)]
pub struct Args {
    /// The directory; created if it does not exist
    #[arg(long, value_name = "DIR")]
    to: Option<PathBuf>,
}

/// Makes the pages of `cli`, the whole command line.
pub fn run(args: Args, cli: clap::Command) -> anyhow::Result<()> {
    if let Some(directory) = args.to {
        fs::create_dir_all(&directory)
            .and_then(|()| generate_to(cli, &directory))
            .with_context(|| format!("cannot write manual pages to {}", directory.display()))?;
        return Ok(());
    }
    let mut page = Vec::new();
    Man::new(cli).render(&mut page)?;
    match io::stdout().lock().write_all(&page) {
        // The reader has closed the pipe: not an error.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}
