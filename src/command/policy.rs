//! `rollcall policy`: shows, checks or replaces the policy of a running server, and lists those of a log.

mod check;

use super::remote::{Client, Server, printed};
use super::table::plain;
use crate::api::answers::PolicyAnswer;
use crate::api::requests::{NewEvent, TypeName};
use crate::api::routes::RouteId;
use crate::config::read_policy;
use crate::presence::event::EventType;
use crate::schema::policy::policy_json;
use anyhow::Context as _;
use serde_json::{Value, json};
use std::io::Write as _;
use std::path::PathBuf;

/// Shows the policy in force at a running server, or publishes a new one
#[derive(clap::Args, Debug)]
pub struct Args {
    #[command(subcommand)]
    what: What,
}

#[derive(clap::Subcommand, Debug)]
enum What {
    /// Shows the policy in force, with all defaults filled in
    #[command(visible_alias = "show")]
    Get {
        #[command(flatten)]
        server: Server,
    },
    /// Publishes a policy and shows how it differs from the one in force; requires a token with the scope admin
    ///
    /// The file is checked first. A setting that it does not name gets its default, not the value in force.
    #[command(visible_alias = "apply")]
    Set {
        /// JSON file with the policy
        file: PathBuf,
        /// Only shows the differences
        #[arg(long)]
        dry_run: bool,
        #[command(flatten)]
        server: Server,
    },
    /// Says in words what a policy would change, and refuses one that is not valid; publishes nothing
    Check(Box<check::CheckArgs>),
    /// Lists the policies that the log has, each with its record and how it differs from the one before
    History(Box<check::HistoryArgs>),
}

pub fn run(args: Args) -> anyhow::Result<()> {
    printed(match args.what {
        What::Get { server } => get(&server),
        What::Set { file, dry_run, server } => set(&file, dry_run, &server),
        What::Check(args) => check::check(&args),
        What::History(args) => check::history(&args),
    })
}

fn get(server: &Server) -> anyhow::Result<()> {
    let answer = server.client()?.get(RouteId::Policy)?;
    if server.json {
        return answer.print();
    }
    let PolicyAnswer::<Value> { policy, since: _ } = answer.read()?;
    let text = serde_json::to_string_pretty(&policy)?;
    writeln!(std::io::stdout().lock(), "{text}")?;
    Ok(())
}

fn in_force(client: &Client) -> anyhow::Result<Value> {
    Ok(client.get(RouteId::Policy)?.read::<PolicyAnswer<Value>>()?.policy)
}

fn set(file: &std::path::Path, dry_run: bool, server: &Server) -> anyhow::Result<()> {
    let policy = read_policy(Some(file))?.context("the file has no policy")?;
    let policy: Value = serde_json::from_str(&policy_json(&policy))?;
    let client = server.client()?;
    let mut changes = Vec::new();
    differences("", &in_force(&client)?, &policy, &mut changes);
    let mut answer = None;
    if !dry_run {
        let event = NewEvent {
            kind: TypeName(EventType::Policy),
            policy: Some(policy),
            ..NewEvent::default()
        };
        answer = Some(client.post(RouteId::Events, &[event])?);
    }
    match (server.json, answer) {
        (true, Some(answer)) => return answer.print(),
        (true, None) => {
            writeln!(std::io::stdout().lock(), "{}", json!({ "differences": changes }))?;
            return Ok(());
        }
        (false, _) => {}
    }
    let mut output = std::io::stdout().lock();
    for change in &changes {
        writeln!(output, "{}", plain(change))?;
    }
    let summary = match (changes.is_empty(), dry_run) {
        (true, true) => "no differences",
        (true, false) => "published; no differences",
        (false, true) => "not published (--dry-run)",
        (false, false) => "published; each partition applies it from its record on",
    };
    writeln!(output, "{summary}")?;
    Ok(())
}

/// Adds one line for each value that differs: `platforms.web.timeout_ms: 70000 → 90000`.
fn differences(path: &str, before: &Value, after: &Value, lines: &mut Vec<String>) {
    let (Value::Object(old), Value::Object(new)) = (before, after) else {
        if before != after {
            lines.push(format!("{path}: {} → {}", shown(before), shown(after)));
        }
        return;
    };
    let mut keys: Vec<&String> = old.keys().chain(new.keys()).collect();
    keys.sort_unstable();
    keys.dedup();
    for key in keys {
        let path = if path.is_empty() {
            key.clone()
        } else {
            format!("{path}.{key}")
        };
        let of = |side: &serde_json::Map<String, Value>| side.get(key).cloned().unwrap_or(Value::Null);
        differences(&path, &of(old), &of(new), lines);
    }
}

fn shown(value: &Value) -> String {
    match value {
        Value::Null => "none".to_owned(),
        value => value.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::differences;
    use serde_json::json;

    #[test]
    fn only_what_differs_is_told_by_its_path() {
        let mut lines = Vec::new();
        let before =
            json!({"login": "multi", "platforms": {"web": {"timeout_ms": 1, "push": false}}, "exclusive": null});
        let after = json!({"login": "multi", "platforms": {"web": {"timeout_ms": 2, "push": false}, "tv": {"push": true}},
                           "exclusive": [["web"]]});
        differences("", &before, &after, &mut lines);
        let expected = [
            "exclusive: none → [[\"web\"]]",
            "platforms.tv: none → {\"push\":true}",
            "platforms.web.timeout_ms: 1 → 2",
        ];
        assert_eq!(lines, expected);
    }
}
