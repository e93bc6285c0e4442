//! Questions about users.

use super::{Face, Fault};
use crate::log::{self, Limit, Topic};
use crate::presence::Offset;
use crate::presence::change::Output;
use crate::schema::json::{Object, output_line};
use crate::schema::{avro, partitioner::partition_of};
use axum::body::Bytes;
use axum::extract::rejection::{BytesRejection, PathRejection};
use axum::extract::{Path, RawQuery, State};
use axum::response::Response;
use serde::Deserialize;
use std::ops::RangeInclusive;
use std::time::Duration;

/// How long a question waits for `at_least`.
const AT_LEAST_WAIT: Duration = Duration::from_secs(5);
/// How many users one question may name.
const USERS: RangeInclusive<usize> = 1..=1_000;
/// How many of a user's changes are given at most, and if nothing is said.
const CHANGES: RangeInclusive<u64> = 1..=100;
const CHANGES_DEFAULT: u64 = 20;
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

/// Refuses parameters that a route does not have: a misspelt filter would be no filter.
pub(super) fn only(query: Option<&str>, names: &[&str]) -> Result<(), Fault> {
    let mut pairs = form_urlencoded::parse(query.unwrap_or_default().as_bytes());
    match pairs.find(|(key, _)| !names.contains(&&**key)) {
        None => Ok(()),
        Some((key, _)) => {
            let has = names.join("`, `");
            let message = format!("{key:?} is no parameter of this path, which has `{has}`");
            Err(Fault::bad_request("bad_parameter", message))
        }
    }
}

/// A number in a query string, within its bounds.
pub(super) fn number(
    query: Option<&str>,
    name: &'static str,
    bounds: RangeInclusive<u64>,
) -> Result<Option<u64>, Fault> {
    let Some(text) = parameter(query, name) else {
        return Ok(None);
    };
    let number = text.parse().ok().filter(|number| bounds.contains(number));
    let bad = || {
        Fault::bad_request(
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
    State(face): State<Face>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Fault> {
    let Path(user) = user?;
    one(&face, user, query.as_deref()).await
}

/// `GET /v1/users/query`: somebody may be called that too.
pub async fn user_named_query(State(face): State<Face>, RawQuery(query): RawQuery) -> Result<Response, Fault> {
    one(&face, "query".to_owned(), query.as_deref()).await
}

async fn one(face: &Face, user: String, query: Option<&str>) -> Result<Response, Fault> {
    only(query, &["at_least"])?;
    let at_least = number(query, "at_least", 0..=i64::MAX as u64)?.map(Offset);
    let partition = partition_of(&user, face.engine.log().partitions());
    let asked = face.engine.users(partition, vec![user.clone()], at_least);
    let answered = match at_least {
        None => asked.await,
        Some(offset) => tokio::time::timeout(AT_LEAST_WAIT, asked).await.map_err(|_| {
            let message = format!("offset {offset} of partition {partition} is not folded yet");
            Fault::unavailable("not_yet", message)
        })?,
    };
    match answered?.into_iter().next().flatten() {
        Some(body) => Ok(super::json(body)),
        None => Err(Fault::not_found("unknown_user", format!("no user {user:?} is known"))),
    }
}

/// The lines of users in the order asked, none for who is unknown. Users are looked up here and nowhere else.
pub(super) async fn look_up(face: &Face, users: &[String]) -> Result<Vec<Option<Vec<u8>>>, Fault> {
    let partitions = face.engine.log().partitions();
    let mut parts = vec![Vec::new(); partitions as usize];
    for (number, user) in users.iter().enumerate() {
        parts[partition_of(user, partitions).0 as usize].push(number);
    }
    let mut found: Vec<Option<Vec<u8>>> = vec![None; users.len()];
    for (partition, numbers) in (0..).map(crate::presence::Partition).zip(parts) {
        if !numbers.is_empty() {
            let asked = numbers.iter().map(|number| users[*number].clone()).collect();
            let answers = face.engine.users(partition, asked, None).await?;
            for (number, answer) in numbers.into_iter().zip(answers) {
                found[number] = answer;
            }
        }
    }
    Ok(found)
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Query {
    users: Vec<String>,
}

/// `POST /v1/users/query`
pub async fn query(State(face): State<Face>, body: Result<Bytes, BytesRejection>) -> Result<Response, Fault> {
    let query: Query = serde_json::from_slice(&body?).map_err(|error| Fault::json(&error))?;
    if !USERS.contains(&query.users.len()) {
        let (least, most) = (USERS.start(), USERS.end());
        let message = format!("`users` must have {least} to {most} ids, not {}", query.users.len());
        return Err(Fault::bad_request("bad_users", message));
    }
    let found = look_up(&face, &query.users).await?;
    let mut body = Vec::new();
    let known = found.iter().flatten();
    let unknown = query.users.iter().zip(&found).filter(|(_, found)| found.is_none());
    Object::new(&mut body)
        .list("users", known, |out, user| out.extend_from_slice(user))
        .list("unknown", unknown, |out, (user, _)| {
            out.extend_from_slice(serde_json::Value::from(user.as_str()).to_string().as_bytes());
        })
        .end();
    Ok(super::json(body))
}

/// `GET /v1/users/{user}/changes`: the newest first, of those that the log still has and not too far back.
pub async fn changes(
    State(face): State<Face>,
    user: Result<Path<String>, PathRejection>,
    RawQuery(query): RawQuery,
) -> Result<Response, Fault> {
    let Path(user) = user?;
    only(query.as_deref(), &["limit"])?;
    let wanted = number(query.as_deref(), "limit", CHANGES)?.unwrap_or(CHANGES_DEFAULT) as usize;
    let log = face.engine.log().clone();
    let partition = partition_of(&user, log.partitions());
    let found = tokio::task::spawn_blocking(move || -> Result<Vec<Vec<u8>>, log::Error> {
        const CHUNK: u64 = 4_000;
        let range = log.range(Topic::Changes, partition)?;
        let least = range.start.0.max(range.end.0.saturating_sub(CHANGES_SCANNED));
        let mut lines = Vec::new();
        let mut upto = range.end.0;
        while upto > least && lines.len() < wanted {
            let from = least.max(upto.saturating_sub(CHUNK));
            let mut records = Vec::new();
            while let Some(limit) = (upto - from).checked_sub(records.len() as u64).filter(|rest| *rest > 0) {
                let limit = Limit {
                    records: limit as usize,
                    bytes: usize::MAX,
                };
                let before = records.len();
                let next = Offset(from + before as u64);
                log.read(Topic::Changes, partition, next, limit, &mut records)?;
                if records.len() == before {
                    break;
                }
            }
            for record in records
                .iter()
                .rev()
                .filter(|record| record.key.as_deref() == Some(user.as_bytes()))
            {
                if lines.len() < wanted
                    && let Ok(change) = avro::decode_change(&record.value)
                {
                    let mut line = Vec::new();
                    output_line(&mut line, &Output::Change(change));
                    lines.push(line);
                }
            }
            upto = from;
        }
        Ok(lines)
    });
    let lines = found
        .await
        .map_err(|_| Fault::unavailable("stopping", "the server is stopping"))??;
    let mut body = Vec::new();
    Object::new(&mut body)
        .list("changes", &lines, |out, line| out.extend_from_slice(line))
        .end();
    Ok(super::json(body))
}
