//! A cluster as it should be, and what is found when one thing about it is not.

use super::*;
use crate::topics::QUARANTINE_FRAMING_BYTES as FRAMING_BYTES;

fn connection() -> Connection {
    Connection::new("b1:9092", None, None, &[]).expect("valid")
}

/// What [`plan`] makes, once it is made.
fn made(brokers: usize, partitions: u32) -> ClusterFacts {
    let empty = ClusterFacts {
        brokers,
        ..ClusterFacts::default()
    };
    let wanted = RequestedTopics {
        partitions: Some(partitions),
        ..RequestedTopics::default()
    };
    let plan = plan(&connection(), &empty, wanted).expect("possible");
    let facts = |new: &NewTopic| TopicFacts {
        partitions: new.partitions,
        replication: new.replication,
        settings: new
            .settings
            .iter()
            .map(|(key, value)| (key.to_string(), value.clone()))
            .collect(),
        has_own_settings: true,
    };
    ClusterFacts {
        brokers,
        topics: ManagedTopic::ALL.into_iter().zip(plan.make.iter().map(facts)).collect(),
        broker: BTreeMap::new(),
        made_with: Some(partitions),
    }
}

const EVENTS: ManagedTopic = ManagedTopic::Events;

/// What is found, a line each, once `change` was made to a cluster of three brokers.
#[track_caller]
fn found(change: impl FnOnce(&mut ClusterFacts)) -> Vec<String> {
    let mut facts = made(3, 64);
    change(&mut facts);
    let findings = judge(&connection(), &facts);
    let line = |finding: &Finding| format!("{:?} {finding}", finding.weight);
    findings.iter().map(line).collect()
}

fn set(facts: &mut ClusterFacts, part: ManagedTopic, key: &str, value: &str) {
    let topic = facts.topics.get_mut(&part).expect("there");
    topic.settings.insert(key.to_owned(), value.to_owned());
}

#[test]
fn what_is_made_on_three_brokers_has_nothing_wrong_with_it() {
    assert_eq!(found(|_| ()), [""; 0]);
    let facts = made(3, 64);
    assert!(facts.topics.values().all(|topic| topic.replication == 3));
    assert!(
        facts
            .topics
            .values()
            .all(|topic| topic.text("min.insync.replicas") == "2")
    );
    assert_eq!(facts.topics[&ManagedTopic::Owners].partitions, 1);
    assert_eq!(facts.topics[&ManagedTopic::Output(OutputTopic::Current)].partitions, 64);
    assert_eq!(facts.topics[&EVENTS].text("retention.ms"), "2592000000");
}

#[test]
fn on_one_broker_the_only_complaint_is_the_one_replica() {
    let findings = judge(&connection(), &made(1, 4));
    assert_eq!(findings.len(), 1);
    assert_eq!(findings[0].weight, Severity::Warning);
    assert!(findings[0].what.contains("one replica"), "{}", findings[0]);
    assert!(
        findings[0].topic.starts_with("presence.events, presence.changes, "),
        "{}",
        findings[0]
    );
}

#[test]
fn a_topic_that_is_not_there_is_refused_with_the_command_that_makes_it() {
    let found = found(|facts| {
        facts.topics.remove(&ManagedTopic::Output(OutputTopic::Kicks));
    });
    assert_eq!(
        found,
        ["Refused presence.kicks: the topic is not there. To fix it: rollcall topics create --kafka b1:9092"]
    );
}

#[test]
fn events_with_the_publishers_time_are_refused() {
    let found = found(|facts| set(facts, EVENTS, "message.timestamp.type", "CreateTime"));
    assert_eq!(found.len(), 1);
    assert!(found[0].starts_with("Refused presence.events: its records have the publisher's time"));
    assert!(found[0].ends_with(
        "kafka-configs.sh --bootstrap-server b1:9092 --alter --entity-type topics --entity-name presence.events \
         --add-config message.timestamp.type=LogAppendTime"
    ));
}

#[test]
fn a_topic_that_a_broker_made_by_itself_is_told_to_be_one() {
    let found = found(|facts| {
        let by_itself = TopicFacts {
            partitions: 1,
            replication: 3,
            settings: [
                ("message.timestamp.type", "CreateTime"),
                ("cleanup.policy", "delete"),
                ("max.message.bytes", "1048588"),
                ("min.insync.replicas", "2"),
            ]
            .map(|(key, value)| (key.to_owned(), value.to_owned()))
            .into(),
            has_own_settings: false,
        };
        facts.topics.insert(EVENTS, by_itself);
    });
    assert!(found[0].contains("a broker may have made it by itself"), "{found:?}");
    assert!(
        found
            .iter()
            .any(|line| line.starts_with("Refused") && line.contains("has 1 partitions and was created with 64")),
        "{found:?}"
    );
}

#[test]
fn other_numbers_of_partitions_are_refused() {
    let changes = ManagedTopic::Output(OutputTopic::Changes);
    let fewer = found(|facts| facts.topics.get_mut(&changes).expect("there").partitions = 63);
    assert_eq!(fewer.len(), 1);
    assert!(
        fewer[0].ends_with("--alter --topic presence.changes --partitions 64"),
        "{fewer:?}"
    );
    let more = found(|facts| facts.topics.get_mut(&changes).expect("there").partitions = 65);
    assert_eq!(more.len(), 1);
    assert!(more[0].ends_with("docs/kafka.md"), "{more:?}");
    let changed = found(|facts| {
        for (part, topic) in &mut facts.topics {
            topic.partitions = if part.is_of_all() { 1 } else { 128 };
        }
    });
    assert!(
        changed[0].contains("presence.events: it has 128 partitions and was created with 64"),
        "{changed:?}"
    );
    let owners = found(|facts| facts.topics.get_mut(&ManagedTopic::Owners).expect("there").partitions = 2);
    assert!(owners[0].contains("--delete --topic presence.owners"), "{owners:?}");
    let incidents = found(|facts| {
        facts
            .topics
            .get_mut(&ManagedTopic::Incidents)
            .expect("there")
            .partitions = 64
    });
    assert!(
        incidents[0].contains("--delete --topic presence.incidents"),
        "{incidents:?}"
    );
    let unsaid = found(|facts| facts.made_with = None);
    assert!(
        unsaid[0].starts_with("Warning presence.owners: it does not say"),
        "{unsaid:?}"
    );
}

#[test]
fn what_cleans_up_the_wrong_way_is_refused() {
    for (part, policy) in [
        (EVENTS, "compact"),
        (EVENTS, "compact,delete"),
        (ManagedTopic::Output(OutputTopic::Current), "delete"),
        (ManagedTopic::Owners, "compact,delete"),
    ] {
        let found = found(|facts| set(facts, part, "cleanup.policy", policy));
        assert_eq!(found.len(), 1, "{part:?} {policy}");
        assert!(found[0].starts_with("Refused"), "{found:?}");
    }
}

#[test]
fn a_quarantine_that_is_no_larger_than_the_events_is_refused() {
    let quarantine = ManagedTopic::Output(OutputTopic::Quarantine);
    let bytes = |more: usize| (EVENTS_MESSAGE_BYTES + more).to_string();
    let short = found(|facts| set(facts, quarantine, "max.message.bytes", &bytes(FRAMING_BYTES - 1)));
    assert_eq!(short.len(), 1);
    assert!(short[0].starts_with("Refused presence.quarantine"), "{short:?}");
    assert!(short[0].ends_with("max.message.bytes=8388608"), "{short:?}");
    let enough = found(|facts| set(facts, quarantine, "max.message.bytes", &bytes(FRAMING_BYTES)));
    assert_eq!(enough, [""; 0]);
    let larger = found(|facts| set(facts, EVENTS, "max.message.bytes", "20971520"));
    assert!(larger[0].ends_with("max.message.bytes=41943040"), "{larger:?}");
    let small = found(|facts| set(facts, EVENTS, "max.message.bytes", "1048588"));
    assert!(small[0].starts_with("Warning presence.events"), "{small:?}");
    let outputs = found(|facts| {
        set(
            facts,
            ManagedTopic::Output(OutputTopic::Changes),
            "max.message.bytes",
            "500000",
        )
    });
    assert!(outputs[0].starts_with("Refused presence.changes"), "{outputs:?}");
}

#[test]
fn replicas_and_retention_are_looked_at() {
    let one = |change: &dyn Fn(&mut ClusterFacts), start: &str| {
        let found = found(change);
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with(start), "{found:?}");
    };
    one(
        &|facts| set(facts, EVENTS, "min.insync.replicas", "1"),
        "Warning presence.events: an acknowledged record may be on one broker only",
    );
    one(
        &|facts| set(facts, EVENTS, "min.insync.replicas", "3"),
        "Warning presence.events: it requires 3 of 3 replicas in sync",
    );
    one(
        &|facts| set(facts, EVENTS, "min.insync.replicas", "4"),
        "Refused presence.events: it has 3 replicas and asks for 4",
    );
    one(
        &|facts| set(facts, EVENTS, "retention.ms", "3600000"),
        "Warning presence.events: records are kept for 60 minutes",
    );
    one(
        &|facts| set(facts, EVENTS, "retention.bytes", "1000"),
        "Warning presence.events: records are dropped beyond 1000 bytes",
    );
    one(
        &|facts| set(facts, EVENTS, "unclean.leader.election.enable", "true"),
        "Warning presence.events: a replica that is behind",
    );
    one(
        &|facts| {
            facts
                .broker
                .insert("offsets.retention.minutes".to_owned(), "60".to_owned());
        },
        "Warning the brokers: they delete the positions of a group that has been stopped for 60 minutes",
    );
    assert_eq!(found(|facts| set(facts, EVENTS, "retention.ms", "-1")), [""; 0]);
}

#[test]
fn without_the_topic_of_incidents_an_engine_may_start() {
    let found = found(|facts| drop(facts.topics.remove(&ManagedTopic::Incidents)));
    let expected = "Warning presence.incidents: the topic is not there, so no incidents are found. To fix it: rollcall topics create";
    assert!(found.len() == 1 && found[0].starts_with(expected), "{found:?}");
    let mut facts = made(3, 12);
    facts.topics.remove(&ManagedTopic::Incidents);
    let plan = plan(&connection(), &facts, RequestedTopics::default()).expect("possible");
    assert_eq!(plan.make.len(), 1);
    assert_eq!(
        (plan.make[0].name.as_str(), plan.make[0].partitions),
        ("presence.incidents", 1)
    );
}

#[test]
fn a_plan_makes_what_is_missing_with_the_number_that_the_others_have() {
    let mut facts = made(3, 12);
    facts.topics.remove(&ManagedTopic::Output(OutputTopic::Current));
    let plan = |facts: &ClusterFacts, wanted: RequestedTopics| plan(&connection(), facts, wanted);
    let made = plan(&facts, RequestedTopics::default()).expect("possible");
    assert_eq!(made.make.len(), 1);
    assert_eq!(
        (made.make[0].name.as_str(), made.make[0].partitions),
        ("presence.current", 12)
    );
    assert_eq!(made.there.len(), 6);
    let error =
        |facts: &ClusterFacts, wanted: RequestedTopics| plan(facts, wanted).expect_err("impossible").to_string();
    let asks = |partitions: u32, replication: usize| RequestedTopics {
        partitions: Some(partitions),
        replication: Some(replication),
        retention_ms: None,
    };
    assert!(error(&facts, asks(16, 1)).starts_with("presence.events has 12 partitions, and 16 are asked for"));
    // No number that could be asked for would do, so none is recommended.
    let mut unequal = facts.clone();
    unequal
        .topics
        .get_mut(&ManagedTopic::Output(OutputTopic::Changes))
        .expect("there")
        .partitions = 16;
    for wanted in [RequestedTopics::default(), asks(12, 1), asks(16, 1)] {
        let error = error(&unequal, wanted);
        assert!(
            error.starts_with("presence.changes has 16 partitions, and the topics were made with 12"),
            "{error}"
        );
    }
    assert!(error(&ClusterFacts::default(), asks(16, 2)).contains("needs as many brokers, and there are 1"));
    assert!(error(&ClusterFacts::default(), asks(0, 1)).contains("1 to 1024, not 0"));
    assert_eq!(
        plan(&ClusterFacts::default(), RequestedTopics::default())
            .expect("possible")
            .partitions,
        64
    );
}

#[test]
fn what_a_plan_does_not_change_of_topics_that_exist_is_said() {
    let facts = made(3, 12);
    let unchanged = |wanted: RequestedTopics| {
        let plan = plan(&connection(), &facts, wanted).expect("possible");
        assert!(plan.make.is_empty());
        plan.unchanged.iter().map(Finding::to_string).collect::<Vec<_>>()
    };
    let asks = |replication: usize, retention_hours: u64| RequestedTopics {
        partitions: Some(12),
        replication: Some(replication),
        retention_ms: Some(retention_hours * HOUR_MS),
    };
    assert_eq!(unchanged(RequestedTopics::default()), [""; 0]);
    assert_eq!(unchanged(asks(3, DEFAULT_RETENTION_HOURS)), [""; 0]);
    let lines = unchanged(asks(2, 48));
    let of = |what: &str| lines.iter().filter(|line| line.contains(what)).count();
    assert_eq!(
        of("it exists with a replication of 3, which --replication 2 does not change"),
        1,
        "{lines:?}"
    );
    assert_eq!(
        of(
            "it exists with retention.ms=2592000000, which --retention-hours 48 does not change. To fix it: kafka-configs.sh"
        ),
        5,
        "compacted topics have no retention: {lines:?}"
    );
    assert!(
        lines
            .iter()
            .any(|line| line.starts_with("presence.events: ") && line.ends_with("retention.ms=172800000"))
    );
}
