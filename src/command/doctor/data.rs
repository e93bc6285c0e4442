//! What is wrong with the data directory of a server: with its permissions and its disk, and with the embedded log and the stores in
//! it. What a server would refuse at its start is found by the server's own checks, which only read here.

use super::super::{directories, log_directory};
use super::{Diagnosis, Verdict};
use crate::directory;
use crate::engine::partition::check_stores;
use crate::log::Reader as _;
use crate::log::local::LocalLog;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use std::ffi::CString;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::MetadataExt as _;
use std::path::Path;

/// Below this a log cannot be written for long, and compaction needs room.
const FREE_WRONG: u64 = 256 << 20;
const FREE_WARNING: u64 = 4 << 30;

/// What the data directory is like: who can read it, if that is too many, and how much is free.
pub(super) fn disk(data: &Path) -> Vec<Diagnosis> {
    let shown = data.display();
    let metadata = match std::fs::metadata(data) {
        Ok(metadata) => metadata,
        Err(error) if error.kind() == io::ErrorKind::NotFound => {
            let found = format!("there is no data directory {shown}");
            return vec![Diagnosis::new("disk", Verdict::Skipped, found, "")];
        }
        Err(error) => {
            let what = format!(
                "the data directory {shown} cannot be used: {error}{}",
                directory::advice(&error)
            );
            return vec![Diagnosis::new(
                "disk",
                Verdict::Wrong,
                what,
                "correct --data, or what the error names",
            )];
        }
    };
    if !metadata.is_dir() {
        let what = format!("the data directory {shown} is a file");
        return vec![Diagnosis::new(
            "disk",
            Verdict::Wrong,
            what,
            "name a directory with --data",
        )];
    }
    let mut found = Vec::new();
    if metadata.mode() & 0o007 != 0 {
        let what = format!("other users of this machine can read or change {shown}");
        found.push(Diagnosis::new(
            "disk",
            Verdict::Warning,
            what,
            format!("chmod 700 {shown}"),
        ));
    }
    found.extend(unwritable(data));
    found.push(free_space(data));
    found
}

/// The first place in the data directory that a server of this user could not write to.
fn unwritable(data: &Path) -> Option<Diagnosis> {
    let log = log_directory(data);
    let places = [
        data.to_owned(),
        data.join("lock"),
        log.join("LOCK"),
        log,
        data.join("store"),
    ];
    places.iter().filter(|place| place.exists()).find_map(|place| {
        let error = directories::not_writable(place)?;
        let what = format!("this user cannot write to {}: {error}; a server could not start", place.display());
        let fix = "start server and doctor as the user that owns it, or chown it; a file system that is read-only has to be \
                   mounted again";
        Some(Diagnosis::new("disk", Verdict::Wrong, what, fix))
    })
}

/// Whether a server could start with the log and the stores in the data directory. `kafka` is where a server reads its events that
/// has no embedded log.
pub(super) fn embedded_log(data: &Path, kafka: Option<&str>) -> Option<Diagnosis> {
    if !data.is_dir() {
        return None;
    }
    let judged = match kafka {
        Some(bootstrap) => directories::without_embedded_log(data, bootstrap).map(|()| None),
        None => judge_log(data),
    };
    judged.unwrap_or_else(|error| {
        let fix = "docs/operating.md says what each message means; keep a copy of the directory";
        Some(Diagnosis::new("log", Verdict::Wrong, format!("{error:#}"), fix))
    })
}

fn judge_log(data: &Path) -> anyhow::Result<Option<Diagnosis>> {
    let log = log_directory(data);
    let has_log = directories::exists(&log)?;
    if directories::is_locked(data)? {
        return match has_log {
            true => Ok(Some(beside_its_server(&log)?)),
            false => Ok(None),
        };
    }
    let reader = match has_log {
        true => LocalLog::judge(&log)?,
        false => None,
    };
    let (ends, what) = match &reader {
        Some(reader) => {
            let ends = (0..reader.partitions()).map(|number| Ok(reader.range(Topic::Events, Partition(number))?.end));
            let ends: anyhow::Result<Vec<Offset>> = ends.collect();
            let partitions = reader.partitions();
            let what =
                format!("{partitions} partitions, no file of it is missing or cut short, and no store is ahead of it");
            (ends?, what)
        }
        // A server would create a log with these ends.
        None => (vec![Offset(0); stores(data)?], "is new".to_owned()),
    };
    let Err(lost) = check_stores(&ends, data) else {
        return Ok(has_log.then(|| Diagnosis::well("log", what)));
    };
    // The stores were read after the log. A server that has started meanwhile may have raised both.
    if directories::is_locked(data)? {
        return Ok(None);
    }
    let store = data.join("store");
    let store = store.display();
    let fix = format!(
        "restore the log that belongs to {store}, or move {store} away, which accepts the loss of these events"
    );
    if has_log {
        return Ok(Some(Diagnosis::new("log", Verdict::Wrong, lost.to_string(), fix)));
    }
    // The stores of a server on Kafka have no log beside them.
    let what = format!(
        "there are stores in {store}, but no log in {}: a server without --kafka refuses to start",
        log.display()
    );
    let fix = format!("give --kafka, if the server reads from Kafka; else {fix}");
    Ok(Some(Diagnosis::new("log", Verdict::Warning, what, fix)))
}

/// What can be said of a log beside the server that uses it. The server itself has compared it with its stores.
fn beside_its_server(log: &Path) -> anyhow::Result<Diagnosis> {
    let partitions = LocalLog::follow(log)?.partitions();
    Ok(Diagnosis::well(
        "log",
        format!(
            "{partitions} partitions, and no file of it is missing or cut short; not compared with the stores, because a server uses \
             the directory"
        ),
    ))
}

/// Returns the number after that of the last partition that has a store.
fn stores(data: &Path) -> anyhow::Result<usize> {
    let store = data.join("store");
    if !directories::exists(&store)? {
        return Ok(0);
    }
    let entries = std::fs::read_dir(&store).map_err(|error| directories::unreadable(&store, &error))?;
    let partition = |entry: io::Result<std::fs::DirEntry>| entry.ok()?.file_name().to_str()?.parse::<u16>().ok();
    let last = entries.filter_map(partition).max();
    Ok(last.map_or(0, |last| usize::from(last) + 1))
}

fn free_space(data: &Path) -> Diagnosis {
    let shown = data.display();
    let Some(free) = free_bytes(data) else {
        let found = format!("how much is free below {shown} cannot be read");
        return Diagnosis::new("disk", Verdict::Skipped, found, "");
    };
    let found = format!("{} MiB are free below {shown}", free >> 20);
    let fix = "free some space, or lower --retention-mib";
    match free {
        0..FREE_WRONG => Diagnosis::new("disk", Verdict::Wrong, found, fix),
        FREE_WRONG..FREE_WARNING => Diagnosis::new("disk", Verdict::Warning, found, fix),
        FREE_WARNING.. => Diagnosis::well("disk", found),
    }
}

#[allow(clippy::unnecessary_cast, reason = "the width of the fields is the platform's")]
#[expect(unsafe_code, reason = "the standard library does not say how full a disk is")]
fn free_bytes(path: &Path) -> Option<u64> {
    let path = CString::new(path.as_os_str().as_bytes()).ok()?;
    let mut stat = std::mem::MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a zero byte, and the structure is large enough; it is read only if the call succeeded.
    let stat = unsafe {
        if libc::statvfs(path.as_ptr(), stat.as_mut_ptr()) != 0 {
            return None;
        }
        stat.assume_init()
    };
    Some(stat.f_bavail as u64 * stat.f_frsize as u64)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::clock::SystemClock;
    use crate::log::local::Settings;
    use std::sync::Arc;

    #[test]
    fn a_directory_that_others_can_read_is_named_beside_what_is_free() {
        use std::os::unix::fs::PermissionsExt as _;
        let directory = tempfile::tempdir().expect("a directory");
        let of_mode = |mode| {
            let permissions = std::fs::Permissions::from_mode(mode);
            std::fs::set_permissions(directory.path(), permissions).expect("it is ours");
            disk(directory.path())
        };
        let found = of_mode(0o755);
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].fix.starts_with("chmod 700"), "{found:?}");
        assert!(found[1].found.contains("MiB are free"), "{found:?}");
        let found = of_mode(0o700);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].found.contains("MiB are free"), "{found:?}");
    }

    #[test]
    fn a_log_that_is_cut_or_cannot_be_written_is_wrong() {
        let data = tempfile::tempdir().expect("a directory");
        assert!(embedded_log(data.path(), None).is_none());
        let directory = log_directory(data.path());
        drop(LocalLog::open(&directory, Settings::default(), Arc::new(SystemClock::new())).expect("made"));
        let verdict = || embedded_log(data.path(), None).expect("a log").verdict;
        assert_eq!(verdict(), Verdict::Well);
        assert_eq!(unwritable(data.path()), None);
        let current = std::fs::read_to_string(directory.join("CURRENT")).expect("text");
        let manifest = directory.join(current.trim());
        let bytes = std::fs::read(&manifest).expect("bytes");
        std::fs::write(&manifest, &bytes[..bytes.len() / 2]).expect("written");
        assert_eq!(verdict(), Verdict::Wrong);
    }

    #[test]
    fn what_this_user_cannot_write_to_is_named() {
        use std::os::unix::fs::PermissionsExt as _;
        let data = tempfile::tempdir().expect("a directory");
        let store = data.path().join("store");
        std::fs::create_dir(&store).expect("made");
        std::fs::set_permissions(&store, std::fs::Permissions::from_mode(0o500)).expect("it is ours");
        // Root can write everywhere.
        let can_write = std::fs::write(store.join("file"), "").is_ok();
        let found = unwritable(data.path());
        assert_eq!(found.is_none(), can_write, "{found:?}");
        assert!(found.is_none_or(|one| one.verdict == Verdict::Wrong && one.found.contains("store")));
    }
}
