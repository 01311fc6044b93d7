//! Prompts of Florence-2: a picture and a task, which the encoder reads; and what answers say of places.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::prompt::{Source, Span};
use ocelli_engine::regions::Regions;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};
use serde_json::Value;

use super::answer::{Options, Reader, asked};
use super::published;
use crate::fields::Config;
use crate::processor::{SquareProcessor, special_token};
use crate::vision::DavitPlan;

pub(super) struct Processor {
    square: SquareProcessor,
    tower: DavitPlan,
    /// What stands for a row of a picture.
    token: u32,
    /// Tokens that are added to those of the files.
    added: Vec<String>,
    /// Begins and ends a text.
    ends: [String; 2],
    /// The decoder's first token.
    start: u32,
    /// Most tokens that the encoder reads.
    positions: usize,
    reader: Reader,
    options: Options,
}

/// Options of `post_processor_config`; a pattern of its own is refused.
fn options(files: &ModelFiles, published: bool) -> Result<Options> {
    let mut found = Options::default();
    if published {
        found.banned = published::banned();
    }
    for name in ["processor_config.json", "preprocessor_config.json"] {
        let Some(config) = files.json::<Value>(name)? else { continue };
        let Some(config) = config.get("post_processor_config") else { continue };
        let of = |task: &str, key: &str| config.get(task).and_then(|task| task.get(key)).cloned();
        let bad = |what: String| Error::Config {
            path: files.describe(name),
            reason: format!("post_processor_config.{what}"),
        };
        if let Some(Value::Array(banned)) = of("phrase_grounding", "banned_grounding_tokens") {
            found.banned = banned.iter().filter_map(Value::as_str).map(str::to_owned).collect();
        }
        if let Some(area) = of("ocr", "AREA_THRESHOLD").filter(|area| !area.is_null()) {
            found.least_area = area
                .as_f64()
                .ok_or_else(|| bad(format!("ocr.AREA_THRESHOLD: expected a number, found {area}")))?;
        }
        let usual = format!("(.+?){}", r"<loc_(\d+)>".repeat(8));
        if let Some(Value::String(pattern)) = of("ocr", "PATTERN")
            && pattern != usual
            && pattern != format!("({}", &usual[1..])
        {
            return Err(bad(format!("ocr.PATTERN: expected {usual}, found {pattern}")));
        }
    }
    Ok(found)
}

impl Processor {
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let text = root.part("text_config")?;
        let generation = files.json::<Value>("generation_config.json")?.unwrap_or_default();
        let start = generation.get("decoder_start_token_id").and_then(Value::as_u64);
        let start = start.and_then(|id| u32::try_from(id).ok());
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let special = |key: &str, usual: &str| {
            special_token(tokenizer.as_ref(), key).unwrap_or_else(|| usual.to_owned())
        };
        let published = published::vision(&root)?;
        let (tower, token, added) = match &published {
            // There no token stands for a row: one that is there does, until the row takes its place.
            Some(vision) => {
                let pad = root.or("pad_token_id", 1)?;
                (DavitPlan::read(&vision.root())?, pad, published::added_tokens())
            }
            None => {
                let tower = DavitPlan::read(&root.part("vision_config")?)?;
                (tower, root.or("image_token_id", 51_289)?, Vec::new())
            }
        };
        Ok(Self {
            square: SquareProcessor::load(files, (1, 0), (String::new(), 0))?,
            tower,
            token,
            added,
            ends: [special("bos_token", "<s>"), special("eos_token", "</s>")],
            start: match start {
                Some(start) => start,
                None => text.or("decoder_start_token_id", 2)?,
            },
            positions: text.size("max_position_embeddings", 1024)?,
            reader: Reader::new()?,
            options: options(files, published.is_some())?,
        })
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.square.set(key, value)
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        self.square.prepare(image, threads)
    }

    fn added_tokens(&self) -> Vec<String> {
        self.added.clone()
    }

    fn image_mark(&self) -> &str {
        ""
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let [image] = images else {
            return Err(Error::Request(format!("Florence-2: expected one picture, found {}", images.len())));
        };
        let rows = image.tiles.first().map_or(0, |tile| {
            let (down, across) = self.tower.grid((tile.height, tile.width));
            1 + down * across
        });
        let (_, text) = asked(text)?;
        let mut tokens = vec![self.token; rows];
        let [first, last] = &self.ends;
        tokens.extend(tokenizer.encode_plain(&format!("{first}{text}{last}"))?);
        if tokens.len() > self.positions {
            return Err(Error::PromptTooLong { limit: self.positions, found: tokens.len() });
        }
        let spans = vec![Span { media: 0, rows: 0..rows, at: 0 }];
        Ok(Prompt { tokens: vec![self.start], source: Source { tokens, spans }, ..Prompt::default() })
    }

    fn regions(
        &self,
        text: &str,
        answer: &[u32],
        size: (usize, usize),
        tokenizer: &Tokenizer,
    ) -> Result<Option<Regions>> {
        let (Some(task), _) = asked(text)? else { return Ok(None) };
        // Each token by itself, special ones too, as the reference reads sequences.
        let pieces = answer.iter().map(|&id| tokenizer.decode(&[id], false));
        let answer = pieces.collect::<Result<String, _>>()?;
        self.reader.read(task, &answer, size, &self.options)
    }
}
