//! What a network or a broker can do to the bookkeeping of transactions, one story each: the outputs are still the fold's, each
//! once and in order, or the engine says what it cannot decide.

use crate::engine::Node;
use crate::frames::Api;
use crate::proxied::Proxied;
use crate::proxy::Action;
use crate::python;
use crate::space::Space;
use serde_json::json;
use std::thread;
use std::time::{Duration, Instant};
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// A node that comes through the proxy, with one partition.
struct Story {
    space: Space,
    node: Node,
    logins: u64,
    _directory: TempDir,
}

impl Story {
    fn begin(proxied: &Proxied, name: &str) -> Story {
        let directory = tempfile::tempdir().expect("a directory");
        let space = Space::new(&proxied.cluster.bootstrap, name, 1);
        let node = Node::new(directory.path(), &space.reached_by(&proxied.proxy.bootstrap()), 0, &[]);
        let mut story = Story {
            space,
            node,
            logins: 0,
            _directory: directory,
        };
        story.start();
        story
    }

    fn until(&self, what: &str, holds: impl Fn() -> bool) {
        let begun = Instant::now();
        while !holds() {
            assert!(begun.elapsed() < PATIENCE, "not yet: {what}\n{}", self.node.diary());
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn start(&mut self) {
        self.node.start(None);
        self.until("it is ready", || self.is_ready());
    }

    fn is_ready(&self) -> bool {
        self.node.get("/readyz").is_some_and(|(status, _)| status == 200)
    }

    /// One user, and every time another device of one kind: a change each, and from the second on a kick of the last one.
    fn login(&mut self) {
        self.logins += 1;
        let event = json!({"type": "connect", "user": "alice", "platform": "android", "device": format!("d{}", self.logins),
            "gateway": "g", "epoch": 1, "conn": self.logins, "intent": "login"});
        let posted = ureq::post(format!("{}/v1/events", self.node.url())).send(event.to_string());
        assert!(posted.expect("posted").status().is_success());
    }

    /// Waits until everything is folded and committed.
    fn settle(&self) {
        self.until("everything is committed", || {
            python::places(&self.space)
                .iter()
                .all(|(committed, end)| committed == end)
        });
    }

    /// The transactional id of the partition's producer.
    fn producer(&self) -> String {
        format!("{}-0", self.space.group)
    }

    /// Ends it, and compares what is in the topics with the fold of the events.
    fn is_right(&mut self) {
        self.settle();
        self.node.stop();
        let verdict = python::check(&self.space, None);
        let diary = self.node.diary();
        assert!(
            verdict.complaints.is_empty(),
            "{}\n{diary}",
            verdict.complaints.join("\n")
        );
        assert_eq!(verdict.sum("wrong"), 0, "{}", verdict.sums);
        assert_eq!(verdict.sum("changes"), self.logins, "{}", verdict.sums);
        assert_eq!(verdict.sum("kicks"), self.logins - 1, "{}", verdict.sums);
    }
}

pub fn an_end_of_a_transaction_whose_answer_is_lost_doubles_nothing(proxied: &Proxied) {
    let mut story = Story::begin(proxied, "lost-answer");
    let id = story.producer();
    for _ in 0..2 {
        let lost = proxied.proxy.next(Api::EndTxn, &id, Action::LoseAnswer);
        story.login();
        lost.answer();
        story.settle();
    }
    story.login();
    story.is_right();
}
