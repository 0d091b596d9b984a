//! Shard paths: `a.tar::b.tar` is a union, `{0000..0042}` a range, `{train,val}` a choice.

use super::error::{DatasetError, Result};

/// Shards one path may stand for.
const MAX_SHARDS: usize = 1 << 20;

/// The paths that `path` stands for, in order.
///
/// ```
/// let names = ocelli_data::dataset::shard_names("a-{08..10}.tar::b.tar").unwrap();
/// assert_eq!(names, ["a-08.tar", "a-09.tar", "a-10.tar", "b.tar"]);
/// ```
///
/// # Errors
/// When braces are unbalanced or nested, a range runs backwards, or there are over a million paths.
pub fn shard_names(path: &str) -> Result<Vec<String>> {
    let wrong = |problem| DatasetError::ShardNames { path: path.to_owned(), problem };
    let mut all = Vec::new();
    for part in path.split("::") {
        let mut names = vec![String::new()];
        let mut rest = part;
        while let Some(open) = rest.find('{') {
            let close = rest[open..].find('}').ok_or_else(|| wrong("a { has no }"))? + open;
            let choices = choices(&rest[open + 1..close]).map_err(wrong)?;
            if names.len().saturating_mul(choices.len()) > MAX_SHARDS {
                return Err(wrong("more than a million shards"));
            }
            let head = &rest[..open];
            names = names
                .iter()
                .flat_map(|name| choices.iter().map(move |choice| format!("{name}{head}{choice}")))
                .collect();
            rest = &rest[close + 1..];
        }
        if rest.contains('}') {
            return Err(wrong("a } has no {"));
        }
        for name in &mut names {
            name.push_str(rest);
        }
        all.append(&mut names);
        if all.len() > MAX_SHARDS {
            return Err(wrong("more than a million shards"));
        }
    }
    if all.iter().any(String::is_empty) {
        return Err(wrong("a shard has no name"));
    }
    Ok(all)
}

fn choices(inside: &str) -> std::result::Result<Vec<String>, &'static str> {
    if inside.contains('{') {
        return Err("braces inside braces");
    }
    let Some((first, last)) = inside.split_once("..") else {
        return Ok(inside.split(',').map(str::to_owned).collect());
    };
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    if !digits(first) || !digits(last) {
        return Err("a range is not two numbers");
    }
    let parse = |text: &str| text.parse::<u64>().map_err(|_| "a range is not two numbers");
    let (from, to) = (parse(first)?, parse(last)?);
    if from > to {
        return Err("a range runs backwards");
    }
    if to - from >= MAX_SHARDS as u64 {
        return Err("more than a million shards");
    }
    let width = if first.len() > 1 && first.starts_with('0') || first.len() == last.len() {
        first.len()
    } else {
        0
    };
    Ok((from..=to).map(|number| format!("{number:0width$}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn braces_expand_like_a_shell() {
        for (path, expected) in [
            ("x.tar", &["x.tar"][..]),
            ("{a,b}-{0..1}.tar", &["a-0.tar", "a-1.tar", "b-0.tar", "b-1.tar"]),
            ("{9..11}", &["9", "10", "11"]),
            ("{009..010}", &["009", "010"]),
        ] {
            assert_eq!(shard_names(path).expect("sound"), expected);
        }
        for path in ["{0..1", "0}", "{2..1}", "{{0..1}}", "{0..99999999}", "a::", "{a..b}"] {
            assert!(shard_names(path).is_err(), "{path}");
        }
        let many = "{0..999}".repeat(3);
        assert!(shard_names(&many).is_err());
    }
}
