//! Who a request comes from, as [Trace Context](https://www.w3.org/TR/trace-context/) tells it: `traceparent` and `tracestate`.

use axum::http::HeaderMap;

/// Characters of a header of version 00.
const LENGTH: usize = 55;

/// Most members of a `tracestate`.
const MEMBERS: usize = 32;

/// Longest key or value of a member.
const LONGEST: usize = 256;

/// The span that a request was sent from.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Caller {
    /// Its trace; not all zeros.
    pub trace: [u8; 16],
    /// Its own id; not all zeros.
    pub span: [u8; 8],
    /// Whether the sender records it.
    pub sampled: bool,
    /// Keys and values of tracing systems, in the sender's order; empty where there are none, or not as they have to be.
    pub state: Vec<(String, String)>,
}

impl Caller {
    /// The caller that headers tell; `None` where they tell of none, of several, or not in the form that they have to have.
    #[must_use]
    pub fn of(headers: &HeaderMap) -> Option<Self> {
        let mut parents = headers.get_all("traceparent").iter();
        let (Some(parent), None) = (parents.next(), parents.next()) else { return None };
        let (trace, span, sampled) = parent.to_str().ok().and_then(parsed)?;
        let states: Option<Vec<&str>> =
            headers.get_all("tracestate").iter().map(|state| state.to_str().ok()).collect();
        let state = states.and_then(|states| members(&states)).unwrap_or_default();
        Some(Self { trace, span, sampled, state })
    }
}

/// Trace, span and the flag of a sampled one of `00-TRACE-SPAN-FLAGS`. What follows in a later version is left.
fn parsed(parent: &str) -> Option<([u8; 16], [u8; 8], bool)> {
    let (known, rest) = parent.split_at_checked(LENGTH)?;
    let mut fields = known.split('-');
    let [version] = hex(fields.next()?)?;
    let (trace, span) = (hex(fields.next()?)?, hex(fields.next()?)?);
    let [flags] = hex(fields.next()?)?;
    let ends = if version == 0 { rest.is_empty() } else { rest.is_empty() || rest.starts_with('-') };
    let valid = version != u8::MAX && ends && trace != [0; 16] && span != [0; 8];
    (valid && fields.next().is_none()).then_some((trace, span, flags & 1 == 1))
}

/// Bytes of so many pairs of lower-case digits.
fn hex<const N: usize>(text: &str) -> Option<[u8; N]> {
    let digit = |digit: u8| match digit {
        b'0'..=b'9' => Some(digit - b'0'),
        b'a'..=b'f' => Some(digit - b'a' + 10),
        _ => None,
    };
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    let mut bytes = [0; N];
    if pairs.len() != N || !rest.is_empty() {
        return None;
    }
    for (byte, [high, low]) in bytes.iter_mut().zip(pairs) {
        *byte = digit(*high)? << 4 | digit(*low)?;
    }
    Some(bytes)
}

/// The members of all headers, in order; `None` where one is not as it has to be, or they are too many.
fn members(states: &[&str]) -> Option<Vec<(String, String)>> {
    let mut all = Vec::new();
    for member in states.iter().flat_map(|state| state.split(',')) {
        // Members may be empty, and have space around them.
        let member = member.trim_matches([' ', '\t']);
        if member.is_empty() {
            continue;
        }
        let (key, value) = member.split_once('=')?;
        if all.len() == MEMBERS || !is_key(key) || !is_value(value) {
            return None;
        }
        all.push((key.to_owned(), value.to_owned()));
    }
    Some(all)
}

/// `vendor`, or `tenant@vendor`.
fn is_key(key: &str) -> bool {
    let rest = |byte: u8| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'*' | b'/');
    let part = |part: &str, first: fn(&u8) -> bool, longest: usize| {
        part.len() <= longest && part.as_bytes().first().is_some_and(first) && part.bytes().all(rest)
    };
    match key.split_once('@') {
        None => part(key, u8::is_ascii_lowercase, LONGEST),
        Some((tenant, vendor)) => {
            part(tenant, |byte| byte.is_ascii_lowercase() || byte.is_ascii_digit(), 241)
                && part(vendor, u8::is_ascii_lowercase, 14)
        }
    }
}

/// Printable characters but for `,` and `=`.
fn is_value(value: &str) -> bool {
    let printable = |byte: u8| matches!(byte, b' '..=b'~') && byte != b'=';
    !value.is_empty() && value.len() <= LONGEST && value.bytes().all(printable)
}

#[cfg(test)]
mod tests {
    use axum::http::{HeaderName, HeaderValue};

    use super::*;

    const PARENT: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";

    fn of(headers: &[(&'static str, &str)]) -> Option<Caller> {
        let mut all = HeaderMap::new();
        for (name, value) in headers {
            all.append(HeaderName::from_static(name), HeaderValue::from_str(value).unwrap());
        }
        Caller::of(&all)
    }

    fn state(states: &[&str]) -> Vec<(String, String)> {
        let headers: Vec<_> = states.iter().map(|state| ("tracestate", *state)).collect();
        of(&[&[("traceparent", PARENT)], &*headers].concat()).expect("a caller").state
    }

    #[test]
    fn callers_are_told() {
        let caller = of(&[("traceparent", PARENT)]).expect("a caller");
        assert_eq!(caller.trace, 0x0af7_6519_16cd_43dd_8448_eb21_1c80_319c_u128.to_be_bytes());
        assert_eq!(caller.span, 0xb7ad_6b71_6920_3331_u64.to_be_bytes());
        assert!(caller.sampled && caller.state.is_empty());
        let sampled = |flags: &str| {
            of(&[("traceparent", &format!("{}{flags}", &PARENT[..53]))]).map(|caller| caller.sampled)
        };
        let expected =
            [("00", Some(false)), ("03", Some(true)), ("fe", Some(false)), ("0", None), ("0A", None)];
        assert_eq!(expected.map(|(flags, _)| (flags, sampled(flags))), expected);
        // Later versions are read as far as this one goes.
        for later in ["cc", "cc-what-comes-then", "01-"] {
            let (version, rest) = later.split_at(2);
            let parent = format!("{version}{}{rest}", &PARENT[2..]);
            assert_eq!(of(&[("traceparent", &parent)]), Some(caller.clone()), "{parent}");
        }
    }

    #[test]
    fn what_tells_of_none_is_left() {
        let zeros = "0".repeat(32);
        let wrong = [
            String::new(),
            format!("{PARENT}-"),
            format!("{PARENT}-00"),
            format!("{PARENT}0"),
            format!("cc{}.x", &PARENT[2..]),
            format!("ff{}", &PARENT[2..]),
            format!("0{}", &PARENT[1..54]),
            PARENT.to_uppercase(),
            PARENT.replace('a', "g"),
            PARENT.replace('-', "_"),
            PARENT.replacen("0af7651916cd43dd8448eb211c80319c", &zeros, 1),
            PARENT.replacen("b7ad6b7169203331", &zeros[..16], 1),
            PARENT.replacen("0af7", "0af-", 1),
            format!(" {PARENT}"),
        ];
        for wrong in wrong {
            assert_eq!(of(&[("traceparent", &wrong), ("tracestate", "a=1")]), None, "{wrong}");
        }
        assert_eq!(of(&[("traceparent", PARENT), ("traceparent", PARENT)]), None);
        assert_eq!(of(&[("tracestate", "a=1")]), None);
    }

    #[test]
    fn states_are_whole_or_left() {
        let pair = |key: &str, value: &str| (key.to_owned(), value.to_owned());
        assert_eq!(
            state(&["a=1, t61@b-*/_9=x y ,,", "\tc=~"]),
            [pair("a", "1"), pair("t61@b-*/_9", "x y"), pair("c", "~")]
        );
        let most: Vec<String> = (0..33).map(|i| format!("k{i}=v")).collect();
        assert_eq!(state(&[&most[..32].join(",")]).len(), 32);
        assert!(state(&[&most.join(",")]).is_empty());
        let (key, value) = ("k".repeat(256), "v".repeat(256));
        assert_eq!(state(&[&format!("{key}={value}")]), [pair(&key, &value)]);
        for wrong in
            ["a", "=1", "a=", "A=1", "a b=1", "1a=1", "a@=1", "@a=1", "a@1=1", "a@b@c=1", "a=1=2", "a=\t2"]
        {
            assert!(state(&["b=2", wrong]).is_empty(), "{wrong}");
        }
        assert!(state(&[&format!("{key}k=v")]).is_empty() && state(&[&format!("k={value}v")]).is_empty());
    }
}
