//! PaliGemma 1 and 2: a SigLIP tower, one linear layer and a Gemma decoder whose prompt sees itself.
//!
//! After `PaliGemmaForConditionalGeneration`, `PaliGemmaProcessor` and `SiglipImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{PreparedImage, Rgb8Image};
use ocelli_engine::prompt::Positions;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::{Ctx, Model, Prompt, Result};
use serde_json::Value;

use crate::composed::Composed;
use crate::connector::Single;
use crate::fields::Config;
use crate::processor::{CanvasPlan, CanvasProcessor, ImageFields, added_token, special_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "paligemma",
    model_types: &["paligemma"],
    models: "PaliGemma 1 and 2",
    pictures: "one square, a prompt that sees itself",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &["vision_tower.vision_model.head."],
};

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["hidden_size", "ignore_index", "image_token_id", "image_token_index", "vocab_size"]);
    let vision = config.part("vision_config")?;
    vision.inert(&["num_image_tokens", "num_positions"]);
    let tower = VitPlan::siglip(&vision)?;
    let text = config.part("text_config")?;
    text.inert(&["num_image_tokens"]);
    // What processors say of blocks is the same.
    text.only("use_bidirectional_attention", true)?;
    // The reference ties head and embedding unless it is told not to.
    let tied = config.get("tie_word_embeddings")?.or(Some(true));
    let text = TextPlan::read(&text, &["gemma", "gemma2"], tied)?;
    let at = source.layout();
    let sizes = (tower.d, text.d);
    let tower = Vit::load(cx, &at.tower, tower)?;
    let connector = Single::load(cx, &at.projector.at("linear"), sizes, true)?;
    let decoder = Decoder::load(cx, &at.language, &at.head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Squeezes pictures into one tile; the prompt is pictures, a first token, text and a newline.
struct Processor {
    squeeze: CanvasProcessor,
    first: String,
}

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let id: u32 = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(256_000);
        let side = VitPlan::siglip(&root.part("vision_config")?)?.side();
        let token = added_token(files, id)?;
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let fields = ImageFields::load(files, &["image_seq_length"])?;
        let per_tile = fields.pixels("image_seq_length")?.unwrap_or(side * side);
        let plan = CanvasPlan {
            side: 224,
            cuts: false,
            grid: |_, _, _| (1, 1),
            unless: None,
            mean: [0.5; 3],
            std: [0.5; 3],
            mark: token.clone(),
            token: (token, id),
            per_tile,
            expand: |tile, _, _, _| tile.to_owned(),
            words: Vec::new(),
            whole_first: false,
            behind: Vec::new(),
        };
        let first = special_token(tokenizer.as_ref(), "bos_token").unwrap_or_else(|| "<bos>".into());
        Ok(Self { squeeze: CanvasProcessor::new(fields, plan)?, first })
    }
}

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        self.squeeze.set(key, value)
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        self.squeeze.prepare(image, threads)
    }

    fn image_mark(&self) -> &str {
        self.squeeze.image_mark()
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let mark = self.image_mark();
        let (pictures, text) = text.split_at(text.rfind(mark).map_or(0, |at| at + mark.len()));
        let text = format!("{pictures}{}{text}\n", self.first);
        let mut prompt = self.squeeze.lay_out(&text, images, tokenizer)?;
        // Positions count from 1.
        let next = prompt.len() as i32 + 1;
        prompt.positions = Positions::Axes { at: (1..next).map(|position| [position; 3]).collect(), next };
        prompt.blocks = std::iter::once(0..prompt.len()).collect();
        Ok(prompt)
    }
}
