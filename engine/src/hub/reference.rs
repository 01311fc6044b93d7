use std::fmt;
use std::path::{Path, PathBuf};

use super::{DownloadProgress, HubConfig, HubError, fetch};
use crate::files::dangling;

/// Which model is meant.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelRef {
    /// The model built into the binary.
    Demo,
    /// A directory that exists.
    Local(PathBuf),
    /// A model of the hub.
    Hub(HubId),
}

/// A model of the hub at a revision.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HubId {
    owner: String,
    name: String,
    revision: String,
}

impl ModelRef {
    /// Reads what `--model` was given: nothing is the demo model, a path that exists is that directory, and
    /// `OWNER/NAME[@REVISION]` is a model of the hub.
    ///
    /// # Errors
    /// When a path does not exist or is a file, and when the text is neither path nor hub id.
    pub fn parse(text: Option<&str>) -> Result<Self, HubError> {
        let Some(text) = text else { return Ok(Self::Demo) };
        let path = Path::new(text);
        if path.is_dir() {
            return Ok(Self::Local(path.to_owned()));
        }
        if path.exists() {
            return Err(HubError::NotADirectory(path.to_owned()));
        }
        if let Some(target) = dangling(path) {
            return Err(HubError::Dangling { path: path.to_owned(), target });
        }
        let slashes =
            text.matches('/').count() - text.rsplit_once('@').map_or(0, |(_, r)| r.matches('/').count());
        let like_a_path =
            text.starts_with(['/', '.', '~']) || text.ends_with('/') || text.contains('\\') || slashes > 1;
        if like_a_path {
            return Err(HubError::MissingPath(path.to_owned()));
        }
        HubId::parse(text).map(Self::Hub)
    }

    /// The directory of the model, downloaded if need be; `None` for the demo model. `config` is asked for the model of a
    /// hub alone.
    ///
    /// # Errors
    /// Those of `config`, and as [`fetch`].
    pub fn resolve(
        &self,
        config: impl FnOnce() -> Result<HubConfig, HubError>,
        progress: &mut dyn DownloadProgress,
    ) -> Result<Option<PathBuf>, HubError> {
        match self {
            Self::Demo => Ok(None),
            Self::Local(dir) => Ok(Some(dir.clone())),
            Self::Hub(id) => fetch(id, &config()?, progress).map(Some),
        }
    }
}

impl fmt::Display for ModelRef {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Demo => f.write_str("demo"),
            Self::Local(path) => path.display().fmt(f),
            Self::Hub(id) => id.fmt(f),
        }
    }
}

impl HubId {
    /// Reads `OWNER/NAME[@REVISION]`; the revision is `main` unless given.
    ///
    /// # Errors
    /// When a part is absent or has a character that the hub does not allow.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let bad = |reason: &str| HubError::Reference { text: text.into(), reason: reason.into() };
        let (id, revision) = text.split_once('@').unwrap_or((text, "main"));
        let (owner, name) =
            id.split_once('/').ok_or_else(|| bad("no such directory, and not OWNER/NAME[@REVISION]"))?;
        let plain = |part: &str| {
            !part.is_empty()
                && part.len() <= 96
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.".contains(&b))
                && !part.starts_with(['.', '-'])
                && !part.ends_with(['.', '-'])
                && !part.contains("..")
                && !part.contains("--")
        };
        if !plain(owner) || !plain(name) {
            return Err(bad("OWNER and NAME take letters, digits, `-`, `_` and `.`"));
        }
        let segment = |part: &str| {
            !part.is_empty()
                && part.bytes().all(|b| b.is_ascii_alphanumeric() || b"-_.+".contains(&b))
                && !part.starts_with('.')
                && !part.contains("..")
        };
        if revision.len() > 250 || !revision.split('/').all(segment) {
            return Err(bad("REVISION is a branch, a tag or a commit"));
        }
        Ok(Self { owner: owner.into(), name: name.into(), revision: revision.into() })
    }

    /// `OWNER/NAME`.
    pub fn repo(&self) -> String {
        format!("{}/{}", self.owner, self.name)
    }

    /// Branch, tag or commit; `main` unless given.
    pub fn revision(&self) -> &str {
        &self.revision
    }
}

impl fmt::Display for HubId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.owner, self.name)?;
        if self.revision != "main" {
            write!(f, "@{}", self.revision)?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids() {
        let id = HubId::parse("HuggingFaceTB/SmolVLM-256M-Instruct").unwrap();
        assert_eq!((id.repo().as_str(), id.revision()), ("HuggingFaceTB/SmolVLM-256M-Instruct", "main"));
        assert_eq!(id.to_string(), "HuggingFaceTB/SmolVLM-256M-Instruct");
        let id = HubId::parse("a/b.c_d@refs/pr/1").unwrap();
        assert_eq!((id.revision(), id.to_string().as_str()), ("refs/pr/1", "a/b.c_d@refs/pr/1"));
        let bad = [
            "a", "a/", "/b", "a/b/c", "a/../b", "a/b@", "a/b@../x", "a/b@/x", "a b/c", "a/.b", "a--b/c",
            "a/b@x@y", "é/b",
        ];
        for text in bad {
            assert!(matches!(HubId::parse(text), Err(HubError::Reference { .. })), "{text}");
        }
    }

    #[test]
    fn model_references() {
        assert_eq!(ModelRef::parse(None).unwrap(), ModelRef::Demo);
        let here = env!("CARGO_MANIFEST_DIR");
        assert_eq!(ModelRef::parse(Some(here)).unwrap(), ModelRef::Local(here.into()));
        assert!(matches!(ModelRef::parse(Some("owner/name")).unwrap(), ModelRef::Hub(_)));
        assert!(matches!(ModelRef::parse(Some("owner/name@refs/pr/2")).unwrap(), ModelRef::Hub(_)));
        for path in ["./nothing", "/nothing/here", "../nothing/x", "a/b/c", "nothing/", "~/nothing"] {
            let e = ModelRef::parse(Some(path)).unwrap_err();
            assert_eq!(e.to_string(), format!("model {path}: no such directory"));
            assert!(e.hint().unwrap().contains("OWNER/NAME"));
        }
        let e = ModelRef::parse(Some("nothing")).unwrap_err();
        assert_eq!(e.to_string(), "model \"nothing\": no such directory, and not OWNER/NAME[@REVISION]");
        let file = format!("{here}/Cargo.toml");
        let e = ModelRef::parse(Some(&file)).unwrap_err();
        assert!(matches!(e, HubError::NotADirectory(_)) && e.hint().unwrap().ends_with(here));
        assert!(ModelRef::parse(Some("")).is_err());
    }

    #[test]
    fn only_models_of_a_hub_need_its_configuration() {
        let bad = || HubConfig::from_vars(|_| None);
        let resolve = |text: Option<&str>| ModelRef::parse(text).unwrap().resolve(bad, &mut ());
        assert_eq!(resolve(None).unwrap(), None);
        let here = env!("CARGO_MANIFEST_DIR");
        assert_eq!(resolve(Some(here)).unwrap(), Some(here.into()));
        assert!(matches!(resolve(Some("owner/name")), Err(HubError::Variable { name: "HF_HOME", .. })));
    }

    #[cfg(unix)]
    #[test]
    fn a_link_to_nothing_is_no_hub_id() {
        let dir = std::env::temp_dir().join(format!("ocelli-reference-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let link = dir.join("model");
        std::os::unix::fs::symlink("gone", &link).unwrap();
        let e = ModelRef::parse(link.to_str()).unwrap_err();
        assert_eq!(e.to_string(), format!("model {}: a link to gone, which does not exist", link.display()));
        std::fs::remove_dir_all(&dir).unwrap();
    }
}
