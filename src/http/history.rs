//! `GET /v1/stats/history`: how many users were online during the last hour, a sample every ten seconds.
//!
//! Kept in memory, by each node for its own partitions; the node that is asked adds up what all of them have. It begins
//! empty with the process. A sample says how many partitions it counts: while some are moving, or their node has ended,
//! it counts fewer than there are, and is not to be taken for a drop.

use super::overview::{local_stats, others};
use super::peers::Asker;
use super::{ApiError, AppState};
use crate::api::answers::{History, Sample};
use crate::api::routes::RouteId;
use crate::engine::PartitionStats;
use crate::presence::Status;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two samples. They are of whole multiples of it, so that those of several nodes can be added up.
const EVERY_MS: u64 = 10_000;
/// An hour of them.
const SAMPLES_MAX: usize = 360;

/// Whether the users of a partition in this state are known. One that cannot read on for the moment still knows them.
fn is_counted(state: &str) -> bool {
    matches!(state, "live" | "held" | "stalled")
}

impl Sample {
    fn of<'a>(at: u64, counted: impl Iterator<Item = &'a PartitionStats>) -> Sample {
        let mut sample = Sample {
            at,
            ..Sample::default()
        };
        for stats in counted.filter(|stats| is_counted(stats.state)) {
            sample.add(&Sample {
                at,
                online: stats.census.users(Status::Online),
                push_online: stats.census.users(Status::PushOnline),
                offline: stats.census.users(Status::Offline),
                changes: stats.changes,
                ignored: stats.ignored.iter().sum(),
                malformed: stats.rejected.iter().flatten().map(|group| group.count).sum(),
                partitions: 1,
            });
        }
        sample
    }

    fn add(&mut self, other: &Sample) {
        self.online += other.online;
        self.push_online += other.push_online;
        self.offline += other.offline;
        self.changes += other.changes;
        self.ignored += other.ignored;
        self.malformed += other.malformed;
        self.partitions += other.partitions;
    }
}

/// The samples of this node, oldest first.
#[derive(Clone, Debug, Default)]
pub struct Samples(Arc<Mutex<VecDeque<Sample>>>);

impl Samples {
    fn record(&self, sample: Sample) {
        let mut samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // One of the same moment is replaced; where the clock was set back, what came after is no longer the past.
        while samples.back().is_some_and(|last| last.at >= sample.at) {
            samples.pop_back();
        }
        samples.push_back(sample);
        if samples.len() > SAMPLES_MAX {
            samples.pop_front();
        }
    }

    fn samples(&self) -> Vec<Sample> {
        let samples = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        samples.iter().copied().collect()
    }
}

/// Takes a sample now and at every multiple of ten seconds, until the process stops.
pub async fn keep(app: AppState) {
    let mut stopping = app.stopping.clone();
    loop {
        let now_ms = app.engine.clock().now_ms();
        if let Ok(local) = local_stats(&app).await {
            let at = now_ms / EVERY_MS * EVERY_MS;
            app.history.record(Sample::of(at, local.counted()));
        }
        let pause = Duration::from_millis(EVERY_MS - now_ms % EVERY_MS);
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            stopped = stopping.wait_for(|stopping| *stopping) => {
                drop(stopped);
                return;
            }
        }
    }
}

/// `GET /v1/stats/history`: of the whole cluster, as far as its nodes answer.
pub async fn history(State(app): State<AppState>, headers: HeaderMap) -> Result<Response, ApiError> {
    let asker = Asker::of(&headers);
    let mut sums: BTreeMap<u64, Sample> = BTreeMap::new();
    for sample in app.history.samples() {
        sums.insert(sample.at, sample);
    }
    if app.peers.is_some() && !asker.is_node() {
        let elsewhere = local_stats(&app).await?.elsewhere;
        for (_, _, answer) in others(&app, &asker, &elsewhere, RouteId::StatsHistory).await {
            // What a node does not say is missing in `partitions`.
            let answer: History = answer.unwrap_or_default();
            for sample in answer.samples {
                let empty = Sample {
                    at: sample.at,
                    ..Sample::default()
                };
                sums.entry(sample.at).or_insert(empty).add(&sample);
            }
        }
    }
    Ok(super::answer(&History {
        every_ms: EVERY_MS,
        partitions: app.engine.log().partitions(),
        samples: sums.into_values().collect(),
    }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(at: u64, online: u64) -> Sample {
        Sample {
            at,
            online,
            ..Sample::default()
        }
    }

    #[test]
    fn an_hour_is_kept_and_a_clock_that_is_set_back_leaves_no_second_past() {
        let history = Samples::default();
        for number in 0..=SAMPLES_MAX as u64 {
            history.record(at(number * EVERY_MS, number));
        }
        let samples = history.samples();
        assert_eq!(samples.len(), SAMPLES_MAX);
        assert_eq!(samples[0].at, EVERY_MS);
        history.record(at(SAMPLES_MAX as u64 * EVERY_MS, 7));
        assert_eq!(history.samples().last().map(|last| last.online), Some(7), "replaced");
        history.record(at(5 * EVERY_MS, 8));
        let samples: Vec<u64> = history.samples().iter().map(|sample| sample.at / EVERY_MS).collect();
        assert_eq!(samples, [1, 2, 3, 4, 5]);
    }
}
