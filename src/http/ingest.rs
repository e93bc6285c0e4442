//! `POST /v1/events`: events in, acknowledged when they are durable: all or none, and where the log is on several
//! machines and that cannot be, with what became of each.

use super::{Face, Fault, access};
use crate::config::Scopes;
use crate::engine::{Engine, Placed};
use crate::log::{self, Appended};
use crate::metrics;
use crate::presence::event::Event;
use crate::schema::json::{NewEvent, Object, read_new_events};
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::{Extension, State};
use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::oneshot;

/// How many events a request may have.
const EVENTS: std::ops::RangeInclusive<usize> = 1..=10_000;

/// How many records an event became: one where it belongs to one user, else as many as partitions got it.
enum Shape {
    One,
    /// Parts of one, for the partitions that they concern.
    Many(usize),
    /// The same for every partition.
    All(usize),
}

pub async fn events(
    State(face): State<Face>,
    Extension(scopes): Extension<Scopes>,
    body: Result<Bytes, BytesRejection>,
) -> Result<Response, Fault> {
    let body = body?;
    refuse_if_stopping(&face)?;
    let log = face.engine.log();
    let (records, shapes) = read(&body, scopes, &face.engine)?;
    let began = face.engine.clock().monotonic();
    let (acknowledge, acknowledged) = oneshot::channel();
    let acknowledge = Box::new(move |result| {
        // Whoever sent the events may have gone; they are in the log all the same.
        let _ = acknowledge.send(result);
    });
    // What every partition is to hear is heard by all of them or by none.
    if shapes.iter().any(|shape| matches!(shape, Shape::All(_))) {
        log.append_together(records, acknowledge);
    } else {
        log.append(records, acknowledge);
    }
    let appended = match acknowledged.await.map_err(|_| Fault::from(log::Error::Closed))? {
        Err(log::Error::Partly(results)) => {
            let body = answer(&results, &shapes);
            return Ok((StatusCode::SERVICE_UNAVAILABLE, super::json(body)).into_response());
        }
        appended => appended?.into_iter().map(Ok).collect::<Vec<_>>(),
    };
    durable(&face, shapes.len(), began);
    Ok(super::json(answer(&appended, &shapes)))
}

/// Appends one event about one user that another route made; it is durable when this returns.
pub(super) async fn append_one(face: &Face, event: Event<'_>) -> Result<(), Fault> {
    refuse_if_stopping(face)?;
    let log = face.engine.log();
    let mut records = Vec::new();
    face.engine
        .place(event, None, &mut records)
        .map_err(|error| Fault::bad_request("bad_event", error.to_string()))?;
    let began = face.engine.clock().monotonic();
    let (acknowledge, acknowledged) = oneshot::channel();
    let acknowledge = Box::new(move |result| {
        // As above.
        let _ = acknowledge.send(result);
    });
    log.append(records, acknowledge);
    acknowledged.await.map_err(|_| Fault::from(log::Error::Closed))??;
    durable(face, 1, began);
    Ok(())
}

/// Events that were given to the log at this time are durable now.
fn durable(face: &Face, events: usize, began: Duration) {
    metrics::appended(events);
    metrics::append(face.engine.clock().monotonic().saturating_sub(began).as_secs_f64());
}

fn refuse_if_stopping(face: &Face) -> Result<(), Fault> {
    if *face.stopping.borrow() {
        return Err(Fault::unavailable(
            "stopping",
            "the server is stopping; no event was taken",
        ));
    }
    Ok(())
}

/// Judges every event before anything is appended.
fn read(body: &[u8], scopes: Scopes, engine: &Engine) -> Result<(Vec<Placed>, Vec<Shape>), Fault> {
    let text = std::str::from_utf8(body).map_err(|error| Fault::not_utf8(body, &error))?;
    let events = read_new_events(text).map_err(|error| Fault::json(&error))?;
    if !EVENTS.contains(&events.len()) {
        let (least, most) = (EVENTS.start(), EVENTS.end());
        let message = format!("a request must have {least} to {most} events, not {}", events.len());
        return Err(Fault::bad_request("bad_events", message));
    }
    let mut records = Vec::with_capacity(events.len());
    let mut shapes = Vec::with_capacity(events.len());
    for (index, event) in events.into_iter().enumerate() {
        let event = event.map_err(|bad| Fault::event(index, bad.field, bad.message))?;
        let NewEvent { event, partition } = event;
        if needs_admin(&event) && !scopes.admin {
            return Err(access::forbidden("admin").at(index, "type"));
        }
        let before = records.len();
        let everywhere = matches!(
            event,
            Event::Lease { .. } | Event::Policy { .. } | Event::Revision { .. } | Event::Tick
        );
        let single = engine
            .place(event, partition, &mut records)
            .map_err(|error| Fault::event(index, error.field(), error.to_string()))?;
        let count = records.len() - before;
        shapes.push(match (single, everywhere) {
            (true, _) => Shape::One,
            (false, false) => Shape::Many(count),
            (false, true) => Shape::All(count),
        });
    }
    Ok((records, shapes))
}

/// What an operator does, not a client or a gateway.
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

/// Where each event went, or why it did not.
fn answer(appended: &[Result<Appended, Arc<str>>], shapes: &[Shape]) -> Vec<u8> {
    fn one(out: &mut Vec<u8>, appended: &Result<Appended, Arc<str>>) {
        let mut object = Object::new(out);
        match appended {
            Ok(appended) => object
                .number("partition", appended.partition.0.into())
                .number("offset", appended.offset.0),
            Err(why) => object.text("error", why),
        };
        object.end();
    }
    let mut rest = appended.iter();
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
    object
        .list("appended", shapes, |out, shape| match shape {
            Shape::One => rest.by_ref().take(1).for_each(|appended| one(out, appended)),
            Shape::Many(count) | Shape::All(count) => {
                out.push(b'[');
                for (number, appended) in rest.by_ref().take(*count).enumerate() {
                    if number > 0 {
                        out.push(b',');
                    }
                    one(out, appended);
                }
                out.push(b']');
            }
        })
        .end();
    body
}
