//! What the one judgement over events ([`wire_event`](crate::schema::wire_event)) asks of an object's fields, and what it says
//! of those that are wrong: the field, its bound, and what was found.

use super::bad_event::{BadEvent, bad};
use super::conns::Conns;
use super::fields::{Fields, PolicyField};
use super::items::Beats;
use super::raw::Raw;
use crate::presence::Conn;
use crate::presence::event::{Event, EventType, bounds};
use crate::schema::policy::policy_document;
use crate::schema::wire_event::{DeviceFields, EventFields, GivenBeats, NumberField, TextField, WordField};
use serde_json::Value;
use std::borrow::Cow;

impl<'a> Fields<'a> {
    fn text_field(&mut self, field: TextField) -> &mut Raw<'a> {
        match field {
            TextField::User => &mut self.user,
            TextField::Platform => &mut self.platform,
            TextField::Device => &mut self.device,
            TextField::Gateway => &mut self.gateway,
            TextField::Client => &mut self.client,
            TextField::Text => &mut self.text,
        }
    }
}

impl<'a> DeviceFields<'a> for Fields<'a> {
    type Wrong = BadEvent;

    fn text(&mut self, field: TextField) -> Result<Option<Cow<'a, str>>, BadEvent> {
        let name = field.name();
        match std::mem::take(self.text_field(field)) {
            Raw::Missing | Raw::Null => Ok(None),
            Raw::Text(text) => Ok(Some(text)),
            Raw::Number(_) => bad(name, format!("`{name}` must be a string, not a number")),
            Raw::Other(what) => bad(name, format!("`{name}` must be a string, not {what}")),
        }
    }

    fn number(&mut self, field: NumberField) -> Result<Option<u64>, BadEvent> {
        let (name, (_, most)) = (field.name(), field.bounds());
        let given = match field {
            NumberField::Epoch => &self.epoch,
            NumberField::Conn => &self.conn,
            NumberField::AuthAt => &self.auth_at,
            NumberField::TtlMs => &self.ttl_ms,
            NumberField::Revision => &self.revision,
        };
        let what = match given {
            Raw::Missing | Raw::Null => return Ok(None),
            Raw::Number(number) => return Ok(Some(*number)),
            Raw::Text(_) => "a string",
            Raw::Other(what) => what,
        };
        bad(
            name,
            format!("`{name}` must be an integer from 0 to {most}, not {what}"),
        )
    }

    fn missing(name: &'static str) -> BadEvent {
        BadEvent {
            field: name,
            message: format!("`{name}` is missing"),
        }
    }

    fn wrong_length(field: TextField, bytes: usize) -> BadEvent {
        let (name, (least, most)) = (field.name(), field.bounds());
        BadEvent {
            field: name,
            message: format!("`{name}` must have {least} to {most} bytes of UTF-8, not {bytes}"),
        }
    }

    fn out_of_range(field: NumberField, number: u64) -> BadEvent {
        let (name, (least, most)) = (field.name(), field.bounds());
        let least = if number > most { 0 } else { least };
        BadEvent {
            field: name,
            message: format!("`{name}` must be an integer from {least} to {most}"),
        }
    }
}

impl<'a> EventFields<'a> for Fields<'a> {
    fn has(&self, field: TextField) -> bool {
        let given = match field {
            TextField::User => &self.user,
            TextField::Platform => &self.platform,
            TextField::Device => &self.device,
            TextField::Gateway => &self.gateway,
            TextField::Client => &self.client,
            TextField::Text => &self.text,
        };
        given.is_given()
    }

    fn word(&self, field: WordField) -> Option<&str> {
        let given = match field {
            WordField::Intent => &self.intent,
            WordField::Reason => &self.reason,
        };
        match given {
            Raw::Missing | Raw::Null => None,
            Raw::Text(word) => Some(word),
            Raw::Number(_) | Raw::Other(_) => Some(""),
        }
    }

    fn beats(&mut self) -> Result<Option<GivenBeats<'a, BadEvent>>, BadEvent> {
        match std::mem::take(&mut self.beats) {
            Beats::Missing | Beats::Null => Ok(None),
            Beats::Other(what) => bad("beats", format!("`beats` must be an array, not {what}")),
            Beats::List(beats, count, wrong) => Ok(Some(GivenBeats {
                beats,
                count,
                wrong: wrong.map(|(number, wrong)| BadEvent {
                    field: wrong.field,
                    message: format!("beat {number}: {}", wrong.message),
                }),
            })),
        }
    }

    fn conns(&mut self) -> Result<Vec<Conn>, BadEvent> {
        match std::mem::take(&mut self.conns) {
            Conns::List(conns) => Ok(conns),
            Conns::Missing => Err(Self::missing("conns")),
            Conns::Bad(what) => bad("conns", what),
        }
    }

    fn policy(&mut self) -> Result<Event<'a>, BadEvent> {
        let value = match std::mem::take(&mut self.policy) {
            PolicyField::Value(value @ Value::Object(_)) => value,
            PolicyField::Value(Value::Null) | PolicyField::Missing => return Err(Self::missing("policy")),
            PolicyField::Value(_) => return bad("policy", "`policy` must be an object"),
            PolicyField::TooLong(length, most) => {
                return bad(
                    "policy",
                    format!("`policy` must have at most {most} bytes, not {length}"),
                );
            }
        };
        let completed = policy_document(&value).and_then(|document| document.complete());
        match completed {
            Ok(policy) => Ok(Event::Policy {
                policy: Box::new(policy),
                document: Cow::Owned(value.to_string()),
            }),
            Err(invalid) => bad("policy", invalid.0),
        }
    }

    fn no_such_word(field: WordField, words: &[&str], _: &str) -> BadEvent {
        let (name, words) = (field.name(), words.join("\" or \""));
        BadEvent {
            field: name,
            message: format!("`{name}` must be \"{words}\""),
        }
    }

    fn wrong_number_of_beats(count: usize) -> BadEvent {
        let (least, most) = bounds::BEATS;
        BadEvent {
            field: "beats",
            message: format!("`beats` must have {least} to {most} entries, not {count}"),
        }
    }

    fn platform_needed() -> BadEvent {
        BadEvent {
            field: "platform",
            message: "a kick of one `device` needs its `platform`".to_owned(),
        }
    }

    fn unknown_type(kind: &str) -> BadEvent {
        let shown: String = kind.chars().take(40).collect();
        let names = EventType::ALL.map(EventType::name);
        let (last, others) = names.split_last().expect("there are types");
        let names = others.join(", ");
        BadEvent {
            field: "type",
            message: format!("`type` {shown:?} is unknown; it must be {names} or {last}"),
        }
    }
}
