//! The proxy before a server that repeats each request in its answer, in place of a broker.

use crate::frames::{Api, Frame};
use crate::network::{APIS, RandomFaults};
use crate::proxy::{Action, Proxy, lock};
use std::collections::BTreeSet;
use std::io::{self, Write as _};
use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4, TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

const END_TXN: i16 = 26;
const PRODUCE: i16 = 0;
const FETCH: i16 = 1;

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
        let proxy = Proxy::listen(1);
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
        let mut faults = RandomFaults::new(seed, Duration::ZERO, directory.path().to_owned());
        let mut actions = Vec::new();
        for api in APIS.repeat(400) {
            actions.extend(faults.strike(api).map(|action| format!("{api:?} {action:?}")));
            assert!(
                faults.strike(Api::Other(3)).is_none(),
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
