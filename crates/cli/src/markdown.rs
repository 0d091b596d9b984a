//! Pictures in Markdown.

use std::fs;
use std::path::{Component, Path, PathBuf};

/// A picture with its caption, whose path is as it is given or relative to the folder `from`.
pub(crate) fn picture(caption: &str, path: &Path, from: Option<&Path>) -> String {
    let mut text = String::from("![");
    for c in caption.chars() {
        match c {
            '[' | ']' | '\\' => text.extend(['\\', c]),
            c if c.is_whitespace() || c.is_control() => text.push(' '),
            c => text.push(c),
        }
    }
    text += "](";
    let path = from.and_then(|from| relative(path, from)).unwrap_or_else(|| path.to_owned());
    for c in path.to_string_lossy().chars() {
        // What would end the path, or is read as more than a path.
        if c.is_ascii() && (c.is_ascii_control() || " ()<>\"'%?#\\".contains(c)) {
            text += &format!("%{:02X}", u32::from(c));
        } else {
            text.push(c);
        }
    }
    text + ")"
}

/// The way from a folder to a file, if both are there.
fn relative(file: &Path, from: &Path) -> Option<PathBuf> {
    let from = if from.as_os_str().is_empty() { Path::new(".") } else { from };
    let (file, from) = (fs::canonicalize(file).ok()?, fs::canonicalize(from).ok()?);
    let same = file.components().zip(from.components()).take_while(|(a, b)| a == b).count();
    let up = from.components().skip(same).map(|_| Component::ParentDir);
    Some(up.chain(file.components().skip(same)).collect())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    #[test]
    fn captions_and_paths_do_not_end_early() {
        assert_eq!(
            picture("a [b] \\ c\nd", Path::new("x (1)/50%.png"), None),
            "![a \\[b\\] \\\\ c d](x%20%281%29/50%25.png)"
        );
    }

    #[test]
    fn paths_lead_from_the_article_to_the_picture() {
        let root = tempfile::tempdir().unwrap();
        let at = |name: &str| root.path().join(name);
        fs::create_dir_all(at("a/b")).unwrap();
        fs::create_dir_all(at("c")).unwrap();
        fs::write(at("c/d.png"), "").unwrap();
        let (file, from) = (at("c/d.png"), at("a/b"));
        assert_eq!(picture("", &file, Some(&from)), "![](../../c/d.png)");
        assert_eq!(picture("", &file, Some(&at("c"))), "![](d.png)");
        let missing = Path::new("no/such.png");
        assert_eq!(picture("", missing, Some(&from)), "![](no/such.png)");
    }
}
