//! The position of a subscription.

use crate::presence::{Offset, Partition};
use std::collections::BTreeMap;
use std::fmt;

/// The next offset of a topic in each partition that is followed, written as `0:12,1:7`.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct Cursor(pub BTreeMap<Partition, Offset>);

impl Cursor {
    /// Reads what `Display` wrote; spaces around the pairs are skipped. Returns None for anything else.
    pub fn parse(text: &str) -> Option<Cursor> {
        let one = |part: &str| {
            let (partition, next) = part.trim().split_once(':')?;
            Some((Partition(partition.parse().ok()?), Offset(next.parse().ok()?)))
        };
        text.split(',').map(one).collect::<Option<_>>().map(Cursor)
    }
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, (partition, next)) in self.0.iter().enumerate() {
            let comma = if number > 0 { "," } else { "" };
            write!(f, "{comma}{partition}:{next}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cursor_is_read_as_it_was_written_and_nothing_else_is_one() {
        for text in ["0:12", "0:12,1:7", "3:0,12:18446744073709551615"] {
            assert_eq!(
                Cursor::parse(text).map(|cursor| cursor.to_string()).as_deref(),
                Some(text)
            );
        }
        let spaced = Cursor::parse(" 1:7, 0:12").expect("a cursor");
        assert_eq!(spaced.to_string(), "0:12,1:7");
        for wrong in ["", "0", "0:", ":1", "0:1,", "0:-1", "0:1;1:2", "latest", "4294967296:0"] {
            assert_eq!(Cursor::parse(wrong), None, "{wrong:?}");
        }
    }
}
