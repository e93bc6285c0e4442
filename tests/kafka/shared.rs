//! One broker for all tests of a binary. `ROLLCALL_TEST_KAFKA=host:port` takes another instead.

use crate::broker::Cluster;
use crate::plans::GROUP;
use std::sync::OnceLock;

/// Its address. It is started when it is asked for first.
pub fn bootstrap() -> &'static str {
    static SHARED: OnceLock<String> = OnceLock::new();
    SHARED.get_or_init(|| {
        if let Ok(bootstrap) = std::env::var("ROLLCALL_TEST_KAFKA") {
            return bootstrap;
        }
        // Never dropped: it ends with the process, or the other tests would lose it.
        let cluster = Box::leak(Box::new(Cluster::start(1, &GROUP)));
        cluster.bootstrap.clone()
    })
}
