//! Prompts of BLIP: the beginning of a caption, or a question.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::prompt::Source;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Error, Prompt, Result};

use super::{Task, task};
use crate::fields::Config;
use crate::processor::SquareProcessor;
use crate::vision::VitPlan;

/// One picture, squeezed to a square, and a text that the decoder goes on with or an encoder reads.
#[derive(Clone, Debug)]
pub(super) struct Processor {
    square: SquareProcessor,
    task: Task,
    /// The decoder's first token.
    start: u32,
    /// The token that ends its texts.
    stop: u32,
    /// Most tokens of a question.
    positions: usize,
    /// Rows of the tower.
    rows: usize,
}

impl Processor {
    pub fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let tower = VitPlan::blip(&root.part("vision_config")?)?;
        let text = root.part("text_config")?;
        Ok(Self {
            square: SquareProcessor::blip(files, (tower.patch, tower.extra_rows()), (String::new(), 0))?,
            task: task(&root)?,
            start: text.or("bos_token_id", 30_522)?,
            stop: text.or("sep_token_id", 102)?,
            positions: text.size("max_position_embeddings", 512)?,
            rows: tower.extra_rows() + tower.side() * tower.side(),
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

    fn image_mark(&self) -> &str {
        ""
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        if images.len() != 1 {
            return Err(Error::Request(format!("BLIP: expected one picture, found {}", images.len())));
        }
        let mut prompt = Prompt {
            tokens: vec![self.start],
            memory: vec![self.rows],
            stop: vec![self.stop],
            ..Prompt::default()
        };
        if self.task == Task::Answer {
            let tokens = tokenizer.encode(text)?;
            if tokens.len() > self.positions {
                return Err(Error::PromptTooLong { limit: self.positions, found: tokens.len() });
            }
            prompt.source = Source { tokens, spans: vec![] };
        } else if !text.is_empty() {
            // [CLS] becomes the first token, [SEP] would end the caption.
            let ids = tokenizer.encode(text)?;
            prompt.tokens.extend(ids.get(1..ids.len().saturating_sub(1)).unwrap_or_default());
        }
        Ok(prompt)
    }
}
