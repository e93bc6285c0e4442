//! The epoch of a gateway: a number that grows with each start and survives crashes.
//!
//! The last epoch is kept in a file, which is synced before the epoch is used. A lock prevents two processes from
//! sharing the directory. The engine is asked for the greatest epoch it knows, in case the directory was lost, so that
//! the next one is greater than both. The engine's number came from a publisher, so it may be anything, even the
//! greatest number possible.

use crate::directory;
use crate::layout::{self, UnknownLayout};
use crate::presence::Epoch;
use crate::presence::event::bounds::NUMBER_MAX;
use std::fs::{self, File, TryLockError};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

/// Why no epoch can be given out.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("cannot use the gateway's directory {}: {cause}", .directory.display())]
    Directory { directory: PathBuf, cause: io::Error },
    #[error("the gateway's directory {} is in use by another process: stop it, or set another directory with --data-dir", .0.display())]
    InUse(PathBuf),
    #[error(
        "the epoch in {} is not a number: {text:?}. Replace it with the last epoch that was used, or remove the file \
         if this gateway's name was never used",
        .file.display()
    )]
    NoNumber { file: PathBuf, text: String },
    #[error(transparent)]
    Layout(#[from] UnknownLayout),
    #[error(
        "no epoch is left for this gateway: the last one is {last}, and {} is the greatest possible. Either a lease \
         with that epoch was published under this gateway's name, or the epoch is in the file {}. Start the gateway \
         under another name (--gateway-name)",
        NUMBER_MAX,
        .file.display()
    )]
    NoneLeft { last: u64, file: PathBuf },
}

/// A gateway's directory, locked for this process as long as this value lives.
#[derive(Debug)]
pub struct DirectoryLock {
    directory: PathBuf,
    _lock: File,
}

impl DirectoryLock {
    /// Creates the directory if it does not exist, and locks it.
    pub fn take(directory: &Path) -> Result<DirectoryLock, Error> {
        let lock = directory::create(directory).and_then(|()| File::create(directory.join("lock")));
        let lock = lock.map_err(|cause| failed(directory, cause))?;
        match lock.try_lock() {
            Ok(()) => Ok(DirectoryLock {
                directory: directory.to_owned(),
                _lock: lock,
            }),
            Err(TryLockError::WouldBlock) => Err(Error::InUse(directory.to_owned())),
            Err(TryLockError::Error(cause)) => Err(failed(directory, cause)),
        }
    }

    pub fn directory(&self) -> &Path {
        &self.directory
    }

    /// Returns an epoch greater than any before and greater than `known`. It is on disk when this returns.
    pub fn next(&self, known: Option<Epoch>) -> Result<Epoch, Error> {
        let file = self.directory.join("epoch");
        let before: u64 = match fs::read_to_string(&file) {
            Ok(text) => {
                layout::check(&file, text.as_bytes())?;
                match text.trim().parse() {
                    Ok(number) => number,
                    Err(_) => return Err(Error::NoNumber { file, text }),
                }
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
            Err(cause) => return Err(failed(&self.directory, cause)),
        };
        let known = known.map_or(0, |epoch| epoch.0);
        let last = known.max(before);
        let Some(epoch) = last.checked_add(1).filter(|epoch| *epoch <= NUMBER_MAX) else {
            return Err(Error::NoneLeft { last, file });
        };
        if before > 0 && known > before {
            tracing::warn!(
                known,
                last_used = before,
                "the log has a greater epoch for this gateway than it ever used: another process used its name, or \
                 published a lease under its name"
            );
        }
        self.write(&file, epoch)
            .map_err(|cause| failed(&self.directory, cause))?;
        Ok(Epoch(epoch))
    }

    fn write(&self, file: &Path, epoch: u64) -> io::Result<()> {
        let new = self.directory.join("epoch.new");
        let mut written = File::create(&new)?;
        writeln!(written, "{epoch}")?;
        written.sync_all()?;
        fs::rename(&new, file)?;
        directory::sync(&self.directory)
    }
}

fn failed(directory: &Path, cause: io::Error) -> Error {
    Error::Directory {
        directory: directory.to_owned(),
        cause,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_start_has_a_greater_epoch_than_all_before_and_than_what_others_know() {
        let directory = tempfile::tempdir().expect("a directory");
        let next = |known| {
            let lock = DirectoryLock::take(directory.path()).expect("free");
            lock.next(known).expect("written")
        };
        assert_eq!(next(None), Epoch(1));
        assert_eq!(next(None), Epoch(2));
        assert_eq!(next(Some(Epoch(9))), Epoch(10));
        assert_eq!(next(Some(Epoch(3))), Epoch(11));
        assert_eq!(next(Some(Epoch(NUMBER_MAX - 1))), Epoch(NUMBER_MAX));
        let refused = |known| {
            let lock = DirectoryLock::take(directory.path()).expect("free");
            let refused = lock.next(known).expect_err("none is left").to_string();
            assert!(refused.contains("--gateway-name"), "{refused}");
        };
        refused(None);
        for greatest in [NUMBER_MAX, NUMBER_MAX + 4, u64::MAX] {
            fs::write(directory.path().join("epoch"), "11").expect("written");
            refused(Some(Epoch(greatest)));
            fs::write(directory.path().join("epoch"), greatest.to_string()).expect("written");
            refused(None);
        }
        fs::write(directory.path().join("epoch"), "eleven").expect("written");
        let lock = DirectoryLock::take(directory.path()).expect("free");
        assert!(matches!(lock.next(None), Err(Error::NoNumber { .. })));
    }

    #[test]
    fn a_directory_is_one_process_alone() {
        let directory = tempfile::tempdir().expect("a directory");
        let lock = DirectoryLock::take(directory.path()).expect("free");
        assert!(matches!(DirectoryLock::take(directory.path()), Err(Error::InUse(_))));
        drop(lock);
        assert!(DirectoryLock::take(directory.path()).is_ok());
    }
}
