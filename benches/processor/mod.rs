//! The processor time and memory of a process, as Linux counts them.

use std::fs;

/// This process.
pub const SELF: &str = "self";

/// Returns how many seconds of processor time a process (its number, or [`SELF`]) has used so far, in all of its threads.
pub fn cpu_seconds(process: &str) -> f64 {
    let stat = fs::read_to_string(format!("/proc/{process}/stat")).expect("Linux, and a process that runs");
    // The name, in parentheses, may have spaces.
    let rest = &stat[stat.rfind(')').expect("a name") + 2..];
    let field = |at: usize| -> f64 {
        let field = rest.split(' ').nth(at).expect("a field");
        field.parse().expect("a number")
    };
    // Linux counts in hundredths of a second, whatever the kernel's own clock.
    (field(11) + field(12)) / 100.0
}

/// Returns the most memory that a process has had resident, in MiB.
pub fn greatest_mib(process: &str) -> f64 {
    let status = fs::read_to_string(format!("/proc/{process}/status")).expect("Linux, and a process that runs");
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"));
    let kib = line.and_then(|line| line.trim().trim_end_matches(" kB").parse::<f64>().ok());
    kib.expect("a number of KiB") / 1_024.0
}
