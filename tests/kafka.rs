//! The engine on a real Kafka: no matter which process dies, an independent reader finds each change once and in order.
//!
//! Engines are processes; the load and the reader use third-party clients (Python: confluent-kafka and fastavro). These are the
//! short runs; `make test-faults` has the long ones. `ROLLCALL_TEST_SEED` repeats one.

#[path = "kafka/aborted.rs"]
mod aborted;
#[path = "kafka/audited.rs"]
mod audited;
mod authority;
#[path = "kafka/broker.rs"]
mod broker;
#[path = "gateway/client.rs"]
#[expect(dead_code, reason = "nobody is refused here")]
mod client;
#[path = "kafka/edge.rs"]
mod edge;
#[path = "kafka/engine.rs"]
mod engine;
#[path = "kafka/faults.rs"]
mod faults;
#[path = "kafka/frames.rs"]
mod frames;
#[path = "kafka/headers.rs"]
mod headers;
#[path = "kafka/held.rs"]
mod held;
#[path = "kafka/hung.rs"]
mod hung;
#[path = "kafka/incidents.rs"]
mod incidents;
#[path = "kafka/network.rs"]
mod network;
#[path = "kafka/peers.rs"]
mod peers;
#[path = "kafka/plans.rs"]
#[expect(dead_code, reason = "the long runs have more kinds of faults")]
mod plans;
#[path = "kafka/proxied.rs"]
mod proxied;
#[path = "kafka/proxy.rs"]
mod proxy;
#[path = "kafka/proxy_alone.rs"]
mod proxy_alone;
#[path = "kafka/python.rs"]
mod python;
#[path = "webhook/receiver.rs"]
#[expect(dead_code, reason = "nobody is struck but bridges")]
mod receiver;
#[path = "kafka/requeue.rs"]
mod requeue;
#[path = "kafka/reshard.rs"]
mod reshard;
#[path = "kafka/run.rs"]
mod run;
#[path = "kafka/shared.rs"]
mod shared;
#[path = "kafka/space.rs"]
mod space;
#[path = "kafka/standbys.rs"]
mod standbys;
#[path = "kafka/start.rs"]
mod start;
mod stream;
#[path = "kafka/table.rs"]
mod table;
#[path = "kafka/timeline.rs"]
mod timeline;
#[path = "kafka/transactions.rs"]
mod transactions;
#[path = "kafka/truncated.rs"]
mod truncated;
#[path = "kafka/unseen.rs"]
mod unseen;
#[path = "kafka/upgrade.rs"]
mod upgrade;
#[path = "kafka/watcher.rs"]
mod watcher;
#[path = "kafka/webhook.rs"]
mod webhook;

use proxied::Proxied;
use python::Load;
use run::Plan;
use space::Space;
use std::thread;
use std::time::{Duration, Instant};

fn seed() -> u64 {
    match std::env::var("ROLLCALL_TEST_SEED") {
        Ok(seed) => seed.parse().expect("ROLLCALL_TEST_SEED is a number"),
        Err(_) => 1,
    }
}

/// Only engines get faults, so tests can share the broker.
fn engines(plan: &Plan) {
    let _busy = shared::busy(1);
    ends_well(plan, shared::bootstrap(), None);
}

fn ends_well(plan: &Plan, bootstrap: &str, cluster: Option<&Proxied>) {
    let row = run::run(plan, bootstrap, cluster, seed());
    println!("{}", table::markdown(std::slice::from_ref(&row)));
    row.must_be_right(false);
}

/// Each kind of error is in a separate partition, with the reader's report. The last partition is correct.
const SPOILS: [(&str, &str); 12] = [
    ("doubled_change", "doubled: offset "),
    ("missing_change", "lost: output "),
    ("swapped_changes", "out_of_order: offset "),
    ("altered_change", "altered: offset "),
    ("doubled_kick", "doubled: offset "),
    ("missing_kick", "lost: output "),
    ("swapped_kicks", "out_of_order: offset "),
    ("missing_quarantine", "quarantine: "),
    ("missing_current", "current: the change "),
    ("wrong_key", "has the key b'somebody else', not its user"),
    ("wrong_chain", "position: its chain "),
    ("behind", "position: folded up to "),
];

#[test]
fn the_reader_says_what_is_doubled_missing_swapped_or_altered() {
    let space = Space::new(shared::bootstrap(), "spoiled", SPOILS.len() + 1);
    let load = Load::start(&space, seed(), &["--seconds", "300", "--rate", "3000"]);
    // Enough in each partition for every kind of error.
    let begun = Instant::now();
    while python::places(&space).iter().any(|(_, end)| *end < 1_000) {
        assert!(begun.elapsed() < Duration::from_secs(240), "the load does not come");
        thread::sleep(Duration::from_millis(300));
    }
    let ends = load.end()["ends"].clone();
    let names: Vec<&str> = SPOILS.iter().map(|(name, _)| *name).collect();
    let program = python::program();
    let spoil = [
        "--group",
        &space.group,
        "--program",
        &program,
        "--spoil",
        &names.join(","),
    ];
    python::run("forge.py", &space, &spoil);
    let verdict = python::check(&space, Some(&ends));
    let of = |partition: usize| {
        let begin = format!("partition {partition}: ");
        let complaints = verdict
            .complaints
            .iter()
            .filter_map(move |complaint| complaint.strip_prefix(&begin));
        complaints.collect::<Vec<_>>()
    };
    for (partition, (name, said)) in SPOILS.iter().enumerate() {
        assert!(
            of(partition).iter().any(|complaint| complaint.contains(said)),
            "{name}: nothing like {said:?} in {:?}",
            of(partition)
        );
    }
    assert_eq!(of(SPOILS.len()), Vec::<&str>::new());
    assert!(
        verdict.sum("doubled") >= 2 && verdict.sum("lost") >= 2,
        "{}",
        verdict.sums
    );
}

#[test]
fn an_engine_killed_at_any_moment_loses_and_doubles_nothing() {
    engines(&plans::kills(6));
}

#[test]
fn an_engine_that_dies_at_any_step_of_the_walk_loses_and_doubles_nothing() {
    engines(&plans::failpoints(
        &["fold", "send", "offsets", "commit", "take-up"],
        &[2],
    ));
}

#[test]
fn an_engine_that_slept_while_another_took_over_does_no_harm_when_it_wakes() {
    engines(&plans::sleepers(2));
}

#[test]
fn engines_that_come_and_go_lose_and_double_nothing() {
    engines(&plans::storms(3, 8));
}

#[test]
fn engines_come_and_go_where_the_brokers_share_the_partitions_out() {
    engines(&plans::shared_by_brokers(3, 6, true));
}

#[test]
fn a_store_that_is_gone_or_foreign_or_old_is_made_good_from_the_log() {
    engines(&plans::stores(3));
}

#[test]
fn who_lost_its_store_takes_the_newest_checkpoint_that_is_whole() {
    engines(&plans::checkpoints(1));
}

#[test]
fn events_that_are_gone_halt_their_partition_only() {
    let _busy = shared::busy(1);
    truncated::events_that_are_gone_halt_their_partition_only(shared::bootstrap(), seed());
}

#[test]
fn an_end_of_a_transaction_whose_answer_is_lost_doubles_nothing() {
    transactions::an_end_of_a_transaction_whose_answer_is_lost_doubles_nothing(shared::proxied());
}

#[test]
fn an_end_of_a_transaction_that_arrives_in_the_next_one_doubles_nothing() {
    transactions::an_end_of_a_transaction_that_arrives_in_the_next_one_doubles_nothing(shared::proxied());
}

#[test]
fn an_old_position_that_is_given_back_doubles_nothing() {
    transactions::an_old_position_that_is_given_back_doubles_nothing(shared::proxied());
}

#[test]
fn a_position_that_is_gone_beside_outputs_is_refused() {
    transactions::a_position_that_is_gone_beside_outputs_is_refused(shared::proxied());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_serves_a_cluster_through_any_node() {
    let _busy = shared::busy(1);
    edge::a_gateway_serves_a_cluster_through_any_node(shared::bootstrap()).await;
}

#[test]
fn bridges_of_a_group_post_everything_in_order_whichever_of_them_dies() {
    let _busy = shared::busy(1);
    webhook::bridges_of_a_group_post_everything_in_order_whichever_of_them_dies(shared::bootstrap());
}

#[test]
fn a_bridge_says_what_it_cannot_follow() {
    webhook::a_bridge_says_what_it_cannot_follow(shared::bootstrap());
}

#[test]
fn a_start_that_fails_ends_by_itself_and_says_why() {
    let _busy = shared::busy_alone();
    start::a_start_that_fails_ends_by_itself_and_says_why(shared::bootstrap());
}

#[test]
fn sigterm_ends_a_start_that_waits_for_others() {
    start::sigterm_ends_a_start_that_waits_for_others(shared::bootstrap());
}

#[test]
fn a_stop_is_bounded_with_the_brokers_away_and_a_second_signal_ends_it_at_once() {
    start::a_stop_is_bounded_with_the_brokers_away_and_a_second_signal_ends_it_at_once();
}

#[test]
fn a_publishers_open_transaction_is_reported_and_an_aborted_one_is_no_lag() {
    held::a_publishers_open_transaction_is_reported_and_an_aborted_one_is_no_lag(shared::bootstrap());
}

#[test]
fn a_standby_answers_while_its_owner_is_dead_and_takes_over() {
    let _busy = shared::busy(1);
    standbys::a_standby_answers_while_its_owner_is_dead_and_takes_over(shared::bootstrap());
}

#[test]
fn the_node_that_looks_for_incidents_is_killed_during_one() {
    let _busy = shared::busy(1);
    incidents::the_node_that_looks_for_incidents_is_killed_during_one(shared::bootstrap());
}

#[test]
fn each_start_reads_the_last_record_again() {
    held::each_start_reads_the_last_record_again(shared::bootstrap());
}

#[test]
fn a_second_reading_that_differs_halts_the_partition_and_says_what_to_do() {
    held::a_second_reading_that_differs_halts_the_partition_and_says_what_to_do(shared::bootstrap());
}

#[test]
fn what_is_published_is_verified_and_what_is_added_is_found() {
    audited::what_is_published_is_verified_and_what_is_added_is_found(shared::bootstrap());
}

#[test]
fn an_engine_that_skips_an_event_is_found_by_a_watcher() {
    audited::an_engine_that_skips_an_event_is_found_by_a_watcher(shared::bootstrap());
}

#[test]
fn what_was_sent_to_the_wrong_partitions_comes_in_once_though_requeue_is_killed() {
    requeue::each_event_comes_in_once(shared::bootstrap());
}

#[test]
fn topics_are_moved_under_load_and_every_version_goes_on() {
    reshard::topics_are_moved_under_load_and_every_version_goes_on(shared::bootstrap());
}

#[test]
fn every_output_has_its_id_and_the_trace_of_its_event() {
    headers::every_output_has_its_id_and_the_trace_of_its_event(shared::bootstrap());
}

#[test]
fn a_call_that_never_returns_costs_its_client_and_not_the_partition() {
    let _busy = shared::busy(1);
    hung::a_call_that_never_returns_costs_its_client_and_not_the_partition(shared::bootstrap());
}

#[test]
fn a_group_raises_itself_once_every_node_can_and_not_before() {
    upgrade::a_group_raises_itself_once_every_node_can_and_not_before(shared::bootstrap());
}

#[test]
fn nodes_are_upgraded_one_by_one_rolled_back_and_raised_under_load() {
    let _busy = shared::busy(1);
    upgrade::nodes_are_upgraded_one_by_one_rolled_back_and_raised_under_load(shared::bootstrap(), seed());
}

#[test]
fn no_callers_token_leaves_the_node_and_who_has_no_secret_is_not_believed() {
    peers::no_callers_token_leaves_the_node_and_who_has_no_secret_is_not_believed(shared::bootstrap());
}

#[test]
fn without_a_peer_token_nodes_do_not_ask_each_other_and_say_so() {
    peers::without_a_peer_token_nodes_do_not_ask_each_other_and_say_so(shared::bootstrap());
}

#[test]
fn nodes_change_over_to_tls_one_after_the_other() {
    let _busy = shared::busy(1);
    peers::nodes_change_over_to_tls_one_after_the_other(shared::bootstrap());
}

#[test]
fn a_thread_that_panics_makes_the_node_not_ready_and_says_which_it_was() {
    unseen::a_thread_that_panics_makes_the_node_not_ready_and_says_which_it_was(shared::bootstrap());
}

#[test]
fn a_record_whose_folding_panics_halts_its_partition_with_the_offset() {
    unseen::a_record_whose_folding_panics_halts_its_partition_with_the_offset(shared::bootstrap());
}

#[test]
fn however_many_catch_up_the_clients_of_kafka_stay_few() {
    let _busy = shared::busy(1);
    unseen::however_many_catch_up_the_clients_of_kafka_stay_few(shared::bootstrap());
}

#[test]
fn brokers_that_die_pause_or_move_lose_and_double_nothing() {
    let _busy = shared::busy_alone();
    let proxied = Proxied::start(3, &[]);
    let mut plan = plans::brokers(2);
    plan.faults.extend(plans::pauses(2).faults);
    plan.faults.extend(plans::blackout(Duration::from_secs(3)).faults);
    ends_well(&plan, &proxied.cluster.bootstrap, Some(&proxied));
}
