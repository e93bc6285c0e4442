//! The tables of a lake as tables of Apache Iceberg, format version 2.
//!
//! The manifest of the lake is what makes a commit visible. After each one, metadata are made from it alone that name the same files:
//! in `metadata/` of each table a `vN.metadata.json`, where N is the number of the commit, with one snapshot, its manifests and their
//! list. Then `version-hint.text` names N. A process that begins does so for the manifest that it finds, so metadata that a killed one
//! has not written are made up for. The same manifest gives the same files.
//!
//! A reader finds its files for ten minutes: data files that are replaced, and metadata, stay for so long after `version-hint.text` of
//! every table has left them. That is known to have happened when the next commit begins.
//!
//! `version-hint.text` never goes back: it is only replaced if it is still the one that this process has read or written last, or if the
//! newest manifest is still that of this process.
//!
//! There is one snapshot: earlier ones cannot be asked for. Nobody else may write to the tables.

mod container;
mod manifests;
mod metadata;
pub mod positions;

use super::manifest::{FileList, LakeManifest};
use super::storage::{FOLDERS, LakeStorage, ManifestWrite, is_name_hash, name_hash};
use super::{Error, REPLACED_KEPT_MS, cannot, overtaken, read_manifest};
use crate::audit::export::columnar::ParquetFile;
use crate::audit::export::{Cell, ColumnKind, ExportColumn};
use manifests::{FileContent, IcebergSnapshot, NamedFile, NamedManifest, manifest, manifest_list};
use metadata::{SnapshotContent, TableState, schema, table_metadata};
use positions::OpenRows;
use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write as _};

/// The columns of a file of positions, and their ids in the specification.
const POSITIONS: &[ExportColumn] = &[
    ExportColumn {
        name: "file_path",
        kind: ColumnKind::Text,
        nullable: false,
    },
    ExportColumn {
        name: "pos",
        kind: ColumnKind::Number,
        nullable: false,
    },
];
const POSITION_IDS: [i32; 2] = [2_147_483_546, 2_147_483_545];

/// The folder of the table in which rows are deleted.
const WITH_DELETES: &str = "intervals";

/// The metadata of the tables.
pub struct IcebergTables {
    /// The URI of the lake, without a slash at its end.
    root: String,
    /// Where the rows of open intervals are.
    pub(super) rows: OpenRows,
    /// The files that are there, by commit.
    there: BTreeMap<u64, CommitFiles>,
}

/// The metadata of a commit.
#[derive(Default)]
struct CommitFiles {
    /// When it was made; `None` if no name of a file says it.
    committed_ms: Option<u64>,
    paths: BTreeSet<String>,
}

/// Returns the path of the file that names the newest metadata of a table.
fn hint(folder: &str) -> String {
    format!("{folder}/metadata/version-hint.text")
}

/// Whether a lake has metadata, which then have to be kept up to date.
pub fn is_begun<S: LakeStorage>(storage: &mut S) -> Result<bool, Error> {
    Ok(first_file(storage)?.is_some())
}

/// Returns a file of metadata, if there is one.
pub(super) fn first_file<S: LakeStorage>(storage: &mut S) -> Result<Option<String>, Error> {
    let found = storage.list_metadata().map_err(cannot("list the metadata"))?;
    let is_ours = |path: &String| path.rsplit('/').next().and_then(named_commit).is_some();
    Ok(found.into_iter().find(is_ours))
}

/// Returns the commit in the name of a file of metadata, and its time if that is there too; `None` if no lake gave that name.
fn named_commit(name: &str) -> Option<(u64, Option<u64>)> {
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
        is_number.then(|| text.parse().ok())?
    };
    if let Some(version) = name
        .strip_prefix('v')
        .and_then(|name| name.strip_suffix(".metadata.json"))
    {
        return Some((number(version)?, None));
    }
    let stem = name.strip_suffix(".avro").or(name.strip_suffix(".parquet"))?;
    let mut parts = stem.split('-');
    let found = (number(parts.next()?)?, Some(number(parts.next()?)?));
    let [_, hash] = [parts.next()?, parts.next()?];
    (is_name_hash(hash) && parts.next().is_none()).then_some(found)
}

impl IcebergTables {
    /// Learns what is there. That is done before the manifest is read: then what is of a later commit than the manifest is of one that
    /// was taken back.
    pub(super) fn begin<S: LakeStorage>(storage: &mut S, root: String) -> Result<IcebergTables, Error> {
        let mut tables = IcebergTables {
            root,
            rows: OpenRows::default(),
            there: BTreeMap::new(),
        };
        for folder in FOLDERS {
            let path = hint(folder);
            storage.current(&path).map_err(cannot(format!("read {path}")))?;
        }
        for path in storage.list_metadata().map_err(cannot("list the metadata"))? {
            let name = path.rsplit('/').next().unwrap_or_default();
            if let Some((commit, committed_ms)) = named_commit(name) {
                let files = tables.there.entry(commit).or_default();
                files.committed_ms = files.committed_ms.max(committed_ms);
                files.paths.insert(path);
            }
        }
        Ok(tables)
    }

    /// Removes the metadata of commits after one: the manifest was put back to that.
    pub(super) fn remove_after<S: LakeStorage>(&mut self, storage: &mut S, commit: u64) -> Result<(), Error> {
        let later = self.there.split_off(&(commit + 1));
        later.values().try_for_each(|files| remove(storage, files))
    }

    /// Makes the tables those of a manifest, which is the newest one, and removes metadata that nobody reads any more.
    pub(super) fn publish<S: LakeStorage>(&mut self, storage: &mut S, newest: &LakeManifest) -> Result<(), Error> {
        if newest.commit == 0 {
            return Ok(());
        }
        let mut versions = Vec::new();
        for folder in FOLDERS {
            versions.push((folder, self.write_snapshot(storage, newest, folder)?));
        }
        // Last, since some readers take the next version as soon as it is there.
        for (folder, bytes) in versions {
            let path = format!("{folder}/metadata/v{}.metadata.json", newest.commit);
            self.write(storage, newest, folder, path, &bytes)?;
        }
        for folder in FOLDERS {
            point(storage, newest, folder)?;
        }
        self.remove_old(storage, newest.committed_ms)
    }

    /// Writes what a table has as of a manifest, and returns its metadata.
    fn write_snapshot<S: LakeStorage>(
        &mut self,
        storage: &mut S,
        newest: &LakeManifest,
        folder: &str,
    ) -> Result<Vec<u8>, Error> {
        let lists = newest.lists().into_iter().filter(|(list, _)| list.folder() == folder);
        let (lists, files): (Vec<FileList>, Vec<_>) = lists.unzip();
        let columns = lists.first().map_or(&[][..], |list| list.columns());
        let data: Vec<NamedFile> = files
            .into_iter()
            .flatten()
            .map(|file| NamedFile {
                uri: self.uri(&file.path),
                rows: file.rows,
                bytes: file.bytes,
            })
            .collect();
        let location = self.uri(folder);
        let snapshot = IcebergSnapshot {
            id: snapshot_id(&location, newest),
            sequence: newest.commit,
            timestamp_ms: newest.committed_ms,
        };
        let mut named = Vec::new();
        let mut content = None;
        if !data.is_empty() {
            let deletes = self.write_positions(storage, newest, folder)?;
            let mut total = SnapshotContent {
                manifest_list: String::new(),
                files: data.len(),
                rows: data.iter().map(|file| file.rows).sum(),
                deletes: deletes.as_ref().map_or(0, |file| file.rows),
            };
            let schema = schema(columns);
            let all = [
                (FileContent::Rows, "data", data),
                (FileContent::PositionDeletes, "deletes", deletes.into_iter().collect()),
            ];
            for (of, kind, files) in all.into_iter().filter(|(_, _, files)| !files.is_empty()) {
                let bytes = manifest(&snapshot, of, &schema, &files);
                let uri = self.write_hashed(storage, newest, (folder, kind, "avro"), &bytes)?;
                let file = NamedFile {
                    uri,
                    rows: files.iter().map(|file| file.rows).sum(),
                    bytes: bytes.len() as u64,
                };
                named.push(NamedManifest {
                    file,
                    content: of,
                    files: files.len(),
                });
            }
            let bytes = manifest_list(&snapshot, &named);
            total.manifest_list = self.write_hashed(storage, newest, (folder, "snapshot", "avro"), &bytes)?;
            content = Some(total);
        }
        let metadata = table_metadata(&TableState {
            location: &location,
            columns,
            snapshot,
            content,
        });
        Ok(metadata.to_string().into_bytes())
    }

    /// Writes which rows of a table do not count, if there are any.
    fn write_positions<S: LakeStorage>(
        &mut self,
        storage: &mut S,
        newest: &LakeManifest,
        folder: &str,
    ) -> Result<Option<NamedFile>, Error> {
        if folder != WITH_DELETES {
            return Ok(None);
        }
        let deleted = self.rows.deleted();
        if deleted.is_empty() {
            return Ok(None);
        }
        let rows = deleted.len() as u64;
        let bytes = self
            .positions(&deleted)
            .map_err(cannot("write the positions of rows"))?;
        let uri = self.write_hashed(storage, newest, (folder, "positions", "parquet"), &bytes)?;
        Ok(Some(NamedFile {
            uri,
            rows,
            bytes: bytes.len() as u64,
        }))
    }

    fn positions(&self, deleted: &[(&str, u64)]) -> io::Result<Vec<u8>> {
        let mut file = ParquetFile::begin_with(Vec::new(), POSITIONS, &POSITION_IDS, Some(POSITIONS[1].name))?;
        for rows in deleted.chunk_by(|(path, _), (next, _)| path == next) {
            let uri = rows.first().map_or_else(String::new, |(path, _)| self.uri(path));
            for (_, row) in rows {
                file.row(&[Cell::Text(&uri), Cell::Number(*row)])?;
            }
        }
        file.finish()
    }

    fn uri(&self, path: &str) -> String {
        format!("{}/{path}", self.root)
    }

    /// Writes a file of a commit whose name says its content, and returns its URI.
    fn write_hashed<S: LakeStorage>(
        &mut self,
        storage: &mut S,
        newest: &LakeManifest,
        (folder, kind, extension): (&str, &str, &str),
        bytes: &[u8],
    ) -> Result<String, Error> {
        let LakeManifest {
            commit, committed_ms, ..
        } = newest;
        let hash = name_hash(&blake3::hash(bytes));
        let name = format!("{commit:010}-{committed_ms:013}-{kind}-{hash}.{extension}");
        let path = format!("{folder}/metadata/{name}");
        let uri = self.uri(&path);
        self.write(storage, newest, folder, path, bytes)?;
        Ok(uri)
    }

    fn write<S: LakeStorage>(
        &mut self,
        storage: &mut S,
        newest: &LakeManifest,
        folder: &str,
        path: String,
        bytes: &[u8],
    ) -> Result<(), Error> {
        let mut write = || {
            let mut file = storage.create(folder)?;
            file.write_all(bytes)?;
            storage.publish(file, &path)
        };
        write().map_err(cannot(format!("write {path}")))?;
        let files = self.there.entry(newest.commit).or_default();
        files.committed_ms = Some(newest.committed_ms);
        files.paths.insert(path);
        Ok(())
    }

    /// Removes the metadata that were replaced for long enough. Those of a commit are replaced by the next one, at the latest when the
    /// one after that begins.
    fn remove_old<S: LakeStorage>(&mut self, storage: &mut S, now_ms: u64) -> Result<(), Error> {
        let times = self.there.iter();
        let times: Vec<(u64, u64)> = times
            .filter_map(|(commit, files)| Some((*commit, files.committed_ms?)))
            .collect();
        let long_ago = times.partition_point(|(_, committed_ms)| committed_ms + REPLACED_KEPT_MS <= now_ms);
        let Some((first, _)) = long_ago.checked_sub(2).and_then(|place| times.get(place)) else {
            return Ok(());
        };
        let kept = self.there.split_off(first);
        let old = std::mem::replace(&mut self.there, kept);
        old.values().try_for_each(|files| remove(storage, files))
    }
}

/// Removes the files of a commit, the version first, since it names the others.
fn remove<S: LakeStorage>(storage: &mut S, files: &CommitFiles) -> Result<(), Error> {
    let is_version = |path: &&String| path.ends_with(".json");
    let versions = files.paths.iter().filter(is_version);
    for path in versions.chain(files.paths.iter().filter(|path| !is_version(path))) {
        storage.remove(path).map_err(cannot(format!("remove {path}")))?;
    }
    Ok(())
}

/// Lets readers of a table find the version of a manifest, which was the newest one.
fn point<S: LakeStorage>(storage: &mut S, newest: &LakeManifest, folder: &str) -> Result<(), Error> {
    let path = hint(folder);
    let version = newest.commit.to_string();
    loop {
        let written = storage.replace(&path, version.as_bytes());
        match written.map_err(cannot(format!("write {path}")))? {
            ManifestWrite::Done => return Ok(()),
            // Another process has replaced it, for a manifest that this one has not read. If there is no later manifest, it was one
            // that made up for ours.
            ManifestWrite::Outdated if read_manifest(storage)?.as_ref() == Some(newest) => {}
            ManifestWrite::Outdated => return Err(overtaken(storage)?),
        }
    }
}

/// Returns the id of the snapshot of a commit, above 0.
fn snapshot_id(location: &str, newest: &LakeManifest) -> u64 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&newest.commit.to_le_bytes());
    hasher.update(&newest.committed_ms.to_le_bytes());
    hasher.update(location.as_bytes());
    let first: [u8; 8] = hasher.finalize().as_bytes()[..8]
        .try_into()
        .expect("a hash has 32 bytes");
    (u64::from_le_bytes(first) >> 1).max(1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_names_that_a_lake_gives_to_metadata_are_its_own() {
        assert_eq!(named_commit("v12.metadata.json"), Some((12, None)));
        let name = "0000000012-1769903999999-deletes-0123456789abcdef.avro";
        assert_eq!(named_commit(name), Some((12, Some(1_769_903_999_999))));
        let name = "0000000012-1769903999999-positions-0123456789abcdef.parquet";
        assert_eq!(named_commit(name), Some((12, Some(1_769_903_999_999))));
        for other in [
            "version-hint.text",
            "v.metadata.json",
            "v+1.metadata.json",
            "00001-a2f1.metadata.json",
            "snap-123-1-0123456789abcdef.avro",
            "0000000012-1769903999999-data-0123456789abcde.avro",
            "0000000012-1769903999999-data-x-0123456789abcdef.avro",
            "0000000012-0000000012-0000000012-0123456789abcdef.orc",
        ] {
            assert_eq!(named_commit(other), None, "{other}");
        }
    }
}
