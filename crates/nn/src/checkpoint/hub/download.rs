//! Fetches the files of one model from the hub into the shared cache: `blobs/ETAG`, a link to it in
//! `snapshots/COMMIT/NAME`, and the commit in `refs/REVISION` once everything is there. The etag of
//! a large file is its SHA-256, which is checked before the file gets its name. TLS is rustls with a
//! provider that builds without a C compiler.

use std::collections::BTreeSet;
use std::fmt::{Display, Write as _};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use serde::Deserialize;
use sha2::{Digest, Sha256};
use ureq::http::Response;
use ureq::tls::{Certificate, PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::WithoutBody;
use ureq::{Agent, Body, RequestBuilder};

use super::{Progress, Repo, Settings, is_name};
use crate::checkpoint::error::{Error, Result};
use crate::checkpoint::locate::{self, NAMED};

/// The most bytes of a model's file list.
const MAX_LISTING: u64 = 16 << 20;
const CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
/// The longest wait for the first byte of an answer.
const ANSWER_TIMEOUT: Duration = Duration::from_mins(1);
const MAX_REDIRECTS: u32 = 10;
const CHUNK: usize = 1 << 20;

/// Fetches what is missing of a revision and returns its snapshot folder.
pub(super) fn snapshot(
    repo: &Repo,
    settings: &Settings,
    progress: Progress<'_>,
) -> Result<PathBuf> {
    let client = Client::new(settings)?;
    let listing = client.listing(repo)?;
    let dir = repo.dir(&settings.cache);
    let snapshot = dir.join("snapshots").join(&listing.sha);
    let names: BTreeSet<&str> = listing
        .siblings
        .iter()
        .map(|s| s.rfilename.as_str())
        .filter(|name| is_name(name))
        .collect();
    for name in chosen(&names) {
        client.file(repo, &listing.sha, &dir, name, progress)?;
    }
    // An index has arrived by now and names its shards.
    for shard in locate::weights(&snapshot)?.files {
        if let Some(name) = shard.file_name().and_then(|name| name.to_str()) {
            client.file(repo, &listing.sha, &dir, name, progress)?;
        }
    }
    let reference = dir.join("refs").join(&repo.revision);
    write(&reference, listing.sha.as_bytes())?;
    Ok(snapshot)
}

/// The configuration and tokenizer files, and the best form of the weights or their index.
fn chosen<'a>(names: &BTreeSet<&'a str>) -> Vec<&'a str> {
    let weights = NAMED.iter().find_map(|name| names.get(name).copied());
    let is_side = |name: &str| {
        let small = ["json", "txt", "model", "jinja", "gz"];
        Path::new(name).extension().is_some_and(|e| small.iter().any(|s| e == *s))
            && !name.ends_with(".index.json")
    };
    let mut chosen: Vec<&str> = names.iter().copied().filter(|name| is_side(name)).collect();
    match weights {
        Some(weights) => chosen.push(weights),
        None => chosen.extend(names.iter().filter(|name| {
            let kinds = ["npz", "pt", "pth", "safetensors"];
            Path::new(name).extension().is_some_and(|e| kinds.iter().any(|k| e == *k))
        })),
    }
    chosen
}

#[derive(Deserialize)]
struct Listing {
    sha: String,
    siblings: Vec<Sibling>,
}

#[derive(Deserialize)]
struct Sibling {
    rfilename: String,
}

struct Client<'a> {
    settings: &'a Settings,
    agent: Agent,
    /// The same without following redirections, to read the hub's own headers.
    direct: Agent,
}

/// Instructions that TLS needs and this processor may lack.
fn lacking_for_tls() -> Option<&'static str> {
    #[cfg(target_arch = "x86_64")]
    {
        let is_there = is_x86_feature_detected!("avx2")
            && is_x86_feature_detected!("aes")
            && is_x86_feature_detected!("pclmulqdq")
            && is_x86_feature_detected!("bmi1")
            && is_x86_feature_detected!("adx");
        (!is_there).then_some("AVX2, AES or ADX")
    }
    #[cfg(target_arch = "aarch64")]
    {
        use std::arch::is_aarch64_feature_detected as has;
        (!(has!("aes") && has!("pmull") && has!("sha2"))).then_some("AES, PMULL or SHA-256")
    }
}

impl<'a> Client<'a> {
    fn new(settings: &'a Settings) -> Result<Self> {
        if let Some(lacking) = lacking_for_tls() {
            let reason = format!("this processor lacks {lacking}, which TLS needs here");
            return Err(Self::failed(&settings.endpoint, reason));
        }
        let roots = match &settings.certificates {
            None => RootCerts::WebPki,
            Some(path) => {
                let pem =
                    fs::read(path).map_err(|source| Error::Io { path: path.clone(), source })?;
                let all: Vec<Certificate<'static>> = parse_pem(&pem)
                    .filter_map(|item| match item {
                        Ok(PemItem::Certificate(certificate)) => Some(certificate),
                        _ => None,
                    })
                    .collect();
                RootCerts::new_with_certs(&all)
            }
        };
        let tls = TlsConfig::builder()
            .unversioned_rustls_crypto_provider(Arc::new(rustls_graviola::default_provider()))
            .root_certs(roots)
            .build();
        let config = |redirects| {
            Agent::config_builder()
                .tls_config(tls.clone())
                .http_status_as_error(false)
                .max_redirects(redirects)
                .timeout_connect(Some(CONNECT_TIMEOUT))
                .timeout_recv_response(Some(ANSWER_TIMEOUT))
                .user_agent(concat!("ocelli/", env!("CARGO_PKG_VERSION")))
                .build()
                .new_agent()
        };
        Ok(Self { settings, agent: config(MAX_REDIRECTS), direct: config(0) })
    }

    fn failed(url: &str, reason: impl Display) -> Error {
        Error::Download { url: url.to_owned(), reason: reason.to_string() }
    }

    fn listing(&self, repo: &Repo) -> Result<Listing> {
        let Repo { id, revision } = repo;
        let endpoint = &self.settings.endpoint;
        let url = format!("{endpoint}/api/models/{id}/revision/{}", revision.replace('/', "%2F"));
        let mut answer = self.get(&url, None)?;
        let text = answer.body_mut().with_config().limit(MAX_LISTING).read_to_vec();
        let text = text.map_err(|e| Self::failed(&url, e))?;
        let listing: Listing = serde_json::from_slice(&text).map_err(|e| Self::failed(&url, e))?;
        if !is_name(&listing.sha) {
            return Err(Self::failed(&url, format!("bad commit {:?}", listing.sha)));
        }
        Ok(listing)
    }

    /// One GET; `from` asks for the rest of a file. An answer of failure is an error.
    fn get(&self, url: &str, from: Option<u64>) -> Result<Response<Body>> {
        let mut request = self.authorized(self.agent.get(url));
        if let Some(from) = from {
            request = request.header("range", format!("bytes={from}-"));
        }
        Self::checked(url, request.call())
    }

    /// The hub's own headers about a file: redirections are followed inside the hub only, as a
    /// storage host behind it does not know the file's etag.
    fn head(&self, url: &str) -> Result<Response<Body>> {
        let mut at = url.to_owned();
        for _ in 0..MAX_REDIRECTS {
            let answer = Self::checked(&at, self.authorized(self.direct.head(&at)).call())?;
            let location = answer.headers().get("location").and_then(|value| value.to_str().ok());
            match location
                .filter(|location| location.starts_with('/') && !location.starts_with("//"))
            {
                Some(path) if !answer.headers().contains_key("x-linked-etag") => {
                    let endpoint = &self.settings.endpoint;
                    let scheme = endpoint.find("://").map_or(0, |at| at + 3);
                    let host =
                        endpoint[scheme..].find('/').map_or(endpoint.len(), |at| scheme + at);
                    at = format!("{}{path}", &endpoint[..host]);
                }
                _ => return Ok(answer),
            }
        }
        Err(Self::failed(url, "too many redirections"))
    }

    fn authorized(&self, request: RequestBuilder<WithoutBody>) -> RequestBuilder<WithoutBody> {
        let request = request.header("accept-encoding", "identity");
        match &self.settings.token {
            Some(token) => request.header("authorization", format!("Bearer {token}")),
            None => request,
        }
    }

    fn checked(
        url: &str,
        answer: std::result::Result<Response<Body>, ureq::Error>,
    ) -> Result<Response<Body>> {
        let answer = answer.map_err(|e| Self::failed(url, e))?;
        match answer.status().as_u16() {
            200..=399 => Ok(answer),
            status @ (401 | 403) => Err(Self::failed(
                url,
                format!("status {status}: the model is gated, private or unknown; set HF_TOKEN"),
            )),
            404 => Err(Self::failed(url, "status 404: no such model, revision or file")),
            status => Err(Self::failed(url, format!("status {status}"))),
        }
    }

    /// Makes one file part of a snapshot.
    fn file(
        &self,
        repo: &Repo,
        commit: &str,
        dir: &Path,
        name: &str,
        progress: Progress<'_>,
    ) -> Result<()> {
        let link = dir.join("snapshots").join(commit).join(name);
        if link.is_file() {
            return Ok(());
        }
        let url = format!("{}/{}/resolve/{commit}/{name}", self.settings.endpoint, repo.id);
        let head = self.head(&url)?;
        let header = |name| head.headers().get(name).and_then(|value| value.to_str().ok());
        let etag = header("x-linked-etag").or_else(|| header("etag"));
        let etag = etag.map(|tag| tag.trim_start_matches("W/").trim_matches('"').to_owned());
        let etag = etag.filter(|tag| is_name(tag));
        let etag = etag.ok_or_else(|| Self::failed(&url, "the answer has no usable etag"))?;
        let size = header("x-linked-size").or_else(|| header("content-length"));
        let size = size.and_then(|size| size.parse::<u64>().ok());
        let size = size.ok_or_else(|| Self::failed(&url, "the answer has no size"))?;
        drop(head);

        let blob = dir.join("blobs").join(&etag);
        if fs::metadata(&blob).map(|found| found.len()).ok() != Some(size) {
            self.blob(&url, name, &blob, &etag, size, progress)?;
        }
        make_parent(&link)?;
        link_to(&Path::new("../../blobs").join(&etag), &blob, &link)
            .map_err(|source| Error::Io { path: link.clone(), source })
    }

    /// Fetches a blob, going on from where an earlier attempt ended.
    fn blob(
        &self,
        url: &str,
        name: &str,
        blob: &Path,
        etag: &str,
        size: u64,
        progress: Progress<'_>,
    ) -> Result<()> {
        make_parent(blob)?;
        let part = blob.with_added_extension("incomplete");
        let io = |source| Error::Io { path: part.clone(), source };
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create(true)
            .truncate(false)
            .open(&part)
            .map_err(io)?;
        file.lock().map_err(io)?; // another process may be fetching the same file
        if fs::metadata(blob).map(|found| found.len()).ok() == Some(size) {
            return Ok(());
        }
        let mut done = file.metadata().map_err(io)?.len();
        if done > size {
            done = 0;
            file.set_len(0).map_err(io)?;
        }
        let mut chunk = vec![0; CHUNK];
        let mut hash = hash_of(&mut file, &mut chunk).map_err(io)?;
        if done < size {
            let mut answer = self.get(url, (done > 0).then_some(done))?;
            if answer.status().as_u16() != 206 {
                (done, hash) = (0, Sha256::new());
                file.set_len(0).map_err(io)?;
                file.rewind().map_err(io)?;
            }
            let mut body = answer.body_mut().as_reader();
            loop {
                let count = body.read(&mut chunk).map_err(|e| Self::failed(url, e))?;
                if count == 0 {
                    break;
                }
                done += count as u64;
                if done > size {
                    break;
                }
                file.write_all(&chunk[..count]).map_err(io)?;
                hash.update(&chunk[..count]);
                if let Some(progress) = progress {
                    progress(name, done, size);
                }
            }
        }
        if done != size {
            // What arrived beyond the size cannot be trusted; what is short can be gone on from.
            if done > size {
                file.set_len(0).map_err(io)?;
            }
            return Err(Self::failed(url, format!("{done} of {size} bytes arrived")));
        }
        let got = hex(hash);
        if is_sha256(etag) && got != etag {
            fs::remove_file(&part).map_err(io)?;
            return Err(Error::Corrupt { url: url.to_owned(), expected: etag.to_owned(), got });
        }
        file.sync_all().map_err(io)?;
        fs::rename(&part, blob).map_err(io)
    }
}

/// Reads a file from where it stands to its end.
fn hash_of(file: &mut File, chunk: &mut [u8]) -> std::io::Result<Sha256> {
    let mut hash = Sha256::new();
    loop {
        match file.read(chunk)? {
            0 => return Ok(hash),
            count => hash.update(&chunk[..count]),
        }
    }
}

fn hex(hash: Sha256) -> String {
    hash.finalize().iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}"); // A string takes everything.
        text
    })
}

/// Small files have the hash of a Git object, 40 digits, instead.
fn is_sha256(etag: &str) -> bool {
    etag.len() == 64 && etag.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn make_parent(path: &Path) -> Result<()> {
    let parent = path.parent().unwrap_or(path);
    fs::create_dir_all(parent).map_err(|source| Error::Io { path: parent.into(), source })
}

fn write(path: &Path, bytes: &[u8]) -> Result<()> {
    make_parent(path)?;
    let io = |source| Error::Io { path: path.into(), source };
    File::create(path).and_then(|mut file| file.write_all(bytes)).map_err(io)
}

#[cfg(unix)]
fn link_to(target: &Path, _blob: &Path, link: &Path) -> std::io::Result<()> {
    let _ = fs::remove_file(link); // a dangling link of an earlier attempt
    std::os::unix::fs::symlink(target, link)
}

/// Elsewhere links need rights that users lack.
#[cfg(not(unix))]
fn link_to(_target: &Path, blob: &Path, link: &Path) -> std::io::Result<()> {
    fs::copy(blob, link).map(drop)
}
