//! What a network or a broker can do to the bookkeeping of transactions, one story each: the outputs are still the fold's, each
//! once and in order, or the engine says what it cannot decide.

use crate::engine::{self, Node};
use crate::frames::{Api, Frame};
use crate::proxied::Proxied;
use crate::proxy::Action;
use crate::python;
use crate::space::Space;
use serde_json::json;
use std::time::Duration;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(180);

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
        engine::until(&[&self.node], PATIENCE, what, holds);
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

/// The end of a transaction stays in the network until the next one has begun. The client has sent it again meanwhile, and
/// the copy ends the next transaction in its middle.
pub fn an_end_of_a_transaction_that_arrives_in_the_next_one_doubles_nothing(proxied: &Proxied) {
    let mut story = Story::begin(proxied, "late-end");
    let id = story.producer();
    let end = proxied.proxy.next(Api::EndTxn, &id, Action::Keep);
    story.login();
    let kept = end.request();
    story.settle();

    let some = proxied.proxy.next(Api::Produce, &id, Action::Pass);
    let others = proxied.proxy.next(Api::Produce, &id, Action::Hold);
    story.login();
    others.request();
    some.answer();
    // The engine met the broken connection and has fenced itself off with a new producer. Of the same one the broker
    // believes a copy that comes late, and commits what the next transaction has so far.
    assert_ne!(
        error_of(&proxied.proxy.deliver(&kept)),
        0,
        "the broker must not believe the copy"
    );
    others.release();
    story.settle();

    story.login();
    story.is_right();
}

/// The error of an answer that begins with the time for which the client is throttled.
fn error_of(answer: &Frame) -> i16 {
    i16::from_be_bytes(answer.0[8..10].try_into().expect("two bytes"))
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

/// Brokers have given an offset back that was committed before the last one (Redpanda's issue 9571).
pub fn an_old_position_that_is_given_back_doubles_nothing(proxied: &Proxied) {
    let mut story = Story::begin(proxied, "old-position");
    let group = story.space.group.clone();
    story.login();
    story.settle();
    story.node.stop();

    let older = proxied.proxy.next(Api::OffsetFetch, &group, Action::Pass);
    story.start();
    let older = older.answer();
    story.login();
    story.login();
    story.settle();
    story.node.stop();

    let given_back = proxied.proxy.next(Api::OffsetFetch, &group, Action::Answer(older));
    story.start();
    given_back.answer();
    story.login();
    story.is_right();
}

pub fn a_position_that_is_gone_beside_outputs_is_refused(proxied: &Proxied) {
    let mut story = Story::begin(proxied, "no-position");
    story.login();
    story.login();
    story.settle();
    story.node.stop();
    let outputs = || ["changes", "kicks"].map(|topic| python::run("reader.py", &story.space, &["print", topic]));
    let before = outputs();

    python::run("topics.py", &story.space, &["delete_group", &story.space.group]);
    story.node.start(None);
    story.until("it says that it cannot know how far the outputs are", || {
        story.node.diary().contains("--adopt-tail")
    });
    assert!(!story.is_ready());
    assert_eq!(outputs(), before);
    story.node.stop();
}
