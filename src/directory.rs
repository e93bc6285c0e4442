//! Directories that survive the death of the machine: their names are on the disk when they can be used.

use std::fs::{self, File};
use std::io;
use std::path::Path;

/// Creates a directory and those above it that do not exist. Each one that is created is synced where its name is.
pub fn create(directory: &Path) -> io::Result<()> {
    if directory.is_dir() {
        return Ok(());
    }
    let parent = parent(directory);
    create(parent)?;
    match fs::create_dir(directory) {
        // Another process has created it at the same time.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists && directory.is_dir() => {}
        created => created?,
    }
    sync(parent)
}

/// Returns what to do about an error of a file or directory, to be written after the error. Empty if nothing is known.
pub fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        io::ErrorKind::PermissionDenied => "; run this as the user that the server runs as, which owns the directory",
        _ => "",
    }
}

/// Makes the names in a directory survive the death of the machine.
pub fn sync(directory: &Path) -> io::Result<()> {
    File::open(directory)?.sync_all()
}

/// Returns the directory in which a path is.
fn parent(path: &Path) -> &Path {
    match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        Some(_) | None => Path::new("."),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_is_created_and_a_file_in_the_way_is_an_error() {
        let directory = tempfile::tempdir().unwrap();
        let within = directory.path().join("a/b/c");
        create(&within).unwrap();
        create(&within).unwrap();
        assert!(within.is_dir());
        fs::write(within.join("file"), "").unwrap();
        let error = create(&within.join("file")).unwrap_err();
        assert_eq!(error.kind(), io::ErrorKind::AlreadyExists);
        create(&within.join("file/d")).unwrap_err();
    }

    #[test]
    fn a_relative_name_is_in_the_directory_of_the_process() {
        assert_eq!(parent(Path::new("lake")), Path::new("."));
        assert_eq!(parent(Path::new("lake/changes")), Path::new("lake"));
        assert_eq!(parent(Path::new("/lake")), Path::new("/"));
        create(Path::new(".")).unwrap();
    }

    #[test]
    fn who_may_not_read_a_directory_is_sent_to_the_user_who_may() {
        let denied = io::Error::from(io::ErrorKind::PermissionDenied);
        assert!(advice(&denied).contains("run this as the user that the server runs as"));
        assert_eq!(advice(&io::Error::from(io::ErrorKind::NotADirectory)), "");
    }
}
