//! Signed heads, and proofs that one change is among those that a head stands for.
//!
//! A head says how far a partition is: its chain over all outputs, and the root of a Merkle tree over its changes. With a
//! signed head and a proof a change can be checked without the log. `docs/audit.md` describes the exact bytes.

use super::merkle::{self, Hash};
use super::verify::hex;
use crate::presence::change::{Change, Output};
use crate::schema::{avro, json};
use aws_lc_rs::signature::{ED25519, Ed25519KeyPair, KeyPair as _, UnparsedPublicKey};
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

/// The first line of what is signed.
const SIGNED_TEXT: &str = "rollcall signed head 1";

/// How far a partition was, in the order in which it is printed.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct Head {
    pub partition: u32,
    /// The next event to be folded.
    pub next: u64,
    pub changes: u64,
    /// The chain over all outputs, in hexadecimal.
    pub head: String,
}

/// A head with the root of the tree over its changes, and who says so.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct SignedHead {
    #[serde(flatten)]
    pub head: Head,
    /// `seq` of the first change in the tree; the last one is that of `changes`.
    pub first: u64,
    /// In hexadecimal, as key and signature.
    pub root: String,
    /// When it was signed, by the clock of the machine that did.
    pub time: u64,
    pub key: String,
    pub signature: String,
}

/// That a change is in the tree of a head.
#[derive(Serialize, Deserialize, Clone, Debug)]
pub struct Proof {
    /// As `rollcall log changes` prints it.
    pub change: Box<RawValue>,
    /// The `seq` of the first and of the last change of the tree that has this change.
    pub first: u64,
    pub changes: u64,
    /// The hashes beside the way from the change to the root, in hexadecimal.
    pub path: Vec<String>,
}

/// What is wrong with a head or a proof.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum Unproven {
    #[error("the signature of the head is not that of its key over its content: the head was altered")]
    Signature,
    #[error("the head is signed with the key {found}, not with {expected}")]
    Key { found: String, expected: String },
    #[error("{0} is not hexadecimal of the expected length")]
    Hexadecimal(&'static str),
    #[error("the change is of partition {change}, the head of partition {head}")]
    Partition { change: u32, head: u32 },
    #[error(
        "the proof is for the tree of the changes {}..={}, the head for that of the changes {}..={}; make the proof for this head",
        .proof.0, .proof.1, .head.0, .head.1
    )]
    OtherTree { proof: (u64, u64), head: (u64, u64) },
    #[error("the change with its path does not lead to the root of the head: the change or the proof was altered")]
    Root,
}

/// Returns the leaf of a change: its Avro datum, as the chain takes it, without the bytes that name its schema.
pub fn leaf_of(change: &Change) -> Hash {
    let mut datum = Vec::new();
    avro::write_change_datum(change, &mut datum);
    merkle::leaf(&datum)
}

/// Returns a change as it stands in a proof.
pub fn change_json(change: &Change) -> Option<Box<RawValue>> {
    let mut line = Vec::new();
    json::output_line(&mut line, &Output::Change(change.clone()));
    RawValue::from_string(String::from_utf8(line).ok()?).ok()
}

impl SignedHead {
    pub fn sign(head: Head, first: u64, root: &Hash, time: u64, key: &Ed25519KeyPair) -> SignedHead {
        let mut signed = SignedHead {
            head,
            first,
            root: hex(root),
            time,
            key: hex(key.public_key().as_ref()),
            signature: String::new(),
        };
        signed.signature = hex(key.sign(signed.text().as_bytes()).as_ref());
        signed
    }

    /// What is signed: a line for each field, in this order.
    fn text(&self) -> String {
        let Head {
            partition,
            next,
            changes,
            head,
        } = &self.head;
        let SignedHead { first, root, time, .. } = self;
        format!(
            "{SIGNED_TEXT}\npartition {partition}\nnext {next}\nchanges {changes}\nhead {head}\nfirst {first}\nroot {root}\ntime {time}\n"
        )
    }

    /// Checks the signature, and that it is made with this public key, if one is given.
    pub fn check(&self, key: Option<&str>) -> Result<(), Unproven> {
        if let Some(expected) = key
            && !expected.eq_ignore_ascii_case(&self.key)
        {
            return Err(Unproven::Key {
                found: self.key.clone(),
                expected: expected.to_owned(),
            });
        }
        let public = bytes::<32>(&self.key).ok_or(Unproven::Hexadecimal("the key"))?;
        let signature = bytes::<64>(&self.signature).ok_or(Unproven::Hexadecimal("the signature"))?;
        UnparsedPublicKey::new(&ED25519, public)
            .verify(self.text().as_bytes(), &signature)
            .map_err(|_| Unproven::Signature)
    }

    /// Checks that a change is among those of this head. `change` is that of the proof, as it was read.
    pub fn proves(&self, proof: &Proof, change: &Change) -> Result<(), Unproven> {
        if change.id.partition.0 != self.head.partition {
            return Err(Unproven::Partition {
                change: change.id.partition.0,
                head: self.head.partition,
            });
        }
        // Some fields of the JSON say what others say, and are not part of the leaf.
        let value = |json: &RawValue| serde_json::from_str::<serde_json::Value>(json.get()).ok();
        let written = change_json(change).and_then(|json| value(&json));
        if written.is_none() || written != value(&proof.change) {
            return Err(Unproven::Root);
        }
        let (of_proof, of_head) = ((proof.first, proof.changes), (self.first, self.head.changes));
        if of_proof != of_head {
            return Err(Unproven::OtherTree {
                proof: of_proof,
                head: of_head,
            });
        }
        let path: Option<Vec<Hash>> = proof.path.iter().map(|hash| bytes::<32>(hash)).collect();
        let path = path.ok_or(Unproven::Hexadecimal("a hash of the path"))?;
        let root = bytes::<32>(&self.root).ok_or(Unproven::Hexadecimal("the root"))?;
        let leaves = (self.head.changes + 1).saturating_sub(self.first);
        let index = change.seq.checked_sub(self.first).ok_or(Unproven::Root)?;
        match merkle::root_of(leaf_of(change), index, leaves, &path) {
            Some(found) if found == root => Ok(()),
            Some(_) | None => Err(Unproven::Root),
        }
    }
}

/// Reads bytes from hexadecimal.
pub fn bytes<const LENGTH: usize>(text: &str) -> Option<[u8; LENGTH]> {
    let digit = |at: usize| text.get(at..at + 2).and_then(|two| u8::from_str_radix(two, 16).ok());
    let is_hexadecimal = text.len() == 2 * LENGTH && text.bytes().all(|byte| byte.is_ascii_hexdigit());
    let bytes: Option<Vec<u8>> = (0..LENGTH).map(|byte| digit(2 * byte)).collect();
    bytes.filter(|_| is_hexadecimal).and_then(|bytes| bytes.try_into().ok())
}
