//! The position of a partition, and its bytes.

use super::Input;
use crate::presence::{LogTime, Offset, Revision};

/// How far the fold of a partition got, committed together with its outputs.
///
/// A commit may end inside a record: the first `outputs` changes and kicks of the record at `next` are already written,
/// and so is all output of every earlier record. `time`, `seq`, `chain` and `input` are used to check that a repeated
/// fold reached the same point.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Position {
    /// The first record whose output is not completely written; no record with this offset may exist yet.
    pub next: Offset,
    pub outputs: u64,
    /// Log time. If `outputs` is not 0, it already includes the record at `next`.
    pub time: Option<LogTime>,
    /// Number of changes written so far.
    pub seq: u64,
    /// BLAKE3 over the previous chain and the data of an output, updated for each output.
    pub chain: [u8; 32],
    /// The revision in force before the record at `next`.
    pub revision: Revision,
    /// What was read before the record at `next`. `None` if the position was written by a version that did not keep it.
    pub input: Option<Input>,
}

/// Why bytes cannot be read as a position.
#[derive(Clone, Copy, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnreadablePosition {
    #[error("is not a position of an engine")]
    NotOne,
    #[error(
        "has version {version}, but this program knows versions up to {}: a later version wrote it; start that version, \
         or one after it",
        Position::VERSION
    )]
    Later { version: u8 },
}

impl Position {
    /// Returns whether both positions were reached after reading the same records. `None`: not known.
    pub fn was_read_alike(&self, other: &Position) -> Option<bool> {
        let (one, other) = (self.input?, other.input?);
        (one.since == other.since).then_some(one == other)
    }

    /// Version of the byte layout. Version 1 ended before `revision`: only the first revision existed then, and `input`
    /// was not kept.
    const VERSION: u8 = 2;

    /// Returns at most 4,096 bytes, Kafka's limit for the metadata of an offset; currently 112.
    pub fn to_bytes(&self) -> Vec<u8> {
        let Position {
            next,
            outputs,
            time,
            seq,
            chain,
            revision,
            input,
        } = self;
        let mut bytes = vec![Self::VERSION];
        bytes.extend_from_slice(&next.0.to_be_bytes());
        bytes.extend_from_slice(&outputs.to_be_bytes());
        bytes.push(u8::from(time.is_some()));
        bytes.extend_from_slice(&time.unwrap_or_default().0.to_be_bytes());
        bytes.extend_from_slice(&seq.to_be_bytes());
        bytes.extend_from_slice(chain);
        bytes.extend_from_slice(&revision.0.to_be_bytes());
        bytes.push(u8::from(input.is_some()));
        bytes.extend_from_slice(&input.unwrap_or_default().to_bytes());
        bytes
    }

    /// Reads bytes of this version of the layout and of every earlier one.
    pub fn from_bytes(bytes: &[u8]) -> Result<Position, UnreadablePosition> {
        let version = *bytes.first().ok_or(UnreadablePosition::NotOne)?;
        if version > Self::VERSION {
            return Err(UnreadablePosition::Later { version });
        }
        Self::of_version(version, &bytes[1..]).ok_or(UnreadablePosition::NotOne)
    }

    fn of_version(version: u8, rest: &[u8]) -> Option<Position> {
        const FIRST: usize = 8 + 8 + 1 + 8 + 8 + 32;
        let number = |at: usize| Some(u64::from_be_bytes(rest.get(at..at + 8)?.try_into().ok()?));
        let (length, revision, input) = match version {
            1 => (FIRST, Revision::FIRST, None),
            2 => {
                let revision = rest.get(FIRST..FIRST + 4)?.try_into().ok()?;
                let has_input = *rest.get(FIRST + 4)? != 0;
                let input = Input::from_bytes(rest.get(FIRST + 5..)?)?;
                (
                    rest.len(),
                    Revision(u32::from_be_bytes(revision)),
                    has_input.then_some(input),
                )
            }
            _ => return None,
        };
        if rest.len() != length {
            return None;
        }
        Some(Position {
            next: Offset(number(0)?),
            outputs: number(8)?,
            time: match rest[16] {
                0 => None,
                _ => Some(LogTime(number(17)?)),
            },
            seq: number(25)?,
            chain: rest[33..FIRST].try_into().ok()?,
            revision,
            input,
        })
    }
}
