//! Where a lake is: a directory, or a bucket, which is waited for while it does not answer.

use super::Trouble;
use super::behind::Behind;
use crate::clock::{Clock as _, SystemClock};
use crate::lake::bucket::{BucketListener, BucketNotice, LakeBucket};
use crate::lake::storage::{LakeStorage as _, read_manifest};
use crate::objects;
use anyhow::{Context as _, anyhow, bail};
use object_store::ObjectStore;
use object_store::path::Path as Key;
use std::io;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, TryRecvError};
use std::time::Duration;
use tokio::runtime::Handle;
use url::Url;

/// Between two attempts to reach a bucket. Before that the client has tried a few times.
const PAUSE: Duration = Duration::from_secs(1);
/// How long a bucket that does not answer is waited for with --once.
const ONCE_PATIENCE_MS: u64 = 30_000;

/// Where a lake is.
pub enum LakeLocation {
    Directory(PathBuf),
    Bucket(BucketLocation),
}

/// A prefix of a bucket.
pub struct BucketLocation {
    objects: Arc<dyn ObjectStore>,
    base: Key,
    /// As a URL, as readers write it.
    url: String,
}

impl LakeLocation {
    pub fn of(to: &str) -> anyhow::Result<LakeLocation> {
        let Some((scheme, _)) = to.split_once("://") else {
            return Ok(LakeLocation::Directory(PathBuf::from(to)));
        };
        let shown = objects::without_credentials(to);
        if scheme == "file" {
            let url = Url::parse(to).ok().and_then(|url| url.to_file_path().ok());
            let root = url.with_context(|| format!("--to {shown} names no directory; expected file:///DIRECTORY"))?;
            return Ok(LakeLocation::Directory(root));
        }
        let (objects, base) = objects::open(to, std::env::vars()).map_err(|cause| {
            anyhow!(
                "--to {shown} cannot be used: {cause}; expected a directory, file:///DIRECTORY or s3://BUCKET/PREFIX"
            )
        })?;
        let url = Url::parse(to).ok();
        let bucket = url.as_ref().and_then(Url::host_str).unwrap_or_default();
        let url = format!("{scheme}://{bucket}/{base}");
        Ok(LakeLocation::Bucket(BucketLocation { objects, base, url }))
    }

    /// Returns where the files are, as readers write it: a path or a URL.
    pub fn shown(&self) -> String {
        match self {
            LakeLocation::Directory(root) => root.to_string_lossy().into_owned(),
            LakeLocation::Bucket(place) => place.url.clone(),
        }
    }

    /// Returns the manifest of a lake that another process may be writing to. Waits for nothing.
    pub fn manifest(self, runtime: Handle) -> io::Result<Option<Vec<u8>>> {
        match self {
            LakeLocation::Directory(root) => read_manifest(&root),
            LakeLocation::Bucket(place) => {
                let listener = |notice: BucketNotice<'_>| match notice {
                    BucketNotice::Slow { .. } | BucketNotice::Back => Ok(()),
                    BucketNotice::Away { failure, .. } => Err(io::Error::other(failure.to_string())),
                };
                place.open(runtime, Box::new(listener)).manifest()
            }
        }
    }
}

/// Returns the URI of a lake in a directory that exists, as readers of Iceberg take it.
pub fn directory_uri(root: &Path) -> anyhow::Result<String> {
    let absolute = root.canonicalize();
    let absolute = absolute.with_context(|| format!("cannot find out the absolute path of {}", root.display()))?;
    match absolute.to_str() {
        Some(path) => iceberg_uri(&format!("file://{path}")),
        None => bail!(
            "the path of the lake, {}, is not UTF-8, so --iceberg cannot name its files; move the lake",
            absolute.display()
        ),
    }
}

/// Returns a URI without a slash at its end. The names of files in it are not escaped: readers take them as they are, except for
/// characters that end a path.
fn iceberg_uri(uri: &str) -> anyhow::Result<String> {
    if let Some(letter) = uri
        .chars()
        .find(|one| matches!(one, '?' | '#' | '\\') || one.is_control())
    {
        bail!(
            "readers of Iceberg do not find files whose path has {letter:?}, as that of the lake has ({uri}); move the lake, or run it \
             without --iceberg and remove the folders `metadata` of its tables"
        );
    }
    Ok(uri.trim_end_matches('/').to_owned())
}

impl BucketLocation {
    /// Returns the URI of the lake, as readers of Iceberg take it.
    pub fn uri(&self) -> anyhow::Result<String> {
        iceberg_uri(&self.url)
    }

    pub fn open(self, runtime: Handle, listener: BucketListener) -> LakeBucket {
        LakeBucket::new(self.objects, self.base, runtime, listener)
    }
}

/// Returns what is done while a bucket does not answer: the log, `/readyz` and the metrics say so, and an interrupt ends the wait.
pub fn waiting(once: bool, interrupted: Rc<Receiver<()>>, trouble: Trouble, behind: Behind) -> BucketListener {
    let clock = SystemClock::new();
    // Since when the bucket does not answer, by the monotonic clock, and why.
    let mut away: Option<(u64, String)> = None;
    let stopped = |what: &str| {
        io::Error::new(
            io::ErrorKind::Interrupted,
            format!("interrupted while it tried to {what}"),
        )
    };
    Box::new(move |notice| {
        let now_ms = clock.monotonic_ms();
        behind.report(clock.now_ms());
        match notice {
            BucketNotice::Slow { what, seconds } => {
                let words = format!("the bucket has not answered for {seconds} s to a request to {what}");
                tracing::warn!("{words}; waiting");
                trouble.set(Some(words));
                match interrupted.try_recv() {
                    Err(TryRecvError::Empty) => Ok(()),
                    Ok(()) | Err(TryRecvError::Disconnected) => Err(stopped(what)),
                }
            }
            BucketNotice::Away { what, failure } => {
                let since_ms = away.as_ref().map_or(now_ms, |(since_ms, _)| *since_ms);
                let seconds = now_ms.saturating_sub(since_ms) / 1_000;
                if once && now_ms >= since_ms + ONCE_PATIENCE_MS {
                    let text = format!("the bucket did not answer for {seconds} s: {failure}");
                    return Err(io::Error::new(io::ErrorKind::TimedOut, text));
                }
                let words = failure.to_string();
                if away.as_ref().is_none_or(|(_, before)| *before != words) {
                    tracing::warn!("cannot {what}: {words}; waiting for the bucket");
                }
                trouble.set(Some(format!("the bucket does not answer for {seconds} s: {words}")));
                away = Some((since_ms, words));
                match interrupted.recv_timeout(PAUSE) {
                    Err(RecvTimeoutError::Timeout) => Ok(()),
                    Ok(()) | Err(RecvTimeoutError::Disconnected) => Err(stopped(what)),
                }
            }
            BucketNotice::Back => {
                if let Some((since_ms, _)) = away.take() {
                    let seconds = now_ms.saturating_sub(since_ms) / 1_000;
                    tracing::info!(seconds, "the bucket answers again");
                }
                trouble.set(None);
                Ok(())
            }
        }
    })
}
