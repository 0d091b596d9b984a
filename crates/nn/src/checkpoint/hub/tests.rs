//! A cache folder made by hand, and a hub of one thread for the downloader.
#![allow(clippy::unwrap_used, reason = "a failed unwrap is a failed test")]

use super::*;

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";

/// A folder of its own for one test, removed at its end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let dir = env::temp_dir().join(format!("ocelli-hub-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

fn no_environment(_: &str) -> Option<String> {
    None
}

fn options(cache: &Path) -> HubOptions<'static> {
    HubOptions { offline: true, cache_dir: Some(cache.to_path_buf()), ..HubOptions::default() }
}

fn find(spec: &str, cache: &Path) -> Result<PathBuf> {
    let options = options(cache);
    let repo = Repo::parse(spec, None)?;
    resolve_in(&repo, &Settings::new(&options, no_environment)?, None)
}

#[test]
fn ids_and_revisions_parse() {
    let repo = |spec, revision| Repo::parse(spec, revision).map(|r| (r.id, r.revision));
    let own = |a: &str, b: &str| (a.to_owned(), b.to_owned());
    assert_eq!(repo("org/name", None).unwrap(), own("org/name", "main"));
    assert_eq!(repo("org/name@v1", Some("v2")).unwrap(), own("org/name", "v1"));
    assert_eq!(repo("gpt2", Some("refs/pr/1")).unwrap(), own("gpt2", "refs/pr/1"));
    let bad = [
        "",
        "/",
        "../name",
        "org/..",
        "a/b/c",
        "./model",
        "org/name@",
        "org/name@../x",
        "~/model",
        "model.safetensors",
        "org/na me",
        "org/name@a//b",
        "C:\\model",
    ];
    for spec in bad {
        assert!(matches!(Repo::parse(spec, None), Err(Error::Spec { .. })), "{spec}");
    }
}

#[test]
fn the_environment_names_the_cache() {
    let cache = |set: &[(&str, &str)]| {
        let get = |name: &str| set.iter().find(|(n, _)| *n == name).map(|(_, v)| (*v).to_owned());
        Settings::new(&HubOptions::default(), get).map(|s| (s.cache, s.offline))
    };
    let is = |set: &[(&str, &str)], path: &str, offline| {
        assert_eq!(cache(set).unwrap(), (PathBuf::from(path), offline));
    };
    is(&[("HOME", "/u")], "/u/.cache/huggingface/hub", false);
    is(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")], "/x/huggingface/hub", false);
    is(&[("XDG_CACHE_HOME", "/x"), ("HF_HOME", "/h")], "/h/hub", false);
    is(&[("HF_HOME", "/h"), ("HF_HUB_CACHE", "/c"), ("HF_HUB_OFFLINE", "1")], "/c", true);
    is(&[("HF_HOME", "/h"), ("HF_HUB_OFFLINE", "0")], "/h/hub", false);
    assert!(matches!(cache(&[]), Err(Error::NoCacheDir)));
}

#[test]
fn a_cached_snapshot_is_found() {
    let cache = Scratch::new("cache");
    let dir = cache.0.join("models--org--tiny");
    let snapshot = dir.join("snapshots").join(COMMIT);
    let reason = |spec: &str| match find(spec, &cache.0) {
        Err(Error::NotCached { reason, .. }) => reason,
        other => panic!("{other:?}"),
    };
    assert!(reason("org/tiny").contains("no such model"));
    fs::create_dir_all(&snapshot).unwrap();
    fs::create_dir_all(dir.join("refs")).unwrap();
    fs::write(dir.join("refs/main"), COMMIT).unwrap();
    assert!(reason("org/tiny").contains("no checkpoint found"));
    fs::write(snapshot.join("model.safetensors"), "").unwrap();
    assert_eq!(find("org/tiny", &cache.0).unwrap(), snapshot);
    assert_eq!(find(&format!("org/tiny@{COMMIT}"), &cache.0).unwrap(), snapshot);
    assert!(reason("org/tiny@v2").contains("other revisions"));
    fs::write(dir.join("refs/main"), "../../elsewhere").unwrap();
    assert!(reason("org/tiny").contains("damaged"));

    let index = r#"{"weight_map": {"a": "model-1.safetensors"}}"#;
    fs::remove_file(snapshot.join("model.safetensors")).unwrap();
    fs::write(snapshot.join("model.safetensors.index.json"), index).unwrap();
    assert!(reason(&format!("org/tiny@{COMMIT}")).contains("model-1.safetensors is missing"));

    assert_eq!(resolve(cache.0.to_str().unwrap(), &options(&cache.0)).unwrap(), cache.0);
}

#[cfg(feature = "download")]
mod download {
    use std::io::{BufRead, BufReader, Write};
    use std::net::TcpListener;
    use std::sync::{Arc, Mutex};

    use super::*;

    const WEIGHTS: &[u8] = b"0123456789";
    const SHA256: &str = "84d89877f0d4041efb6bf91a16f0248f2fd573e6af05c19f96bedb9f882f7882";

    /// Answers like the hub for one model, whose weights go over the wire as `sent`, on a port of
    /// its own, and notes what was asked for.
    fn serve(sent: &'static [u8]) -> (String, Arc<Mutex<Vec<String>>>) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = format!("http://{}", listener.local_addr().unwrap());
        let asked = Arc::new(Mutex::new(Vec::new()));
        let (log, endpoint) = (Arc::clone(&asked), address.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
                let Some(Ok(first)) = lines.next() else { continue };
                let (method, target) = first.split_once(' ').unwrap();
                let target = target.split(' ').next().unwrap().to_owned();
                let headers: Vec<String> =
                    lines.map_while(|l| l.ok().filter(|l| !l.is_empty())).collect();
                let range = headers.iter().find_map(|h| h.strip_prefix("range: bytes="));
                let from: usize = range.map_or(0, |r| r.trim_end_matches('-').parse().unwrap());
                log.lock().unwrap().push(format!("{method} {target} {from}"));
                let (head, body) = answer(&target, from, &endpoint, sent);
                let length = body.len();
                let mut all =
                    format!("HTTP/1.1 {head}content-length: {length}\r\nconnection: close\r\n\r\n")
                        .into_bytes();
                if method == "GET" {
                    all.extend(body);
                }
                // A client that has read what it needs may hang up first.
                let _ = stream.write_all(&all);
            }
        });
        (address, asked)
    }

    fn answer(target: &str, from: usize, endpoint: &str, sent: &[u8]) -> (String, Vec<u8>) {
        let file = format!("/org/tiny/resolve/{COMMIT}/");
        match target.strip_prefix(&file) {
            Some("config.json") => {
                ("307 Temporary Redirect\r\nlocation: /cached/config.json\r\n".into(), Vec::new())
            }
            None if target == "/cached/config.json" => {
                ("200 OK\r\netag: \"c0ffee\"\r\n".into(), b"{}".to_vec())
            }
            Some("model.safetensors") => (
                format!(
                    "302 Found\r\nlocation: {endpoint}/far\r\nx-linked-etag: \"{SHA256}\"\r\n\
                     x-linked-size: {}\r\n",
                    WEIGHTS.len()
                ),
                Vec::new(),
            ),
            None if target == "/far" && from > 0 => {
                ("206 Partial Content\r\n".into(), sent[from..].to_vec())
            }
            None if target == "/far" => ("200 OK\r\n".into(), sent.to_vec()),
            None if target == "/api/models/org/tiny/revision/main" => {
                let files =
                    ["config.json", "model.safetensors", "pytorch_model.bin", "../evil.json"];
                let files: Vec<_> =
                    files.iter().map(|f| serde_json::json!({ "rfilename": f })).collect();
                let listing = serde_json::json!({ "sha": COMMIT, "siblings": files });
                ("200 OK\r\n".into(), listing.to_string().into_bytes())
            }
            _ => ("404 Not Found\r\n".into(), Vec::new()),
        }
    }

    fn online(cache: &Scratch, endpoint: String) -> Settings {
        Settings {
            cache: cache.0.clone(),
            offline: false,
            endpoint,
            token: None,
            certificates: None,
        }
    }

    #[test]
    fn a_missing_model_is_fetched_once() {
        let cache = Scratch::new("fetch");
        let (endpoint, asked) = serve(WEIGHTS);
        let settings = online(&cache, endpoint);
        let last = Mutex::new((0, 0));
        let note = |_: &str, done, size| *last.lock().unwrap() = (done, size);
        let repo = Repo::parse("org/tiny", None).unwrap();
        // An attempt that ended after four bytes.
        let blobs = cache.0.join("models--org--tiny/blobs");
        fs::create_dir_all(&blobs).unwrap();
        fs::write(blobs.join(format!("{SHA256}.incomplete")), &WEIGHTS[..4]).unwrap();

        let snapshot = resolve_in(&repo, &settings, Some(&note)).unwrap();
        assert_eq!(fs::read(snapshot.join("model.safetensors")).unwrap(), WEIGHTS);
        assert_eq!(fs::read(snapshot.join("config.json")).unwrap(), b"{}");
        assert_eq!(fs::read_dir(&snapshot).unwrap().count(), 2);
        assert_eq!(*last.lock().unwrap(), (10, 10));
        assert!(asked.lock().unwrap().contains(&"GET /far 4".to_owned()));

        let before = asked.lock().unwrap().len();
        assert_eq!(resolve_in(&repo, &settings, Some(&note)).unwrap(), snapshot);
        assert_eq!(asked.lock().unwrap().len(), before, "the cache answers");
        let other = Repo::parse("org/none", None).unwrap();
        let error = resolve_in(&other, &settings, None).unwrap_err();
        assert!(error.to_string().contains("404"), "{error}");
    }

    #[test]
    fn bytes_of_another_hash_are_thrown_away() {
        // Damage on the way; damage in what an earlier attempt left, in part and in whole.
        let cases: [(&'static [u8], &[u8]); 3] =
            [(b"012345678x", b""), (WEIGHTS, b"01x3"), (WEIGHTS, b"01x3456789")];
        for (i, (sent, left)) in cases.into_iter().enumerate() {
            let cache = Scratch::new(&format!("damage-{i}"));
            let (endpoint, _) = serve(sent);
            let settings = online(&cache, endpoint);
            let repo = Repo::parse("org/tiny", None).unwrap();
            let dir = cache.0.join("models--org--tiny");
            fs::create_dir_all(dir.join("blobs")).unwrap();
            fs::write(dir.join(format!("blobs/{SHA256}.incomplete")), left).unwrap();

            let error = resolve_in(&repo, &settings, None).unwrap_err();
            let text = error.to_string();
            assert!(text.contains("model.safetensors: expected SHA-256 84d8"), "{text}");
            assert!(!dir.join("refs").exists(), "no revision points at it");
            let kept: Vec<_> = fs::read_dir(dir.join("blobs"))
                .unwrap()
                .map(|entry| entry.unwrap().file_name().into_string().unwrap())
                .collect();
            assert_eq!(kept, ["c0ffee"], "only the whole file stays");

            let again = resolve_in(&repo, &settings, None);
            assert_eq!(again.is_ok(), sent == WEIGHTS, "{again:?}");
        }
    }
}
