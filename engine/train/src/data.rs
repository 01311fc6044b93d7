//! Rows of a data file: JSON lines of pictures with what is to be said about them.

use std::io::BufRead;
use std::path::{Path, PathBuf};

use ocelli_engine::image::PictureSource;
use ocelli_engine::text::{Content, Conversation, Message, Part};
use ocelli_engine::{Error, Result};
use serde_json::{Map, Value};

use crate::random::Random;

/// One row.
#[derive(Clone, Debug)]
pub struct TrainRow {
    /// Its line in the file, counted from 1.
    pub line: usize,
    /// The conversation, answers of the assistant included.
    pub messages: Vec<Message>,
    /// Its pictures, in the order of their places.
    pub pictures: Vec<PictureSource>,
}

/// Names of the fields that rows have.
#[derive(Clone, Debug)]
pub struct Columns {
    /// The picture's address, or a list of them.
    pub image: String,
    /// What is asked.
    pub prompt: String,
    /// The answer.
    pub answer: String,
    /// Whether rows are to say what is asked; else that may be absent.
    pub asked: bool,
    /// Whether they are to have an answer.
    pub answered: bool,
}

impl Default for Columns {
    fn default() -> Self {
        Self {
            image: "image".into(),
            prompt: "prompt".into(),
            answer: "text".into(),
            asked: true,
            answered: true,
        }
    }
}

/// All rows of a file, and those that cannot be used with the reason of each.
#[derive(Debug, Default)]
pub struct Rows {
    /// Those that can be used.
    pub rows: Vec<TrainRow>,
    /// Line and reason of the others.
    pub bad: Vec<(usize, String)>,
}

impl TrainRow {
    /// The first text of its messages.
    #[must_use]
    pub fn text(&self) -> Option<&str> {
        let contents = self.messages.iter().map(|message| &message.content);
        contents
            .flat_map(|content| match content {
                Content::Text(text) => vec![text.as_str()],
                Content::Parts(parts) => parts.iter().filter_map(Part::text).collect(),
            })
            .next()
    }
}

impl Rows {
    /// Reads a file of pairs: rows with a picture and a text, which becomes the one message of each.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn pairs(path: &Path, columns: &Columns) -> Result<Self> {
        Self::read_by(path, &|line, text, folder| pair(line, text, columns, folder))
    }

    /// Reads a file. A row has `messages` in OpenAI's layout, pictures anywhere; or `image` (or `images`), `prompt` and `text`, the
    /// answer. Paths of pictures are relative to the file.
    ///
    /// # Errors
    /// If the file cannot be read.
    pub fn read(path: &Path, columns: &Columns) -> Result<Self> {
        Self::read_by(path, &|line, text, folder| row(line, text, columns, folder))
    }

    fn read_by(
        path: &Path,
        row: &dyn Fn(usize, &str, &Path) -> std::result::Result<TrainRow, String>,
    ) -> Result<Self> {
        let io = |error| Error::Store { path: path.display().to_string(), error };
        let file = std::io::BufReader::new(std::fs::File::open(path).map_err(io)?);
        let folder: PathBuf = path.parent().map(Path::to_owned).unwrap_or_default();
        let mut all = Self::default();
        for (number, line) in file.lines().enumerate() {
            let (number, line) = (number + 1, line.map_err(io)?);
            if line.trim().is_empty() {
                continue;
            }
            match row(number, &line, &folder) {
                Ok(row) => all.rows.push(row),
                Err(why) => all.bad.push((number, why)),
            }
        }
        Ok(all)
    }
}

fn row(line: usize, text: &str, columns: &Columns, folder: &Path) -> Result<TrainRow, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(mut fields) = value else { return Err("expected an object".into()) };
    if let Some(messages) = fields.remove("messages") {
        let conversation =
            Conversation::from_json("messages", messages).map_err(|error| error.to_string())?;
        let pictures = sources(conversation.pictures.iter().map(String::as_str), folder)?;
        return Ok(TrainRow { line, messages: conversation.messages, pictures });
    }
    let images = fields.get(&columns.image).or_else(|| fields.get("images"));
    let images: Vec<&str> = match images {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::String(one)) => vec![one],
        Some(Value::Array(many)) => {
            let texts = many.iter().map(|one| one.as_str().ok_or("images: expected texts"));
            texts.collect::<Result<_, _>>()?
        }
        Some(other) => return Err(format!("{}: expected a path, found {other}", columns.image)),
    };
    let prompt = match columns.asked || fields.contains_key(&columns.prompt) {
        true => text_of(&fields, &columns.prompt)?,
        false => "",
    };
    if !columns.answered {
        // A text is welcome there, and no matter.
        let text = fields.get(&columns.answer).and_then(Value::as_str).unwrap_or_default();
        let messages = vec![Message::user(images.len(), prompt), Message::text("assistant", text)];
        return Ok(TrainRow { line, messages, pictures: sources(images.into_iter(), folder)? });
    }
    let answer = text_of(&fields, &columns.answer)?;
    if answer.trim().is_empty() {
        return Err(format!("{}: expected an answer, found none", columns.answer));
    }
    let messages = vec![Message::user(images.len(), prompt), Message::text("assistant", answer)];
    let pictures = sources(images.into_iter(), folder)?;
    Ok(TrainRow { line, messages, pictures })
}

fn pair(line: usize, text: &str, columns: &Columns, folder: &Path) -> Result<TrainRow, String> {
    let value: Value = serde_json::from_str(text).map_err(|error| format!("not JSON: {error}"))?;
    let Value::Object(fields) = value else { return Err("expected an object".into()) };
    let (image, text) = (text_of(&fields, &columns.image)?, text_of(&fields, &columns.answer)?);
    if text.trim().is_empty() {
        return Err(format!("{}: expected a text, found none", columns.answer));
    }
    let pictures = sources(std::iter::once(image), folder)?;
    Ok(TrainRow { line, messages: vec![Message::text("user", text)], pictures })
}

fn text_of<'a>(fields: &'a Map<String, Value>, name: &str) -> Result<&'a str, String> {
    match fields.get(name) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(format!("{name}: expected a text, found {other}")),
        None => {
            let there: Vec<&str> = fields.keys().map(String::as_str).collect();
            Err(format!("no field `{name}`; the row has {}", there.join(", ")))
        }
    }
}

fn sources<'a>(all: impl Iterator<Item = &'a str>, folder: &Path) -> Result<Vec<PictureSource>, String> {
    all.map(|address| PictureSource::at(address, folder).map_err(|error| error.to_string())).collect()
}

/// The rows of an epoch in the order in which they are seen: a permutation that follows from seed and epoch alone.
#[must_use]
pub fn order(rows: usize, seed: u64, epoch: u64) -> Vec<usize> {
    let mut random = Random::new(seed ^ epoch.wrapping_mul(0xD1B5_4A32_D192_ED03));
    let mut all: Vec<usize> = (0..rows).collect();
    for last in (1..rows).rev() {
        all.swap(last, random.below(last + 1));
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_read() {
        let columns = Columns::default();
        let of = |text: &str| row(1, text, &columns, Path::new("/data"));
        let one = of(r#"{"image": "a.png", "prompt": "What?", "text": "A cat."}"#).expect("a row");
        assert_eq!((one.messages.len(), one.pictures.len()), (2, 1));
        assert_eq!(one.messages[0].images(), 1);
        let chat =
            r#"{"messages": [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Ho"}]}"#;
        assert_eq!(of(chat).expect("a row").messages.len(), 2);
        for (text, why) in [
            ("[]", "expected an object"),
            ("{", "not JSON"),
            (r#"{"prompt": "What?"}"#, "no field `text`; the row has prompt"),
            (r#"{"prompt": "What?", "text": " "}"#, "text: expected an answer"),
            (r#"{"prompt": 3, "text": "a"}"#, "prompt: expected a text, found 3"),
            (r#"{"image": 3, "prompt": "a", "text": "a"}"#, "image: expected a path, found 3"),
        ] {
            let found = of(text).expect_err(text);
            assert!(found.starts_with(why), "{found}");
        }
    }

    #[test]
    fn pairs_are_read() {
        let columns = Columns { answer: "caption".into(), ..Columns::default() };
        let of = |text: &str| pair(1, text, &columns, Path::new("/data"));
        let one = of(r#"{"image": "a.png", "caption": "A cat."}"#).expect("a row");
        assert_eq!((one.text(), one.pictures.len()), (Some("A cat."), 1));
        for (text, why) in [
            (r#"{"caption": "A cat."}"#, "no field `image`; the row has caption"),
            (r#"{"image": "a.png", "caption": " "}"#, "caption: expected a text"),
            (r#"{"image": ["a.png"], "caption": "a"}"#, "image: expected a text, found"),
        ] {
            let found = of(text).expect_err(text);
            assert!(found.starts_with(why), "{found}");
        }
    }

    #[test]
    fn orders_are_permutations() {
        for (seed, epoch) in [(0, 0), (0, 1), (1, 0)] {
            let mut all = order(100, seed, epoch);
            assert_ne!(all, (0..100).collect::<Vec<_>>());
            assert_eq!(all, order(100, seed, epoch));
            all.sort_unstable();
            assert_eq!(all, (0..100).collect::<Vec<_>>());
        }
        assert_ne!(order(100, 0, 0), order(100, 0, 1));
        assert!(order(0, 1, 1).is_empty());
    }
}
