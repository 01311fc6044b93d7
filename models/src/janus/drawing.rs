//! How Janus draws: codes by a head of its own, from embeddings of their own, and a decoder that makes pixels of them.
//!
//! After `JanusForConditionalGeneration.generate` with `generation_mode="image"` of transformers.

use ocelli_engine::batch::Packed;
use ocelli_engine::drawing::{Canvas, DrawingProcessor, Guide, Ids, Painter};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Normalize, PreparedImage, Rgb8Image};
use ocelli_engine::kv::KvCache;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Features, Prompt, ReplayKey, Result, Tensor, Vlm};
use ocelli_kernels::ops::Activation;
use serde_json::Value;

use super::Aligner;
use super::vq::{VqDecoder, VqPlan};
use crate::composed::Composed;
use crate::fields::Fields;
use crate::layers::{Embedding, Linear};
use crate::vision::activation;

/// What draws.
pub struct Drawing {
    canvas: Canvas,
    embedding: Embedding,
    aligner: Aligner,
    head: [Linear; 2],
    act: Activation,
    pixels: VqDecoder,
    id: usize,
}

impl Drawing {
    /// Loads what draws below `root`, with `vq_config`; `tokens` is how many tokens a picture has, `d` the features of a token.
    pub fn load(cx: &mut Ctx, root: &Scope<'_>, vq: &Fields<'_>, tokens: usize, d: usize) -> Result<Self> {
        let root = &root.role(Role::Painter);
        let plan = VqPlan::read(vq)?;
        if plan.side.saturating_mul(plan.side) != tokens {
            let what = format!("expected the root of {tokens}, the tokens of a picture, found {}", plan.side);
            return Err(vq.bad("num_patches", what));
        }
        vq.only("projection_dim", d)?;
        vq.only("image_token_embed_dim", d)?;
        let act = activation(vq, "hidden_act", "gelu")?;
        let depth = vq.size("num_hidden_layers", 2)?.min(1 << 10);
        let head = root.at("generation_head");
        let side = plan.pixels();
        Ok(Self {
            canvas: Canvas { tokens, codes: plan.codes, width: side, height: side },
            embedding: Embedding::load(cx, &root.at("generation_embeddings"), plan.codes, plan.d, 1.0)?,
            aligner: Aligner::load(cx, &root.at("generation_aligner"), (plan.d, d, depth), act)?,
            head: [
                Linear::load(cx, &head.at("proj_out"), d, d, true)?,
                Linear::load(cx, &head.at("vision_head"), plan.codes, d, true)?,
            ],
            act,
            pixels: VqDecoder::load(cx, &root.at("vqmodel"), plan)?,
            id: ReplayKey::unique(),
        })
    }
}

/// The ends of the decoder while it draws.
struct Ends<'a>(&'a Drawing, Ids);

impl crate::text::Ends for Ends<'_> {
    fn embed(&self, cx: &mut Ctx, ids: &Tensor) -> Result<Option<Tensor>> {
        if self.1 == Ids::Text {
            return Ok(None);
        }
        let rows = self.0.embedding.forward(cx, ids)?;
        self.0.aligner.forward(cx, &rows).map(Some)
    }

    fn logits(&self) -> usize {
        self.0.canvas.codes
    }

    fn write_to(&self, cx: &mut Ctx, rows: &Tensor, out: &Tensor) -> Result<()> {
        let [first, last] = &self.0.head;
        let rows = first.forward_act(cx, rows, self.0.act)?;
        last.write_to(cx, &rows, out)
    }

    fn id(&self) -> usize {
        // A step of text has the same sizes as one of codes.
        2 * self.0.id + usize::from(self.1 == Ids::Codes)
    }
}

/// Janus: a model that answers, and draws.
pub struct Janus {
    /// What answers.
    pub answers: Composed,
    /// What draws.
    pub drawing: Drawing,
}

impl Vlm for Janus {
    fn info(&self) -> &ModelInfo {
        self.answers.info()
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.answers.parts()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        self.answers.encode(cx, images)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.answers.forward(cx, batch, kv)
    }

    fn painter(&self) -> Option<&dyn Painter> {
        Some(self)
    }
}

impl Painter for Janus {
    fn canvas(&self) -> Canvas {
        self.drawing.canvas
    }

    fn scores(&self, cx: &mut Ctx, batch: &Packed, ids: Ids, kv: &KvCache) -> Result<Tensor> {
        self.answers.decoder().forward_between(cx, batch, kv, &Ends(&self.drawing, ids))
    }

    fn pixels(&self, cx: &mut Ctx, codes: &Tensor) -> Result<Tensor> {
        self.drawing.pixels.forward(cx, codes)
    }
}

/// Lays prompts of drawings out.
#[derive(Clone, Debug)]
pub struct Prompts {
    /// What begins a picture.
    first: String,
    /// The tokens that stay where nothing is asked for, and what stands for all others.
    kept: [Option<u32>; 2],
    filler: Option<u32>,
    /// How values of pixels are normalized.
    normalize: Normalize,
}

impl Prompts {
    /// Reads ids of `generation_config.json`; `first` begins a picture.
    pub fn load(files: &ModelFiles, first: &str, normalize: Normalize) -> Result<Self> {
        let config: Option<Value> = files.json("generation_config.json")?;
        let id = |pointer: &str| {
            let id = config.as_ref().and_then(|config| config.pointer(pointer)).and_then(Value::as_u64);
            id.and_then(|id| u32::try_from(id).ok())
        };
        let kept = [id("/bos_token_id"), id("/generation_kwargs/boi_token_id")];
        Ok(Self { first: first.to_owned(), kept, filler: id("/pad_token_id"), normalize })
    }

    /// The same with another normalization.
    pub fn with(self, normalize: Normalize) -> Self {
        Self { normalize, ..self }
    }
}

impl DrawingProcessor for Prompts {
    fn lay_out(&self, text: &str, tokenizer: &Tokenizer) -> Result<Guide> {
        let tokens = tokenizer.encode(&format!("{text}{}", self.first))?;
        let named = |id: Option<u32>, name: &str, other: Option<u32>| {
            id.or(other).ok_or_else(|| {
                Error::Request(format!("generation_config.json: {name}: expected a token id, found none"))
            })
        };
        let begin = named(self.kept[0], "bos_token_id", tokenizer.named_id("bos_token"))?;
        let boi = tokenizer.token_to_id(&self.first);
        let first = named(self.kept[1], "generation_kwargs.boi_token_id", boi)?;
        let filler = named(self.filler, "pad_token_id", tokenizer.named_id("pad_token"))?;
        let blank = |id: u32| if id == begin || id == first { id } else { filler };
        let without = tokens.iter().map(|&id| blank(id)).collect();
        Ok(Guide { with: Prompt::text(tokens), without: Prompt::text(without) })
    }

    fn picture(&self, values: &[f32], width: usize) -> Result<Rgb8Image> {
        let Normalize { mean, std } = self.normalize;
        // Cut off to whole levels, as the reference does.
        let level = |(i, &value): (usize, &f32)| (value * std[i % 3] + mean[i % 3]).clamp(0.0, 255.0) as u8;
        let data: Vec<u8> = values.iter().enumerate().map(level).collect();
        let height = (data.len() / 3).checked_div(width).unwrap_or(0);
        Rgb8Image::from_raw(width, height, data).ok_or_else(|| {
            Error::Request(format!(
                "a picture: expected rows of {width} pixels, found {} values",
                values.len()
            ))
        })
    }
}
