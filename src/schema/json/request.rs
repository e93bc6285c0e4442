//! The events of an HTTP request: counted while they are read, and built only up to a limit.

use super::bad_event::BadEvent;
use super::fields::{Fields, Key, NewEvent, Seen};
use super::items::ItemSeed;
use super::raw::Raw;
use super::skip::Skip;
use serde::Deserialize as _;
use serde::de::{self, DeserializeSeed, Deserializer, MapAccess, SeqAccess, Visitor};
use std::borrow::Cow;
use std::fmt;

/// The events of a request, up to the first unreadable one.
///
/// Nothing is built for events beyond the limit or after the first unreadable one; those are only counted.
#[derive(Debug, Default)]
pub struct NewEvents<'a> {
    pub events: Vec<NewEvent<'a>>,
    /// The number of events, read or not.
    pub count: usize,
    /// The first event that cannot be read: its index, and the reason.
    pub bad: Option<(usize, BadEvent)>,
    /// Names of fields that events of its type do not have, each once, with the index of the first event that has it. Only the
    /// first few are kept.
    pub unknown_fields: Vec<(usize, Box<str>)>,
}

/// Reads a request's events: a JSON array, an object with the array as `events`, or one event. Builds at most `most`
/// events, and no policy document of more than `policy_bytes`.
pub fn read_request(body: &str, most: usize, policy_bytes: usize) -> Result<NewEvents<'_>, serde_json::Error> {
    let mut reader = serde_json::Deserializer::from_str(body);
    let mut new = NewEvents::default();
    let request = RequestSeed {
        new: &mut new,
        most,
        policy_bytes,
    };
    request.deserialize(&mut reader)?;
    reader.end()?;
    Ok(new)
}

/// Reads a request's events from lines. Each line is a JSON object; empty lines are skipped. An error comes with its
/// line number, counted from 1.
pub fn read_request_lines(
    body: &str,
    most: usize,
    policy_bytes: usize,
) -> Result<NewEvents<'_>, (usize, serde_json::Error)> {
    let mut new = NewEvents::default();
    for (number, line) in body.lines().enumerate() {
        if line.bytes().all(|byte| matches!(byte, b' ' | b'\t' | b'\r')) {
            continue;
        }
        let mut reader = serde_json::Deserializer::from_str(line);
        let read = if new.is_only_counted(most) {
            Skip::deserialize(&mut reader).map(|_| new.count += 1)
        } else {
            let event = ItemSeed {
                seen: new.seen(policy_bytes),
                read: Fields::new_event,
                what: "an event",
                field: "type",
            };
            event.deserialize(&mut reader).map(|event| new.take(event))
        };
        read.and_then(|()| reader.end()).map_err(|error| (number + 1, error))?;
    }
    Ok(new)
}

/// Reads events without limits. Returns each event or the reason why it cannot be read, up to the first that cannot.
pub fn read_new_events(body: &str) -> Result<Vec<Result<NewEvent<'_>, BadEvent>>, serde_json::Error> {
    let new = read_request(body, usize::MAX, usize::MAX)?;
    let bad = new.bad.map(|(_, bad)| Err(bad));
    Ok(new.events.into_iter().map(Ok).chain(bad).collect())
}

impl<'a> NewEvents<'a> {
    fn is_only_counted(&self, most: usize) -> bool {
        self.bad.is_some() || self.count >= most
    }

    fn take(&mut self, event: Result<NewEvent<'a>, BadEvent>) {
        match event {
            Ok(event) => {
                let mut seen = self.seen(0);
                event.unused.iter().for_each(|name| seen.note(name));
                self.events.push(event);
            }
            Err(bad) => self.bad = Some((self.count, bad)),
        }
        self.count += 1;
    }

    fn seen(&mut self, policy_bytes: usize) -> Seen<'_> {
        Seen {
            event: self.count,
            unknown: Some(&mut self.unknown_fields),
            policy_bytes,
        }
    }
}

/// Reads the events of a request, in any of its forms.
struct RequestSeed<'s, 'de> {
    new: &'s mut NewEvents<'de>,
    most: usize,
    policy_bytes: usize,
}

impl<'de> DeserializeSeed<'de> for RequestSeed<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RequestSeed<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events, such as [{\"type\":\"connect\", …}]")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> Result<(), A::Error> {
        let new = self.new;
        loop {
            if new.is_only_counted(self.most) {
                match items.next_element::<Skip>()? {
                    Some(_) => new.count += 1,
                    None => return Ok(()),
                }
            } else {
                let event = items.next_element_seed(ItemSeed {
                    seen: new.seen(self.policy_bytes),
                    read: Fields::new_event,
                    what: "an event",
                    field: "type",
                })?;
                match event {
                    Some(event) => new.take(event),
                    None => return Ok(()),
                }
            }
        }
    }
    /// Reads an object with an array of events as `events`, or one event.
    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        let mut fields = Fields::default();
        let mut found = false;
        let mut unknown = Vec::new();
        let mut seen = Seen {
            event: 0,
            unknown: Some(&mut unknown),
            policy_bytes: self.policy_bytes,
        };
        while let Some(key) = entries.next_key::<Cow<'de, str>>()? {
            if key == "events" {
                if std::mem::replace(&mut found, true) {
                    return Err(de::Error::custom(
                        "`events` is given twice; send one array with all events",
                    ));
                }
                entries.next_value_seed(RequestItems(RequestSeed {
                    new: &mut *self.new,
                    most: self.most,
                    policy_bytes: self.policy_bytes,
                }))?;
            } else {
                let field = Key(&mut seen).visit_str(&key)?;
                fields.read(field, &mut seen, &mut entries)?;
            }
        }
        if found {
            return match fields.any_given() {
                false => Ok(()),
                true => Err(de::Error::custom(
                    "an object has either an array of events as `events` or the fields of one event, not both; send an array \
                     of events: [{\"type\":\"connect\", …}]",
                )),
            };
        }
        if matches!(fields.kind, Raw::Missing) {
            return Err(de::Error::custom(
                "an object must be an event with a `type`, or have an array of events as `events`; send an array of \
                 events: [{\"type\":\"connect\", …}]",
            ));
        }
        self.new.unknown_fields = unknown;
        self.new.take(fields.new_event());
        Ok(())
    }
}

/// Reads the array in `events`.
struct RequestItems<'s, 'de>(RequestSeed<'s, 'de>);

impl<'de> DeserializeSeed<'de> for RequestItems<'_, 'de> {
    type Value = ();
    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for RequestItems<'_, 'de> {
    type Value = ();
    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("an array of events as `events`")
    }
    fn visit_seq<A: SeqAccess<'de>>(self, items: A) -> Result<(), A::Error> {
        self.0.visit_seq(items)
    }
}
