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
    /// Creates the topics. Their names include the name of the test.
    pub fn new(bootstrap: &str, name: &str, partitions: usize) -> Space {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let number = COUNT.fetch_add(1, Ordering::SeqCst);
        // Another process may use the same broker.
        let prefix = format!("{name}-{}-{number}", std::process::id());
        Space::named(bootstrap, &prefix, partitions)
    }

    /// With names that begin with `prefix`; the topics may be there already.
    pub fn named(bootstrap: &str, prefix: &str, partitions: usize) -> Space {
        let space = Space {
            bootstrap: bootstrap.to_owned(),
            group: format!("{prefix}-group"),
            prefix: prefix.to_owned(),
        };
        space.topics("create", &["--partitions", &partitions.to_string()]);
        space
    }

    /// The same by other addresses of the brokers.
    pub fn reached_by(&self, bootstrap: &str) -> Space {
        Space {
            bootstrap: bootstrap.to_owned(),
            prefix: self.prefix.clone(),
            group: self.group.clone(),
        }
    }

    /// What `rollcall topics create` or `check` says of them.
    pub fn topics(&self, what: &str, more: &[&str]) -> String {
        let output = Command::new(python::program())
            .args([
                "topics",
                what,
                "--kafka",
                &self.bootstrap,
                "--topic-prefix",
                &self.prefix,
            ])
            .args(more)
            .output()
            .expect("it starts");
        let [printed, failed] =
            [output.stdout, output.stderr].map(|printed| String::from_utf8_lossy(&printed).into_owned());
        assert!(output.status.success(), "{printed}{failed}");
        printed
    }
}
