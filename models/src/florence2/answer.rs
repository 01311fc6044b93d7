//! What Florence-2's answers say of places: location tokens in the text of an answer, made boxes and outlines.

use fancy_regex::Regex;
use ocelli_engine::regions::{Region, Regions, Shape};
use ocelli_engine::{Error, Result};
use serde_json::{Map, Value, json};

/// Bins that a side is cut into.
const BINS: f64 = 1000.0;

/// What an answer to a task is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// Text alone.
    Text,
    /// Texts with the four corners of each.
    Quads,
    /// Descriptions with boxes.
    Boxes,
    /// Boxes without descriptions.
    BareBoxes,
    /// Phrases with boxes.
    Phrases,
    /// Outlines.
    Outlines,
    /// Descriptions with boxes, or with outlines.
    BoxesOrOutlines,
}

/// A task, as a prompt names it.
pub(super) struct Task {
    pub token: &'static str,
    /// What the model is asked; `{input}` stands for what the prompt says beside the task.
    pub prompt: &'static str,
    pub kind: Kind,
}

const fn task(token: &'static str, prompt: &'static str, kind: Kind) -> Task {
    Task { token, prompt, kind }
}

/// The tasks: those without an input first, as the reference looks for them.
pub(super) const TASKS: &[Task] = &[
    task("<OCR>", "What is the text in the image?", Kind::Text),
    task("<OCR_WITH_REGION>", "What is the text in the image, with regions?", Kind::Quads),
    task("<CAPTION>", "What does the image describe?", Kind::Text),
    task("<DETAILED_CAPTION>", "Describe in detail what is shown in the image.", Kind::Text),
    task("<MORE_DETAILED_CAPTION>", "Describe with a paragraph what is shown in the image.", Kind::Text),
    task("<OD>", "Locate the objects with category name in the image.", Kind::Boxes),
    task("<DENSE_REGION_CAPTION>", "Locate the objects in the image, with their descriptions.", Kind::Boxes),
    task("<REGION_PROPOSAL>", "Locate the region proposals in the image.", Kind::BareBoxes),
    task("<CAPTION_TO_PHRASE_GROUNDING>", "Locate the phrases in the caption: {input}", Kind::Phrases),
    task("<REFERRING_EXPRESSION_SEGMENTATION>", "Locate {input} in the image with mask", Kind::Outlines),
    task("<REGION_TO_SEGMENTATION>", "What is the polygon mask of region {input}", Kind::Outlines),
    task("<OPEN_VOCABULARY_DETECTION>", "Locate {input} in the image.", Kind::BoxesOrOutlines),
    task("<REGION_TO_CATEGORY>", "What is the region {input}?", Kind::Text),
    task("<REGION_TO_DESCRIPTION>", "What does the region {input} describe?", Kind::Text),
    task("<REGION_TO_OCR>", "What text is in the region {input}?", Kind::Text),
];

/// The task that a prompt names, and what the model is asked.
pub(super) fn asked(text: &str) -> Result<(Option<&'static Task>, String)> {
    let Some(task) = TASKS.iter().find(|task| text.contains(task.token)) else {
        return Ok((None, text.to_owned()));
    };
    if !task.prompt.contains("{input}") {
        if text != task.token {
            let what = format!("{} takes no more text, found `{text}`", task.token);
            return Err(Error::Request(format!("prompt: {what}")));
        }
        return Ok((Some(task), task.prompt.to_owned()));
    }
    let input = text.replace(task.token, "");
    Ok((Some(task), task.prompt.replace("{input}", input.trim())))
}

/// Options of the reference's post-processor.
#[derive(Clone, Debug, Default)]
pub(super) struct Options {
    /// Phrases that have no place.
    pub banned: Vec<String>,
    /// Least share of the picture of a text's corners.
    pub least_area: f64,
}

/// Finds location tokens.
pub(super) struct Reader {
    location: Regex,
    four: Regex,
    quads: Regex,
    with_boxes: Regex,
    boxes: Regex,
    with_outlines: Regex,
    outlines: Regex,
    phrase: Regex,
    outline_phrase: Regex,
    enclosed: Regex,
    ended: Regex,
}

impl Reader {
    pub fn new() -> Result<Self> {
        let regex = |pattern: &str| {
            Regex::new(pattern).map_err(|error| Error::Request(format!("pattern {pattern}: {error}")))
        };
        let marks = r"(?:<loc_\d+>|<sep>|<poly>|</poly>){4,}";
        let ends = "<od>|</od>|<box>|</box>|<bbox>|</bbox>|<loc_";
        Ok(Self {
            location: regex(r"<loc_(\d+)>")?,
            four: regex(&r"<loc_(\d+)>".repeat(4))?,
            quads: regex(&format!("(.+?){}", r"<loc_(\d+)>".repeat(8)))?,
            with_boxes: regex(r"([^<]+(?:<loc_\d+>){4,})")?,
            boxes: regex(r"(?:(?:<loc_\d+>){4,})")?,
            with_outlines: regex(&format!("([^<]+{marks})"))?,
            outlines: regex(&format!("(?:{marks})"))?,
            phrase: regex(&format!(r"^\s*(.*?)(?={ends})"))?,
            outline_phrase: regex(&format!(r"^\s*(.*?)(?={ends}|<poly>)"))?,
            enclosed: regex("<poly>(.*?)</poly>")?,
            ended: regex(r"((?:<loc_\d+>)+)(?:<sep>|\n?\z)")?,
        })
    }

    /// What `text`, an answer with its special tokens, says of a picture of `(width, height)`: fields as the reference names them, and
    /// what is to be drawn.
    pub fn read(
        &self,
        task: &Task,
        text: &str,
        size: (usize, usize),
        options: &Options,
    ) -> Result<Option<Regions>> {
        if task.kind == Kind::Text {
            return Ok(None);
        }
        let text = ["<s>", "</s>", "<pad>"].iter().fold(text.to_owned(), |text, mark| text.replace(mark, ""));
        let mut fields = Map::new();
        let mut regions = Vec::new();
        let mut boxes = |fields: &mut Map<String, Value>, found: Vec<(String, [i64; 4])>, labels: &str| {
            fields.insert("bboxes".into(), json!(found.iter().map(|(_, at)| at).collect::<Vec<_>>()));
            fields.insert(labels.into(), json!(found.iter().map(|(label, _)| label).collect::<Vec<_>>()));
            regions.extend(found.into_iter().map(|(label, at)| Region { label, shape: Shape::Box(at) }));
        };
        match task.kind {
            Kind::Text => {}
            Kind::Boxes => boxes(&mut fields, self.boxes(&text, size, false, &[])?, "labels"),
            Kind::BareBoxes => boxes(&mut fields, self.boxes(&text, size, true, &[])?, "labels"),
            Kind::Phrases => boxes(&mut fields, self.boxes(&text, size, false, &options.banned)?, "labels"),
            Kind::Quads => {
                let found = self.quads(&text, size, options.least_area)?;
                fields.insert("quad_boxes".into(), json!(found.iter().map(|(_, at)| at).collect::<Vec<_>>()));
                fields
                    .insert("labels".into(), json!(found.iter().map(|(label, _)| label).collect::<Vec<_>>()));
                let region = |(label, at)| Region { label, shape: Shape::Outlines(vec![at]) };
                regions.extend(found.into_iter().map(region));
            }
            Kind::Outlines => {
                outlines(&mut fields, &mut regions, self.outlines(&text, size, true)?, "labels")
            }
            Kind::BoxesOrOutlines => {
                let has = text.contains("<poly>");
                let found = if has { Vec::new() } else { self.boxes(&text, size, false, &[])? };
                boxes(&mut fields, found, "bboxes_labels");
                let found = if has { self.outlines(&text, size, false)? } else { Vec::new() };
                outlines(&mut fields, &mut regions, found, "polygons_labels");
            }
        }
        Ok(Some(Regions { task: task.token.to_owned(), fields, regions }))
    }

    /// Matches of a pattern, their first group where it has one.
    fn all<'t>(&self, pattern: &Regex, text: &'t str) -> Result<Vec<&'t str>> {
        let found = pattern.captures_iter(text).map(|found| {
            let found = found.map_err(|error| Error::Request(format!("answer: {error}")))?;
            Ok(found.get(1).or(found.get(0)).map_or("", |part| part.as_str()))
        });
        found.collect()
    }

    fn numbers(&self, text: &str) -> Result<Vec<f64>> {
        let parts = self.all(&self.location, text)?;
        // Bins beyond those that there are name places all the same.
        Ok(parts.iter().map(|digits| digits.parse().unwrap_or(0.0)).collect())
    }

    /// What a phrase is called; `None` where it has no end that is known.
    fn name(&self, pattern: &Regex, text: &str) -> Result<Option<String>> {
        let found = pattern.find(text).map_err(|error| Error::Request(format!("answer: {error}")))?;
        Ok(found.map(|found| found.as_str().trim().to_owned()))
    }

    fn boxes(
        &self,
        text: &str,
        size: (usize, usize),
        bare: bool,
        banned: &[String],
    ) -> Result<Vec<(String, [i64; 4])>> {
        let mut all = Vec::new();
        for phrase in self.all(if bare { &self.boxes } else { &self.with_boxes }, text)? {
            let Some(name) = self.name(&self.phrase, phrase)? else { continue };
            if banned.contains(&name) {
                continue;
            }
            let label: String = name.chars().filter(char::is_ascii).collect();
            for found in self.four.find_iter(phrase) {
                let found = found.map_err(|error| Error::Request(format!("answer: {error}")))?;
                if let [x0, y0, x1, y1] = places(&self.numbers(found.as_str())?, size)[..] {
                    all.push((label.clone(), [x0, y0, x1, y1]));
                }
            }
        }
        Ok(all)
    }

    fn quads(&self, text: &str, size: (usize, usize), least: f64) -> Result<Vec<(String, Vec<i64>)>> {
        let mut all = Vec::new();
        for found in self.quads.captures_iter(text) {
            let found = found.map_err(|error| Error::Request(format!("answer: {error}")))?;
            let group = |i: usize| found.get(i).map_or("", |part| part.as_str());
            let bins: Vec<f64> = (2..10).map(|i| group(i).parse().unwrap_or(0.0)).collect();
            let at = places(&bins, size);
            // The reference leaves the last side out.
            let sides = (0..3).map(|i| at[2 * i] * at[2 * i + 3] - at[2 * i + 2] * at[2 * i + 1]);
            let area = 0.5 * sides.sum::<i64>().abs() as f64;
            if least > 0.0 && area < (size.0 * size.1) as f64 * least {
                continue;
            }
            all.push((group(1).trim().to_owned(), at));
        }
        Ok(all)
    }

    fn outlines(&self, text: &str, size: (usize, usize), bare: bool) -> Result<Vec<(String, Vec<Vec<i64>>)>> {
        let mut all = Vec::new();
        for phrase in self.all(if bare { &self.outlines } else { &self.with_outlines }, text)? {
            let first = self.location.find(phrase).ok().flatten().filter(|found| found.start() == 0);
            let rest = &phrase[first.map_or(0, |found| found.end())..];
            if rest.is_empty() && !bare {
                continue;
            }
            let Some(label) = self.name(&self.outline_phrase, rest)? else { continue };
            let parts = match phrase.contains("<poly>") && phrase.contains("</poly>") {
                true => self.all(&self.enclosed, phrase)?,
                false => vec![phrase],
            };
            for part in parts {
                let mut outlines = Vec::new();
                for run in self.all(&self.ended, part)? {
                    let mut bins = self.numbers(run)?;
                    bins.truncate(bins.len() / 2 * 2);
                    outlines.push(places(&bins, size));
                }
                if !outlines.is_empty() {
                    all.push((label.clone(), outlines));
                }
            }
        }
        Ok(all)
    }
}

fn outlines(
    fields: &mut Map<String, Value>,
    regions: &mut Vec<Region>,
    found: Vec<(String, Vec<Vec<i64>>)>,
    labels: &str,
) {
    fields.insert("polygons".into(), json!(found.iter().map(|(_, at)| at).collect::<Vec<_>>()));
    fields.insert(labels.into(), json!(found.iter().map(|(label, _)| label).collect::<Vec<_>>()));
    regions.extend(found.into_iter().map(|(label, at)| Region { label, shape: Shape::Outlines(at) }));
}

/// The middles of bins, across and down in turn, in pixels, computed in f32 and cut off as the reference does.
fn places(bins: &[f64], (width, height): (usize, usize)) -> Vec<i64> {
    let sides = [(width as f64 / BINS) as f32, (height as f64 / BINS) as f32];
    bins.iter().enumerate().map(|(i, &bin)| ((bin as f32 + 0.5) * sides[i % 2]) as i64).collect()
}

#[cfg(test)]
mod tests {
    use serde::Deserialize;

    use super::*;

    #[derive(Deserialize)]
    struct Row {
        task: String,
        area: f64,
        size: (usize, usize),
        text: String,
        found: Value,
    }

    #[test]
    fn places_are_those_of_the_reference() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/golden/text/florence2_answers.json");
        let rows: Vec<Row> = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
        let reader = Reader::new().unwrap();
        let mut regions = 0;
        for Row { task, area, size, text, found } in &rows {
            let task = TASKS.iter().find(|known| known.token == task).unwrap();
            let banned = vec!["it".to_owned(), "the image".to_owned()];
            let options = Options { banned, least_area: *area };
            let read = reader.read(task, text, *size, &options).unwrap();
            let fields = read.as_ref().map(|read| Value::Object(read.fields.clone()));
            let expected = (task.kind != Kind::Text).then(|| found.clone());
            assert_eq!(fields, expected, "{} {area} {size:?} {text:?}", task.token);
            regions += read.map_or(0, |read| read.regions.len());
        }
        assert!(rows.len() > 400 && regions > 400, "{} rows, {regions} regions", rows.len());
    }

    #[test]
    fn prompts_of_tasks() {
        let prompt = |text| asked(text).map(|(task, prompt)| (task.map(|task| task.token), prompt));
        assert_eq!(prompt("<CAPTION>").unwrap().1, "What does the image describe?");
        let found = prompt("<CAPTION_TO_PHRASE_GROUNDING> an old temple ").unwrap();
        let expected = "Locate the phrases in the caption: an old temple";
        assert_eq!(found, (Some("<CAPTION_TO_PHRASE_GROUNDING>"), expected.to_owned()));
        assert_eq!(prompt("What?").unwrap(), (None, "What?".to_owned()));
        assert!(prompt("<OD> cars").unwrap_err().to_string().contains("<OD> takes no more text"));
    }
}
