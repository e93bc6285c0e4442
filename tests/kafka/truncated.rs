//! Events that are deleted before they were folded: the partition halts and reports it, and the others continue.

use crate::engine::{self, Node};
use crate::python::{self, Load};
use crate::space::Space;
use std::thread;
use std::time::{Duration, Instant};

const PARTITIONS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(180);

pub fn events_that_are_gone_halt_their_partition_only(bootstrap: &str, seed: u64) {
    let directory = tempfile::tempdir().expect("a directory");
    let space = Space::new(bootstrap, "truncated", PARTITIONS);
    let mut node = Node::new(directory.path(), &space, 0, &[]);
    let committed = || -> Vec<u64> { python::places(&space).iter().map(|(committed, _)| *committed).collect() };
    let ends = || -> Vec<u64> { python::places(&space).iter().map(|(_, end)| *end).collect() };
    let until = |node: &Node, what: &str, holds: &dyn Fn() -> bool| engine::until(&[node], PATIENCE, what, holds);
    let write = |seed| {
        let before = ends();
        let load = Load::start(&space, seed, &["--seconds", "300", "--rate", "500"]);
        let begun = Instant::now();
        while ends().iter().zip(&before).any(|(end, before)| *end < before + 200) {
            assert!(begun.elapsed() < PATIENCE, "the load does not come");
            thread::sleep(Duration::from_millis(200));
        }
        load.end()["ends"].clone()
    };
    let has_all = |ends: &serde_json::Value, of: std::ops::Range<usize>| {
        let committed = committed();
        of.into_iter().all(|partition| {
            let last = ends[partition.to_string()].as_u64();
            last.is_some_and(|last| committed[partition] > last)
        })
    };

    let checkpoints = format!("file://{}", directory.path().join("checkpoints").display());
    let judged = || space.topics("check", &["--checkpoints", &checkpoints, "--group", &space.group]);

    node.start(None);
    let first = write(seed);
    until(&node, "the first events are folded", &|| has_all(&first, 0..PARTITIONS));
    node.stop();
    let before = committed();

    let second = write(seed + 1);
    let end = ends()[0];
    assert!(end > before[0], "there is something to lose");
    let said = judged();
    assert!(
        said.contains("the log reaches back to every checkpoint of group"),
        "{said}"
    );
    python::run("topics.py", &space, &["truncate", "events", "0", &end.to_string()]);
    let said = judged();
    let warning = format!(
        "warning {}.events, partition 0: there is no checkpoint, and the log begins at offset {end}: a store that is lost",
        space.prefix
    );
    assert!(said.contains(&warning), "{said}");
    assert!(
        !said.contains("partition 1"),
        "of the others there is nothing to say: {said}"
    );
    let said_before = node.diary().len();
    node.start(None);
    until(&node, "the others go on", &|| has_all(&second, 1..PARTITIONS));

    let logged = |node: &Node| node.diary()[said_before.min(node.diary().len())..].to_owned();
    until(&node, "it says which offset is gone", &|| {
        logged(&node)
            .lines()
            .any(|line| line.contains("partition 0") && line.contains(&before[0].to_string()))
    });
    // The gap is never skipped, and every request about the partition reports it.
    thread::sleep(Duration::from_secs(3));
    assert_eq!(committed()[0], before[0], "it went on:\n{}", node.diary());
    let (status, body) = node.get("/readyz").expect("it answers");
    assert_eq!(status, 503, "{body}");
    println!("{body}");
    for line in logged(&node).lines().filter(|line| line.contains("partition 0")) {
        println!("{line}");
    }
    node.stop();
}
