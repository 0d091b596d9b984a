//! How much memory this machine and this process have, where the system tells, and how much a model
//! may take.

use crate::failure::Failure;
use crate::table::bytes;
use ocelli_models::{Need, Work};
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

/// A size such as `8GiB`, `1.5G`, `500 MB` or `1048576`: units of 1024 but for `kB`, `MB`, `GB` and
/// `TB`.
pub(crate) fn size(text: &str) -> Result<u64, String> {
    let digits = text.trim_end_matches(|c: char| !c.is_ascii_digit() && c != '.');
    let unit = text[digits.len()..].trim().to_ascii_lowercase();
    let (letter, rest) = unit.split_at(unit.chars().next().map_or(0, char::len_utf8));
    let power = ["", "k", "m", "g", "t"].iter().position(|known| *known == letter);
    let power =
        if unit == "b" { Some(0) } else { power.filter(|_| ["", "b", "ib"].contains(&rest)) };
    let step = if rest == "b" { 1000_f64 } else { 1024_f64 };
    let value: Option<f64> = digits.trim().parse().ok();
    match (value, power) {
        (Some(value), Some(power)) if value > 0.0 && value.is_finite() => {
            Ok((value * step.powi(power as i32)).round() as u64)
        }
        _ => Err("expected a size such as 8GiB, 500MB or a number of bytes".to_owned()),
    }
}

/// What a model would need, in words.
fn parts(need: &Need) -> String {
    let parts = [
        (need.weights, "weights"),
        (need.packed, "linear layers in the order of the kernels"),
        (need.cache, "keys and values of the tokens"),
        (need.passing, "values between the layers"),
    ];
    let said =
        parts.iter().filter(|(n, _)| *n > 0).map(|(n, what)| format!("{} {what}", bytes(*n)));
    said.collect::<Vec<_>>().join(", ")
}

/// Fails if a model needs more than `limit` bytes; `others` are ways to need less, with what is
/// needed then.
pub(crate) fn check_limit(
    limit: u64,
    need: &Need,
    others: &[(String, Need)],
) -> Result<(), Failure> {
    if need.total() <= limit {
        return Ok(());
    }
    let what = format!(
        "the model needs about {}, the limit is {} (--memory-limit): {}",
        bytes(need.total()),
        bytes(limit),
        parts(need)
    );
    let said = |(how, other): &(String, Need)| {
        format!("with {how} it needs about {}", bytes(other.total()))
    };
    let fitting: Vec<String> =
        others.iter().filter(|(_, other)| other.total() <= limit).map(said).collect();
    let least = others.iter().min_by_key(|(_, other)| other.total());
    let advice = match least.filter(|(_, other)| other.total() < need.total()) {
        _ if !fitting.is_empty() => fitting.join("; "),
        Some(least) => format!("{}; take a smaller model or raise the limit", said(least)),
        None => "take a smaller model or raise the limit".to_owned(),
    };
    Err(Failure::memory(what).with(&advice))
}

/// An option of a command that bounds its work.
pub(crate) struct Bound<'a> {
    /// As it is called on the command line.
    pub(crate) option: &'static str,
    /// What it is, or what is reckoned with if it is not given.
    pub(crate) most: usize,
    /// The work if it were this, which grows with it.
    pub(crate) work: &'a dyn Fn(usize) -> Work,
}

impl Bound<'_> {
    /// The most below what it is that needs no more than `limit` bytes, in words, with what is needed
    /// then.
    pub(crate) fn fitting(
        &self,
        limit: u64,
        need: impl Fn(Work) -> Need,
    ) -> Option<(String, Need)> {
        let need = |n| need((self.work)(n));
        // All of `fits` fit, none from `not` on does.
        let (mut fits, mut not) = (0, self.most);
        while not - fits > 1 {
            let middle = fits.midpoint(not);
            if need(middle).total() <= limit { fits = middle } else { not = middle }
        }
        let how = || format!("{} {fits} in place of {}", self.option, self.most);
        (fits > 0).then(|| (how(), need(fits)))
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_in_the_units_that_people_write() {
        for (text, bytes) in [
            ("8GiB", 8 << 30),
            ("8G", 8 << 30),
            ("8 gb", 8_000_000_000),
            ("1.5k", 1536),
            ("500MB", 500_000_000),
            ("1048576", 1 << 20),
            ("12 B", 12),
            ("2TiB", 2 << 40),
        ] {
            assert_eq!(size(text), Ok(bytes), "{text}");
        }
        for text in ["", "GiB", "8 apples", "-1", "0", "1.2.3G", "8iB", "NaN", "8Gb2", "é", "8é"]
        {
            assert!(size(text).is_err(), "{text}");
        }
    }

    #[test]
    fn a_refusal_says_what_would_fit() {
        let need = |gib: u64| Need { weights: gib << 30, ..Need::default() };
        let others = [("--quant q8_0".to_owned(), need(9)), ("--quant q4_0".to_owned(), need(5))];
        assert!(check_limit(20 << 30, &need(20), &others).is_ok());
        let said = |limit: u64| format!("{:?}", check_limit(limit << 30, &need(20), &others));
        assert!(said(10).contains("with --quant q8_0 it needs about 9.00 GiB"), "{}", said(10));
        assert!(said(6).contains("with --quant q4_0 it needs about 5.00 GiB"), "{}", said(6));
        assert!(said(4).contains("smaller model or raise the limit"), "{}", said(4));
    }
}
