//! `rollcall upgrade`: raises the partitions of a running server, or cluster, to a newer revision.

use super::remote::{Server, printed};
use super::table::columns;
use crate::api::answers::Stats;
use crate::api::requests::{NewEvent, TypeName};
use crate::api::routes::RouteId;
use crate::presence::event::EventType;
use anyhow::bail;
use std::io::Write as _;

/// Raises every partition to the newest revision that all nodes know; requires a token with the scope admin
///
/// A version that does not know the revision can no longer work on these partitions, so there is no way back. Without
/// anything to raise it only shows what each partition has.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// The revision [default: the newest that every node knows]
    #[arg(long, value_name = "REVISION", value_parser = clap::value_parser!(u32).range(1..=2_147_483_647))]
    to: Option<u32>,
    /// Only shows what each partition has
    #[arg(long)]
    dry_run: bool,
    #[command(flatten)]
    server: Server,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(upgrade(&args))
}

fn upgrade(args: &Args) -> anyhow::Result<()> {
    let client = args.server.client()?;
    let answer = client.get(RouteId::Stats)?;
    let stats: Stats = answer.read()?;
    let to = args.to.unwrap_or(stats.revision);
    if to > stats.revision {
        bail!(
            "--to {to}: a node knows revisions up to {} only, and its partitions would halt; upgrade every node first",
            stats.revision
        );
    }
    // One that does not say is moving: the record is harmless if it has the revision already.
    let is_below = |revision: Option<u32>| revision.is_none_or(|revision| revision < to);
    let is_needed = stats.partitions.iter().any(|one| is_below(one.revision));
    let published = match is_needed && !args.dry_run {
        true => {
            let event = NewEvent {
                kind: TypeName(EventType::Revision),
                revision: Some(to),
                ..NewEvent::default()
            };
            Some(client.post(RouteId::Events, &[event])?)
        }
        false => None,
    };
    if args.server.json {
        return published.unwrap_or(answer).print();
    }
    let mut rows = vec![["PARTITION", "STATE", "REVISION", "OWNER"].map(str::to_owned).to_vec()];
    for one in &stats.partitions {
        let revision = one
            .revision
            .map_or_else(|| "-".to_owned(), |revision| revision.to_string());
        let owner = one.owner.clone().unwrap_or_else(|| "-".to_owned());
        rows.push(vec![one.partition.to_string(), one.state.clone(), revision, owner]);
    }
    let summary = match (is_needed, published.is_some()) {
        (false, _) => format!("every partition has revision {to} already"),
        (true, true) => format!("published; each partition has revision {to} from its record on"),
        (true, false) => format!("not published (--dry-run); every node knows revision {to}"),
    };
    let mut output = std::io::stdout().lock();
    write!(output, "{}", columns(&rows))?;
    writeln!(output, "{summary}")?;
    Ok(())
}
