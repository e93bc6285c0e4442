//! Something that is built from files, and is built again when they change.

use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError, RwLock};

/// The greatest size of one file.
const BYTES_MAX: u64 = 1 << 20;

/// What is wrong with files of certificates or keys.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0}")]
pub struct BadFiles(pub String);

/// What comparing the files with those in use has given.
#[derive(PartialEq, Eq, Debug)]
pub enum ReloadResult {
    Same,
    Changed,
    /// They cannot be used. Returned once for the same content, and only if it stays for two checks in a row: files are
    /// replaced one after the other.
    Failed(BadFiles),
}

type Build<T> = Box<dyn Fn(&[Vec<u8>]) -> Result<T, BadFiles> + Send + Sync>;

/// See the module.
pub struct Reloaded<T> {
    paths: Vec<PathBuf>,
    build: Build<T>,
    current: RwLock<Arc<T>>,
    seen: Mutex<Seen>,
}

struct Seen {
    /// What the current value was built from.
    used: Vec<Vec<u8>>,
    /// The last failure, and for how many checks in a row it was there.
    failed: Option<(BadFiles, u32)>,
}

fn file(path: &Path) -> Result<Vec<u8>, BadFiles> {
    let shown = path.display();
    let unreadable = |error| BadFiles(format!("reading {shown} failed: {error}"));
    let mut bytes = Vec::new();
    let file = std::fs::File::open(path).map_err(unreadable)?;
    file.take(BYTES_MAX + 1).read_to_end(&mut bytes).map_err(unreadable)?;
    if bytes.len() as u64 > BYTES_MAX {
        return Err(BadFiles(format!(
            "{shown} has more than {BYTES_MAX} bytes, which is the limit"
        )));
    }
    Ok(bytes)
}

/// Reads a file of certificates.
pub fn read(path: &Path) -> Result<Vec<u8>, BadFiles> {
    file(path)
}

impl<T> Reloaded<T> {
    /// Builds it for the first time. `build` gets the bytes of the files in the order of `paths`.
    pub fn open(
        paths: Vec<PathBuf>,
        build: impl Fn(&[Vec<u8>]) -> Result<T, BadFiles> + Send + Sync + 'static,
    ) -> Result<Reloaded<T>, BadFiles> {
        let used = paths.iter().map(|path| file(path)).collect::<Result<Vec<_>, _>>()?;
        let current = build(&used)?;
        Ok(Reloaded {
            paths,
            build: Box::new(build),
            current: RwLock::new(Arc::new(current)),
            seen: Mutex::new(Seen { used, failed: None }),
        })
    }

    pub fn current(&self) -> Arc<T> {
        self.current.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Reads the files and builds a new value if they have changed. If they cannot be used, the current value stays.
    pub fn reload_if_changed(&self) -> ReloadResult {
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        let read = self.paths.iter().map(|path| file(path)).collect::<Result<Vec<_>, _>>();
        let built = match read {
            Ok(read) if read == seen.used => {
                seen.failed = None;
                return ReloadResult::Same;
            }
            Ok(read) => (self.build)(&read).map(|built| (read, built)),
            Err(error) => Err(error),
        };
        match built {
            Ok((read, built)) => {
                *self.current.write().unwrap_or_else(PoisonError::into_inner) = Arc::new(built);
                *seen = Seen {
                    used: read,
                    failed: None,
                };
                ReloadResult::Changed
            }
            Err(error) => {
                let checks = match &seen.failed {
                    Some((known, checks)) if *known == error => checks.saturating_add(1),
                    Some(_) | None => 1,
                };
                seen.failed = Some((error.clone(), checks));
                match checks {
                    2 => ReloadResult::Failed(error),
                    _ => ReloadResult::Same,
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_value_is_built_again_when_a_file_changes_and_a_failure_is_said_once() {
        let directory = tempfile::tempdir().expect("a directory");
        let paths = ["a", "b"].map(|name| directory.path().join(name));
        let write = |number: usize, text: &str| std::fs::write(&paths[number], text).expect("written");
        write(0, "1");
        let same = |read: &[Vec<u8>]| match read[0] == read[1] {
            true => Ok(read[0].clone()),
            false => Err(BadFiles("they differ".to_owned())),
        };
        assert!(Reloaded::open(paths.to_vec(), same).is_err(), "the second is not there");
        write(1, "1");
        let reloaded = Reloaded::open(paths.to_vec(), same).expect("both are there");
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        // Seen between the two writes of a change.
        write(0, "2");
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        assert_eq!(*reloaded.current(), b"1");
        write(1, "2");
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Changed);
        assert_eq!(*reloaded.current(), b"2");
        std::fs::remove_file(&paths[1]).expect("removed");
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        assert!(
            matches!(reloaded.reload_if_changed(), ReloadResult::Failed(BadFiles(why)) if why.contains("/b failed"))
        );
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        write(1, &"2".repeat((BYTES_MAX + 1) as usize));
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        assert!(
            matches!(reloaded.reload_if_changed(), ReloadResult::Failed(BadFiles(why)) if why.contains("the limit"))
        );
        write(1, "2");
        assert_eq!(reloaded.reload_if_changed(), ReloadResult::Same);
        assert_eq!(*reloaded.current(), b"2");
    }
}
