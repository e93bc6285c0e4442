//! `rollcall stats` and `rollcall top`: counts and partitions of a running server, once or repeatedly.

use super::remote::{Client, Server, printed};
use super::table::columns;
use crate::api::answers::Stats;
use crate::api::routes::RouteId;
use crate::clock::{Clock, SystemClock};
use crate::config::units::{Seconds, Span};
use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::io::{IsTerminal as _, Write as _};
use std::time::Duration;

/// Shows how many users are online at a running server, and the state of its partitions
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(flatten)]
    server: Server,
}

/// Shows the output of `stats` repeatedly, with the records per second of each partition
///
/// Ends with Ctrl-C. With --json, it prints one line each time.
#[derive(clap::Args, Debug)]
pub struct TopArgs {
    /// Seconds between two updates, 1 to 3600
    #[arg(long, value_name = "SECONDS", default_value_t = Span(2_000))]
    every: Seconds,
    /// Ends after this many updates, 1 to 1000000
    #[arg(long, value_name = "COUNT", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    count: Option<u64>,
    #[command(flatten)]
    server: Server,
}

/// The applied offsets at the previous update, and its time.
struct Before {
    at_ms: u64,
    applied: BTreeMap<u32, u64>,
}

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(once(&args.server))
}

fn once(server: &Server) -> anyhow::Result<()> {
    let answer = server.client()?.get(RouteId::Stats)?;
    if server.json {
        return answer.print();
    }
    std::io::stdout()
        .lock()
        .write_all(page(&answer.read()?, None, 0).as_bytes())?;
    Ok(())
}

pub fn top(args: TopArgs) -> anyhow::Result<()> {
    printed(watch(&args, &args.server.client()?))
}

fn watch(args: &TopArgs, client: &Client) -> anyhow::Result<()> {
    let every_ms = Seconds::within("every", Some(args.every), 2_000, 1_000, 3_600_000)?;
    let clock = SystemClock::new();
    let clears = std::io::stdout().is_terminal() && !args.server.json;
    let mut before: Option<Before> = None;
    let mut updates = 0;
    loop {
        let answer = client.get(RouteId::Stats)?;
        let now_ms = clock.monotonic_ms();
        if args.server.json {
            answer.print()?;
        } else {
            let stats: Stats = answer.read()?;
            let clear = if clears { "\x1b[2J\x1b[H" } else { "" };
            let mut output = std::io::stdout().lock();
            writeln!(
                output,
                "{clear}{}\n\n{}",
                client.url(),
                page(&stats, before.as_ref(), now_ms).trim_end()
            )?;
            let applied = stats.partitions.iter();
            before = Some(Before {
                at_ms: now_ms,
                applied: applied.filter_map(|one| Some((one.partition, one.applied?))).collect(),
            });
        }
        updates += 1;
        if args.count.is_some_and(|count| updates >= count) {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(every_ms));
    }
}

fn page(stats: &Stats, before: Option<&Before>, now_ms: u64) -> String {
    let of = |counts: &BTreeMap<String, u64>| {
        let counts = counts.iter().map(|(name, count)| format!("{count} {name}"));
        counts.collect::<Vec<_>>().join(", ")
    };
    let users = &stats.users;
    let users = [
        (users.known, "known"),
        (users.offline, "offline"),
        (users.online, "online"),
        (users.push_online, "push_online"),
    ];
    let users = users.map(|(count, status)| format!("{count} {status}"));
    let mut head = vec![vec!["users".to_owned(), users.join(", ")]];
    for (status, platforms) in [
        ("online", &stats.devices.online),
        ("push_online", &stats.devices.push_online),
    ] {
        let by_platform = if platforms.is_empty() {
            "0".to_owned()
        } else {
            of(platforms)
        };
        head.push(vec![format!("devices {status}"), by_platform]);
    }
    head.push(vec!["version".to_owned(), stats.version.clone()]);
    let mut text = columns(&head);
    let titles = ["PARTITION", "STATE", "APPLIED", "LOG END", "LAG", "RECORDS/S", "OWNER"];
    let mut rows = vec![titles.map(str::to_owned).to_vec()];
    let number = |number: Option<u64>| number.map_or_else(|| "-".to_owned(), |number| number.to_string());
    for one in &stats.partitions {
        let rate = before.and_then(|before| {
            let was = before.applied.get(&one.partition)?;
            let passed_ms = now_ms.saturating_sub(before.at_ms).max(1);
            Some(one.applied?.saturating_sub(*was) * 1_000 / passed_ms)
        });
        rows.push(vec![
            one.partition.to_string(),
            one.state.clone(),
            number(one.applied),
            number(one.log_end),
            number(one.lag),
            number(rate),
            one.owner.clone().unwrap_or_else(|| "-".to_owned()),
        ]);
    }
    text.push('\n');
    text.push_str(&columns(&rows));
    for one in &stats.partitions {
        for problem in one.error.iter().chain(&one.warning) {
            let _ = writeln!(text, "partition {}: {}", one.partition, super::table::plain(problem));
        }
    }
    text
}
