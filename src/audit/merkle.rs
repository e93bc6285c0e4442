//! Merkle trees over the changes of a partition, as RFC 6962 (Certificate Transparency) builds them, with SHA-256.
//!
//! Roots and proofs are computed while the changes pass by, with memory for one hash a level of the tree.

use aws_lc_rs::digest::{Context, SHA256};

pub type Hash = [u8; 32];

fn sha256(parts: &[&[u8]]) -> Hash {
    let mut context = Context::new(&SHA256);
    parts.iter().for_each(|part| context.update(part));
    let mut hash = [0; 32];
    hash.copy_from_slice(context.finish().as_ref());
    hash
}

/// Returns the hash of a leaf: of a zero byte and its content.
pub fn leaf(content: &[u8]) -> Hash {
    sha256(&[&[0], content])
}

fn node(left: &Hash, right: &Hash) -> Hash {
    sha256(&[&[1], left, right])
}

/// A tree that grows at its right end.
#[derive(Clone, Default, Debug)]
pub struct Tree {
    leaves: u64,
    /// The roots of the full subtrees, the largest first.
    full: Vec<Hash>,
}

impl Tree {
    pub fn push(&mut self, leaf: Hash) {
        let mut root = leaf;
        // As many subtrees become one as there are ones at the end of the number of leaves.
        for _ in 0..self.leaves.trailing_ones() {
            if let Some(left) = self.full.pop() {
                root = node(&left, &root);
            }
        }
        self.full.push(root);
        self.leaves += 1;
    }

    pub fn leaves(&self) -> u64 {
        self.leaves
    }

    /// Returns the root; that of no leaves is the hash of nothing.
    pub fn root(&self) -> Hash {
        let mut subtrees = self.full.iter().rev();
        let Some(last) = subtrees.next() else {
            return sha256(&[]);
        };
        subtrees.fold(*last, |right, left| node(left, &right))
    }
}

/// The hashes that lead from one leaf to the root, gathered while all leaves pass by.
pub struct PathBuilder {
    /// The subtrees beside the way, from the leaf up: the first leaf of each, the one after its last, and the tree.
    beside: Vec<(u64, u64, Tree)>,
    next: u64,
}

impl PathBuilder {
    /// The path of the leaf with this index, counted from 0, in a tree of `leaves` leaves.
    pub fn new(index: u64, leaves: u64) -> PathBuilder {
        let (mut first, mut after) = (0, leaves);
        let mut beside = Vec::new();
        while after - first > 1 {
            let split = first + largest_power_below(after - first);
            if index < split {
                beside.push((split, after, Tree::default()));
                after = split;
            } else {
                beside.push((first, split, Tree::default()));
                first = split;
            }
        }
        beside.reverse();
        PathBuilder { beside, next: 0 }
    }

    pub fn push(&mut self, leaf: Hash) {
        let at = self.next;
        self.next += 1;
        let beside = self
            .beside
            .iter_mut()
            .find(|(first, after, _)| (*first..*after).contains(&at));
        if let Some((_, _, tree)) = beside {
            tree.push(leaf);
        }
    }

    /// Returns the path, from the leaf up.
    pub fn path(&self) -> Vec<Hash> {
        self.beside.iter().map(|(_, _, tree)| tree.root()).collect()
    }
}

/// Returns the root to which a path leads from a leaf; `None` if the path does not have the length that it has in such a tree.
pub fn root_of(leaf: Hash, index: u64, leaves: u64, path: &[Hash]) -> Option<Hash> {
    if index >= leaves {
        return None;
    }
    // Where the way goes at each level, from the root down: whether it is in the left subtree.
    let (mut first, mut after) = (0, leaves);
    let mut is_left = Vec::new();
    while after - first > 1 {
        let split = first + largest_power_below(after - first);
        is_left.push(index < split);
        if index < split {
            after = split;
        } else {
            first = split;
        }
    }
    if is_left.len() != path.len() {
        return None;
    }
    let way = path.iter().zip(is_left.into_iter().rev());
    Some(way.fold(leaf, |hash, (beside, is_left)| {
        if is_left {
            node(&hash, beside)
        } else {
            node(beside, &hash)
        }
    }))
}

/// Returns the largest power of two below a number of at least 2.
fn largest_power_below(number: u64) -> u64 {
    1 << (u64::BITS - 1 - (number - 1).leading_zeros())
}

#[cfg(test)]
mod tests {
    use super::{Hash, PathBuilder, Tree, leaf, node, root_of};
    use crate::audit::verify::hex;

    /// The definition of RFC 6962, section 2.1, word for word.
    fn naive(leaves: &[Hash]) -> Hash {
        match leaves {
            [] => Tree::default().root(),
            [one] => *one,
            many => {
                let mut split = 1;
                while split * 2 < many.len() {
                    split *= 2;
                }
                node(&naive(&many[..split]), &naive(&many[split..]))
            }
        }
    }

    #[test]
    fn roots_are_those_of_certificate_transparency() {
        let inputs: [&[u8]; 8] = [
            b"",
            b"\x00",
            b"\x10",
            b"\x20\x21",
            b"\x30\x31",
            b"\x40\x41\x42\x43",
            b"\x50\x51\x52\x53\x54\x55\x56\x57",
            b"\x60\x61\x62\x63\x64\x65\x66\x67\x68\x69\x6a\x6b\x6c\x6d\x6e\x6f",
        ];
        let mut tree = Tree::default();
        assert_eq!(
            hex(&tree.root()),
            "e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855"
        );
        tree.push(leaf(inputs[0]));
        assert_eq!(
            hex(&tree.root()),
            "6e340b9cffb37a989ca544e6bb780a2c78901d3fb33738768511a30617afa01d"
        );
        inputs[1..].iter().for_each(|input| tree.push(leaf(input)));
        assert_eq!(
            hex(&tree.root()),
            "5dc9da79a70659a9ad559cb701ded9a2ab9d823aad2f4960cfe370eff4604328"
        );
    }

    #[test]
    fn every_path_leads_to_the_root_and_no_other_leaf_or_place_does() {
        for count in 1..=33u64 {
            let leaves: Vec<Hash> = (0..count).map(|number| leaf(&number.to_be_bytes())).collect();
            let mut tree = Tree::default();
            leaves.iter().for_each(|leaf| tree.push(*leaf));
            assert_eq!(tree.root(), naive(&leaves), "{count}");
            for index in 0..count {
                let mut builder = PathBuilder::new(index, count);
                leaves.iter().for_each(|leaf| builder.push(*leaf));
                let path = builder.path();
                let root = |leaf: Hash, index, count, path: &[Hash]| root_of(leaf, index, count, path);
                let own = leaves[index as usize];
                assert_eq!(root(own, index, count, &path), Some(tree.root()), "{index} of {count}");
                assert_ne!(root(leaf(b"another"), index, count, &path), Some(tree.root()));
                assert_eq!(root(own, count, count, &path), None);
                if count > 1 {
                    assert_eq!(root(own, index, count, &path[1..]), None);
                    assert_ne!(root(own, (index + 1) % count, count, &path), Some(tree.root()));
                    let mut other = path.clone();
                    other[0][0] ^= 1;
                    assert_ne!(root(own, index, count, &other), Some(tree.root()));
                }
            }
        }
    }
}
