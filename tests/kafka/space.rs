//! Topics and a group that no other test has.

use crate::python;
use std::sync::atomic::{AtomicUsize, Ordering};

pub struct Space {
    pub bootstrap: String,
    pub prefix: String,
    pub group: String,
}

impl Space {
    /// The topics are there when this returns. The names tell which test they are of.
    pub fn new(bootstrap: &str, name: &str, partitions: usize) -> Space {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        // Another process may use the same broker.
        let prefix = format!("{name}-{}-{number}", std::process::id());
        let space = Space {
            bootstrap: bootstrap.to_owned(),
            group: format!("{prefix}-group"),
            prefix,
        };
        python::run("topics.py", &space, &["create", &partitions.to_string()]);
        space
    }
}
