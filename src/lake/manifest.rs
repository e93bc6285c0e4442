//! The manifest: which files the tables of a lake have, and how far the change topic is in them.
//!
//! Both are in one file that is replaced in one step, so a change is in the tables exactly once. `docs/lake.md` describes the
//! fields for other readers.

use super::partition::{ConcurrencyRow, LakePartition};
use super::storage::{FOLDERS, is_ours};
use crate::audit::export::ExportColumn;
use crate::audit::export::tables::{CHANGES, INTERVALS};
use crate::presence::Partition;
use serde::{Deserialize, Serialize};

/// Of the fields.
pub const FORMAT: u32 = 1;
/// The level of a file that is not joined with others.
pub const WHOLE: u32 = 255;

/// What a lake has as of one commit.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct LakeManifest {
    pub format: u32,
    /// The version of the program that wrote it.
    pub version: String,
    /// The process that wrote it, where several may write. No two processes have the same name.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub writer: String,
    /// Counts the manifests. That of commit 0 names no file: it is there before the first one.
    pub commit: u64,
    pub committed_ms: u64,
    pub partitions: Vec<LakePosition>,
    pub changes: Vec<LakeFile>,
    pub intervals: IntervalFiles,
    pub concurrency: ConcurrencyFiles,
    /// Files of earlier manifests. They stay for a while, for those who read as an earlier manifest says.
    pub replaced: Vec<ReplacedFile>,
}

/// A data file.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LakeFile {
    pub path: String,
    pub rows: u64,
    pub bytes: u64,
    /// The first and the last commit whose rows it has.
    pub first: u64,
    pub last: u64,
    /// How often its rows were joined with those of other files.
    pub level: u32,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct IntervalFiles {
    /// Intervals that have ended.
    pub ended: Vec<LakeFile>,
    /// All intervals that held at the commit `open_since`, and those that began in each commit after it. Those that have ended
    /// since are in files of `ended` whose `last` is after `open_since`.
    pub open: Vec<LakeFile>,
    pub open_since: u64,
    /// How many hold now.
    pub holding: u64,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug, Default)]
pub struct ConcurrencyFiles {
    /// Minutes that are over.
    pub ended: Vec<LakeFile>,
    /// The last minute of each partition so far; replaced by each commit.
    pub unfinished: Vec<LakeFile>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct ReplacedFile {
    pub path: String,
    /// Since when nobody who begins to read finds the file; known at the commit after the one that replaced it.
    pub at_ms: u64,
    /// The first commit that no longer names it; 0 in a manifest of a version that did not keep it.
    #[serde(default)]
    pub commit: u64,
}

/// How far the change topic of a partition is in the tables.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LakePosition {
    pub partition: u32,
    /// The next offset to read. On Kafka it may be after marks of transactions that follow the last change.
    pub next: u64,
    /// The last change before it; null without one.
    pub last: Option<LastChange>,
    /// The minute of the last change.
    pub minute: Option<UnfinishedMinute>,
}

/// A change, to notice when another log is read.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct LastChange {
    pub offset: u64,
    pub change: String,
    /// The number of the change in its partition; null in a manifest of a version that did not keep it.
    #[serde(default)]
    pub seq: Option<u64>,
    pub at: u64,
    pub logged_at: u64,
}

/// What has happened in a minute that is not over.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct UnfinishedMinute {
    /// Its beginning, in milliseconds.
    pub from: u64,
    pub moves: Vec<PlatformMoves>,
}

/// How many stretches began and ended.
#[derive(Serialize, Deserialize, Clone, PartialEq, Eq, Debug)]
pub struct PlatformMoves {
    /// Null: users.
    pub platform: Option<String>,
    pub online_began: u64,
    pub online_ended: u64,
    pub push_online_began: u64,
    pub push_online_ended: u64,
}

/// Why bytes are no manifest that can be used.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum UnusableManifest {
    #[error("manifest.json is damaged: {0}; restore it from a backup, or make another lake in an empty directory")]
    Damaged(String),
    #[error(
        "manifest.json has format {found}, but this version knows {FORMAT}; use the version that wrote it, or make another lake in \
         an empty directory"
    )]
    Later { found: u32 },
}

impl LakeManifest {
    /// Returns the manifest of a lake that has nothing yet.
    pub fn new(partitions: u32) -> LakeManifest {
        LakeManifest {
            format: FORMAT,
            partitions: (0..partitions)
                .map(|one| LakePartition::new(Partition(one)).position())
                .collect(),
            ..LakeManifest::default()
        }
    }

    pub fn read(bytes: &[u8]) -> Result<LakeManifest, UnusableManifest> {
        #[derive(Deserialize)]
        struct Head {
            format: u32,
        }
        let damaged = |error: serde_json::Error| UnusableManifest::Damaged(error.to_string());
        let Head { format } = serde_json::from_slice(bytes).map_err(damaged)?;
        if format != FORMAT {
            return Err(UnusableManifest::Later { found: format });
        }
        let manifest: LakeManifest = serde_json::from_slice(bytes).map_err(damaged)?;
        let named = manifest
            .lists()
            .into_iter()
            .flat_map(|(_, files)| files)
            .map(|file| &file.path);
        // Files are read and removed by these paths.
        let foreign = named
            .chain(manifest.replaced.iter().map(|file| &file.path))
            .find(|path| {
                let parts = path.split_once('/');
                !parts.is_some_and(|(folder, name)| FOLDERS.contains(&folder) && is_ours(name))
            });
        match foreign {
            None => Ok(manifest),
            Some(path) => Err(UnusableManifest::Damaged(format!("{path:?} is not a file of a lake"))),
        }
    }

    /// Returns the lists of files, with the folder and what names of files begin with.
    pub fn lists(&self) -> [(FileList, &[LakeFile]); 5] {
        [
            (FileList::Changes, &self.changes),
            (FileList::EndedIntervals, &self.intervals.ended),
            (FileList::OpenIntervals, &self.intervals.open),
            (FileList::EndedMinutes, &self.concurrency.ended),
            (FileList::UnfinishedMinutes, &self.concurrency.unfinished),
        ]
    }

    pub fn list_mut(&mut self, list: FileList) -> &mut Vec<LakeFile> {
        match list {
            FileList::Changes => &mut self.changes,
            FileList::EndedIntervals => &mut self.intervals.ended,
            FileList::OpenIntervals => &mut self.intervals.open,
            FileList::EndedMinutes => &mut self.concurrency.ended,
            FileList::UnfinishedMinutes => &mut self.concurrency.unfinished,
        }
    }

    /// Returns the files that have ends of intervals which an open one may need.
    pub fn ended_since(&self) -> impl Iterator<Item = &LakeFile> {
        let since = self.intervals.open_since;
        self.intervals.ended.iter().filter(move |file| file.last > since)
    }
}

/// A list of files of the manifest.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum FileList {
    Changes,
    EndedIntervals,
    OpenIntervals,
    EndedMinutes,
    UnfinishedMinutes,
}

impl FileList {
    pub fn folder(self) -> &'static str {
        match self {
            FileList::Changes => "changes",
            FileList::EndedIntervals | FileList::OpenIntervals => "intervals",
            FileList::EndedMinutes | FileList::UnfinishedMinutes => "concurrency",
        }
    }

    pub fn columns(self) -> &'static [ExportColumn] {
        match self {
            FileList::Changes => CHANGES,
            FileList::EndedIntervals | FileList::OpenIntervals => INTERVALS,
            FileList::EndedMinutes | FileList::UnfinishedMinutes => ConcurrencyRow::COLUMNS,
        }
    }

    /// What names of its files begin with.
    pub fn prefix(self) -> &'static str {
        match self {
            FileList::Changes => "",
            FileList::EndedIntervals | FileList::EndedMinutes => "ended-",
            FileList::OpenIntervals => "open-",
            FileList::UnfinishedMinutes => "unfinished-",
        }
    }
}
