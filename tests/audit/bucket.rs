//! A lake in a bucket: its tables are the fold and have one writer, wherever processes die, meet, or lose the bucket.

use super::analytics::{output, python, root};
use super::lake::{
    Event, Fate, Fated, die_at_every_step, exported, is_the_fold, kill, lake, log_of, moved, named, one_life, publish,
    rows_of, stories, table, take,
};
use super::proxy::{Proxy, Weather};
use super::watched::Watch;
use super::{parsed, served};
use crate::s3;
use crate::server::{ANYWHERE, Server, rollcall, wait_until};
use object_store::ObjectStore;
use object_store::memory::InMemory;
use object_store::path::Path as Key;
use rollcall::lake::bucket::{BucketListener, BucketNotice, LakeBucket};
use rollcall::lake::manifest::LakeManifest;
use rollcall::lake::storage::LakeStorage as _;
use rollcall::lake::{Error, Lake};
use serde_json::Value;
use std::collections::BTreeSet;
use std::fs::File;
use std::io;
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use tokio::runtime::Runtime;

pub fn endpoint(server: &s3::Server) -> String {
    let environment = server.environment();
    let endpoint = environment.into_iter().find(|(name, _)| name == "AWS_ENDPOINT");
    endpoint.unwrap().1
}

/// Where the processes of a test write to.
#[derive(Clone)]
pub struct Bucket {
    objects: Arc<dyn ObjectStore>,
    base: Key,
    runtime: Arc<Runtime>,
}

impl Bucket {
    pub fn in_memory() -> Bucket {
        Bucket {
            objects: Arc::new(InMemory::new()),
            base: Key::from("some/lake"),
            runtime: Arc::new(Runtime::new().unwrap()),
        }
    }

    fn at(url: &str, endpoint: &str) -> Bucket {
        let (objects, base) = rollcall::objects::open(url, s3::environment(endpoint)).unwrap();
        let runtime = Arc::new(Runtime::new().unwrap());
        Bucket { objects, base, runtime }
    }

    /// Opens it for a process that waits for nothing.
    pub fn open(&self) -> LakeBucket {
        self.listened(Box::new(|notice| match notice {
            BucketNotice::Away { failure, .. } => Err(io::Error::other(failure.to_string())),
            BucketNotice::Slow { .. } | BucketNotice::Back => Ok(()),
        }))
    }

    fn listened(&self, listener: BucketListener) -> LakeBucket {
        let runtime = self.runtime.handle().clone();
        LakeBucket::new(self.objects.clone(), self.base.clone(), runtime, listener)
    }

    pub fn manifest(&self) -> Option<LakeManifest> {
        let bytes = self.open().manifest().unwrap()?;
        Some(LakeManifest::read(&bytes).unwrap())
    }

    /// Copies what the manifest names.
    pub fn copied(&self) -> tempfile::TempDir {
        let directory = tempfile::tempdir().unwrap();
        let mut bucket = self.open();
        let Some(bytes) = bucket.manifest().unwrap() else {
            return directory;
        };
        std::fs::write(directory.path().join("manifest.json"), &bytes).unwrap();
        for (_, files) in LakeManifest::read(&bytes).unwrap().lists() {
            for file in files {
                let to = directory.path().join(&file.path);
                std::fs::create_dir_all(to.parent().unwrap()).unwrap();
                io::copy(&mut bucket.open(&file.path).unwrap(), &mut File::create(to).unwrap()).unwrap();
            }
        }
        directory
    }

    #[track_caller]
    fn is_the_fold(&self, stories: &[Vec<Value>]) {
        is_the_fold(self.copied().path(), stories);
    }
}

#[test]
fn whichever_request_a_process_dies_at_the_tables_in_the_bucket_are_the_fold() {
    let (bucket, stories) = (Bucket::in_memory(), stories());
    let live = |fate, now_ms| {
        let inner = bucket.open();
        one_life(Fated { inner, fate }, &stories, 0, now_ms)
    };
    let mut checked = None;
    let deaths = die_at_every_step(false, live, || {
        let rows = rows_of(bucket.manifest());
        if rows != checked {
            bucket.is_the_fold(&stories);
            checked = rows;
        }
    });
    bucket.is_the_fold(&stories);
    assert!(deaths > 60, "{deaths} deaths");
    let manifest = bucket.manifest().unwrap();
    assert!(manifest.changes.iter().any(|file| file.level > 0), "files were joined");
    let rows: usize = manifest.changes.iter().map(|file| file.rows as usize).sum();
    assert_eq!(rows, stories.iter().map(Vec::len).sum::<usize>());
    // What no manifest names is removed at the next start.
    Lake::open(bucket.open(), 3).unwrap().start().unwrap();
    let found = bucket.open().list().unwrap();
    assert_eq!(
        found.iter().map(|(path, _)| path).collect::<BTreeSet<_>>(),
        named(&manifest)
    );
}

/// Whether the first of two processes lost against the one that it met; `None`: it had ended before.
pub fn was_overtaken(first: Result<(), Error>, fate: &Fate) -> Option<bool> {
    match first {
        Ok(()) if !fate.is_met() => None,
        // It was met before it had begun, or after its last commit.
        Ok(()) => Some(false),
        Err(Error::OtherWriter { .. }) => Some(true),
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn of_two_processes_each_manifest_has_one_winner_at_whichever_request_they_meet() {
    let stories = Arc::new(stories());
    let mut overtaken = 0;
    for steps in 1.. {
        let bucket = Bucket::in_memory();
        // The other one begins before a request of the first one, and commits something.
        let meet = {
            let (bucket, stories) = (bucket.clone(), stories.clone());
            move || {
                assert!(one_life(bucket.open(), &stories, 0, 2_000).unwrap());
            }
        };
        let fate = Fate::new(steps, Event::Meeting(Box::new(meet)), false);
        let of_first = fate.clone();
        let first = || -> Result<(), Error> {
            let mut lake = Lake::open(
                Fated {
                    inner: bucket.open(),
                    fate: of_first,
                },
                3,
            )?;
            for _ in 0..4 {
                take(&mut lake, &stories, 3)?;
                lake.commit(1_000)?;
            }
            Ok(())
        };
        let Some(is_overtaken) = was_overtaken(first(), &fate) else {
            break;
        };
        overtaken += usize::from(is_overtaken);
        assert!(fate.is_met());
        bucket.is_the_fold(&stories);
        // A third one goes on, whatever the first has left.
        while one_life(bucket.open(), &stories, 0, 3_000).unwrap() {}
        bucket.is_the_fold(&stories);
        let rows: u64 = bucket.manifest().unwrap().changes.iter().map(|file| file.rows).sum();
        assert_eq!(rows as usize, stories.iter().map(Vec::len).sum::<usize>());
    }
    assert!(overtaken > 15, "{overtaken}");
}

/// A lake through a proxy, whose listener keeps what it is notified of and lets the sun shine.
fn weathered(server: &s3::Server) -> (Bucket, Proxy, Arc<Mutex<Vec<String>>>, LakeBucket) {
    let proxy = Proxy::before(&endpoint(server));
    let bucket = Bucket::at("s3://presence/weathered", &proxy.endpoint());
    let notices = Arc::new(Mutex::new(Vec::new()));
    let (kept, weather) = (notices.clone(), proxy.weather());
    let storage = bucket.listened(Box::new(move |notice| {
        let text = match notice {
            BucketNotice::Slow { what, .. } if matches!(*weather.lock().unwrap(), Weather::Slow(_)) => {
                format!("slow: {what}")
            }
            // The client is still trying by itself.
            BucketNotice::Slow { .. } => return Ok(()),
            BucketNotice::Away { what, failure } => format!("away: {what}, {failure}"),
            BucketNotice::Back => "back".to_owned(),
        };
        kept.lock().unwrap().push(text);
        *weather.lock().unwrap() = Weather::Fair;
        Ok(())
    }));
    (bucket, proxy, notices, storage.slow_after(Duration::from_millis(500)))
}

#[test]
fn a_bucket_that_is_away_is_waited_for_and_a_lost_response_is_no_other_writer() {
    let server = s3::Server::start("presence");
    let stories = stories();
    let (bucket, proxy, notices, storage) = weathered(&server);
    let seen = || std::mem::take(&mut *notices.lock().unwrap());
    proxy.set(Weather::Away);
    let mut lake = Lake::open(storage, 3).unwrap();
    let notices = seen();
    assert!(notices[0].starts_with("away: read manifest.json, "), "{notices:?}");
    assert_eq!(notices[1..], ["back"]);
    // Each manifest is written once, although its first response is lost and the client repeats the request.
    for commit in 1..4 {
        proxy.set(Weather::LostResponse);
        assert!(take(&mut lake, &stories, 3).unwrap());
        assert!(lake.commit(1_000).unwrap());
        assert_eq!(bucket.manifest().unwrap(), *lake.committed());
        assert_eq!(lake.committed().commit, commit);
        bucket.is_the_fold(&stories);
    }
    seen();
    proxy.set(Weather::Answer("503 Service Unavailable", "SlowDown"));
    assert!(take(&mut lake, &stories, 3).unwrap() && lake.commit(1_000).unwrap());
    let notices = seen();
    let expected = "the response is 503 Service Unavailable, SlowDown: Because of the weather";
    assert!(
        notices[0].starts_with("away: write changes/") && notices[0].ends_with(expected),
        "{notices:?}"
    );
    assert_eq!(notices[1..], ["back"]);
    bucket.is_the_fold(&stories);
    proxy.set(Weather::Conflict);
    assert!(take(&mut lake, &stories, 3).unwrap() && lake.commit(1_000).unwrap());
    let expected = "away: write manifest.json, another request to the same object was under way";
    assert_eq!(seen(), [expected]);
    bucket.is_the_fold(&stories);
    proxy.set(Weather::Slow(Duration::from_secs(1)));
    assert!(take(&mut lake, &stories, 3).unwrap() && lake.commit(1_000).unwrap());
    let notices = seen();
    assert!(notices[0].starts_with("slow: write changes/"), "{notices:?}");
    bucket.is_the_fold(&stories);

    // What does not pass by itself ends the process, and says what to do. Nothing of it is visible.
    let before = bucket.manifest();
    proxy.set(Weather::Answer("403 Forbidden", "AccessDenied"));
    take(&mut lake, &stories, 3).unwrap();
    let error = lake.commit(1_000).unwrap_err().to_string();
    for part in [
        "cannot write a file in changes: the response is 403 Forbidden, AccessDenied: Because of the weather; check AWS_ACCESS_KEY_ID",
        "the lake is as of its last commit and goes on from there",
    ] {
        assert!(error.contains(part), "{error}");
    }
    proxy.set(Weather::Fair);
    assert_eq!(bucket.manifest(), before);
    let absent = Bucket::at("s3://absent/lake", &proxy.endpoint());
    let error = Lake::open(absent.open(), 3).err().unwrap().to_string();
    assert!(
        error.contains("NoSuchBucket") && error.contains("create the bucket"),
        "{error}"
    );
    // Where conditions are ignored, nothing would keep two processes apart.
    proxy.set(Weather::WithoutConditions);
    let error = one_life(bucket.open(), &stories, 0, 2_000).unwrap_err().to_string();
    assert!(error.contains("the store ignores If-Match of a PUT"), "{error}");
    proxy.set(Weather::Fair);
    while one_life(bucket.open(), &stories, 0, 2_000).unwrap() {}
    bucket.is_the_fold(&stories);
}

#[test]
fn a_file_that_is_sent_in_parts_is_whole() {
    let server = s3::Server::start("presence");
    let bucket = Bucket::at("s3://presence/large", &endpoint(&server));
    let mut storage = bucket.open();
    let path = "changes/0000000001-0000000001-0123456789abcdef.parquet";
    for length in [0, 1, 8 << 20, (16 << 20) + 1] {
        let bytes: Vec<u8> = (0..length).map(|at: u32| (at % 251) as u8).collect();
        let mut file = storage.create("changes").unwrap();
        io::Write::write_all(&mut file, &bytes).unwrap();
        storage.publish(file, path).unwrap();
        let mut read = Vec::new();
        io::Read::read_to_end(&mut storage.open(path).unwrap(), &mut read).unwrap();
        assert!(read == bytes, "{length}");
        assert_eq!(storage.list().unwrap(), [(path.to_owned(), u64::from(length))]);
    }
    storage.remove(path).unwrap();
    storage.remove(path).unwrap();
    assert_eq!(storage.list().unwrap(), []);
    assert_eq!(storage.open(path).unwrap_err().kind(), io::ErrorKind::NotFound);
}

/// The rows of a table as DuckDB reads them through the views that `--sql` prints, as text and sorted.
pub fn in_duckdb(python: &str, to: &str, name: &str, environment: &[(String, String)]) -> Vec<String> {
    let views = output(rollcall(&["lake", "--sql", "--to", to]).envs(environment.iter().cloned()));
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("views.sql");
    std::fs::write(&file, views).unwrap();
    let mut command = Command::new(python);
    command.arg(root("tests/clients/lake.py")).arg(&file).arg(name);
    table(output(command.envs(environment.iter().cloned())).lines().map(parsed))
}

#[test]
fn a_lake_in_a_bucket_that_is_killed_has_each_change_once_in_duckdb_and_pyarrow() {
    let python = python();
    let storage = s3::Server::start("presence");
    let mut environment = storage.environment();
    // The name of the variable in the programs that read.
    environment.push(("AWS_ENDPOINT_URL".to_owned(), endpoint(&storage)));
    let (directory, data) = served();
    let server = Server::start(&data, ANYWHERE, &["--partitions", "2"], &[]);
    let to = "s3://presence/a lake/of changes";
    let start = |more: &[&str]| {
        let mut command = lake(Path::new(to), &data, more);
        command.envs(environment.iter().cloned()).stderr(Stdio::piped());
        command
    };
    let bucket = Bucket::at(&to.replace(' ', "%20"), &endpoint(&storage));
    let visible = || {
        let manifest = bucket.manifest();
        manifest.map_or(0, |manifest| manifest.changes.iter().map(|file| file.rows).sum::<u64>())
    };
    let mut published = 0;
    for round in 0..6u64 {
        let child = start(&["--every", "1s"]).spawn().unwrap();
        published += publish(&server, round);
        if round == 3 {
            wait_until("everything is visible", || visible() == published);
        }
        // Somewhere in its start, its reading or its commit.
        std::thread::sleep(Duration::from_millis(230 * round));
        kill(child);
    }
    // Two at once: the second one to commit ends, and the other one goes on.
    let mut running: Vec<Child> = (0..2).map(|_| start(&["--every", "1s"]).spawn().unwrap()).collect();
    let mut loser = None;
    for round in 6.. {
        published += publish(&server, round);
        wait_until("everything is visible", || visible() == published);
        std::thread::sleep(Duration::from_millis(100));
        loser = running.iter_mut().position(|one| one.try_wait().unwrap().is_some());
        if loser.is_some() {
            break;
        }
    }
    let ended = running.remove(loser.unwrap()).wait_with_output().unwrap();
    let error = String::from_utf8_lossy(&ended.stderr);
    assert_eq!(ended.status.code(), Some(2), "{error}");
    assert!(error.contains("another process has written to this lake"), "{error}");
    running.into_iter().for_each(kill);
    output(&mut start(&["--once"]));
    assert_eq!(visible(), published);

    let out = directory.path().join("out");
    for what in ["--changes", "--intervals"] {
        let found = in_duckdb(&python, to, what.trim_start_matches('-'), &environment);
        assert!(!found.is_empty());
        assert_eq!(found, exported(&data, what, &out), "{what}");
    }
    let minutes = in_duckdb(&python, to, "concurrency", &environment).len();
    let intervals = in_duckdb(&python, to, "intervals", &environment).len();
    // With pyarrow, as the document shows.
    let mut command = Command::new(&python);
    command.arg(root("examples/analytics/lake.py")).arg(to);
    let counted = output(command.envs(environment.iter().cloned()));
    assert_eq!(
        counted.trim(),
        format!("{published} changes, {intervals} intervals, {minutes} minutes")
    );
    drop(server);
}

#[test]
fn a_process_says_that_its_bucket_is_away_and_goes_on_when_it_is_back() {
    let storage = s3::Server::start("presence");
    let proxy = Proxy::before(&endpoint(&storage));
    let data = tempfile::tempdir().unwrap();
    let changes = &stories()[0];
    let log = log_of(data.path(), &changes[..5]);
    let start = || {
        let mut command = rollcall(&["lake", "--status", ANYWHERE, "--every", "1s"]);
        command.args(["--to", "s3://presence/lake", "--data"]).arg(data.path());
        command.envs(s3::environment(&proxy.endpoint()));
        Watch::of(command)
    };
    proxy.set(Weather::Away);
    let running = start();
    let ready = |running: &Watch| running.get("/readyz").1;
    wait_until("it says that it waits", || {
        ready(&running).contains("the bucket does not answer for")
    });
    proxy.set(Weather::Fair);
    let bucket = Bucket::at("s3://presence/lake", &endpoint(&storage));
    let next = || bucket.manifest().map_or(0, |manifest| manifest.partitions[0].next);
    wait_until("it is visible", || next() == 5);
    wait_until("it is ready", || ready(&running) == "ready\n");
    let behind = || -> f64 {
        let metrics = running.get("/metrics").1;
        let line = metrics
            .lines()
            .find(|line| line.starts_with("rollcall_lake_behind_seconds{"));
        line.unwrap().rsplit(' ').next().unwrap().parse().unwrap()
    };
    wait_until("nothing is behind", || behind() == 0.0);
    proxy.set(Weather::Answer("503 Service Unavailable", "SlowDown"));
    changes[5..7].iter().for_each(|one| log.commit(&moved(one)));
    wait_until("it waits again", || {
        ready(&running).contains("503 Service Unavailable, SlowDown")
    });
    assert!(behind() > 0.0, "what is not visible counts while the bucket is away");
    // A stop does not wait for the bucket.
    let (status, _, logged) = running.ended();
    assert_eq!(status, Some(0), "{logged}");
    for part in [
        "waiting for the bucket",
        "interrupted while it tried to write",
        "goes on from there",
    ] {
        assert!(logged.contains(part), "{logged}");
    }
    assert!(!logged.contains("backing off"), "each attempt is logged: {logged}");
    assert_eq!(next(), 5);
    proxy.set(Weather::Fair);
    let running = start();
    wait_until("the rest is visible", || next() == 7);
    running.ended();
}
