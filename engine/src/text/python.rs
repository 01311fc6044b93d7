//! Values written as Python writes them, for templates that were made for Python.

use minijinja::value::ValueKind;
use serde_json::Value;

/// Options of Python's `json.dumps`, always with `ensure_ascii=False`.
pub(super) struct Dumps {
    /// Spaces per level; `None` writes one line.
    pub indent: Option<usize>,
    /// Between items.
    pub item: String,
    /// Between key and value.
    pub key: String,
    /// Sort the keys of objects.
    pub sort_keys: bool,
}

impl Dumps {
    /// The separators that `json.dumps` takes when none are given.
    pub fn new(indent: Option<usize>, sort_keys: bool) -> Self {
        let item = if indent.is_some() { "," } else { ", " };
        Self { indent, item: item.into(), key: ": ".into(), sort_keys }
    }

    /// `json.dumps(value)`.
    pub fn dumps(&self, value: &Value) -> String {
        let mut out = String::new();
        self.write(value, 0, &mut out);
        out
    }

    fn write(&self, value: &Value, level: usize, out: &mut String) {
        match value {
            Value::Null | Value::Bool(_) | Value::String(_) => out.push_str(&value.to_string()),
            Value::Number(n) => out.push_str(&number(n)),
            Value::Array(items) => {
                self.sequence(['[', ']'], items.iter(), level, out, |item, out| {
                    self.write(item, level + 1, out);
                });
            }
            Value::Object(map) => {
                let mut entries: Vec<_> = map.iter().collect();
                if self.sort_keys {
                    entries.sort_by_key(|(key, _)| *key);
                }
                self.sequence(['{', '}'], entries.into_iter(), level, out, |(key, item), out| {
                    out.push_str(&Value::from(key.as_str()).to_string());
                    out.push_str(&self.key);
                    self.write(item, level + 1, out);
                });
            }
        }
    }

    fn sequence<T>(
        &self,
        brackets: [char; 2],
        items: impl ExactSizeIterator<Item = T>,
        level: usize,
        out: &mut String,
        mut write: impl FnMut(T, &mut String),
    ) {
        let empty = items.len() == 0;
        let newline = |level: usize, out: &mut String| {
            if let Some(indent) = self.indent.filter(|_| !empty) {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', indent * level));
            }
        };
        out.push(brackets[0]);
        for (i, item) in items.enumerate() {
            if i > 0 {
                out.push_str(&self.item);
            }
            newline(level + 1, out);
            write(item, out);
        }
        newline(level, out);
        out.push(brackets[1]);
    }
}

/// `repr(value)`; `None` for a value that Python's templates do not have.
pub(super) fn repr(value: &minijinja::Value) -> Option<String> {
    let items = || value.try_iter().ok()?.map(|item| repr(&item)).collect::<Option<Vec<_>>>();
    Some(match value.kind() {
        ValueKind::None => "None".into(),
        ValueKind::Bool => if value.is_true() { "True" } else { "False" }.into(),
        ValueKind::Number if value.is_integer() => value.to_string(),
        ValueKind::Number => float(f64::try_from(value.clone()).ok()?),
        ValueKind::String => quote(value.as_str()?),
        ValueKind::Seq if value.is_tuple() => match items()?.as_slice() {
            [one] => format!("({one},)"),
            items => format!("({})", items.join(", ")),
        },
        ValueKind::Seq => format!("[{}]", items()?.join(", ")),
        ValueKind::Map => {
            let entries = value
                .try_iter()
                .ok()?
                .map(|key| Some(format!("{}: {}", repr(&key)?, repr(&value.get_item(&key).ok()?)?)))
                .collect::<Option<Vec<_>>>()?;
            format!("{{{}}}", entries.join(", "))
        }
        _ => return None,
    })
}

fn quote(s: &str) -> String {
    let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
    let mut out = String::from(quote);
    for c in s.chars() {
        match c {
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if c == quote => out.extend(['\\', c]),
            c if c.is_control() => out.push_str(&format!("\\x{:02x}", u32::from(c))),
            c => out.push(c),
        }
    }
    out.push(quote);
    out
}

/// A number as Python's `repr`: floats with the shortest digits, scientific below 1e-4 and from 1e16.
fn number(n: &serde_json::Number) -> String {
    match n.as_f64().filter(|_| n.is_f64()) {
        Some(f) => float(f),
        None => n.to_string(),
    }
}

fn float(f: f64) -> String {
    let scientific = format!("{f:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if f == 0.0 || (-4..16).contains(&exponent) {
        return format!("{f:?}");
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn json_dumps() {
        let value = json!({"b": [1, 2.5, null, true], "a": {}, "é": "<&'\"\n"});
        assert_eq!(
            Dumps::new(None, false).dumps(&value),
            r#"{"b": [1, 2.5, null, true], "a": {}, "é": "<&'\"\n"}"#
        );
        assert_eq!(
            Dumps::new(Some(2), true).dumps(&value),
            "{\n  \"a\": {},\n  \"b\": [\n    1,\n    2.5,\n    null,\n    true\n  ],\n  \"é\": \"<&'\\\"\\n\"\n}"
        );
    }

    #[test]
    fn python_repr() {
        let value = json!([{"type": "text", "ok": true}, null, "it's", "a\"b'c\\", 1]);
        let value = minijinja::Value::from(minijinja::value::Serde(value));
        assert_eq!(repr(&value).unwrap(), r#"[{'type': 'text', 'ok': True}, None, "it's", 'a"b\'c\\', 1]"#);
        for (f, text) in [
            (1.0, "1.0"),
            (1e16, "1e+16"),
            (1.5e-5, "1.5e-05"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
        ] {
            assert_eq!(float(f), text);
        }
    }
}
