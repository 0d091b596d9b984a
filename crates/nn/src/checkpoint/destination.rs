//! Where the bytes of an output file go.

use std::io;
use std::path::{Path, PathBuf};

/// Links that are followed before a chain of them counts as a circle.
const MOST_LINKS: usize = 40;

/// The path that a finished file may be renamed to: `path` with its links followed, so that what a
/// link points to is replaced and the link stays.
///
/// # Errors
/// When something is there that is no regular file (a pipe, a device, a folder), which a rename
/// would take away from its users; or when links go in a circle.
pub fn destination(path: &Path) -> io::Result<PathBuf> {
    let refused =
        |reason: &str| Err(io::Error::new(io::ErrorKind::InvalidInput, reason.to_owned()));
    let mut target = path.to_path_buf();
    for _ in 0..MOST_LINKS {
        let kind = match target.symlink_metadata() {
            Ok(metadata) => metadata.file_type(),
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(target),
            Err(e) => return Err(e),
        };
        if kind.is_file() {
            return Ok(target);
        }
        if !kind.is_symlink() {
            return refused("it is no regular file; give the path of a file, or of a new one");
        }
        // A relative link starts where it lies.
        target = target.parent().unwrap_or(Path::new("")).join(target.read_link()?);
    }
    refused("its links go in a circle; give the path of a file")
}

#[cfg(all(test, unix))]
#[allow(clippy::unwrap_used)] // A failed test is to panic.
mod tests {
    use super::*;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn links_stay_and_what_they_point_to_is_replaced() {
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        fs::write(at("file"), "old").unwrap();
        symlink("file", at("link")).unwrap();
        symlink(at("link"), at("link2")).unwrap();
        symlink("new", at("dangling")).unwrap();
        symlink("circle", at("circle")).unwrap();
        symlink(".", at("folder_link")).unwrap();
        for (given, expected) in
            [("file", "file"), ("link", "file"), ("link2", "file"), ("dangling", "new"), ("x", "x")]
        {
            assert_eq!(destination(&at(given)).unwrap(), at(expected), "{given}");
        }
        for (given, what) in [("circle", "circle"), ("folder_link", "no regular file")] {
            let error = destination(&at(given)).unwrap_err().to_string();
            assert!(error.contains(what), "{error}");
        }
    }

    #[test]
    fn sockets_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let (socket, link) = (folder.path().join("socket"), folder.path().join("out"));
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        symlink(&socket, &link).unwrap();
        let saved = super::super::save_safetensors(&link, &[], &std::collections::BTreeMap::new());
        let error = saved.unwrap_err().to_string();
        assert!(error.contains("out"), "{error}");
        assert!(link.is_symlink());
        assert!(!socket.symlink_metadata().unwrap().is_file());
    }
}
