//! The dead-letter file: callbacks that the receiver never accepted, one JSON line each.

use super::Error;
use crate::layout;
use crate::presence::change::Change;
use crate::schema::json::Object;
use std::fs::File;
use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

pub struct DeadLetterFile {
    path: PathBuf,
    file: Mutex<File>,
}

impl DeadLetterFile {
    /// Opens the file for appending. Creates it if it does not exist. Appends nothing to a file of a later layout.
    pub fn open(path: &Path) -> Result<DeadLetterFile, Error> {
        let file = layout::check_file(path).and_then(|()| File::options().create(true).append(true).open(path));
        let file = file.map_err(|cause| Error::File {
            what: format!("cannot open the dead-letter file {}", path.display()),
            cause,
        })?;
        Ok(DeadLetterFile {
            path: path.to_owned(),
            file: Mutex::new(file),
        })
    }

    /// Appends a callback and syncs the file.
    pub fn write(&self, change: &Change, body: &[u8], why: &str) -> Result<(), Error> {
        let mut line = Vec::new();
        Object::new(&mut line)
            .text("id", &super::id(change))
            .text("user", &change.user)
            .number("version", change.version)
            .text("why", why)
            .raw("body", body)
            .end();
        line.push(b'\n');
        let mut file = self.file.lock().unwrap_or_else(PoisonError::into_inner);
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        written.map_err(|cause| Error::File {
            what: format!("cannot write to the dead-letter file {}", self.path.display()),
            cause,
        })
    }
}
