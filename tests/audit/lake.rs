//! `rollcall lake`: its tables are the fold, wherever the process dies, and others read them.

use super::analytics::{output, python, root};
use super::export::CutLog;
use super::{Story, change, parsed, served};
use crate::server::{ANYWHERE, Server, rollcall, wait_until};
use parquet::file::reader::{FileReader as _, SerializedFileReader};
use parquet::record::Field;
use rollcall::audit::history::History;
use rollcall::lake::manifest::{LakeFile, LakeManifest};
use rollcall::lake::storage::{LakeDirectory, LakeStorage, ManifestWrite, read_manifest};
use rollcall::lake::{Error, Lake};
use rollcall::presence::change::Change;
use rollcall::presence::{Offset, Partition};
use serde_json::{Value, json};
use std::collections::{BTreeMap, BTreeSet};
use std::fs::File;
use std::io::{self, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

/// A lake to whose process something happens at one of its steps.
pub struct Fated<S: LakeStorage> {
    pub inner: S,
    pub fate: Arc<Fate>,
}

/// What happens to a process, and at which step.
pub struct Fate {
    /// How many steps are left.
    steps: AtomicI64,
    what: Event,
    /// Whether the bytes of a file that is being written count. In a bucket they reach nobody.
    has_local_steps: bool,
}

pub enum Event {
    /// It dies before the step, or right after it.
    Death { is_after: bool },
    /// Something else happens before the step.
    Meeting(Box<dyn Fn() + Send + Sync>),
}

pub struct FatedFile<F> {
    inner: F,
    fate: Arc<Fate>,
}

impl Fate {
    pub fn new(steps: i64, what: Event, has_local_steps: bool) -> Arc<Fate> {
        let steps = AtomicI64::new(steps);
        Arc::new(Fate {
            steps,
            what,
            has_local_steps,
        })
    }

    pub fn is_met(&self) -> bool {
        self.steps.load(Ordering::Relaxed) <= 0
    }

    fn step<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        let dead = || Err(io::Error::other("the process is dead"));
        match (self.steps.fetch_sub(1, Ordering::Relaxed), &self.what) {
            (1, Event::Death { is_after: true }) => {
                step()?;
                dead()
            }
            (..=1, Event::Death { .. }) => dead(),
            (1, Event::Meeting(meet)) => {
                meet();
                step()
            }
            _ => step(),
        }
    }

    /// A step that changes nothing: at it something else may happen, and a death before it is as one after the step before.
    fn request<T>(&self, request: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        match &self.what {
            Event::Death { .. } => request(),
            Event::Meeting(_) => self.step(request),
        }
    }

    fn local_step<T>(&self, step: impl FnOnce() -> io::Result<T>) -> io::Result<T> {
        if self.has_local_steps { self.step(step) } else { step() }
    }
}

impl<F: Write> Write for FatedFile<F> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        // Of the last one a part is on the disk.
        let is_last = self.fate.has_local_steps && self.fate.steps.load(Ordering::Relaxed) == 1;
        let length = if is_last { bytes.len().div_ceil(2) } else { bytes.len() };
        self.fate.local_step(|| self.inner.write(&bytes[..length]))
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

impl<S: LakeStorage> LakeStorage for Fated<S> {
    type NewFile = FatedFile<S::NewFile>;

    fn create(&mut self, folder: &str) -> io::Result<FatedFile<S::NewFile>> {
        let inner = self.fate.local_step(|| self.inner.create(folder))?;
        let fate = self.fate.clone();
        Ok(FatedFile { inner, fate })
    }

    fn publish(&mut self, file: FatedFile<S::NewFile>, path: &str) -> io::Result<()> {
        self.fate.step(|| self.inner.publish(file.inner, path))
    }

    fn open(&mut self, path: &str) -> io::Result<File> {
        self.fate.step(|| self.inner.open(path))
    }

    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        self.fate.request(|| self.inner.list())
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        self.fate.step(|| self.inner.remove(path))
    }

    fn list_metadata(&mut self) -> io::Result<Vec<String>> {
        self.fate.request(|| self.inner.list_metadata())
    }

    fn current(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        self.fate.request(|| self.inner.current(path))
    }

    fn replace(&mut self, path: &str, bytes: &[u8]) -> io::Result<ManifestWrite> {
        self.fate.step(|| self.inner.replace(path, bytes))
    }

    fn writer(&self) -> Option<&str> {
        self.inner.writer()
    }
}

pub fn cell(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Str(text) => json!(text),
        Field::Long(number) | Field::TimestampMillis(number) => json!(number),
        Field::Group(row) => row
            .get_column_iter()
            .map(|(name, field)| (name.clone(), cell(field)))
            .collect(),
        Field::ListInternal(list) => list.elements().iter().map(cell).collect(),
        other => panic!("{other:?}"),
    }
}

fn rows(lake: &Path, files: &[LakeFile]) -> Vec<Value> {
    let mut rows = Vec::new();
    for file in files {
        let reader = SerializedFileReader::new(File::open(lake.join(&file.path)).unwrap()).unwrap();
        let before = rows.len();
        for row in reader.get_row_iter(None).unwrap() {
            rows.push(
                row.unwrap()
                    .get_column_iter()
                    .map(|(name, field)| (name.clone(), cell(field)))
                    .collect(),
            );
        }
        assert_eq!((rows.len() - before) as u64, file.rows, "{}", file.path);
    }
    rows
}

pub fn manifest(lake: &Path) -> Option<LakeManifest> {
    read_manifest(lake)
        .unwrap()
        .map(|bytes| LakeManifest::read(&bytes).unwrap())
}

/// The rows of a table, as text and sorted.
pub type Table = Vec<String>;

/// The files that a manifest names, those that were replaced included.
pub fn named(manifest: &LakeManifest) -> BTreeSet<&String> {
    let files = manifest.lists().into_iter().flat_map(|(_, files)| files);
    let replaced = manifest.replaced.iter().map(|file| &file.path);
    files.map(|file| &file.path).chain(replaced).collect()
}

pub fn table(rows: impl IntoIterator<Item = Value>) -> Table {
    let mut rows: Table = rows.into_iter().map(|row| row.to_string()).collect();
    rows.sort_unstable();
    rows
}

/// The three tables, read as docs/lake.md says.
pub fn tables(lake: &Path, manifest: &LakeManifest) -> [Table; 3] {
    let key = |row: &Value| json!([row["change"], row["platform"], row["device"]]).to_string();
    let ended = rows(lake, &manifest.intervals.ended);
    let since: Vec<LakeFile> = manifest.ended_since().cloned().collect();
    let since: BTreeSet<String> = rows(lake, &since).iter().map(key).collect();
    let mut open = rows(lake, &manifest.intervals.open);
    open.retain(|row| !since.contains(&key(row)));
    let minutes = [&manifest.concurrency.ended[..], &manifest.concurrency.unfinished].concat();
    [
        table(rows(lake, &manifest.changes)),
        table(ended.into_iter().chain(open)),
        table(rows(lake, &minutes)),
    ]
}

/// The three tables of the changes of each partition, one by one and naively. The offset of a change is twice its number.
fn folded(changes: &[&[Value]]) -> [Table; 3] {
    let (mut rows, mut intervals, mut minutes) = (Vec::new(), Vec::new(), Vec::new());
    for (partition, changes) in changes.iter().enumerate() {
        let mut users: BTreeMap<&str, History> = BTreeMap::new();
        let by_id: BTreeMap<&str, &Value> = changes.iter().map(|one| (one["id"].as_str().unwrap(), one)).collect();
        for (number, one) in changes.iter().enumerate() {
            rows.push(
                json!({"partition": partition, "record": 2 * number, "seq": one["seq"], "change": one["id"],
                "user": one["user"], "version": one["version"], "valid_from": one["at"], "logged_at": one["logged_at"],
                "cause": one["cause"], "before": one["before"], "after": one["after"], "devices": one["devices"],
                "custom_status": one["custom_status"], "evidence": one["evidence"]}),
            );
            let user = one["user"].as_str().unwrap();
            users
                .entry(user)
                .or_insert_with(|| History::new(user))
                .apply(&change(one));
        }
        // By platform and minute: online and push_online, began and ended.
        let mut moves: BTreeMap<Option<String>, BTreeMap<u64, [u64; 4]>> = BTreeMap::new();
        for line in users.values().flat_map(History::lines) {
            let minute = |time: u64| time / 60_000 * 60_000;
            if let Some(place) = ["online", "push_online"]
                .iter()
                .position(|status| *status == line.status)
            {
                let of_platform = moves.entry(line.platform.clone()).or_default();
                of_platform.entry(minute(line.from)).or_default()[2 * place] += 1;
                if let Some(to) = line.to {
                    of_platform.entry(minute(to)).or_default()[2 * place + 1] += 1;
                }
            }
            let begin = by_id[&*line.change];
            let end = line.end_change.as_ref().map_or(&Value::Null, |end| by_id[&**end]);
            let device = begin["devices"].as_array().unwrap().iter();
            let device = device
                .filter(|device| Some(device["platform"].as_str().unwrap()) == line.platform.as_deref())
                .find(|device| Some(device["device"].as_str().unwrap()) == line.device.as_deref());
            intervals.push(json!({"partition": partition, "user": line.user, "platform": line.platform, "device": line.device,
                "status": line.status, "valid_from": line.from, "valid_to": line.to, "cause": line.cause, "change": line.change,
                "evidence": line.evidence, "logged_at": begin["logged_at"],
                "gateway": device.map_or(Value::Null, |device| device["gateway"].clone()), "end_cause": line.end_cause,
                "end_change": line.end_change, "end_evidence": line.end_evidence, "end_logged_at": end["logged_at"]}));
        }
        for (platform, of_platform) in moves {
            let (mut online, mut push_online) = (0, 0);
            for (minute, [online_began, online_ended, push_began, push_ended]) in of_platform {
                online += online_began;
                online -= online_ended;
                push_online += push_began;
                push_online -= push_ended;
                minutes.push(
                    json!({"partition": partition, "minute": minute, "platform": platform, "online": online,
                    "push_online": push_online, "online_began": online_began, "online_ended": online_ended,
                    "push_online_began": push_began, "push_online_ended": push_ended}),
                );
            }
        }
    }
    [table(rows), table(intervals), table(minutes)]
}

/// The changes of three partitions.
pub fn stories() -> Vec<Vec<Value>> {
    (0..3).map(|seed| Story::new(seed).changes).collect()
}

/// Compares a lake with the fold of what its manifest says that it has.
#[track_caller]
pub fn is_the_fold(lake: &Path, stories: &[Vec<Value>]) {
    let Some(manifest) = manifest(lake) else { return };
    let upto = |(story, position): (&Vec<Value>, _)| -> usize {
        let position: &rollcall::lake::manifest::LakePosition = position;
        (position.next as usize).div_ceil(2).min(story.len())
    };
    let counts: Vec<usize> = stories.iter().zip(&manifest.partitions).map(upto).collect();
    let some: Vec<&[Value]> = stories
        .iter()
        .zip(&counts)
        .map(|(story, count)| &story[..*count])
        .collect();
    let (found, expected) = (tables(lake, &manifest), folded(&some));
    for (found, expected) in found.iter().zip(&expected) {
        assert_eq!(found, expected, "{counts:?}");
    }
    assert_eq!(
        manifest.changes.iter().map(|file| file.rows).sum::<u64>() as usize,
        counts.iter().sum::<usize>()
    );
}

/// So many changes of each partition make a commit.
pub const BATCH: usize = 5;

/// Gives a lake so many changes more of each partition, and says whether there were any.
pub fn take<S: LakeStorage>(lake: &mut Lake<S>, stories: &[Vec<Value>], more: usize) -> Result<bool, Error> {
    let mut is_new = false;
    for (number, story) in stories.iter().enumerate() {
        let partition = Partition(number as u32);
        let done = (lake.next(partition).0 as usize).div_ceil(2);
        let upto = (done / more + 1) * more;
        for (number, one) in story.iter().enumerate().take(upto).skip(done) {
            let mut one = change(one);
            one.id.partition = partition;
            lake.apply(partition, Offset(2 * number as u64), &one)?;
            is_new = true;
        }
    }
    Ok(is_new)
}

/// One life of the process: the next commit, and what is joined after it.
pub fn one_life<S: LakeStorage>(
    storage: S,
    stories: &[Vec<Value>],
    open_changed_max: u64,
    now_ms: u64,
) -> Result<bool, Error> {
    let mut lake = Lake::open(storage, 3)?;
    lake.start()?;
    lake.rewrite_open_after(open_changed_max);
    let is_new = take(&mut lake, stories, BATCH)?;
    lake.commit(now_ms)?;
    while lake.join_files(now_ms)? {}
    Ok(is_new)
}

/// Lets each step of each commit be the last one of a process once, and lets a process die once right after it. `live` is one
/// life with its fate, and says whether there was anything new; `check` is called after each death. Returns how many there were.
pub fn die_at_every_step(
    has_local_steps: bool,
    live: impl Fn(Arc<Fate>, u64) -> Result<bool, Error>,
    mut check: impl FnMut(),
) -> usize {
    let (mut deaths, mut now_ms) = (0, 1_000);
    'commits: loop {
        now_ms += 100_000;
        for steps in 1.. {
            for is_after in [false, true] {
                match live(Fate::new(steps, Event::Death { is_after }, has_local_steps), now_ms) {
                    Ok(false) => return deaths,
                    Ok(true) => continue 'commits,
                    Err(_) => {
                        deaths += 1;
                        check();
                    }
                }
            }
        }
    }
}

/// What the manifest says about the rows: the same rows need to be compared with the fold once.
pub fn rows_of(manifest: Option<LakeManifest>) -> Option<LakeManifest> {
    manifest.map(|manifest| LakeManifest {
        commit: 0,
        writer: String::new(),
        replaced: Vec::new(),
        ..manifest
    })
}

/// A directory of which a sync costs nothing, where the machine has one: there are thousands.
pub fn in_memory() -> tempfile::TempDir {
    let memory = Path::new("/dev/shm");
    match memory.is_dir() {
        true => tempfile::tempdir_in(memory).unwrap(),
        false => tempfile::tempdir().unwrap(),
    }
}

#[test]
fn whichever_step_a_lake_dies_at_its_tables_are_the_fold() {
    let stories = stories();
    assert!(
        stories.iter().any(|story| story.len() > 10 * BATCH),
        "enough for files to be joined"
    );
    for open_changed_max in [0, 1_000_000] {
        let directory = in_memory();
        let lake = directory.path();
        let live = |fate, now_ms| {
            let inner = LakeDirectory::open(lake).unwrap();
            one_life(Fated { inner, fate }, &stories, open_changed_max, now_ms)
        };
        let mut checked = None;
        let deaths = die_at_every_step(true, live, || {
            let rows = rows_of(manifest(lake));
            if rows != checked {
                is_the_fold(lake, &stories);
                checked = rows;
            }
        });
        is_the_fold(lake, &stories);
        let manifest = manifest(lake).unwrap();
        assert!(deaths > 300, "{deaths} deaths");
        assert!(manifest.changes.len() < 8 + 2, "{:?}", manifest.changes);
        assert!(manifest.changes.iter().any(|file| file.level > 0), "files were joined");
        if open_changed_max == 0 {
            assert!(manifest.intervals.open_since > 1, "all that hold were written again");
        } else {
            assert!(
                manifest.intervals.open.len() > 1 && manifest.ended_since().count() > 0,
                "{manifest:?}"
            );
        }
        // What no manifest names is removed.
        let mut storage = LakeDirectory::open(lake).unwrap();
        let found = storage.list().unwrap();
        assert_eq!(
            found.iter().map(|(path, _)| path).collect::<BTreeSet<_>>(),
            named(&manifest)
        );
        assert!(
            manifest
                .replaced
                .iter()
                .all(|file| file.at_ms + 600_000 > manifest.committed_ms)
        );
    }
}

pub fn lake(to: &Path, data: &Path, more: &[&str]) -> Command {
    let mut command = rollcall(&["lake", "--status", ANYWHERE, "--log-level", "error", "--to"]);
    command.arg(to).arg("--data").arg(data).args(more).stderr(Stdio::null());
    command
}

pub fn once(to: &Path, data: &Path) {
    let mut command = lake(to, data, &["--once"]);
    output(command.stderr(Stdio::piped()));
}

/// The rows of a table as DuckDB reads them through the views that `--sql` prints, as text and sorted.
pub fn in_duckdb(python: &str, to: &Path, name: &str) -> Table {
    let views = output(rollcall(&["lake", "--sql", "--to"]).arg(to));
    let file = to.join(format!("{name}.sql"));
    std::fs::write(&file, views).unwrap();
    let mut command = Command::new(python);
    command.arg(root("tests/clients/lake.py")).arg(&file).arg(name);
    table(output(&mut command).lines().map(parsed))
}

/// The rows of a table as `audit export` writes them.
pub fn exported(data: &Path, what: &str, out: &Path) -> Table {
    let mut command = rollcall(&["audit", "export", what, "--format", "jsonl", "--out"]);
    output(command.arg(out).arg("--data").arg(data));
    let mut rows = Vec::new();
    for day in std::fs::read_dir(out.join(what.trim_start_matches('-'))).unwrap() {
        for file in std::fs::read_dir(day.unwrap().path()).unwrap() {
            let path = file.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "jsonl") {
                rows.extend(std::fs::read_to_string(path).unwrap().lines().map(parsed));
            }
        }
    }
    table(rows)
}

/// Twenty users come, or go again in the next round. Returns how many changes that makes.
pub fn publish(server: &Server, round: u64) -> u64 {
    let events: Vec<Value> = (0..20)
        .map(|number| {
            let mut event = json!({"type": "connect", "user": format!("u{number}"), "platform": "android", "device": "d",
                "gateway": "g", "epoch": 1, "conn": 100 * (round / 2) + number, "intent": "login"});
            if round % 2 == 1 {
                event["type"] = json!("disconnect");
                event["reason"] = json!("closed");
                event.as_object_mut().unwrap().remove("intent");
            }
            event
        })
        .collect();
    let (status, body) = server.post("/v1/events?wait=applied", "", Value::from(events).to_string());
    assert_eq!(status, 200, "{body}");
    20
}

/// Ends a process as a power cut does.
pub fn kill(mut child: Child) {
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_lake_that_is_killed_beside_a_running_server_has_each_change_once_in_duckdb() {
    let python = python();
    let (directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    // As nobody calls a directory, and SQL or a pattern would read it otherwise.
    let to = directory.path().join("o'lake [a] {b,c} *?");
    let visible = || manifest(&to).map_or(0, |manifest| manifest.changes.iter().map(|file| file.rows).sum::<u64>());
    let mut published = 0;
    for round in 0..8u64 {
        let child = lake(&to, &data, &["--every", "1s"]).spawn().unwrap();
        published += publish(&server, round);
        if round == 3 {
            wait_until("everything is visible", || visible() == published);
            assert_eq!(in_duckdb(&python, &to, "changes").len() as u64, published);
        }
        // Somewhere in its start, its reading or its commit.
        std::thread::sleep(std::time::Duration::from_millis(170 * round));
        kill(child);
    }
    once(&to, &data);
    once(&to, &data);
    assert_eq!(visible(), published);
    let out = directory.path().join("out");
    for what in ["--changes", "--intervals"] {
        let found = in_duckdb(&python, &to, what.trim_start_matches('-'));
        assert!(!found.is_empty());
        assert_eq!(found, exported(&data, what, &out), "{what}");
    }
    let users: Vec<Value> = in_duckdb(&python, &to, "concurrency")
        .iter()
        .map(|row| parsed(row))
        .collect();
    let sum = |name: &str| -> u64 {
        let users = users.iter().filter(|row| row["platform"].is_null());
        users.map(|row| row[name].as_u64().unwrap()).sum()
    };
    assert_eq!((sum("online_began"), sum("online_ended")), (80, 80));
    // With pyarrow, as the document shows.
    let mut command = Command::new(&python);
    let counted = output(command.arg(root("examples/analytics/lake.py")).arg(&to));
    let intervals = in_duckdb(&python, &to, "intervals").len();
    assert_eq!(
        counted.trim(),
        format!("{published} changes, {intervals} intervals, {} minutes", users.len())
    );
    drop(server);
}

#[test]
fn the_queries_of_the_analytics_give_the_same_on_a_lake() {
    let python = python();
    let directory = tempfile::tempdir().unwrap();
    let path = |name: &str| directory.path().join(name);
    let day = output(Command::new(&python).arg(root("examples/analytics/day.py")));
    std::fs::write(path("events.jsonl"), day).unwrap();
    let folded = output(&mut rollcall(&["fold", path("events.jsonl").to_str().unwrap()]));
    let log = CutLog::open(directory.path(), 1);
    for line in folded.lines().filter(|line| line.starts_with("{\"type\":\"change\"")) {
        log.commit(&change(&parsed(line)));
    }
    let to = path("lake");
    once(&to, directory.path());
    let mut command = rollcall(&["audit", "export", "--events"]);
    output(command.arg(path("events.jsonl")).arg("--out").arg(path("tables")));
    let views = output(rollcall(&["lake", "--sql", "--to"]).arg(&to));
    std::fs::write(path("views.sql"), views).unwrap();
    let mut command = Command::new(&python);
    command
        .arg(root("examples/analytics/queries.py"))
        .arg(root("docs/analytics.md"));
    command.arg(path("tables")).arg("--views").arg(path("views.sql"));
    assert_eq!(output(&mut command).trim(), "10 queries");
}

/// A log of one partition with these changes.
pub fn log_of(directory: &Path, changes: &[Value]) -> CutLog {
    let log = CutLog::open(directory, 1);
    changes.iter().for_each(|one| log.commit(&moved(one)));
    log
}

/// A change as one of partition 0.
pub fn moved(one: &Value) -> Change {
    let mut one = change(one);
    one.id.partition = Partition(0);
    one
}

#[test]
fn what_cannot_be_a_lake_says_why_and_is_left_as_it_is() {
    let changes = &stories()[1];
    let data = |name: &str| {
        let directory = tempfile::tempdir().unwrap();
        let to = directory.path().join(name);
        (directory, to)
    };
    let (directory, to) = data("lake");
    let log = log_of(directory.path(), &changes[..20]);
    once(&to, directory.path());
    let before = manifest(&to).unwrap();
    assert_eq!(before.changes[0].rows, 20);
    let refused = |to: &Path, data: &Path, more: &[&str], wants: &str| {
        let output = lake(to, data, more).stderr(Stdio::piped()).output().unwrap();
        let error = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{error}");
        assert!(error.contains(wants), "{error}");
    };
    // Other logs: of other changes, a shorter one, one with more partitions.
    let (other, _) = data("other");
    drop(log_of(other.path(), &stories()[2][..30]));
    refused(&to, other.path(), &["--once"], "this is another log");
    let (short, _) = data("short");
    drop(log_of(short.path(), &changes[..3]));
    refused(&to, short.path(), &["--once"], "this is another log");
    let (more, _) = data("more");
    drop(CutLog::open(more.path(), 2));
    refused(
        &to,
        more.path(),
        &["--once"],
        "the lake is of a log with 1 partitions, but this log has 2",
    );
    // Another process writes.
    let writing = LakeDirectory::open(&to).unwrap();
    refused(
        &to,
        directory.path(),
        &["--once"],
        "another process is writing to this lake",
    );
    drop(writing);
    refused(
        &to,
        directory.path(),
        &["--every", "1ms"],
        "--every must be 1s to 30s, not 1ms",
    );
    refused(
        Path::new("ftp://bucket/lake"),
        directory.path(),
        &["--once"],
        "the scheme ftp is not supported; expected a directory, file:///DIRECTORY or s3://BUCKET/PREFIX",
    );
    refused(
        Path::new("s3://key:secret@bucket/lake"),
        directory.path(),
        &["--once"],
        "it contains credentials",
    );
    let nothing = output_of_sql(&directory.path().join("no"));
    assert!(nothing.contains("there is no lake in"), "{nothing}");
    assert_eq!(manifest(&to).unwrap(), before);

    // What retention has removed.
    changes[20..24].iter().for_each(|one| log.commit(&moved(one)));
    let (late, from_oldest) = data("late");
    let cut = CutLog::open(late.path(), 1);
    changes.iter().take(30).for_each(|one| {
        cut.commit(&moved(one));
        cut.clock.advance_ms(100_000);
    });
    let gone = cut.cut(1);
    refused(
        &from_oldest,
        late.path(),
        &["--once"],
        "with --from-oldest the lake begins with",
    );
    output(lake(&from_oldest, late.path(), &["--once", "--from-oldest"]).stderr(Stdio::piped()));
    assert_eq!(manifest(&from_oldest).unwrap().changes[0].rows, 30 - gone);
    let gone = cut.cut(gone + 1);
    // It has them already.
    assert!(gone < 30);
    once(&from_oldest, late.path());

    // What is damaged: a file that is gone, a manifest of a later version.
    once(&to, directory.path());
    let whole = manifest(&to).unwrap();
    assert_eq!(whole.changes.iter().map(|file| file.rows).sum::<u64>(), 24);
    let later = std::fs::read_to_string(to.join("manifest.json")).unwrap();
    std::fs::write(
        to.join("manifest.json"),
        later.replacen("\"format\": 1", "\"format\": 2", 1),
    )
    .unwrap();
    refused(
        &to,
        directory.path(),
        &["--once"],
        "has format 2, but this version knows 1",
    );
    std::fs::write(to.join("manifest.json"), later).unwrap();
    std::fs::remove_file(to.join(&whole.changes[0].path)).unwrap();
    refused(&to, directory.path(), &["--once"], "it is not there");
    // Without the manifest it may be a copy that was cut: nothing is removed.
    std::fs::remove_file(to.join("manifest.json")).unwrap();
    let rest = || std::fs::read_dir(to.join("intervals")).unwrap().count();
    let before = rest();
    refused(&to, directory.path(), &["--once"], "put manifest.json back");
    assert!(before > 0 && rest() == before);
}

fn output_of_sql(to: &Path) -> String {
    let output = rollcall(&["lake", "--sql", "--to"]).arg(to).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
    String::from_utf8(output.stderr).unwrap()
}
