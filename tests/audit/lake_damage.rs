//! `rollcall lake` where its files are not as it left them: it says so, and removes and writes nothing.

use super::analytics::output;
use super::lake::{in_memory, is_the_fold, lake, log_of, manifest, moved, once, one_life, stories, take};
use rollcall::lake::manifest::LakeFile;
use rollcall::lake::storage::LakeDirectory;
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
    let (mut lake, _) = Lake::open(LakeDirectory::open(at).unwrap(), 3).unwrap();
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
