//! Checkpoints: complete copies of a partition's store, kept where other machines can restore them.
//!
//! A checkpoint is stored under `GROUP/PARTITION/NAME/`: the files of the store, and a manifest with their sizes and
//! hashes, which is written last. Without the manifest the checkpoint does not exist, so an interrupted publication
//! leaves nothing that could be restored by mistake. A restore compares the files with the manifest, and the resulting
//! store with the manifest's digest. A checkpoint that fails this is skipped with a warning, and the next older one is
//! restored.
//!
//! Several logs may share a location. The manifest has the last record that was folded, by which the caller says whether a
//! checkpoint is of its log ([`Origin`]), and an id that the checkpoints of one log have in common. Checkpoints of another
//! log are not counted, deleted or restored.
//!
//! No coordination is needed: names contain the position and a hash of the content, so two owners can publish at the
//! same time while one does not know yet that it has been replaced. Calls block on disk and network; call them from a
//! thread of their own, never from one of the runtime.

pub(crate) mod manifest;

use crate::objects::{self, RequestFailure};
use crate::presence::{Offset, Partition, Revision};
use crate::store::{self, Applied, Store};
use futures_util::TryStreamExt as _;
use manifest::{File, LogId, Manifest, UnreadableManifest, hex};
pub use manifest::{LastFolded, Name};
use object_store::buffered::BufWriter;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _};
use std::collections::{BTreeMap, BTreeSet};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::io::AsyncWriteExt as _;
use tokio::runtime::Handle;

/// How many checkpoints of a partition are kept by default.
pub const DEFAULT_KEPT: usize = 3;
const MANIFEST: &str = "MANIFEST.json";
/// How many bytes are read and written at once.
const PIECE_BYTES: usize = 1 << 20;
/// Files that RocksDB creates for the process that has the directory open. They hold no state.
const OF_THE_PROCESS: [&str; 2] = ["LOCK", "LOG"];

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("the checkpoint location {url} cannot be used: {cause}; give a file:///DIRECTORY or an s3://BUCKET/PREFIX")]
    Url { url: String, cause: String },
    /// The location did not respond correctly; retry later.
    #[error("the checkpoint location {at} is unavailable: {cause}")]
    Unreachable { at: String, cause: String },
    #[error("{}: {cause}", path.display())]
    Local { path: PathBuf, cause: String },
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error(
        "the checkpoint {name} has {what}: a later version wrote it. It is left as it is; start that version, or one after it"
    )]
    Later { name: String, what: String },
    #[error("{} is not a checkpoint: nothing was ever committed to the store in it", directory.display())]
    Empty { directory: PathBuf },
}

/// A checkpoint that is complete according to its manifest.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Listed {
    /// The next offset to be folded, and how many of its outputs are published.
    pub next: Offset,
    pub outputs: u64,
    pub name: Name,
    /// The last record that was folded; `None` where the manifest does not say it.
    pub last: Option<LastFolded>,
}

/// Whether a checkpoint was made from the log at hand.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    ThisLog,
    OtherLog,
    /// The log no longer has the record by which it could be known, or the checkpoint does not say it.
    Unknown,
}

/// A checkpoint that was published.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Published {
    pub applied: Applied,
    /// All checkpoints that may be of this log, the newest first.
    pub own: Vec<Name>,
    /// The checkpoints of other logs at the same location, the newest first.
    pub others: Vec<Name>,
}

impl Listed {
    /// Returns a checkpoint at an offset, for tests.
    #[cfg(test)]
    pub fn at(next: u64) -> Listed {
        let name = Name::read(&format!("{next}-0-0123456789abcdef")).expect("a name");
        Listed {
            next: name.next,
            outputs: 0,
            name,
            last: None,
        }
    }
}

/// The location of the checkpoints of one group of engines.
#[derive(Clone)]
pub struct Checkpoints {
    objects: Arc<dyn ObjectStore>,
    /// The path of the group.
    base: Key,
    /// The URL for messages, without credentials.
    shown: String,
    kept: usize,
    /// The newest that is known.
    revision: Revision,
    /// The ids under which this process has published.
    ids: Arc<Mutex<BTreeMap<Partition, LogId>>>,
    runtime: Handle,
}

/// Why a checkpoint cannot be restored or examined.
enum Unusable {
    Damaged(String),
    Failed(Error),
}

impl From<Error> for Unusable {
    fn from(error: Error) -> Unusable {
        Unusable::Failed(error)
    }
}

impl Checkpoints {
    /// Opens a location. `url` is `file:///DIRECTORY` or `s3://BUCKET/PREFIX`. For S3, credentials and endpoint come
    /// from the `AWS_…` environment variables, but the bucket only from the URL. The newest `kept` checkpoints of each
    /// partition are kept. Does not access the network yet.
    pub fn open(
        url: &str,
        group: &str,
        kept: usize,
        environment: impl IntoIterator<Item = (String, String)>,
        runtime: Handle,
    ) -> Result<Checkpoints, Error> {
        let wrong = |cause: String| Error::Url {
            url: objects::without_credentials(url),
            cause,
        };
        let (objects, path) = objects::open(url, environment).map_err(wrong)?;
        Ok(Checkpoints {
            objects,
            base: path.join(group),
            shown: objects::without_credentials(url),
            kept: kept.max(1),
            revision: Revision::NEWEST,
            ids: Arc::default(),
            runtime,
        })
    }

    /// Restores checkpoints up to another revision than the newest of this version, for tests.
    pub fn knowing(mut self, revision: Revision) -> Checkpoints {
        self.revision = revision;
        self
    }

    /// Publishes the copy that [`Store::checkpoint`] made in a directory, and deletes the checkpoints of this log beyond the
    /// number kept. The directory stays unchanged. `last` is the last record that was folded into it, and `origin` says
    /// of which log another checkpoint is.
    pub fn publish(
        &self,
        partition: Partition,
        directory: &Path,
        last: Option<LastFolded>,
        origin: &mut dyn FnMut(&Listed) -> Origin,
    ) -> Result<Published, Error> {
        let (applied, revision, digest) = looked_at(directory, partition)?;
        let files = files_of(directory)?;
        let there = self.newest(partition)?;
        let there: Vec<(Listed, Origin)> = there.into_iter().map(|one| (one.clone(), origin(&one))).collect();
        let of_this_log = there.iter().filter(|(_, origin)| *origin == Origin::ThisLog);
        let mut ids: Vec<LogId> = of_this_log.filter_map(|(one, _)| one.name.log.clone()).collect();
        // What this process has published is of this log, also if the log no longer has the record that shows it.
        let mut published = self.ids.lock().unwrap_or_else(PoisonError::into_inner);
        ids.extend(published.get(&partition).cloned());
        let id = ids.first().cloned();
        let id = id.unwrap_or_else(|| LogId::of_first(&digest, last.as_ref()));
        published.insert(partition, id.clone());
        drop(published);
        ids.push(id.clone());
        let own = OwnCheckpoints {
            ids: ids.into_iter().collect(),
            others: there
                .iter()
                .filter(|(_, origin)| *origin == Origin::OtherLog)
                .map(|(one, _)| one.name.clone())
                .collect(),
        };
        let manifest = Manifest::new(partition, revision, &applied, &digest, (id, last), files);
        self.runtime.block_on(async {
            let at = self.of(partition).join(manifest.name().to_string());
            for file in &manifest.files {
                self.upload(&directory.join(&file.name), at.clone().join(file.name.as_str()))
                    .await?;
            }
            let list = self.objects.put(&at.join(MANIFEST), manifest.to_json().into()).await;
            list.map_err(|error| self.unreachable(&error))?;
            self.take_away_old(partition, &own).await
        })?;
        let left = self.runtime.block_on(self.found(partition))?;
        let left = left.into_iter().rev().filter(|(_, keys)| is_complete(keys));
        let (own, others) = left.map(|(name, _)| name).partition(|name| own.may_be(name));
        Ok(Published { applied, own, others })
    }

    /// Returns the complete checkpoints of a partition, the newest first. Does not check whether their files are
    /// intact.
    pub fn newest(&self, partition: Partition) -> Result<Vec<Listed>, Error> {
        self.runtime.block_on(async {
            let found = self.found(partition).await?;
            let mut listed = Vec::new();
            for (name, _) in found.into_iter().rev().filter(|(_, keys)| is_complete(keys)) {
                listed.push(Listed {
                    next: name.next,
                    outputs: name.outputs,
                    last: self.last_folded(partition, &name).await?,
                    name,
                });
            }
            Ok(listed)
        })
    }

    /// Returns the last record that was folded into a checkpoint; `None` also where its manifest cannot be read, which its
    /// restore reports.
    async fn last_folded(&self, partition: Partition, name: &Name) -> Result<Option<LastFolded>, Error> {
        if name.log.is_none() {
            return Ok(None);
        }
        let manifest = self.of(partition).join(name.to_string()).join(MANIFEST);
        let json = match self.objects.get(&manifest).await {
            Ok(found) => found.bytes().await.map_err(|error| self.unreachable(&error))?,
            Err(object_store::Error::NotFound { .. }) => return Ok(None),
            Err(error) => return Err(self.unreachable(&error)),
        };
        let manifest = Manifest::read(&json).ok().filter(|manifest| manifest.name() == *name);
        Ok(manifest.and_then(|manifest| manifest.last))
    }

    /// Restores into `into`, which must not exist yet, the newest intact checkpoint that is not after a position (next
    /// offset, outputs of it), of whichever log it is. `None` if no such checkpoint exists. An error means that this cannot
    /// be determined.
    pub fn restore(
        &self,
        partition: Partition,
        into: &Path,
        not_after: (Offset, u64),
    ) -> Result<Option<Applied>, Error> {
        for listed in self.newest(partition)? {
            if (listed.next, listed.outputs) > not_after {
                continue;
            }
            if let Some(applied) = self.restore_one(partition, &listed, into)? {
                return Ok(Some(applied));
            }
        }
        Ok(None)
    }

    /// Restores a checkpoint into `into`, which must not exist yet. `None` if it is damaged, which is logged.
    pub fn restore_one(&self, partition: Partition, listed: &Listed, into: &Path) -> Result<Option<Applied>, Error> {
        let local = |path: &Path, error: std::io::Error| Error::Local {
            path: path.to_owned(),
            cause: error.to_string(),
        };
        let mut partial = into.as_os_str().to_owned();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        remove_directory(&partial).map_err(|error| local(&partial, error))?;
        std::fs::create_dir_all(&partial).map_err(|error| local(&partial, error))?;
        match self.download(partition, listed, &partial) {
            Ok(applied) => {
                std::fs::rename(&partial, into).map_err(|error| local(into, error))?;
                return Ok(Some(applied));
            }
            Err(Unusable::Damaged(what)) => {
                tracing::warn!(
                    %partition, checkpoint = %listed.name, what, "the checkpoint is damaged, trying the next older one"
                );
            }
            Err(Unusable::Failed(error)) => {
                // The files fetched so far are useless. If they cannot be removed, they do no harm.
                let _ = remove_directory(&partial);
                return Err(error);
            }
        }
        remove_directory(&partial).map_err(|error| local(&partial, error))?;
        Ok(None)
    }

    /// Returns where the checkpoints of a partition are, for messages.
    pub fn shown(&self, partition: Partition) -> String {
        let group = self.base.filename().unwrap_or_default();
        format!("{}/{group}/{partition}", self.shown.trim_end_matches('/'))
    }

    fn of(&self, partition: Partition) -> Key {
        self.base.clone().join(partition.to_string())
    }

    fn unreachable(&self, error: &object_store::Error) -> Error {
        Error::Unreachable {
            at: self.shown.clone(),
            cause: RequestFailure::of(error).to_string(),
        }
    }

    /// Returns everything of a partition that has the name of a checkpoint, by age, each with its objects.
    async fn found(&self, partition: Partition) -> Result<BTreeMap<Name, Vec<Key>>, Error> {
        let base = self.of(partition);
        let objects: Vec<Key> = self
            .objects
            .list(Some(&base))
            .map_ok(|object| object.location)
            .try_collect()
            .await
            .map_err(|error| self.unreachable(&error))?;
        let mut found: BTreeMap<Name, Vec<Key>> = BTreeMap::new();
        for key in objects {
            let name = key
                .prefix_match(&base)
                .and_then(|mut parts| parts.next().map(|part| part.as_ref().to_owned()));
            if let Some(name) = name.as_deref().and_then(Name::read) {
                found.entry(name).or_default().push(key);
            }
        }
        Ok(found)
    }

    async fn upload(&self, file: &Path, to: Key) -> Result<(), Error> {
        let local = |error: std::io::Error| Error::Local {
            path: file.to_owned(),
            cause: error.to_string(),
        };
        let there = |error: std::io::Error| Error::Unreachable {
            at: self.shown.clone(),
            cause: error.to_string(),
        };
        let mut from = std::fs::File::open(file).map_err(local)?;
        let mut to = BufWriter::new(self.objects.clone(), to);
        let mut piece = vec![0; PIECE_BYTES];
        loop {
            let read = from.read(&mut piece).map_err(local)?;
            if read == 0 {
                return to.shutdown().await.map_err(there);
            }
            to.write_all(&piece[..read]).await.map_err(there)?;
        }
    }

    /// Deletes the checkpoints of this log beyond the number kept, and incomplete publications of it that are older than a
    /// complete checkpoint. Checkpoints that do not say of which log they are go once there are enough that do.
    async fn take_away_old(&self, partition: Partition, own: &OwnCheckpoints) -> Result<(), Error> {
        let mut complete = 0;
        for (name, keys) in self.found(partition).await?.iter().rev() {
            if !own.may_be(name) {
                continue;
            }
            if complete == 0 && !is_complete(keys) {
                // Another process may still be publishing it.
                continue;
            }
            let counts = is_complete(keys) && name.log.is_some();
            let is_among_kept = complete < self.kept;
            complete += usize::from(counts);
            if is_complete(keys) && is_among_kept {
                continue;
            }
            // The manifest first: without it the rest is no longer a checkpoint.
            let (list, rest): (Vec<&Key>, Vec<&Key>) = keys.iter().partition(|key| is_list(key));
            for key in list.into_iter().chain(rest) {
                match self.objects.delete(key).await {
                    Ok(()) | Err(object_store::Error::NotFound { .. }) => {}
                    Err(error) => return Err(self.unreachable(&error)),
                }
            }
        }
        Ok(())
    }

    fn download(&self, partition: Partition, listed: &Listed, into: &Path) -> Result<Applied, Unusable> {
        let later = |what: String| {
            let name = listed.name.to_string();
            Unusable::Failed(Error::Later { name, what })
        };
        let manifest = self.runtime.block_on(async {
            let at = self.of(partition).join(listed.name.to_string());
            let json = match self.objects.get(&at.clone().join(MANIFEST)).await {
                Ok(found) => found.bytes().await.map_err(|error| self.unreachable(&error))?,
                Err(error) => return Err(self.gone("its manifest", &error)),
            };
            let manifest = Manifest::read(&json).map_err(|unreadable| match unreadable {
                UnreadableManifest::Damaged => Unusable::Damaged("its manifest is unreadable".to_owned()),
                UnreadableManifest::Later { format } => later(format!("the format {format}")),
            })?;
            if manifest.name() != listed.name || manifest.partition != partition.0 {
                return Err(Unusable::Damaged(
                    "its manifest belongs to another checkpoint or was altered".to_owned(),
                ));
            }
            if manifest.revision() > self.revision {
                let (has, newest) = (manifest.revision(), self.revision);
                return Err(later(format!(
                    "the revision {has}, and this version knows revisions up to {newest}"
                )));
            }
            for file in &manifest.files {
                self.fetch(&at, file, into).await?;
            }
            Ok(manifest)
        })?;
        let damaged = |what: &dyn std::fmt::Display| Unusable::Damaged(format!("its store cannot be used: {what}"));
        let (applied, _, digest) = looked_at(into, partition).map_err(|error| match error {
            Error::Store(store::Error::LaterLayout { found, .. }) => later(format!("a store of layout {found}")),
            error => damaged(&error),
        })?;
        if !manifest.is_of(&applied, &digest) {
            return Err(damaged(&"its digest differs from the published one"));
        }
        Ok(applied)
    }

    async fn fetch(&self, at: &Key, file: &File, into: &Path) -> Result<(), Unusable> {
        let path = into.join(&file.name);
        let local = |error: std::io::Error| Error::Local {
            path: path.clone(),
            cause: error.to_string(),
        };
        let found = match self.objects.get(&at.clone().join(file.name.as_str())).await {
            Ok(found) => found,
            Err(error) => return Err(self.gone(&file.name, &error)),
        };
        if found.meta.size != file.bytes {
            let is = found.meta.size;
            return Err(Unusable::Damaged(format!(
                "{} has {is} bytes instead of {}",
                file.name, file.bytes
            )));
        }
        let mut to = std::fs::File::create(&path).map_err(local)?;
        let mut hash = blake3::Hasher::new();
        let mut pieces = found.into_stream();
        while let Some(piece) = pieces.try_next().await.map_err(|error| self.unreachable(&error))? {
            hash.update(&piece);
            to.write_all(&piece).map_err(local)?;
        }
        to.sync_all().map_err(local)?;
        if hex(hash.finalize().as_bytes()) != file.blake3 {
            return Err(Unusable::Damaged(format!(
                "the content of {} differs from what was published",
                file.name
            )));
        }
        Ok(())
    }

    /// Returns the error for a failed read: an object that does not exist is damage, a location that does not respond
    /// is not.
    fn gone(&self, what: &str, error: &object_store::Error) -> Unusable {
        match error {
            object_store::Error::NotFound { .. } => Unusable::Damaged(format!("{what} is missing")),
            other => Unusable::Failed(self.unreachable(other)),
        }
    }
}

/// Which checkpoints at a location are of this log.
struct OwnCheckpoints {
    /// The ids of this log. There are several if two nodes made its first checkpoint at the same time.
    ids: BTreeSet<LogId>,
    /// Known to be of another log.
    others: BTreeSet<Name>,
}

impl OwnCheckpoints {
    /// Whether a checkpoint is of this log, or of an earlier version, which did not say of which log it is.
    fn may_be(&self, name: &Name) -> bool {
        !self.others.contains(name) && name.log.as_ref().is_none_or(|id| self.ids.contains(id))
    }
}

fn is_list(key: &Key) -> bool {
    key.filename() == Some(MANIFEST)
}

fn is_complete(keys: &[Key]) -> bool {
    keys.iter().any(is_list)
}

fn remove_directory(directory: &Path) -> std::io::Result<()> {
    match std::fs::remove_dir_all(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(error),
        _ => Ok(()),
    }
}

/// Returns the applied position of the store in a directory, the revision in force, and its digest. Does not change the directory.
fn looked_at(directory: &Path, partition: Partition) -> Result<(Applied, Revision, [u8; 32]), Error> {
    let empty = || Error::Empty {
        directory: directory.to_owned(),
    };
    let store = Store::open_to_look(directory)?;
    let meta = store.meta()?.ok_or_else(empty)?;
    let opened = store.read_meta(&meta)?;
    if opened.partition.partition != partition {
        return Err(Error::Local {
            path: directory.to_owned(),
            cause: format!("it is of partition {}, not {partition}", opened.partition.partition),
        });
    }
    Ok((opened.applied, opened.partition.revision, store.digest()?))
}

fn files_of(directory: &Path) -> Result<Vec<File>, Error> {
    let local = |path: &Path, error: std::io::Error| Error::Local {
        path: path.to_owned(),
        cause: error.to_string(),
    };
    let mut files = Vec::new();
    for entry in std::fs::read_dir(directory).map_err(|error| local(directory, error))? {
        let path = entry.map_err(|error| local(directory, error))?.path();
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        if OF_THE_PROCESS.iter().any(|of| name.starts_with(of)) {
            continue;
        }
        let mut hash = blake3::Hasher::new();
        let file = std::fs::File::open(&path).map_err(|error| local(&path, error))?;
        let bytes = file.metadata().map_err(|error| local(&path, error))?.len();
        hash.update_reader(file).map_err(|error| local(&path, error))?;
        let blake3 = hex(hash.finalize().as_bytes());
        files.push(File { name, bytes, blake3 });
    }
    Ok(files)
}
