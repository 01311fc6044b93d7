//! SmolVLM, SmolVLM2 and Idefics3: a SigLIP tower, a pixel-shuffle connector and a Llama decoder.
//!
//! After `Idefics3ForConditionalGeneration` and `SmolVLMForConditionalGeneration` of transformers, which differ in the
//! prompt's layout alone.

mod config;
pub mod processor;

use ocelli_engine::batch::Batch;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Pixels, PreparedImage, Rgb8Image, Tile};
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, Error, Phase, Result, Stage, Tensor, Vlm};

pub use config::SmolVlmConfig;
use processor::Processor;

use crate::connector::pixel_shuffle::PixelShuffle;
use crate::registry::{Family, describe_part};
use crate::text::llama::Llama;
use crate::vision::siglip::{self, Siglip};

/// Most patches that go through the tower at once: bounds the memory of activations, and is more than enough rows to
/// use each weight many times.
const MAX_PATCHES: usize = 2048;

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "smolvlm",
    model_types: &["smolvlm", "idefics3"],
    load: |files, checkpoint, cx| Ok(Box::new(SmolVlm::load(files, checkpoint, cx)?)),
    role,
};

/// What a module is, by its name, which may begin with `model.`.
fn role(module: &str) -> Option<Role> {
    let name = module.trim_start_matches("model.");
    let (parent, last) = name.rsplit_once('.').unwrap_or(("", name));
    if name == "lm_head" {
        return Some(Role::Head);
    }
    if name == "text_model.embed_tokens" {
        return Some(Role::Embedding);
    }
    if parent.starts_with("text_model.layers.") {
        const DECODER: [&str; 7] =
            ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"];
        return DECODER.contains(&last).then_some(Role::Decoder);
    }
    if parent.starts_with("vision_model.encoder.layers.") {
        const TOWER: [&str; 6] = ["q_proj", "k_proj", "v_proj", "out_proj", "fc1", "fc2"];
        return TOWER.contains(&last).then_some(Role::Tower);
    }
    (name == "connector.modality_projection.proj").then_some(Role::Connector)
}

/// A loaded model.
pub struct SmolVlm {
    info: ModelInfo,
    processor: Processor,
    tower: Siglip,
    connector: PixelShuffle,
    decoder: Llama,
    factor: usize,
}

impl SmolVlm {
    /// Loads a checkpoint. Tensor names may begin with `model.` or not.
    pub fn load(files: &ModelFiles, checkpoint: &Checkpoint, cx: &mut Ctx) -> Result<Self> {
        let config: SmolVlmConfig = files.require_json("config.json")?;
        let path = files.describe("config.json");
        let bad = |reason: String| Error::Config { path: path.clone(), reason };
        let (vision, text) = (&config.vision_config, &config.text_config);
        let side = vision.side();
        if config.scale_factor == 0 || !side.is_multiple_of(config.scale_factor) {
            return Err(bad(format!(
                "scale_factor: expected a divisor of {side} patches a side, found {}",
                config.scale_factor
            )));
        }
        let root = checkpoint.at_any(&["model", "", "model.model"]);
        let tower = Siglip::load(cx, &root.at("vision_model"), vision, &path)?;
        let connector = PixelShuffle::load(
            cx,
            &root.at("connector"),
            config.scale_factor,
            vision.hidden_size,
            text.hidden_size,
        )?;
        let head = checkpoint.at("lm_head");
        let tied = config.tie_word_embeddings.or(text.tie_word_embeddings).unwrap_or(!head.exists());
        let decoder = Llama::load(cx, &root.at("text_model"), (!tied).then_some(&head), text, &path)?;
        let info = ModelInfo {
            family: FAMILY.name,
            vocab: text.vocab_size,
            max_positions: text.max_position_embeddings,
            kv: text.kv(),
            image_token: config.image_token_id,
        };
        let json = |name| files.json::<serde_json::Value>(name);
        let (nested, flat) = (json("processor_config.json")?, json("preprocessor_config.json")?);
        let tokens = json("tokenizer_config.json")?;
        let processor =
            Processor::from_json(nested.as_ref(), flat.as_ref(), tokens.as_ref()).map_err(|error| {
                Error::Request(format!("{}: {error}", files.describe("processor_config.json")))
            })?;
        Ok(Self { info, processor, tower, connector, decoder, factor: config.scale_factor })
    }

    /// Features of tiles of one size, written to `out: [tiles * tokens, d_model]`.
    fn encode_tiles(&self, cx: &mut Ctx, tiles: &[(&Tile, &PreparedImage)], out: &Tensor) -> Result<()> {
        let Some(&(first, image)) = tiles.first() else { return Ok(()) };
        let (height, width) = (first.height, first.width);
        let grid = self.tower.grid(height, width)?;
        cx.scope(|cx| {
            let values = upload_tiles(cx, tiles, height, width)?;
            let pixels = siglip::Pixels { values, mean: image.normalize.mean, std: image.normalize.std };
            let hidden = cx.measure(Phase::Tower, |cx| self.tower.forward(cx, &pixels, tiles.len(), grid))?;
            cx.stage(Stage::Tower, &hidden)?;
            cx.measure(Phase::Connector, |cx| self.connector.forward(cx, &hidden, grid, out))?;
            cx.stage(Stage::Connector, out)
        })?;
        cx.timings.tiles += tiles.len();
        Ok(())
    }

    fn tokens_of(&self, tile: &Tile) -> Result<usize> {
        let (rows, cols) = self.tower.grid(tile.height, tile.width)?;
        if !rows.is_multiple_of(self.factor) || !cols.is_multiple_of(self.factor) {
            return Err(Error::Request(format!(
                "tile: expected a multiple of {} patches a side, found {cols} x {rows}",
                self.factor
            )));
        }
        Ok(rows * cols / (self.factor * self.factor))
    }
}

/// One buffer with the pixels of all tiles.
fn upload_tiles(
    cx: &mut Ctx,
    tiles: &[(&Tile, &PreparedImage)],
    height: usize,
    width: usize,
) -> Result<Tensor> {
    let bytes = tiles.iter().all(|(tile, _)| matches!(tile.pixels, Pixels::Rgb8(_)));
    if bytes {
        let mut all = Vec::with_capacity(tiles.len() * height * width * 3);
        for (tile, _) in tiles {
            if let Pixels::Rgb8(levels) = &tile.pixels {
                all.extend_from_slice(levels);
            }
        }
        return cx.upload(&[tiles.len(), height, width, 3], &all);
    }
    let mut all = Vec::with_capacity(tiles.len() * height * width * 3);
    for (tile, image) in tiles {
        tile.write_values(&image.normalize, &mut all);
    }
    cx.upload(&[tiles.len(), 3, height, width], &all)
}

/// Whether tiles can go through the tower together.
fn alike(a: (&Tile, &PreparedImage), b: (&Tile, &PreparedImage)) -> bool {
    (a.0.height, a.0.width) == (b.0.height, b.0.width) && a.1.normalize == b.1.normalize
}

impl Vlm for SmolVlm {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        vec![
            describe_part("tower", self.tower.weights(), self.tower.views()),
            describe_part("connector", self.connector.weights(), []),
            describe_part("decoder", self.decoder.weights(), self.decoder.views()),
            describe_part("embedding and head", self.decoder.outer_weights(), []),
        ]
    }

    fn set_processor(&mut self, key: &str, value: &str) -> Result<()> {
        self.processor.set_text(key, value).map_err(|e| Error::Request(format!("--processor: {e}")))
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        self.processor.prepare(image, threads).map_err(|e| Error::Request(e.to_string()))
    }

    fn expand_prompt(&self, prompt: &str, images: &[PreparedImage]) -> Result<String> {
        self.processor.expand_prompt(prompt, images).map_err(|e| Error::Request(e.to_string()))
    }

    fn encode_images(&self, cx: &mut Ctx, images: &[PreparedImage]) -> Result<Vec<Tensor>> {
        let tiles: Vec<(&Tile, &PreparedImage)> =
            images.iter().flat_map(|image| image.tiles.iter().map(move |tile| (tile, image))).collect();
        let tokens = tiles.iter().map(|(tile, _)| self.tokens_of(tile)).collect::<Result<Vec<usize>>>()?;
        let total = tokens.iter().sum();
        let out = cx.alloc_owned(&[total, self.decoder.config().hidden_size], cx.dtype())?;
        let (mut tile, mut row) = (0, 0);
        while tile < tiles.len() {
            let first = tiles[tile];
            let (rows, cols) = self.tower.grid(first.0.height, first.0.width)?;
            let most = (MAX_PATCHES / (rows * cols)).max(1);
            let count = tiles[tile..].iter().take(most).take_while(|&&next| alike(first, next)).count();
            let part = out.narrow(0, row, tokens[tile..tile + count].iter().sum())?;
            self.encode_tiles(cx, &tiles[tile..tile + count], &part)?;
            tile += count;
            row += part.size(0);
        }
        let (mut features, mut row, mut tokens) = (Vec::with_capacity(images.len()), 0, tokens.into_iter());
        for image in images {
            let rows = tokens.by_ref().take(image.tiles.len()).sum();
            features.push(out.narrow(0, row, rows)?);
            row += rows;
        }
        Ok(features)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Batch<'_>, kv: &mut KvCache) -> Result<Tensor> {
        let packed = batch.pack(cx, kv, self.info.vocab)?;
        self.decoder.forward(cx, &packed, kv)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn roles_of_modules() {
        for prefix in ["", "model.", "model.model."] {
            let of = |name: &str| role(&format!("{prefix}{name}"));
            assert_eq!(of("text_model.layers.3.self_attn.q_proj"), Some(Role::Decoder));
            assert_eq!(of("text_model.layers.3.mlp.down_proj"), Some(Role::Decoder));
            assert_eq!(of("text_model.layers.3.input_layernorm"), None);
            assert_eq!(of("text_model.embed_tokens"), Some(Role::Embedding));
            assert_eq!(of("vision_model.encoder.layers.0.mlp.fc1"), Some(Role::Tower));
            assert_eq!(of("vision_model.embeddings.patch_embedding"), None);
            assert_eq!(of("vision_model.embeddings.position_embedding"), None);
            assert_eq!(of("connector.modality_projection.proj"), Some(Role::Connector));
        }
        assert_eq!(role("lm_head"), Some(Role::Head));
    }
}
