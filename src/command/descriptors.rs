//! Open files: one limit that clients' connections share with the log and the stores, which must not go short.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

/// Tables of the embedded log, or of a store, that RocksDB keeps open, and its other files.
const DATABASE: usize = 256 + 32;
/// Everything else: the runtime, librdkafka, the registry, other nodes, checkpoints.
const BESIDE: usize = 64;
/// HTTP connections where nothing else bounds them.
const HTTP_DEFAULT: usize = 4_096;

/// The limit of open files.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct OpenFiles {
    /// As it was found.
    pub before: u64,
    pub limit: u64,
}

/// Raises the soft limit to the hard one, and says so.
pub fn raise() -> OpenFiles {
    // Without a limit there is nothing to keep to.
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
            tracing::warn!(%error, limit = before, "the limit of open files could not be raised");
            before
        }
    };
    OpenFiles { before, limit }
}

impl OpenFiles {
    /// How many connections of HTTP leave the log, the stores and a gateway of this process what they may need, for so
    /// many databases; at most as many as are wanted.
    pub fn http_connections(self, databases: usize, has_gateway: bool, wanted: Option<usize>) -> usize {
        let limit = usize::try_from(self.limit).unwrap_or(usize::MAX);
        let rest = limit.saturating_sub(BESIDE + databases * DATABASE);
        // Where stores could need everything they seldom do: a quarter is for connections all the same.
        let room = rest.max(limit / 4).max(1);
        let room = if has_gateway { (room / 2).max(1) } else { room };
        let connections = wanted.unwrap_or(HTTP_DEFAULT).min(room);
        if wanted.is_some_and(|wanted| wanted > connections) {
            tracing::warn!(
                connections,
                limit,
                "fewer HTTP connections than --http-connections-max are served, since open files leave no room for more; \
                 raise the limit with ulimit -n"
            );
        } else if rest < room {
            tracing::warn!(
                connections,
                limit,
                needed = BESIDE + databases * DATABASE + connections,
                "the limit of open files is lower than what log, stores and connections may need together; raise it with \
                 ulimit -n"
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
