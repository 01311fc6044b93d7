//! Pictures that models draw: tokens one after the other, guided by a prompt, then pixels of the tokens.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ocelli_kernels::ops::{MixRows, NO_TOKEN, Sample, params as column};
use ocelli_kernels::{DType, Fetch};
use serde::Deserialize;

use crate::batch::{Batch, Chunk, Packed};
use crate::ctx::{Ctx, Stage};
use crate::error::{Error, Result};
use crate::files::{FileError, ModelFiles};
use crate::image::Rgb8Image;
use crate::kv::{Extent, KvCache, SeqId};
use crate::prompt::Prompt;
use crate::sample::{ParamError, uniform};
use crate::tensor::Tensor;
use crate::text::Tokenizer;
use crate::timing::Phase;
use crate::vlm::Vlm;

/// What a model draws on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Canvas {
    /// Tokens of a picture, row by row.
    pub tokens: usize,
    /// Codes that a token is one of.
    pub codes: usize,
    /// Pixels of a row.
    pub width: usize,
    /// Rows of pixels.
    pub height: usize,
}

/// What the ids of a batch are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ids {
    /// Tokens of the vocabulary.
    Text,
    /// Codes of tokens of a picture.
    Codes,
}

/// A model that draws.
pub trait Painter: Send + Sync {
    /// What it draws on.
    fn canvas(&self) -> Canvas;

    /// Scores of the codes for the wanted rows, f32 `[rows_wanted, codes]`; new keys and values go to `kv`. The result lives in
    /// the caller's scope of `cx`.
    fn scores(&self, cx: &mut Ctx, batch: &Packed, ids: Ids, kv: &KvCache) -> Result<Tensor>;

    /// The values of a picture's pixels, `[height * width, 3]` in the caller's scope of `cx`, of its codes, i32 `[tokens]`.
    fn pixels(&self, cx: &mut Ctx, codes: &Tensor) -> Result<Tensor>;
}

/// How prompts and pixels of drawings are laid out. It has no weights and may be used on any thread.
pub trait DrawingProcessor {
    /// Tokens of a rendered conversation that asks for a picture.
    fn lay_out(&self, text: &str, tokenizer: &Tokenizer) -> Result<Guide>;

    /// The picture of so many columns that pixels with these values are, `[height * width, 3]`.
    fn picture(&self, values: &[f32], width: usize) -> Result<Rgb8Image>;
}

/// What guides a drawing.
#[derive(Clone, Debug)]
pub struct Guide {
    /// What is asked for.
    pub with: Prompt,
    /// The same without what is asked for: scores go away from what it gives.
    pub without: Prompt,
}

/// How pictures are drawn.
#[derive(Clone, Debug, PartialEq)]
pub struct DrawingParams {
    /// Scores are `without + guidance * (with - without)`; 1 takes those with the prompt alone.
    pub guidance: f32,
    /// 0 is greedy: the largest score.
    pub temperature: f32,
    /// Sample among this many most likely codes; 0 is all.
    pub top_k: u32,
    /// Sample among the most likely codes that reach this mass; 1 is all.
    pub top_p: f32,
    /// Seed of the random numbers; picture `i` is the same in any number of pictures.
    pub seed: u64,
    /// Pictures.
    pub count: usize,
}

impl Default for DrawingParams {
    fn default() -> Self {
        Self { guidance: 5.0, temperature: 1.0, top_k: 0, top_p: 1.0, seed: 0, count: 1 }
    }
}

impl DrawingParams {
    /// What a model is best drawn with, as `guidance_scale`, `temperature`, `top_k` and `top_p` of its generation_config.json say; what that
    /// does not say is as [`default`](Self::default).
    ///
    /// # Errors
    /// If the file cannot be read, or a number of it is none or outside its range.
    pub fn of(files: &ModelFiles) -> Result<Self> {
        #[derive(Default, Deserialize)]
        struct Stored {
            guidance_scale: Option<f32>,
            temperature: Option<f32>,
            top_k: Option<u32>,
            top_p: Option<f32>,
        }
        const FILE: &str = "generation_config.json";
        let stored: Stored = files.json(FILE)?.unwrap_or_default();
        let default = Self::default();
        let params = Self {
            guidance: stored.guidance_scale.unwrap_or(default.guidance),
            temperature: stored.temperature.unwrap_or(default.temperature),
            top_k: stored.top_k.unwrap_or(default.top_k),
            top_p: stored.top_p.unwrap_or(default.top_p),
            ..default
        };
        params.validate().map_err(|error| FileError::Field {
            path: files.describe(FILE),
            field: if error.name == "guidance" { "guidance_scale" } else { error.name }.into(),
            reason: format!("expected {}, found {}", error.expected, error.found),
        })?;
        Ok(params)
    }

    /// Checks every range.
    ///
    /// # Errors
    /// Names the first parameter that is outside its range.
    pub fn validate(&self) -> Result<(), ParamError> {
        let checks = [
            ("guidance", "a number, 1 or above", self.guidance, self.guidance >= 1.0),
            ("temperature", "a number, 0 or above", self.temperature, self.temperature >= 0.0),
            ("top_p", "a number above 0, at most 1", self.top_p, self.top_p > 0.0 && self.top_p <= 1.0),
        ];
        for (name, expected, value, ok) in checks {
            if !(ok && value.is_finite()) {
                return Err(ParamError { name, expected, found: value.to_string() });
            }
        }
        if self.count == 0 {
            return Err(ParamError { name: "count", expected: "1 or more", found: "0".into() });
        }
        Ok(())
    }
}

/// What was drawn.
#[derive(Clone, Debug)]
pub struct Drawn {
    /// Codes of each picture.
    pub codes: Vec<Vec<u32>>,
    /// Time over the prompts.
    pub prompt: Duration,
    /// Time over the tokens.
    pub tokens: Duration,
}

/// The model as one that draws.
///
/// # Errors
/// If it does not.
pub fn painter(model: &dyn Vlm) -> Result<&dyn Painter> {
    let family = model.info().family;
    model.painter().ok_or_else(|| Error::Request(format!("models of family {family} do not draw")))
}

/// Draws the tokens of pictures, all at once; `each` hears of every token that all pictures have and may end it, which is
/// [`Error::Cancelled`].
pub fn draw(
    cx: &mut Ctx,
    model: &Arc<dyn Vlm>,
    guide: &Guide,
    params: &DrawingParams,
    mut each: impl FnMut() -> ControlFlow<()>,
) -> Result<Drawn> {
    let mut drawing = Drawing::new(cx, model.clone(), guide.clone(), params.clone())?;
    loop {
        let (before, done) = (drawing.tokens_drawn(), drawing.advance(cx)?);
        if drawing.tokens_drawn() > before && each().is_break() {
            return Err(Error::Cancelled);
        }
        if done {
            return Ok(drawing.into_drawn());
        }
    }
}

/// A drawing on its way, token by token: sequences of each picture with the prompt, then, where there is guidance, of each one without.
pub struct Drawing {
    model: Arc<dyn Vlm>,
    canvas: Canvas,
    guide: Guide,
    params: DrawingParams,
    seqs: Vec<SeqId>,
    kv: KvCache,
    /// i32: the codes chosen last, one for each sequence.
    ids: Tensor,
    /// Tokens that were begun.
    begun: usize,
    /// One is under way while the host reads what the one before chose.
    waiting: Option<Box<dyn Fetch>>,
    codes: Vec<Vec<u32>>,
    start: Instant,
    prompt: Duration,
}

/// Scores of each step, `[sequences, codes]`: those with the prompt before those without.
pub const SCORES: Stage = Stage::of("scores");

impl Drawing {
    /// Memory for a drawing, of which nothing is computed yet.
    pub fn new(cx: &mut Ctx, model: Arc<dyn Vlm>, guide: Guide, params: DrawingParams) -> Result<Self> {
        params.validate()?;
        let (canvas, info) = (painter(&*model)?.canvas(), model.info());
        let sequences = if params.guidance == 1.0 { params.count } else { 2 * params.count };
        let longest = guide.with.len().max(guide.without.len());
        let positions = longest + canvas.tokens;
        if positions > info.max_positions {
            let limit = info.max_positions.saturating_sub(canvas.tokens);
            return Err(Error::PromptTooLong { limit, found: longest });
        }
        let extent = Extent { tokens: positions, memory: 0 };
        let pages = info.kv.0.iter().map(|group| group.most_pages(extent, longest) * sequences);
        let pages: Vec<usize> = pages.collect();
        let mut kv = KvCache::new(cx, &info.kv, &pages)?;
        let seqs = (0..sequences).map(|_| kv.open(0)).collect();
        let ids = cx.alloc_owned(&[sequences.next_power_of_two()], DType::I32)?;
        let codes = vec![Vec::with_capacity(canvas.tokens); params.count];
        let (begun, waiting, start, prompt) = (0, None, Instant::now(), Duration::ZERO);
        Ok(Self { model, canvas, guide, params, seqs, kv, ids, begun, waiting, codes, start, prompt })
    }

    /// Tokens that each picture has.
    #[must_use]
    pub fn tokens_drawn(&self) -> usize {
        self.codes.first().map_or(0, Vec::len)
    }

    /// Begins the next token and waits for the one before; true once all are there.
    pub fn advance(&mut self, cx: &mut Ctx) -> Result<bool> {
        let next = if self.begun < self.canvas.tokens { Some(self.step(cx, self.begun)?) } else { None };
        self.begun += usize::from(next.is_some());
        if let Some(fetch) = std::mem::replace(&mut self.waiting, next) {
            let bytes = fetch.wait()?;
            for (codes, id) in self.codes.iter_mut().zip(bytes.as_chunks().0) {
                match i32::from_le_bytes(*id) {
                    NO_TOKEN => return Err(Error::NotNumbers),
                    id => codes.push(id as u32),
                }
            }
            if self.tokens_drawn() == 1 {
                self.prompt = self.start.elapsed();
            }
        }
        Ok(self.waiting.is_none() && self.begun == self.canvas.tokens)
    }

    /// What was drawn.
    #[must_use]
    pub fn into_drawn(self) -> Drawn {
        Drawn { codes: self.codes, prompt: self.prompt, tokens: self.start.elapsed() - self.prompt }
    }

    /// Chooses the code of a token for every picture; those of the pictures are on their way to the host.
    fn step(&mut self, cx: &mut Ctx, token: usize) -> Result<Box<dyn Fetch>> {
        let (ids, phase) = if token == 0 { (Ids::Text, Phase::Prefill) } else { (Ids::Codes, Phase::Decode) };
        cx.during(phase, |cx| cx.scope(|cx| self.step_in(cx, token, ids)))
    }

    fn step_in(&mut self, cx: &mut Ctx, token: usize, ids: Ids) -> Result<Box<dyn Fetch>> {
        let chunks = self.seqs.iter().enumerate().map(|(number, &seq)| {
            let prompt = if number < self.params.count { &self.guide.with } else { &self.guide.without };
            let tokens: &[u32] = if ids == Ids::Text { &prompt.tokens } else { &[0] };
            Chunk { seq, prompt, features: &[], tokens, want: 1 }
        });
        let known = (ids == Ids::Codes).then(|| self.ids.clone());
        let batch = Batch { chunks: chunks.collect(), ids: known };
        let packed = batch.pack(cx, &mut self.kv, self.model.info().packing())?;
        let scores = painter(&*self.model)?.scores(cx, &packed, ids, &self.kv)?;
        cx.stage(SCORES, &scores.narrow(0, 0, self.seqs.len())?)?;
        let guided = self.guided(cx, &scores)?;
        let out = self.ids.narrow(0, 0, self.seqs.len())?;
        self.sample(cx, &guided, token, &out)?;
        cx.fetch(&out.narrow(0, 0, self.params.count)?)
    }

    /// Scores of each sequence, those of a picture's two sequences mixed: `[sequences, codes]`.
    fn guided(&self, cx: &mut Ctx, scores: &Tensor) -> Result<Tensor> {
        let (count, seqs) = (self.params.count, self.seqs.len());
        if seqs == count {
            return scores.narrow(0, 0, count);
        }
        let ids: Vec<i32> =
            (0..seqs).flat_map(|row| [(row % count) as i32, (row % count + count) as i32]).collect();
        let weights = [self.params.guidance, 1.0 - self.params.guidance].repeat(seqs);
        let (ids, weights) = (cx.upload(&[seqs, 2], &ids)?, cx.upload(&[seqs, 2], &weights)?);
        let out = cx.alloc(&[seqs, self.canvas.codes], DType::F32)?;
        let op = MixRows {
            src: cx.view(scores)?,
            ids: Some(cx.view(&ids)?),
            weights: cx.view(&weights)?,
            add: false,
            out: cx.view(&out)?,
        };
        cx.exec("guidance", &op)?;
        Ok(out)
    }

    /// Chooses a code for each row: both sequences of a picture get the same.
    fn sample(&self, cx: &mut Ctx, scores: &Tensor, token: usize, out: &Tensor) -> Result<()> {
        let params = &self.params;
        let row = |seq: usize| {
            let mut row = [0f32; column::COUNT];
            row[column::TEMPERATURE] = params.temperature;
            row[column::TOP_K] = params.top_k as f32;
            row[column::TOP_P] = params.top_p;
            row[column::REPETITION_PENALTY] = 1.0;
            row[column::UNIFORM] = uniform(params.seed, (seq % params.count) as u64, token as u64);
            row
        };
        let settings: Vec<f32> = (0..self.seqs.len()).flat_map(row).collect();
        let settings = cx.upload(&[self.seqs.len(), column::COUNT], &settings)?;
        let op = Sample {
            logits: cx.view(scores)?,
            params: cx.view(&settings)?,
            history: None,
            mask: None,
            out: cx.view(out)?,
        };
        cx.exec("sample", &op)
    }
}

/// The values of a picture's pixels, `[height * width, 3]`, of its codes.
pub fn pixels(cx: &mut Ctx, painter: &dyn Painter, codes: &[u32]) -> Result<Vec<f32>> {
    let canvas = painter.canvas();
    if codes.len() != canvas.tokens || codes.iter().any(|&code| code as usize >= canvas.codes) {
        let Canvas { tokens, codes, .. } = canvas;
        return Err(Error::Request(format!("a picture: expected {tokens} codes below {codes}")));
    }
    cx.scope(|cx| {
        let codes: Vec<i32> = codes.iter().map(|&code| code as i32).collect();
        let codes = cx.upload(&[codes.len()], &codes)?;
        let values = painter.pixels(cx, &codes)?;
        cx.download(&values)
    })
}

#[cfg(test)]
mod tests {
    use super::{DrawingParams, ModelFiles};

    #[test]
    fn ranges_of_parameters() {
        let of = |change: fn(&mut DrawingParams)| {
            let mut params = DrawingParams::default();
            change(&mut params);
            params.validate().err().map(|error| error.name)
        };
        assert_eq!(of(|_| ()), None);
        assert_eq!(of(|params| params.guidance = 0.5), Some("guidance"));
        assert_eq!(of(|params| params.guidance = f32::NAN), Some("guidance"));
        assert_eq!(of(|params| params.temperature = -1.0), Some("temperature"));
        assert_eq!(of(|params| params.top_p = 0.0), Some("top_p"));
        assert_eq!(of(|params| params.count = 0), Some("count"));
    }

    #[test]
    fn what_a_model_says_of_itself() {
        const SAYS: ModelFiles = ModelFiles::Embedded {
            label: "says",
            files: &[(
                "generation_config.json",
                br#"{"guidance_scale": 1.5, "top_k": 8, "temperature": null}"#,
            )],
        };
        const NOTHING: ModelFiles = ModelFiles::Embedded { label: "nothing", files: &[] };
        const WRONG: ModelFiles = ModelFiles::Embedded {
            label: "wrong",
            files: &[("generation_config.json", br#"{"guidance_scale": 0.5}"#)],
        };
        let says = DrawingParams { guidance: 1.5, top_k: 8, ..DrawingParams::default() };
        assert_eq!(DrawingParams::of(&SAYS).unwrap(), says);
        assert_eq!(DrawingParams::of(&NOTHING).unwrap(), DrawingParams::default());
        let error = DrawingParams::of(&WRONG).unwrap_err().to_string();
        for part in ["generation_config.json", "guidance_scale", "1 or above", "0.5"] {
            assert!(error.contains(part), "{error}");
        }
    }
}
