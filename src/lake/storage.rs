//! Where the files of a lake are: what it asks of a place ([`LakeStorage`]), and a directory.
//!
//! A data file gets its name when it is whole and synced, and no file ever takes the name of another. The manifest, and what points
//! to the newest metadata of Iceberg, are replaced, in one step.

use crate::directory::{self, sync};
use std::fs::{self, File, TryLockError};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// The folders of data files.
pub const FOLDERS: [&str; 3] = ["changes", "intervals", "concurrency"];
/// The name of the manifest.
pub const MANIFEST: &str = "manifest.json";
/// The folder in each of the [`FOLDERS`] with the metadata of Iceberg.
pub(super) const METADATA: &str = "metadata";
const LOCK: &str = "writer.lock";
/// What names of files that are being written end with.
pub(super) const PART: &str = ".part";

/// So many hexadecimal digits of the BLAKE3 hash of its bytes the name of a file has.
const HASH_DIGITS: usize = 16;

/// Returns what the name of a file has of the hash of its bytes.
pub(super) fn name_hash(hash: &blake3::Hash) -> String {
    hash.to_hex()[..HASH_DIGITS].to_owned()
}

pub(super) fn is_name_hash(text: &str) -> bool {
    text.len() == HASH_DIGITS && text.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// What a lake does with its files. Paths are relative, with `/`.
pub trait LakeStorage {
    /// A data file that is being written. Nobody sees it before it is published.
    type NewFile: Write + Send;

    /// Begins a data file in one of the [`FOLDERS`].
    fn create(&mut self, folder: &str) -> io::Result<Self::NewFile>;

    /// Gives a file its name, in its folder or in the `metadata` folder there. It survives the death of the machine from now on.
    fn publish(&mut self, file: Self::NewFile, path: &str) -> io::Result<()>;

    fn open(&mut self, path: &str) -> io::Result<File>;

    /// Returns the data files, and what is left of unfinished ones, with their sizes.
    fn list(&mut self) -> io::Result<Vec<(String, u64)>>;

    /// Returns the files in the `metadata` folders of all [`FOLDERS`].
    fn list_metadata(&mut self) -> io::Result<Vec<String>>;

    fn remove(&mut self, path: &str) -> io::Result<()>;

    /// Returns a file that is replaced as a whole, if it is there.
    fn current(&mut self, path: &str) -> io::Result<Option<Vec<u8>>>;

    /// Replaces a file in one step, if it is still the one that this process has read or written last. It survives the death
    /// of the machine from then on.
    fn replace(&mut self, path: &str, bytes: &[u8]) -> io::Result<ManifestWrite>;

    /// Returns the manifest; `None` in a lake that has no file yet.
    fn manifest(&mut self) -> io::Result<Option<Vec<u8>>> {
        self.current(MANIFEST)
    }

    /// Replaces the manifest as [`replace`](LakeStorage::replace) does.
    fn set_manifest(&mut self, bytes: &[u8]) -> io::Result<ManifestWrite> {
        self.replace(MANIFEST, bytes)
    }

    /// Returns what names this process in manifests, where others may write to the same lake. `None`: no other process can
    /// write to it while this value exists.
    fn writer(&self) -> Option<&str> {
        None
    }
}

/// Whether a file that is replaced as a whole was written.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ManifestWrite {
    Done,
    /// Another process has replaced it since it was read, so nothing was written.
    Outdated,
}

/// A lake in a directory. While it exists, no other process writes to the same lake.
pub struct LakeDirectory {
    root: PathBuf,
    /// The file stays: a lock on a file that is removed excludes nobody.
    _lock: WriterLock,
}

/// Releases the lock when it is dropped. To close the file is not enough: a process that another thread is starting at that
/// moment has it too.
struct WriterLock(File);

impl Drop for WriterLock {
    fn drop(&mut self) {
        // If that fails, it ends with the last who has the file.
        let _ = self.0.unlock();
    }
}

/// A data file of a directory that has no name of its own yet.
pub struct UnnamedFile {
    file: File,
    path: PathBuf,
}

impl LakeDirectory {
    /// Opens a directory to write to, and creates what is missing.
    pub fn open(root: &Path) -> io::Result<LakeDirectory> {
        for folder in FOLDERS {
            directory::create(&root.join(folder))?;
        }
        let path = root.join(LOCK);
        let lock = File::options().create(true).truncate(false).write(true).open(&path)?;
        match lock.try_lock() {
            Ok(()) => {}
            Err(TryLockError::WouldBlock) => {
                return Err(io::Error::other(format!(
                    "another process is writing to this lake (it holds {}); wait until it has ended, or use another directory",
                    path.display()
                )));
            }
            Err(TryLockError::Error(error)) => return Err(error),
        }
        sync(root)?;
        Ok(LakeDirectory {
            root: root.to_owned(),
            _lock: WriterLock(lock),
        })
    }
}

/// Returns the manifest of a lake in a directory that another process may be writing to.
pub fn read_manifest(root: &Path) -> io::Result<Option<Vec<u8>>> {
    read_if_there(&root.join(MANIFEST))
}

/// Whether a directory is a lake, also one that has no commit yet.
pub fn is_lake(root: &Path) -> bool {
    let has_file = |name: &str| root.join(name).is_file();
    FOLDERS.iter().all(|folder| root.join(folder).is_dir()) && (has_file(LOCK) || has_file(MANIFEST))
}

fn read_if_there(path: &Path) -> io::Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(bytes) => Ok(Some(bytes)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

/// Whether a lake gave a file this name, so that it may remove it: one with a [commit](commit_of), or a part of one.
pub(super) fn is_ours(name: &str) -> bool {
    match name.strip_prefix('.').and_then(|name| name.strip_suffix(PART)) {
        Some(part) => !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit() || byte == b'-'),
        None => commit_of(name).is_some(),
    }
}

/// Returns the last number in the name of a data file, such as `…-0000000001-0000000008-0000000009-0123456789abcdef.parquet`: the
/// commit whose manifest was to be the first to name it.
pub(super) fn commit_of(name: &str) -> Option<u64> {
    let mut parts = name.strip_suffix(".parquet")?.rsplit('-');
    let (hash, last, first) = (parts.next()?, parts.next()?, parts.next()?);
    let is_number = |text: &str| text.len() >= 10 && text.bytes().all(|byte| byte.is_ascii_digit());
    // The first may stand behind a folder.
    let is_first = is_number(first.rsplit('/').next()?);
    (is_name_hash(hash) && is_first && is_number(last)).then(|| last.parse().ok())?
}

/// Returns the hash in the name of a data file.
pub(super) fn hash_of(path: &str) -> Option<&str> {
    commit_of(path)?;
    path.strip_suffix(".parquet")?.rsplit('-').next()
}

impl LakeStorage for LakeDirectory {
    type NewFile = UnnamedFile;

    fn create(&mut self, folder: &str) -> io::Result<UnnamedFile> {
        static COUNT: AtomicU64 = AtomicU64::new(0);
        let name = format!(
            ".{}-{}{PART}",
            std::process::id(),
            COUNT.fetch_add(1, Ordering::Relaxed)
        );
        let path = self.root.join(folder).join(name);
        let file = File::create(&path)?;
        Ok(UnnamedFile { file, path })
    }

    fn publish(&mut self, file: UnnamedFile, path: &str) -> io::Result<()> {
        let named = self.root.join(path);
        let folder = named.parent().unwrap_or(&self.root);
        directory::create(folder)?;
        file.file.sync_all()?;
        fs::rename(&file.path, &named)?;
        sync(folder)
    }

    fn open(&mut self, path: &str) -> io::Result<File> {
        File::open(self.root.join(path))
    }

    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for folder in FOLDERS {
            for entry in fs::read_dir(self.root.join(folder))? {
                let entry = entry?;
                let metadata = entry.metadata()?;
                if let Some(name) = entry.file_name().to_str()
                    && metadata.is_file()
                    && is_ours(name)
                {
                    found.push((format!("{folder}/{name}"), metadata.len()));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn list_metadata(&mut self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in FOLDERS {
            let folder = format!("{folder}/{METADATA}");
            let entries = match fs::read_dir(self.root.join(&folder)) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => continue,
                entries => entries?,
            };
            for entry in entries {
                if let Some(name) = entry?.file_name().to_str() {
                    found.push(format!("{folder}/{name}"));
                }
            }
        }
        found.sort_unstable();
        Ok(found)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        match fs::remove_file(self.root.join(path)) {
            // Somebody else has removed it: that is what was asked for.
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            removed => removed,
        }
    }

    fn current(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        read_if_there(&self.root.join(path))
    }

    fn replace(&mut self, path: &str, bytes: &[u8]) -> io::Result<ManifestWrite> {
        let named = self.root.join(path);
        let name = named.file_name().unwrap_or_default().to_string_lossy();
        let temporary = named.with_file_name(format!(".{name}{PART}"));
        let mut file = File::create(&temporary)?;
        file.write_all(bytes)?;
        file.sync_all()?;
        fs::rename(&temporary, &named)?;
        sync(named.parent().unwrap_or(&self.root))?;
        Ok(ManifestWrite::Done)
    }
}

impl Write for UnnamedFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

#[cfg(test)]
mod tests {
    use super::{commit_of, hash_of, is_ours};

    #[test]
    fn only_names_that_a_lake_gives_are_its_own() {
        for ours in [
            "0000000001-0000000008-0000000009-0123456789abcdef.parquet",
            "0000000001-0000000008-0123456789abcdef.parquet",
            "open-0000000001-0000000001-0123456789abcdef.parquet",
            ".17-3.part",
        ] {
            assert!(is_ours(ours), "{ours}");
        }
        for other in [
            "partition-00000.parquet",
            "0000000001-0123456789abcdef.parquet",
            "0000000001-0000000008-0123456789abcdef.csv",
            "1-8-0123456789abcdef.parquet",
            ".part",
            ".mine.part",
            "notes.txt",
        ] {
            assert!(!is_ours(other), "{other}");
        }
    }

    #[test]
    fn the_name_of_a_file_has_the_commit_that_names_it() {
        let joined = "intervals/ended-0000000001-0000000008-0000000009-0123456789abcdef.parquet";
        assert_eq!(commit_of(joined), Some(9));
        assert_eq!(
            commit_of("changes/0000000002-0000000002-0000000002-0123456789abcdef.parquet"),
            Some(2)
        );
        assert_eq!(commit_of("changes/0000000002-0123456789abcdef.parquet"), None);
        assert_eq!(hash_of(joined), Some("0123456789abcdef"));
    }
}
