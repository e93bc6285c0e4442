//! Topics and a group that no other test has.

use crate::python;
use std::process::Command;
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
        let made = Command::new(python::program())
            .args([
                "topics",
                "create",
                "--kafka",
                bootstrap,
                "--topic-prefix",
                &space.prefix,
            ])
            .args(["--partitions", &partitions.to_string()])
            .output()
            .expect("it starts");
        let told = [made.stdout, made.stderr].map(|told| String::from_utf8_lossy(&told).into_owned());
        assert!(made.status.success(), "{}", told.concat());
        space
    }
}
