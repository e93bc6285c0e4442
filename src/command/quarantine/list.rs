//! `rollcall quarantine list`: the kinds of malformed records, each with its number and its newest record.

use super::super::table::{columns, plain};
use super::{Source, shown_time};
use crate::presence::{Offset, Partition};
use crate::schema::json::Object;
use crate::topics::Topic;
use std::collections::BTreeMap;
use std::io::Write as _;

/// Lists what is wrong with malformed events: each kind of error, how often it is there, and the newest record
///
/// Errors that differ only in what they quote and in numbers are one kind.
#[derive(clap::Args)]
pub struct ListArgs {
    #[command(flatten)]
    source: Source,
    /// Only this partition, from 0
    #[arg(long, value_name = "N")]
    partition: Option<u32>,
    /// Prints one JSON line for each kind instead of a table
    #[arg(long)]
    json: bool,
}

/// The most kinds that are kept apart.
const KINDS_MAX: usize = 1_000;
/// The kind of all errors that come when there are that many.
const OTHER: &str = "others";

/// Malformed records of one kind.
struct ErrorKind {
    count: u64,
    first_ts: u64,
    last_ts: u64,
    partition: Partition,
    offset: Offset,
    /// The error of the newest record.
    error: String,
}

pub fn list(args: &ListArgs) -> anyhow::Result<()> {
    let mut quarantine = args.source.open()?;
    let mut kinds: BTreeMap<String, ErrorKind> = BTreeMap::new();
    for partition in quarantine.partitions(args.partition)?.map(Partition) {
        let range = quarantine.range(Topic::Quarantine, partition)?;
        let mut next = range.start;
        loop {
            let records = quarantine.batch(Topic::Quarantine, partition, &mut next, range.end)?;
            if records.is_empty() {
                break;
            }
            for record in &records {
                let malformed = quarantine.quarantined(partition, record)?;
                let mut name = kind_of(&malformed.error);
                if kinds.len() >= KINDS_MAX && !kinds.contains_key(&name) {
                    name = OTHER.to_owned();
                }
                let kind = kinds.entry(name).or_insert(ErrorKind {
                    count: 0,
                    first_ts: malformed.ts,
                    last_ts: 0,
                    partition,
                    offset: malformed.offset,
                    error: String::new(),
                });
                kind.count += 1;
                kind.first_ts = kind.first_ts.min(malformed.ts);
                if malformed.ts >= kind.last_ts {
                    kind.last_ts = malformed.ts;
                    (kind.partition, kind.offset) = (malformed.partition, malformed.offset);
                    malformed.error.as_ref().clone_into(&mut kind.error);
                }
            }
        }
    }
    let mut kinds: Vec<ErrorKind> = kinds.into_values().collect();
    kinds.sort_by_key(|kind| (std::cmp::Reverse(kind.count), kind.partition, kind.offset));
    print(&kinds, args.json)
}

fn print(kinds: &[ErrorKind], is_json: bool) -> anyhow::Result<()> {
    let mut output = std::io::stdout().lock();
    if is_json {
        for kind in kinds {
            let mut line = Vec::new();
            let mut object = Object::new(&mut line);
            object
                .number("count", kind.count)
                .number("first_ts", kind.first_ts)
                .number("last_ts", kind.last_ts)
                .number("partition", kind.partition.0.into())
                .number("offset", kind.offset.0)
                .text("error", &kind.error)
                .end();
            line.push(b'\n');
            output.write_all(&line)?;
        }
        return Ok(());
    }
    if kinds.is_empty() {
        writeln!(output, "nothing is in quarantine")?;
        return Ok(());
    }
    let header = ["COUNT", "FIRST", "LAST", "NEWEST", "ERROR OF THE NEWEST"];
    let mut rows = vec![header.map(str::to_owned).to_vec()];
    rows.extend(kinds.iter().map(|kind| {
        vec![
            kind.count.to_string(),
            shown_time(kind.first_ts),
            shown_time(kind.last_ts),
            format!("{}:{}", kind.partition, kind.offset),
            plain(&kind.error),
        ]
    }));
    write!(output, "{}", columns(&rows))?;
    writeln!(
        output,
        "`rollcall quarantine explain NEWEST` says more about one record"
    )?;
    Ok(())
}

/// Returns an error without what it quotes and without numbers.
fn kind_of(error: &str) -> String {
    let mut kind = String::with_capacity(error.len());
    let mut quoted = false;
    let mut escaped = false;
    for c in error.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' if quoted => escaped = true,
            '"' => {
                quoted = !quoted;
                kind.push('"');
            }
            _ if quoted => {}
            '0'..='9' if kind.ends_with('0') => {}
            '0'..='9' => kind.push('0'),
            c => kind.push(c),
        }
    }
    kind
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_are_of_one_kind_if_only_what_they_quote_and_numbers_differ() {
        let of = |user: &str, home: u32| {
            format!(
                "user {user:?} belongs to partition {home} of 64, not to 7: is the publisher's partitioner murmur2?"
            )
        };
        assert_eq!(kind_of(&of("alice", 3)), kind_of(&of("b\"o\\b", 41)));
        assert_ne!(kind_of(&of("alice", 3)), kind_of("user is missing"));
        assert_eq!(kind_of("epoch must be 0 to 12, not -1"), "epoch must be 0 to 0, not -0");
    }
}
