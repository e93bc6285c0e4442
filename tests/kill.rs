//! The real process, killed at random moments while many clients use it: every acknowledged event is in the log, its outputs are
//! in the log once and in order, and every answer was right.
//!
//! No state in memory survives, so the tests only use the process' HTTP answers. The rest is read from its log after its end, and
//! compared with `rollcall fold`.
//!
//! A subscriber's cursor is never ahead of the log: SIGKILL ends the process, but keeps what it has written to the operating
//! system, and a change is readable only after that. (When the *machine* dies, changes that were committed and not yet
//! synced can be lost. They are folded again to the same bytes; until then a cursor may be ahead, which is answered
//! with `bad_cursor`. No test here can do that to a machine.)

#[path = "kill/checks.rs"]
mod checks;
#[path = "kill/clients.rs"]
mod clients;
#[path = "kill/followers.rs"]
mod followers;
#[path = "kill/process.rs"]
mod process;
mod stream;

use checks::{check_events, check_followed, check_outputs, check_shown, has_followed, read_log};
use clients::{Client, Over, Shown, USERS, World, escaped, first_policy, user};
use followers::{Seen, follow};
use process::{Server, agent, get, rollcall, until, wait};
use rollcall::random::Random;
use serde_json::{Value, json};
use std::collections::BTreeSet;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::path::Path;
use std::process::Stdio;
use std::sync::Mutex;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::Duration;

const PARTITIONS: u32 = 4;
const KILLS: usize = 24;
const CLIENTS: u64 = 4;
/// The topics that one can subscribe to.
const FOLLOWED: [&str; 2] = ["changes", "kicks"];
/// Nothing takes longer than this, or the test fails.
const PATIENCE: Duration = Duration::from_secs(60);
/// A process that has not ended so long after it was asked to stop never will. One that waited for its connections would end
/// at its own limit, 20 seconds, and not with status 0.
const STOPPED: Duration = Duration::from_secs(60);

/// Waits for some time, from the least to the most.
fn pause(random: &mut Random, least_ms: u64, most_ms: u64) {
    thread::sleep(Duration::from_millis(random.between(least_ms, most_ms + 1)));
}

fn seed() -> u64 {
    match std::env::var("ROLLCALL_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ROLLCALL_TEST_SEED is a number"),
        Err(_) => 1,
    }
}

#[test]
fn whatever_moment_it_is_killed_nothing_acknowledged_is_lost_and_nothing_comes_twice() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let data = directory.join("data");
    let policy_file = directory.join("policy.json");
    std::fs::write(&policy_file, first_policy().to_string()).expect("written");
    let policy_file = policy_file.to_str().expect("UTF-8");
    let mut random = Random(seed());
    let world = World::default();
    let seen: [Seen; 2] = FOLLOWED.map(|_| Mutex::new(vec![Vec::new(); PARTITIONS as usize]));
    // Few users in memory, so that they are fetched from the store.
    let start = |random: &mut Random| {
        let cached = *random.pick(&["0", "3", "50000"]);
        Server::spawn(directory, &["--policy", policy_file, "--cached-users", cached])
    };

    thread::scope(|scope| {
        let over = Over(&world);
        let world = &world;
        for (topic, seen) in FOLLOWED.into_iter().zip(&seen) {
            scope.spawn(move || follow(world, topic, seen));
        }
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let random = Random(seed().wrapping_mul(1_000) + number);
                let client = Client::new(number, world, random);
                scope.spawn(move || client.run())
            })
            .collect();

        for kill in 1..=KILLS {
            let mut server = start(&mut random);
            if kill % 6 == 0 {
                // Stopped normally, at once or while all clients have open requests. What this saves in
                // the store is where the next ones begin; else it is saved only after half a minute.
                world.address.set(server.port());
                let most = 400 * random.below(2);
                pause(&mut random, 0, most);
                server.stop();
                server = start(&mut random);
            }
            if random.below(4) == 0 {
                // While it starts: makes the log, reads it, folds it again.
                pause(&mut random, 0, 60);
            } else {
                world.address.set(server.port());
                pause(&mut random, 20, 700);
            }
            server.kill();
            if kill % 10 == 0 {
                // Longer than what counts as an outage.
                pause(&mut random, 2_050, 2_200);
            }
        }

        let mut server = start(&mut random);
        world.address.set(server.port());
        pause(&mut random, 200, 400);
        world.sent.store(true, Ordering::SeqCst);
        let mut requests = Vec::new();
        let mut shown = Vec::new();
        for client in clients {
            let (sent, saw) = client.join().expect("a client's assertions hold");
            requests.extend(sent);
            shown.extend(saw);
        }
        until_folded(world);
        server.stop();

        let shelves = read_log(&data);
        check_events(&shelves, &requests);
        check_outputs(&shelves);
        check_shown(&shelves, &shown);

        // Again: the state that it reports now. Deadlines fire meanwhile, as the log shows afterwards.
        let mut server = start(&mut random);
        world.address.set(server.port());
        let now = show_everybody(world);
        for (topic, seen) in seen.iter().enumerate() {
            until("the followers", || has_followed(&shelves, topic, seen));
        }
        // Their connections end with the process.
        until_folded(world);
        drop(over);
        server.stop();

        let shelves = read_log(&data);
        let users = check_outputs(&shelves);
        check_shown(&shelves, &now);
        let reported: BTreeSet<&str> = now.iter().map(|shown| &*shown.user).collect();
        assert_eq!(reported, users.iter().map(|user| &**user).collect());
        for (topic, seen) in seen.iter().enumerate() {
            check_followed(&shelves, topic, seen);
        }

        let again = requests.iter().filter(|request| request.attempts > 1).count();
        assert!(again > 0 && !shown.is_empty(), "it was killed while nobody looked");
        println!(
            "{KILLS} kills; {} requests, {again} of them sent more than once; {} events, {} changes, {} kicks; {} users \
             shown",
            requests.len(),
            shelves.iter().map(|shelf| shelf.events.len()).sum::<usize>(),
            shelves.iter().map(|shelf| shelf.outputs[0].len()).sum::<usize>(),
            shelves.iter().map(|shelf| shelf.outputs[1].len()).sum::<usize>(),
            shown.len() + now.len(),
        );
    });
}

/// A machine that has other work may be behind.
fn until_folded(world: &World) {
    let agent = agent(Some(PATIENCE));
    let url = world.address.url("/v1/stats");
    until("the end of the log", || match get(&agent, &url) {
        Some((200, body)) => {
            let stats: serde_json::Value = serde_json::from_str(&body).expect("JSON");
            let partitions = stats["partitions"].as_array().expect("a list");
            partitions.iter().all(|partition| partition["lag"] == 0)
        }
        other => panic!("{other:?}"),
    });
}

/// Every user whom it knows, as it shows them.
fn show_everybody(world: &World) -> Vec<Shown> {
    let agent = agent(Some(PATIENCE));
    let mut all = Vec::new();
    for user in (0..USERS).map(user) {
        let url = world.address.url(&format!("/v1/users/{}", escaped(&user)));
        until("an answer", || match get(&agent, &url) {
            Some((200, body)) => {
                all.push(Shown::new(&user, body));
                true
            }
            Some((404, _)) => true,
            Some((503, _)) => false,
            other => panic!("{other:?}"),
        });
    }
    all
}

// What it refuses, before anything is served.

/// Runs it to its end: its exit status and what it says on standard error.
fn refused(arguments: &[&str]) -> (Option<i32>, String) {
    let mut child = rollcall(arguments).stderr(Stdio::piped()).spawn().expect("it starts");
    let Some(status) = wait(&mut child, PATIENCE) else {
        child.kill().expect("killed");
        panic!("{arguments:?} is served");
    };
    let mut reported = String::new();
    let mut stderr = child.stderr.take().expect("piped");
    stderr.read_to_string(&mut reported).expect("UTF-8");
    (status, reported)
}

/// It ends with status 2 and one sentence, in which all of this is said.
#[track_caller]
fn refuses(arguments: &[&str], said: &[&str]) {
    let (status, reported) = refused(arguments);
    assert_eq!(status, Some(2), "{reported}");
    assert_eq!(reported.lines().count(), 1, "{reported}");
    assert!(reported.starts_with("error: "), "{reported}");
    for said in said {
        assert!(reported.contains(said), "nothing of {said:?} in: {reported}");
    }
    println!("{reported}");
}

const ANY_PORT: &str = "127.0.0.1:0";

#[test]
fn what_cannot_be_served_is_refused_with_one_sentence() {
    let directory = tempfile::tempdir().expect("a directory");
    let directory = directory.path();
    let path = |name: &str| directory.join(name).to_str().expect("UTF-8").to_owned();
    let data = path("data");

    // Two of them in one directory; the first is not disturbed.
    let mut first = Server::spawn(directory, &[]);
    let address = format!("127.0.0.1:{}", first.port());
    refuses(
        &["serve", "--listen", ANY_PORT, "--data", &data],
        &[&data, "another process"],
    );
    let url = format!("http://{address}/readyz");
    let agent = agent(Some(PATIENCE));
    until("the first", || {
        get(&agent, &url).is_some_and(|(status, _)| status == 200)
    });

    // A port that is taken: nothing was made.
    let other = path("other");
    refuses(
        &["serve", "--listen", &address, "--data", &other],
        &[&address, "--listen"],
    );
    assert!(!Path::new(&other).exists());
    first.stop();

    // Open to others without tokens.
    for open in ["0.0.0.0:0", "[::]:0"] {
        refuses(&["serve", "--listen", open, "--data", &other], &[open, "--token-file"]);
    }

    // An unknown setting, and a setting with a wrong value.
    let config = path("rollcall.toml");
    let settings = [
        ("partitions = 2\n# a comment\ncached_user = 5\n", "cached_user"),
        ("partitions = 2\n\npartitions = \"two\"\n", "partitions"),
        ("partitions = 2\n\ncached_users = \"two\"\n", "cached_users"),
    ];
    for (text, key) in settings {
        std::fs::write(&config, text).expect("written");
        refuses(
            &["serve", "--listen", ANY_PORT, "--data", &other, "--config", &config],
            &[&config, "line 3", key],
        );
    }
    assert!(!Path::new(&other).exists());
    std::fs::write(&config, "partitions = 0\n").expect("written");
    refuses(
        &["serve", "--listen", ANY_PORT, "--data", &other, "--config", &config],
        &["partitions", "1 to 1024"],
    );

    // A file where the directory should be, and above it.
    refuses(&["serve", "--listen", ANY_PORT, "--data", &config], &[&config]);
    let below = path("rollcall.toml/data");
    refuses(&["serve", "--listen", ANY_PORT, "--data", &below], &[&below]);
}

/// Clients with open connections must not keep the process from stopping.
#[test]
fn connections_that_do_nothing_do_not_keep_it_from_stopping() {
    let directory = tempfile::tempdir().expect("a directory");
    let mut server = Server::spawn(directory.path(), &[]);
    let address = format!("127.0.0.1:{}", server.port());
    let agent = agent(Some(PATIENCE));
    // More changes than the buffers of a connection hold.
    for round in 0..20 {
        let event = |number| {
            json!({
                "type": "connect", "user": format!("user {number}"), "platform": "web", "device": format!("{round}"),
                "gateway": "g", "epoch": 0, "conn": round, "intent": "login",
            })
        };
        let body = Value::from((0..2_000).map(event).collect::<Vec<_>>()).to_string();
        let sent = agent
            .post(format!("http://{address}/v1/events"))
            .send(&body)
            .expect("sent");
        assert_eq!(sent.status().as_u16(), 200);
    }
    let hang = |request: &str| {
        let mut connection = TcpStream::connect(&address).expect("connected");
        connection.write_all(request.as_bytes()).expect("written");
        connection
    };
    let silent = hang("");
    let mut asked = hang(&format!("GET /healthz HTTP/1.1\r\nhost: {address}\r\n\r\n"));
    let halfway = hang("GET /heal");
    let promised = hang(&format!(
        "POST /v1/events HTTP/1.1\r\nhost: {address}\r\ncontent-length: 1000\r\n\r\n["
    ));
    let deaf = hang(&format!(
        "GET /v1/changes?after=earliest HTTP/1.1\r\nhost: {address}\r\n\r\n"
    ));
    // They get answers.
    let mut answer = [0; 15];
    asked.read_exact(&mut answer).expect("an answer");
    assert_eq!(&answer, b"HTTP/1.1 200 OK");
    assert!(deaf.peek(&mut [0]).expect("an answer") > 0);
    server.stop();
    drop((silent, asked, halfway, promised, deaf));
}
