//! `GET /v1/incidents`, and the task that has incidents found.
//!
//! One node of a deployment finds them: the one that has partition 0. Every node answers from their topic, so all say the
//! same, also after a restart.

use super::overview::{Local, local_stats, others, stats_line};
use super::peers::Asker;
use super::query::{number, only};
use super::{ApiError, AppState};
use crate::api::answers::{Incident, Incidents, PartitionStats as PartitionLine, Stats};
use crate::api::routes::{INCIDENTS, INCIDENTS_DEFAULT, RouteId};
use crate::incidents::{Finder, FinderError, PartitionProgress};
use crate::log::Limit;
use crate::metrics;
use crate::presence::{LogTime, Offset, Partition};
use crate::schema::avro::IncidentRecord;
use axum::extract::{RawQuery, State};
use axum::http::StatusCode;
use axum::response::Response;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

/// Between two steps of the finder.
const STEP: Duration = Duration::from_secs(1);
/// After an error.
const PAUSE: Duration = Duration::from_secs(5);
/// A change of a live partition is written at most so long after its time. The clock of a broker may be a little behind, too.
const SLACK_MS: u64 = 5_000;
/// How old an answer may be for which the topic is not read again.
const FRESH_MS: u64 = 1_000;
/// Where reading begins: so many offsets before the end. On Kafka marks of transactions have offsets too.
const BACK: u64 = 8 * *INCIDENTS.end();
const LIMIT: Limit = Limit {
    records: *INCIDENTS.end() as usize,
    bytes: 4 << 20,
};

/// The last incidents of the topic.
#[derive(Clone, Debug, Default)]
pub struct KnownIncidents {
    read: Arc<Mutex<ReadIncidents>>,
    /// Up to when this node has looked for incidents, in milliseconds; 0 if another node does.
    looked_up_to: Arc<AtomicU64>,
}

#[derive(Debug, Default)]
struct ReadIncidents {
    /// Oldest first.
    incidents: VecDeque<IncidentRecord>,
    next: Offset,
    /// When the topic was read last, by the monotonic clock.
    read_ms: Option<u64>,
}

impl ReadIncidents {
    /// Reads what was added to the topic. Blocks on the log.
    fn read_on(&mut self, app: &AppState) -> Result<(), ApiError> {
        let engine = &app.engine;
        let now_ms = engine.clock().monotonic_ms();
        if self.read_ms.is_some_and(|read_ms| now_ms < read_ms + FRESH_MS) {
            return Ok(());
        }
        let log = engine.log();
        let mut records = Vec::new();
        let none = Limit { records: 0, bytes: 0 };
        let read = |error| ApiError::from(error).about("the topic of incidents cannot be read");
        let end = log
            .read_incidents(Offset(u64::MAX), none, &mut records)
            .map_err(read)?
            .end;
        self.next = self.next.max(Offset(end.0.saturating_sub(BACK)));
        while self.next < end {
            records.clear();
            log.read_incidents(self.next, LIMIT, &mut records).map_err(read)?;
            let Some(last) = records.last() else { break };
            for record in &records {
                let incident = engine.schemas().incident(&record.value)?;
                let incident = incident.map_err(|malformed| {
                    let message = format!("the incident at offset {} cannot be read: {malformed}", record.offset);
                    ApiError::new(StatusCode::INTERNAL_SERVER_ERROR, "failed", message)
                })?;
                self.incidents.retain(|known| known.id != incident.id);
                self.incidents.push_back(incident);
            }
            self.next = Offset(last.offset.0 + 1);
            while self.incidents.len() > LIMIT.records {
                self.incidents.pop_front();
            }
        }
        self.read_ms = Some(now_ms);
        Ok(())
    }
}

/// `GET /v1/incidents`: the last ones, newest first.
pub async fn incidents(State(app): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    only(query.as_deref(), RouteId::Incidents)?;
    let limit = number(query.as_deref(), RouteId::Incidents, "limit")?.unwrap_or(INCIDENTS_DEFAULT) as usize;
    let known = app.incidents.clone();
    let asked = tokio::task::spawn_blocking(move || {
        let mut read = known.read.lock().unwrap_or_else(PoisonError::into_inner);
        read.read_on(&app)?;
        let newest = read.incidents.iter().rev().take(limit);
        Ok::<_, ApiError>(Incidents {
            incidents: newest.map(Incident::from).collect(),
            looked_up_to: Some(known.looked_up_to.load(Ordering::Relaxed)).filter(|ms| *ms > 0),
        })
    });
    Ok(super::answer(&asked.await??))
}

/// Has incidents found while this node has partition 0, until the process stops.
pub async fn keep(app: AppState) {
    let mut stopping = app.stopping.clone();
    let mut finder = None;
    let mut said = String::new();
    let mut pause = STEP;
    // Up to when incidents were looked for, as far as this node knows.
    let mut up_to_ms = app.engine.now_ms();
    loop {
        tokio::select! {
            () = tokio::time::sleep(pause) => {}
            stopped = stopping.wait_for(|stopping| *stopping) => {
                drop(stopped);
                break;
            }
        }
        pause = STEP;
        if !app.engine.has(Partition(0)) {
            app.incidents.looked_up_to.store(0, Ordering::Relaxed);
            metrics::incidents_not_looked_for();
            up_to_ms = app.engine.now_ms();
            release(finder.take()).await;
            continue;
        }
        let progress = progress(&app).await;
        match step(&app, finder.take(), progress).await {
            Ok(stepped) => {
                said.clear();
                up_to_ms = stepped.looked_up_to().map_or(up_to_ms, |time| time.0);
                let behind_ms = app.engine.now_ms().saturating_sub(up_to_ms);
                metrics::incidents_looked_for(behind_ms, stepped.is_incident_open());
                app.incidents
                    .looked_up_to
                    .store(stepped.looked_up_to().map_or(0, |time| time.0), Ordering::Relaxed);
                if stepped.has_more() {
                    pause = Duration::ZERO;
                }
                finder = Some(stepped);
            }
            Err(why) => {
                pause = PAUSE;
                metrics::incidents_looked_for(app.engine.now_ms().saturating_sub(up_to_ms), false);
                if said != why {
                    tracing::warn!("incidents are not looked for: {why}; trying again");
                }
                said = why;
            }
        }
    }
    release(finder).await;
}

/// Ends a finder, which may have to wait for a broker.
async fn release(finder: Option<Finder>) {
    if finder.is_some() {
        // A panic is in the log by then, and there is nothing to do about it.
        let _ = tokio::task::spawn_blocking(move || drop(finder)).await;
    }
}

/// Takes one step, with a new finder unless one is given. After an error the finder is gone.
async fn step(
    app: &AppState,
    finder: Option<Finder>,
    progress: Vec<Option<PartitionProgress>>,
) -> Result<Finder, String> {
    let engine = app.engine.clone();
    let stepped = tokio::task::spawn_blocking(move || {
        let mut finder = match finder {
            Some(finder) => finder,
            None => Finder::open(engine.log().clone(), engine.schemas().clone(), engine.clock().clone())?,
        };
        finder.step(&progress)?;
        Ok::<_, FinderError>(finder)
    });
    match stepped.await {
        Ok(stepped) => stepped.map_err(|error| error.to_string()),
        Err(panic) => {
            metrics::task_failed("incidents");
            Err(format!("the finder failed: {panic}"))
        }
    }
}

/// Asks how far every partition is. `None` for those of which nobody answers.
async fn progress(app: &AppState) -> Vec<Option<PartitionProgress>> {
    let now_ms = app.engine.log().now_ms().unwrap_or_else(|| app.engine.now_ms());
    let mut progress = vec![None; app.engine.log().partitions() as usize];
    let mut note = |line: &PartitionLine| {
        if let Some(known) = progress.get_mut(line.partition as usize) {
            *known = progress_of(line, now_ms);
        }
    };
    let Ok(Local { here, elsewhere, .. }) = local_stats(app).await else {
        return progress;
    };
    here.iter()
        .map(|stats| stats_line(stats, None))
        .for_each(|line| note(&line));
    for (_, _, answer) in others(app, &Asker::caller(), &elsewhere, RouteId::Stats).await {
        let stats: Option<Stats> = answer.ok();
        stats.iter().flat_map(|stats| &stats.partitions).for_each(&mut note);
    }
    progress
}

/// Returns how far a partition was when it was asked, at `now_ms`.
fn progress_of(line: &PartitionLine, now_ms: u64) -> Option<PartitionProgress> {
    let time = line.time.flatten();
    // What is due on a live partition is written soon, so what is not written is not due.
    let is_idle = line.state == "live" && line.lag == Some(0);
    let idle_to = is_idle.then(|| now_ms.saturating_sub(SLACK_MS));
    Some(PartitionProgress {
        changes: line.changes?,
        complete_to: LogTime(time.max(idle_to)?),
    })
}

impl From<&IncidentRecord> for Incident {
    fn from(record: &IncidentRecord) -> Incident {
        let IncidentRecord {
            id,
            rule,
            window_s,
            least,
            share_percent,
            from,
            to,
            departures,
            devices,
            online_before,
            causes,
            gateways,
            platforms,
            clients,
        } = record.clone();
        Incident {
            id,
            rule,
            window_s,
            least,
            share_percent,
            from,
            to,
            departures,
            devices,
            online_before,
            causes,
            gateways,
            platforms,
            clients,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_partition_is_past_what_is_folded_and_an_idle_one_is_past_what_would_be_due() {
        let line = |state: &str, lag, time| PartitionLine {
            state: state.to_owned(),
            changes: Some(7),
            lag: Some(lag),
            time,
            ..PartitionLine::default()
        };
        let to = |line| progress_of(&line, 60_000).map(|progress| progress.complete_to.0);
        assert_eq!(to(line("live", 0, Some(Some(1_000)))), Some(55_000));
        assert_eq!(to(line("live", 0, Some(Some(59_000)))), Some(59_000));
        assert_eq!(to(line("live", 0, Some(None))), Some(55_000));
        assert_eq!(to(line("live", 3, Some(Some(1_000)))), Some(1_000));
        assert_eq!(to(line("restoring", 0, Some(Some(1_000)))), Some(1_000));
        assert_eq!(to(line("waiting", 0, None)), None);
        let unsaid = PartitionLine {
            changes: None,
            ..line("live", 0, Some(Some(1_000)))
        };
        assert_eq!(to(unsaid), None);
    }
}
