//! `rollcall audit heads`: how far each partition is, to be kept elsewhere, and signed.

use super::json_line;
use super::source::{AuditSource, SourceFlags};
use crate::audit::attested::{Head, SignedHead, leaf_of};
use crate::audit::merkle::Tree;
use crate::audit::verify::{Compared, OutputRecord, Verifier, hex};
use crate::clock::{Clock as _, SystemClock};
use crate::command::hash_seed;
use crate::presence::policy::Policy;
use crate::presence::{Offset, Partition};
use crate::topics::Topic;
use anyhow::{Context as _, anyhow, bail};
use aws_lc_rs::signature::{Ed25519KeyPair, KeyPair as _};
use std::io::Write;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use tokio_rustls::rustls::pki_types::PrivatePkcs8KeyDer;
use tokio_rustls::rustls::pki_types::pem::PemObject as _;

/// The chain over all outputs of each partition, to be kept elsewhere for `verify --head`
#[derive(clap::Args)]
pub struct Args {
    /// Signs each head, with the root of a Merkle tree over the partition's changes, for `prove` and `check-proof`. An Ed25519
    /// key as `openssl genpkey -algorithm ed25519` makes it
    #[arg(long, value_name = "KEYFILE")]
    sign: Option<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let policy = args.source.first_policy()?;
    let key = args.sign.as_deref().map(read_key).transpose()?;
    let source = args.source.checked()?;
    let heads = source.each_partition(|source, partition| {
        let Reached { head, folded } = reached(source, partition, &policy)?;
        let tree = match &key {
            Some(_) => Some(changes_of(source, partition, &head)?),
            None => None,
        };
        if let (Some(folded), Some(tree)) = (folded, &tree)
            && folded.root() != tree.tree.root()
        {
            bail!(
                "the changes of partition {partition} are not those that the events give, so a head over both would be wrong; \
                 `rollcall audit verify` prints the first difference"
            );
        }
        Ok((head, tree))
    })?;
    if heads.is_empty() {
        bail!("the log has no partitions");
    }
    let time = SystemClock::new().now_ms();
    for (head, tree) in heads {
        if let (Some(key), Some(tree)) = (&key, tree) {
            let signed = SignedHead::sign(head, tree.first, &tree.tree.root(), time, key);
            // A signed head is a file for programs; there is no other form of it.
            json_line(output, &signed)?;
        } else if args.source.json {
            json_line(output, &head)?;
        } else {
            let Head {
                partition,
                next,
                changes,
                head,
            } = &head;
            writeln!(
                output,
                "partition {partition}: {head} (events before offset {next}, {changes} changes)"
            )?;
        }
    }
    if let Some(key) = &key {
        eprintln!("signed with the key {}", hex(key.public_key().as_ref()));
    }
    Ok(0)
}

pub(super) fn read_key(path: &Path) -> anyhow::Result<Ed25519KeyPair> {
    let unusable = || {
        format!(
            "{} is not an Ed25519 private key in PEM (PKCS#8), as `openssl genpkey -algorithm ed25519` makes it",
            path.display()
        )
    };
    let pem = std::fs::read(path).with_context(|| format!("cannot read the key {}", path.display()))?;
    let key = PrivatePkcs8KeyDer::from_pem_slice(&pem).map_err(|error| anyhow!("{error}"));
    let key = key.with_context(unusable)?;
    Ed25519KeyPair::from_pkcs8(key.secret_pkcs8_der())
        .map_err(|rejected| anyhow!("{rejected}"))
        .with_context(unusable)
}

/// How far a partition is.
struct Reached {
    head: Head,
    /// The tree over the changes that the events give, if they were folded.
    folded: Option<Tree>,
}

/// Returns how far a partition is: as the engine has committed it, or where nobody says so, by a fold.
fn reached(source: &mut AuditSource<'_>, partition: Partition, policy: &Policy) -> anyhow::Result<Reached> {
    if let Some(position) = source.position(partition)? {
        let head = Head {
            partition: partition.0,
            next: position.next.0,
            changes: position.seq,
            head: hex(&position.chain),
        };
        return Ok(Reached { head, folded: None });
    }
    let mut folded = Tree::default();
    let mut verifier = Verifier::new(partition, policy.clone(), hash_seed());
    let mut next = 0;
    source.events(partition, |offset, ts, event| {
        verifier.fold(offset, ts, event.as_ref().map_err(Clone::clone), &mut |_| {});
        while let Some(output) = verifier.take_expected(Compared::Changes) {
            if let OutputRecord::Change(change) = output {
                folded.push(leaf_of(&change));
            }
        }
        for topic in Compared::ALL {
            verifier.skip(topic);
        }
        next = offset.0 + 1;
        Ok(ControlFlow::Continue(()))
    })?;
    let (chain, changes) = verifier.head();
    let head = Head {
        partition: partition.0,
        next,
        changes,
        head: hex(&chain),
    };
    Ok(Reached {
        head,
        folded: Some(folded),
    })
}

/// The tree over the changes of a partition that are still there.
pub struct ChangeTree {
    /// `seq` of its first change.
    pub first: u64,
    pub tree: Tree,
}

/// Builds the tree over the changes up to a head.
fn changes_of(source: &mut AuditSource<'_>, partition: Partition, head: &Head) -> anyhow::Result<ChangeTree> {
    let is_whole = source.range(Topic::Changes, partition)?.start == Offset(0);
    let mut changes = ChangeTree {
        first: 1,
        tree: Tree::default(),
    };
    source.changes(partition, |change| {
        if change.seq > head.changes {
            return Ok(ControlFlow::Break(()));
        }
        if changes.tree.leaves() == 0 {
            changes.first = change.seq;
        }
        if change.seq != changes.first + changes.tree.leaves() {
            bail!(
                "the changes of partition {partition} have number {} where {} was expected: they are not what the engine published; \
                 see `rollcall audit verify`",
                change.seq,
                changes.first + changes.tree.leaves()
            );
        }
        changes.tree.push(leaf_of(&change));
        Ok(ControlFlow::Continue(()))
    })?;
    let last = changes.first + changes.tree.leaves() - 1;
    if last != head.changes || (is_whole && changes.first != 1) {
        bail!(
            "partition {partition} has the changes {} to {last}, but there should be {}: they are not what the engine published; see \
             `rollcall audit verify`",
            changes.first,
            head.changes
        );
    }
    Ok(changes)
}
