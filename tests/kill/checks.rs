//! Checks the log when no process writes it: compares it with the sent events and with `rollcall fold`.

use crate::clients::{Request, Shown, first_policy, markers};
use crate::followers::Seen;
use crate::{FOLLOWED, PARTITIONS};
use rollcall::clock::SystemClock;
use rollcall::command::fold::{Setting, TIDY_EVERY, fold};
use rollcall::log::local::{LocalLog, Settings};
use rollcall::log::{Limit, Log as _, Record};
use rollcall::presence::change::Output;
use rollcall::presence::policy::Policy;
use rollcall::presence::state::State;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::{avro, json};
use rollcall::topics::Topic;
use serde_json::{Value, json};
use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

pub struct Shelf {
    /// Those that are folded, which is all but ticks: the process adds ticks until it ends.
    pub events: Vec<Record>,
    /// As lines, by the place of their topic in [`FOLLOWED`].
    pub outputs: [Vec<String>; 2],
}

pub fn read_log(data: &Path) -> Vec<Shelf> {
    let clock = Arc::new(SystemClock::new());
    let log = LocalLog::open(&rollcall::command::log_directory(data), Settings::default(), clock)
        .expect("the log is whole and free");
    assert_eq!(log.partitions(), PARTITIONS);
    let records = |topic, partition| {
        let mut records = Vec::new();
        loop {
            let limit = Limit {
                records: 10_000,
                bytes: 8 << 20,
            };
            let before = records.len();
            log.read(topic, partition, Offset(before as u64), limit, &mut records)
                .expect("readable");
            if records.len() == before {
                break;
            }
        }
        for (number, record) in (0..).zip(&records) {
            assert_eq!(record.offset, Offset(number), "{topic} of partition {partition}");
        }
        records
    };
    let shelf = |partition| {
        assert_eq!(records(Topic::Quarantine, partition), Vec::new());
        let change = |record: &Record| {
            let change = avro::decode_change(&record.value).expect("a change");
            assert_eq!(record.key.as_deref(), Some(change.user.as_bytes()));
            line(Output::Change(change))
        };
        let kick = |record: &Record| {
            let kick = avro::decode_kick(&record.value).expect("a kick");
            assert_eq!(record.key.as_deref(), Some(kick.gateway.as_bytes()));
            line(Output::Kick(kick))
        };
        let mut owned = log.take_up(partition).expect("nobody has it");
        let folded = owned.position().expect("readable").next.0 as usize;
        let mut events = records(Topic::Events, partition);
        let left: Vec<Value> = events
            .drain(folded.min(events.len())..)
            .map(|record| as_sent(&record))
            .collect();
        assert!(left.iter().all(|event| *event == tick()), "not folded: {left:?}");
        Shelf {
            events,
            outputs: [
                records(Topic::Changes, partition).iter().map(change).collect(),
                records(Topic::Kicks, partition).iter().map(kick).collect(),
            ],
        }
    };
    (0..PARTITIONS).map(Partition).map(shelf).collect()
}

fn tick() -> Value {
    json!({"type": "tick"})
}

pub fn line(output: Output) -> String {
    let mut line = Vec::new();
    json::output_line(&mut line, &output);
    String::from_utf8(line).expect("UTF-8")
}

/// A record as a line of events.
pub fn event_line(record: &Record) -> String {
    let event = avro::decode_event(&record.value).expect("an event");
    let mut line = Vec::new();
    json::event_line(&mut line, record.offset, record.ts, &event);
    String::from_utf8(line).expect("UTF-8")
}

/// A record as it was sent.
pub fn as_sent(record: &Record) -> Value {
    let mut event: Value = serde_json::from_str(&event_line(record)).expect("JSON");
    let fields = event.as_object_mut().expect("an object");
    fields.remove("offset");
    fields.remove("ts");
    let user = event["user"].as_str().map(str::as_bytes);
    assert_eq!(record.key.as_deref(), user, "{event}");
    event
}

/// Holds what is in the log against what was sent: all that was acknowledged is where it was said to be, every other
/// request is there whole or not at all, at most as often as it was sent, and there is nothing else.
pub fn check_events(shelves: &[Shelf], requests: &[Request]) {
    let sent: Vec<Vec<Value>> = shelves
        .iter()
        .map(|shelf| shelf.events.iter().map(as_sent).collect())
        .collect();
    let mut known: Vec<Vec<bool>> = sent.iter().map(|events| vec![false; events.len()]).collect();
    let mut claim = |partition: Partition, offset: usize| {
        let known = &mut known[partition.0 as usize][offset];
        assert!(
            !*known,
            "offset {offset} of partition {partition} is two things at once"
        );
        *known = true;
    };
    for request in requests {
        for ((partition, event), offset) in request.records.iter().zip(request.acknowledged.iter().flatten()) {
            let found = sent[partition.0 as usize].get(offset.0 as usize);
            assert_eq!(found, Some(event), "acknowledged at {offset} of partition {partition}");
            claim(*partition, offset.0 as usize);
        }
    }

    let markers = markers();
    let mark = |event: &Value| {
        let user = event["user"].as_str()?;
        let text = event["text"].as_str()?;
        markers.iter().any(|marker| marker == user).then(|| text.to_owned())
    };
    let mut by_mark = HashMap::new();
    for (number, request) in requests.iter().enumerate().filter(|(_, request)| request.marked) {
        by_mark.insert(mark(&request.events[0]).expect("a mark"), number);
    }
    // How often a marked request is there, by partition.
    let mut there = vec![[0u64; PARTITIONS as usize]; requests.len()];
    for (partition, events) in (0..).map(Partition).zip(&sent) {
        let marked = events.iter().enumerate();
        for (offset, text) in marked.filter_map(|(offset, event)| Some((offset, mark(event)?))) {
            let number = by_mark[&text];
            there[number][partition.0 as usize] += 1;
            let acknowledged = &requests[number].acknowledged;
            let places = requests[number].records.iter().zip(acknowledged.iter().flatten());
            let mut places = places.filter(|(record, _)| record.0 == partition);
            if places.next().is_some_and(|(_, first)| first.0 as usize == offset) {
                continue;
            }
            for (at, event) in (offset..).zip(requests[number].part(partition)) {
                let found = events.get(at);
                assert_eq!(
                    found,
                    Some(event),
                    "of request {text:?} at {at} of partition {partition}"
                );
                claim(partition, at);
            }
        }
    }
    for (request, there) in requests.iter().zip(there).filter(|(request, _)| request.marked) {
        assert!(
            there.iter().all(|count| *count == there[0]),
            "torn: {there:?} of {:?}",
            request.events
        );
        assert!(there[0] <= request.attempts);
    }

    let mut unanswered: HashMap<(Partition, String), u64> = HashMap::new();
    for request in requests.iter().filter(|request| !request.marked) {
        let attempts = request.attempts - u64::from(request.acknowledged.is_some());
        for (partition, event) in &request.records {
            *unanswered.entry((*partition, event.to_string())).or_default() += attempts;
        }
    }
    let first = rollcall::schema::policy::parse_policy(&first_policy().to_string()).expect("a policy");
    for (partition, (events, known)) in (0..).map(Partition).zip(sent.iter().zip(&known)) {
        let others = events.iter().zip(known).enumerate().filter(|(_, (_, known))| !**known);
        for (offset, (event, _)) in others {
            if offset == 0 {
                let policy = rollcall::schema::policy::parse_policy(&event["policy"].to_string());
                assert_eq!(
                    policy,
                    Ok(first.clone()),
                    "the first record is the policy that was given"
                );
            } else if *event != tick() {
                let left = unanswered
                    .get_mut(&(partition, event.to_string()))
                    .filter(|left| **left > 0);
                *left.unwrap_or_else(|| panic!("nobody sent {event} at {offset} of partition {partition}")) -= 1;
            }
        }
    }
}

/// Holds what the process made of the events against what `rollcall fold` makes of them. Gives the users
/// who are there in the end.
pub fn check_outputs(shelves: &[Shelf]) -> Vec<String> {
    let check = |(partition, shelf): (Partition, &Shelf)| {
        let lines = shelf.events.iter().map(event_line);
        let events: String = lines.map(|line| line + "\n").collect();
        let setting = Setting {
            policy: Policy::default(),
            partition,
            partitions: Some(PARTITIONS),
            state: true,
            tidy_every: TIDY_EVERY,
        };
        let mut folded = Vec::new();
        fold(setting, events.as_bytes(), &mut folded).expect("folded");
        let folded = String::from_utf8(folded).expect("UTF-8");
        let of = |kind: &str| {
            let prefix = format!(r#"{{"type":"{kind}""#);
            let lines = folded.lines().filter(move |line| line.starts_with(&prefix));
            lines.map(str::to_owned).collect::<Vec<_>>()
        };
        assert_eq!(of("malformed"), Vec::<String>::new());
        for (kind, found) in ["change", "kick"].into_iter().zip(&shelf.outputs) {
            same(found, &of(kind), &format!("{kind}s of partition {partition}"));
        }
        let name = |line: String| {
            let user: Value = serde_json::from_str(&line).expect("JSON");
            user["user"].as_str().expect("a name").to_owned()
        };
        of("user").into_iter().map(name).collect::<Vec<_>>()
    };
    (0..).map(Partition).zip(shelves).flat_map(check).collect()
}

/// As `assert_eq!`, but prints only the first difference.
pub fn same(found: &[String], wanted: &[String], what: &str) {
    for (number, (found, wanted)) in found.iter().zip(wanted).enumerate() {
        assert_eq!(found, wanted, "{what}, number {number}");
    }
    assert_eq!(found.len(), wanted.len(), "{what}");
}

/// Every user who was shown was so after the record that the answer names.
pub fn check_shown(shelves: &[Shelf], shown: &[Shown]) {
    for (partition, shelf) in (0..).map(Partition).zip(shelves) {
        let mut here: HashMap<Offset, Vec<&Shown>> = HashMap::new();
        for shown in shown.iter().filter(|shown| shown.partition == partition) {
            here.entry(shown.offset).or_default().push(shown);
        }
        let mut state = State::new(partition, Policy::default());
        for record in &shelf.events {
            let event = avro::decode_event(&record.value).expect("an event");
            state.fold(record.offset, record.ts, Some(&event), &mut |_| {});
            for shown in here.remove(&record.offset).into_iter().flatten() {
                let image = state.slot_of(&shown.user).and_then(|slot| state.image(slot));
                let mut line = Vec::new();
                let image = image.unwrap_or_else(|| panic!("nobody is {}", shown.body));
                json::user_line(&mut line, &image, state.time());
                assert_eq!(shown.line(), String::from_utf8(line).expect("UTF-8"), "{}", shown.body);
            }
        }
        assert!(here.is_empty(), "something was shown that is not in the log");
    }
}

/// What was followed is what the log has, each once and in order, up to somewhere.
pub fn check_followed(shelves: &[Shelf], topic: usize, seen: &Seen) {
    let seen = seen.lock().expect("whole");
    for (partition, (shelf, seen)) in shelves.iter().zip(&*seen).enumerate() {
        let wanted = &shelf.outputs[topic];
        let upto = wanted.len().min(seen.len());
        let what = format!("{} that were followed of partition {partition}", FOLLOWED[topic]);
        same(seen, &wanted[..upto], &what);
    }
}

/// Whether everything that the log had then has been followed.
pub fn has_followed(shelves: &[Shelf], topic: usize, seen: &Seen) -> bool {
    let seen = seen.lock().expect("whole");
    let mut both = shelves.iter().zip(&*seen);
    both.all(|(shelf, seen)| seen.len() >= shelf.outputs[topic].len())
}
