//! Rust source as the rules need it: comments and strings apart from code, test code apart from the rest.

/// Which parts of a source stay; the others become spaces, so that lines and columns do not move.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Keep {
    /// Code without comments and without the contents of strings (their quotes stay).
    Code,
    /// Code and strings without comments.
    CodeAndStrings,
}

/// `source` with everything that `keep` leaves out turned into spaces.
pub fn mask(source: &str, keep: Keep) -> String {
    let text: Vec<char> = source.chars().collect();
    let mut out = String::with_capacity(source.len());
    let blank = |c: char| if c == '\n' { '\n' } else { ' ' };
    let mut i = 0;
    while i < text.len() {
        let end = if text[i..].starts_with(&['/', '/']) {
            let end = line_end(&text, i);
            out.extend(text[i..end].iter().map(|&c| blank(c)));
            end
        } else if text[i..].starts_with(&['/', '*']) {
            let end = comment_end(&text, i);
            out.extend(text[i..end].iter().map(|&c| blank(c)));
            end
        } else if let Some((open, end)) = string_at(&text, i) {
            // The closing quote has the hashes of the opening one, without its `r`.
            let close = open.max(2) - 1;
            for (at, &c) in text[i..end].iter().enumerate() {
                let edge = at < open || at + close >= end - i;
                out.push(if edge || keep == Keep::CodeAndStrings { c } else { blank(c) });
            }
            end
        } else {
            out.push(text[i]);
            i + 1
        };
        i = end;
    }
    out
}

fn line_end(text: &[char], from: usize) -> usize {
    text[from..].iter().position(|&c| c == '\n').map_or(text.len(), |at| from + at)
}

fn comment_end(text: &[char], from: usize) -> usize {
    let (mut depth, mut i) = (0, from);
    while i < text.len() {
        if text[i..].starts_with(&['/', '*']) {
            (depth, i) = (depth + 1, i + 2);
        } else if text[i..].starts_with(&['*', '/']) {
            (depth, i) = (depth - 1, i + 2);
            if depth == 0 {
                break;
            }
        } else {
            i += 1;
        }
    }
    i.min(text.len())
}

/// If a string or character literal starts at `from`: the length of its opening and its end.
fn string_at(text: &[char], from: usize) -> Option<(usize, usize)> {
    let before = from.checked_sub(1).map(|i| text[i]);
    let in_word = before.is_some_and(|c| c.is_alphanumeric() || c == '_');
    match text[from] {
        '"' => Some((1, quote_end(text, from, '"'))),
        '\'' => {
            // A lifetime has no closing quote after one character or escape.
            let escaped = text.get(from + 1) == Some(&'\\');
            let closed = text.get(from + 2) == Some(&'\'') && text.get(from + 1) != Some(&'\'');
            (escaped || closed).then(|| (1, quote_end(text, from, '\'')))
        }
        'r' if !in_word || before == Some('b') => {
            let hashes = text[from + 1..].iter().take_while(|&&c| c == '#').count();
            if text.get(from + 1 + hashes) != Some(&'"') {
                return None;
            }
            let mut close = vec!['"'];
            close.resize(1 + hashes, '#');
            let body = from + 2 + hashes;
            let end = (body..text.len())
                .find(|&i| text[i..].starts_with(&close))
                .map_or(text.len(), |i| i + close.len());
            Some((2 + hashes, end))
        }
        _ => None,
    }
}

fn quote_end(text: &[char], from: usize, quote: char) -> usize {
    let mut i = from + 1;
    while i < text.len() {
        match text[i] {
            '\\' => i += 2,
            c if c == quote => return i + 1,
            _ => i += 1,
        }
    }
    text.len()
}

/// Masked code without its items under `#[cfg(test)]` (and `#[test]` functions), which become spaces.
pub fn without_tests(code: &str) -> String {
    let mut out = code.to_owned();
    for mark in ["#[cfg(test)]", "#[test]", "#[cfg(any(test"] {
        while let Some(start) = out.find(mark) {
            let end = item_end(&out, start + mark.len());
            let blank: String = out[start..end].chars().map(|c| if c == '\n' { '\n' } else { ' ' }).collect();
            out.replace_range(start..end, &blank);
        }
    }
    out
}

/// The end of the item after `from`: a `;` or the brace that closes the first one, outside brackets.
fn item_end(code: &str, from: usize) -> usize {
    let mut depth = 0_i32;
    for (at, c) in code[from..].char_indices() {
        match c {
            '{' | '(' | '[' => depth += 1,
            '}' | ')' | ']' => {
                depth -= 1;
                if depth == 0 && c == '}' {
                    return from + at + 1;
                }
            }
            ';' if depth <= 0 => return from + at + 1,
            _ => {}
        }
    }
    code.len()
}

/// The lines (from 1) on which `needle` occurs.
pub fn lines_with(text: &str, needle: &str) -> Vec<usize> {
    text.lines().enumerate().filter(|(_, line)| line.contains(needle)).map(|(i, _)| i + 1).collect()
}

/// The lines (from 1) on which `word` occurs with no letter, digit or underscore beside it.
pub fn lines_with_word(text: &str, word: &str) -> Vec<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let has = |line: &str| {
        line.match_indices(word).any(|(at, _)| {
            !line[..at].chars().next_back().is_some_and(part)
                && !line[at + word.len()..].chars().next().is_some_and(part)
        })
    };
    text.lines().enumerate().filter(|(_, line)| has(line)).map(|(i, _)| i + 1).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comments_and_strings_are_masked() {
        let source = "let a = \"x.unwrap() // no\"; // b.unwrap()\n/* c /* d */ e */ let f = r#\"g\"h\"#;\n";
        let code = mask(source, Keep::Code);
        assert_eq!(code.len(), source.len());
        assert!(!code.contains("unwrap") && !code.contains('g') && !code.contains('c'), "{code}");
        assert!(code.contains("let a = \"") && code.contains("let f = r#\""), "{code}");
        assert_eq!(mask("f(r#\"{}\"#, r\"}\", \"}\")", Keep::Code), "f(r#\"  \"#, r\" \", \" \")");
        let strings = mask(source, Keep::CodeAndStrings);
        assert!(strings.contains("x.unwrap() // no") && !strings.contains("b.unwrap"), "{strings}");
    }

    #[test]
    fn quotes_as_characters_and_lifetimes() {
        let source = "fn f<'a>(x: &'a str) { let q = '\"'; let e = '\\''; y.unwrap() } // z";
        let code = mask(source, Keep::Code);
        assert!(code.contains("y.unwrap()") && code.contains("<'a>") && !code.contains('z'), "{code}");
        assert!(mask("let s = \"a\\\"b.unwrap()\"; c.unwrap()", Keep::Code).matches("unwrap").count() == 1);
    }

    #[test]
    fn test_items_are_left_out() {
        let code = "fn a() { x.unwrap() }\n#[cfg(test)]\nmod tests { fn b() { y.unwrap() } }\nfn c() { z.unwrap() }\n\
                    #[cfg(test)]\nmod more;\nfn d() {}";
        let code = without_tests(code);
        assert!(
            code.contains("x.unwrap") && code.contains("z.unwrap") && !code.contains("y.unwrap"),
            "{code}"
        );
        assert!(code.contains("fn d") && !code.contains("mod more"), "{code}");
        assert_eq!(lines_with(&code, "z.unwrap"), [4]);
    }

    #[test]
    fn words_stand_alone() {
        assert_eq!(lines_with_word("cuda\nbarracuda\nx.cuda()\ncuda_x", "cuda"), [1, 3]);
    }
}
