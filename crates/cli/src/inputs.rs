//! Pictures named on the command line: files, folders, patterns, or paths on standard input.
//!
//! Names are walked as they are needed; of a folder only the names of one level at a time are held.
//! Pipes and devices are only read when they are named themselves.

use crate::failure::chain;
use ocelli_data::image::ENDINGS;
use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Stdin, stdin};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A picture's path, the bytes of its file, or what stands for it and why there is none.
#[derive(Clone, Debug)]
pub(crate) enum Input {
    Picture(PathBuf),
    Bytes(Arc<[u8]>),
    Unreadable { name: String, error: String },
}

impl Input {
    fn unreadable(path: &Path, error: impl Into<String>) -> Self {
        Self::Unreadable { name: path.display().to_string(), error: error.into() }
    }
}

/// Walks over everything that was named, in the order in which it was named.
pub(crate) struct Inputs {
    named: std::vec::IntoIter<PathBuf>,
    folder: Option<Folder>,
    pattern: Option<(String, glob::Paths, bool)>,
    /// With whether a line named anything yet.
    lines: Option<(BufReader<Stdin>, bool)>,
    /// Whether a folder is one picture, a video.
    are_videos: bool,
    /// Whether a name stands for itself alone.
    are_literal: bool,
}

impl Inputs {
    pub(crate) fn new(named: Vec<PathBuf>) -> Self {
        let named = named.into_iter();
        let (are_videos, are_literal) = (false, false);
        Self { named, folder: None, pattern: None, lines: None, are_videos, are_literal }
    }

    /// One picture for each path, whatever it is called.
    pub(crate) fn literal(named: Vec<PathBuf>) -> Self {
        Self { are_literal: true, ..Self::new(named) }
    }

    /// The same where a folder is one picture, a video.
    pub(crate) fn of_videos(named: Vec<PathBuf>) -> Self {
        Self { are_videos: true, ..Self::new(named) }
    }

    /// Whether this stands for paths on standard input.
    pub(crate) fn is_list(path: &Path) -> bool {
        path.as_os_str() == "-"
    }

    /// Whether this stands for the names that are like it.
    pub(crate) fn is_pattern(path: &Path) -> bool {
        let is_like_one = path.to_str().is_some_and(|name| name.contains(['*', '?', '[']));
        is_like_one && !path.exists()
    }

    /// How many pictures there are, if that can be told without looking.
    pub(crate) fn count(named: &[PathBuf]) -> Option<u64> {
        named.iter().all(|path| path.is_file()).then_some(named.len() as u64)
    }

    /// A path as it was named, from the command line or from standard input.
    fn start(&mut self, path: PathBuf) -> Option<Input> {
        if self.are_videos || !path.is_dir() {
            return Some(Input::Picture(path));
        }
        self.folder = Some(Folder::new(path));
        None
    }

    fn start_pattern(&mut self, pattern: &str) -> Option<Input> {
        // As in a shell, a star does not stand for the dot of a hidden file.
        let options =
            glob::MatchOptions { require_literal_leading_dot: true, ..glob::MatchOptions::new() };
        match glob::glob_with(pattern, options) {
            Ok(paths) => {
                self.pattern = Some((pattern.to_owned(), paths, false));
                None
            }
            Err(e) => Some(Input::unreadable(Path::new(pattern), format!("no pattern: {e}"))),
        }
    }

    fn next_of_pattern(&mut self) -> Option<Input> {
        let (pattern, paths, found) = self.pattern.as_mut()?;
        match paths.next() {
            Some(Ok(path)) => {
                *found = true;
                if is_special(&path) { None } else { self.start(path) }
            }
            Some(Err(e)) => Some(Input::unreadable(e.path(), chain(e.error()))),
            None => {
                let none = (!*found)
                    .then(|| Input::unreadable(Path::new(pattern), "no file is named like this"));
                self.pattern = None;
                none
            }
        }
    }

    fn next_line(&mut self) -> Option<Input> {
        let mut line = Vec::new();
        let (lines, found) = self.lines.as_mut()?;
        match lines.read_until(b'\n', &mut line) {
            Ok(0) => {
                let none = (!*found)
                    .then(|| Input::unreadable(Path::new("-"), "no picture on standard input"));
                self.lines = None;
                none
            }
            Ok(_) => {
                let line = String::from_utf8_lossy(&line);
                let path = line.trim_end_matches(['\n', '\r']);
                if path.is_empty() {
                    return None;
                }
                *found = true;
                self.start(PathBuf::from(path))
            }
            Err(e) => {
                self.lines = None;
                Some(Input::unreadable(Path::new("-"), e.to_string()))
            }
        }
    }
}

impl Iterator for Inputs {
    type Item = Input;

    fn next(&mut self) -> Option<Input> {
        loop {
            if let Some(folder) = &mut self.folder {
                if let Some(input) = folder.next() {
                    return Some(input);
                }
                self.folder = None;
            }
            let input = if self.pattern.is_some() {
                self.next_of_pattern()
            } else if self.lines.is_some() {
                self.next_line()
            } else {
                let path = self.named.next()?;
                match path.to_str() {
                    _ if self.are_literal => Some(Input::Picture(path)),
                    _ if Self::is_list(&path) => {
                        self.lines = Some((BufReader::new(stdin()), false));
                        None
                    }
                    Some(name) if Self::is_pattern(&path) => self.start_pattern(name),
                    _ => self.start(path),
                }
            };
            if input.is_some() {
                return input;
            }
        }
    }
}

/// The pictures of a folder and of the folders in it, by name. Links to folders are not followed,
/// and names that start with a dot are left out.
struct Folder {
    root: PathBuf,
    /// Folders on the way down with the names that are still to come, last one first.
    levels: Vec<(PathBuf, Vec<OsString>)>,
    is_entered: bool,
    /// Whether anything came of it, be it an error.
    found: bool,
}

impl Folder {
    fn new(root: PathBuf) -> Self {
        Self { root, levels: Vec::new(), is_entered: false, found: false }
    }

    /// Lists a folder; an error takes the place of its pictures.
    fn enter(&mut self, path: PathBuf) -> Option<Input> {
        let names = fs::read_dir(&path).and_then(|entries| {
            let mut names = Vec::new();
            for entry in entries {
                let entry = entry?;
                let name = entry.file_name();
                let hidden = name.as_encoded_bytes().starts_with(b".");
                let kind = entry.file_type()?;
                // A broken link is an error for its reader to tell.
                let leads_to_file = || entry.path().metadata().map_or(true, |m| m.is_file());
                let is_file = kind.is_file() || kind.is_symlink() && leads_to_file();
                if !hidden && (kind.is_dir() || is_file && is_picture(Path::new(&name))) {
                    names.push(name);
                }
            }
            names.sort_unstable_by(|a, b| b.cmp(a));
            Ok(names)
        });
        match names {
            Ok(names) => {
                self.levels.push((path, names));
                None
            }
            Err(e) => {
                self.found = true;
                Some(Input::unreadable(&path, e.to_string()))
            }
        }
    }

    fn next(&mut self) -> Option<Input> {
        if !self.is_entered {
            self.is_entered = true;
            if let Some(error) = self.enter(self.root.clone()) {
                return Some(error);
            }
        }
        while let Some((path, names)) = self.levels.last_mut() {
            let Some(name) = names.pop() else {
                self.levels.pop();
                continue;
            };
            let path = path.join(name);
            if fs::symlink_metadata(&path).is_ok_and(|m| m.is_dir()) {
                if let Some(error) = self.enter(path) {
                    return Some(error);
                }
            } else {
                self.found = true;
                return Some(Input::Picture(path));
            }
        }
        if self.found {
            return None;
        }
        self.found = true;
        Some(Input::unreadable(&self.root, "no picture in this folder"))
    }
}

/// Whether this is neither a file nor a folder, be it behind a link.
fn is_special(path: &Path) -> bool {
    path.metadata().is_ok_and(|m| !m.is_file() && !m.is_dir())
}

fn is_picture(name: &Path) -> bool {
    let ending = name.extension().and_then(|e| e.to_str()).map(str::to_ascii_lowercase);
    ending.is_some_and(|e| ENDINGS.contains(&e.as_str()))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;

    fn walk(named: &[PathBuf]) -> Vec<String> {
        Inputs::new(named.to_vec())
            .map(|input| match input {
                Input::Picture(path) => path.display().to_string(),
                Input::Bytes(bytes) => panic!("{} bytes without a name", bytes.len()),
                Input::Unreadable { name, error } => format!("{name}: {error}"),
            })
            .collect()
    }

    #[test]
    fn folders_are_walked_by_name_and_patterns_are_expanded() {
        let root = std::env::temp_dir().join(format!("ocelli-inputs-{}", std::process::id()));
        fs::create_dir_all(root.join("b/empty")).unwrap();
        for file in ["c.PNG", "a.jpg", "notes.txt", ".hidden.png", "b/1.gif", "b/0.svg"] {
            fs::write(root.join(file), "").unwrap();
        }
        let at = |name: &str| root.join(name).display().to_string();
        let all = ["a.jpg", "b/0.svg", "b/1.gif", "c.PNG"].map(at);
        assert_eq!(walk(std::slice::from_ref(&root)), all);
        assert_eq!(walk(&[root.join("*.??g")]), [at("a.jpg")]);
        assert_eq!(
            walk(&[root.join("**/*.svg"), root.join("a.jpg")]),
            [at("b/0.svg"), at("a.jpg")]
        );
        let none = format!("{}: no picture in this folder", at("b/empty"));
        assert_eq!(walk(&[root.join("b/empty"), root.join("c.PNG")]), [none, at("c.PNG")]);
        let none = format!("{}: no file is named like this", at("z*"));
        assert_eq!(walk(&[root.join("z*")]), [none]);
        fs::remove_dir_all(root).unwrap();
    }

    #[test]
    fn literal_names_stand_for_themselves() {
        let named = ["-", "*", "[a].png", "."].map(PathBuf::from);
        let pictures: Vec<PathBuf> = Inputs::literal(named.to_vec())
            .map(|input| match input {
                Input::Picture(path) => path,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(pictures, named);
    }

    #[cfg(unix)]
    #[test]
    fn links_to_files_are_taken_and_sockets_are_not() {
        use std::os::unix::{fs::symlink, net::UnixListener};
        let root = std::env::temp_dir().join(format!("ocelli-special-{}", std::process::id()));
        fs::create_dir_all(root.join("folder")).unwrap();
        let at = |name: &str| root.join(name).display().to_string();
        fs::write(root.join("file.png"), "").unwrap();
        symlink("file.png", root.join("link.png")).unwrap();
        symlink("/dev/zero", root.join("device.png")).unwrap();
        symlink("nowhere", root.join("broken.png")).unwrap();
        let _socket = UnixListener::bind(root.join("socket.png")).unwrap();
        let expected = ["broken.png", "file.png", "link.png"].map(at);
        assert_eq!(walk(std::slice::from_ref(&root)), expected);
        assert_eq!(walk(&[root.join("*.png")]), expected);
        fs::remove_dir_all(root).unwrap();
    }
}
