//! A damaged store is rebuilt from the log, whichever file is damaged; a store that only cannot be read now is kept.

use crate::time::{House, ONLY};
use crate::*;
use rollcall::engine::partition::check_stores;
use std::fs;
use std::io::Write;

const USERS: u64 = 40;

/// With users whose rows are in table files, and in memory no more.
fn filled() -> House {
    let house = House::new();
    for user in 0..USERS {
        house.connect(&format!("u{user}"), 1).unwrap();
    }
    house.online(USERS);
    house
}

fn store(house: &House) -> PathBuf {
    house.dir.path().join("store").join(ONLY.to_string())
}

fn of_store(house: &House, begins: &str, ends: &str) -> Vec<PathBuf> {
    // It may be set aside at this moment.
    let Ok(entries) = fs::read_dir(store(house)) else {
        return Vec::new();
    };
    let entries = entries.map(|entry| entry.unwrap().path());
    let named = |path: &PathBuf| {
        let name = path.file_name().unwrap().to_str().unwrap();
        name.starts_with(begins) && name.ends_with(ends)
    };
    entries.filter(named).collect()
}

/// Overwrites a file with zeros. A file that was deleted meanwhile is not created.
fn overwrite(file: &PathBuf) {
    let Ok(mut open) = fs::OpenOptions::new().write(true).open(file) else {
        return;
    };
    let size = open.metadata().unwrap().len() as usize;
    open.write_all(&vec![0; size]).unwrap();
}

#[test]
fn whatever_file_of_a_store_is_damaged_it_is_made_again_from_the_log() {
    let mut house = filled();
    for (begins, ends) in [
        ("MANIFEST-", ""),
        ("CURRENT", ""),
        ("", ".sst"),
        ("IDENTITY", ""),
        ("OPTIONS-", ""),
    ] {
        for harm in ["removed", "emptied", "overwritten", "a directory"] {
            house.stop();
            let files = of_store(&house, begins, ends);
            assert!(!files.is_empty(), "{begins}{ends}");
            for file in files {
                match harm {
                    "removed" => fs::remove_file(&file).unwrap(),
                    "emptied" => fs::write(&file, "").unwrap(),
                    "overwritten" => fs::write(&file, "something else altogether").unwrap(),
                    _ => {
                        fs::remove_file(&file).unwrap();
                        fs::create_dir(&file).unwrap();
                    }
                }
            }
            house.start(None);
            house.online(USERS);
        }
    }
    house.stop();
    fs::remove_dir_all(store(&house)).unwrap();
    fs::write(store(&house), "no directory").unwrap();
    house.start(None);
    house.online(USERS);
    house.stop();
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir(to).unwrap();
    for entry in fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

#[test]
fn a_log_that_is_older_than_its_store_is_refused_and_the_store_is_kept() {
    let mut house = filled();
    house.stop();
    let (log, data) = (house.dir.path().join("log"), house.dir.path().to_owned());
    let older = data.join("older");
    copy(&log, &older);
    house.start(None);
    for user in 0..5 {
        house.connect(&format!("later{user}"), 1).unwrap();
    }
    house.online(USERS + 5);
    house.stop();
    let newer = data.join("newer");
    fs::rename(&log, &newer).unwrap();
    fs::rename(&older, &log).unwrap();
    let marker = store(&house).join("marker");
    fs::write(&marker, "the same directory").unwrap();
    let said = |error: &str| {
        assert!(
            error.contains("partition 0 of events ends at 40, but was folded up to 45 already"),
            "{error}"
        );
        assert!(error.contains("cannot continue without these events"), "{error}");
        assert!(
            error.contains("Restore the log") && error.contains("move the directory of the stores away"),
            "{error}"
        );
    };
    house.start_without_waiting(None);
    said(&check_stores(&ends(house.log()), &data).unwrap_err().to_string());
    let stats = house.until("it says so", |stats| stats.state == "failed");
    said(&stats.error.unwrap());
    house.stop();
    assert!(marker.exists(), "it was not rebuilt");
    // Both ways out: the log that belongs to the store, or the loss.
    fs::rename(&log, &older).unwrap();
    copy(&newer, &log);
    house.start(None);
    check_stores(&ends(house.log()), &data).unwrap();
    house.online(USERS + 5);
    house.stop();
    fs::remove_dir_all(&log).unwrap();
    fs::rename(&older, &log).unwrap();
    fs::rename(data.join("store"), data.join("store away")).unwrap();
    house.start(None);
    check_stores(&ends(house.log()), &data).unwrap();
    house.online(USERS);
    house.stop();
}

fn ends(log: &LocalLog) -> Vec<Offset> {
    let end = |number| log.range(Topic::Events, Partition(number)).unwrap().end;
    (0..log.partitions()).map(end).collect()
}

#[test]
fn a_store_that_another_process_has_open_is_kept() {
    let mut house = filled();
    house.stop();
    let db = rocksdb::DB::open_default(store(&house)).unwrap();
    let marker = store(&house).join("marker");
    fs::write(&marker, "the same directory").unwrap();
    house.start_without_waiting(None);
    let stats = house.until("it says so", |stats| stats.state == "failed");
    assert!(stats.error.unwrap().contains("cannot be used"));
    drop(db);
    // It tries again after a while.
    house.clock.advance_ms(2_000);
    house.online(USERS);
    assert!(marker.exists(), "it was not made again");
    house.stop();
}

#[test]
fn a_store_that_is_damaged_while_it_is_open_is_made_again() {
    let mut house = filled();
    house.clock.advance_ms(120_000);
    house.online(0);
    // Again until it is noticed: a compaction may have replaced the tables between two looks at the directory.
    let mut version = 2;
    house.until("it has noticed", |stats| {
        of_store(&house, "", ".sst").iter().for_each(overwrite);
        for user in 0..USERS {
            house.connect(&format!("u{user}"), version).unwrap();
        }
        version += 1;
        stats.state == "failed"
    });
    house.clock.advance_ms(2_000);
    house.online(USERS);
    assert!(
        store(&house).with_extension("old").exists(),
        "what was damaged is kept to be looked at"
    );
    house.stop();
}
