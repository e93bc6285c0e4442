//! `rollcall lake --iceberg`: whichever step a process dies at, a reader of Iceberg finds the rows of a commit, of the newest one once a
//! process has begun again. In most tests the reader is written here, after the specification; in the last ones it is pyiceberg, and DuckDB with
//! its extension.

use super::analytics::{interpreter, output, python, root};
use super::bucket::{self, Bucket, endpoint, was_overtaken};
use super::lake::{
    BATCH, Event, Fate, Fated, Table, cell, die_at_every_step, exported, in_duckdb, in_memory, kill, lake, manifest,
    once, publish, stories, table, tables, take,
};
use super::{parsed, served};
use crate::s3;
use crate::server::{ANYWHERE, Server, wait_until};
use bytes::Bytes;
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use rollcall::lake::manifest::LakeManifest;
use rollcall::lake::storage::{FOLDERS, LakeDirectory, LakeStorage};
use rollcall::lake::{Error, Lake};
use serde_json::Value;
use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, BTreeSet};
use std::io::Read as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;

/// Reads a file of a lake by its path in it; `None` if it is not there.
type ReadFile<'a> = &'a dyn Fn(&str) -> Option<Vec<u8>>;

/// A version of a table, as a reader finds it.
struct TableVersion {
    metadata: Value,
    /// The files with rows, and those with positions: paths in the lake, and how many rows they have.
    data: Vec<(String, u64)>,
    deletes: Vec<(String, u64)>,
}

/// The records of a container file of Avro, as another implementation reads them.
fn records(file: &[u8]) -> Vec<Value> {
    let reader = apache_avro::Reader::new(file).unwrap();
    reader.map(|record| record.unwrap().try_into().unwrap()).collect()
}

fn parquet_rows(file: Vec<u8>) -> Vec<Value> {
    let reader = SerializedFileReader::new(Bytes::from(file)).unwrap();
    let row = |row: parquet::record::Row| {
        row.get_column_iter()
            .map(|(name, field)| (name.clone(), cell(field)))
            .collect()
    };
    reader
        .get_row_iter(None)
        .unwrap()
        .map(|one| row(one.unwrap()))
        .collect()
}

/// The version that the hint of a table names.
fn hinted(read: ReadFile<'_>, folder: &str) -> Option<u64> {
    let hint = read(&format!("{folder}/metadata/version-hint.text"))?;
    Some(String::from_utf8(hint).unwrap().parse().unwrap())
}

impl TableVersion {
    /// Finds the files of a version. Each that is named must be there, as it is described.
    #[track_caller]
    fn find(read: ReadFile<'_>, root: &str, folder: &str, version: u64) -> TableVersion {
        let there = |uri: &Value, bytes: Option<&Value>| {
            let path = uri.as_str().unwrap().strip_prefix(&format!("{root}/")).unwrap();
            let file = read(path).unwrap_or_else(|| panic!("{path} of version {version} is not there"));
            assert!(bytes.is_none_or(|bytes| *bytes == file.len()), "{path}");
            (path.to_owned(), file)
        };
        let path = format!("{folder}/metadata/v{version}.metadata.json");
        let metadata = read(&path).unwrap_or_else(|| panic!("{path} is not there"));
        let metadata: Value = serde_json::from_slice(&metadata).unwrap();
        assert_eq!(metadata["location"], format!("{root}/{folder}"));
        assert_eq!(metadata["last-sequence-number"], version);
        let (mut data, mut deletes) = (Vec::new(), Vec::new());
        let snapshots = metadata["snapshots"].as_array().unwrap();
        assert!(snapshots.len() <= 1);
        for snapshot in snapshots {
            assert_eq!(snapshot["snapshot-id"], metadata["current-snapshot-id"]);
            let (_, list) = there(&snapshot["manifest-list"], None);
            for manifest in records(&list) {
                let (_, file) = there(&manifest["manifest_path"], Some(&manifest["manifest_length"]));
                let entries = records(&file);
                assert_eq!(manifest["added_files_count"], entries.len());
                for entry in entries {
                    let named = &entry["data_file"];
                    assert_eq!(named["content"], manifest["content"]);
                    let (path, _) = there(&named["file_path"], Some(&named["file_size_in_bytes"]));
                    let into = if named["content"] == 0 { &mut data } else { &mut deletes };
                    into.push((path, named["record_count"].as_u64().unwrap()));
                }
            }
        }
        TableVersion {
            metadata,
            data,
            deletes,
        }
    }

    /// The rows that count.
    #[track_caller]
    fn rows(&self, read: ReadFile<'_>, root: &str) -> Table {
        let mut deleted: BTreeMap<String, BTreeSet<u64>> = BTreeMap::new();
        for (path, count) in &self.deletes {
            let positions = parquet_rows(read(path).unwrap());
            assert_eq!(positions.len() as u64, *count);
            let pair = |row: &Value| {
                (
                    row["file_path"].as_str().unwrap().to_owned(),
                    row["pos"].as_u64().unwrap(),
                )
            };
            assert!(positions.iter().map(pair).is_sorted());
            for (path, position) in positions.iter().map(pair) {
                assert!(deleted.entry(path).or_default().insert(position));
            }
        }
        let mut rows = Vec::new();
        for (path, count) in &self.data {
            let deleted = deleted.remove(&format!("{root}/{path}")).unwrap_or_default();
            let all = parquet_rows(read(path).unwrap());
            assert_eq!(all.len() as u64, *count);
            assert!(deleted.last().is_none_or(|last| last < count));
            let counts = |(number, _): &(usize, Value)| !deleted.contains(&(*number as u64));
            rows.extend(all.into_iter().enumerate().filter(counts).map(|(_, row)| row));
        }
        assert!(deleted.is_empty(), "of files that are not named: {deleted:?}");
        table(rows)
    }
}

/// What readers have found so far: the metadata of each version of each table.
struct Readers<'a> {
    read: ReadFile<'a>,
    root: &'a str,
    manifest: &'a dyn Fn() -> Option<LakeManifest>,
    /// The tables that the manifest says.
    tables: &'a dyn Fn() -> [Table; 3],
    seen: RefCell<BTreeMap<(usize, u64), Value>>,
}

impl<'a> Readers<'a> {
    fn new(
        read: ReadFile<'a>,
        root: &'a str,
        manifest: &'a dyn Fn() -> Option<LakeManifest>,
        tables: &'a dyn Fn() -> [Table; 3],
    ) -> Readers<'a> {
        Readers {
            read,
            root,
            manifest,
            tables,
            seen: RefCell::default(),
        }
    }

    /// Every version that a reader may take is whole, and has the rows of its commit. Returns the versions that the hints name.
    #[track_caller]
    fn look(&self) -> Vec<Option<u64>> {
        let mut hints = Vec::new();
        for (number, folder) in FOLDERS.into_iter().enumerate() {
            let hint = hinted(self.read, folder);
            hints.push(hint);
            // Spark takes the next one as soon as it is there.
            let is_next_there = |next: &u64| (self.read)(&format!("{folder}/metadata/v{next}.metadata.json")).is_some();
            let next = hint.map_or(1, |hint| hint + 1);
            for version in hint.into_iter().chain(Some(next).filter(is_next_there)) {
                let found = TableVersion::find(self.read, self.root, folder, version);
                let mut seen = self.seen.borrow_mut();
                if let Some(before) = seen.get(&(number, version)) {
                    assert_eq!(*before, found.metadata, "the same manifest gives the same metadata");
                    continue;
                }
                let commit = (self.manifest)().unwrap().commit;
                // If it is the one before, files were joined since, which changes no rows.
                assert!(version == commit || version + 1 == commit, "{folder}");
                assert_eq!(found.rows(self.read, self.root), (self.tables)()[number], "{folder}");
                seen.insert((number, version), found.metadata);
            }
        }
        hints
    }

    /// As [`Readers::look`], and every table is that of the newest manifest.
    #[track_caller]
    fn are_current(&self) {
        let commit = (self.manifest)().map(|manifest| manifest.commit);
        // That of commit 0 names no files, so there are no tables.
        let commit = commit.filter(|commit| *commit > 0);
        assert_eq!(self.look(), [commit; 3]);
    }
}

/// One life of a process: the next commit, with so many changes more of each partition, and what is joined after it. `begun` is called
/// when it has begun.
fn one_life<S: LakeStorage>(
    storage: S,
    (root, open_changed_max): (&str, u64),
    (stories, more): (&[Vec<Value>], usize),
    now_ms: u64,
    begun: impl FnOnce(),
) -> Result<bool, Error> {
    let mut lake = Lake::open_with_iceberg(storage, 3, root.to_owned())?;
    lake.start()?;
    begun();
    lake.rewrite_open_after(open_changed_max);
    let is_new = take(&mut lake, stories, more)?;
    lake.commit(now_ms)?;
    while lake.join_files(now_ms)? {}
    Ok(is_new)
}

/// The files of metadata that belong to no version that a reader may still take.
fn metadata_files(storage: &mut impl LakeStorage) -> BTreeSet<String> {
    storage.list_metadata().unwrap().into_iter().collect()
}

#[test]
fn whichever_step_a_lake_dies_at_readers_of_iceberg_find_the_rows_of_a_commit() {
    let stories = stories();
    // How many commits each table was behind when a process was dead.
    let mut met: BTreeSet<Vec<u64>> = BTreeSet::new();
    for open_changed_max in [0, 1_000_000] {
        let directory = in_memory();
        let at = directory.path();
        let root = format!("file://{}", at.display());
        let read = |path: &str| std::fs::read(at.join(path)).ok();
        let of_manifest = || tables(at, &manifest(at).unwrap());
        let newest = || manifest(at);
        let readers = Readers::new(&read, &root, &newest, &of_manifest);
        // Every process begins a while after the one before, so that files are removed too.
        let now_ms = Cell::new(0);
        let live = |fate, _| {
            now_ms.set(now_ms.get() + 100_000);
            let inner = LakeDirectory::open(at).unwrap();
            let process = Fated { inner, fate };
            one_life(process, (&root, open_changed_max), (&stories, 1), now_ms.get(), || {
                readers.are_current();
            })
        };
        die_at_every_step(false, live, || {
            let commit = manifest(at).map_or(0, |manifest| manifest.commit);
            let behind = readers.look().into_iter().map(|hint| commit - hint.unwrap_or(0));
            met.insert(behind.collect::<Vec<u64>>());
        });
        readers.are_current();
        let manifest = manifest(at).unwrap();
        assert!(manifest.changes.iter().any(|file| file.level > 0), "files were joined");
        let has_deletes = |metadata: &&Value| {
            let deletes = &metadata["snapshots"][0]["summary"]["total-position-deletes"];
            !matches!(deletes.as_str(), None | Some("0"))
        };
        let deletes = readers.seen.borrow().values().filter(has_deletes).count();
        assert!(
            open_changed_max == 0 || deletes > 10,
            "{deletes} versions with positions"
        );
        // What was replaced ten minutes ago is gone.
        let found = metadata_files(&mut LakeDirectory::open(at).unwrap());
        let versions = found.iter().filter(|path| path.ends_with(".json")).count() / 3;
        assert!((3..30).contains(&versions), "{versions} of {}", manifest.commit);
        assert!(found.len() <= 3 + versions * 11, "{found:?}");
    }
    // Processes died before, between and after the three hints.
    let all = [vec![1, 1, 1], vec![0, 1, 1], vec![0, 0, 1], vec![0, 0, 0]];
    assert_eq!(met, all.into());
}

#[test]
fn whichever_request_a_process_dies_at_readers_of_iceberg_in_the_bucket_find_the_rows_of_a_commit() {
    let (bucket, stories) = (Bucket::in_memory(), stories());
    let root = "s3://presence/some/lake";
    let read = reader_of(&bucket);
    let tables = tables_of(&bucket);
    let manifest = || bucket.manifest();
    let readers = Readers::new(&read, root, &manifest, &tables);
    let now_ms = Cell::new(0);
    let live = |fate, _| {
        now_ms.set(now_ms.get() + 100_000);
        let inner = bucket.open();
        let process = Fated { inner, fate };
        one_life(process, (root, 1_000_000), (&stories, 2), now_ms.get(), || {
            readers.are_current();
        })
    };
    let deaths = die_at_every_step(false, live, || {
        readers.look();
    });
    readers.are_current();
    assert!(deaths > 30, "{deaths} deaths");
}

fn reader_of(bucket: &Bucket) -> impl Fn(&str) -> Option<Vec<u8>> {
    let bucket = bucket.clone();
    move |path: &str| {
        let mut bytes = Vec::new();
        bucket.open().open(path).ok()?.read_to_end(&mut bytes).unwrap();
        Some(bytes)
    }
}

fn tables_of(bucket: &Bucket) -> impl Fn() -> [Table; 3] {
    let bucket = bucket.clone();
    move || {
        let copied = bucket.copied();
        tables(copied.path(), &manifest(copied.path()).unwrap())
    }
}

#[test]
fn of_two_processes_the_one_that_loses_never_takes_readers_of_iceberg_back() {
    let stories: Vec<Vec<Value>> = stories().iter().map(|story| story[..4 * BATCH].to_vec()).collect();
    let stories = Arc::new(stories);
    let root = "s3://presence/some/lake";
    let mut overtaken = 0;
    for steps in 1.. {
        let bucket = Bucket::in_memory();
        let is_current = {
            let bucket = bucket.clone();
            move || {
                let (read, tables) = (reader_of(&bucket), tables_of(&bucket));
                let manifest = || bucket.manifest();
                let readers = Readers::new(&read, root, &manifest, &tables);
                readers.are_current();
            }
        };
        let meet = {
            let (bucket, stories, is_current) = (bucket.clone(), stories.clone(), is_current.clone());
            move || {
                assert!(one_life(bucket.open(), (root, 0), (&stories, BATCH), 2_000, || ()).unwrap());
                is_current();
            }
        };
        let fate = Fate::new(steps, Event::Meeting(Box::new(meet)), false);
        let process = Fated {
            inner: bucket.open(),
            fate: fate.clone(),
        };
        let first = || -> Result<(), Error> {
            let mut lake = Lake::open_with_iceberg(process, 3, root.to_owned())?;
            for _ in 0..2 {
                take(&mut lake, &stories, 3)?;
                lake.commit(1_000)?;
            }
            Ok(())
        };
        let Some(is_overtaken) = was_overtaken(first(), &fate) else {
            break;
        };
        overtaken += usize::from(is_overtaken);
        is_current();
    }
    assert!(overtaken > 30, "{overtaken}");
}

#[test]
fn what_a_reader_of_iceberg_has_begun_to_read_stays_for_ten_minutes() {
    let stories = stories();
    let directory = in_memory();
    let at = directory.path();
    let root = format!("file://{}", at.display());
    let storage = || LakeDirectory::open(at).unwrap();
    let commit = |lake: &mut Lake<LakeDirectory>, now_ms| {
        assert!(take(lake, &stories, 3).unwrap() && lake.commit(now_ms).unwrap());
    };
    let read = |path: &str| std::fs::read(at.join(path)).ok();
    let is_there = |version| {
        for folder in FOLDERS {
            TableVersion::find(&read, &root, folder, version);
        }
    };
    let open = || {
        let mut lake = Lake::open_with_iceberg(storage(), 3, root.clone()).unwrap();
        lake.start().unwrap();
        lake
    };
    let mut lake = open();
    lake.rewrite_open_after(0);
    commit(&mut lake, 1_000);
    drop(lake);
    // As one that was killed between the manifest and the metadata.
    let mut lake = Lake::open(storage(), 3).unwrap();
    lake.rewrite_open_after(0);
    commit(&mut lake, 2_000);
    drop(lake);
    for folder in FOLDERS {
        assert_eq!(hinted(&read, folder), Some(1));
    }
    is_there(1);
    // A reader who has begun just before the next process has ten minutes from then on, and after the next start too.
    let mut lake = open();
    is_there(2);
    commit(&mut lake, 700_000);
    is_there(1);
    drop(lake);
    let mut lake = open();
    commit(&mut lake, 1_299_999);
    for version in 1..=4 {
        is_there(version);
    }
    let before = metadata_files(&mut storage_of(lake, at));
    let mut lake = open();
    commit(&mut lake, 1_300_000);
    let after = metadata_files(&mut storage_of(lake, at));
    let gone: Vec<&String> = before.difference(&after).collect();
    assert!(
        !gone.is_empty()
            && gone
                .iter()
                .all(|path| path.contains("/v1.") || path.contains("/0000000001-")),
        "{gone:?}"
    );
    assert_eq!(hinted(&read, "changes"), Some(5));
    for version in 2..=5 {
        is_there(version);
    }
}

/// Ends a process and opens its directory.
fn storage_of(lake: Lake<LakeDirectory>, at: &Path) -> LakeDirectory {
    drop(lake);
    LakeDirectory::open(at).unwrap()
}

#[test]
fn metadata_after_the_manifest_are_removed_and_a_lake_that_was_moved_names_its_files_again() {
    let stories = stories();
    let directory = in_memory();
    let at = directory.path().join("lake");
    let root = format!("file://{}", at.display());
    let commit = |now_ms| {
        one_life(
            LakeDirectory::open(&at).unwrap(),
            (&root, 1_000_000),
            (&stories, BATCH),
            now_ms,
            || (),
        )
        .unwrap();
    };
    commit(1_000);
    let kept = std::fs::read(at.join("manifest.json")).unwrap();
    let version = |number| at.join(format!("changes/metadata/v{number}.metadata.json"));
    // A commit that only the metadata have: the manifest was put back.
    commit(2_000);
    std::fs::write(at.join("manifest.json"), kept).unwrap();
    assert!(version(2).exists());
    let mut lake = Lake::open_with_iceberg(LakeDirectory::open(&at).unwrap(), 3, root.clone()).unwrap();
    lake.start().unwrap();
    drop(lake);
    assert!(version(1).exists() && !version(2).exists());
    let moved = directory.path().join("moved");
    std::fs::rename(&at, &moved).unwrap();
    let root = format!("file://{}", moved.display());
    let mut lake = Lake::open_with_iceberg(LakeDirectory::open(&moved).unwrap(), 3, root.clone()).unwrap();
    lake.start().unwrap();
    drop(lake);
    let read = |path: &str| std::fs::read(moved.join(path)).ok();
    let manifest = manifest(&moved).unwrap();
    for (folder, expected) in FOLDERS.into_iter().zip(tables(&moved, &manifest)) {
        assert_eq!(hinted(&read, folder), Some(1));
        assert_eq!(TableVersion::find(&read, &root, folder, 1).rows(&read, &root), expected);
    }
}

/// The rows of a table as pyiceberg reads them, as text and sorted.
fn in_pyiceberg(python: &str, to: &str, name: &str, environment: &[(String, String)], filter: &[&str]) -> Table {
    let mut command = Command::new(python);
    command
        .arg(root("tests/clients/iceberg.py"))
        .arg(format!("{to}/{name}"))
        .args(filter);
    table(output(command.envs(environment.iter().cloned())).lines().map(parsed))
}

/// The rows of a table as DuckDB reads them with its extension for Iceberg, as text and sorted.
fn in_extension(python: &str, to: &Path, name: &str) -> Table {
    let place = to.join(name).to_str().unwrap().replace('\'', "''");
    let views = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        views.path(),
        format!("CREATE VIEW {name} AS FROM iceberg_scan('{place}');"),
    )
    .unwrap();
    let mut command = Command::new(python);
    command.arg(root("tests/clients/lake.py")).arg(views.path()).arg(name);
    table(output(&mut command).lines().map(parsed))
}

#[test]
fn pyiceberg_and_duckdb_read_the_fold_of_a_lake_that_is_killed() {
    let (python, extension) = (python(), interpreter("duckdb"));
    let (directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    let to = directory.path().join("o'lake [a] {b,c} *");
    let visible = || manifest(&to).map_or(0, |manifest| manifest.changes.iter().map(|file| file.rows).sum::<u64>());
    // Before, it has no such tables.
    let mut published = publish(&server, 0);
    once(&to, &data);
    assert!(!to.join("changes/metadata").exists());
    for round in 1..6u64 {
        let child = lake(&to, &data, &["--every", "1s", "--iceberg"]).spawn().unwrap();
        published += publish(&server, round);
        if round == 3 {
            wait_until("everything is visible", || visible() == published);
        }
        // Somewhere in its start, its reading or its commit.
        std::thread::sleep(std::time::Duration::from_millis(200 * round));
        kill(child);
    }
    // It keeps them without being asked again.
    published += publish(&server, 6);
    once(&to, &data);
    assert_eq!(visible(), published);
    let place = to.to_str().unwrap();
    let out = directory.path().join("out");
    let [changes, intervals, concurrency] = FOLDERS.map(|name| {
        let found = in_pyiceberg(&python, place, name, &[], &[]);
        assert_eq!(found, in_duckdb(&python, &to, name), "{name}");
        assert_eq!(found, in_extension(&extension, &to, name), "{name}");
        found
    });
    assert!(changes.len() as u64 == published && changes == exported(&data, "--changes", &out));
    assert!(!intervals.is_empty() && intervals == exported(&data, "--intervals", &out));
    let rows_of_users = |rows: &Table| -> Vec<Value> {
        let rows = rows.iter().map(|row| parsed(row));
        rows.filter(|row| row["platform"].is_null()).collect()
    };
    let minutes = rows_of_users(&concurrency);
    let sum = |name: &str| minutes.iter().map(|row| row[name].as_u64().unwrap()).sum::<u64>();
    assert_eq!((sum("online_began"), sum("online_ended")), (80, 60));
    let found = in_pyiceberg(&python, place, "intervals", &[], &["platform is null"]);
    let of_users = rows_of_users(&intervals);
    assert!(!of_users.is_empty() && found == table(of_users));
    let read = |path: &str| std::fs::read(to.join(path)).ok();
    let root = format!("file://{}", to.canonicalize().unwrap().display());
    let version = hinted(&read, "intervals").unwrap();
    assert_eq!(Some(version), manifest(&to).map(|manifest| manifest.commit));
    let intervals = TableVersion::find(&read, &root, "intervals", version);
    assert!(!intervals.deletes.is_empty(), "{:?}", intervals.metadata);
    drop(server);
}

#[test]
fn files_without_ids_of_columns_are_read_by_names() {
    let (python, extension) = (python(), interpreter("duckdb"));
    let (directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    let to = directory.path().join("lake");
    publish(&server, 0);
    once(&to, &data);
    let mut command = Command::new(&python);
    output(command.arg(root("tests/clients/without_ids.py")).arg(&to));
    name_by_content(&to);
    // Rows of those files are deleted, too.
    publish(&server, 1);
    output(lake(&to, &data, &["--once", "--iceberg"]).stderr(Stdio::piped()));
    for name in FOLDERS {
        let found = in_pyiceberg(&python, to.to_str().unwrap(), name, &[], &[]);
        assert!(!found.is_empty());
        assert_eq!(found, in_duckdb(&python, &to, name), "{name}");
        assert_eq!(found, in_extension(&extension, &to, name), "{name}");
    }
    drop(server);
}

/// Gives files that were written again the hash of their bytes in their names, as a lake would have.
fn name_by_content(lake: &Path) {
    let path = lake.join("manifest.json");
    let mut text = std::fs::read_to_string(&path).unwrap();
    for file in manifest(lake).unwrap().lists().into_iter().flat_map(|(_, files)| files) {
        let hash = blake3::hash(&std::fs::read(lake.join(&file.path)).unwrap()).to_hex();
        let (before, _) = file.path.rsplit_once('-').unwrap();
        let named = format!("{before}-{}.parquet", &hash[..16]);
        std::fs::rename(lake.join(&file.path), lake.join(&named)).unwrap();
        text = text.replace(&file.path, &named);
    }
    std::fs::write(path, text).unwrap();
}

#[test]
fn pyiceberg_reads_the_rows_that_duckdb_reads_of_a_bucket() {
    let python = python();
    let storage = s3::Server::start("presence");
    let mut environment = storage.environment();
    environment.push(("AWS_ENDPOINT_URL".to_owned(), endpoint(&storage)));
    let (_directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    let to = "s3://presence/a lake/of changes";
    for round in 0..3 {
        publish(&server, round);
        let mut command = lake(Path::new(to), &data, &["--once", "--iceberg"]);
        output(command.envs(environment.iter().cloned()).stderr(Stdio::piped()));
        for name in FOLDERS {
            let found = in_pyiceberg(&python, to, name, &environment, &[]);
            assert!(!found.is_empty());
            assert_eq!(found, bucket::in_duckdb(&python, to, name, &environment), "{name}");
        }
    }
    drop(server);
}

#[test]
fn a_place_that_readers_of_iceberg_would_not_find_is_refused() {
    let (directory, data) = served();
    drop(Server::start(&data, ANYWHERE, &["--partitions", "1"], &[]));
    let to = directory.path().join("what?");
    let refused = lake(&to, &data, &["--once", "--iceberg"])
        .stderr(Stdio::piped())
        .output()
        .unwrap();
    let error = String::from_utf8(refused.stderr).unwrap();
    assert_eq!(refused.status.code(), Some(2), "{error}");
    assert!(
        error.contains("readers of Iceberg do not find files whose path has '?'"),
        "{error}"
    );
    once(&to, &data);
}
