//! The proxy before a server that repeats each request in its answer, in place of a broker.

use crate::frames::{Api, Frame};
use crate::network::{APIS, RandomFaults};
use crate::proxy::{Action, Proxy, lock};
use crate::timeline::{Target, Timeline, reconciliations};
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, SystemTime};

const END_TXN: i16 = 26;
const PRODUCE: i16 = 0;
const FETCH: i16 = 1;
const METADATA: i16 = 3;
/// What faults happen to, as the protocol numbers it.
const NUMBERS: [i16; APIS.len()] = [END_TXN, 28, PRODUCE, 24, 25, 9, FETCH, 12, 22];

fn request(api: i16, correlation: i32, text: &str) -> Frame {
    let version = 3_i16;
    Frame(
        [
            &api.to_be_bytes()[..],
            &version.to_be_bytes(),
            &correlation.to_be_bytes(),
            text.as_bytes(),
        ]
        .concat(),
    )
}

/// The server's answer.
fn answer(request: &Frame) -> Frame {
    Frame([&request.correlation().to_be_bytes(), &request.0[8..]].concat())
}

struct Server {
    proxy: Proxy,
    /// What has arrived, in this order.
    arrived: Arc<Mutex<Vec<Frame>>>,
}

impl Server {
    fn start() -> Server {
        let arrived = Arc::<Mutex<Vec<Frame>>>::default();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a free port");
        let address = listener.local_addr().expect("bound");
        let proxy = Proxy::listen(&[0]);
        proxy.serve(vec![SocketAddrV4::new(Ipv4Addr::LOCALHOST, address.port())]);
        let server = Server {
            proxy,
            arrived: arrived.clone(),
        };
        thread::spawn(move || {
            for mut client in listener.incoming().flatten() {
                let arrived = arrived.clone();
                thread::spawn(move || {
                    while let Ok(Some(request)) = Frame::read(&mut client) {
                        lock(&arrived).push(request.clone());
                        if client.write_all(&answer(&request).to_bytes()).is_err() {
                            return;
                        }
                    }
                });
            }
        });
        server
    }

    fn client(&self) -> TcpStream {
        let address = SocketAddr::from((Ipv4Addr::LOCALHOST, self.proxy.ports()[0]));
        let client = TcpStream::connect(address).expect("the proxy listens");
        let patience = Some(Duration::from_secs(30));
        client.set_read_timeout(patience).expect("set");
        client
    }

    fn arrived(&self) -> Vec<Frame> {
        lock(&self.arrived).clone()
    }
}

fn send(client: &mut TcpStream, request: &Frame) {
    client.write_all(&request.to_bytes()).expect("connected");
}

/// None if the connection ended.
fn receive(client: &mut TcpStream) -> Option<Frame> {
    match Frame::read(client) {
        Ok(answer) => answer,
        Err(error) if error.kind() == io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("{error}"),
    }
}

#[test]
fn what_nobody_asked_for_passes_as_it_is() {
    let server = Server::start();
    let mut client = server.client();
    let requests = [
        request(PRODUCE, 1, "some"),
        request(999, -2, ""),
        request(END_TXN, 3, "id"),
    ];
    requests.iter().for_each(|request| send(&mut client, request));
    for request in &requests {
        assert_eq!(receive(&mut client), Some(answer(request)));
    }
    assert_eq!(server.arrived(), requests);
    assert_eq!(requests[2].api(), Api::EndTxn);
    assert_eq!(requests[1].api(), Api::Other(999));
}

#[test]
fn a_request_that_is_held_passes_when_it_is_released_and_the_next_ones_wait_behind_it() {
    let server = Server::start();
    let held = server.proxy.next(Api::Produce, "kicks", Action::Hold);
    let (mut client, mut other) = (server.client(), server.client());
    let [first, second, third] =
        [(1, "changes"), (2, "kicks"), (3, "current")].map(|(n, text)| request(PRODUCE, n, text));
    [&first, &second, &third]
        .iter()
        .for_each(|request| send(&mut client, request));
    assert_eq!(held.request(), (0, second.clone()));
    assert_eq!(receive(&mut client), Some(answer(&first)));
    let beside = request(PRODUCE, 7, "kicks of another");
    send(&mut other, &beside);
    assert_eq!(receive(&mut other), Some(answer(&beside)), "it was only the next one");
    assert_eq!(server.arrived(), [first.clone(), beside.clone()]);
    held.release();
    assert_eq!(receive(&mut client), Some(answer(&second)));
    assert_eq!(held.answer(), answer(&second));
    assert_eq!(receive(&mut client), Some(answer(&third)));
    assert_eq!(server.arrived(), [first, beside, second, third]);
}

#[test]
fn a_request_that_is_kept_arrives_after_its_copy() {
    let server = Server::start();
    let kept = server.proxy.next(Api::EndTxn, "id", Action::Keep);
    let end = request(END_TXN, 5, "id");
    let mut client = server.client();
    send(&mut client, &end);
    assert_eq!(receive(&mut client), None);
    let mut again = server.client();
    let copy = request(END_TXN, 1, "id");
    send(&mut again, &copy);
    assert_eq!(receive(&mut again), Some(answer(&copy)));
    assert_eq!(server.proxy.deliver(&kept.request()), answer(&end));
    assert_eq!(server.arrived(), [copy, end]);
}

#[test]
fn of_a_request_that_is_lost_nothing_arrives_and_of_an_answer_that_is_lost_the_request_has() {
    let server = Server::start();
    let (lost, answered) = (request(PRODUCE, 1, "lost"), request(PRODUCE, 2, "answered"));
    server.proxy.next(Api::Produce, "lost", Action::Lose);
    let unheard = server.proxy.next(Api::Produce, "answered", Action::LoseAnswer);
    for request in [&lost, &answered] {
        let mut client = server.client();
        send(&mut client, request);
        assert_eq!(receive(&mut client), None);
    }
    assert_eq!(unheard.answer(), answer(&answered));
    assert_eq!(server.arrived(), [answered]);
}

#[test]
fn another_answer_is_given_under_the_number_of_the_request() {
    let server = Server::start();
    let older = server.proxy.next(Api::Fetch, "", Action::Pass);
    let mut client = server.client();
    let (first, second) = (request(FETCH, 1, "old"), request(FETCH, 2, "new"));
    send(&mut client, &first);
    assert_eq!(receive(&mut client), Some(answer(&first)));
    let older = older.answer();
    server.proxy.next(Api::Fetch, "", Action::Answer(older.clone()));
    send(&mut client, &second);
    assert_eq!(receive(&mut client), Some(answer(&request(FETCH, 2, "old"))));
    assert_eq!(server.arrived(), [first, second]);
}

#[test]
fn a_broker_that_is_cut_off_is_back_afterwards() {
    let server = Server::start();
    let (mut client, mut other) = (server.client(), server.client());
    let request = request(PRODUCE, 1, "x");
    send(&mut other, &request);
    assert_eq!(receive(&mut other), Some(answer(&request)));
    let time = Duration::from_millis(300);
    server.proxy.next(Api::Produce, "x", Action::CutOff(time));
    send(&mut client, &request);
    assert_eq!(receive(&mut client), None);
    assert_eq!(receive(&mut other), None, "all connections are reset");
    loop {
        let mut again = server.client();
        // A client that is refused may not be able to send any more.
        let _ = again.write_all(&request.to_bytes());
        if receive(&mut again) == Some(answer(&request)) {
            break;
        }
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn random_faults_are_the_seeds_and_in_the_end_of_every_kind() {
    let directory = tempfile::tempdir().expect("a directory");
    let run = |seed| {
        let timeline = Arc::new(Timeline::default());
        let mut faults = RandomFaults::new(seed, Duration::ZERO, directory.path().to_owned(), timeline, "group");
        let mut actions = Vec::new();
        for number in NUMBERS.repeat(400) {
            let asked = request(number, 1, "group-3");
            let api = asked.api();
            actions.extend(faults.strike(1, &asked).map(|action| format!("{api:?} {action:?}")));
            assert!(
                faults.strike(1, &request(METADATA, 1, "group-3")).is_none(),
                "only what engines need to commit"
            );
        }
        (actions, faults.struck)
    };
    let (actions, struck) = run(7);
    assert_eq!((&actions, &struck), (&run(7).0, &run(7).1));
    assert_ne!(actions, run(8).0);
    assert_eq!(struck.len(), 6, "{struck:?}");
    assert_eq!(struck.values().sum::<u32>() as usize, actions.len());
    let apis: BTreeSet<&str> = actions.iter().filter_map(|action| action.split(' ').next()).collect();
    assert_eq!(apis.len(), APIS.len(), "{apis:?}");
}

/// Two failures of commits, of which an engine found the outputs, and one taken-up partition.
const SAID: &str = "\
2026-11-28T20:00:30.000000Z ERROR the partition cannot go on; trying again partition=3 error=log: the commit of partition 3: timed out
2026-11-28T20:00:31.500000Z  WARN a commit that failed was found in the log partition=3 there=5 cause=\"commit_unknown\"
2026-11-28T20:02:00.000000Z  WARN the log has outputs behind the committed position: they are compared with the fold and not sent again partition=1 position=7 last=9 index=0 cause=\"position_behind\"
";

#[test]
fn a_reconciliation_is_explained_by_a_fault_of_its_partition_shortly_before_and_by_no_other() {
    let begin = SystemTime::UNIX_EPOCH + Duration::from_secs(1_795_896_000);
    let at = |second| begin + Duration::from_secs(second);
    let found = reconciliations(0, SAID);
    assert_eq!(found.len(), 2, "{found:?}");
    // The fault, what it happens to, from when to when; and which of the two it explains.
    let cases = [
        (
            "a request of its producer",
            Target::Connection(1),
            20,
            20,
            [true, false],
        ),
        (
            "another partition's producer",
            Target::Connection(2),
            29,
            80,
            [false, true],
        ),
        ("nobody's", Target::Connection(3), 29, 29, [false, false]),
        ("too long before", Target::Connection(1), 10, 17, [false, false]),
        ("after it", Target::Connection(1), 31, 40, [false, false]),
        ("a broker", Target::Brokers, 10, 110, [true, true]),
        ("its own sleep", Target::Engine(0), 20, 29, [true, false]),
        ("another engine's end", Target::Engine(1), 29, 80, [false, true]),
    ];
    for (kind, target, from, to, explained) in cases {
        let timeline = Timeline::default();
        for (connection, id) in [(1, "group-3"), (2, "group-1"), (3, "other-3")] {
            timeline.learn(connection, "group", &request(END_TXN, 1, id));
        }
        timeline.note_until(kind, target, at(from), at(to));
        let is_explained: Vec<bool> = timeline
            .explain_all(found.clone())
            .iter()
            .map(|one| one.by.is_some())
            .collect();
        assert_eq!(is_explained, explained, "{kind}");
    }
}
