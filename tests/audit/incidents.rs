//! `rollcall audit incidents`: a killed gateway is one incident with the exact count, and an ordinary day has none.

use super::analytics::{output, python, root};
use super::export::CutLog;
use super::{Files, change, event, of, parsed};
use rollcall::audit::incidents::{IncidentRule, Seconds};
use rollcall::demo::world::DemoWorld;
use rollcall::presence::change::Output;
use rollcall::presence::policy::Policy;
use rollcall::presence::state::State;
use rollcall::presence::{Offset, Partition};
use rollcall::schema::json::read_new_events;
use rollcall::sim::oracle_input;
use serde_json::{Value, json};
use std::process::Command;

/// The events of one of two partitions: 600 people on three gateways, of which the second dies after 100 s. On the first one a
/// link is closed every three seconds. Returns also how many are on the second.
fn events(partition: u32) -> (Vec<String>, u64) {
    let mut events = Vec::new();
    let mut add = |ts: u64, kind: &str, more: &str| {
        let offset = events.len() as u64;
        events.push(event(offset, ts, kind, more));
    };
    let mut of_the_second = 0;
    let who = |user: u64, conn: u64| {
        format!(
            ",\"user\":\"p{partition}-{user}\",\"platform\":\"{}\",\"device\":\"d\",\"gateway\":\"g{}\",\"epoch\":1,\"conn\":{conn}",
            ["android", "iphone"][usize::from(user.is_multiple_of(4))],
            user % 3
        )
    };
    for second in 0..200u64 {
        let ts = 1_769_871_600_000 + second * 1_000;
        for gateway in 0..3 {
            if second % 10 == 0 && (gateway != 1 || second < 100) {
                add(
                    ts,
                    "lease",
                    &format!(",\"gateway\":\"g{gateway}\",\"epoch\":1,\"ttl_ms\":30000"),
                );
            }
        }
        if second < 60 {
            for user in second * 10..second * 10 + 10 {
                let client = ["app/5.1", "app/5.2"][usize::from(user % 2 == 0)];
                let more = format!(",\"intent\":\"login\",\"client\":\"{client}\"");
                add(ts, "connect", &(who(user, user) + &more));
                of_the_second += u64::from(user % 3 == 1);
            }
        } else if second % 3 == 2 {
            let user = second / 3 * 3;
            add(ts, "disconnect", &(who(user, user) + ",\"reason\":\"closed\""));
        } else {
            add(ts, "tick", "");
        }
    }
    (events, of_the_second)
}

#[test]
fn a_killed_gateway_is_one_incident_with_the_exact_count_over_all_partitions() {
    let directory = tempfile::tempdir().unwrap();
    let log = CutLog::open(directory.path(), 2);
    let mut lost = 0;
    for partition in 0..2 {
        let (events, of_the_second) = events(partition);
        lost += of_the_second;
        let input = events.join("\n") + "\n";
        let folded = oracle_input::fold(input.as_bytes(), Policy::default(), Partition(partition), None);
        assert_eq!(folded.ended_by, None);
        for line in folded
            .lines
            .iter()
            .map(|line| parsed(line))
            .filter(|line| line["type"] == "change")
        {
            log.commit(&change(&line));
        }
    }
    let (status, incidents) = of(directory.path(), &["incidents"]);
    assert_eq!((status, incidents.len()), (0, 1), "{incidents:?}");
    let incident = &incidents[0];
    // The last lease is of the second 90.
    let at = 1_769_871_600_000u64 + 120_000;
    assert_eq!((&incident["from"], &incident["to"]), (&json!(at), &json!(at)));
    assert_eq!(incident["causes"], json!({"gateway_lost": lost}));
    assert_eq!(incident["gateways"], json!({"g1": lost}));
    assert_eq!(
        (&incident["departures"], &incident["devices"]),
        (&json!(lost), &json!(lost))
    );
    let platforms: u64 = incident["platforms"]
        .as_object()
        .unwrap()
        .values()
        .map(|count| count.as_u64().unwrap())
        .sum();
    assert_eq!((platforms, &incident["clients"]), (lost, &Value::Null));
    assert_eq!(lost, 400);
    // Of each partition alone.
    for partition in ["0", "1"] {
        let (_, one) = of(directory.path(), &["incidents", "--partition", partition]);
        assert_eq!((one.len(), &one[0]["departures"]), (1, &json!(lost / 2)));
    }
    // A rule that needs more finds nothing.
    assert_eq!(
        of(directory.path(), &["incidents", "--least", "500"]).1,
        [Value::Null; 0]
    );
    assert_eq!(
        of(directory.path(), &["incidents", "--share", "40"]).1,
        [Value::Null; 0]
    );
}

#[test]
fn the_clients_of_an_incident_are_those_of_the_last_connects() {
    let (events, lost) = events(0);
    let files = Files::of(&events, None);
    let (status, incidents) = files.audit(&["incidents", "--clients"]);
    assert_eq!((status, incidents.len()), (0, 1), "{incidents:?}");
    assert_eq!(
        incidents[0]["clients"],
        json!({"app/5.1": lost / 2, "app/5.2": lost / 2})
    );
}

#[test]
fn the_day_of_the_demo_has_no_incident() {
    let mut state = State::new(Partition(0), Policy::default());
    let mut world = DemoWorld::new(1_000, 7);
    let mut seconds = Seconds::default();
    let (mut offset, mut departures) = (0, 0);
    for step in 0..3_600 * 2 {
        let now = 1_800_000_000_000 + step * 500;
        for happening in world.advance(now) {
            let body = format!("[{}]", happening.json);
            let event = read_new_events(&body).unwrap().remove(0).map(|new| new.event).unwrap();
            state.fold(Offset(offset), now, Some(&event), &mut |output| {
                if let Output::Change(change) = output {
                    let lost = |device| rollcall::audit::incidents::is_departure(&change, device);
                    departures += change.devices.iter().filter(|device| lost(device)).count();
                    seconds.apply(&change);
                }
            });
            offset += 1;
        }
    }
    assert!(departures > 1_000, "{departures}");
    // In the first minute two thirds of the people come, and most of them leave again.
    let later = |rule: IncidentRule| {
        let mut spans = seconds.spans(&rule);
        spans.retain(|span| span.first_second > 1_800_000_060);
        spans
    };
    assert_eq!(later(IncidentRule::default()), []);
    // A server that is started with it finds none either, from the first minute on.
    assert_eq!(seconds.spans(&IncidentRule::default()), []);
    // The rule finds incidents if a tenth of that is too many.
    let strict = IncidentRule {
        least: 10,
        ..IncidentRule::default()
    };
    assert!(!later(strict).is_empty());
}

#[test]
fn on_the_days_of_the_analytics_the_two_that_were_made_are_found() {
    let events = output(Command::new(python()).arg(root("examples/analytics/day.py")));
    let events: Vec<String> = events.lines().map(str::to_owned).collect();
    let files = Files::of(&events, None);
    assert_eq!(files.audit(&["incidents"]).1, [Value::Null; 0]);
    let small = ["incidents", "--least", "4", "--share", "10", "--window", "1s"];
    let (_, found) = files.audit(&small);
    let found: Vec<_> = found
        .iter()
        .map(|one| (&one["departures"], &one["causes"], &one["gateways"]))
        .collect();
    assert_eq!(
        found,
        [
            (
                &json!(6),
                &json!({"closed": 6}),
                &json!({"gw-1": 1, "gw-2": 2, "gw-3": 3})
            ),
            (&json!(4), &json!({"gateway_lost": 4}), &json!({"gw-2": 4})),
        ]
    );
}
