//! Methods of Python's strings and lists, for templates that were made for Python.

use std::sync::LazyLock;

use fancy_regex::Regex;
use minijinja::value::{Kwargs, Rest, Tuple, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

/// Calls a method that the engine itself does not know.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let own = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => string(state, text, method, args)?,
        (ValueKind::Seq, _) => sequence(value, method, args)?,
        (ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match own {
        Some(result) => Ok(result),
        None => pycompat::unknown_method_callback(state, value, method, args).map_err(|e| {
            if e.kind() != ErrorKind::UnknownMethod || e.detail().is_some() {
                return e;
            }
            Error::new(ErrorKind::UnknownMethod, format!("{} has no method named {method}", value.kind()))
        }),
    }
}

fn sequence(value: &Value, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    Ok(Some(match method {
        "copy" => {
            let () = from_args(args)?;
            value.clone()
        }
        "index" => {
            let (what,): (&Value,) = from_args(args)?;
            let place = value.try_iter()?.position(|item| item == *what);
            Value::from(place.ok_or_else(|| invalid("list.index(x): x is not in the list"))?)
        }
        _ => return Ok(None),
    }))
}

/// Methods that minijinja-contrib lacks, or has with fewer arguments or other results than Python.
fn string(state: &State, s: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let result = match method {
        "casefold" => {
            let () = from_args(args)?;
            Value::from(
                s.chars().flat_map(char::to_uppercase).flat_map(char::to_lowercase).collect::<String>(),
            )
        }
        "swapcase" => {
            let () = from_args(args)?;
            let mut out = String::with_capacity(s.len());
            for c in s.chars() {
                match c.is_uppercase() {
                    true => out.extend(c.to_lowercase()),
                    false => out.extend(c.to_uppercase()),
                }
            }
            Value::from(out)
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(s))
        }
        "istitle" => {
            let () = from_args(args)?;
            Value::from(s.chars().any(|c| c.is_uppercase() || c.is_lowercase()) && title(s) == s)
        }
        "isspace" => {
            let () = from_args(args)?;
            Value::from(!s.is_empty() && s.chars().all(is_space))
        }
        "isdecimal" => is_match(s, args, r"^\p{Nd}+\z")?,
        "isdigit" => {
            // Besides decimal digits, those above, below and in circles.
            is_match(s, args, r"^[\p{Nd}²³¹⁰⁴-⁹₀-₉①-⑨⑴-⑼⒈-⒐⓪⓵-⓽⓿❶-❾➀-➈➊-➒]+\z")?
        }
        "isidentifier" => is_match(s, args, r"^[\p{XID_Start}_]\p{XID_Continue}*\z")?,
        "isprintable" => is_match(s, args, r"^[^\p{C}\p{Zl}\p{Zp}\p{Zs}]*( [^\p{C}\p{Zl}\p{Zp}\p{Zs}]*)*\z")?,
        "strip" | "lstrip" | "rstrip" => {
            let (chars,): (Option<&str>,) = from_args(args)?;
            let cut = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
            Value::from(match method {
                "strip" => s.trim_matches(cut),
                "lstrip" => s.trim_start_matches(cut),
                _ => s.trim_end_matches(cut),
            })
        }
        "removeprefix" => {
            let (prefix,): (&str,) = from_args(args)?;
            Value::from(s.strip_prefix(prefix).unwrap_or(s))
        }
        "removesuffix" => {
            let (suffix,): (&str,) = from_args(args)?;
            Value::from(s.strip_suffix(suffix).unwrap_or(s))
        }
        "partition" | "rpartition" => {
            let (separator,): (&str,) = from_args(args)?;
            let (from_left, separator) = (method == "partition", separated(separator)?);
            let cut = if from_left { s.split_once(separator) } else { s.rsplit_once(separator) };
            let parts = match (cut, from_left) {
                (Some((before, after)), _) => [before, separator, after],
                (None, true) => [s, "", ""],
                (None, false) => ["", "", s],
            };
            Value::from(Tuple::from(parts.map(Value::from)))
        }
        "split" | "rsplit" => {
            let (separator, limit, named): (Option<&Value>, Option<i64>, Kwargs) = from_args(args)?;
            let named_separator: Option<&Value> = named.get("sep")?;
            let limit = limit.or(named.get("maxsplit")?).and_then(|limit| usize::try_from(limit).ok());
            named.assert_all_used()?;
            let separator = match separator.or(named_separator).filter(|value| !value.is_none()) {
                Some(value) => {
                    let text =
                        value.as_str().ok_or_else(|| invalid("split: expected a string as separator"))?;
                    Some(separated(text)?)
                }
                None => None,
            };
            split(s, separator, limit.unwrap_or(usize::MAX), method == "rsplit").into_iter().collect()
        }
        "splitlines" => {
            let (keep, named): (Option<bool>, Kwargs) = from_args(args)?;
            let keep = keep.or(named.get("keepends")?).unwrap_or(false);
            named.assert_all_used()?;
            lines(s, keep).into_iter().collect()
        }
        "center" | "ljust" | "rjust" => {
            let (width, fill): (i64, Option<char>) = from_args(args)?;
            let missing = pay(state, width, s)?;
            // Python's rule for an odd rest.
            let left = match method {
                "center" => missing / 2 + (missing & usize::try_from(width).unwrap_or(0) & 1),
                "ljust" => 0,
                _ => missing,
            };
            let fill = |n: usize| std::iter::repeat_n(fill.unwrap_or(' '), n);
            Value::from(fill(left).chain(s.chars()).chain(fill(missing - left)).collect::<String>())
        }
        "zfill" => {
            let (width,): (i64,) = from_args(args)?;
            let zeros = "0".repeat(pay(state, width, s)?);
            let digits = s.strip_prefix(['+', '-']).unwrap_or(s);
            Value::from(format!("{}{zeros}{digits}", &s[..s.len() - digits.len()]))
        }
        "expandtabs" => {
            let (size, named): (Option<i64>, Kwargs) = from_args(args)?;
            let size = size.or(named.get("tabsize")?).unwrap_or(8);
            named.assert_all_used()?;
            let tabs = i64::try_from(s.matches('\t').count()).unwrap_or(i64::MAX);
            pay(state, size.saturating_mul(tabs), "")?;
            Value::from(expand_tabs(s, usize::try_from(size).unwrap_or(0)))
        }
        "find" | "rfind" | "index" | "rindex" | "count" => {
            let (what, bounds): (&str, Rest<Value>) = from_args(args)?;
            let Some((first, part)) = slice(s, &bounds)? else {
                return not_found(method).map(Some);
            };
            if method == "count" {
                let count =
                    if what.is_empty() { part.chars().count() + 1 } else { part.matches(what).count() };
                return Ok(Some(Value::from(count)));
            }
            let place = if method.starts_with('r') { part.rfind(what) } else { part.find(what) };
            match place {
                Some(place) => Value::from(first + part[..place].chars().count()),
                None => not_found(method)?,
            }
        }
        // With bounds; without them the common implementation answers.
        "startswith" | "endswith" if args.len() > 1 => {
            let (what, bounds): (&Value, Rest<Value>) = from_args(args)?;
            let Some((_, part)) = slice(s, &bounds)? else { return Ok(Some(Value::from(false))) };
            let any = match what.as_str() {
                Some(text) => vec![text.to_owned()],
                None => what.try_iter()?.filter_map(|item| item.as_str().map(str::to_owned)).collect(),
            };
            let holds = |text: &String| {
                if method == "startswith" { part.starts_with(text) } else { part.ends_with(text) }
            };
            Value::from(any.iter().any(holds))
        }
        _ => return Ok(None),
    };
    Ok(Some(result))
}

fn invalid(reason: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, reason)
}

fn separated(separator: &str) -> Result<&str, Error> {
    if separator.is_empty() { Err(invalid("empty separator")) } else { Ok(separator) }
}

fn not_found(method: &str) -> Result<Value, Error> {
    match method {
        "count" => Ok(Value::from(0)),
        "index" | "rindex" => Err(invalid("substring not found")),
        _ => Ok(Value::from(-1)),
    }
}

/// White space as Python's `str.isspace` has it.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn is_match(s: &str, args: &[Value], pattern: &'static str) -> Result<Value, Error> {
    static COMPILED: LazyLock<std::sync::Mutex<std::collections::HashMap<&'static str, Regex>>> =
        LazyLock::new(Default::default);
    let () = from_args(args)?;
    let failed = |_| invalid("the pattern of a string test does not compile");
    let mut compiled = COMPILED.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    if !compiled.contains_key(pattern) {
        compiled.insert(pattern, Regex::new(pattern).map_err(failed)?);
    }
    Ok(Value::from(compiled.get(pattern).is_some_and(|regex| regex.is_match(s).unwrap_or(false))))
}

fn title(s: &str) -> String {
    let mut out = String::with_capacity(s.len());
    let mut inside = false;
    for c in s.chars() {
        if inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

/// How many characters `s` lacks to be `width` wide, paid for before they are made.
fn pay(state: &State, width: i64, s: &str) -> Result<usize, Error> {
    let missing = usize::try_from(width).unwrap_or(0).saturating_sub(s.chars().count());
    state.consume_fuel(missing as u64 / 64)?;
    Ok(missing)
}

fn expand_tabs(s: &str, size: usize) -> String {
    let mut out = String::with_capacity(s.len());
    let mut column = 0;
    for c in s.chars() {
        match c {
            '\t' if size > 0 => {
                let spaces = size - column % size;
                out.extend(std::iter::repeat_n(' ', spaces));
                column += spaces;
            }
            '\t' => {}
            c => {
                out.push(c);
                column = if matches!(c, '\n' | '\r') { 0 } else { column + 1 };
            }
        }
    }
    out
}

/// The part of `s` between Python's `start` and `end`, with the number of characters before it; `None` if the start lies
/// behind the end.
fn slice<'s>(s: &'s str, bounds: &[Value]) -> Result<Option<(usize, &'s str)>, Error> {
    let length = i64::try_from(s.chars().count()).unwrap_or(i64::MAX);
    let bound = |i: usize, default: i64| match bounds.get(i).filter(|value| !value.is_none()) {
        Some(value) => {
            let at = i64::try_from(value.clone())?;
            Ok::<i64, Error>(if at < 0 { at.saturating_add(length).max(0) } else { at })
        }
        None => Ok(default),
    };
    let (start, end) = (bound(0, 0)?, bound(1, length)?.min(length));
    if start > end {
        return Ok(None);
    }
    let byte = |at: i64| s.char_indices().nth(at as usize).map_or(s.len(), |(byte, _)| byte);
    Ok(Some((start as usize, &s[byte(start)..byte(end)])))
}

fn split(s: &str, separator: Option<&str>, limit: usize, from_right: bool) -> Vec<Value> {
    let limit = limit.saturating_add(1);
    let parts: Vec<&str> = match (separator, from_right) {
        (Some(separator), false) => s.splitn(limit, separator).collect(),
        (Some(separator), true) => {
            let mut parts: Vec<&str> = s.rsplitn(limit, separator).collect();
            parts.reverse();
            parts
        }
        (None, false) => {
            let (mut parts, mut rest) = (Vec::new(), s.trim_start_matches(is_space));
            while !rest.is_empty() {
                if parts.len() + 1 == limit {
                    parts.push(rest);
                    break;
                }
                let end = rest.find(is_space).unwrap_or(rest.len());
                parts.push(&rest[..end]);
                rest = rest[end..].trim_start_matches(is_space);
            }
            parts
        }
        (None, true) => {
            let (mut parts, mut rest) = (Vec::new(), s.trim_end_matches(is_space));
            while !rest.is_empty() {
                if parts.len() + 1 == limit {
                    parts.push(rest);
                    break;
                }
                let space = rest.char_indices().rfind(|(_, c)| is_space(*c));
                let start = space.map_or(0, |(at, c)| at + c.len_utf8());
                parts.push(&rest[start..]);
                rest = rest[..start].trim_end_matches(is_space);
            }
            parts.reverse();
            parts
        }
    };
    parts.into_iter().map(Value::from).collect()
}

fn lines(s: &str, keep: bool) -> Vec<Value> {
    let ends = |c: char| {
        matches!(
            c,
            '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}'
        )
    };
    let (mut lines, mut rest) = (Vec::new(), s);
    while !rest.is_empty() {
        let (end, width) = match rest.find(ends) {
            Some(end) if rest[end..].starts_with("\r\n") => (end, 2),
            Some(end) => (end, rest[end..].chars().next().map_or(0, char::len_utf8)),
            None => (rest.len(), 0),
        };
        lines.push(Value::from(&rest[..if keep { end + width } else { end }]));
        rest = &rest[end + width..];
    }
    lines
}
