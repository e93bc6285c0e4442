//! `rollcall audit what-if`: what the same events would have given under another policy.

use super::source::{AuditSource, SourceFlags};
use super::{json_line, parse_time, shown};
use crate::audit::what_if::{Detection, PartitionFigures, Point, Totals, WasWould, WhatIf, WhatIfLine, Window};
use crate::command::{hash_seed, table};
use crate::config::units::{Milliseconds, Span};
use crate::presence::policy::Policy;
use crate::presence::{LogTime, Partition};
use crate::schema::policy::{parse_policy, policy_json};
use crate::topics::Topic;
use anyhow::{Context as _, anyhow, bail};
use serde_json::Value;
use std::io::Write;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::str::FromStr;

/// What the same events would have given under another policy
///
/// --policy names the policy to try. The policy records of the log are left out, unless --keep-policies is given.
#[derive(clap::Args)]
pub struct Args {
    /// Counts only changes from this time on
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    from: Option<String>,
    /// Counts only changes up to this time
    #[arg(long, value_name = "TIME", allow_hyphen_values = true)]
    to: Option<String>,
    /// Policy records of the log replace the policy that is tried
    #[arg(long)]
    keep_policies: bool,
    /// How soon a lost device must be back for the loss to have been a false one
    #[arg(long, value_name = "MS", default_value_t = Span(60_000))]
    again_ms: Milliseconds,
    /// Tries several values of one setting of the policy in one pass: N of them from A to B
    #[arg(long, value_name = "NAME=A..B/N")]
    sweep: Option<Sweep>,
    /// Exit status 1 if a policy that is tried would give more than this
    #[arg(long, value_name = "max_false_offlines=N")]
    gate: Option<Gate>,
    /// Compares with a fold under this first policy, not with the published changes
    #[arg(long, value_name = "FILE")]
    was_policy: Option<PathBuf>,
    #[command(flatten)]
    source: SourceFlags,
}

/// Ten years, as for every duration of a policy.
const AGAIN_MS_MAX: u64 = crate::presence::policy::bounds::MS_MAX;
const POINTS_MAX: u64 = 1_000;

/// One setting of a policy, and the values that it is given.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Sweep {
    name: String,
    values: Vec<u64>,
}

impl FromStr for Sweep {
    type Err = String;

    fn from_str(text: &str) -> Result<Sweep, String> {
        let expected = || {
            format!(
                "expected NAME=A..B/N, such as platforms.android.timeout_ms=60000..600000/10, with 1 to {POINTS_MAX} values"
            )
        };
        let parsed = || {
            let (name, values) = text.split_once('=')?;
            let (range, count) = values.split_once('/')?;
            let (first, last) = range.split_once("..")?;
            let number = |text: &str| text.parse::<u64>().ok();
            Some((name, number(first)?, number(last)?, number(count)?))
        };
        let (name, first, last, count) = parsed().ok_or_else(expected)?;
        if name.is_empty() || !(1..=POINTS_MAX).contains(&count) {
            return Err(expected());
        }
        let steps = u128::from(count - 1).max(1);
        let value = |at: u64| {
            let part = |distance: u64| (u128::from(distance) * u128::from(at) / steps) as u64;
            if last >= first {
                first + part(last - first)
            } else {
                first - part(first - last)
            }
        };
        Ok(Sweep {
            name: name.to_owned(),
            values: (0..count).map(value).collect(),
        })
    }
}

impl Sweep {
    /// Returns the policy with one of the values.
    fn policy(&self, base: &Policy, value: u64) -> anyhow::Result<Policy> {
        let mut document: Value = serde_json::from_str(&policy_json(base))?;
        // The names of platforms and kinds may contain dots, those of settings do not.
        let (section, rest) = self.name.split_once('.').unwrap_or(("", &self.name));
        let (middle, last) = match section {
            "platforms" => rest.rsplit_once('.').unwrap_or(("", rest)),
            _ => ("", rest),
        };
        let mut path = [section, middle].into_iter().filter(|step| !step.is_empty());
        let parent = path.try_fold(&mut document, |value, step| value.get_mut(step));
        let Some(Value::Object(parent)) = parent else {
            bail!(
                "--sweep {}: the policy has no such setting; expected for example platforms.android.timeout_ms",
                self.name
            );
        };
        parent.insert(last.to_owned(), Value::from(value));
        parse_policy(&document.to_string())
            .map_err(|invalid| anyhow!("{invalid}"))
            .with_context(|| format!("--sweep {}={value} gives a policy that is not valid", self.name))
    }
}

/// What a policy may not exceed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Gate {
    max_false_offlines: u64,
}

impl FromStr for Gate {
    type Err = String;

    fn from_str(text: &str) -> Result<Gate, String> {
        let number = text
            .strip_prefix("max_false_offlines=")
            .and_then(|number| number.parse().ok());
        number
            .map(|max_false_offlines| Gate { max_false_offlines })
            .ok_or_else(|| "expected max_false_offlines=N, such as max_false_offlines=100".to_owned())
    }
}

pub fn run(args: &Args, output: &mut impl Write) -> anyhow::Result<u8> {
    let bound = |text: &Option<String>| text.as_deref().map(parse_time).transpose();
    let window = Window {
        from: bound(&args.from)?.unwrap_or(LogTime(0)),
        to: bound(&args.to)?,
        again_ms: Milliseconds::within("again-ms", Some(args.again_ms), 60_000, 0, AGAIN_MS_MAX)?,
    };
    if let Some(to) = window.to
        && window.from > to
    {
        bail!("--from {} is after --to {}", shown(window.from.0), shown(to.0));
    }
    if args.source.policy.is_none() && args.sweep.is_none() {
        bail!("--policy FILE is missing: the policy to try, or --sweep with a setting to vary");
    }
    let base = args.source.first_policy()?;
    let (values, policies): (Vec<Option<u64>>, Vec<Policy>) = match &args.sweep {
        None => (vec![None], vec![base]),
        Some(sweep) => {
            let policies = sweep.values.iter().map(|value| sweep.policy(&base, *value));
            (
                sweep.values.iter().copied().map(Some).collect(),
                policies.collect::<anyhow::Result<_>>()?,
            )
        }
    };
    let was_policy = crate::config::read_policy(args.was_policy.as_deref())?;
    let outcomes = args
        .source
        .checked()?
        .each_partition(|source, partition| try_policies(args, window, &was_policy, &policies, source, partition))?;
    let mut was = Totals::default();
    let mut points = vec![Point::default(); policies.len()];
    for outcome in &outcomes {
        was.add(&outcome.was);
        for (sum, point) in points.iter_mut().zip(&outcome.points) {
            sum.add(point);
        }
    }
    let lines: Vec<WhatIfLine> = points
        .iter()
        .zip(values)
        .map(|(point, value)| point.line(value, &was))
        .collect();
    if args.source.json {
        lines.iter().try_for_each(|line| json_line(output, line))?;
    } else if let Some(sweep) = &args.sweep {
        output.write_all(curve(&sweep.name, &lines).as_bytes())?;
    } else {
        for line in &lines {
            output.write_all(comparison(line).as_bytes())?;
        }
    }
    let mut status = 0;
    if let Some(gate) = args.gate {
        for line in &lines {
            let would = line.false_offlines.would;
            if would > gate.max_false_offlines {
                let value = line
                    .value
                    .map_or_else(String::new, |value| format!(" with the value {value}"));
                eprintln!(
                    "the gate is max_false_offlines={}, and there would be {would}{value}",
                    gate.max_false_offlines
                );
                status = 1;
            }
        }
    }
    Ok(status)
}

fn try_policies(
    args: &Args,
    window: Window,
    was_policy: &Option<Policy>,
    policies: &[Policy],
    source: &mut AuditSource<'_>,
    partition: Partition,
) -> anyhow::Result<PartitionFigures> {
    source.reaches_the_beginning(Topic::Events, partition, "`what-if`")?;
    // Up to here both sides have everything.
    let until = source.position(partition)?.map(|position| position.next);
    let first_policy = match was_policy {
        Some(policy) => Some(policy.clone()),
        None if source.has(Topic::Changes) => None,
        None => Some(Policy::default()),
    };
    let is_published = first_policy.is_none();
    let mut what_if = WhatIf::new(
        partition,
        window,
        first_policy,
        policies,
        args.keep_policies,
        hash_seed(),
    );
    let flow = |more: bool| {
        if more {
            ControlFlow::Continue(())
        } else {
            ControlFlow::Break(())
        }
    };
    if is_published {
        source.reaches_the_beginning(Topic::Changes, partition, "`what-if` without --was-policy")?;
        source.changes(partition, |change| {
            let is_committed = until.is_none_or(|until| change.id.offset < until);
            Ok(flow(is_committed && what_if.published(&change)))
        })?;
    }
    source.events(partition, |offset, ts, event| {
        let is_committed = until.is_none_or(|until| offset < until);
        Ok(flow(is_committed && what_if.fold(offset, ts, event.as_ref().ok())))
    })?;
    Ok(what_if.finish())
}

/// One policy, figure by figure.
fn comparison(line: &WhatIfLine) -> String {
    let mut rows = vec![["", "was", "would be"].map(str::to_owned).to_vec()];
    let mut row = |name: String, was: String, would: String| rows.push(vec![name, was, would]);
    let numbers = |both: &WasWould<u64>| (both.was.to_string(), both.would.to_string());
    let (was, would) = numbers(&line.changes);
    row("changes".to_owned(), was, would);
    row(
        "users affected".to_owned(),
        String::new(),
        line.users_affected.to_string(),
    );
    let (was, would) = numbers(&line.false_offlines);
    row("false offlines".to_owned(), was, would);
    let Detection { p50, p99 } = line.detection_ms.was;
    let would = line.detection_ms.would;
    for (name, was, would) in [("median", p50, would.p50), ("99th percentile", p99, would.p99)] {
        row(format!("detection, {name}"), seconds(was), seconds(would));
    }
    for (platform, both) in &line.online_ms {
        row(
            format!("online on {platform}"),
            seconds(Some(both.was)),
            seconds(Some(both.would)),
        );
    }
    table::columns(&rows)
}

/// A sweep, a line a point.
fn curve(name: &str, lines: &[WhatIfLine]) -> String {
    let head = [
        name,
        "changes",
        "users affected",
        "false offlines",
        "detection, median",
        "99th percentile",
    ];
    let mut rows = vec![head.map(str::to_owned).to_vec()];
    if let Some(first) = lines.first() {
        let Detection { p50, p99 } = first.detection_ms.was;
        rows.push(vec![
            "as it was".to_owned(),
            first.changes.was.to_string(),
            String::new(),
            first.false_offlines.was.to_string(),
            seconds(p50),
            seconds(p99),
        ]);
    }
    for line in lines {
        let Detection { p50, p99 } = line.detection_ms.would;
        rows.push(vec![
            line.value.unwrap_or_default().to_string(),
            line.changes.would.to_string(),
            line.users_affected.to_string(),
            line.false_offlines.would.to_string(),
            seconds(p50),
            seconds(p99),
        ]);
    }
    table::columns(&rows)
}

fn seconds(ms: Option<u64>) -> String {
    ms.map_or_else(|| "none".to_owned(), |ms| format!("{}.{:03} s", ms / 1_000, ms % 1_000))
}

#[cfg(test)]
mod tests {
    use super::{Gate, Policy, Sweep};

    #[test]
    fn a_sweep_has_its_ends_and_equal_steps_between() {
        let values = |text: &str| text.parse::<Sweep>().map(|sweep| sweep.values);
        assert_eq!(values("a=60..600/10"), Ok((1..=10).map(|n| n * 60).collect()));
        assert_eq!(values("a=10..0/3"), Ok(vec![10, 5, 0]));
        assert_eq!(values("a=7..9/1"), Ok(vec![7]));
        for wrong in [
            "",
            "a=1..2",
            "=1..2/2",
            "a=1..2/0",
            "a=1-2/2",
            "a=1..2/1001",
            "a=x..2/2",
        ] {
            let error = values(wrong).unwrap_err();
            assert!(error.contains("NAME=A..B/N"), "{wrong}: {error}");
        }
        let gate = "max_false_offlines=3".parse();
        assert_eq!(gate, Ok(Gate { max_false_offlines: 3 }));
        assert!("max_false_offlines".parse::<Gate>().is_err());
    }

    #[test]
    fn every_number_of_a_policy_can_be_varied_and_what_is_refused_is_named() {
        let base = Policy::default();
        let with = |name: &str, value: u64| {
            let sweep = Sweep {
                name: name.to_owned(),
                values: Vec::new(),
            };
            sweep.policy(&base, value).map_err(|error| format!("{error:#}"))
        };
        assert_eq!(
            with("platforms.web.timeout_ms", 7).unwrap().platforms["web"].timeout_ms,
            7
        );
        assert_eq!(
            with("platforms.web.background_ms", 7).unwrap().platforms["web"].background_ms,
            Some(7)
        );
        assert_eq!(with("outage.silence_ms", 2_000).unwrap().outage.silence_ms, 2_000);
        assert_eq!(with("kicked_max", 7).unwrap().kicked_max, 7);
        assert_eq!(with("instances.a.b", 7).unwrap().instances["a.b"], 7);
        let refused = |name: &str, value: u64, wants: &str| {
            let error = with(name, value).unwrap_err();
            assert!(error.contains(wants), "{error}");
        };
        refused("platforms.web.timeout_ms", 0, "platforms.web.timeout_ms must be 1 to");
        refused("platforms.web.timeout", 5, "unknown key \"timeout\" in platforms.web");
        refused("platforms.tv.timeout_ms", 5, "no such setting");
        refused("custom_kept_ms", 5, "custom_keep_ms");
    }
}
