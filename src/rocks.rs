//! The meaning of RocksDB's errors. Its interface gives a kind and a text; only this file interprets the text.

use rocksdb::ErrorKind;
use std::path::Path;

/// The meaning of an error of a RocksDB in a directory.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Meaning {
    /// Files are missing or altered. A retry gives the same error.
    Damage,
    /// Another process has the directory open, or this process already does.
    InUse,
    /// The directory holds other column families than expected.
    Foreign,
    /// The machine or the disk failed (no descriptors, no space, no permission, a device error). This may pass and says
    /// nothing about the files.
    Failure,
}

/// Returns what an error means.
///
/// An I/O error is damage only if it says itself that a file does not exist or is a directory, and the file is still so:
/// a full disk, too many open files, a failing device or a missing permission say nothing about what is on disk. A file
/// that could not be written for lack of space is gone again when this is asked. RocksDB reports files that it could
/// not access as corruption, too, with the I/O error in the text.
pub fn meaning(dir: &Path, error: &rocksdb::Error) -> Meaning {
    let text: &str = error.as_ref();
    if dir.exists() && !dir.is_dir() {
        return Meaning::Damage;
    }
    if error.kind() == ErrorKind::IOError || text.contains("IO error: ") {
        return meaning_of_io(dir, text);
    }
    match error.kind() {
        ErrorKind::Corruption => Meaning::Damage,
        ErrorKind::InvalidArgument => Meaning::Foreign,
        _ => Meaning::Failure,
    }
}

/// Returns whether the error only says that there is a write-ahead log: the error of opening a database without one, after
/// all its other files were found whole.
pub fn is_of_the_write_ahead_log(error: &rocksdb::Error) -> bool {
    let text: &str = error.as_ref();
    error.kind() == ErrorKind::Corruption && text.contains("error_if_wal_file_exists")
}

fn meaning_of_io(dir: &Path, text: &str) -> Meaning {
    // As the C library words them, which this program asks for no other language.
    let is_of_a_file = ["No such file or directory", "Is a directory", "Not a directory"]
        .iter()
        .any(|said| text.contains(said));
    match () {
        () if is_of_the_lock(text) => Meaning::InUse,
        () if is_of_a_file && names_missing_file(dir, text) => Meaning::Damage,
        () => Meaning::Failure,
    }
}

fn is_of_the_lock(text: &str) -> bool {
    text.contains("While lock file") || text.contains("lock hold by current process")
}

/// Returns whether the text names a file of the directory that does not exist or is a directory.
fn names_missing_file(dir: &Path, text: &str) -> bool {
    let prefix = format!("{}/", dir.display());
    text.match_indices(&prefix).any(|(at, _)| {
        let name = &text[at + prefix.len()..];
        let is_of_a_name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        let name = &name[..name.find(|c| !is_of_a_name(c)).unwrap_or(name.len())];
        let is_missing = match std::fs::metadata(dir.join(name)) {
            Ok(metadata) => metadata.is_dir(),
            Err(error) => error.kind() == std::io::ErrorKind::NotFound,
        };
        !name.is_empty() && is_missing
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use rocksdb::{DB, Options};
    use std::fs;
    use std::path::PathBuf;

    fn made() -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let db = DB::open_default(dir.path()).unwrap();
        db.put("key", "value").unwrap();
        db.flush().unwrap();
        dir
    }

    fn opened(dir: &Path) -> Meaning {
        match DB::open_default(dir) {
            Ok(_) => panic!("it was opened"),
            Err(error) => meaning(dir, &error),
        }
    }

    fn files(dir: &Path, begins: &str, ends: &str) -> Vec<PathBuf> {
        let entries = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let names = |path: &PathBuf| {
            let name = path.file_name().unwrap().to_str().unwrap();
            name.starts_with(begins) && name.ends_with(ends)
        };
        entries.filter(names).collect()
    }

    #[test]
    fn what_is_missing_cut_or_no_file_is_damage() {
        for (begins, ends) in [("MANIFEST-", ""), ("CURRENT", ""), ("", ".sst")] {
            for harm in 0..4 {
                let dir = made();
                for file in files(dir.path(), begins, ends) {
                    match harm {
                        0 => fs::remove_file(&file).unwrap(),
                        1 => fs::write(&file, "").unwrap(),
                        2 => fs::write(&file, "something else altogether\n").unwrap(),
                        _ => {
                            fs::remove_file(&file).unwrap();
                            fs::create_dir(&file).unwrap();
                        }
                    }
                }
                if (begins, harm) == ("CURRENT", 0) {
                    // RocksDB treats a directory without this file as a new database.
                    continue;
                }
                assert_eq!(opened(dir.path()), Meaning::Damage, "{begins}{ends}, harm {harm}");
            }
        }
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("store");
        fs::write(&file, "no directory").unwrap();
        assert_eq!(opened(&file), Meaning::Damage);
    }

    #[test]
    fn who_has_it_open_and_what_else_it_holds_is_told_apart() {
        let dir = made();
        let held = DB::open_default(dir.path()).unwrap();
        assert_eq!(opened(dir.path()), Meaning::InUse);
        drop(held);
        let mut options = Options::default();
        options.create_missing_column_families(true);
        DB::open_cf(&options, dir.path(), ["default", "more"]).unwrap();
        assert_eq!(opened(dir.path()), Meaning::Foreign);
    }

    #[test]
    fn what_the_machine_cannot_do_at_the_moment_says_nothing_about_the_files() {
        let dir = made();
        let texts = [
            "IO error: While opening a file for sequentially reading: DIR/CURRENT: Too many open files",
            "IO error: While open a file for random read: DIR/FILE: Input/output error",
            "Corruption: Can't access /FILE: IO error: While stat a file for size: DIR/FILE: Permission denied",
            "IO error: No space left on device: While appending to file: DIR/FILE: No space left on device",
            "IO error: While appending to file: DIR/FILE: File too large",
            "IO error: While open a file for appending: DIR/FILE: Read-only file system",
            "IO error: While appending to file: DIR/FILE: Disk quota exceeded",
        ];
        let file = files(dir.path(), "", ".sst").remove(0);
        let name = file.file_name().unwrap().to_str().unwrap();
        let said = |text: &str| {
            text.replace("DIR", &dir.path().display().to_string())
                .replace("FILE", name)
        };
        let missing = "Corruption: IO error: No such file or directory: While open a file for random read: DIR/FILE: No \
                       such file or directory";
        for text in texts.into_iter().chain([missing]) {
            assert_eq!(meaning_of_io(dir.path(), &said(text)), Meaning::Failure, "{text}");
        }
        // What could not be written is removed again.
        fs::remove_file(&file).unwrap();
        for text in texts {
            assert_eq!(meaning_of_io(dir.path(), &said(text)), Meaning::Failure, "{text}");
        }
        assert_eq!(meaning_of_io(dir.path(), &said(missing)), Meaning::Damage);
    }
}
