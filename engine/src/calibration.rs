//! Calibration data: requests that a model is run on to see what the inputs of its matrices are, and how far a copy drifts from it.

use std::collections::{HashMap, HashSet};
use std::ops::ControlFlow;
use std::sync::{Arc, Mutex, PoisonError};

use ocelli_kernels::{KernelError, Weights};
use serde::Serialize;

use crate::batch::{Batch, Chunk};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::image::PreparedImage;
use crate::kv::KvCache;
use crate::pipeline::Pipeline;
use crate::prompt::{Features, Prompt};
use crate::sample::SamplingParams;
use crate::scheduler::{Media, Request, generate};
use crate::weights::{Calibration, Checkpoint, Gatherer, Products, Seen, free_memory};

/// Rows that are answered together.
const TOGETHER: usize = 16;

/// A request of the data.
pub struct Row {
    /// Its prompt.
    pub prompt: Prompt,
    /// Its pictures.
    pub images: Vec<PreparedImage>,
}

/// Where the work on the data is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct At {
    /// What is done to rows.
    pub what: &'static str,
    /// Rows that are done.
    pub done: usize,
    /// Rows in all.
    pub all: usize,
}

/// Makes the rows of the data: each is made again whenever it is run, so that memory holds a few alone.
pub trait Rows {
    /// How many there are.
    fn count(&self) -> usize;

    /// The row of a number.
    ///
    /// # Errors
    /// If its pictures cannot be read, or the model cannot take it.
    fn row(&self, number: usize) -> Result<Row>;

    /// A text that differs where the data does.
    fn identity(&self) -> String;

    /// Is told where the work is; it may end it.
    fn at(&self, at: At) -> ControlFlow<()>;
}

/// How far a copy is from its source, on the tokens of the answers that the source gives.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Drift {
    /// Requests.
    pub rows: usize,
    /// Tokens of their answers.
    pub tokens: usize,
    /// Mean of the divergence of the copy's probabilities from the source's (Kullback-Leibler), in nats.
    pub kl: f64,
    /// The largest.
    pub kl_max: f64,
    /// Share of tokens that both find likeliest.
    pub top1: f64,
}

/// A model and the requests that it is run on: prompts, and the answers that it gives.
pub struct CalibrationSet<'a> {
    pipeline: &'a Pipeline,
    cx: &'a mut Ctx,
    checkpoint: &'a Checkpoint,
    rows: &'a dyn Rows,
    /// Most tokens of an answer.
    tokens: usize,
    /// Once they are asked for.
    answers: Vec<Vec<u32>>,
}

impl<'a> CalibrationSet<'a> {
    /// Rows that the model answers greedily, in `tokens` tokens at most, when that is first needed. `pipeline` is loaded from
    /// `checkpoint`.
    ///
    /// # Errors
    /// If there are no rows.
    pub fn new(
        pipeline: &'a Pipeline,
        cx: &'a mut Ctx,
        checkpoint: &'a Checkpoint,
        rows: &'a dyn Rows,
        tokens: usize,
    ) -> Result<Self> {
        if rows.count() == 0 {
            return Err(Error::Request("calibration data: expected at least one row, found none".into()));
        }
        Ok(Self { pipeline, cx, checkpoint, rows, tokens: tokens.max(1), answers: Vec::new() })
    }

    fn answer(&mut self) -> Result<()> {
        let all = self.rows.count();
        let params = SamplingParams { max_tokens: self.tokens, ..SamplingParams::default() };
        while self.answers.len() < all {
            let first = self.answers.len();
            told(self.rows, "answers", first)?;
            let request = |number| {
                let Row { prompt, images } = self.rows.row(number)?;
                let media = images.into_iter().map(Media::from).collect();
                Ok(Request { prompt, media, params: params.clone() })
            };
            let requests = (first..all.min(first + TOGETHER)).map(request).collect::<Result<Vec<_>>>()?;
            let (model, tokenizer) = (&self.pipeline.model, &self.pipeline.tokenizer);
            let given = generate(self.cx, model, tokenizer, requests, |_, _| ControlFlow::Continue(()))?;
            self.answers.extend(given.into_iter().map(|answer| answer.token_ids));
        }
        Ok(())
    }

    /// Runs a row with its answer; gives the logits that the answer's tokens were drawn from.
    fn run(pipeline: &Pipeline, cx: &mut Ctx, row: &Row, answer: &[u32]) -> Result<Vec<f32>> {
        let given: Vec<Option<Features>> = pipeline.encode(cx, &row.images)?.into_iter().map(Some).collect();
        let prompt = &row.prompt;
        // The last token of an answer is followed by none.
        let known = &answer[..answer.len().saturating_sub(1)];
        let tokens: Vec<u32> = prompt.tokens.iter().chain(known).copied().collect();
        let info = pipeline.model.info();
        let mut kv = KvCache::for_one(cx, &info.kv, prompt.extent().at(tokens.len()), tokens.len())?;
        let seq = kv.open(prompt.memory_rows());
        let want = known.len() + 1;
        let chunk = Chunk { seq, prompt, features: &given, tokens: &tokens, want };
        let batch = Batch { chunks: vec![chunk], ids: None };
        cx.scope(|cx| {
            let packed = batch.pack(cx, &mut kv, info.packing())?;
            let logits = pipeline.model.forward(cx, &packed, &kv)?;
            cx.download(&logits)
        })
    }

    /// How far a copy of the model is from it on these rows.
    ///
    /// # Errors
    /// If the copy cannot run on them.
    pub fn drift(&mut self, copy: &Pipeline, cx: &mut Ctx) -> Result<Drift> {
        self.answer()?;
        let mut drift = Drift { rows: self.answers.len(), tokens: 0, kl: 0.0, kl_max: 0.0, top1: 0.0 };
        let vocab = self.pipeline.model.info().vocab;
        for (number, answer) in self.answers.iter().enumerate() {
            told(self.rows, "drift", number)?;
            let row = self.rows.row(number)?;
            let ours = Self::run(self.pipeline, self.cx, &row, answer)?;
            let theirs = Self::run(copy, cx, &row, answer)?;
            for (p, q) in ours.chunks_exact(vocab).zip(theirs.chunks_exact(vocab)) {
                let kl = divergence(p, q);
                drift.tokens += 1;
                drift.kl += kl;
                drift.kl_max = drift.kl_max.max(kl);
                drift.top1 += f64::from(u8::from(likeliest(p) == likeliest(q)));
            }
        }
        let tokens = drift.tokens.max(1) as f64;
        (drift.kl, drift.top1) = (drift.kl / tokens, drift.top1 / tokens);
        Ok(drift)
    }
}

fn told(rows: &dyn Rows, what: &'static str, done: usize) -> Result<()> {
    match rows.at(At { what, done, all: rows.count() }) {
        ControlFlow::Continue(()) => Ok(()),
        ControlFlow::Break(()) => Err(Error::Cancelled),
    }
}

/// The token of the largest logit, the first of equals.
#[must_use]
pub fn likeliest(logits: &[f32]) -> usize {
    let mut best = 0;
    for (token, logit) in logits.iter().enumerate() {
        if *logit > logits[best] {
            best = token;
        }
    }
    best
}

/// `sum p ln(p / q)` of the probabilities that logits stand for.
#[must_use]
pub fn divergence(p: &[f32], q: &[f32]) -> f64 {
    let total = |logits: &[f32]| {
        let most = f64::from(logits.iter().copied().fold(f32::NEG_INFINITY, f32::max));
        most + logits.iter().map(|&logit| (f64::from(logit) - most).exp()).sum::<f64>().ln()
    };
    let (of_p, of_q) = (total(p), total(q));
    let sum = p.iter().zip(q).map(|(&p, &q)| {
        let (p, q) = (f64::from(p) - of_p, f64::from(q) - of_q);
        // Tokens that both rule out.
        if p == f64::NEG_INFINITY { 0.0 } else { p.exp() * (p - q) }
    });
    sum.sum::<f64>().max(0.0)
}

/// What the probe gathers.
struct Watch {
    products: Products,
    /// Modules by the memory of their weights; several where one product is of them all.
    places: HashMap<(usize, usize), Vec<String>>,
    /// Modules and what is gathered for them.
    gathered: Vec<(Vec<String>, Gatherer)>,
    by_module: HashMap<String, usize>,
    left: HashSet<String>,
    used: u64,
    memory: u64,
    /// Bytes that the host had left at first, where it says.
    free: Option<u64>,
}

impl Watch {
    /// Takes the input of a product.
    fn see(&mut self, w: &Weights, read: &mut dyn FnMut() -> Result<Vec<f32>>) -> Result<()> {
        let place = |at: &ocelli_kernels::View| self.places.get(&(at.storage().id(), at.offset()));
        let parts = w.parts().iter().filter_map(|part| place(part.planes.first()?));
        let names: Vec<String> = parts.flatten().cloned().collect();
        let Some(first) = names.first() else { return Ok(()) };
        let number = match self.by_module.get(first) {
            Some(&number) => number,
            None => {
                let bytes = Gatherer::bytes(w.k());
                let all = self.used + bytes;
                let full = self.used > 0 && all > self.memory || self.free.is_some_and(|free| all > free);
                if full || self.left.contains(first) {
                    self.left.extend(names);
                    return Ok(());
                }
                self.used += bytes;
                self.gathered.push((Vec::new(), Gatherer::new(&mut self.products, w.k())?));
                self.gathered.len() - 1
            }
        };
        let (modules, gatherer) = &mut self.gathered[number];
        for name in names {
            if !self.by_module.contains_key(&name) {
                self.by_module.insert(name.clone(), number);
                modules.push(name);
            }
        }
        Ok(gatherer.add(&mut self.products, &read()?)?)
    }

    fn finish(mut self) -> std::result::Result<Seen, KernelError> {
        let mut seen = Seen { left: self.left, ..Seen::default() };
        for (modules, gatherer) in self.gathered {
            let inputs = Arc::new(gatherer.finish(&mut self.products)?);
            seen.inputs.extend(modules.into_iter().map(|module| (module, inputs.clone())));
        }
        Ok(seen)
    }
}

impl Calibration for CalibrationSet<'_> {
    fn identity(&self) -> String {
        format!("{} {}", self.tokens, self.rows.identity())
    }

    fn inputs(&mut self, modules: &HashSet<&str>, memory: u64) -> Result<Seen> {
        self.answer()?;
        let mut places: HashMap<(usize, usize), Vec<String>> = HashMap::with_capacity(modules.len());
        let mut of_banks = HashSet::new();
        for bank in self.checkpoint.banks() {
            for expert in 0..bank.experts {
                let names = bank.projections.iter().map(|(name, _)| bank.module(expert, name));
                let names: Vec<String> = names.filter(|name| modules.contains(name.as_str())).collect();
                of_banks.extend(names.iter().cloned());
                if !names.is_empty() {
                    places.entry(bank.place(expert)).or_default().extend(names);
                }
            }
        }
        for &module in modules.iter().filter(|module| !of_banks.contains(**module)) {
            let view = self.checkpoint.tensor(&format!("{module}.weight"))?;
            places.entry((view.storage().id(), view.offset())).or_default().push(module.to_owned());
        }
        let watch = Watch {
            products: Products::new()?,
            places,
            gathered: Vec::new(),
            by_module: HashMap::new(),
            left: HashSet::new(),
            used: 0,
            memory,
            free: free_memory(),
        };
        let watch = Arc::new(Mutex::new(watch));
        let sink = watch.clone();
        self.cx.probe(Some(Box::new(move |w, read| {
            sink.lock().unwrap_or_else(PoisonError::into_inner).see(w, read)
        })));
        let mut run = || -> Result<()> {
            for (number, answer) in self.answers.iter().enumerate() {
                told(self.rows, "inputs", number)?;
                Self::run(self.pipeline, self.cx, &self.rows.row(number)?, answer)?;
            }
            Ok(())
        };
        let ran = run();
        self.cx.probe(None);
        ran?;
        let watch = Arc::into_inner(watch).ok_or_else(|| Error::Request("calibration: still seen".into()))?;
        Ok(watch.into_inner().unwrap_or_else(PoisonError::into_inner).finish()?)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences() {
        assert_eq!(divergence(&[1.0, 2.0, 3.0], &[11.0, 12.0, 13.0]), 0.0);
        let (half, third) = (0.5f64, 1.0f64 / 3.0);
        let expected = half * (half / third).ln() + half * (half / (2.0 * third)).ln();
        let found = divergence(&[0.0, 0.0], &[0.0, 2.0f32.ln()]);
        assert!((found - expected).abs() < 1e-6, "{found} {expected}");
        assert_eq!(divergence(&[0.0, f32::NEG_INFINITY], &[0.0, f32::NEG_INFINITY]), 0.0);
        assert_eq!(likeliest(&[1.0, 4.0, 4.0, 2.0]), 1);
    }
}
