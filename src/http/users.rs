//! Questions about users.

use super::payload::Payload;
use super::peers::Asker;
use super::{ApiError, AppState, Peers, standby};
use crate::api::answers::Users;
use crate::api::requests::{Texts, UsersQuery};
use crate::api::routes::{CHANGES_DEFAULT, RouteId, USERS};
use crate::engine::QueryError;
use crate::log::{self, Limit, Topic};
use crate::presence::change::Output;
use crate::presence::event::bounds;
use crate::presence::{Offset, Partition};
use crate::schema::json::{Object, output_line};
use crate::schema::partitioner::partition_of;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde::Deserialize;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// How long a question waits for `at_least`.
const AT_LEAST_WAIT: Duration = Duration::from_secs(5);
/// The code of an answer that could not wait for `at_least` any longer.
const NOT_YET: &str = "not_yet";
/// How far back the newest changes are looked for.
const CHANGES_SCANNED: u64 = 200_000;

/// The one value of a parameter in a query string.
pub(super) fn parameter(query: Option<&str>, name: &str) -> Option<String> {
    parameters(query, name).next()
}

/// All values of a parameter in a query string.
pub(super) fn parameters(query: Option<&str>, name: &str) -> impl Iterator<Item = String> {
    let pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    pairs
        .filter(move |(key, _)| key == name)
        .map(|(_, value)| value.into_owned())
}

/// What clients and libraries add for caches not to answer; it means nothing.
const HARMLESS: [&str; 5] = ["_", "cb", "nocache", "t", "ts"];

/// Refuses parameters that a route does not have: a misspelt filter would be no filter.
pub(super) fn only(query: Option<&str>, route: RouteId) -> Result<(), ApiError> {
    let names: Vec<&str> = route
        .route()
        .parameters
        .iter()
        .map(|parameter| parameter.name)
        .collect();
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| !names.contains(&&**key) && !HARMLESS.contains(&&**key)) {
        None => Ok(()),
        Some((key, _)) => {
            let has = names.join("`, `");
            let message = format!("{key:?} is not a parameter of this path, which has `{has}`");
            Err(ApiError::bad_request("bad_parameter", message))
        }
    }
}

/// A parameter in a query string that is there or not: `strict`, `strict=1`, `strict=true`.
pub(super) fn flag(query: Option<&str>, name: &'static str) -> Result<bool, ApiError> {
    match parameter(query, name).as_deref() {
        None | Some("0" | "false") => Ok(false),
        Some("" | "1" | "true") => Ok(true),
        Some(other) => {
            let message = format!("`{name}` must be true or false, not {other:?}");
            Err(ApiError::bad_request("bad_parameter", message))
        }
    }
}

/// A number in a query string, within the bounds that the route gives it.
pub(super) fn number(query: Option<&str>, route: RouteId, name: &'static str) -> Result<Option<u64>, ApiError> {
    let bounds = route.route().bounds(name);
    let Some(text) = parameter(query, name) else {
        return Ok(None);
    };
    let number = text.parse().ok().filter(|number| bounds.contains(number));
    let bad = || {
        ApiError::bad_request(
            "bad_parameter",
            format!(
                "`{name}` must be an integer from {} to {}, not {text:?}",
                bounds.start(),
                bounds.end()
            ),
        )
    };
    number.map(Some).ok_or_else(bad)
}

/// `GET /v1/users/{user}`
pub async fn user(
    State(app): State<AppState>,
    headers: HeaderMap,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = user_of_path(user)?;
    one(&app, &Asker::of(&headers), RouteId::User, user, query.as_deref()).await
}

/// `GET /v1/user?id=…`: every id can be asked for so. In a path `.` and `..` are folded away, and a proxy in between
/// may take `%2F` for a slash.
pub async fn user_by_id(
    State(app): State<AppState>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let id = required_id(query.as_deref())?;
    one(&app, &Asker::of(&headers), RouteId::UserById, id, query.as_deref()).await
}

pub(super) fn required_id(query: Option<&str>) -> Result<String, ApiError> {
    let missing = || ApiError::bad_request("bad_parameter", "`id`, the user, is missing: /v1/user?id=alice");
    of_right_length("`id`", parameter(query, "id").ok_or_else(missing)?)
}

/// Returns the user that a path names.
pub(super) fn user_of_path(user: Result<Path<String>, PathRejection>) -> Result<String, ApiError> {
    let Path(user) = user?;
    of_right_length("the user", user)
}

fn of_right_length(what: &str, user: String) -> Result<String, ApiError> {
    let (least, most) = bounds::USER_BYTES;
    if !(least..=most).contains(&user.len()) {
        let message = format!("{what} must have {least} to {most} bytes of UTF-8, not {}", user.len());
        return Err(ApiError::bad_request("bad_parameter", message));
    }
    Ok(user)
}

async fn one(
    app: &AppState,
    asker: &Asker,
    route: RouteId,
    user: String,
    query: Option<&str>,
) -> Result<Response, ApiError> {
    only(query, route)?;
    let at_least = number(query, route, "at_least")?.map(Offset);
    let partition = partition_of(&user, app.engine.log().partitions());
    let has_standby = standby::is_known(app, partition, asker);
    let owner = of_owner(app, asker, partition, &user, at_least);
    let owner = standby::unless_late(has_standby && at_least.is_none(), owner).await;
    let is_absent = match &owner {
        Ok(response) => response.status() == StatusCode::SERVICE_UNAVAILABLE,
        Err(error) => error.status() == StatusCode::SERVICE_UNAVAILABLE && error.code() != NOT_YET,
    };
    if !(is_absent && has_standby) {
        return owner;
    }
    let asked = standby::look_up(app, asker, partition, std::slice::from_ref(&user), at_least);
    let found = tokio::time::timeout(AT_LEAST_WAIT, asked).await.ok().flatten();
    match found.and_then(|found| found.into_iter().next()) {
        Some(Found::Known(body)) => Ok(super::json(body)),
        Some(Found::Unknown) => Err(unknown(&user)),
        Some(Found::Unread(_)) | None => owner,
    }
}

/// What the owner of the user's partition says, here or on another node.
async fn of_owner(
    app: &AppState,
    asker: &Asker,
    partition: Partition,
    user: &str,
    at_least: Option<Offset>,
) -> Result<Response, ApiError> {
    let asked = app.engine.users(partition, vec![user.to_owned()], at_least);
    let answered = match at_least {
        None => asked.await,
        Some(offset) => tokio::time::timeout(AT_LEAST_WAIT, asked).await.map_err(|_| {
            let message = format!("offset {offset} of partition {partition} is not folded yet");
            ApiError::unavailable(NOT_YET, message)
        })?,
    };
    if let (Err(QueryError::Elsewhere), Some(peers)) = (&answered, &app.peers) {
        let url = peers.elsewhere(partition, asker)?;
        let (status, body) = peers.ask(&url, &path_of(user, at_least), None).await?;
        return Ok(super::passed_on(status, body));
    }
    match answered?.into_iter().next().flatten() {
        Some(body) => Ok(super::json(body)),
        None => Err(unknown(user)),
    }
}

fn unknown(user: &str) -> ApiError {
    ApiError::not_found("unknown_user", format!("no user {user:?} is known"))
}

/// Returns the path with which another node is asked for one user.
pub(super) fn path_of(user: &str, at_least: Option<Offset>) -> String {
    let escaped: String = form_urlencoded::byte_serialize(user.as_bytes()).collect();
    let mut path = format!("{}?id={escaped}", RouteId::UserById.route().path);
    if let Some(offset) = at_least {
        path.push_str(&format!("&at_least={offset}"));
    }
    path
}

#[derive(Deserialize)]
struct Named {
    user: String,
}

/// What was found out about one user.
#[derive(Clone)]
pub enum Found {
    /// The object of the answer.
    Known(Vec<u8>),
    Unknown,
    /// Why nobody could say.
    Unread(String),
}

/// `POST /v1/users/query`
pub async fn query(State(app): State<AppState>, headers: HeaderMap, payload: Payload) -> Result<Response, ApiError> {
    let query: UsersQuery = serde_json::from_slice(&payload.bytes).map_err(|error| ApiError::json(&error))?;
    let UsersQuery {
        users: Texts { texts: users, count },
    } = query;
    if !USERS.contains(&count) {
        let (least, most) = (USERS.start(), USERS.end());
        let message = format!("`users` must have {least} to {most} ids, not {count}");
        return Err(ApiError::bad_request("bad_users", message));
    }
    let found = look_up(&app, &users, &Asker::of(&headers)).await?;
    let mut body = Vec::new();
    let known = found.iter().filter_map(|found| match found {
        Found::Known(line) => Some(line),
        Found::Unknown | Found::Unread(_) => None,
    });
    let named = || users.iter().zip(&found);
    let unknown = named().filter(|(_, found)| matches!(found, Found::Unknown));
    // What is known is JSON already, and is not read again to be written as it was.
    let unread: Vec<(&String, &String)> = named()
        .filter_map(|(user, found)| match found {
            Found::Unread(why) => Some((user, why)),
            Found::Known(_) | Found::Unknown => None,
        })
        .collect();
    let mut object = Object::new(&mut body);
    object
        .list("users", known, |out, user| out.extend_from_slice(user))
        .list("unknown", unknown, |out, (user, _)| {
            out.extend_from_slice(serde_json::Value::from(user.as_str()).to_string().as_bytes());
        });
    if !unread.is_empty() {
        object.list("unread", unread, |out, (user, why)| {
            Object::new(out).text("user", user).text("why", why).end();
        });
    }
    object.end();
    Ok(super::json(body))
}

/// Looks users up wherever they are, in the order asked. An error only if nothing could be read at all.
pub async fn look_up(app: &AppState, users: &[String], asker: &Asker) -> Result<Vec<Found>, ApiError> {
    let partitions = app.engine.log().partitions();
    let mut parts: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
    for (number, user) in users.iter().enumerate() {
        parts.entry(partition_of(user, partitions)).or_default().push(number);
    }
    let named = |numbers: &[usize]| -> Vec<String> { numbers.iter().map(|number| users[*number].clone()).collect() };
    let mut found: Vec<Option<Found>> = vec![None; users.len()];
    let mut elsewhere = Vec::new();
    let mut failure = None;
    let has_standby = |partition: &Partition| standby::is_known(app, *partition, asker);
    // All at once: one that is not ready to answer holds up no other.
    let asked = parts.iter().map(async |(partition, numbers)| {
        let answer = async { Ok(app.engine.users(*partition, named(numbers), None).await) };
        let answer = standby::unless_late(has_standby(partition), answer).await;
        (partition, numbers, answer)
    });
    for (partition, numbers, answer) in futures_util::future::join_all(asked).await {
        let error = match answer {
            Ok(Ok(answers)) => {
                for (number, answer) in numbers.iter().zip(answers) {
                    found[*number] = Some(answer.map_or(Found::Unknown, Found::Known));
                }
                continue;
            }
            Ok(Err(QueryError::Elsewhere)) if app.peers.is_some() => {
                elsewhere.push(*partition);
                continue;
            }
            Ok(Err(error)) => ApiError::from(error),
            Err(late) => late,
        };
        for number in numbers {
            found[*number] = Some(Found::Unread(error.message().to_owned()));
        }
        failure = Some(error);
    }
    if let Some(peers) = app.peers.as_ref().filter(|_| !elsewhere.is_empty()) {
        let (owned, mut nowhere) = peers.by_owner(elsewhere.iter().copied());
        let mut asked = Vec::new();
        for (url, partitions) in owned {
            if asker.is_node() {
                nowhere.extend(partitions);
                continue;
            }
            let numbers: Vec<usize> = partitions
                .iter()
                .flat_map(|partition| parts[partition].clone())
                .collect();
            let users = named(&numbers);
            let have_standbys = partitions.iter().all(has_standby);
            asked.push(async move {
                let answer = ask_node(peers, &url, users);
                (numbers, standby::unless_late(have_standbys, answer).await)
            });
        }
        for (numbers, answer) in futures_util::future::join_all(asked).await {
            match answer {
                Ok(answers) => {
                    for (number, answer) in numbers.into_iter().zip(answers) {
                        found[number] = Some(answer);
                    }
                }
                Err(api_error) => {
                    for number in numbers {
                        found[number] = Some(Found::Unread(api_error.message().to_owned()));
                    }
                    failure = Some(api_error);
                }
            }
        }
        for partition in nowhere {
            let api_error = super::peers::moving(partition);
            for number in &parts[&partition] {
                found[*number] = Some(Found::Unread(api_error.message().to_owned()));
            }
            failure = Some(api_error);
        }
    }
    let unread = |found: &Option<Found>| matches!(found, None | Some(Found::Unread(_)));
    let unanswered = |(partition, numbers): &(&Partition, &Vec<usize>)| {
        has_standby(partition) && numbers.iter().any(|number| unread(&found[*number]))
    };
    let asked = parts.iter().filter(unanswered).map(async |(partition, numbers)| {
        let answer = standby::look_up(app, asker, *partition, &named(numbers), None).await;
        (numbers, answer)
    });
    for (numbers, answer) in futures_util::future::join_all(asked).await {
        for (number, answer) in numbers.iter().zip(answer.unwrap_or_default()) {
            found[*number] = Some(answer);
        }
    }
    match failure {
        Some(api_error) if found.iter().all(unread) => Err(api_error),
        _ => Ok(found.into_iter().map(|found| found.unwrap_or(Found::Unknown)).collect()),
    }
}

/// Has another node look up users; in their order.
pub(super) async fn ask_node(peers: &Peers, url: &str, users: Vec<String>) -> Result<Vec<Found>, ApiError> {
    let unclear = || ApiError::unavailable("moving", format!("node {url} returned an unreadable response"));
    let query = UsersQuery {
        users: users.clone().into(),
    };
    let body = serde_json::to_vec(&query).map_err(|error| ApiError::json(&error))?;
    let (status, body) = peers.ask(url, RouteId::UsersQuery.route().path, Some(body)).await?;
    if !status.is_success() {
        let message = format!("the node {url} cannot answer at the moment ({status})");
        return Err(ApiError::unavailable("moving", message));
    }
    let answered: Users<&RawValue> = serde_json::from_slice(&body).map_err(|_| unclear())?;
    let mut known = HashMap::new();
    for line in answered.users {
        let named: Named = serde_json::from_str(line.get()).map_err(|_| unclear())?;
        known.insert(named.user, line.get().as_bytes().to_vec());
    }
    let unknown: HashSet<String> = answered.unknown.into_iter().collect();
    let each = users.iter().map(|user| match known.get(user) {
        Some(line) => Found::Known(line.clone()),
        None if unknown.contains(user) => Found::Unknown,
        None => Found::Unread(format!("the node {url} could not read it")),
    });
    Ok(each.collect())
}

/// `GET /v1/users/{user}/changes`: the newest first, of those that the log still has and not too far back.
pub async fn changes(
    State(app): State<AppState>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, ApiError> {
    let user = user_of_path(user)?;
    newest(&app, RouteId::UserChanges, user, query.as_deref()).await
}

/// `GET /v1/user/changes?id=…`
pub async fn changes_by_id(State(app): State<AppState>, RawQuery(query): RawQuery) -> Result<Response, ApiError> {
    let id = required_id(query.as_deref())?;
    newest(&app, RouteId::UserChangesById, id, query.as_deref()).await
}

async fn newest(app: &AppState, route: RouteId, user: String, query: Option<&str>) -> Result<Response, ApiError> {
    only(query, route)?;
    let wanted = number(query, route, "limit")?.unwrap_or(CHANGES_DEFAULT) as usize;
    let (log, schemas) = (app.engine.log().clone(), app.engine.schemas().clone());
    let partition = partition_of(&user, log.partitions());
    let found = tokio::task::spawn_blocking(move || -> Result<(Vec<Vec<u8>>, u64), log::Error> {
        const CHUNK: u64 = 4_000;
        let range = log.range(Topic::Changes, partition)?;
        let least = range.start.0.max(range.end.0.saturating_sub(CHANGES_SCANNED));
        let mut lines = Vec::new();
        let mut unreadable = 0;
        let mut upto = range.end.0;
        while upto > least && lines.len() < wanted {
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
                log.read(Topic::Changes, partition, next, limit, &mut records)?;
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
                let change = schemas.change(&record.value);
                let change = change.map_err(|error| log::Error::Read(error.to_string().into()))?;
                match change {
                    Ok(change) if lines.len() < wanted => {
                        let mut line = Vec::new();
                        output_line(&mut line, &Output::Change(change));
                        lines.push(line);
                    }
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
        Ok((lines, unreadable))
    });
    let (lines, unreadable) = found
        .await
        .map_err(|_| ApiError::unavailable("stopping", "the server is stopping"))??;
    let mut body = Vec::new();
    let mut object = Object::new(&mut body);
    object.list("changes", &lines, |out, line| out.extend_from_slice(line));
    if unreadable > 0 {
        object.number("unreadable", unreadable);
    }
    object.end();
    Ok(super::json(body))
}
