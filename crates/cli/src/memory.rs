//! How much memory this machine and this process have, where the system tells.

use crate::failure::Failure;
use crate::table::bytes;
use std::fs;
use std::path::Path;

/// Memory that can be had without swapping, in bytes: that of the machine, or less in a container.
pub(crate) fn available() -> Option<u64> {
    let machine = of_machine("MemAvailable")?;
    let number = |name: &str| -> Option<u64> {
        fs::read_to_string(Path::new("/sys/fs/cgroup").join(name)).ok()?.trim().parse().ok()
    };
    let container = number("memory.max").zip(number("memory.current"));
    let left = container.map_or(machine, |(most, now)| most.saturating_sub(now));
    Some(machine.min(left))
}

/// A line of `/proc/meminfo`, in bytes.
pub(crate) fn of_machine(name: &str) -> Option<u64> {
    kib("/proc/meminfo", name)
}

/// The most that this process has held, in bytes.
pub(crate) fn peak() -> Option<u64> {
    kib("/proc/self/status", "VmHWM")
}

fn kib(file: &str, name: &str) -> Option<u64> {
    let text = fs::read_to_string(file).ok()?;
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))?;
    Some(line.split_whitespace().next()?.parse::<u64>().ok()? * 1024)
}

/// Fails if `needed` bytes for `what` are not there; `action` says how to need less.
pub(crate) fn check(needed: u64, what: &str, action: &str) -> Result<(), Failure> {
    match available() {
        Some(there) if needed > there => Err(Failure::memory(format!(
            "{what} needs about {}, {} are available; {action}",
            bytes(needed),
            bytes(there)
        ))),
        _ => Ok(()),
    }
}
