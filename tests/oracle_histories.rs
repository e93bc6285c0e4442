//! Random histories: they have the claimed content, and the rules' guarantees hold for each of them.

use rollcall::presence::change::{Output, Part};
use rollcall::presence::event::{Event, EventType};
use rollcall::presence::{LogTime, Partition, Status};
use rollcall::sim::history;
use rollcall::sim::oracle::Oracle;
use rollcall::sim::oracle_input;
use rollcall::sim::oracle_lines::output_line;
use std::collections::BTreeMap;

const SEEDS: u64 = 60;
const RECORDS: usize = 600;
/// Enough for a rush of early ends.
const LONG_RECORDS: usize = 2_600;

#[test]
fn a_history_read_back_from_its_lines_is_the_same() {
    for seed in 0..SEEDS {
        let mut last = None;
        let count = if seed % 20 == 7 { LONG_RECORDS } else { RECORDS };
        for (offset, ts, event) in history::records(seed, count) {
            assert!(last.is_none_or(|last| last < offset), "offsets grow");
            last = Some(offset);
            let line = history::record_json(offset, ts, event.as_ref());
            let value: serde_json::Value = serde_json::from_str(&line).expect("JSON");
            let object = value.as_object().expect("an object");
            assert_eq!(object["offset"], offset.0);
            assert_eq!(object["ts"], ts);
            let decoded = oracle_input::event(object, Partition(0), None).ok();
            assert_eq!(decoded, event, "seed {seed}: {line}");
        }
    }
}

#[test]
fn the_first_policy_survives_its_document() {
    for seed in 0..2_000 {
        let document = history::policy_document(seed);
        let completed = document.clone().complete().expect("within the bounds");
        assert_eq!(completed, history::policy(seed));
        let read: serde_json::Value = serde_json::from_str(&history::document_json(&document)).expect("JSON");
        assert_eq!(oracle_input::policy(&read).expect("valid"), completed);
    }
}

#[test]
fn lines_and_events_fold_to_the_same() {
    for seed in 0..SEEDS {
        let mut oracle = Oracle::new(Partition(3), history::policy(seed));
        let mut lines = Vec::new();
        let mut input = String::new();
        for (offset, ts, event) in history::records(seed, RECORDS) {
            let mut out = Vec::new();
            oracle.fold(offset, ts, event.as_ref(), &mut out);
            lines.extend(out.iter().map(output_line));
            input.push_str(&history::record_json(offset, ts, event.as_ref()));
            input.push('\n');
        }
        lines.extend(oracle.state_lines());
        let mut folded = oracle_input::fold(input.as_bytes(), history::policy(seed), Partition(3), None);
        folded.lines.retain(|line| !line.starts_with(r#"{"type":"malformed""#));
        assert_eq!(folded.ended_by, None);
        for (folded, line) in folded.lines.iter().zip(&lines) {
            assert_eq!(folded, line, "seed {seed}");
        }
        assert_eq!(folded.lines.len(), lines.len());
    }
}

#[test]
fn the_oracle_remembers_the_least_deadline_of_everybody() {
    for seed in 0..SEEDS {
        let mut oracle = Oracle::new(Partition(0), history::policy(seed));
        for (offset, ts, event) in history::records(seed, RECORDS) {
            oracle.fold(offset, ts, event.as_ref(), &mut Vec::new());
            let checked = oracle.check_deadlines();
            assert_eq!(checked, Ok(()), "seed {seed}, offset {offset}");
        }
    }
}

#[test]
fn histories_have_every_type_of_event() {
    let mut missing: Vec<EventType> = EventType::ALL.to_vec();
    for seed in 0..50 {
        for (_, _, event) in history::records(seed, RECORDS) {
            missing.retain(|kind| event.as_ref().map(Event::event_type) != Some(*kind));
        }
    }
    assert_eq!(missing, [], "src/sim/history.rs writes no such event");
}

/// What section 7 promises of the outputs, and that the histories reach every corner of them.
#[test]
fn the_outputs_are_without_gaps_and_every_kind_of_them_occurs() {
    let mut idle = 0;
    let mut seen: BTreeMap<String, usize> = BTreeMap::new();
    for seed in 0..SEEDS {
        let mut oracle = Oracle::new(Partition(0), history::policy(seed));
        let (mut seq, mut at) = (0, LogTime(0));
        let mut users: BTreeMap<String, (u64, Status)> = BTreeMap::new();
        for (offset, ts, event) in history::records(seed, RECORDS) {
            let mut out = Vec::new();
            oracle.fold(offset, ts, event.as_ref(), &mut out);
            let mut index = 0;
            idle += usize::from(
                out.iter()
                    .any(|output| matches!(output, Output::Ignored(ignored) if ignored.part == Part::Whole)),
            );
            *seen.entry("records".to_owned()).or_default() += 1;
            for output in &out {
                let (id, when, what) = match output {
                    Output::Change(change) => {
                        seq += 1;
                        assert_eq!(change.seq, seq);
                        let user = users.entry(change.user.to_string()).or_default();
                        user.0 += 1;
                        assert_eq!((change.version, change.before), *user, "seed {seed}: {change:?}");
                        user.1 = change.after;
                        if change.cause.name() != "custom_status"
                            && change.before != Status::Online
                            && change.custom_status.is_some()
                        {
                            *seen.entry("text is back".to_owned()).or_default() += 1;
                        }
                        if change.cause.name() == "forgotten" {
                            users.remove(&*change.user);
                        }
                        assert!(change.after == Status::Online || change.custom_status.is_none());
                        assert!(change.at <= change.logged_at);
                        (change.id, change.at, format!("change {}", change.cause.name()))
                    }
                    Output::Kick(kick) => (kick.id, kick.at, format!("kick {}", kick.reason.name())),
                    Output::Ignored(ignored) => {
                        *seen.entry(format!("ignored {}", ignored.reason.name())).or_default() += 1;
                        continue;
                    }
                };
                assert_eq!((id.offset, id.index), (offset, index));
                index += 1;
                assert!(at <= when, "seed {seed}: at goes back from {at} in {output:?}");
                at = when;
                *seen.entry(what).or_default() += 1;
            }
        }
    }
    for (what, times) in &seen {
        println!("{times:8} {what}");
    }
    println!("{idle:8} records ignored");
    // 13 causes, 6 reasons to kick, 12 to ignore, texts that were kept, and the count of records.
    assert_eq!(seen.len(), 13 + 6 + 12 + 2, "{seen:?}");
    assert!(idle * 2 < seen["records"], "{idle} records were ignored: {seen:?}");
}
