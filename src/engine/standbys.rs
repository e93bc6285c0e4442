//! Which nodes stand by for which partitions. Every node decides this by itself from the same facts: the nodes that stand
//! by, and the owner of each partition.

use crate::log::StandbyNodes;
use crate::presence::Partition;
use std::sync::Arc;
use twox_hash::XxHash3_64;

/// How this node stands by for partitions of others.
#[derive(Clone)]
pub struct Standbys {
    /// How many nodes stand by for each partition.
    pub count: usize,
    pub nodes: Arc<dyn StandbyNodes>,
}

/// Whether this node stands by for a partition that another node owns. The nodes with the greatest weights do
/// (rendezvous hashing): if a node comes or goes, only the standbys on it move.
pub fn is_chosen(partition: Partition, owner: &str, this_node: &str, nodes: &[String], count: usize) -> bool {
    let weight = |node: &str| XxHash3_64::oneshot_with_seed(partition.0.into(), node.as_bytes());
    let mine = (weight(this_node), this_node);
    let others = nodes.iter().filter(|node| *node != this_node && *node != owner);
    let before = others.filter(|node| (weight(node), node.as_str()) > mine).count();
    owner != this_node && before < count
}

/// A standby is kept for this long after another node was chosen in its place: nodes restart, and partitions move on.
const UNWANTED_MS: u64 = 10_000;
/// A standby is kept no longer than this, whether others are ready or not.
const UNWANTED_MAX_MS: u64 = 600_000;

/// Whether a standby may end when another node was chosen in its place `unwanted_ms` ago. It waits until `count` others are ready,
/// because they may still have all events to fold.
pub fn may_end(unwanted_ms: u64, others_ready: usize, count: usize) -> bool {
    unwanted_ms >= UNWANTED_MAX_MS || (unwanted_ms >= UNWANTED_MS && others_ready >= count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_ends_when_enough_others_are_ready_or_after_long() {
        assert!(!may_end(UNWANTED_MS - 1, 2, 2));
        assert!(may_end(UNWANTED_MS, 2, 2));
        assert!(!may_end(UNWANTED_MAX_MS - 1, 1, 2));
        assert!(may_end(UNWANTED_MAX_MS, 0, 2));
    }

    fn nodes(count: usize) -> Vec<String> {
        (0..count).map(|number| format!("http://node-{number}:8080")).collect()
    }

    fn chosen(partition: u32, owner: &str, nodes: &[String], count: usize) -> Vec<String> {
        let is_chosen = |node: &&String| is_chosen(Partition(partition), owner, node, nodes, count);
        nodes.iter().filter(is_chosen).cloned().collect()
    }

    #[test]
    fn as_many_nodes_as_wanted_stand_by_and_never_the_owner() {
        let nodes = nodes(5);
        for partition in 0..200 {
            let owner = &nodes[partition as usize % 5];
            for count in 0..=3 {
                let chosen = chosen(partition, owner, &nodes, count);
                assert_eq!(chosen.len(), count);
                assert!(!chosen.contains(owner));
            }
        }
        assert_eq!(
            chosen(0, &nodes[0], &nodes[..1], 1),
            Vec::<String>::new(),
            "there is no other node"
        );
        assert_eq!(chosen(0, &nodes[0], &nodes[..2], 3), nodes[1..2]);
    }

    #[test]
    fn a_node_that_goes_moves_only_its_own_standbys_and_all_nodes_have_about_as_many() {
        let nodes = nodes(6);
        let owner = "http://owner:8080";
        let mut counts = vec![0; 6];
        for partition in 0..600 {
            let before = chosen(partition, owner, &nodes, 1);
            let number = nodes.iter().position(|node| *node == before[0]).unwrap();
            counts[number] += 1;
            let without: Vec<String> = nodes[..5].to_vec();
            if number != 5 {
                assert_eq!(chosen(partition, owner, &without, 1), before);
            }
        }
        assert!(counts.iter().all(|count| (50..150).contains(count)), "{counts:?}");
    }
}
