//! What a finder has to know to begin again, beside the offsets.

use crate::audit::incidents::Restart;

/// The layout of the bytes.
const VERSION: u8 = 1;

/// Where the rule begins again, and what is written already.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FinderNote {
    pub restart: Restart,
    /// The first second of the last incident that was written; 0 if no incident was written yet.
    pub written: u64,
}

impl Default for FinderNote {
    fn default() -> FinderNote {
        FinderNote {
            restart: Restart { second: 0, online: 0 },
            written: 0,
        }
    }
}

impl FinderNote {
    pub fn to_bytes(self) -> Vec<u8> {
        let FinderNote {
            restart: Restart { second, online },
            written,
        } = self;
        let mut bytes = vec![VERSION];
        for number in [second, online, written] {
            bytes.extend_from_slice(&number.to_be_bytes());
        }
        bytes
    }

    /// `None` if a later version wrote the bytes, or something else.
    pub fn from_bytes(bytes: &[u8]) -> Option<FinderNote> {
        let numbers = bytes.strip_prefix(&[VERSION])?;
        let (numbers, rest) = numbers.as_chunks::<8>();
        let [second, online, written] = *numbers else {
            return None;
        };
        rest.is_empty().then_some(FinderNote {
            restart: Restart {
                second: u64::from_be_bytes(second),
                online: u64::from_be_bytes(online),
            },
            written: u64::from_be_bytes(written),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_note_is_read_as_it_was_written_and_nothing_else_is() {
        let note = FinderNote {
            restart: Restart {
                second: 1_769_871_720,
                online: 60_000,
            },
            written: 1_769_871_700,
        };
        let bytes = note.to_bytes();
        // For ever: an earlier finder may have written them.
        assert_eq!(
            bytes,
            *b"\x01\0\0\0\0\x69\x7e\x19\x68\0\0\0\0\0\0\xea\x60\0\0\0\0\x69\x7e\x19\x54"
        );
        assert_eq!(FinderNote::from_bytes(&bytes), Some(note));
        assert_eq!(FinderNote::from_bytes(&bytes[..24]), None);
        assert_eq!(FinderNote::from_bytes(&[2]), None);
        let longer = [&bytes[..], &[0]].concat();
        assert_eq!(FinderNote::from_bytes(&longer), None);
    }
}
