//! The limit of open files, which connections share with the log and the stores: connections must leave room for both.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Files of one RocksDB database, the embedded log or a store: its open tables, and its other files.
const DATABASE: usize = 256 + 32;
/// Files of everything else: the runtime, librdkafka, the registry, other nodes, checkpoints.
const OTHER: usize = 64;
/// HTTP connections if neither the limit nor a setting bounds them.
const HTTP_DEFAULT: usize = 4_096;

/// The limit of open files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFiles {
    /// The soft limit before it was raised.
    pub before: u64,
    pub limit: u64,
}

/// Raises the soft limit to the hard limit. Returns both.
pub fn raise() -> OpenFiles {
    // `None` means that there is no limit.
    let unlimited = u64::MAX;
    let found = getrlimit(Resource::Nofile);
    let before = found.current.unwrap_or(unlimited);
    let wanted = Rlimit {
        current: found.maximum,
        maximum: found.maximum,
    };
    let limit = match setrlimit(Resource::Nofile, wanted) {
        Ok(()) => found.maximum.unwrap_or(unlimited),
        Err(error) => {
            tracing::warn!(%error, limit = before, "cannot raise the limit of open files");
            before
        }
    };
    OpenFiles { before, limit }
}

impl OpenFiles {
    /// Returns how many HTTP connections can be served while the log, the stores and the gateway of this process keep the
    /// files that they may need; `wanted` at most.
    pub fn http_connections(self, databases: usize, has_gateway: bool, wanted: Option<usize>) -> usize {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let rest = limit.saturating_sub(OTHER + databases * DATABASE);
        // Stores seldom need all of their files at once, so connections always get a quarter of the limit.
        let room = rest.max(limit / 4).max(1);
        let room = if has_gateway { (room / 2).max(1) } else { room };
        let connections = wanted.unwrap_or(HTTP_DEFAULT).min(room);
        if wanted.is_some_and(|wanted| wanted > connections) {
            tracing::warn!(
                connections,
                limit,
                "the limit of open files allows fewer HTTP connections than --http-connections-max; raise it with ulimit -n"
            );
        } else if rest < room {
            tracing::warn!(
                connections,
                limit,
                needed = OTHER + databases * DATABASE + connections,
                "the limit of open files is lower than what the log, the stores and connections may need together; raise it \
                 with ulimit -n"
            );
        }
        connections
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn connections_leave_room_for_log_and_stores() {
        let of = |limit| OpenFiles { before: 1_024, limit };
        assert_eq!(of(1 << 20).http_connections(5, false, None), HTTP_DEFAULT);
        assert_eq!(of(1 << 20).http_connections(5, false, Some(9_000)), 9_000);
        assert_eq!(of(4_000).http_connections(5, false, None), 4_000 - 64 - 5 * 288);
        assert_eq!(of(4_000).http_connections(5, true, None), (4_000 - 64 - 5 * 288) / 2);
        assert_eq!(of(4_000).http_connections(5, false, Some(9_000)), 4_000 - 64 - 5 * 288);
        assert_eq!(of(256).http_connections(5, false, None), 64);
        assert_eq!(of(256).http_connections(1_025, false, Some(10)), 10);
        assert_eq!(of(u64::MAX).http_connections(5, false, None), HTTP_DEFAULT);
    }

    #[test]
    fn the_soft_limit_becomes_the_hard_one() {
        let raised = raise();
        assert!(raised.limit >= raised.before);
        assert_eq!(getrlimit(Resource::Nofile).current.unwrap_or(u64::MAX), raised.limit);
    }
}
