//! The directories that a command writes to: separate from each other, and not readable by other users of the machine.

use crate::directory;
use crate::lake::storage::is_lake;
use anyhow::{anyhow, bail};
use std::ffi::CString;
use std::fs::{File, Metadata, TryLockError};
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Component, Path, PathBuf};
use url::Url;

/// Makes files that this process creates from now on accessible to its user only.
#[expect(unsafe_code, reason = "the standard library cannot set the mask")]
pub fn keep_to_ourselves() {
    // SAFETY: `umask` takes any number, cannot fail and touches no memory of ours. Called before other threads create files.
    unsafe { libc::umask(0o077) };
}

/// Warns if a file or directory exists that other users of the machine can read or change.
pub fn warn_if_others_read(what: &str, path: &Path) {
    let others = |metadata: &Metadata| metadata.mode() & 0o007;
    if let Ok(metadata) = std::fs::metadata(path)
        && others(&metadata) != 0
    {
        let mode = format!("{:o}", metadata.mode() & 0o777);
        let right = if metadata.is_dir() { "700" } else { "600" };
        tracing::warn!(
            path = %path.display(), mode,
            "other users of this machine can read or change {what}; restrict it with chmod {right}"
        );
    }
}

/// Returns whether there is something at a path. An error, such as a missing permission, does not say that there is nothing.
pub fn exists(path: &Path) -> anyhow::Result<bool> {
    path.try_exists().map_err(|error| unreadable(path, &error))
}

/// Returns the error for a file or directory that could not be looked at: with its path, and what to do.
pub fn unreadable(path: &Path, error: &io::Error) -> anyhow::Error {
    anyhow!("cannot read {}: {error}{}", path.display(), directory::advice(error))
}

/// Locks a data directory for this process. The lock ends with the file. Returns `None` if another process has it.
pub fn lock_data(data: &Path) -> anyhow::Result<Option<File>> {
    let path = data.join("lock");
    let verb = if exists(&path)? { "open" } else { "create" };
    let file = File::options().create(true).truncate(false).write(true).open(&path);
    let file = file.map_err(|error| {
        let advice = directory::advice(&error);
        anyhow!("cannot {verb} {}: {error}{advice}", path.display())
    })?;
    Ok(file.try_lock().is_ok().then_some(file))
}

/// Returns whether a process has locked a data directory. Creates no file.
pub fn is_locked(data: &Path) -> anyhow::Result<bool> {
    let path = data.join("lock");
    if !exists(&path)? {
        return Ok(false);
    }
    let file = File::open(&path).map_err(|error| unreadable(&path, &error))?;
    // The lock that this takes ends at once, with the file.
    match file.try_lock_shared() {
        Ok(()) => Ok(false),
        Err(TryLockError::WouldBlock) => Ok(true),
        Err(TryLockError::Error(error)) => Err(unreadable(&path, &error)),
    }
}

/// Fails if the checkpoint directory is within the data directory or contains it: a loss of one would take the other with
/// it. Symbolic links are followed. A URL of an object store is accepted.
pub fn apart(data: &Path, checkpoints: &str) -> anyhow::Result<()> {
    let Some(directory) = Url::parse(checkpoints).ok().filter(|url| url.scheme() == "file") else {
        return Ok(());
    };
    let Ok(directory) = directory.to_file_path() else {
        return Ok(());
    };
    let (data, directory) = (resolved(data), resolved(&directory));
    if directory.starts_with(&data) || data.starts_with(&directory) {
        bail!(
            "--checkpoints names {}, which is within the data directory {} or contains it; checkpoints must survive the loss \
             of the data directory, so give them a separate directory",
            directory.display(),
            data.display()
        );
    }
    Ok(())
}

/// Fails if checkpoints are to go to a directory that cannot be created or written to. A URL of an object store is accepted,
/// since a bucket may be away for a moment.
pub fn writable(checkpoints: &str) -> anyhow::Result<()> {
    let Some(url) = Url::parse(checkpoints).ok().filter(|url| url.scheme() == "file") else {
        return Ok(());
    };
    let Ok(directory) = url.to_file_path() else {
        return Ok(());
    };
    let probe = directory.join(format!(".rollcall-{}", std::process::id()));
    let written = std::fs::create_dir_all(&directory).and_then(|()| File::create(&probe));
    if let Err(error) = written {
        bail!(
            "--checkpoints names {}, where this user cannot write: {error}; name a directory that can be created and written to",
            directory.display()
        );
    }
    // An empty file that stays is no checkpoint and does no harm.
    let _ = std::fs::remove_file(&probe);
    Ok(())
}

/// Fails if a directory that a flag names for files of another kind is the data directory of a server, or within it. Symbolic links are
/// followed.
pub fn outside_of_servers(flag: &str, directory: &Path) -> anyhow::Result<()> {
    let directory = resolved(directory);
    refuse_data_of_servers(flag, &directory, directory.ancestors())
}

fn refuse_data_of_servers<'a>(
    flag: &str,
    directory: &Path,
    mut around: impl Iterator<Item = &'a Path>,
) -> anyhow::Result<()> {
    if let Some(data) = around.find(|one| is_of_server(one)) {
        bail!(
            "{flag} names {}, but {} is the data directory of a server, which needs it for itself; name a directory outside of it",
            directory.display(),
            data.display()
        );
    }
    Ok(())
}

/// Fails if the directory of a new log that a flag names is for something else: within the data directory of a server, with the stores
/// of another log, or a lake or within one. Symbolic links are followed.
pub fn fit_for_a_new_log(flag: &str, directory: &Path) -> anyhow::Result<()> {
    let directory = resolved(directory);
    // Whether the directory itself has a log already, the one who opens that finds out.
    refuse_data_of_servers(flag, &directory, directory.ancestors().skip(1))?;
    let store = directory.join("store");
    if exists(&store)? && !exists(&super::log_directory(&directory))? {
        bail!(
            "{flag} names {}, which has the stores of another log ({}); name a directory of its own for the new log",
            directory.display(),
            store.display()
        );
    }
    if let Some(lake) = directory.ancestors().find(|one| is_lake(one)) {
        bail!(
            "{flag} names {}, but {} is a lake (rollcall lake --to); name a directory outside of it",
            directory.display(),
            lake.display()
        );
    }
    Ok(())
}

/// Fails if a directory cannot be created or written to by this user. Creates nothing.
pub fn check_can_create(directory: &Path) -> anyhow::Result<()> {
    let directory = resolved(directory);
    for place in directory.ancestors() {
        if !exists(place)? {
            continue;
        }
        if !place.is_dir() {
            bail!("{} is not a directory", place.display());
        }
        return match not_writable(place) {
            None => Ok(()),
            Some(error) => bail!(
                "cannot write to {}: {error}{}",
                place.display(),
                directory::advice(&error)
            ),
        };
    }
    Ok(())
}

/// Returns the error that writing to a file, or creating one in a directory, would give this user.
#[expect(
    unsafe_code,
    reason = "the standard library does not say what a user may do without doing it"
)]
pub fn not_writable(path: &Path) -> Option<io::Error> {
    let right = if path.is_dir() {
        libc::W_OK | libc::X_OK
    } else {
        libc::W_OK
    };
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    // SAFETY: the path ends with a zero byte, and nothing is written.
    let refused = unsafe { libc::access(path.as_ptr(), right) != 0 };
    refused.then(io::Error::last_os_error)
}

/// Returns whether a path is a directory or within it. Symbolic links are followed.
pub fn is_within(path: &Path, directory: &Path) -> bool {
    resolved(path).starts_with(resolved(directory))
}

/// Returns whether two paths name the same directory. Symbolic links are followed.
pub fn are_same(one: &Path, other: &Path) -> bool {
    resolved(one) == resolved(other)
}

/// Fails if a data directory has an embedded log, for a server that uses Kafka at `bootstrap`. It would not read that log, and rebuild
/// the stores, which are of that log, from Kafka.
pub fn without_embedded_log(data: &Path, bootstrap: &str) -> anyhow::Result<()> {
    let log = super::log_directory(data);
    if exists(&log)? && log.is_dir() {
        bail!(
            "--data names {data}, which has an embedded log ({log}) and the stores of that log; a server with --kafka reads its events \
             from Kafka, so give it another --data. To move the events of that log to Kafka: rollcall reshard --data {data} --kafka \
             {bootstrap} --to-prefix PREFIX --partitions N (docs/resharding.md)",
            data = data.display(),
            log = log.display(),
        );
    }
    Ok(())
}

/// Whether a server has used a directory as its data directory.
fn is_of_server(directory: &Path) -> bool {
    let has = |name: &str| directory.join(name).is_dir();
    directory.join("lock").is_file() && (has("log") || has("store"))
}

/// Returns an absolute path. Symbolic links are resolved in the part that exists.
fn resolved(path: &Path) -> PathBuf {
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let mut resolved = PathBuf::new();
    for component in absolute.components() {
        match component {
            Component::ParentDir => drop(resolved.pop()),
            Component::CurDir => {}
            other => resolved.push(other),
        }
        if let Ok(canonical) = resolved.canonicalize() {
            resolved = canonical;
        }
    }
    resolved
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs::create_dir_all;
    use std::os::unix::fs::symlink;

    #[test]
    fn files_of_another_kind_are_outside_of_the_data_directories_of_servers() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        for name in ["local/log", "kafka/store/0", "other/log", "lake"] {
            create_dir_all(at(name)).unwrap();
        }
        for name in ["local/lock", "kafka/lock", "lake/lock"] {
            std::fs::write(at(name), "").unwrap();
        }
        symlink(at("local/log"), at("link")).unwrap();
        for name in [
            "local",
            "local/log",
            "local/new/lake",
            "kafka",
            "kafka/store/0",
            "link",
            "other/../local/x",
        ] {
            let error = outside_of_servers("--to", &at(name)).unwrap_err().to_string();
            assert!(
                error.contains("--to") && error.contains("is the data directory of a server"),
                "{error}"
            );
        }
        for name in ["", "other", "other/log", "lake", "lake/new", "local-lake"] {
            outside_of_servers("--to", &at(name)).unwrap();
        }
    }

    #[test]
    fn checkpoints_are_neither_within_the_data_directory_nor_around_it() {
        let home = tempfile::tempdir().unwrap();
        let at = |name: &str| home.path().join(name);
        create_dir_all(at("data/store")).unwrap();
        create_dir_all(at("elsewhere")).unwrap();
        symlink(at("data"), at("link")).unwrap();
        symlink(at("data/store"), at("deep")).unwrap();
        let url = |name: &str| format!("file://{}", at(name).display());
        let refused = [
            "data",
            "data/",
            "data/checkpoints",
            "data/checkpoints-under-way",
            "data/not/there/yet",
            "link",
            "link/checkpoints",
            "deep/x",
            "elsewhere/../data/x",
            "elsewhere/%2e%2e/data/x",
            "",
            "..",
        ];
        for name in refused {
            assert!(apart(&at("data"), &url(name)).is_err(), "{name}");
            assert!(apart(&at("link"), &url(name)).is_err(), "{name}");
        }
        for name in ["elsewhere", "data2", "data-checkpoints", "elsewhere/data"] {
            assert!(apart(&at("data"), &url(name)).is_ok(), "{name}");
        }
        assert!(apart(&at("data"), "s3://bucket/data").is_ok());
    }
}
