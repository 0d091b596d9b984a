//! From a model's name to the folder that holds it: an existing path, or `org/name[@revision]` in
//! the hub cache that other programs share (`models--ORG--NAME/{blobs,refs,snapshots}`).
//!
//! A revision that is in the cache is used without asking the network. With the feature
//! `download`, a missing one is fetched into the same cache.

#[cfg(feature = "download")]
mod download;
#[cfg(test)]
mod tests;

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use super::error::{Error, Result};
use super::locate;

#[cfg(feature = "download")]
const DEFAULT_ENDPOINT: &str = "https://huggingface.co";
const DEFAULT_REVISION: &str = "main";
const LONGEST_NAME: usize = 96;

/// Called with a file's name, the bytes that have arrived and the bytes in all.
pub type Progress<'a> = Option<&'a dyn Fn(&str, u64, u64)>;

/// Where and how to look for a model. The environment fills what is left out: `HF_HUB_CACHE`,
/// `HF_HOME`, `XDG_CACHE_HOME`, `HF_HUB_OFFLINE`, and for downloads `HF_ENDPOINT`, `HF_TOKEN`,
/// `HTTPS_PROXY`, `SSL_CERT_FILE`.
#[derive(Default)]
pub struct HubOptions<'a> {
    /// Never use the network.
    pub offline: bool,
    /// The hub cache, the folder of the `models--*` folders.
    pub cache_dir: Option<PathBuf>,
    /// A branch, tag or commit, `main` if nothing says otherwise; `name@revision` wins over it.
    pub revision: Option<String>,
    /// The environment variable that holds the access token, instead of `HF_TOKEN`.
    pub token_env: Option<String>,
    /// Told during a download.
    pub progress: Progress<'a>,
}

/// Finds a model: the given path if it exists, else the cached snapshot of a hub id, which is
/// downloaded first if the feature `download` is built in and `offline` is not asked for.
///
/// # Errors
/// [`Error::Spec`] for a name that is neither, [`Error::NotCached`] if the cache lacks the model
/// and nothing was fetched, [`Error::Download`] if fetching failed.
pub fn resolve(spec: &str, options: &HubOptions<'_>) -> Result<PathBuf> {
    let path = Path::new(spec);
    if path.exists() {
        return Ok(path.to_path_buf());
    }
    let repo = Repo::parse(spec, options.revision.as_deref())?;
    let settings = Settings::new(options, |name| env::var(name).ok().filter(|v| !v.is_empty()))?;
    resolve_in(&repo, &settings, options.progress)
}

#[cfg_attr(not(feature = "download"), expect(unused_variables, reason = "nothing to tell"))]
fn resolve_in(repo: &Repo, settings: &Settings, progress: Progress<'_>) -> Result<PathBuf> {
    let reason = match repo.snapshot(&settings.cache) {
        Ok(snapshot) => return Ok(snapshot),
        Err(reason) => reason,
    };
    #[cfg(feature = "download")]
    if !settings.offline {
        return download::snapshot(repo, settings, progress);
    }
    let action = if settings.offline {
        "run once without --offline and HF_HUB_OFFLINE, or fetch it with `huggingface-cli download`"
    } else {
        "this build has no downloader, so fetch it with `huggingface-cli download`"
    };
    Err(Error::NotCached {
        repo: repo.id.clone(),
        revision: repo.revision.clone(),
        cache: settings.cache.clone(),
        reason,
        action,
    })
}

/// A model on the hub.
#[derive(Debug, PartialEq)]
struct Repo {
    /// `org/name`, or `name` alone for the oldest models.
    id: String,
    revision: String,
}

impl Repo {
    fn parse(spec: &str, revision: Option<&str>) -> Result<Self> {
        let wrong = |reason| Error::Spec { spec: spec.to_owned(), reason };
        let (id, revision) = match spec.split_once('@') {
            Some((id, revision)) => (id, revision),
            None => (spec, revision.unwrap_or(DEFAULT_REVISION)),
        };
        let parts: Vec<&str> = id.split('/').collect();
        if parts.len() > 2 || parts.iter().any(|part| !is_name(part)) {
            return Err(wrong("a hub id is org/name of letters, digits, '.', '_' and '-'"));
        }
        let weights = ["safetensors", "bin", "pt", "pth", "npz", "json"];
        if Path::new(id).extension().is_some_and(|e| weights.iter().any(|w| e == *w)) {
            return Err(wrong("it ends like a file"));
        }
        if revision.is_empty() || !revision.split('/').all(is_name) {
            return Err(wrong("its revision is no branch, tag or commit"));
        }
        Ok(Self { id: id.to_owned(), revision: revision.to_owned() })
    }

    fn dir(&self, cache: &Path) -> PathBuf {
        cache.join(format!("models--{}", self.id.replace('/', "--")))
    }

    /// The complete snapshot of this revision, or why there is none.
    fn snapshot(&self, cache: &Path) -> std::result::Result<PathBuf, String> {
        let dir = self.dir(cache);
        if !dir.is_dir() {
            return Err("no such model there".into());
        }
        let commit = match fs::read_to_string(dir.join("refs").join(&self.revision)) {
            Ok(commit) => commit.trim().to_owned(),
            Err(_) => self.revision.clone(),
        };
        if !is_name(&commit) {
            return Err(format!("its reference to revision {} is damaged", self.revision));
        }
        let snapshot = dir.join("snapshots").join(commit);
        if !snapshot.is_dir() {
            return Err("other revisions are there, this one is not".into());
        }
        let weights = locate::weights(&snapshot).map_err(|e| e.to_string())?;
        match weights.files.iter().find(|file| !file.is_file()) {
            Some(missing) => Err(format!("{} is missing", missing.display())),
            None => Ok(snapshot),
        }
    }
}

/// Whether `text` may stand as one part of an id, a revision or a file name.
fn is_name(text: &str) -> bool {
    (1..=LONGEST_NAME).contains(&text.len())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || b"._-".contains(&b))
        && !text.starts_with(['.', '-'])
        && !text.contains("..")
}

/// The options completed by the environment.
struct Settings {
    cache: PathBuf,
    offline: bool,
    #[cfg(feature = "download")]
    endpoint: String,
    #[cfg(feature = "download")]
    token: Option<String>,
    /// A file of PEM certificates to trust instead of the usual ones.
    #[cfg(feature = "download")]
    certificates: Option<PathBuf>,
}

impl Settings {
    fn new(options: &HubOptions<'_>, env: impl Fn(&str) -> Option<String>) -> Result<Self> {
        let home = env("HF_HOME")
            .map(PathBuf::from)
            .or_else(|| Some(PathBuf::from(env("XDG_CACHE_HOME")?).join("huggingface")))
            .or_else(|| {
                let home = env("HOME").or_else(|| env("USERPROFILE"))?;
                Some(PathBuf::from(home).join(".cache/huggingface"))
            });
        let cache = options
            .cache_dir
            .clone()
            .or_else(|| env("HF_HUB_CACHE").map(PathBuf::from))
            .or_else(|| Some(home.as_ref()?.join("hub")))
            .ok_or(Error::NoCacheDir)?;
        let asked = env("HF_HUB_OFFLINE").map(|value| value.to_ascii_lowercase());
        let asked = asked.is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.as_str()));
        Ok(Self {
            cache,
            offline: options.offline || asked,
            #[cfg(feature = "download")]
            endpoint: env("HF_ENDPOINT")
                .unwrap_or_else(|| DEFAULT_ENDPOINT.to_owned())
                .trim_end_matches('/')
                .to_owned(),
            #[cfg(feature = "download")]
            token: env(options.token_env.as_deref().unwrap_or("HF_TOKEN"))
                .or_else(|| fs::read_to_string(home?.join("token")).ok())
                .map(|token| token.trim().to_owned())
                .filter(|token| !token.is_empty()),
            #[cfg(feature = "download")]
            certificates: env("SSL_CERT_FILE").map(PathBuf::from),
        })
    }
}
