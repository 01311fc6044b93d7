//! Pictures from other hosts: only from those that are allowed, wherever their names lead.

use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, ToSocketAddrs};
use std::sync::Arc;
use std::time::Duration;

use ureq::http::Uri;
use ureq::unversioned::resolver::{ResolvedSocketAddrs, Resolver};
use ureq::unversioned::transport::{DefaultConnector, NextTimeout};
use ureq::{Agent, config::Config};

/// Longest time of fetching a picture.
const TIME: Duration = Duration::from_secs(20);
const MAX_REDIRECTS: usize = 3;

/// Hosts and networks that pictures may be taken from.
///
/// A name stands for itself, `*.example.org` for all names below it, `*` for any host of the public internet. Addresses that are not
/// of the public internet are refused unless they lie in a network that is listed, such as `10.1.0.0/16`: names are resolved before
/// their addresses are compared, and the connection goes to the very addresses that were.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Allowed {
    names: Vec<String>,
    networks: Vec<(IpAddr, u8)>,
}

impl Allowed {
    /// Reads a list of hosts and networks.
    ///
    /// # Errors
    /// An entry that is neither.
    pub fn read(entries: &[String]) -> Result<Self, String> {
        let mut all = Self::default();
        for entry in entries {
            let wrong = || format!("expected a host, *.DOMAIN, * or a network, found `{entry}`");
            let (address, bits) = match entry.split_once('/') {
                Some((address, bits)) => (address, Some(bits)),
                None => (entry.as_str(), None),
            };
            let address = address.trim_start_matches('[').trim_end_matches(']');
            if let Ok(address) = address.parse::<IpAddr>() {
                let most = if address.is_ipv4() { 32 } else { 128 };
                let bits = bits.map_or(Ok(most), str::parse).map_err(|_| wrong())?;
                if bits > most {
                    return Err(wrong());
                }
                all.networks.push((address, bits));
                continue;
            }
            let name = entry.strip_prefix("*.").unwrap_or(entry);
            let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
            if entry != "*" && (name.is_empty() || !name.chars().all(fits)) {
                return Err(wrong());
            }
            all.names.push(entry.to_ascii_lowercase());
        }
        Ok(all)
    }

    /// Whether nothing is allowed.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.names.is_empty() && self.networks.is_empty()
    }

    /// Whether a host may be asked, by its name; its addresses are another question.
    fn names(&self, host: &str) -> bool {
        let host = host.trim_end_matches('.').to_ascii_lowercase();
        if let Ok(address) = host.trim_matches(['[', ']']).parse::<IpAddr>() {
            return self.lists(address) || (self.names.iter().any(|name| name == "*") && is_public(address));
        }
        self.names.iter().any(|name| match name.strip_prefix('*') {
            Some("") => true,
            Some(end) => host.ends_with(end) && host.len() > end.len(),
            None => *name == host,
        })
    }

    /// Whether an address lies in a network that is listed.
    fn lists(&self, address: IpAddr) -> bool {
        let address = plain(address);
        self.networks.iter().any(|&(network, bits)| match (plain(network), address) {
            (IpAddr::V4(network), IpAddr::V4(address)) => {
                same(u128::from(network.to_bits()), u128::from(address.to_bits()), 32, bits)
            }
            (IpAddr::V6(network), IpAddr::V6(address)) => {
                same(network.to_bits(), address.to_bits(), 128, bits)
            }
            _ => false,
        })
    }

    fn reaches(&self, address: IpAddr) -> bool {
        is_public(address) || self.lists(address)
    }
}

/// Whether the first `bits` of numbers of `width` bits are the same.
fn same(a: u128, b: u128, width: u32, bits: u8) -> bool {
    (a ^ b).checked_shr(width.saturating_sub(u32::from(bits))).unwrap_or(0) == 0
}

/// IPv4 addresses that are written as IPv6.
fn plain(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// Whether an address is one of the public internet.
fn is_public(address: IpAddr) -> bool {
    match plain(address) {
        IpAddr::V4(v4) => is_public_v4(v4),
        IpAddr::V6(v6) => is_public_v6(v6),
    }
}

fn is_public_v4(address: Ipv4Addr) -> bool {
    let [a, b, c, _] = address.octets();
    !(a == 0
        || address.is_private()
        || address.is_loopback()
        || address.is_link_local()
        || address.is_documentation()
        || (a == 100 && (64..128).contains(&b))
        || (a == 192 && b == 0 && c == 0)
        || (a == 192 && b == 88 && c == 99)
        || (a == 198 && (b == 18 || b == 19))
        || a >= 224)
}

fn is_public_v6(address: Ipv6Addr) -> bool {
    let parts = address.segments();
    // Global unicast, without what carries an IPv4 address that would have to be looked into, and without examples.
    parts[0] & 0xe000 == 0x2000
        && parts[0] != 0x2002
        && !(parts[0] == 0x2001 && (parts[1] < 0x200 || parts[1] == 0xdb8))
        && parts[0] != 0x3fff
}

/// Whether an address is one of another host.
pub(crate) fn is_remote(address: &str) -> bool {
    let scheme = address.split_once("://").map(|(scheme, _)| scheme.to_ascii_lowercase());
    matches!(scheme.as_deref(), Some("http" | "https"))
}

/// Resolves names to addresses that may be reached.
#[derive(Debug)]
struct Careful(Arc<Allowed>);

impl Resolver for Careful {
    fn resolve(&self, uri: &Uri, _: &Config, _: NextTimeout) -> Result<ResolvedSocketAddrs, ureq::Error> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("https") { 443 } else { 80 });
        let mut found = self.empty();
        let mut any = false;
        for address in (host, port).to_socket_addrs().map_err(ureq::Error::Io)? {
            any = true;
            if self.0.reaches(address.ip()) && found.len() < 16 {
                found.push(address);
            }
        }
        match (any, found.is_empty()) {
            (false, _) => Err(ureq::Error::HostNotFound),
            (true, true) => Err(ureq::Error::Io(std::io::Error::new(
                std::io::ErrorKind::PermissionDenied,
                "the host's address is not of the public internet, and not allowed",
            ))),
            (true, false) => Ok(found),
        }
    }
}

/// Fetches a picture of at most `limit` bytes.
pub(crate) fn fetch(allowed: &Allowed, address: &str, limit: usize) -> Result<Vec<u8>, String> {
    if allowed.is_empty() {
        return Err("expected a data: address, found one of another host; those are fetched where the server was started with --allow-remote-images".into());
    }
    let config = Agent::config_builder()
        .user_agent(concat!("ocelli/", env!("CARGO_PKG_VERSION")))
        .http_status_as_error(false)
        .max_redirects(0)
        .max_redirects_will_error(false)
        // A proxy would resolve names by itself.
        .proxy(None)
        .timeout_global(Some(TIME))
        .build();
    let agent = Agent::with_parts(config, DefaultConnector::default(), Careful(Arc::new(allowed.clone())));
    let mut at: Uri = address.parse().map_err(|_| "not a valid address".to_owned())?;
    for _ in 0..=MAX_REDIRECTS {
        let host = at.host().unwrap_or_default().to_owned();
        let shown: String = host.chars().take(100).collect();
        if !matches!(at.scheme_str(), Some("http" | "https")) || !allowed.names(&host) {
            return Err(format!("the server may fetch nothing from `{shown}`"));
        }
        let answer = agent.get(at.clone()).call().map_err(|error| format!("`{shown}`: {error}"))?;
        let status = answer.status().as_u16();
        if matches!(status, 301 | 302 | 303 | 307 | 308) {
            let location = answer.headers().get("location").and_then(|location| location.to_str().ok());
            at = location
                .and_then(|location| joined(&at, location))
                .ok_or_else(|| format!("`{shown}`: a redirect to nowhere"))?;
            continue;
        }
        if status != 200 {
            return Err(format!("`{shown}`: HTTP {status}"));
        }
        let mut bytes = Vec::new();
        answer
            .into_body()
            .into_reader()
            .take(limit as u64 + 1)
            .read_to_end(&mut bytes)
            .map_err(|error| format!("`{shown}`: {error}"))?;
        return match bytes.len() > limit {
            true => Err(format!("`{shown}`: expected at most {limit} bytes, found more")),
            false => Ok(bytes),
        };
    }
    Err(format!("more than {MAX_REDIRECTS} redirects"))
}

/// Where a redirect leads: a whole address, or a path on the same host.
fn joined(from: &Uri, location: &str) -> Option<Uri> {
    if location.starts_with('/') && !location.starts_with("//") {
        return format!("{}://{}{location}", from.scheme_str()?, from.authority()?).parse().ok();
    }
    location.parse::<Uri>().ok().filter(|uri| uri.host().is_some())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allowed(entries: &[&str]) -> Allowed {
        Allowed::read(&entries.iter().map(|&entry| entry.to_owned()).collect::<Vec<_>>()).unwrap()
    }

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    #[test]
    fn names_are_listed() {
        let list = allowed(&["a.example", "*.b.example", "10.1.0.0/16", "::1"]);
        for (host, expected) in [
            ("a.example", true),
            ("A.Example.", true),
            ("x.a.example", false),
            ("x.b.example", true),
            ("b.example", false),
            ("xb.example", false),
            ("10.1.2.3", true),
            ("10.2.2.3", false),
            ("[::1]", true),
            ("8.8.8.8", false),
        ] {
            assert_eq!(list.names(host), expected, "{host}");
        }
        let any = allowed(&["*"]);
        assert!(any.names("x.example") && any.names("8.8.8.8") && !any.names("127.0.0.1"));
        for wrong in ["", "a b", "10.0.0.0/33", "*.", "http://x"] {
            assert!(Allowed::read(&[wrong.to_owned()]).is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_that_are_not_public_are_listed_or_refused() {
        let list = allowed(&["*", "10.1.0.0/16", "fd00::/8"]);
        for (address, expected) in [
            ("8.8.8.8", true),
            ("10.1.2.3", true),
            ("::ffff:10.1.2.3", true),
            ("10.2.2.3", false),
            ("127.0.0.1", false),
            ("::ffff:127.0.0.1", false),
            ("169.254.169.254", false),
            ("100.64.0.1", false),
            ("0.0.0.0", false),
            ("192.168.1.1", false),
            ("172.16.0.1", false),
            ("224.0.0.1", false),
            ("255.255.255.255", false),
            ("::1", false),
            ("::", false),
            ("fe80::1", false),
            ("fd12::1", true),
            ("fc00::1", false),
            ("64:ff9b::7f00:1", false),
            ("2002:7f00:1::", false),
            ("2606:4700::1111", true),
        ] {
            assert_eq!(list.reaches(ip(address)), expected, "{address}");
        }
    }

    #[test]
    fn redirects() {
        let from: Uri = "https://a.example/x/y".parse().unwrap();
        assert_eq!(joined(&from, "/z").unwrap().to_string(), "https://a.example/z");
        assert_eq!(joined(&from, "http://127.0.0.1/z").unwrap().host(), Some("127.0.0.1"));
        assert!(joined(&from, "//evil").is_none() || joined(&from, "//evil").unwrap().scheme().is_none());
    }
}
