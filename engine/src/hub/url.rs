use std::fmt;

use super::HubError;

/// Address of a hub: `http://` or `https://`, host, port and the path under which it answers.
///
/// A user and password in it are used for requests to this host and never shown.
#[derive(Clone, PartialEq, Eq)]
pub struct Endpoint(Url);

impl Endpoint {
    /// Reads an address such as `https://huggingface.co`.
    ///
    /// # Errors
    /// When it is no address of HTTP; the error shows it without user and password.
    pub fn parse(text: &str) -> Result<Self, HubError> {
        let bad = || HubError::Variable {
            name: "HF_ENDPOINT",
            expected: "an address that begins with https:// or http://",
            found: without_login(text),
        };
        let mut url = Url::parse(text.trim().as_bytes()).map_err(|_| bad())?;
        if url.target.contains('?') {
            return Err(bad());
        }
        url.target.truncate(url.target.trim_end_matches('/').len());
        Ok(Self(url))
    }

    /// The address of `path`, which begins with a slash, at this hub.
    pub(super) fn at(&self, path: &str) -> Url {
        Url { target: format!("{}{path}", self.0.target), ..self.0.clone() }
    }

    pub(super) fn login(&self) -> Option<&[u8]> {
        self.0.login()
    }

    /// Whether an address has this scheme, host and port.
    pub(super) fn is_origin_of(&self, url: &Url) -> bool {
        (self.0.https, &self.0.host, self.0.port) == (url.https, &url.host, url.port)
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

impl fmt::Debug for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "\"{self}\"")
    }
}

/// An address of HTTP. Shown without user, password and query, which may be secrets.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct Url {
    https: bool,
    /// In small letters.
    host: String,
    port: u16,
    /// Path and query.
    target: String,
    /// User and password as `user:password`.
    login: Option<Vec<u8>>,
}

impl Url {
    fn parse(text: &[u8]) -> Result<Self, &'static str> {
        let text = visible(text);
        let (scheme, rest) = text.split_once("://").ok_or("expected http:// or https://")?;
        let https = match scheme.to_ascii_lowercase().as_str() {
            "https" => true,
            "http" => false,
            _ => return Err("expected http:// or https://"),
        };
        let (authority, target) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
        let (login, place) = match authority.rsplit_once('@') {
            Some((login, place)) => (Some(decoded(login)), place),
            None => (None, authority),
        };
        let colon = place.rfind(':').filter(|&at| !place[at..].contains(']'));
        let (host, port) = colon.map_or((place, ""), |at| (&place[..at], &place[at + 1..]));
        let port = match port {
            "" => {
                if https {
                    443
                } else {
                    80
                }
            }
            port if port.bytes().all(|b| b.is_ascii_digit()) => {
                port.parse().map_err(|_| "expected a port")?
            }
            _ => return Err("expected a port"),
        };
        let name = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        let valid = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
            Some(v6) => v6.parse::<std::net::Ipv6Addr>().is_ok(),
            None => !host.is_empty() && host.bytes().all(name),
        };
        if !valid {
            return Err("expected a host");
        }
        Ok(Self { https, host: host.to_ascii_lowercase(), port, target: normal(target), login })
    }

    /// The address that a `Location` at this address means.
    pub fn join(&self, location: &[u8]) -> Result<Self, &'static str> {
        let text = visible(location.trim_ascii());
        let scheme = text.find(':').map_or("", |colon| &text[..colon]);
        if scheme.starts_with(|c: char| c.is_ascii_alphabetic())
            && scheme.bytes().all(|b| b.is_ascii_alphanumeric() || b"+-.".contains(&b))
        {
            return Self::parse(text.as_bytes());
        }
        if text.starts_with("//") {
            return Self::parse(format!("{}:{text}", self.scheme()).as_bytes());
        }
        let path = self.target.split('?').next().unwrap_or("/");
        let target = match text.chars().next() {
            None => return Err("expected an address, found nothing"),
            Some('/') => text,
            Some('#') => self.target.clone(),
            Some('?') => format!("{path}{text}"),
            Some(_) => format!("{}{text}", &path[..=path.rfind('/').unwrap_or(0)]),
        };
        Ok(Self { target: normal(&target), ..self.clone() })
    }

    /// The address without user and password, as a request takes it.
    pub fn request(&self) -> String {
        format!("{}{}", self.origin(), self.target)
    }

    pub fn login(&self) -> Option<&[u8]> {
        self.login.as_deref()
    }

    /// Scheme, host and port.
    pub fn origin(&self) -> String {
        let port = match (self.https, self.port) {
            (true, 443) | (false, 80) => String::new(),
            (_, port) => format!(":{port}"),
        };
        format!("{}://{}{port}", self.scheme(), self.host)
    }

    const fn scheme(&self) -> &'static str {
        if self.https { "https" } else { "http" }
    }
}

impl fmt::Display for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}", self.origin(), self.target.split('?').next().unwrap_or(""))
    }
}

impl fmt::Debug for Url {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A text that is no address, without what may be a user and password in it.
fn without_login(text: &str) -> String {
    let start = text.find("://").map_or(0, |at| at + 3);
    match text[start..].rfind('@') {
        Some(at) => format!("{}***{}", &text[..start], &text[start + at..]),
        None => text.to_owned(),
    }
}

/// With escapes for the bytes that an address cannot have.
fn visible(text: &[u8]) -> String {
    let mut out = String::with_capacity(text.len());
    for &byte in text {
        match byte {
            b'"' | b'<' | b'>' | b'\\' | b'^' | b'`' | b'{' | b'|' | b'}' => out += &format!("%{byte:02X}"),
            0x21..=0x7e => out.push(char::from(byte)),
            _ => out += &format!("%{byte:02X}"),
        }
    }
    out
}

/// Without escapes.
fn decoded(text: &str) -> Vec<u8> {
    let hex = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).ok()?, 16).ok();
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((&first, tail)) = rest.split_first() {
        match (first, tail.get(..2).filter(|pair| pair.iter().all(u8::is_ascii_hexdigit)).and_then(hex)) {
            (b'%', Some(byte)) => {
                out.push(byte);
                rest = &tail[2..];
            }
            _ => {
                out.push(first);
                rest = tail;
            }
        }
    }
    out
}

/// Path and query without fragment and without `.` and `..`; the path begins with a slash.
fn normal(target: &str) -> String {
    let target = target.split('#').next().unwrap_or("");
    let (path, query) = target.split_at(target.find('?').unwrap_or(target.len()));
    let mut parts: Vec<&str> = Vec::new();
    let mut folder = true;
    for part in path.strip_prefix('/').unwrap_or(path).split('/') {
        folder = matches!(part, "." | "..");
        match part {
            "." => {}
            ".." => drop(parts.pop()),
            part => parts.push(part),
        }
    }
    let slash = if folder && !parts.is_empty() { "/" } else { "" };
    format!("/{}{slash}{query}", parts.join("/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn url(text: &str) -> Url {
        Url::parse(text.as_bytes()).unwrap_or_else(|error| panic!("{text}: {error}"))
    }

    #[test]
    fn addresses() {
        for (text, request) in [
            ("https://Hub.Example", "https://hub.example/"),
            ("HTTP://h:80/a//b?c=d&e=%20#f", "http://h/a//b?c=d&e=%20"),
            ("https://h:80", "https://h:80/"),
            ("http://[::1]:8080/x", "http://[::1]:8080/x"),
            ("http://[::1]", "http://[::1]/"),
            ("http://h?q", "http://h/?q"),
            ("http://h/a b/\u{e9}|", "http://h/a%20b/%C3%A9%7C"),
            ("http://u:p@h:/x", "http://h/x"),
            ("http://h/a/./b/../c/..", "http://h/a/"),
        ] {
            assert_eq!(url(text).request(), request);
        }
        for bad in [
            "",
            "h",
            "h/a",
            "ftp://h",
            "http://",
            "http:///a",
            "http://h:x",
            "http://h:70000",
            "http://a b",
            "http://u@",
            "http://[::1",
            "http://[x]",
            "mailto:a@b",
            "http://h:80:90",
        ] {
            assert!(Url::parse(bad.as_bytes()).is_err(), "{bad}");
        }
        assert_eq!(url("http://u:p%40%3a%2@h").login(), Some(&b"u:p@:%2"[..]));
        // What stands before the last @ is no host.
        for text in ["http://hub.example@evil/", "http://hub.example\\@evil/", "http://hub.example:80@evil"] {
            assert_eq!(url(text).origin(), "http://evil");
        }
    }

    #[test]
    fn locations() {
        let base = url("https://u:p@h:1/a/b/c?q=1");
        for (location, expected) in [
            ("http://x/y", "http://x/y"),
            ("HTTPS://H:1/y", "https://h:1/y"),
            ("//x/y?z", "https://x/y?z"),
            ("/y?z=http://w/", "https://h:1/y?z=http://w/"),
            ("y", "https://h:1/a/b/y"),
            ("./y/", "https://h:1/a/b/y/"),
            ("../y:z", "https://h:1/a/y:z"),
            ("../../../../y", "https://h:1/y"),
            ("?r", "https://h:1/a/b/c?r"),
            ("#f", "https://h:1/a/b/c?q=1"),
            (" /y ", "https://h:1/y"),
        ] {
            assert_eq!(base.join(location.as_bytes()).unwrap().request(), expected, "{location}");
        }
        assert_eq!(base.join(b"/\xe9").unwrap().request(), "https://h:1/%E9");
        for bad in ["", "ftp://h/x", "javascript:x", "http:x", "//", "https://"] {
            assert!(base.join(bad.as_bytes()).is_err(), "{bad}");
        }
    }

    #[test]
    fn only_the_same_scheme_host_and_port_is_the_endpoint() {
        let endpoint = Endpoint::parse("https://hub.example/prefix/").unwrap();
        assert_eq!(endpoint.at("/api").request(), "https://hub.example/prefix/api");
        for (other, same) in [
            ("https://HUB.example:443/x", true),
            ("http://hub.example/x", false),
            ("https://hub.example:444/x", false),
            ("https://cdn.hub.example/x", false),
            ("https://hub.example.evil/x", false),
            ("https://hub.example@evil/x", false),
        ] {
            assert_eq!(endpoint.is_origin_of(&url(other)), same, "{other}");
        }
    }

    #[test]
    fn secrets_are_not_shown() {
        let endpoint = Endpoint::parse("http://user:pass@h:1/p").unwrap();
        assert_eq!(format!("{endpoint} {endpoint:?}"), "http://h:1/p \"http://h:1/p\"");
        assert_eq!(url("http://user:pass@h/p?sig=secret").to_string(), "http://h/p");
        for (bad, shown) in [
            ("user:pass@h", "***@h"),
            ("ftp://user:p@ss@h/x", "ftp://***@h/x"),
            ("http://user:pa/ss@h", "http://***@h"),
            ("http://h?x", "http://h?x"),
            ("hub.example", "hub.example"),
        ] {
            let error = Endpoint::parse(bad).unwrap_err().to_string();
            assert!(error.ends_with(&format!("found {shown:?}")), "{error}");
        }
    }
}
