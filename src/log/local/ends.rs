//! How far the log reached for sure, kept beside RocksDB: the file `ENDS`.
//!
//! RocksDB finds a table file that is short or altered, and a write-ahead log that is altered in the middle. What it
//! cannot tell is a write-ahead log that lost its tail: that looks like a process that died while writing. So after
//! each synced write, before it is acknowledged, the ends of all sequences are written here; a log that is found to
//! end before them has lost records that were acknowledged, and is not opened.
//!
//! The file is rewritten in place and never synced: the death of the process leaves it whole, and after that of the
//! machine it is an older state or torn. An older one claims less, never more; a torn one fails its checksum and is
//! passed over. So it never keeps a sound log from being opened, and nothing depends on it being there.

use crate::topics::Topic;
use std::fs::{File, OpenOptions};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

const NAME: &str = "ENDS";
const MAGIC: &[u8; 8] = b"rc-ends1";

/// How often a file that is torn is read again before it is left alone, and how long after.
const ATTEMPTS: usize = 10;
const PAUSE: Duration = Duration::from_millis(1);

/// The ends of every partition's sequences, in the order of [`Topic::number`].
pub(super) type Ends = Vec<[u64; Topic::ALL.len()]>;

/// The file, open for writing.
pub(super) struct EndsFile {
    at: Mutex<KnownEnd>,
}

struct KnownEnd {
    file: File,
    ends: Ends,
    silent: bool,
}

impl EndsFile {
    pub fn path(dir: &Path) -> PathBuf {
        dir.join(NAME)
    }

    /// What the file claims; None if it is not there or torn.
    pub fn read(dir: &Path) -> std::io::Result<Option<Ends>> {
        // Who looks on may read it while its owner writes it.
        for _ in 0..ATTEMPTS {
            match std::fs::read(EndsFile::path(dir)) {
                Ok(bytes) => {
                    if let Some(claimed) = decode(&bytes) {
                        return Ok(Some(claimed));
                    }
                }
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
                Err(error) => return Err(error),
            }
            std::thread::sleep(PAUSE);
        }
        tracing::warn!(dir = %dir.display(), "the file {NAME} of the log is torn and claims nothing");
        Ok(None)
    }

    /// Opens or makes the file with these ends, which are those of the log as it was found.
    pub fn open(dir: &Path, ends: Ends) -> std::io::Result<EndsFile> {
        let file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .open(EndsFile::path(dir))?;
        let bytes = encode(&ends);
        file.write_all_at(&bytes, 0)?;
        file.set_len(bytes.len() as u64)?;
        file.sync_all()?;
        Ok(EndsFile {
            at: Mutex::new(KnownEnd {
                file,
                ends,
                silent: false,
            }),
        })
    }

    /// Raises the ends to those that are durable now. A failure is logged once and no more: what was acknowledged is
    /// durable without this file.
    pub fn raise(&self, durable: &Ends) {
        let mut known = self.at.lock().unwrap_or_else(PoisonError::into_inner);
        let mut raised = false;
        for (mine, theirs) in known.ends.iter_mut().zip(durable) {
            for (end, new) in mine.iter_mut().zip(theirs) {
                raised |= *new > *end;
                *end = (*end).max(*new);
            }
        }
        if !raised {
            return;
        }
        match known.file.write_all_at(&encode(&known.ends), 0) {
            Ok(()) => known.silent = false,
            Err(error) if !known.silent => {
                known.silent = true;
                tracing::warn!(%error, "the file {NAME} of the log cannot be written; a lost tail would go unnoticed");
            }
            Err(_) => {}
        }
    }
}

/// The first end that lies before what was claimed: topic, partition, end found, end claimed.
pub(super) fn first_short(found: &Ends, claimed: &Ends) -> Option<(Topic, u32, u64, u64)> {
    for (partition, (found, claimed)) in (0..).zip(found.iter().zip(claimed)) {
        for topic in Topic::ALL {
            let at = usize::from(topic.number());
            if found[at] < claimed[at] {
                return Some((topic, partition, found[at], claimed[at]));
            }
        }
    }
    None
}

fn encode(ends: &Ends) -> Vec<u8> {
    let mut bytes = MAGIC.to_vec();
    for end in ends.iter().flatten() {
        bytes.extend_from_slice(&end.to_be_bytes());
    }
    bytes.extend_from_slice(&checksum(&bytes).to_be_bytes());
    bytes
}

fn decode(bytes: &[u8]) -> Option<Ends> {
    let (content, sum) = bytes.split_last_chunk::<8>()?;
    if checksum(content) != u64::from_be_bytes(*sum) {
        return None;
    }
    let (ends, rest) = content.strip_prefix(MAGIC)?.as_chunks::<8>();
    let (partitions, odd) = ends.as_chunks::<{ Topic::ALL.len() }>();
    (rest.is_empty() && odd.is_empty()).then(|| {
        let each = |partition: &[[u8; 8]; Topic::ALL.len()]| partition.map(u64::from_be_bytes);
        partitions.iter().map(each).collect()
    })
}

/// FNV-1a: against torn writes, not against people.
fn checksum(bytes: &[u8]) -> u64 {
    bytes.iter().fold(0xcbf2_9ce4_8422_2325, |sum, byte| {
        (sum ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01b3)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ends_are_only_raised_and_survive_reopening() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(EndsFile::read(dir.path()).unwrap(), None);
        let file = EndsFile::open(dir.path(), vec![[1, 2, 3, 4], [0; 4]]).unwrap();
        file.raise(&vec![[0, 5, 3, 4], [7, 0, 0, 0]]);
        assert_eq!(
            EndsFile::read(dir.path()).unwrap(),
            Some(vec![[1, 5, 3, 4], [7, 0, 0, 0]])
        );
    }

    #[test]
    fn the_file_is_these_bytes_for_ever() {
        let ends = vec![[1, 2, 3, 4], [258, 0, 0, u64::MAX]];
        let mut expected = b"rc-ends1".to_vec();
        for end in [1, 2, 3, 4, 258, 0, 0] {
            expected.extend_from_slice(&[0, 0, 0, 0, 0, 0]);
            expected.extend_from_slice(&u16::to_be_bytes(end));
        }
        expected.extend_from_slice(b"\xff\xff\xff\xff\xff\xff\xff\xff");
        expected.extend_from_slice(b"\xc6\x32\x87\xec\x04\x2a\x80\x89");
        assert_eq!(encode(&ends), expected);
        assert_eq!(decode(&expected), Some(ends));
    }

    #[test]
    fn a_torn_file_claims_nothing() {
        let whole = encode(&vec![[1, 2, 3, 4]]);
        assert!(decode(&whole).is_some());
        for at in 0..whole.len() {
            assert_eq!(decode(&whole[..at]), None);
            let mut torn = whole.clone();
            torn[at] ^= 1;
            assert_eq!(decode(&torn), None);
        }
    }

    #[test]
    fn an_end_before_what_was_claimed_is_found() {
        let short = first_short(&vec![[9; 4], [9, 9, 8, 9]], &vec![[9; 4]; 2]);
        assert_eq!(short, Some((Topic::Kicks, 1, 8, 9)));
        assert_eq!(first_short(&vec![[9; 4]], &vec![[9, 0, 0, 0]]), None);
    }
}
