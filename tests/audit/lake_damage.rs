//! `rollcall lake` where its files are not as it left them: it says so, and removes and writes nothing.

use super::analytics::output;
use super::bucket::Bucket;
use super::lake::{
    Event, Fate, Fated, in_memory, is_the_fold, lake, log_of, manifest, moved, once, one_life, stories, take,
};
use super::served;
use crate::server::{ANYWHERE, Server, rollcall};
use rollcall::lake::manifest::LakeFile;
use rollcall::lake::storage::{LakeDirectory, LakeStorage as _};
use rollcall::lake::{Error, Lake};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Stdio;

/// Every file of a directory with its bytes.
fn files(directory: &Path) -> BTreeMap<PathBuf, Vec<u8>> {
    let mut found = BTreeMap::new();
    for entry in std::fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => found.extend(files(&path)),
            false => drop(found.insert(path.clone(), std::fs::read(&path).unwrap())),
        }
    }
    found
}

/// Runs the process, which has to refuse the lake, and compares the files with those before.
#[track_caller]
fn refused(to: &Path, data: &Path, more: &[&str]) -> String {
    let before = files(to);
    let mut command = lake(to, data, &["--once"]);
    let output = command.args(more).stderr(Stdio::piped()).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{error}");
    assert!(files(to) == before, "the files are as they were: {error}");
    error
}

/// Inverts one bit of a byte.
fn flip(path: &Path, place: usize) {
    let mut bytes = std::fs::read(path).unwrap();
    bytes[place] ^= 1;
    std::fs::write(path, bytes).unwrap();
}

#[test]
fn a_lake_notices_every_flipped_bit_of_a_file_that_it_reads_at_its_start() {
    let stories = stories();
    let directory = in_memory();
    let at = directory.path();
    for _ in 0..4 {
        assert!(one_life(LakeDirectory::open(at).unwrap(), &stories, 1_000_000, 1_000).unwrap());
    }
    let whole = manifest(at).unwrap();
    let read: Vec<LakeFile> = whole
        .intervals
        .open
        .iter()
        .chain(whole.ended_since())
        .cloned()
        .collect();
    assert!(
        whole.intervals.open.len() > 1 && whole.ended_since().count() > 0,
        "{whole:?}"
    );
    for LakeFile { path, bytes, .. } in read {
        for place in (0..bytes as usize).step_by(11) {
            flip(&at.join(&path), place);
            let error = Lake::open(LakeDirectory::open(at).unwrap(), 3).err().expect(&path);
            assert!(
                matches!(&error, Error::Altered { path: named, .. } if *named == path),
                "{error}"
            );
            flip(&at.join(&path), place);
        }
    }
    assert!(one_life(LakeDirectory::open(at).unwrap(), &stories, 1_000_000, 1_000).unwrap());
    is_the_fold(at, &stories);
}

#[test]
fn a_lake_joins_no_file_whose_bytes_have_changed() {
    let stories = stories();
    let directory = in_memory();
    let at = directory.path();
    let mut lake = Lake::open(LakeDirectory::open(at).unwrap(), 3).unwrap();
    let commit = |lake: &mut Lake<LakeDirectory>| {
        assert!(take(lake, &stories, 2).unwrap() && lake.commit(1_000).unwrap());
    };
    for _ in 0..7 {
        commit(&mut lake);
        assert!(!lake.join_files(1_000).unwrap());
    }
    commit(&mut lake);
    let LakeFile { path, bytes, .. } = lake.committed().changes[3].clone();
    for place in [bytes as usize / 3, bytes as usize / 2] {
        flip(&at.join(&path), place);
    }
    let before = manifest(at);
    let error = lake.join_files(1_000).unwrap_err().to_string();
    for part in [
        &*path,
        "is damaged: its bytes are not those that were written",
        "from a backup",
    ] {
        assert!(error.contains(part), "{error}");
    }
    assert_eq!(manifest(at), before);
}

#[test]
fn a_lake_process_that_reads_a_damaged_file_ends_and_names_it() {
    let changes = &stories()[1];
    let directory = tempfile::tempdir().unwrap();
    let to = directory.path().join("lake");
    let log = log_of(directory.path(), &changes[..20]);
    once(&to, directory.path());
    let open = manifest(&to).unwrap().intervals.open[0].path.clone();
    flip(&to.join(&open), 100);
    changes[20..30].iter().for_each(|one| log.commit(&moved(one)));
    let error = refused(&to, directory.path(), &[]);
    assert!(
        error.contains(&format!("{open} is damaged: its bytes are not those that were written")),
        "{error}"
    );
    flip(&to.join(&open), 100);
    output(lake(&to, directory.path(), &["--once"]).stderr(Stdio::piped()));
    assert_eq!(
        manifest(&to).unwrap().changes.iter().map(|file| file.rows).sum::<u64>(),
        30
    );
}

#[test]
fn a_lake_without_its_manifest_stays_as_it_is() {
    let changes = &stories()[1];
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(log_of(other.path(), &[]));
    drop(log_of(directory.path(), &changes[..20]));
    // One commit, as the first one that is interrupted would leave it; the same with metadata of Iceberg; and these alone.
    for (name, more, files_only) in [
        ("one", &[][..], true),
        ("iceberg", &["--iceberg"][..], true),
        ("metadata", &["--iceberg"][..], false),
    ] {
        let to = directory.path().join(name);
        output(
            lake(&to, directory.path(), &["--once"])
                .args(more)
                .stderr(Stdio::piped()),
        );
        assert_eq!(manifest(&to).unwrap().commit, 1);
        std::fs::remove_file(to.join("manifest.json")).unwrap();
        if !files_only {
            let is_data = |path: &PathBuf| path.extension().is_some_and(|one| one == "parquet");
            for path in files(&to).into_keys().filter(|path| is_data(path)) {
                std::fs::remove_file(path).unwrap();
            }
        }
        for data in [other.path(), directory.path()] {
            let error = refused(&to, data, &[]);
            for part in [
                "there is no manifest.json that could name",
                "nothing was changed",
                "put manifest.json back",
            ] {
                assert!(error.contains(part), "{error}");
            }
        }
    }
}

#[test]
fn a_lake_in_a_bucket_without_its_manifest_stays_as_it_is() {
    let stories = stories();
    let bucket = Bucket::in_memory();
    assert!(one_life(bucket.open(), &stories, 0, 1_000).unwrap());
    bucket.open().remove("manifest.json").unwrap();
    let before = bucket.open().list().unwrap();
    assert!(!before.is_empty());
    let error = Lake::open(bucket.open(), 3).err().unwrap();
    assert!(matches!(error, Error::NoManifest { .. }), "{error}");
    assert_eq!(bucket.open().list().unwrap(), before);
}

#[test]
fn a_lake_whose_manifest_was_put_back_keeps_later_files_until_the_log_is_known_to_have_their_changes() {
    let changes = &stories()[1];
    let directory = tempfile::tempdir().unwrap();
    let other = tempfile::tempdir().unwrap();
    drop(log_of(other.path(), &[]));
    let log = log_of(directory.path(), &changes[..20]);
    for more in [&[][..], &["--iceberg"][..]] {
        let to = directory.path().join(format!("lake{}", more.len()));
        let rows = || manifest(&to).unwrap().changes.iter().map(|file| file.rows).sum::<u64>();
        output(
            lake(&to, directory.path(), &["--once"])
                .args(more)
                .stderr(Stdio::piped()),
        );
        let kept = std::fs::read(to.join("manifest.json")).unwrap();
        let had = rows();
        changes[had as usize..][..10]
            .iter()
            .for_each(|one| log.commit(&moved(one)));
        once(&to, directory.path());
        std::fs::write(to.join("manifest.json"), kept).unwrap();
        assert!(refused(&to, other.path(), more).contains("this is another log"));
        assert_eq!(rows(), had);
        once(&to, directory.path());
        assert_eq!(rows(), had + 10);
    }
}

#[test]
fn a_lake_that_has_begun_and_has_no_commit_may_become_one_of_another_log() {
    let stories = stories();
    let directory = in_memory();
    let at = directory.path();
    // It dies when a data file was published.
    let fate = Fate::new(30, Event::Death { is_after: true }, true);
    let inner = LakeDirectory::open(at).unwrap();
    one_life(Fated { inner, fate }, &stories, 0, 1_000).unwrap_err();
    assert_eq!(manifest(at).unwrap().commit, 0);
    let left = LakeDirectory::open(at).unwrap().list().unwrap();
    assert!(left.iter().any(|(path, _)| path.ends_with(".parquet")), "{left:?}");
    let mut lake = Lake::open(LakeDirectory::open(at).unwrap(), 2).unwrap();
    assert_eq!(lake.start().unwrap().len(), left.len());
    assert!(take(&mut lake, &stories[..2], 3).unwrap() && lake.commit(1_000).unwrap());
    is_the_fold(at, &stories[..2]);
    assert_eq!(manifest(at).unwrap().commit, 1);
}

#[test]
fn a_lake_is_not_made_in_a_place_that_is_not_meant() {
    let (directory, data) = served();
    drop(Server::start(&data, ANYWHERE, &[], &[]));
    let to_data = |to: &Path| refused(to, &data, &[]);
    for to in [data.clone(), data.join("log")] {
        let error = to_data(&to);
        assert!(error.contains("is the data directory of a server"), "{error}");
    }
    // Nothing was made in the working directory.
    let work = directory.path().join("work");
    std::fs::create_dir(&work).unwrap();
    let out = ["audit", "export", "--changes", "--out"];
    for (arguments, flag) in [
        (&["lake", "--once", "--to"][..], "--to"),
        (&out[..], "--out"),
        (&["log", "changes", "--data"][..], "--data"),
    ] {
        let mut command = rollcall(arguments);
        let output = command.arg("").current_dir(&work).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(
            error.starts_with(&format!("error: {flag}: the value is empty; {flag} is: ")),
            "{error}"
        );
    }
    let mut command = rollcall(&["lake", "--once"]);
    let output = command.env("ROLLCALL_LAKE_TO", "").current_dir(&work).output().unwrap();
    let error = String::from_utf8(output.stderr).unwrap();
    assert!(
        error.starts_with("error: ROLLCALL_LAKE_TO (--to): the value is empty; "),
        "{error}"
    );
    assert!(files(&work).is_empty() && std::fs::read_dir(&work).unwrap().count() == 0);
    let output = audit_export(&data.join("log"), &data);
    assert!(
        output.contains("--out names") && output.contains("is the data directory of a server"),
        "{output}"
    );
}

/// Exports changes, which fails, and returns what it says.
fn audit_export(out: &Path, data: &Path) -> String {
    let mut command = rollcall(&["audit", "export", "--changes", "--out"]);
    let output = command.arg(out).arg("--data").arg(data).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}
