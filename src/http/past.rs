//! Questions about the past: a user's history, why a user has a status, and how many were online at a time.
//!
//! The answers are the objects of `rollcall audit` (`docs/audit.md`), made by the same code ([`crate::audit`]) from what
//! the partition's owner has: the index of changes in its store, and the log. What one request can cost is bounded: how
//! many records are read, how many of a user's changes, and how many requests read at the same time. Reading runs on
//! threads of its own and ends when nobody waits for the answer any more.

use super::peers::{Asker, NoAnswer, unreadable};
use super::query::{flag, number, only, parameter};
use super::users::{required_id, user_of_path};
use super::{ApiError, AppState};
use crate::api::answers::{Explanation, PastTotals, UserChanges, UserHistory, Written};
use crate::api::client::RouteRequest;
use crate::api::routes::{CHANGES_DEFAULT, RouteId};
use crate::audit::history::History;
use crate::audit::snapshot::Totals;
use crate::audit::time;
use crate::audit::why::Why;
use crate::audit::why_now::{StatusChanges, WithoutFold, why_now};
use crate::engine::QueryError;
use crate::engine::past::{Past, PastError, PastOf};
use crate::log::{self, Limit};
use crate::presence::change::{Change, Output};
use crate::presence::policy::Policy;
use crate::presence::{LogTime, Offset, Partition};
use crate::schema::json::output_line;
use crate::schema::partitioner::partition_of;
use crate::topics::Topic;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::value::RawValue;
use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;
use tokio::sync::Semaphore;

/// How many records of a partition are read for one answer, if nothing else is set.
const RECORDS_DEFAULT: u64 = 2_000_000;
/// How many changes of a user one answer is made of.
const USER_CHANGES_MAX: usize = 100_000;
/// How many questions that mostly read the index are answered at a time, and how many that fold a partition.
const READING: usize = 4;
const FOLDING: usize = 1;
/// How many partitions one question reads at the same time.
const COUNTED_AT_A_TIME: usize = 8;
/// How long a request waits for its turn.
const TURN: Duration = Duration::from_secs(4);
/// How long an index is waited for that has what the log has too.
const INDEX_PATIENCE: Duration = Duration::from_secs(1);
/// How far back the newest changes are looked for in the log.
const CHANGES_SCANNED: u64 = 200_000;

/// What questions about the past may cost this process.
#[derive(Clone)]
pub struct PastBounds {
    records: u64,
    reading: Arc<Semaphore>,
    folding: Arc<Semaphore>,
}

impl Default for PastBounds {
    fn default() -> PastBounds {
        PastBounds::new(RECORDS_DEFAULT)
    }
}

impl PastBounds {
    pub fn new(records: u64) -> PastBounds {
        PastBounds {
            records,
            reading: Arc::new(Semaphore::new(READING)),
            folding: Arc::new(Semaphore::new(FOLDING)),
        }
    }
}

/// Ends the reading when the request is dropped.
struct Asking(Arc<AtomicBool>);

impl Drop for Asking {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs what blocks on a thread of its own, when it is its turn.
async fn read<T: Send + 'static>(
    turns: &Arc<Semaphore>,
    pasts: Vec<Past>,
    records: u64,
    answer: impl FnOnce(Vec<Past>) -> Result<T, PastError> + Send + 'static,
) -> Result<T, ApiError> {
    let turn = tokio::time::timeout(TURN, turns.clone().acquire_owned()).await;
    let Ok(Ok(turn)) = turn else {
        let message = "too many questions about the past are being answered; try again shortly";
        return Err(ApiError::unavailable("busy", message));
    };
    let asking = Asking(Arc::default());
    let given_up = asking.0.clone();
    let done = tokio::task::spawn_blocking(move || {
        let pasts = pasts.into_iter().map(|past| past.bounded(records, given_up.clone()));
        let answer = answer(pasts.collect());
        drop(turn);
        answer
    });
    let answered = done.await;
    drop(asking);
    Ok(answered??)
}

/// Returns the time that a parameter names, in one of the forms that `rollcall audit` takes.
fn time_of(app: &AppState, query: Option<&str>, name: &str) -> Result<Option<LogTime>, ApiError> {
    let Some(text) = parameter(query, name) else {
        return Ok(None);
    };
    // A bare `+` in a query is read as a space. No time has a space, and offsets from UTC have a `+`.
    let time = time::parse(&text.replace(' ', "+"), app.engine.now_ms());
    let bad = |error| ApiError::bad_request("bad_parameter", format!("`{name}`: {error}"));
    time.map(Some).map_err(bad)
}

/// `GET /v1/users/{user}/changes`: the newest first, of those that the log still has. Where no index answers, the log is searched,
/// and not too far back.
pub async fn changes(
    State(app): State<AppState>,
    headers: HeaderMap,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = user_of_path(user)?;
    newest(&app, &Asker::of(&headers), RouteId::UserChanges, user, query.as_deref()).await
}

/// `GET /v1/user/changes?id=…`
pub async fn changes_by_id(
    State(app): State<AppState>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = required_id(query.as_deref(), RouteId::UserChangesById)?;
    newest(
        &app,
        &Asker::of(&headers),
        RouteId::UserChangesById,
        id,
        query.as_deref(),
    )
    .await
}

async fn newest(
    app: &AppState,
    asker: &Asker,
    route: RouteId,
    user: String,
    query: Option<&str>,
) -> Result<Response, ApiError> {
    only(query, route)?;
    let wanted = number(query, route, "limit")?.unwrap_or(CHANGES_DEFAULT) as usize;
    let found = match newest_changes(app, asker, &user, wanted).await {
        Some(found) => found,
        None => newest_of_log(app, user, wanted).await?,
    };
    Ok(super::answer(&found))
}

/// Searches the end of the log for a user's newest changes.
async fn newest_of_log(app: &AppState, user: String, wanted: usize) -> Result<UserChanges<Box<RawValue>>, ApiError> {
    let (log, schemas) = (app.engine.log().clone(), app.engine.schemas().clone());
    let partition = partition_of(&user, log.partitions());
    let found = tokio::task::spawn_blocking(move || -> Result<UserChanges<Box<RawValue>>, ApiError> {
        const CHUNK: u64 = 4_000;
        let range = log.range(Topic::Changes, partition)?;
        let least = range.start.0.max(range.end.0.saturating_sub(CHANGES_SCANNED));
        let mut changes = Vec::new();
        let mut unreadable = 0;
        let mut upto = range.end.0;
        while upto > least && changes.len() < wanted {
            let from = least.max(upto.saturating_sub(CHUNK));
            let mut records = Vec::new();
            // On Kafka offsets have gaps, and the end may be one.
            let mut next = Offset(from);
            while next.0 < upto {
                let limit = Limit {
                    records: CHUNK as usize,
                    bytes: usize::MAX,
                };
                let before = records.len();
                match log.read(Topic::Changes, partition, next, limit, &mut records) {
                    Ok(()) => {}
                    // Retention came in between.
                    Err(log::Error::Gone { start, .. }) if start > next => {
                        next = start;
                        continue;
                    }
                    Err(error) => return Err(error.into()),
                }
                match records.last().filter(|_| records.len() > before) {
                    Some(last) => next = Offset(last.offset.0 + 1),
                    None => break,
                }
            }
            records.retain(|record: &crate::log::Record| record.offset.0 < upto);
            for record in records
                .iter()
                .rev()
                .filter(|record| record.key.as_deref() == Some(user.as_bytes()))
            {
                match schemas.change(&record.value)? {
                    Ok(change) if changes.len() < wanted => changes.push(as_line(change)),
                    Ok(_) => {}
                    // Somebody else wrote it there.
                    Err(malformed) => {
                        tracing::warn!(%partition, offset = %record.offset, %malformed, "a change is unreadable");
                        unreadable += 1;
                    }
                }
            }
            upto = from;
        }
        Ok(UserChanges {
            changes,
            unreadable: (unreadable > 0).then_some(unreadable),
        })
    });
    found.await?
}

/// Returns a user's newest changes, the newest first, as the index has them on the node that has the user's partition. None where
/// it does not answer soon or lacks some: the log has them too, which is slower to search.
async fn newest_changes(app: &AppState, asker: &Asker, user: &str, most: usize) -> Option<UserChanges<Box<RawValue>>> {
    let answer = tokio::time::timeout(INDEX_PATIENCE, newest_indexed(app, asker, user, most));
    answer.await.ok().flatten()
}

async fn newest_indexed(app: &AppState, asker: &Asker, user: &str, most: usize) -> Option<UserChanges<Box<RawValue>>> {
    let partition = partition_of(user, app.engine.log().partitions());
    match app.engine.past(partition, PastOf::User(user.to_owned())).await {
        Ok(past) => {
            let user = user.to_owned();
            let bounds = &app.past;
            let found = read(&bounds.reading, vec![past], bounds.records, move |pasts| {
                let newest = pasts.first().map(|past| past.newest_changes_of(&user, most));
                Ok(newest.transpose()?.flatten())
            });
            let changes = match found.await {
                Ok(changes) => changes?,
                Err(error) => {
                    // The answer comes from the log then, so only this line shows what does not pass by itself.
                    if error.status() == StatusCode::INTERNAL_SERVER_ERROR {
                        let error = error.message();
                        tracing::warn!(%partition, %error, "the index of changes cannot be read, so the log is searched");
                    }
                    return None;
                }
            };
            Some(UserChanges {
                changes: changes.into_iter().map(as_line).collect(),
                unreadable: None,
            })
        }
        Err(QueryError::Elsewhere) => {
            let peers = app.peers.as_ref()?;
            let url = peers.elsewhere(partition, asker)?;
            let limit = most.to_string();
            let asked = RouteRequest::new(RouteId::UserChangesById, &[("id", user), ("limit", &limit)]);
            peers.ask(&url, asked).await.ok()
        }
        Err(_) => None,
    }
}

/// Writes a change as in a subscription.
fn as_line(change: Change) -> Box<RawValue> {
    let mut line = Vec::new();
    output_line(&mut line, &Output::Change(change));
    serde_json::from_slice(&line).expect("the line of a change is JSON")
}

/// What is asked about one user.
enum Question {
    History { from: Option<LogTime>, to: Option<LogTime> },
    Why { at: Option<LogTime> },
}

impl Question {
    fn history(app: &AppState, query: Option<&str>) -> Result<Question, ApiError> {
        let (from, to) = (time_of(app, query, "from")?, time_of(app, query, "to")?);
        if let (Some(from), Some(to)) = (from, to)
            && from > to
        {
            let message = format!("`from` ({from}) is after `to` ({to})");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
        Ok(Question::History { from, to })
    }

    fn why(app: &AppState, query: Option<&str>) -> Result<Question, ApiError> {
        let at = time_of(app, query, "at")?;
        Ok(Question::Why { at })
    }

    /// Returns the request with which another node is asked the same. Times are absolute in it.
    fn request(&self, user: &str) -> RouteRequest {
        let (route, times) = match self {
            Question::History { from, to } => (RouteId::UserHistoryById, vec![("from", from), ("to", to)]),
            Question::Why { at } => (RouteId::UserWhyById, vec![("at", at)]),
        };
        let given = |(name, time): (_, &Option<LogTime>)| Some((name, time.as_ref()?.to_string()));
        let times: Vec<(&str, String)> = times.into_iter().filter_map(given).collect();
        let times = times.iter().map(|(name, time)| (*name, time.as_str()));
        let query: Vec<(&str, &str)> = std::iter::once(("id", user)).chain(times).collect();
        RouteRequest::new(route, &query)
    }
}

/// `GET /v1/users/{user}/history`
pub async fn history(
    State(app): State<AppState>,
    headers: HeaderMap,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = user_of_path(user)?;
    only(query.as_deref(), RouteId::UserHistory)?;
    let question = Question::history(&app, query.as_deref())?;
    about_user(&app, &Asker::of(&headers), user, question).await
}

/// `GET /v1/user/history?id=…`
pub async fn history_by_id(
    State(app): State<AppState>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = required_id(query.as_deref(), RouteId::UserHistoryById)?;
    let question = Question::history(&app, query.as_deref())?;
    about_user(&app, &Asker::of(&headers), user, question).await
}

/// `GET /v1/users/{user}/why`
pub async fn why(
    State(app): State<AppState>,
    headers: HeaderMap,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = user_of_path(user)?;
    only(query.as_deref(), RouteId::UserWhy)?;
    let question = Question::why(&app, query.as_deref())?;
    about_user(&app, &Asker::of(&headers), user, question).await
}

/// `GET /v1/user/why?id=…`
pub async fn why_by_id(
    State(app): State<AppState>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = required_id(query.as_deref(), RouteId::UserWhyById)?;
    let question = Question::why(&app, query.as_deref())?;
    about_user(&app, &Asker::of(&headers), user, question).await
}

async fn about_user(app: &AppState, asker: &Asker, user: String, question: Question) -> Result<Response, ApiError> {
    let partition = partition_of(&user, app.engine.log().partitions());
    let of = match question {
        Question::History { .. } => PastOf::User(user.clone()),
        Question::Why { .. } => PastOf::UserAndStatus(user.clone()),
    };
    let past = match app.engine.past(partition, of).await {
        Ok(past) => past,
        Err(QueryError::Elsewhere) if app.peers.is_some() => {
            let Some(peers) = &app.peers else {
                return Err(app.moving(partition));
            };
            let url = peers.elsewhere(partition, asker);
            let url = url.ok_or_else(|| app.moving(partition))?;
            let (status, body) = peers.send(&url, question.request(&user)).await?;
            return Ok(super::passed_on(status, body));
        }
        Err(error) => return Err(error.into()),
    };
    let bounds = &app.past;
    match question {
        Question::History { from, to } => {
            let read = read(&bounds.reading, vec![past], bounds.records, move |pasts| {
                let Some(past) = pasts.first() else {
                    return Ok(Err(QueryError::Unavailable.into()));
                };
                history_of(past, &user, from, to)
            });
            Ok(super::json(read.await??))
        }
        // What was pending at an earlier time only the fold knows.
        Question::Why { at: Some(at) } if past.time().is_none_or(|time| at < time) => {
            let answer = folded_why(app, vec![past], user, Some(at)).await?;
            Ok(super::answer(&answer))
        }
        Question::Why { at } => {
            let asked = user.clone();
            let read_only = read(&bounds.reading, vec![past], bounds.records, move |mut pasts| {
                let Some(past) = pasts.pop() else {
                    return Ok(Err(None));
                };
                Ok(match without_fold(&past, &asked)? {
                    WithoutFold::Certain(answer) => Ok(answer),
                    WithoutFold::NeedsFold => Err(Some(past)),
                })
            });
            let answer = match read_only.await? {
                Ok(answer) => answer,
                Err(past) => folded_why(app, past.into_iter().collect(), user, at).await?,
            };
            Ok(super::answer(&answer))
        }
    }
}

/// Answers from the user's changes and its state, where that is certain. Reading them costs the same for a log of any length.
fn without_fold(past: &Past, user: &str) -> Result<WithoutFold, PastError> {
    let Some(now) = past.user_now() else {
        return Ok(WithoutFold::NeedsFold);
    };
    let mut changes = StatusChanges::default();
    match visit_changes(past, user, |change| changes.apply(change)) {
        // The events may still be few enough.
        Ok(true) | Err(PastError::TooMany { .. }) => return Ok(WithoutFold::NeedsFold),
        Ok(false) => {}
        Err(error) => return Err(error),
    }
    let are_all = past.first_kept()?.is_none();
    why_now(user, &changes, are_all, now, &mut { past })
}

/// Visits a user's changes, at most [`USER_CHANGES_MAX`]. Returns whether there are more.
fn visit_changes(past: &Past, user: &str, mut each: impl FnMut(&Change)) -> Result<bool, PastError> {
    let mut left = USER_CHANGES_MAX;
    let mut is_cut = false;
    past.changes_of(user, |change| {
        is_cut = left == 0;
        if is_cut {
            return ControlFlow::Break(());
        }
        left -= 1;
        each(change);
        ControlFlow::Continue(())
    })?;
    Ok(is_cut)
}

/// Answers from all events of the partition.
async fn folded_why(
    app: &AppState,
    pasts: Vec<Past>,
    user: String,
    at: Option<LogTime>,
) -> Result<Option<Explanation>, ApiError> {
    let bounds = &app.past;
    let seed = app.engine.hash_seed();
    let read = read(&bounds.folding, pasts, bounds.records, move |pasts| {
        let Some(past) = pasts.first() else { return Ok(None) };
        // Another first policy comes as a record.
        let mut why = Why::new(&user, past.partition(), Policy::default(), at, seed);
        past.events(|offset, ts, event| match why.apply(offset, ts, event) {
            true => ControlFlow::Continue(()),
            false => ControlFlow::Break(()),
        })?;
        Ok(why.answer())
    });
    read.await
}

/// Returns the answer as JSON, made here since it may be large. The inner error: the user has too many changes.
fn history_of(
    past: &Past,
    user: &str,
    from: Option<LogTime>,
    to: Option<LogTime>,
) -> Result<Result<Vec<u8>, ApiError>, PastError> {
    if let (Some(from), Some(first)) = (from, past.first_kept()?)
        && first.as_ref().is_none_or(|first| first.at > from)
    {
        return Err(past.gone(first.map(|first| first.at)));
    }
    let mut history = History::within(user, from, to);
    if visit_changes(past, user, |change| history.apply(change))? {
        let message = format!(
            "the user has more than {USER_CHANGES_MAX} changes, the most for an answer over HTTP; `rollcall audit history` has \
             no such bound"
        );
        return Ok(Err(ApiError::bad_request("too_much_to_read", message)));
    }
    let intervals = Written(|| history.lines());
    Ok(Ok(super::written(&UserHistory { intervals })))
}

/// `GET /v1/at`: of the whole cluster. Every partition must be heard of.
pub async fn at(
    State(app): State<AppState>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let (asker, query) = (Asker::of(&headers), query.as_deref());
    only(query, RouteId::At)?;
    let missing = || ApiError::bad_request("bad_parameter", "`time` is missing: /v1/at?time=-3h");
    let time = time_of(&app, query, "time")?.ok_or_else(missing)?;
    let as_known = flag(query, "as_known")?;
    let mut here = Vec::new();
    let mut elsewhere = Vec::new();
    let engine = &app.engine;
    let partitions = (0..engine.log().partitions()).map(Partition);
    let asked = partitions.map(|partition| async move { (partition, engine.past(partition, PastOf::Everybody).await) });
    for (partition, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Ok(past) => here.push(past),
            Err(QueryError::Elsewhere) if app.peers.is_some() => elsewhere.push(partition),
            Err(error) => return Err(error.into()),
        }
    }
    let heard: Vec<u32> = here.iter().map(|past| past.partition().0).collect();
    let is_behind = |past: &&Past| past.time().is_none_or(|log_time| log_time < time);
    let mut behind: Vec<u32> = here.iter().filter(is_behind).map(|past| past.partition().0).collect();
    let bounds = &app.past;
    let local = read(&bounds.reading, here, bounds.records, move |pasts| {
        totals_at(&pasts, time, as_known)
    });
    let others = others_at(&app, &asker, &elsewhere, time, as_known);
    let (local, others) = tokio::join!(local, others);
    let mut totals = local?;
    for (partial, partials_behind) in others? {
        totals.add(&partial);
        behind.extend(partials_behind);
    }
    behind.sort_unstable();
    Ok(super::answer(&PastTotals {
        heard: asker.is_node().then_some(heard),
        ..totals.line(time, as_known, behind)
    }))
}

/// Counts several partitions at a time, since on Kafka each waits for a few fetches.
fn totals_at(pasts: &[Past], time: LogTime, as_known: bool) -> Result<Totals, PastError> {
    let count = |pasts: &[Past]| -> Result<Totals, PastError> {
        let mut totals = Totals::default();
        for past in pasts {
            totals.add(&Totals::from(&past.census_at(time, as_known)?));
        }
        Ok(totals)
    };
    let chunk = pasts.len().div_ceil(COUNTED_AT_A_TIME).max(1);
    std::thread::scope(|scope| {
        let counting = pasts.chunks(chunk).map(|pasts| scope.spawn(move || count(pasts)));
        let counting: Vec<_> = counting.collect();
        let mut totals = Totals::default();
        for counted in counting {
            totals.add(
                &counted
                    .join()
                    .unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
            );
        }
        Ok(totals)
    })
}

/// Asks the other nodes about their partitions, all of which must be heard of.
async fn others_at(
    app: &AppState,
    asker: &Asker,
    elsewhere: &[Partition],
    time: LogTime,
    as_known: bool,
) -> Result<Vec<(Totals, Vec<u32>)>, ApiError> {
    let Some(peers) = app.peers.as_ref().filter(|_| !asker.is_node()) else {
        return Ok(Vec::new());
    };
    let (owned, between) = peers.by_owner(elsewhere.iter().copied());
    if let Some(partition) = between.first() {
        return Err(app.moving(*partition));
    }
    let (time, as_known) = (time.to_string(), as_known.to_string());
    let query = [("time", time.as_str()), ("as_known", as_known.as_str())];
    let asked = owned.iter().map(|(url, partitions)| {
        let asked = RouteRequest::new(RouteId::At, &query);
        async move { (partitions, peers.ask(url, asked).await) }
    });
    let mut answers = Vec::new();
    for (partitions, answer) in futures_util::future::join_all(asked).await {
        let mut answer: PastTotals = answer.map_err(as_refused)?;
        let heard: BTreeSet<u32> = answer.heard.take().unwrap_or_default().into_iter().collect();
        let wanted: BTreeSet<u32> = partitions.iter().map(|partition| partition.0).collect();
        if heard != wanted {
            let unheard = wanted.symmetric_difference(&heard).next().copied().unwrap_or_default();
            return Err(app.moving(Partition(unheard)));
        }
        let behind = std::mem::take(&mut answer.behind);
        answers.push((Totals::from(answer), behind));
    }
    Ok(answers)
}

/// Returns the code of an answer of another node that is passed on, since asking again would not change it.
fn passed_on(status: StatusCode) -> Option<&'static str> {
    match status {
        StatusCode::GONE => Some("gone"),
        StatusCode::BAD_REQUEST => Some("too_much_to_read"),
        StatusCode::INTERNAL_SERVER_ERROR => Some("failed"),
        _ => None,
    }
}

/// Passes the refusal of another node on, or says that it has no answer for now.
fn as_refused(no_answer: NoAnswer) -> ApiError {
    if let NoAnswer::Refused {
        url,
        status,
        detail,
        is_ours,
    } = &no_answer
        && let Some(code) = passed_on(*status)
    {
        return match is_ours {
            true => ApiError::new(*status, code, detail.message.as_str()),
            false => unreadable(url),
        };
    }
    no_answer.into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_does_not_pass_by_itself_on_another_node_is_passed_on_and_the_rest_is_asked_again() {
        for (status, code) in [
            (410, Some("gone")),
            (400, Some("too_much_to_read")),
            (500, Some("failed")),
            (503, None),
            (401, None),
        ] {
            assert_eq!(
                passed_on(StatusCode::from_u16(status).expect("a status")),
                code,
                "{status}"
            );
        }
    }
}
