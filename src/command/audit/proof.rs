//! `rollcall audit prove` and `check-proof`: that one change is among those of a signed head, without the log.

use super::source::SourceFlags;
use super::{json_line, shown};
use crate::api::answers::ChangeData;
use crate::audit::attested::{Proof, SignedHead, bytes, change_json, leaf_of};
use crate::audit::merkle::PathBuilder;
use crate::audit::verify::hex;
use crate::command::table;
use crate::presence::change::{Change, OutputId};
use crate::schema::parse_output_id;
use anyhow::{Context as _, bail};
use serde::Serialize;
use serde_json::value::RawValue;
use std::io::{Read as _, Write};
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

/// A proof that a change is among those that a signed head stands for
#[derive(clap::Args)]
pub struct ProveArgs {
    /// The id of the change, such as 0-17-0
    #[arg(value_name = "CHANGE-ID", value_parser = change_id)]
    change: OutputId,
    /// The signed head for which the proof is, as `heads --sign` printed it; of several for the partition the last
    #[arg(long, value_name = "FILE")]
    signed: PathBuf,
    #[command(flatten)]
    source: SourceFlags,
}

/// Checks a proof with nothing but a signed head
#[derive(clap::Args)]
pub struct CheckArgs {
    /// The signed head for which the proof was made; of several in the file the one that fits
    #[arg(long, value_name = "FILE")]
    signed: PathBuf,
    /// The public key that the head must be signed with, 64 hexadecimal digits. Without it anybody's head is believed
    #[arg(long, value_name = "HEX", value_parser = public_key)]
    key: Option<String>,
    /// Prints JSON, an object a line, instead of text
    #[arg(long)]
    json: bool,
    /// The file with the proof [default: standard input]
    #[arg(value_name = "FILE")]
    proof: Option<PathBuf>,
}

fn change_id(text: &str) -> Result<OutputId, String> {
    parse_output_id(text)
        .ok_or_else(|| "expected the id of a change, {partition}-{offset}-{index}, such as 0-17-0".to_owned())
}

fn public_key(text: &str) -> Result<String, String> {
    bytes::<32>(text)
        .map(|_| text.to_ascii_lowercase())
        .ok_or_else(|| "expected the 64 hexadecimal digits of an Ed25519 public key".to_owned())
}

/// Reads the signed heads of a file, a line each.
fn signed_heads(path: &Path) -> anyhow::Result<Vec<SignedHead>> {
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    let lines = text.lines().enumerate().filter(|(_, line)| !line.trim().is_empty());
    lines
        .map(|(number, line)| {
            serde_json::from_str(line).with_context(|| {
                format!(
                    "line {} of {} is not a signed head, as `rollcall audit heads --sign` prints it",
                    number + 1,
                    path.display()
                )
            })
        })
        .collect()
}

pub fn prove(args: &ProveArgs, output: &mut impl Write) -> anyhow::Result<u8> {
    let OutputId {
        partition,
        offset,
        index,
    } = args.change;
    let id = format!("{partition}-{offset}-{index}");
    let heads = signed_heads(&args.signed)?;
    let Some(signed) = heads.iter().rev().find(|signed| signed.head.partition == partition.0) else {
        bail!("{} has no head of partition {partition}", args.signed.display());
    };
    let source = args.source.checked()?;
    let mut source = source.open()?;
    source.asks_for(partition)?;
    let mut found: Option<Change> = None;
    source.changes(partition, |change| {
        if change.id == args.change {
            found = Some(change);
            return Ok(ControlFlow::Break(()));
        }
        Ok(if change.id.offset > offset {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        })
    })?;
    let Some(change) = found else {
        bail!("there is no change {id} in the log: it never was, or retention has removed it");
    };
    let (first, last) = (signed.first, signed.head.changes);
    if !(first..=last).contains(&change.seq) {
        bail!(
            "the change {id} has number {} in its partition, and the head stands for {first} to {last}; sign a newer head with \
             `rollcall audit heads --sign`",
            change.seq
        );
    }
    let mut path = PathBuilder::new(change.seq - first, last + 1 - first);
    let mut next = first;
    source.changes(partition, |change| {
        if change.seq > last {
            return Ok(ControlFlow::Break(()));
        }
        if change.seq >= first {
            if change.seq != next {
                bail!(
                    "the change with number {next} of partition {partition} is gone (retention), and the proof needs it"
                );
            }
            next += 1;
            path.push(leaf_of(&change));
        }
        Ok(ControlFlow::Continue(()))
    })?;
    let proof = Proof {
        change: change_json(&change).context("the change cannot be written as JSON")?,
        first,
        changes: last,
        path: path.path().iter().map(|hash| hex(hash)).collect(),
    };
    if let Err(unproven) = signed.proves(&proof, &change) {
        eprintln!("the log's changes do not have the root of the signed head: {unproven}");
        return Ok(1);
    }
    // A proof is a file for programs; there is no other form of it.
    json_line(output, &proof)?;
    Ok(0)
}

#[derive(Serialize)]
struct Answer {
    proven: bool,
    change: Box<RawValue>,
    /// When the head was signed; null if nothing is proven, as the key.
    time: Option<u64>,
    key: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    reason: Option<String>,
}

pub fn check(args: &CheckArgs, output: &mut impl Write) -> anyhow::Result<u8> {
    let heads = signed_heads(&args.signed)?;
    let mut text = String::new();
    match &args.proof {
        Some(path) => {
            text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        }
        None => {
            std::io::stdin().lock().read_to_string(&mut text)?;
        }
    }
    let not_a_proof = "this is not a proof, as `rollcall audit prove` prints it";
    let proof: Proof = serde_json::from_str(&text).context(not_a_proof)?;
    let data: ChangeData = serde_json::from_str(proof.change.get()).context(not_a_proof)?;
    let change = Change::try_from(data).context(not_a_proof)?;
    let fits = |signed: &&SignedHead| {
        signed.head.partition == change.id.partition.0
            && (signed.first, signed.head.changes) == (proof.first, proof.changes)
    };
    let Some(signed) = heads.iter().find(fits).or(heads.last()) else {
        bail!("{} has no signed head", args.signed.display());
    };
    let checked = signed
        .check(args.key.as_deref())
        .and_then(|()| signed.proves(&proof, &change));
    let reason = checked.as_ref().err().map(ToString::to_string);
    if args.json {
        let answer = Answer {
            proven: reason.is_none(),
            change: proof.change.clone(),
            time: reason.is_none().then_some(signed.time),
            key: reason.is_none().then(|| signed.key.clone()),
            reason: reason.clone(),
        };
        json_line(output, &answer)?;
    } else {
        let change = table::plain(proof.change.get());
        match &reason {
            None => writeln!(
                output,
                "proven: this change is in the log, as the key {} signed at {}:\n{change}",
                signed.key,
                shown(signed.time)
            )?,
            Some(reason) => writeln!(output, "NOT proven: {reason}.\n{change}")?,
        }
    }
    if args.key.is_none() && reason.is_none() {
        eprintln!("note: --key was not given, so any signer of the head is accepted");
    }
    Ok(u8::from(reason.is_some()))
}
