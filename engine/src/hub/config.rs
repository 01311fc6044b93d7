use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use super::{Endpoint, HubError};

/// Where the hub and its cache are, and how to reach them.
#[derive(Clone)]
pub struct HubConfig {
    /// Root of the hub's addresses.
    pub endpoint: Endpoint,
    /// The directory that holds `models--OWNER--NAME`.
    pub cache: PathBuf,
    /// Access token, sent to the endpoint and to no other host.
    pub token: Option<String>,
    /// Use the cache alone.
    pub offline: bool,
    /// How often a broken request is tried again without receiving a byte.
    pub retries: u32,
    /// Pause before the first retry; each further one waits twice as long.
    pub retry_delay: Duration,
    /// How long a connection may stand still before it counts as broken.
    pub stall_timeout: Duration,
}

impl fmt::Debug for HubConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HubConfig")
            .field("endpoint", &self.endpoint)
            .field("cache", &self.cache)
            .field("token", &self.token.as_ref().map(|_| "set"))
            .field("offline", &self.offline)
            .finish_non_exhaustive()
    }
}

impl HubConfig {
    /// The configuration that the hub's own tools take from the environment:
    ///
    /// | variable | meaning |
    /// | --- | --- |
    /// | `HF_ENDPOINT` | address of the hub, `https://huggingface.co` unless set; may have a user and password |
    /// | `HF_HUB_CACHE` | cache directory, `$HF_HOME/hub` unless set |
    /// | `HF_HOME` | `$XDG_CACHE_HOME/huggingface` or `~/.cache/huggingface` unless set |
    /// | `HF_TOKEN` | access token, else the content of `HF_TOKEN_PATH` or `$HF_HOME/token` |
    /// | `HF_HUB_OFFLINE`, `TRANSFORMERS_OFFLINE` | `1`, `on`, `yes` or `true`: use the cache alone |
    ///
    /// # Errors
    /// When a variable has an unusable value, or no home directory is known.
    pub fn from_env() -> Result<Self, HubError> {
        Self::from_vars(|name| std::env::var(name).ok())
    }

    /// As [`HubConfig::from_env`], with the variables from elsewhere.
    ///
    /// # Errors
    /// As [`HubConfig::from_env`].
    pub fn from_vars(var: impl Fn(&str) -> Option<String>) -> Result<Self, HubError> {
        let var = |name: &str| var(name).filter(|value| !value.trim().is_empty());
        let user = var("HOME").or_else(|| var("USERPROFILE")).map(PathBuf::from);
        let expand = |text: String| match (text.strip_prefix("~/"), &user) {
            (Some(rest), Some(user)) => user.join(rest),
            _ => PathBuf::from(text),
        };
        let path = |name: &str| var(name).map(&expand);
        let home = path("HF_HOME")
            .or_else(|| path("XDG_CACHE_HOME").map(|cache| cache.join("huggingface")))
            .or_else(|| user.as_ref().map(|user| user.join(".cache/huggingface")));
        let cache = path("HF_HUB_CACHE")
            .or_else(|| path("HUGGINGFACE_HUB_CACHE"))
            .or_else(|| home.as_ref().map(|home| home.join("hub")))
            .ok_or(HubError::Variable {
                name: "HF_HOME",
                expected: "a directory, as there is no home directory",
                found: String::new(),
            })?;
        // Links inside the cache are relative to each other and need one common root.
        let cache = std::path::absolute(&cache).map_err(|source| HubError::Io { path: cache, source })?;
        let on = |name: &str| {
            var(name).is_some_and(|v| ["1", "on", "yes", "true"].contains(&v.trim().to_lowercase().as_str()))
        };
        let offline = on("HF_HUB_OFFLINE") || on("TRANSFORMERS_OFFLINE");
        // Offline nobody asks the endpoint.
        let endpoint = var("HF_ENDPOINT").filter(|_| !offline);
        let endpoint = Endpoint::parse(endpoint.as_deref().unwrap_or("https://huggingface.co"))?;
        let token = var("HF_TOKEN")
            .or_else(|| var("HUGGING_FACE_HUB_TOKEN"))
            .or_else(|| read_token(&path("HF_TOKEN_PATH").or_else(|| Some(home.as_ref()?.join("token")))?))
            .map(|token| token.trim().to_owned());
        Ok(Self {
            endpoint,
            cache,
            token,
            offline,
            retries: 5,
            retry_delay: Duration::from_millis(500),
            stall_timeout: Duration::from_secs(30),
        })
    }
}

fn read_token(path: &Path) -> Option<String> {
    std::fs::read_to_string(path).ok().filter(|token| !token.trim().is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config(vars: &[(&str, &str)]) -> Result<HubConfig, HubError> {
        HubConfig::from_vars(|name| vars.iter().find(|(n, _)| *n == name).map(|(_, v)| v.to_string()))
    }

    #[test]
    fn variables() {
        let c = config(&[("HOME", "/u")]).unwrap();
        assert_eq!(
            (c.endpoint.to_string().as_str(), c.offline, c.token),
            ("https://huggingface.co", false, None)
        );
        assert_eq!(c.cache, Path::new("/u/.cache/huggingface/hub"));
        let cache = |vars: &[(&str, &str)]| config(vars).unwrap().cache;
        assert_eq!(cache(&[("HOME", "/u"), ("XDG_CACHE_HOME", "/x")]), Path::new("/x/huggingface/hub"));
        assert_eq!(cache(&[("HOME", "/u"), ("HF_HOME", "~/hf")]), Path::new("/u/hf/hub"));
        assert_eq!(cache(&[("HF_HOME", "/hf"), ("HF_HUB_CACHE", "/c")]), Path::new("/c"));
        let c = config(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "http://localhost:1/"), ("HF_TOKEN", " t\n")])
            .unwrap();
        assert_eq!((c.endpoint.to_string().as_str(), c.token.as_deref()), ("http://localhost:1", Some("t")));
        assert!(!format!("{c:?}").contains("\"t\""), "the token is not printed");
        for (value, offline) in [("1", true), ("ON", true), ("True", true), ("0", false), ("", false)] {
            assert_eq!(config(&[("HF_HOME", "/hf"), ("HF_HUB_OFFLINE", value)]).unwrap().offline, offline);
        }
        let e = config(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "hub")]).unwrap_err().to_string();
        assert_eq!(e, "HF_ENDPOINT: expected an address that begins with https:// or http://, found \"hub\"");
        assert!(
            config(&[("HF_HOME", "/hf"), ("HF_ENDPOINT", "hub"), ("HF_HUB_OFFLINE", "1")]).unwrap().offline
        );
        let vars = [("HF_HOME", "/hf"), ("HF_ENDPOINT", "http://user:pass@hub")];
        let shown = format!("{:?}", config(&vars).unwrap());
        assert!(
            shown.contains("http://hub") && !shown.contains("user") && !shown.contains("pass"),
            "{shown}"
        );
        let vars = [("HF_HOME", "/hf"), ("HF_ENDPOINT", "user:pass@hub")];
        let e = config(&vars).unwrap_err().to_string();
        assert!(e.ends_with("found \"***@hub\""), "{e}");
        assert!(config(&[]).unwrap_err().to_string().starts_with("HF_HOME: expected a directory"));
    }
}
