//! `POST /v1/events`: appends events and responds when they are durable. Either all of them are appended or none. Where
//! the log is on several machines and cannot guarantee this, the response gives the result of each event.

use super::access::Grant;
use super::outcomes;
use super::payload::{BudgetShare, Payload};
use super::peers::Asker;
use super::query::{flag, only, parameter};
use super::traced::TracedRequest;
use super::{ApiError, AppState, access};
use crate::api::answers::EventOutcome;
use crate::api::routes::{EVENTS, RouteId};
use crate::engine::{Engine, Placed};
use crate::log::{self, Appended};
use crate::metrics;
use crate::presence::Epoch;
use crate::presence::event::Event;
use crate::schema::json::{NewEvent, NewEvents, Object, read_request, read_request_lines};
use crate::schema::policy::POLICY_BYTES_MAX;
use axum::extract::{Extension, RawQuery, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse, Response};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// The greatest number of records that one request may become: some events go to every partition.
const RECORDS_MAX: usize = 100_000;
/// The greatest size of these records, in bytes. It is no more than the embedded log lets wait.
const RECORD_BYTES_MAX: usize = 32 << 20;
/// The memory that a record takes in addition to its bytes.
const RECORD_BYTES: usize = 160;
/// The memory that a record's trace takes.
const TRACE_BYTES: usize = 128;
/// How long a request waits for a log that does not confirm an append.
const APPEND_WAIT: Duration = Duration::from_secs(60);
/// By how much one request may raise the epoch of a gateway.
const EPOCH_STEP: u64 = 1 << 32;
/// The greatest epoch of a gateway that has no known epoch. As many epochs remain above it.
const EPOCH_FIRST_MAX: u64 = 1 << 62;

/// How many records an event became: one if it belongs to one user, else one for each partition that got it.
enum Shape {
    One,
    /// One event that became several records, one for each partition that it concerns.
    Many(usize),
}

/// Events that were accepted.
struct Judged {
    records: Vec<Placed>,
    shapes: Vec<Shape>,
    /// Administrative events: type, user, and index of the event in the request.
    administrative: Vec<(&'static str, Option<String>, usize)>,
}

/// `POST /v1/events`: appends the events of a request.
pub async fn events(
    State(app): State<AppState>,
    Extension(grant): Extension<Grant>,
    headers: HeaderMap,
    RawQuery(query): RawQuery,
    payload: Payload,
) -> Result<Response, ApiError> {
    let path = RouteId::Events.route().path;
    let mut traced = TracedRequest::of(path, &headers, app.engine.clock());
    let answer = publish(&app, &grant, &headers, query.as_deref(), payload, traced.as_mut()).await;
    if let Some(traced) = traced {
        let status = match &answer {
            Ok(response) => response.status(),
            Err(api_error) => api_error.status(),
        };
        let failure = status.is_server_error().then(|| status.as_u16().to_string());
        traced.answered(status, failure);
    }
    answer
}

async fn publish(
    app: &AppState,
    grant: &Grant,
    headers: &HeaderMap,
    query: Option<&str>,
    payload: Payload,
    traced: Option<&mut TracedRequest>,
) -> Result<Response, ApiError> {
    only(query, RouteId::Events)?;
    let strict = flag(query, "strict")?;
    let waits = match parameter(query, "wait").as_deref() {
        None | Some("durable") => false,
        Some("applied") => true,
        Some(other) => {
            let message = format!("`wait` must be durable or applied, not {other:?}");
            return Err(ApiError::bad_request("bad_parameter", message));
        }
    };
    let asker = Asker::of(headers);
    refuse_if_stopping(app)?;
    let Payload { bytes, mut held } = payload;
    let new = read(&bytes, headers)?;
    check_epochs(&app.engine, &new).await?;
    let unknown_fields = known_fields(&new, strict)?;
    let judged = judge(new, grant, &app.engine, &mut held)?;
    let Judged {
        records,
        shapes,
        administrative,
    } = judged;
    let watching = match waits {
        true => {
            let partitions = records.iter().map(|(partition, _)| *partition).collect();
            Some(outcomes::watch(app, &asker, partitions).await)
        }
        false => None,
    };
    if traced.is_some() {
        held.more(records.len() * TRACE_BYTES)?;
    }
    let began = app.engine.clock().monotonic();
    let appended = append(app, traced, records).await?;
    if appended.iter().any(Result::is_err) {
        let body = answer(&appended, &[], &shapes, &unknown_fields);
        return Ok((StatusCode::SERVICE_UNAVAILABLE, super::json(body)).into_response());
    }
    durable(app, shapes.len(), began);
    for (kind, user, index) in administrative {
        tracing::info!(by = %grant.who, kind, user, event = index, "administrative event accepted");
    }
    let applied = match watching {
        Some(watching) => watching.applied(app, &appended).await,
        None => Vec::new(),
    };
    Ok(super::json(answer(&appended, &applied, &shapes, &unknown_fields)))
}

/// Appends the records of a request, with its trace if it has one. Returns where each record is, or why it was not appended.
/// Returns an error only if no record is known to have been appended.
async fn append(
    app: &AppState,
    mut traced: Option<&mut TracedRequest>,
    mut records: Vec<Placed>,
) -> Result<Vec<Result<Appended, Arc<str>>>, ApiError> {
    if let Some(traced) = &mut traced {
        traced.attach(&mut records);
    }
    let (acknowledge, acknowledged) = oneshot::channel();
    let acknowledge = Box::new(move |result| {
        // The publisher may have disconnected; its events are in the log nevertheless.
        let _ = acknowledge.send(result);
    });
    app.engine.log().append(records, acknowledge);
    let appended: Vec<Result<Appended, Arc<str>>> = match confirmed(acknowledged).await {
        Ok(appended) => appended.into_iter().map(Ok).collect(),
        Err(Unconfirmed::Log(log::Error::Partly(results))) => results.to_vec(),
        Err(error) => return Err(error.into()),
    };
    if let Some(traced) = traced {
        traced.appended(&appended);
    }
    Ok(appended)
}

/// Why the durability of an append is not known.
enum Unconfirmed {
    Log(log::Error),
    /// The log did not respond in time.
    Silent,
}

impl From<Unconfirmed> for ApiError {
    fn from(unconfirmed: Unconfirmed) -> ApiError {
        match unconfirmed {
            Unconfirmed::Log(error) => ApiError::from(error),
            Unconfirmed::Silent => ApiError::unavailable(
                "log_unavailable",
                format!(
                    "the log did not confirm the events within {} s; they may or may not be in it: send them again",
                    APPEND_WAIT.as_secs()
                ),
            ),
        }
    }
}

async fn confirmed(
    acknowledged: oneshot::Receiver<Result<Vec<Appended>, log::Error>>,
) -> Result<Vec<Appended>, Unconfirmed> {
    match tokio::time::timeout(APPEND_WAIT, acknowledged).await {
        Err(_) => Err(Unconfirmed::Silent),
        Ok(Err(_)) => Err(Unconfirmed::Log(log::Error::Closed)),
        Ok(Ok(appended)) => appended.map_err(Unconfirmed::Log),
    }
}

/// Appends one event about one user, made by another route, with the trace of its request. It is durable when this returns.
pub(super) async fn append_one(
    app: &AppState,
    traced: Option<&mut TracedRequest>,
    event: Event<'_>,
) -> Result<(), ApiError> {
    refuse_if_stopping(app)?;
    let mut records = Vec::new();
    app.engine
        .place(event, None, &mut records)
        .map_err(|error| ApiError::bad_request("bad_event", error.to_string()))?;
    let began = app.engine.clock().monotonic();
    let appended = append(app, traced, records).await?;
    if let Some(why) = appended.iter().find_map(|result| result.as_ref().err()) {
        return Err(log::Error::Write(why.clone()).into());
    }
    durable(app, 1, began);
    Ok(())
}

/// Counts events that are durable now, and measures the time since they were given to the log.
fn durable(app: &AppState, events: usize, began: Duration) {
    metrics::appended(events);
    metrics::append(app.engine.clock().monotonic().saturating_sub(began).as_secs_f64());
}

fn refuse_if_stopping(app: &AppState) -> Result<(), ApiError> {
    if *app.stopping.borrow() {
        return Err(ApiError::unavailable(
            "stopping",
            "the server is stopping; no event was accepted",
        ));
    }
    Ok(())
}

/// Reads the events of a body: one JSON document, or one JSON object per line if the content type says so.
fn read<'a>(body: &'a [u8], headers: &HeaderMap) -> Result<NewEvents<'a>, ApiError> {
    let text = std::str::from_utf8(body).map_err(|error| ApiError::not_utf8(body, &error))?;
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let kind = headers.get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let is_lines = ["application/x-ndjson", "application/ndjson", "application/jsonl"]
        .iter()
        .any(|lines| kind.eq_ignore_ascii_case(lines));
    let most = *EVENTS.end();
    let new = if is_lines {
        read_request_lines(text, most, POLICY_BYTES_MAX).map_err(|(line, error)| {
            let message = format!("line {line} is not a JSON object: {error}");
            ApiError::bad_request("bad_json", message)
        })?
    } else {
        read_request(text, most, POLICY_BYTES_MAX).map_err(|error| ApiError::json(&error))?
    };
    if !EVENTS.contains(&new.count) {
        let message = format!(
            "a request must have {} to {most} events, not {}",
            EVENTS.start(),
            new.count
        );
        return Err(ApiError::bad_request("bad_events", message));
    }
    if let Some((index, bad)) = &new.bad {
        return Err(ApiError::event(*index, bad.field, &bad.message));
    }
    Ok(new)
}

/// Returns the unknown fields, which the response names. With `strict`, an unknown field is refused.
fn known_fields(new: &NewEvents<'_>, strict: bool) -> Result<Vec<Box<str>>, ApiError> {
    match new.unknown_fields.first() {
        Some((index, field)) if strict => {
            let message = format!("events of this type have no field {field:?}, and `strict` refuses unknown fields");
            Err(ApiError::event(*index, field.to_string(), message))
        }
        _ => Ok(new.unknown_fields.iter().map(|(_, field)| field.clone()).collect()),
    }
}

/// Refuses a lease whose epoch is so far ahead that no greater epoch could follow.
///
/// An epoch only grows, and every smaller epoch is stale. So one request may raise it by no more than a bound or, if
/// the epochs are taken from a clock, up to the time of that clock.
async fn check_epochs(engine: &Engine, new: &NewEvents<'_>) -> Result<(), ApiError> {
    let mut greatest: BTreeMap<&str, (u64, usize)> = BTreeMap::new();
    for (index, new) in new.events.iter().enumerate() {
        if let Event::Lease { gateway, epoch, .. } = &new.event {
            let entry = greatest.entry(gateway).or_insert((epoch.0, index));
            *entry = (*entry).max((epoch.0, index));
        }
    }
    if greatest.is_empty() {
        return Ok(());
    }
    let gateways: Vec<String> = greatest.keys().map(|gateway| (*gateway).to_owned()).collect();
    let known = engine.epochs(gateways).await;
    for (number, (gateway, (epoch, index))) in greatest.into_iter().enumerate() {
        let known = known.get(number).copied().flatten();
        let most = most_epoch(known, engine.now_ms());
        if epoch > most {
            let than = match known {
                Some(Epoch(known)) => {
                    format!("too far ahead of the epoch {known} that is known of the gateway {gateway:?}")
                }
                None => format!("too large for the first epoch of the gateway {gateway:?}"),
            };
            let message = format!(
                "`epoch` {epoch} is {than}: at most {most} is accepted, since no smaller epoch could \
                 follow. Use one more than the last"
            );
            return Err(ApiError::event(index, "epoch", message));
        }
    }
    Ok(())
}

/// Returns the greatest epoch that may follow a known one.
fn most_epoch(known: Option<Epoch>, now_ms: u64) -> u64 {
    /// Allows for clocks that differ.
    const AHEAD_MS: u64 = 86_400_000;
    let Some(Epoch(known)) = known else {
        return EPOCH_FIRST_MAX;
    };
    // Recognizes epochs in milliseconds, microseconds or nanoseconds since 1970.
    let clock = [1, 1_000, 1_000_000].into_iter().find_map(|unit| {
        let (now, most) = (
            now_ms.checked_mul(unit)?,
            now_ms.checked_add(AHEAD_MS)?.checked_mul(unit)?,
        );
        (now / 2..=most).contains(&known).then_some(most)
    });
    let stepped = known.saturating_add(EPOCH_STEP);
    stepped.max(clock.filter(|_| now_ms > AHEAD_MS).unwrap_or(0))
}

/// Checks and places every event before any of them is appended.
fn judge(new: NewEvents<'_>, grant: &Grant, engine: &Engine, held: &mut BudgetShare) -> Result<Judged, ApiError> {
    let partitions = engine.log().partitions() as usize;
    let mut judged = Judged {
        records: Vec::with_capacity(new.events.len()),
        shapes: Vec::with_capacity(new.events.len()),
        administrative: Vec::new(),
    };
    let mut bytes = 0;
    for (index, new_event) in new.events.into_iter().enumerate() {
        let NewEvent { event, partition, .. } = new_event;
        if needs_admin(&event) {
            if !grant.scopes.admin {
                return Err(access::forbidden("admin").at(index, "type"));
            }
            judged
                .administrative
                .push((event.name(), event.user().map(str::to_owned), index));
        }
        if let Some(gateway) = gateway_of(&event) {
            check_gateway(grant, gateway).map_err(|api_error| api_error.at(index, "gateway"))?;
        }
        if let Some(length) = bytes_everywhere(&event) {
            // This is checked before the records are made, since a small event may become many records.
            let more = partitions * (RECORD_BYTES + length);
            bounded(judged.records.len() + partitions, bytes + more)
                .map_err(|api_error| api_error.at(index, "type"))?;
        }
        let before = judged.records.len();
        let single = engine
            .place(event, partition, &mut judged.records)
            .map_err(|error| ApiError::event(index, error.field(), error.to_string()))?;
        let count = judged.records.len() - before;
        let size = |(_, record): &Placed| {
            RECORD_BYTES + record.value.capacity() + record.key.as_ref().map_or(0, Vec::capacity)
        };
        let more: usize = judged.records[before..].iter().map(size).sum();
        bytes += more;
        bounded(judged.records.len(), bytes).map_err(|api_error| api_error.at(index, "type"))?;
        held.more(more)?;
        judged.shapes.push(match single {
            true => Shape::One,
            false => Shape::Many(count),
        });
    }
    Ok(judged)
}

/// Refuses a request that would become more records, or more bytes, than one append may have.
fn bounded(records: usize, bytes: usize) -> Result<(), ApiError> {
    if records <= RECORDS_MAX && bytes <= RECORD_BYTES_MAX {
        return Ok(());
    }
    let message = format!(
        "with this event the request would become more than {RECORDS_MAX} records or {} MiB in the log, since lease, \
         policy and tick go to every partition; send fewer events at a time",
        RECORD_BYTES_MAX >> 20
    );
    Err(ApiError::new(
        StatusCode::PAYLOAD_TOO_LARGE,
        "too_many_records",
        message,
    ))
}

/// Checks that a token may publish for a gateway.
fn check_gateway(grant: &Grant, gateway: &str) -> Result<(), ApiError> {
    let bound = &grant.scopes.gateways;
    if bound.is_empty() || bound.iter().any(|bound| bound == gateway) {
        return Ok(());
    }
    let message = format!(
        "this bearer token publishes for the gateway {} only, and the event names {gateway:?}",
        bound.join(", ")
    );
    Err(ApiError::new(StatusCode::FORBIDDEN, "forbidden", message))
}

/// Returns the gateway on whose behalf an event is published.
fn gateway_of<'e>(event: &'e Event<'_>) -> Option<&'e str> {
    match event {
        Event::Connect { via, .. }
        | Event::Heartbeat { via, .. }
        | Event::Background { via, .. }
        | Event::Foreground { via, .. }
        | Event::Disconnect { via, .. }
        | Event::Logout { via, .. } => Some(&via.gateway),
        Event::Heartbeats { gateway, .. } | Event::Alive { gateway, .. } | Event::Lease { gateway, .. } => {
            Some(gateway)
        }
        Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. }
        | Event::Policy { .. }
        | Event::Revision { .. }
        | Event::Tick => None,
    }
}

/// Returns how many bytes beyond a usual record an event has, if it goes to every partition.
fn bytes_everywhere(event: &Event<'_>) -> Option<usize> {
    match event {
        Event::Policy { document, .. } => Some(document.len()),
        Event::Lease { .. } | Event::Revision { .. } | Event::Tick => Some(0),
        Event::Connect { .. }
        | Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Disconnect { .. }
        | Event::Logout { .. }
        | Event::Kick { .. }
        | Event::CustomStatus { .. }
        | Event::Forget { .. } => None,
    }
}

/// Returns whether an event is administrative, so that neither a client nor a gateway may publish it.
fn needs_admin(event: &Event<'_>) -> bool {
    match event {
        Event::Policy { .. } | Event::Revision { .. } | Event::Kick { .. } | Event::Forget { .. } => true,
        Event::Connect { .. }
        | Event::Heartbeat { .. }
        | Event::Heartbeats { .. }
        | Event::Alive { .. }
        | Event::Background { .. }
        | Event::Foreground { .. }
        | Event::Disconnect { .. }
        | Event::Logout { .. }
        | Event::CustomStatus { .. }
        | Event::Lease { .. }
        | Event::Tick => false,
    }
}

/// Returns the response: where each event is in the log, or why it is not there.
fn answer(
    appended: &[Result<Appended, Arc<str>>],
    applied: &[Option<EventOutcome>],
    shapes: &[Shape],
    unknown_fields: &[Box<str>],
) -> Vec<u8> {
    fn one(out: &mut Vec<u8>, (appended, applied): (&Result<Appended, Arc<str>>, Option<&EventOutcome>)) {
        let mut object = Object::new(out);
        match appended {
            Ok(appended) => object
                .number("partition", appended.partition.0.into())
                .number("offset", appended.offset.0),
            Err(why) => object.text("error", why),
        };
        if let Some(applied) = applied {
            object.text("outcome", &applied.outcome);
            if let Some(reason) = &applied.reason {
                object.text("reason", reason);
            }
            if let Some(hint) = &applied.hint {
                object.text("hint", hint);
            }
            if let Some(ignored) = applied.ignored.filter(|ignored| *ignored > 1) {
                object.number("ignored", ignored);
            }
        }
        object.end();
    }
    let applied = applied.iter().map(Option::as_ref).chain(std::iter::repeat(None));
    let mut rest = appended.iter().zip(applied);
    let mut body = Vec::with_capacity(32 * appended.len());
    let mut object = Object::new(&mut body);
    if appended.iter().any(Result::is_err) {
        let mut error = Vec::new();
        let message = "some of the events are in the log and some are not, as `appended` says; send again those that \
                       have an `error`";
        Object::new(&mut error)
            .text("code", "partly_appended")
            .text("message", message)
            .end();
        object.raw("error", &error);
    }
    object.list("appended", shapes, |out, shape| match shape {
        Shape::One => rest.by_ref().take(1).for_each(|appended| one(out, appended)),
        Shape::Many(count) => {
            out.push(b'[');
            for (number, appended) in rest.by_ref().take(*count).enumerate() {
                if number > 0 {
                    out.push(b',');
                }
                one(out, appended);
            }
            out.push(b']');
        }
    });
    if !unknown_fields.is_empty() {
        object.texts("unknown_fields", unknown_fields);
    }
    object.end();
    body
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_epoch_grows_by_a_bound_or_up_to_the_clock_it_is_taken_from() {
        const NOW_MS: u64 = 1_790_000_000_000;
        let most = |known| most_epoch(Some(Epoch(known)), NOW_MS);
        assert_eq!(most_epoch(None, NOW_MS), 1 << 62);
        assert_eq!(most(5), 5 + (1 << 32));
        assert_eq!(most(0), 1 << 32);
        assert_eq!(most(i64::MAX as u64), i64::MAX as u64 + (1 << 32));
        // A gateway that was started a year ago and takes its epochs from a clock.
        let year_ms = 31_536_000_000;
        for unit in [1, 1_000, 1_000_000] {
            assert!(most((NOW_MS - year_ms) * unit) >= NOW_MS * unit, "{unit}");
            assert!(
                most((NOW_MS - year_ms) * unit) <= (NOW_MS + 86_400_000) * unit,
                "{unit}"
            );
        }
        // An epoch that does not look like the time of a clock may grow by the step only.
        assert_eq!(most(NOW_MS * 30), NOW_MS * 30 + (1 << 32));
    }
}
