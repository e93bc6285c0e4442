//! `POST /v1/events?wait=applied`: the outcome of each event, from the node that folded it.
//!
//! The node that folds a partition must know before the events are appended that outcomes are wanted ([`Watching`]).
//! Another node is notified, and asked afterwards, with `POST /v1/outcomes`.

use super::payload::Payload;
use super::peers::{Asker, NoAnswer, unreadable};
use super::{ApiError, AppState};
use crate::api::answers::{EventOutcome, Outcomes as OutcomesAnswer};
use crate::api::requests::OutcomesQuery;
use crate::api::routes::RouteId;
use crate::engine::{Interest, Outcome, QueryError};
use crate::log::Appended;
use crate::presence::{Offset, Partition};
use crate::tasks::guarded;
use axum::extract::State;
use axum::http::HeaderMap;
use axum::response::Response;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

/// How long a request waits for outcomes.
const APPLIED_WAIT: Duration = Duration::from_secs(5);
/// How long a node remembers that another node wants outcomes.
const WATCHED: Duration = Duration::from_secs(30);

impl EventOutcome {
    fn unknown(why: impl Into<String>) -> EventOutcome {
        EventOutcome {
            outcome: "unknown".to_owned(),
            reason: Some("not_known".to_owned()),
            hint: Some(why.into()),
            ignored: None,
        }
    }

    fn of(outcome: Option<Outcome>, platforms: &[String]) -> EventOutcome {
        let Some(outcome) = outcome else {
            return EventOutcome::unknown("the event is in the log, and its outcome is no longer kept; read the user");
        };
        if let Some((reason, error)) = outcome.malformed {
            return EventOutcome {
                outcome: "malformed".to_owned(),
                reason: Some(reason.to_owned()),
                hint: Some(error),
                ignored: None,
            };
        }
        let name = match (outcome.changed, &outcome.ignored) {
            (true, _) => "changed",
            (false, Some(_)) => "ignored",
            (false, None) => "accepted",
        };
        let reason = outcome.ignored.map(|(reason, _)| reason.name());
        EventOutcome {
            outcome: name.to_owned(),
            reason: reason.map(str::to_owned),
            hint: reason.and_then(|reason| hint(reason, platforms)),
            ignored: outcome.ignored.map(|(_, count)| count),
        }
    }
}

/// Returns what a publisher can do about an event that had no effect.
fn hint(reason: &str, platforms: &[String]) -> Option<String> {
    let hint = match reason {
        "unknown_platform" => return Some(format!("platforms: {}", platforms.join(", "))),
        "stale_epoch" => {
            "a greater epoch of this gateway is known, or this one has ended; publish a lease with the next epoch"
        }
        "duplicate" => "this is in the log already; nothing is to be done",
        "superseded" => "the device is on a newer connection",
        "kicked" => {
            "the device was kicked; only a new login brings it back, with `auth_at` left out or the time of a proof that is newer \
             than the kick"
        }
        "unknown_connection" => {
            "no connection of these ids is known; a heartbeat needs its connect first, and what ends a connection is kept: its \
             connect will be ignored as `ended`"
        }
        "closed" => "this connection has ended; publish the connect of a new one",
        "ended" => "the end of this connection came before its connect; a connection is used once",
        "unknown_user" => "no such user is known",
        "no_effect" => "the state is already as the event says",
        "not_online" => "only a user who is online has a custom status",
        "platform_removed" => "the policy lacks a platform that the policy in force has; add it",
        _ => return None,
    };
    Some(hint.to_owned())
}

/// Registers interest in the outcomes of records in some partitions, until it is dropped.
pub struct Watching {
    _here: Vec<Interest>,
    /// For partitions of other nodes: the URL of the node to ask, or why it cannot be asked.
    elsewhere: BTreeMap<Partition, Result<String, String>>,
}

/// Notifies the nodes that fold the partitions that their outcomes are wanted.
pub async fn watch(app: &AppState, asker: &Asker, partitions: BTreeSet<Partition>) -> Watching {
    let mut watching = Watching {
        _here: Vec::new(),
        elsewhere: BTreeMap::new(),
    };
    let mut others = Vec::new();
    for partition in partitions {
        watching._here.push(app.engine.interest(partition));
        if !app.engine.has(partition) {
            others.push(partition);
        }
    }
    let Some(peers) = app.peers.as_ref().filter(|_| !others.is_empty() && !asker.is_node()) else {
        return watching;
    };
    let (owned, moving) = peers.by_owner(others.into_iter());
    for partition in moving {
        let api_error = app.moving(partition);
        watching
            .elsewhere
            .insert(partition, Err(api_error.message().to_owned()));
    }
    let asked = owned.into_iter().map(|(url, partitions)| async move {
        let wanted = OutcomesQuery {
            watch: partitions.iter().map(|partition| partition.0).collect(),
            partition: None,
            offsets: Vec::new(),
        };
        let watched = ask(app, &url, &wanted).await.map(|_| url);
        (partitions, watched)
    });
    for (partitions, watched) in futures_util::future::join_all(asked).await {
        for partition in partitions {
            watching.elsewhere.insert(partition, watched.clone());
        }
    }
    watching
}

impl Watching {
    /// Returns the outcomes of the appended records, in their order; `None` for a record that was not appended.
    pub async fn applied(&self, app: &AppState, appended: &[Result<Appended, Arc<str>>]) -> Vec<Option<EventOutcome>> {
        let mut parts: BTreeMap<Partition, Vec<(usize, Offset)>> = BTreeMap::new();
        for (number, appended) in appended.iter().enumerate() {
            if let Ok(appended) = appended {
                let part = parts.entry(appended.partition).or_default();
                part.push((number, appended.offset));
            }
        }
        let asked = parts.into_iter().map(|(partition, part)| async move {
            let offsets: Vec<Offset> = part.iter().map(|(_, offset)| *offset).collect();
            let answers = match self.elsewhere.get(&partition) {
                None => here(app, partition, offsets).await,
                Some(Err(why)) => Err(why.clone()),
                Some(Ok(url)) => {
                    let wanted = OutcomesQuery {
                        watch: Vec::new(),
                        partition: Some(partition.0),
                        offsets: offsets.iter().map(|offset| offset.0).collect(),
                    };
                    ask(app, url, &wanted).await
                }
            };
            (part, answers)
        });
        let mut applied = vec![None; appended.len()];
        for (part, answers) in futures_util::future::join_all(asked).await {
            let mut answers = answers.map(Vec::into_iter);
            for (number, _) in part {
                let answer = match &mut answers {
                    Ok(answers) => answers.next(),
                    Err(why) => Some(EventOutcome::unknown(why.clone())),
                };
                applied[number] = answer.or_else(|| Some(EventOutcome::unknown("the node gave no outcome")));
            }
        }
        applied
    }
}

/// Returns the outcomes of records of a partition of this node, as soon as the last of them is folded and committed.
async fn here(app: &AppState, partition: Partition, offsets: Vec<Offset>) -> Result<Vec<EventOutcome>, String> {
    let asked = app.engine.outcomes(partition, offsets);
    match tokio::time::timeout(APPLIED_WAIT, asked).await {
        Ok(Ok(outcomes)) => {
            let each = outcomes.each.into_iter();
            Ok(each
                .map(|outcome| EventOutcome::of(outcome, &outcomes.platforms))
                .collect())
        }
        Ok(Err(error)) => Err(match error {
            QueryError::Elsewhere => app.moving(partition).message().to_owned(),
            QueryError::Unavailable | QueryError::Busy | QueryError::StoreUnavailable(_) | QueryError::Failed(_) => {
                error.to_string()
            }
        }),
        Err(_) => Err(format!(
            "the event is in the log and was not folded within {} s",
            APPLIED_WAIT.as_secs()
        )),
    }
}

async fn ask(app: &AppState, url: &str, wanted: &OutcomesQuery) -> Result<Vec<EventOutcome>, String> {
    let Some(peers) = &app.peers else {
        return Err(unreadable(url).message().to_owned());
    };
    let answered: Result<OutcomesAnswer, NoAnswer> = peers.post(url, RouteId::Outcomes, wanted).await;
    answered
        .map(|answered| answered.outcomes)
        .map_err(|no_answer| ApiError::from(no_answer).message().to_owned())
}

/// `POST /v1/outcomes`: how nodes ask each other for outcomes.
pub async fn outcomes(State(app): State<AppState>, headers: HeaderMap, payload: Payload) -> Result<Response, ApiError> {
    let wanted: OutcomesQuery = payload.object()?;
    if !Asker::of(&headers).is_node() {
        return Err(ApiError::not_found(
            "not_found",
            "only nodes of a cluster use this route",
        ));
    }
    let partitions = app.engine.log().partitions();
    let exists = |partition: &u32| *partition < partitions;
    let watched: BTreeSet<u32> = wanted.watch.into_iter().filter(exists).collect();
    if !watched.is_empty() {
        let interests: Vec<Interest> = watched
            .into_iter()
            .map(|partition| app.engine.interest(Partition(partition)))
            .collect();
        tokio::spawn(guarded("interests", async move {
            tokio::time::sleep(WATCHED).await;
            drop(interests);
        }));
    }
    let mut answered = OutcomesAnswer::default();
    if let Some(partition) = wanted.partition.filter(exists) {
        let offsets: Vec<Offset> = wanted.offsets.into_iter().map(Offset).collect();
        let count = offsets.len();
        answered.outcomes = match here(&app, Partition(partition), offsets).await {
            Ok(outcomes) => outcomes,
            Err(why) => vec![EventOutcome::unknown(why); count],
        };
    }
    Ok(super::answer(&answered))
}
