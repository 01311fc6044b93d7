use std::io::ErrorKind;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use ureq::http::HeaderMap;
use ureq::{Agent, Body, Error, Timeout};

use super::url::Url;
use super::{HubConfig, HubError};

const CONNECT_TIMEOUT: Duration = Duration::from_secs(15);
const MAX_REDIRECTS: usize = 10;
/// Longest pause that a hub may ask for.
const MAX_PAUSE: Duration = Duration::from_secs(30);

/// Asks the hub and follows it to other hosts, which do not get the token.
pub(super) struct Client<'a> {
    config: &'a HubConfig,
    agent: Agent,
}

/// Why there is no answer to work with.
pub(super) enum Trouble {
    /// The network failed; `passing` tells whether it may work when asked again at once.
    Network { reason: String, passing: bool },
    /// The answer makes no sense.
    Answer(String),
}

/// The answer that is no redirect.
pub(super) struct Answer {
    /// Who gave it.
    pub url: Url,
    /// Its status.
    pub status: u16,
    /// Headers of all answers on the way to it, from the hub's own to the last.
    headers: Vec<HeaderMap>,
    body: Body,
}

impl<'a> Client<'a> {
    pub fn new(config: &'a HubConfig) -> Result<Self, HubError> {
        if !config.token.as_deref().unwrap_or("").bytes().all(|b| b.is_ascii_graphic()) {
            return Err(HubError::Variable {
                name: "HF_TOKEN",
                expected: "an access token of letters, digits and signs",
                found: "other characters".into(),
            });
        }
        let agent = Agent::config_builder()
            .user_agent(concat!("ocelli/", env!("CARGO_PKG_VERSION")))
            .accept_encoding("identity")
            .http_status_as_error(false)
            .max_redirects(0)
            .max_redirects_will_error(false)
            .timeout_resolve(Some(CONNECT_TIMEOUT))
            .timeout_connect(Some(CONNECT_TIMEOUT))
            .timeout_recv_response(Some(config.stall_timeout))
            .timeout_per_read(Some(config.stall_timeout))
            .timeout_per_write(Some(config.stall_timeout))
            .build()
            .into();
        Ok(Self { config, agent })
    }

    /// Gets `url`, or the `range` of its bytes.
    pub fn get(&self, mut url: Url, range: Option<&str>) -> Result<Answer, Trouble> {
        let mut headers = Vec::new();
        for _ in 0..=MAX_REDIRECTS {
            let mut request = self.agent.get(url.request());
            if let Some(authorization) = self.authorization(&url) {
                request = request.header("Authorization", authorization);
            }
            if let Some(range) = range {
                request = request.header("Range", range);
            }
            let (head, body) = request.call().map_err(|error| self.trouble(&url, &error))?.into_parts();
            let status = head.status.as_u16();
            headers.push(head.headers);
            if !matches!(status, 301 | 302 | 303 | 307 | 308) {
                return Ok(Answer { url, status, headers, body });
            }
            let location = headers.last().and_then(|headers| headers.get("location"));
            let strange = |what: &str| Trouble::Answer(format!("{url}: HTTP {status}: {what}"));
            let location = location.ok_or_else(|| strange("a redirect without Location"))?;
            url = url.join(location.as_bytes()).map_err(|reason| strange(&format!("Location: {reason}")))?;
        }
        Err(Trouble::Answer(format!("{url}: more than {MAX_REDIRECTS} redirects")))
    }

    /// What proves to the host of `url` who asks: the token is for the endpoint alone.
    fn authorization(&self, url: &Url) -> Option<String> {
        let ours = Some(&self.config.endpoint).filter(|endpoint| endpoint.is_origin_of(url));
        if let Some(login) = url.login().or_else(|| ours?.login()) {
            return Some(format!("Basic {}", BASE64_STANDARD.encode(login)));
        }
        ours?;
        Some(format!("Bearer {}", self.config.token.as_ref()?))
    }

    fn trouble(&self, url: &Url, error: &Error) -> Trouble {
        let reason = match error {
            Error::Timeout(Timeout::RecvResponse | Timeout::PerRead | Timeout::PerWrite) => self.silence(),
            Error::Timeout(_) => format!("no connection within {} s", CONNECT_TIMEOUT.as_secs()),
            Error::BadUri(_) => "not a valid address".into(),
            error => error.to_string().replace('\n', " "),
        };
        let passing = match error {
            Error::Io(error) => !matches!(
                error.kind(),
                ErrorKind::ConnectionRefused
                    | ErrorKind::HostUnreachable
                    | ErrorKind::NetworkUnreachable
                    | ErrorKind::AddrNotAvailable
            ),
            Error::Protocol(_) => true,
            _ => false,
        };
        Trouble::Network { reason: format!("{}: {reason}", url.origin()), passing }
    }

    /// What is said of a body that broke off.
    pub fn broken(&self, url: &Url, error: std::io::Error) -> Trouble {
        self.trouble(url, &Error::from(error))
    }

    fn silence(&self) -> String {
        format!("nothing received for {} s", self.config.stall_timeout.as_secs_f32())
    }
}

impl Answer {
    /// A header of the last answer.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.last()?.get(name)?.to_str().ok().map(str::trim)
    }

    /// A header of the first answer that has it.
    pub fn first(&self, name: &str) -> Option<&str> {
        self.headers.iter().find_map(|headers| headers.get(name))?.to_str().ok().map(str::trim)
    }

    /// First byte of the body in the file and length of the file, by `Content-Range`.
    pub fn range(&self) -> Option<(Option<u64>, Option<u64>)> {
        let range = self.header("content-range")?.strip_prefix("bytes")?.trim_start();
        let (bytes, total) = range.split_once('/')?;
        let start = bytes.split_once('-').and_then(|(start, _)| start.trim().parse().ok());
        Some((start, total.trim().parse().ok()))
    }

    /// Length of the body, where it is stated.
    pub fn length(&self) -> Option<u64> {
        self.header("content-length")?.parse().ok()
    }

    /// Whether the end of the body can be told from a broken connection.
    pub fn ends(&self) -> bool {
        self.length().is_some()
            || self.header("transfer-encoding").is_some_and(|v| v.to_ascii_lowercase().contains("chunked"))
    }

    /// How long the hub asks to wait.
    pub fn pause(&self) -> Option<Duration> {
        let seconds = self.header("retry-after")?.parse().ok()?;
        Some(Duration::from_secs(seconds).min(MAX_PAUSE))
    }

    pub fn into_reader(self) -> impl std::io::Read {
        self.body.into_reader()
    }
}
