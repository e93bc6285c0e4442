//! Questions about users.

use super::found::{Found, FoundUser, UserJson};
use super::payload::Payload;
use super::peers::{Asker, unreadable};
use super::query::{number, only, parameter};
use super::standby::{Answered, Part};
use super::{ApiError, AppState, Peers, standby};
use crate::api::answers::Users;
use crate::api::client::RouteRequest;
use crate::api::error::ErrorAnswer;
use crate::api::requests::{Texts, UsersQuery};
use crate::api::routes::{RouteId, USERS};
use crate::engine::QueryError;
use crate::presence::event::bounds;
use crate::presence::{Offset, Partition};
use crate::schema::json::Object;
use crate::schema::partitioner::partition_of;
use axum::extract::rejection::PathRejection;
use axum::extract::{Path, RawQuery, State};
use axum::http::{HeaderMap, StatusCode};
use axum::response::Response;
use serde_json::value::RawValue;
use std::collections::{BTreeMap, HashMap, HashSet};
use std::time::Duration;

/// How long a question waits for `at_least`.
const AT_LEAST_WAIT: Duration = Duration::from_secs(5);
/// The code of an answer that could not wait for `at_least` any longer.
const NOT_YET: &str = "not_yet";

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
    let id = required_id(query.as_deref(), RouteId::UserById)?;
    one(&app, &Asker::of(&headers), RouteId::UserById, id, query.as_deref()).await
}

/// The user that the query string names, if nothing else is wrong with it.
pub(super) fn required_id(query: Option<&str>, route: RouteId) -> Result<String, ApiError> {
    only(query, route)?;
    let missing = || {
        let message = format!("`id`, the user, is missing: {}?id=alice", route.route().path);
        ApiError::bad_request("bad_parameter", message)
    };
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
    let owner = of_owner(app, asker, partition, &user, at_least);
    if !standby::is_known(app, partition, asker) {
        return owner.await.result;
    }
    let standbys = async {
        let found = standby::look_up(app, asker, partition, std::slice::from_ref(&user), at_least).await;
        let result = match found?.into_iter().next()? {
            Found::Known(UserJson(body)) => Ok(super::json(body)),
            Found::Unknown => Err(unknown(&user)),
            Found::Unread(_) => return None,
        };
        Some(OneAnswer { result, lacks: None })
    };
    let is_useful = |answer: &OneAnswer| is_useful(answer.lacks.as_deref(), at_least.is_some());
    let patience = at_least.is_none().then_some(standby::PATIENCE);
    let answer = standby::owner_or_standbys(owner, standbys, patience, is_useful, |_, found| found).await;
    answer.result
}

/// Whether an owner's answer counts, which lacks a user if it is a 503 with a code. An owner that has waited for an offset has
/// answered; no standby is asked to wait again.
fn is_useful(lacks: Option<&str>, waits: bool) -> bool {
    match lacks {
        Some("moving" | "not_ready") => false,
        Some(_) => waits,
        None => true,
    }
}

/// An answer about one user.
struct OneAnswer {
    result: Result<Response, ApiError>,
    /// The code of a 503.
    lacks: Option<String>,
}

impl From<Result<Response, ApiError>> for OneAnswer {
    fn from(result: Result<Response, ApiError>) -> OneAnswer {
        let refused = result.as_ref().err();
        let lacks = refused.filter(|error| error.status() == StatusCode::SERVICE_UNAVAILABLE);
        let lacks = lacks.map(|error| error.code().to_owned());
        OneAnswer { result, lacks }
    }
}

/// What the owner of the user's partition says, here or on another node.
async fn of_owner(
    app: &AppState,
    asker: &Asker,
    partition: Partition,
    user: &str,
    at_least: Option<Offset>,
) -> OneAnswer {
    let user_alone = vec![user.to_owned()];
    let asked = app.engine.users(partition, user_alone, at_least, UserJson::here());
    let answered = match at_least {
        None => asked.await,
        Some(offset) => match tokio::time::timeout(AT_LEAST_WAIT, asked).await {
            Ok(answered) => answered,
            Err(_) => {
                let message = format!("offset {offset} of partition {partition} is not folded yet");
                return Err(ApiError::unavailable(NOT_YET, message)).into();
            }
        },
    };
    if let (Err(QueryError::Elsewhere), Some(peers)) = (&answered, &app.peers) {
        return match peers.elsewhere(partition, asker) {
            Some(url) => of_node(peers, &url, request_for(user, at_least)).await,
            None => Err(app.moving(partition)).into(),
        };
    }
    let answered = answered.map_err(ApiError::from);
    let found = answered.map(|rows| rows.into_iter().next().flatten());
    found
        .and_then(|found| match found {
            Some(UserJson(body)) => Ok(super::json(body)),
            None => Err(unknown(user)),
        })
        .into()
}

/// What another node answers, passed on as it is.
async fn of_node(peers: &Peers, url: &str, asked: RouteRequest) -> OneAnswer {
    match peers.send(url, asked).await {
        Ok((status, body)) => {
            let lacks = (status == StatusCode::SERVICE_UNAVAILABLE).then(|| {
                let refused = serde_json::from_slice::<ErrorAnswer>(&body);
                refused.map_or_else(|_| String::new(), |refused| refused.error.code.into_owned())
            });
            let result = Ok(super::passed_on(status, body));
            OneAnswer { result, lacks }
        }
        Err(error) => Err(error).into(),
    }
}

fn unknown(user: &str) -> ApiError {
    ApiError::not_found("unknown_user", format!("no user {user:?} is known"))
}

/// Returns the request with which another node is asked for one user.
pub(super) fn request_for(user: &str, at_least: Option<Offset>) -> RouteRequest {
    match at_least {
        None => RouteRequest::new(RouteId::UserById, &[("id", user)]),
        Some(offset) => RouteRequest::new(RouteId::UserById, &[("id", user), ("at_least", &offset.to_string())]),
    }
}

/// `POST /v1/users/query`
pub async fn query(State(app): State<AppState>, headers: HeaderMap, payload: Payload) -> Result<Response, ApiError> {
    let query: UsersQuery = payload.object()?;
    let UsersQuery {
        users: Texts { texts: users, count },
    } = query;
    if !USERS.contains(&count) {
        let (least, most) = (USERS.start(), USERS.end());
        let message = format!("`users` must have {least} to {most} ids, not {count}");
        return Err(ApiError::bad_request("bad_users", message));
    }
    let found = look_up::<UserJson>(&app, &users, &Asker::of(&headers)).await?;
    let mut body = Vec::new();
    let known = found.iter().filter_map(|found| match found {
        Found::Known(UserJson(line)) => Some(line),
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
pub async fn look_up<T: FoundUser>(app: &AppState, users: &[String], asker: &Asker) -> Result<Vec<Found<T>>, ApiError> {
    let partitions = app.engine.log().partitions();
    let mut parts: BTreeMap<Partition, Vec<usize>> = BTreeMap::new();
    for (number, user) in users.iter().enumerate() {
        parts.entry(partition_of(user, partitions)).or_default().push(number);
    }
    let named = |numbers: &[usize]| -> Vec<String> { numbers.iter().map(|number| users[*number].clone()).collect() };
    let numbers = |partitions: &[Partition]| -> Vec<usize> {
        partitions
            .iter()
            .flat_map(|partition| parts[partition].clone())
            .collect()
    };
    let with_users = |partitions: &[Partition]| -> Vec<Part> {
        let part = |partition: &Partition| (*partition, named(&parts[partition]));
        partitions.iter().map(part).collect()
    };
    // All at once: one that is not ready to answer holds up no other.
    let asked = parts.keys().map(async |partition| {
        let numbers = &parts[partition];
        let owner = async {
            match app.engine.users(*partition, named(numbers), None, T::here()).await {
                Ok(rows) => Some(Answered {
                    found: rows.into_iter().map(Found::of).collect(),
                    failure: None,
                }),
                Err(QueryError::Elsewhere) if app.peers.is_some() => None,
                Err(error) => Some(Answered::failed(numbers.len(), error.into())),
            }
        };
        (
            *partition,
            or_standbys(app, asker, &[*partition], with_users, owner).await,
        )
    });
    let mut answers = Vec::new();
    let mut elsewhere = Vec::new();
    for (partition, answer) in futures_util::future::join_all(asked).await {
        match answer {
            Some(answered) => answers.push((numbers(&[partition]), answered)),
            None => elsewhere.push(partition),
        }
    }
    if let Some(peers) = app.peers.as_ref().filter(|_| !elsewhere.is_empty()) {
        let (mut owned, mut nowhere) = peers.by_owner(elsewhere.into_iter());
        if asker.is_node() {
            nowhere.extend(std::mem::take(&mut owned).into_values().flatten());
        }
        let nowhere = nowhere.into_iter().map(|partition| (None, vec![partition]));
        let owned = owned.into_iter().map(|(url, partitions)| (Some(url), partitions));
        let asked = owned.chain(nowhere).map(async |(url, partitions)| {
            let numbers = numbers(&partitions);
            let owner = async {
                let answer = match url {
                    Some(url) => ask_node(peers, &url, named(&numbers)).await,
                    None => Err(app.moving(partitions[0])),
                };
                Some(match answer {
                    Ok(found) => Answered { found, failure: None },
                    Err(error) => Answered::failed(numbers.len(), error),
                })
            };
            let answer = or_standbys(app, asker, &partitions, with_users, owner).await;
            (numbers, answer)
        });
        let answered = futures_util::future::join_all(asked).await.into_iter();
        answers.extend(answered.filter_map(|(numbers, answer)| Some((numbers, answer?))));
    }
    let mut found: Vec<Option<Found<T>>> = vec![None; users.len()];
    let mut failure = None;
    for (numbers, answered) in answers {
        for (number, answer) in numbers.into_iter().zip(answered.found) {
            found[number] = Some(answer);
        }
        failure = answered.failure.or(failure);
    }
    let unread = |found: &Option<Found<T>>| found.as_ref().is_none_or(Found::is_unread);
    match failure {
        Some(api_error) if found.iter().all(unread) => Err(api_error),
        _ => Ok(found.into_iter().map(|found| found.unwrap_or(Found::Unknown)).collect()),
    }
}

/// What an owner says of users of some partitions, completed by standbys of these. `None`: the owner is elsewhere.
async fn or_standbys<T: FoundUser>(
    app: &AppState,
    asker: &Asker,
    partitions: &[Partition],
    with_users: impl Fn(&[Partition]) -> Vec<Part>,
    owner: impl Future<Output = Option<Answered<T>>>,
) -> Option<Answered<T>> {
    let is_known = |partition: &&Partition| standby::is_known(app, **partition, asker);
    let known = partitions.iter().filter(is_known).count();
    if known == 0 {
        return owner.await;
    }
    let standbys = async {
        standby::look_up_parts(app, asker, &with_users(partitions))
            .await
            .map(Some)
    };
    let patience = (known == partitions.len()).then_some(standby::PATIENCE);
    let is_useful = |answer: &Option<Answered<T>>| answer.as_ref().is_none_or(Answered::is_complete);
    let either = |owner: Option<Answered<T>>, standbys: Option<Answered<T>>| Some(owner?.completed_by(standbys?));
    standby::owner_or_standbys(owner, standbys, patience, is_useful, either).await
}

/// Has another node look up users; in their order.
pub(super) async fn ask_node<T: FoundUser>(
    peers: &Peers,
    url: &str,
    users: Vec<String>,
) -> Result<Vec<Found<T>>, ApiError> {
    let query = UsersQuery {
        users: users.clone().into(),
    };
    let answered: Users<Box<RawValue>> = peers.post(url, RouteId::UsersQuery, &query).await?;
    let mut known = HashMap::new();
    for object in answered.users {
        let (user, found) = T::elsewhere(object).map_err(|_| unreadable(url))?;
        known.insert(user, found);
    }
    let unknown: HashSet<String> = answered.unknown.into_iter().collect();
    let each = users.iter().map(|user| match known.get(user) {
        Some(found) => Found::Known(found.clone()),
        None if unknown.contains(user) => Found::Unknown,
        None => Found::Unread(format!("the node {url} could not read it")),
    });
    Ok(each.collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_standby_is_not_asked_to_wait_for_an_offset_again_because_the_owner_has_waited() {
        let of_owner = |error: ApiError| OneAnswer::from(Err(error)).lacks;
        let not_yet = of_owner(ApiError::unavailable(NOT_YET, ""));
        let moving = of_owner(super::super::peers::moving(Partition(0), None));
        let not_ready = of_owner(QueryError::Unavailable.into());
        for waits in [false, true] {
            assert!(!is_useful(moving.as_deref(), waits) && !is_useful(not_ready.as_deref(), waits));
            assert!(is_useful(of_owner(unknown("a")).as_deref(), waits), "404 is an answer");
            assert_eq!(is_useful(not_yet.as_deref(), waits), waits);
            assert_eq!(is_useful(Some("unknown_peer"), waits), waits);
        }
    }
}
