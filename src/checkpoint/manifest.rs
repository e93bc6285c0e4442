//! The manifest of a checkpoint: the list of its files, which is written last and makes the checkpoint complete.

use crate::presence::{Offset, Partition, Revision};
use crate::store::Applied;
use serde::{Deserialize, Serialize};

/// The format of the manifest and of the names below. Format 1 has no `revision`; there was only the first then. Format 2
/// has neither `log` nor `last`.
const FORMAT: u32 = 3;

/// The manifest of one checkpoint, as JSON.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Manifest {
    format: u32,
    pub partition: u32,
    /// In force in the store; since format 2.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    revision: Option<u32>,
    /// Under which id the checkpoints of this log are kept; since format 3.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    log: Option<LogId>,
    pub next: u64,
    pub outputs: u64,
    /// The last record that was folded; since format 3, where it is known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub last: Option<LastFolded>,
    /// The chain of the position, hexadecimal.
    pub chain: String,
    /// The result of [`crate::store::Store::digest`], hexadecimal.
    pub digest: String,
    /// Sorted by name.
    pub files: Vec<File>,
}

/// The last record that was folded into a checkpoint, as the log had it. A log that has another record there is another log.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct LastFolded {
    pub offset: u64,
    pub ts: u64,
    /// Of its bytes, as 16 hexadecimal digits.
    pub checksum: String,
}

impl LastFolded {
    pub fn new(offset: Offset, ts: u64, checksum: u64) -> LastFolded {
        LastFolded {
            offset: offset.0,
            ts,
            checksum: format!("{checksum:016x}"),
        }
    }
}

/// Under which the checkpoints of one log in a location belong together: 16 hexadecimal digits. The first checkpoint of a
/// log makes it from its content, and the later ones keep it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogId(String);

impl LogId {
    /// Returns the id that the first checkpoint of a log gives.
    pub fn of_first(digest: &[u8; 32], last: Option<&LastFolded>) -> LogId {
        let mut hash = blake3::Hasher::new();
        hash.update(digest);
        if let Some(last) = last {
            hash.update(format!("{} {} {}", last.offset, last.ts, last.checksum).as_bytes());
        }
        LogId(hex(&hash.finalize().as_bytes()[..8]))
    }

    pub fn read(id: &str) -> Option<LogId> {
        let is_digit = |c: char| c.is_ascii_digit() || ('a'..='f').contains(&c);
        (id.len() == 16 && id.chars().all(is_digit)).then(|| LogId(id.to_owned()))
    }
}

impl std::fmt::Display for LogId {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

/// One file of the store.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct File {
    pub name: String,
    pub bytes: u64,
    /// The BLAKE3 hash, hexadecimal.
    pub blake3: String,
}

/// Why bytes are not a manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum UnreadableManifest {
    Damaged,
    /// A later version wrote it, in this format.
    Later {
        format: u64,
    },
}

impl Manifest {
    pub fn new(
        partition: Partition,
        revision: Revision,
        applied: &Applied,
        digest: &[u8; 32],
        (log, last): (LogId, Option<LastFolded>),
        mut files: Vec<File>,
    ) -> Manifest {
        files.sort_unstable_by(|a, b| a.name.cmp(&b.name));
        Manifest {
            format: FORMAT,
            partition: partition.0,
            revision: Some(revision.0),
            log: Some(log),
            next: applied.next.0,
            outputs: applied.outputs,
            last,
            chain: hex(&applied.chain),
            digest: hex(digest),
            files,
        }
    }

    /// Parses a manifest of this or an earlier format, which must have that format to the last byte and name only files
    /// of its own directory.
    pub fn read(json: &[u8]) -> Result<Manifest, UnreadableManifest> {
        /// What every format has.
        #[derive(Deserialize)]
        struct Head {
            format: u64,
        }
        let head: Head = serde_json::from_slice(json).map_err(|_| UnreadableManifest::Damaged)?;
        if head.format > FORMAT.into() {
            return Err(UnreadableManifest::Later { format: head.format });
        }
        Self::of_known_format(json).ok_or(UnreadableManifest::Damaged)
    }

    fn of_known_format(json: &[u8]) -> Option<Manifest> {
        let manifest: Manifest = serde_json::from_slice(json).ok()?;
        let is_name = |file: &File| {
            !file.name.is_empty()
                && !file.name.starts_with('.')
                && file
                    .name
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let has_its_fields = match manifest.format {
            1 => manifest.revision.is_none() && manifest.log.is_none() && manifest.last.is_none(),
            2 => manifest.revision.is_some() && manifest.log.is_none() && manifest.last.is_none(),
            FORMAT => {
                manifest.revision.is_some() && manifest.log.as_ref().is_some_and(|id| LogId::read(&id.0).is_some())
            }
            _ => false,
        };
        let is_ours = has_its_fields && manifest.files.iter().all(is_name) && manifest.to_json() == json;
        is_ours.then_some(manifest)
    }

    /// Returns the revision in force in the store.
    pub fn revision(&self) -> Revision {
        self.revision.map_or(Revision::FIRST, Revision)
    }

    pub fn to_json(&self) -> Vec<u8> {
        serde_json::to_vec_pretty(self).expect("text and numbers are JSON")
    }

    /// Returns the name under which the checkpoint is published.
    pub fn name(&self) -> Name {
        let content = blake3::hash(&self.to_json());
        Name {
            next: Offset(self.next),
            outputs: self.outputs,
            content: hex(&content.as_bytes()[..8]),
            log: self.log.clone(),
        }
    }

    pub fn is_of(&self, applied: &Applied, digest: &[u8; 32]) -> bool {
        (self.next, self.outputs) == (applied.next.0, applied.outputs)
            && self.chain == hex(&applied.chain)
            && self.digest == hex(digest)
    }
}

/// The name of a checkpoint. It starts with the applied position, so that names sort by age, and contains a hash of the
/// files, so that two owners who publish at the same position do not overwrite each other. The id of the log is in the name,
/// so that also files without a manifest are known to be of a log.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Name {
    pub next: Offset,
    pub outputs: u64,
    content: String,
    /// `None` up to format 2.
    pub log: Option<LogId>,
}

impl Name {
    pub fn read(name: &str) -> Option<Name> {
        let mut parts = name.split('-');
        let [next, outputs, content] = [parts.next()?, parts.next()?, parts.next()?];
        let name = Name {
            next: Offset(next.parse().ok()?),
            outputs: outputs.parse().ok()?,
            content: content.to_owned(),
            log: match parts.next() {
                Some(id) => Some(LogId::read(id)?),
                None => None,
            },
        };
        (parts.next().is_none() && content.len() == 16).then_some(name)
    }
}

impl std::fmt::Display for Name {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{:020}-{:020}-{}", self.next.0, self.outputs, self.content)?;
        match &self.log {
            Some(log) => write!(f, "-{log}"),
            None => Ok(()),
        }
    }
}

pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn manifest() -> Manifest {
        let applied = Applied {
            next: Offset(70),
            outputs: 3,
            chain: [7; 32],
        };
        let file = |name: &str| File {
            name: name.to_owned(),
            bytes: 5,
            blake3: hex(&[1; 32]),
        };
        Manifest::new(
            Partition(2),
            Revision(3),
            &applied,
            &[9; 32],
            (
                LogId::of_first(&[9; 32], None),
                Some(LastFolded::new(Offset(69), 1_700_000_000_000, 0xab)),
            ),
            vec![file("b.sst"), file("CURRENT")],
        )
    }

    #[test]
    fn a_list_is_read_as_it_was_written_and_names_no_file_elsewhere() {
        let manifest = manifest();
        assert_eq!(Manifest::read(&manifest.to_json()), Ok(manifest.clone()));
        for name in ["../x", "/x", "a/b", "", ".x"] {
            let mut outside = manifest.clone();
            outside.files[0].name = name.to_owned();
            assert_eq!(
                Manifest::read(&outside.to_json()),
                Err(UnreadableManifest::Damaged),
                "{name}"
            );
        }
        let json = manifest.to_json();
        for cut in 0..json.len() {
            assert_eq!(Manifest::read(&json[..cut]), Err(UnreadableManifest::Damaged));
        }
        let longer = [json.as_slice(), b"\n"].concat();
        assert_eq!(Manifest::read(&longer), Err(UnreadableManifest::Damaged));
    }

    #[test]
    fn a_list_is_written_and_read_as_its_golden_file_has_it() {
        let manifest = manifest();
        let text = format!(
            "{}\n{}\n",
            manifest.name(),
            String::from_utf8(manifest.to_json()).expect("JSON")
        );
        let golden = include_str!("../../tests/golden/checkpoint-list.txt");
        if let Some((name, json)) = golden.split_once('\n') {
            assert_eq!(Name::read(name), Some(manifest.name()));
            assert_eq!(Manifest::read(json.trim_end().as_bytes()), Ok(manifest));
        }
        crate::bless::check([("tests/golden/checkpoint-list.txt", text.as_str())]);
    }

    #[test]
    fn a_list_of_the_second_format_is_read_and_does_not_say_of_which_log_it_is() {
        let golden = include_str!("../../tests/golden/checkpoint-list-2.txt");
        let (name, json) = golden.split_once('\n').expect("a name and a list");
        let read = Manifest::read(json.trim_end().as_bytes()).expect("known");
        assert_eq!(Name::read(name), Some(read.name()));
        assert_eq!((read.revision(), read.next), (Revision(3), 70));
        assert_eq!((read.name().log, read.last), (None, None));
    }

    /// As 0.1 wrote it.
    #[test]
    fn a_list_of_the_first_format_is_read_and_one_of_a_later_format_is_no_damage() {
        let golden = include_str!("../../tests/golden/checkpoint-list-1.txt");
        let (name, json) = golden.split_once('\n').expect("a name and a list");
        let read = Manifest::read(json.trim_end().as_bytes()).expect("known");
        assert_eq!(Name::read(name), Some(read.name()));
        assert_eq!((read.revision(), read.next), (Revision::FIRST, 70));
        let later = json.replacen("\"format\": 1", "\"format\": 9", 1);
        assert_eq!(
            Manifest::read(later.as_bytes()),
            Err(UnreadableManifest::Later { format: 9 })
        );
    }

    #[test]
    fn names_are_in_order_of_position_and_read_as_written() {
        let early = manifest().name();
        let mut late = manifest();
        late.next = 700;
        let late = late.name();
        assert!(early < late && early.to_string() < late.to_string());
        assert_eq!(Name::read(&late.to_string()), Some(late));
        for other in [
            "",
            "1-2",
            "1-2-3",
            "x-2-0123456789abcdef",
            "1-2-0123456789abcdef-4",
            "1-2-0123456789abcdef-0123456789ABCDEF",
        ] {
            assert_eq!(Name::read(other), None);
        }
    }
}
