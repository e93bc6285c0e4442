//! Files that `rollcall log` printed, line by line.

use crate::command::audit::interrupt::check_interrupted;
use crate::command::open_file;
use anyhow::{Context as _, bail};
use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// The lines of a file that are not empty.
pub struct Lines {
    path: PathBuf,
    reader: BufReader<File>,
    line: String,
    number: u64,
}

impl Lines {
    pub fn open(path: &Path) -> anyhow::Result<Lines> {
        let file = open_file(path)?;
        Ok(Lines {
            path: path.to_owned(),
            reader: BufReader::with_capacity(1 << 16, file),
            line: String::new(),
            number: 0,
        })
    }

    pub fn next(&mut self) -> anyhow::Result<Option<&str>> {
        loop {
            self.line.clear();
            self.number += 1;
            let read = self.reader.read_line(&mut self.line);
            if read.with_context(|| self.here())? == 0 {
                return Ok(None);
            }
            if !self.line.trim_end().is_empty() {
                return Ok(Some(self.line.trim_end()));
            }
        }
    }

    /// What is wrong with the last line if it cannot be read.
    pub fn here(&self) -> String {
        format!("line {} of {} is not a record", self.number, self.path.display())
    }
}

/// Calls `each` with the lines of a file that are not empty, until it breaks. `flag` names the file.
pub fn each_line(
    file: Option<&Path>,
    flag: &str,
    mut each: impl FnMut(&str) -> anyhow::Result<ControlFlow<()>>,
) -> anyhow::Result<()> {
    let Some(path) = file else {
        bail!("{flag} FILE is needed for this question");
    };
    let mut lines = Lines::open(path)?;
    while let Some(line) = lines.next()? {
        check_interrupted()?;
        let done = each(line);
        if done.with_context(|| lines.here())?.is_break() {
            break;
        }
    }
    Ok(())
}
