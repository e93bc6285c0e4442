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
    /// Beyond it nothing is written any more.
    bytes_max: u64,
    opened: Mutex<OpenedFile>,
}

struct OpenedFile {
    file: File,
    /// How much is in it.
    bytes: u64,
}

impl DeadLetterFile {
    /// Opens the file for appending, up to so many bytes. Creates it if it does not exist. Appends nothing to a file of a
    /// later layout.
    pub fn open(path: &Path, bytes_max: u64) -> Result<DeadLetterFile, Error> {
        let file = layout::check_file(path).and_then(|()| File::options().create(true).append(true).open(path));
        let opened = file.and_then(|file| {
            let bytes = file.metadata()?.len();
            Ok(OpenedFile { file, bytes })
        });
        let opened = opened.map_err(|cause| Error::File {
            what: format!("cannot open the dead-letter file {}", path.display()),
            cause,
        })?;
        Ok(DeadLetterFile {
            path: path.to_owned(),
            bytes_max,
            opened: Mutex::new(opened),
        })
    }

    /// Appends a callback and syncs the file. Fails without writing if the file would grow beyond its bound; then the
    /// callback is not done and is posted again at the next start.
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
        let mut opened = self.opened.lock().unwrap_or_else(PoisonError::into_inner);
        let OpenedFile { file, bytes } = &mut *opened;
        let after = *bytes + line.len() as u64;
        if after > self.bytes_max {
            return Err(Error::DeadLettersFull {
                path: self.path.clone(),
                bytes: *bytes,
                bytes_max: self.bytes_max,
            });
        }
        let written = file.write_all(&line).and_then(|()| file.sync_data());
        written.map_err(|cause| Error::File {
            what: format!("cannot write to the dead-letter file {}", self.path.display()),
            cause,
        })?;
        *bytes = after;
        Ok(())
    }
}
