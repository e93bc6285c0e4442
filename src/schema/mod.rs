//! The schema: converts the bytes of records to values and back.
//!
//! All input is validated here, once, against every bound of `docs/rules.md` sections 3 and 4, so that the fold gets
//! only valid [`Event`](crate::presence::event::Event)s. A record that is wrong is data, not a failure: it becomes a
//! [`Malformed`] with a sentence that says why, which is written beside the record to the quarantine topic. This module
//! does no I/O, and no input makes it panic.
//!
//! [`avro`] is the encoding of all topics, [`json`] that of the command line and HTTP; [`policy`] reads and writes
//! policy documents; [`partitioner`] computes the partition of a user.

pub mod avro;
pub mod json;
pub mod nearest;
pub mod partitioner;
pub mod policy;
pub mod unique_keys;
pub(crate) mod wire_event;

use crate::presence::change::OutputId;
use crate::presence::{Offset, Partition};
use std::fmt;
use thiserror::Error;

/// Why a record is malformed.
#[derive(Clone, PartialEq, Eq, Debug, Error)]
pub enum Malformed {
    /// The bytes or the values in them break a rule.
    #[error("{0}")]
    Invalid(Explanation),
    /// Avro single-object encoding with a schema that this version does not know; probably written by a newer version.
    #[error("no schema with the fingerprint {0:016x} is known")]
    UnknownFingerprint(u64),
    /// Framed for a schema registry with an unknown id. A caller that has a registry can look the id up and decode
    /// again. Only if the registry does not know the id either is the record malformed.
    #[error("no schema with the registry's id {0} is known")]
    UnknownSchemaId(u32),
    /// Framed with an unknown GUID, as with an unknown id.
    #[error("no schema with the GUID {0} is known")]
    UnknownSchemaGuid(avro::Guid),
    /// The schema is named but cannot be used or looked up. Contains the reason.
    #[error("{0}")]
    UnusableSchema(Explanation),
}

impl Malformed {
    /// Returns the error for a record that breaks a rule. `what` names the field and its bound.
    pub fn invalid(what: impl Into<String>) -> Malformed {
        Malformed::Invalid(Explanation::new(what.into()))
    }

    /// Returns the error for a record whose schema cannot be used. `why` names the schema.
    pub fn unusable_schema(why: impl Into<String>) -> Malformed {
        Malformed::UnusableSchema(Explanation::new(why.into()))
    }
}

impl From<crate::presence::policy::InvalidPolicy> for Malformed {
    fn from(invalid: crate::presence::policy::InvalidPolicy) -> Malformed {
        Malformed::invalid(invalid.0)
    }
}

/// Appends a number's digits without `core::fmt`, since this runs a dozen times per change.
fn write_decimal(out: &mut Vec<u8>, value: u64) {
    let mut digits = [0u8; 20];
    let mut at = digits.len();
    let mut rest = value;
    loop {
        at -= 1;
        digits[at] = b'0' + (rest % 10) as u8;
        rest /= 10;
        if rest == 0 {
            break;
        }
    }
    out.extend_from_slice(&digits[at..]);
}

/// Appends `{partition}-{offset}-{index}`.
pub(crate) fn write_output_id(id: OutputId, out: &mut Vec<u8>) {
    let OutputId {
        partition,
        offset,
        index,
    } = id;
    write_decimal(out, partition.0.into());
    out.push(b'-');
    write_decimal(out, offset.0);
    out.push(b'-');
    write_decimal(out, index);
}

/// Reads the id of an output, as [`write_output_id`] writes it.
pub(crate) fn parse_output_id(text: &str) -> Option<OutputId> {
    /// Parses digits without a sign and without leading zeros.
    fn number(digits: &str) -> Option<u64> {
        let canonical = digits.bytes().all(|byte| byte.is_ascii_digit()) && (digits == "0" || !digits.starts_with('0'));
        if canonical { digits.parse().ok() } else { None }
    }
    let mut parts = text.split('-');
    let id = OutputId {
        partition: Partition(number(parts.next()?)?.try_into().ok()?),
        offset: Offset(number(parts.next()?)?),
        index: number(parts.next()?)?,
    };
    if parts.next().is_none() { Some(id) } else { None }
}

/// What is wrong, as a sentence of at most [`Explanation::BYTES_MAX`] bytes.
///
/// It is bounded because it may quote its input and is written beside it: a record that just fits into the log must
/// still fit into the quarantine topic together with this sentence.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Explanation(Box<str>);

impl Explanation {
    pub const BYTES_MAX: usize = 512;

    fn new(mut text: String) -> Explanation {
        const CUT: &str = "…";
        if text.len() > Self::BYTES_MAX {
            text.truncate(text.floor_char_boundary(Self::BYTES_MAX - CUT.len()));
            text.push_str(CUT);
        }
        Explanation(text.into_boxed_str())
    }
}

impl fmt::Display for Explanation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_sentence_about_a_huge_input_is_cut_between_characters() {
        let sentence = Malformed::invalid("é".repeat(1_000)).to_string();
        assert!(sentence.len() <= Explanation::BYTES_MAX);
        assert!(sentence.ends_with("é…"));
        assert_eq!(Malformed::invalid("short").to_string(), "short");
    }
}
