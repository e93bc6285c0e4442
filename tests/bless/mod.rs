//! Files that hold what tests expect, byte for byte. `make bless` writes them again; the diff is then read by a person.
//!
//! With `ROLLCALL_BLESS=1` nothing is compared: the file is written, and the test fails and says so, because a test that
//! writes what it expects has shown nothing.

use std::path::Path;
use std::{env, fs};

/// Compares texts with the files that hold what they should be (paths from the root), or writes those files.
#[track_caller]
pub fn check<'t>(texts: impl IntoIterator<Item = (&'t str, &'t str)>) {
    let is_blessing = env::var_os("ROLLCALL_BLESS").is_some_and(|value| value == "1");
    let mut said = String::new();
    for (name, now) in texts {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let before = fs::read_to_string(&path).unwrap_or_default();
        if before == now {
            continue;
        }
        if is_blessing {
            fs::write(&path, now).expect("the file is written");
            said += &format!("wrote {name}\n");
            continue;
        }
        let (mut was, mut is) = (before.lines(), now.lines());
        let differing = (1..).map(|number| (number, was.next(), is.next()));
        let (number, was, is) = differing
            .into_iter()
            .find(|(_, was, is)| was != is || was.is_none())
            .expect("lines end");
        let text = |line: Option<&str>| line.map_or_else(|| "(the end)".to_owned(), str::to_owned);
        said += &format!("{name}:{number}:\n  expected {}\n  is now   {}\n", text(was), text(is));
    }
    assert!(
        !is_blessing,
        "\n{said}ROLLCALL_BLESS is set: expected files were written, nothing was tested; read the diff"
    );
    assert!(
        said.is_empty(),
        "\n{said}If the change is meant, run `make bless` and read the diff"
    );
}
