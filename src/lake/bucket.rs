//! A lake in an S3-compatible bucket.
//!
//! An object appears whole or not at all. A data file is written to the machine's temporary directory, where it has no name, and
//! sent when it is whole. The manifest is replaced by a request that the store only carries out if the
//! manifest is still the one that this process has read or written last (`If-Match` on its ETag, `If-None-Match: *` for the first).
//! So of two processes that write, each manifest has one winner. When the response to that request was lost, the manifest is read
//! again: it is ours if it has our bytes, which no other process writes, since they name their writer. What points to the newest
//! metadata of Iceberg is replaced in the same way; its bytes are the number of a commit.
//!
//! A bucket that does not answer is waited for, as long as the [`BucketListener`] says so.

use super::storage::{FOLDERS, LakeStorage, METADATA, ManifestWrite, is_ours};
use crate::objects::RequestFailure;
use futures_util::TryStreamExt as _;
use object_store::path::Path as Key;
use object_store::{ObjectStore, ObjectStoreExt as _, PutMode, PutPayload, PutResult, UpdateVersion};
use std::collections::HashMap;
use std::fs::File;
use std::hash::{BuildHasher as _, RandomState};
use std::io::{self, Read as _, Seek as _, Write};
use std::sync::Arc;
use std::time::Duration;
use tokio::runtime::Handle;

/// What is larger is sent in parts of this size, one after the other.
const PIECE_BYTES: usize = 8 << 20;
/// How long a request may take until the listener learns of it, and between two such notices.
const SLOW: Duration = Duration::from_secs(10);
/// An ETag that no object has.
const NO_E_TAG: &str = "\"00000000000000000000000000000000\"";

/// What happens to the requests of a lake. `what` is what the lake was doing, such as `write manifest.json`.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum BucketNotice<'a> {
    /// A request has not been answered for so long, and goes on.
    Slow { what: &'a str, seconds: u64 },
    /// A request failed, for a reason that may pass. It is repeated when the listener returns.
    Away { what: &'a str, failure: &'a RequestFailure },
    /// Requests succeed again.
    Back,
}

/// Learns what happens to requests, and pauses between attempts. Its error ends the lake's current step.
pub type BucketListener = Box<dyn FnMut(BucketNotice<'_>) -> io::Result<()>>;

/// A lake under a prefix of a bucket.
pub struct LakeBucket {
    objects: Arc<dyn ObjectStore>,
    base: Key,
    runtime: Handle,
    listener: BucketListener,
    writer: String,
    slow: Duration,
    /// Of the objects that are replaced, by path: the version that was read or written last.
    versions: HashMap<String, UpdateVersion>,
    /// The store is known to carry out a request only under its conditions.
    keeps_conditions: bool,
}

/// A file in the temporary directory that has no name, so that nothing is left of it.
pub struct SpooledFile(File);

/// Why an attempt failed.
enum AttemptError {
    /// A file of this machine.
    Local(io::Error),
    Store(object_store::Error),
}

impl From<io::Error> for AttemptError {
    fn from(error: io::Error) -> AttemptError {
        AttemptError::Local(error)
    }
}

impl From<object_store::Error> for AttemptError {
    fn from(error: object_store::Error) -> AttemptError {
        AttemptError::Store(error)
    }
}

/// What the store answered to a request that it did not carry out.
enum Answer<T> {
    Done(T),
    /// There is no such object.
    Missing,
    /// The condition of the request does not hold.
    Outdated,
}

impl LakeBucket {
    pub fn new(objects: Arc<dyn ObjectStore>, base: Key, runtime: Handle, listener: BucketListener) -> LakeBucket {
        LakeBucket {
            objects,
            base,
            runtime,
            listener,
            writer: format!("{:016x}", RandomState::new().hash_one(std::process::id())),
            slow: SLOW,
            versions: HashMap::new(),
            keeps_conditions: false,
        }
    }

    /// Sets how long a request may take until the listener learns of it, for tests.
    pub fn slow_after(mut self, slow: Duration) -> LakeBucket {
        self.slow = slow;
        self
    }

    fn key(&self, path: &str) -> Key {
        path.split('/').fold(self.base.clone(), |key, part| key.join(part))
    }

    /// Returns the names and sizes of the objects in a folder.
    fn listed(&mut self, what: &str, folder: &str) -> io::Result<Vec<(String, u64)>> {
        let prefix = self.key(folder);
        let listed = self.request(what, |objects| {
            let prefix = prefix.clone();
            async move { Ok(objects.list(Some(&prefix)).try_collect::<Vec<_>>().await?) }
        })?;
        let Answer::Done(listed) = listed else {
            return Err(unexpected());
        };
        let named = listed.into_iter().filter_map(|object| {
            let name = object.location.filename()?;
            // Not one of a folder within this one.
            (object.location == prefix.clone().join(name)).then(|| (name.to_owned(), object.size))
        });
        Ok(named.collect())
    }

    /// Makes a request, and repeats it while the bucket is away.
    fn request<T, F>(&mut self, what: &str, attempt: impl Fn(Arc<dyn ObjectStore>) -> F) -> io::Result<Answer<T>>
    where
        F: Future<Output = Result<T, AttemptError>>,
    {
        let mut was_away = false;
        loop {
            let failure = match self.attempt(what, attempt(self.objects.clone()))? {
                Ok(answer) => {
                    if was_away {
                        (self.listener)(BucketNotice::Back)?;
                    }
                    return Ok(answer);
                }
                Err(failure) => failure,
            };
            if !failure.may_pass {
                return Err(io::Error::other(failure.to_string()));
            }
            was_away = true;
            let failure = &failure;
            (self.listener)(BucketNotice::Away { what, failure })?;
        }
    }

    fn attempt<T>(
        &mut self,
        what: &str,
        request: impl Future<Output = Result<T, AttemptError>>,
    ) -> io::Result<Result<Answer<T>, RequestFailure>> {
        let (listener, slow) = (&mut self.listener, self.slow);
        let done = self.runtime.block_on(async {
            let mut request = std::pin::pin!(request);
            let mut waited = Duration::ZERO;
            loop {
                match tokio::time::timeout(slow, &mut request).await {
                    Ok(done) => return Ok(done),
                    Err(_) => {
                        waited += slow;
                        let seconds = waited.as_secs();
                        listener(BucketNotice::Slow { what, seconds })?;
                    }
                }
            }
        });
        let error = match done {
            Ok(Ok(done)) => return Ok(Ok(Answer::Done(done))),
            Ok(Err(AttemptError::Store(error))) => error,
            Ok(Err(AttemptError::Local(error))) | Err(error) => return Err(error),
        };
        let is_without_bucket = || error.to_string().contains("NoSuchBucket");
        match &error {
            object_store::Error::NotFound { .. } if !is_without_bucket() => Ok(Ok(Answer::Missing)),
            object_store::Error::Precondition { .. } | object_store::Error::AlreadyExists { .. }
                if !is_without_bucket() =>
            {
                Ok(Ok(Answer::Outdated))
            }
            _ => Ok(Err(RequestFailure::of(&error))),
        }
    }

    fn put_replacing(&mut self, path: &str, bytes: &[u8], mode: &PutMode) -> io::Result<Answer<PutResult>> {
        let key = self.key(path);
        self.request(&format!("write {path}"), |objects| {
            let (payload, key) = (PutPayload::from(bytes.to_vec()), key.clone());
            let mode = mode.clone();
            async move { Ok(objects.put_opts(&key, payload, mode.into()).await?) }
        })
    }

    /// Fails if the store carries out a request whose condition does not hold: then nothing would keep two processes from
    /// replacing each other's manifest. `bytes` are those of the object that this process has just written.
    fn check_conditions(&mut self, path: &str, bytes: &[u8]) -> io::Result<()> {
        let no_version = UpdateVersion {
            e_tag: Some(NO_E_TAG.to_owned()),
            version: None,
        };
        for (mode, condition) in [
            (PutMode::Update(no_version), "If-Match"),
            (PutMode::Create, "If-None-Match"),
        ] {
            if matches!(self.put_replacing(path, bytes, &mode)?, Answer::Done(_)) {
                return Err(io::Error::other(format!(
                    "the store ignores {condition} of a PUT, so two processes could each replace what the other has committed; \
                     use a store with conditional writes"
                )));
            }
        }
        self.keeps_conditions = true;
        Ok(())
    }
}

fn unexpected() -> io::Error {
    io::Error::other("the store answered as to another request; check that AWS_ENDPOINT is an S3-compatible store")
}

/// Sends a file.
async fn send(objects: &dyn ObjectStore, key: &Key, mut file: &File) -> Result<(), AttemptError> {
    file.rewind()?;
    let mut piece = Vec::new();
    file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
    if piece.len() < PIECE_BYTES {
        objects.put(key, piece.into()).await?;
        return Ok(());
    }
    let mut upload = objects.put_multipart(key).await?;
    let sent = async {
        while !piece.is_empty() {
            upload.put_part(std::mem::take(&mut piece).into()).await?;
            file.take(PIECE_BYTES as u64).read_to_end(&mut piece)?;
        }
        upload.complete().await?;
        Ok(())
    };
    let sent = sent.await;
    if sent.is_err() {
        // The parts stay if this fails as well; a rule of the bucket removes them.
        let _ = upload.abort().await;
    }
    sent
}

impl LakeStorage for LakeBucket {
    type NewFile = SpooledFile;

    fn create(&mut self, _: &str) -> io::Result<SpooledFile> {
        tempfile::tempfile().map(SpooledFile)
    }

    fn publish(&mut self, SpooledFile(file): SpooledFile, path: &str) -> io::Result<()> {
        let (key, file) = (self.key(path), &file);
        let sent = self.request(&format!("write {path}"), |objects| {
            let key = key.clone();
            async move { send(&*objects, &key, file).await }
        })?;
        match sent {
            Answer::Done(()) => Ok(()),
            Answer::Missing | Answer::Outdated => Err(unexpected()),
        }
    }

    fn open(&mut self, path: &str) -> io::Result<File> {
        let key = self.key(path);
        let fetched = self.request(&format!("read {path}"), |objects| {
            let key = key.clone();
            async move {
                let mut file = tempfile::tempfile()?;
                let mut pieces = objects.get(&key).await?.into_stream();
                while let Some(piece) = pieces.try_next().await? {
                    file.write_all(&piece)?;
                }
                file.rewind()?;
                Ok(file)
            }
        })?;
        match fetched {
            Answer::Done(file) => Ok(file),
            Answer::Missing => {
                let text = "it is not in the bucket, although the manifest names it";
                Err(io::Error::new(io::ErrorKind::NotFound, text))
            }
            Answer::Outdated => Err(unexpected()),
        }
    }

    fn list(&mut self) -> io::Result<Vec<(String, u64)>> {
        let mut found = Vec::new();
        for folder in FOLDERS {
            let listed = self.listed("list the objects", folder)?;
            let ours = listed.into_iter().filter(|(name, _)| is_ours(name));
            found.extend(ours.map(|(name, bytes)| (format!("{folder}/{name}"), bytes)));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn list_metadata(&mut self) -> io::Result<Vec<String>> {
        let mut found = Vec::new();
        for folder in FOLDERS {
            let folder = format!("{folder}/{METADATA}");
            let listed = self.listed("list the metadata", &folder)?;
            found.extend(listed.into_iter().map(|(name, _)| format!("{folder}/{name}")));
        }
        found.sort_unstable();
        Ok(found)
    }

    fn remove(&mut self, path: &str) -> io::Result<()> {
        let key = self.key(path);
        // Somebody else may have removed it: that is what was asked for.
        self.request(&format!("remove {path}"), |objects| {
            let key = key.clone();
            async move { Ok(objects.delete(&key).await?) }
        })
        .map(|_| ())
    }

    fn current(&mut self, path: &str) -> io::Result<Option<Vec<u8>>> {
        let key = self.key(path);
        let read = self.request(&format!("read {path}"), |objects| {
            let key = key.clone();
            async move {
                let found = objects.get(&key).await?;
                let version = UpdateVersion {
                    e_tag: found.meta.e_tag.clone(),
                    version: found.meta.version.clone(),
                };
                Ok((found.bytes().await?, version))
            }
        })?;
        match read {
            Answer::Done((bytes, version)) => {
                self.versions.insert(path.to_owned(), version);
                Ok(Some(bytes.to_vec()))
            }
            Answer::Missing => {
                self.versions.remove(path);
                Ok(None)
            }
            Answer::Outdated => Err(unexpected()),
        }
    }

    fn replace(&mut self, path: &str, bytes: &[u8]) -> io::Result<ManifestWrite> {
        loop {
            let before = self.versions.get(path).cloned();
            let mode = before.clone().map_or(PutMode::Create, PutMode::Update);
            if let Answer::Done(put) = self.put_replacing(path, bytes, &mode)?
                && put.e_tag.is_some()
            {
                let version = UpdateVersion {
                    e_tag: put.e_tag,
                    version: put.version,
                };
                self.versions.insert(path.to_owned(), version);
                break;
            }
            // An earlier attempt may have got through without its response.
            if self.current(path)?.as_deref() == Some(bytes) {
                break;
            }
            if self.versions.get(path) != before.as_ref() {
                return Ok(ManifestWrite::Outdated);
            }
            (self.listener)(BucketNotice::Away {
                what: &format!("write {path}"),
                failure: &RequestFailure::conflict(),
            })?;
        }
        if !self.keeps_conditions {
            self.check_conditions(path, bytes)?;
        }
        Ok(ManifestWrite::Done)
    }

    fn writer(&self) -> Option<&str> {
        Some(&self.writer)
    }
}

impl Write for SpooledFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.0.flush()
    }
}
