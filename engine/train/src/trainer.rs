//! The loss of examples and its gradient.

use std::ops::Range;

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::tape::Trained;
use ocelli_engine::vlm::HeadApart;
use ocelli_engine::{Ctx, Features, Pipeline, Result, Tensor, Vlm};
use ocelli_kernels::ops::{CrossEntropy, Pointwise};
use ocelli_kernels::{DType, View};

use crate::exact::exact;
use crate::examples::{Example, IGNORED};
use crate::learner::{Checked, Learner, Loss};
use crate::parameters::{Parameters, download};

/// Logits that exist at once, about: 64 MiB of f32.
const LOGITS: usize = 16 << 20;

/// Some logits of a pass, and what they are held against. The rows of a pass are those of its examples, of each from the
/// [first](Example::first) token that one which is learnt follows; they come in order, some at a time.
pub struct Part<'a> {
    /// Numbers of the examples of the pass.
    pub examples: Range<usize>,
    /// The first of these rows in the pass.
    pub first: usize,
    /// Logits, f32 `[rows, vocab]`.
    pub logits: View,
    /// The token that is learnt after each row; negative: none.
    pub labels: &'a [i32],
    /// The same, i32 `[rows]`.
    pub right: View,
    /// Factor of the gradient of the logits, and its place `[rows, vocab]`, which is to be written.
    pub gradient: Option<(f32, View)>,
}

/// What is learnt of logits.
pub trait Criterion {
    /// The sum of the rows' losses; their gradient is written where one is wanted.
    ///
    /// # Errors
    /// If they cannot be computed.
    fn loss(&mut self, cx: &mut Ctx, part: &Part<'_>) -> Result<f64>;
}

/// The logarithms of the right tokens' probabilities.
pub struct RightTokens;

impl Criterion for RightTokens {
    fn loss(&mut self, cx: &mut Ctx, part: &Part<'_>) -> Result<f64> {
        let loss = cx.alloc(&[part.labels.len()], DType::F32)?;
        let op = CrossEntropy {
            x: part.logits.clone(),
            labels: part.right.clone(),
            scale: part.gradient.as_ref().map_or(1.0, |(scale, _)| *scale),
            loss: cx.view(&loss)?,
            dx: part.gradient.as_ref().map(|(_, dx)| dx.clone()),
        };
        cx.exec("loss", &op)?;
        Ok(download(cx, &op.loss)?.into_iter().map(f64::from).sum())
    }
}

/// Computes losses and gradients of a model.
pub struct Trainer<'a> {
    /// The model, on the memory of `parameters`.
    pub model: &'a dyn Vlm,
    /// What is trained.
    pub parameters: Option<&'a Parameters>,
    /// Most tokens of a pass; an example of more is a pass of its own.
    pub pass_tokens: usize,
    /// Whether activations of layers are computed again in place of being kept.
    pub lean: bool,
    /// Who answers the questions of rows for validation.
    pub asks: Option<&'a Pipeline>,
    kv: Option<(Vec<usize>, KvCache)>,
}

impl<'a> Trainer<'a> {
    /// A trainer of a model.
    #[must_use]
    pub fn new(model: &'a dyn Vlm, parameters: &'a Parameters, pass_tokens: usize) -> Self {
        Self { parameters: Some(parameters), ..Self::untrained(model, pass_tokens) }
    }

    /// As [`new`](Self::new), of a model of which nothing is trained.
    #[must_use]
    pub fn untrained(model: &'a dyn Vlm, pass_tokens: usize) -> Self {
        Self { model, parameters: None, pass_tokens, lean: false, asks: None, kv: None }
    }

    /// The loss alone.
    ///
    /// # Errors
    /// If the model cannot run an example.
    pub fn loss(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<Loss> {
        self.passes(cx, &examples.iter().collect::<Vec<_>>(), None, &mut RightTokens)
    }

    /// Adds the gradient of the mean loss over the learnt tokens of all examples to that of the parameters, and gives the loss.
    ///
    /// # Errors
    /// If the model cannot run an example, or an op has no gradient.
    pub fn learn(&mut self, cx: &mut Ctx, examples: &[&Example]) -> Result<Loss> {
        let learnt: usize = examples.iter().map(|example| example.learnt()).sum();
        self.passes(cx, examples, Some(1.0 / learnt.max(1) as f32), &mut RightTokens)
    }

    /// The loss by a criterion; with a factor its gradient, which is added to that of the parameters.
    ///
    /// # Errors
    /// As [`learn`](Self::learn).
    pub fn passes(
        &mut self,
        cx: &mut Ctx,
        examples: &[&Example],
        scale: Option<f32>,
        criterion: &mut dyn Criterion,
    ) -> Result<Loss> {
        let (mut loss, mut start) = (Loss::default(), 0);
        while start < examples.len() {
            let mut tokens = 0;
            let fits = examples[start..].iter().take_while(|example| {
                tokens += example.prompt.len();
                tokens <= self.pass_tokens
            });
            let pass = start..start + fits.count().max(1);
            start = pass.end;
            loss.add(self.pass(cx, examples, pass, scale, criterion)?);
        }
        Ok(loss)
    }

    fn pass(
        &mut self,
        cx: &mut Ctx,
        examples: &[&Example],
        range: Range<usize>,
        scale: Option<f32>,
        criterion: &mut dyn Criterion,
    ) -> Result<Loss> {
        let mut kv = self.take_cache(cx, &examples[range.clone()])?;
        let loss = cx.scope(|cx| {
            if let (Some(_), Some(parameters)) = (scale, self.parameters) {
                match self.lean {
                    false => cx.record(&[parameters.trained()]),
                    true => cx.record_lean(&[parameters.trained()]),
                }
            }
            let ran = self.run(cx, &examples[range.clone()], range, &mut kv.1, scale, criterion);
            if ran.is_err()
                && let Some(tape) = cx.recorded()
            {
                cx.forget(tape);
            }
            ran
        });
        self.kv = Some(kv);
        loss
    }

    /// A cache with pages for the examples: the last one, if it has as many.
    fn take_cache(&mut self, cx: &mut Ctx, examples: &[&Example]) -> Result<(Vec<usize>, KvCache)> {
        let layout = &self.model.info().kv;
        let pages = |group: &ocelli_engine::kv::KvGroup| {
            examples
                .iter()
                .map(|example| group.most_pages(example.prompt.extent(), example.prompt.len()))
                .sum()
        };
        let needed: Vec<usize> = layout.0.iter().map(pages).collect();
        match self.kv.take() {
            Some((pages, cache)) if pages.iter().zip(&needed).all(|(has, needs)| has >= needs) => {
                Ok((pages, cache))
            }
            _ => {
                let cache = KvCache::new(cx, layout, &needed)?;
                Ok((needed, cache))
            }
        }
    }

    fn run(
        &self,
        cx: &mut Ctx,
        examples: &[&Example],
        range: Range<usize>,
        kv: &mut KvCache,
        scale: Option<f32>,
        criterion: &mut dyn Criterion,
    ) -> Result<Loss> {
        let pictures: Vec<&PreparedImage> =
            examples.iter().flat_map(|example| &example.pictures).map(|picture| &**picture).collect();
        let features = if pictures.is_empty() { Vec::new() } else { self.model.encode(cx, &pictures)? };
        let mut features = features.into_iter();
        let features: Vec<Vec<Option<Features>>> = examples
            .iter()
            .map(|example| features.by_ref().take(example.pictures.len()).map(Some).collect())
            .collect();
        let mut labels: Vec<i32> = Vec::new();
        let mut chunks = Vec::with_capacity(examples.len());
        for (example, features) in examples.iter().zip(&features) {
            let first = example.first();
            labels.extend(&example.labels[first..]);
            chunks.push(Chunk {
                seq: kv.open(example.prompt.memory_rows()),
                prompt: &example.prompt,
                features,
                tokens: &example.prompt.tokens,
                want: example.prompt.len() - first,
            });
        }
        let seqs: Vec<_> = chunks.iter().map(|chunk| chunk.seq).collect();
        let mut held = Held { examples: range, first: 0, labels: &labels, scale, criterion };
        let done = self.read(cx, Batch { chunks, ids: None }, kv, &mut held);
        seqs.into_iter().for_each(|seq| kv.close(seq));
        let read = examples.iter().map(|example| example.prompt.len()).sum();
        Ok(Loss { nats: done?, tokens: labels.iter().filter(|&&label| label != IGNORED).count(), read })
    }

    fn read(&self, cx: &mut Ctx, batch: Batch<'_>, kv: &mut KvCache, held: &mut Held<'_, '_>) -> Result<f64> {
        let packed = batch.pack(cx, kv, self.model.info().packing())?;
        let Some(parts) = self.model.apart() else {
            let logits = self.model.forward(cx, &packed, kv)?;
            return held.loss(cx, &logits);
        };
        let hidden = parts.hidden(cx, &packed, kv)?;
        let tape = cx.recorded();
        let done = self.head_by_rows(cx, parts, &hidden, held);
        let done = match (&done, tape) {
            (Ok((_, Some(d_hidden))), Some(mut tape)) => {
                let went = cx.view(d_hidden).and_then(|d_hidden| tape.backward(cx, &hidden, &d_hidden));
                cx.forget(tape);
                went.and(done)
            }
            (_, Some(tape)) => {
                cx.forget(tape);
                done
            }
            (_, None) => done,
        };
        done.map(|(nats, _)| nats)
    }

    /// The loss of rows before the head, and its gradient by them, some rows at a time.
    fn head_by_rows(
        &self,
        cx: &mut Ctx,
        parts: &dyn HeadApart,
        hidden: &Tensor,
        held: &mut Held<'_, '_>,
    ) -> Result<(f64, Option<Tensor>)> {
        let most = (LOGITS / self.model.info().vocab.max(1)).max(16);
        let (mut nats, mut given) = (0.0, hidden.clone());
        let learns = self.parameters.filter(|_| held.scale.is_some());
        let mut d_hidden = None;
        if learns.is_some() {
            // Memory of its own, whose gradients have memory of their own.
            given = cx.alloc_owned(hidden.shape(), DType::F32)?;
            cx.exec("head", &Pointwise::new(cx.view(hidden)?, cx.view(&given)?))?;
            d_hidden = Some(cx.alloc_owned(hidden.shape(), DType::F32)?);
        }
        let rows = held.labels.len();
        for first in (0..rows).step_by(most) {
            let count = most.min(rows - first);
            nats += cx.scope(|cx| {
                if let (Some(parameters), Some(d_hidden)) = (learns, &d_hidden) {
                    let (values, grads) = (given.view().storage().clone(), d_hidden.view().storage().clone());
                    let ranges = vec![given.view().byte_range()];
                    cx.record(&[parameters.trained(), Trained { values, grads, ranges }]);
                }
                let logits = parts.head(cx, &given.narrow(0, first, count)?)?;
                held.loss(cx, &logits)
            })?;
        }
        Ok((nats, d_hidden))
    }
}

/// What the rows of a pass are held against, from the first that has not come yet.
struct Held<'a, 'b> {
    examples: Range<usize>,
    first: usize,
    labels: &'a [i32],
    scale: Option<f32>,
    criterion: &'b mut dyn Criterion,
}

impl Held<'_, '_> {
    /// The loss of the next rows; with a scale, goes back through what is recorded.
    fn loss(&mut self, cx: &mut Ctx, logits: &Tensor) -> Result<f64> {
        let tape = cx.recorded();
        let labels = &self.labels[self.first..self.first + logits.size(0)];
        let right = cx.upload(&[labels.len()], labels)?;
        let d_logits = self.scale.map(|_| cx.alloc(logits.shape(), DType::F32)).transpose()?;
        let d_logits = d_logits.map(|tensor| cx.view(&tensor)).transpose()?;
        let part = Part {
            examples: self.examples.clone(),
            first: self.first,
            logits: cx.view(logits)?,
            labels,
            right: cx.view(&right)?,
            gradient: self.scale.zip(d_logits.clone()),
        };
        self.first += labels.len();
        let nats = self.criterion.loss(cx, &part);
        match (tape, d_logits, nats) {
            (Some(mut tape), Some(d_logits), Ok(nats)) => {
                let went = tape.backward(cx, logits, &d_logits);
                cx.forget(tape);
                went.map(|()| nats)
            }
            (Some(tape), _, nats) => {
                cx.forget(tape);
                nats
            }
            (None, _, nats) => nats,
        }
    }
}

impl Learner<Example> for Trainer<'_> {
    fn gradient(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<Loss> {
        self.learn(cx, &examples.iter().collect::<Vec<_>>())
    }

    fn check(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<Checked> {
        let loss = self.loss(cx, examples)?.mean();
        let exact = self.asks.map_or(Ok(None), |pipeline| exact(cx, pipeline, examples))?;
        Ok(Checked { loss, exact })
    }

    fn guess(&self) -> f64 {
        (self.model.info().vocab as f64).ln()
    }
}

/// A trainer of texts that became several examples each.
pub struct TextTrainer<'a>(pub Trainer<'a>);

impl Learner<Vec<Example>> for TextTrainer<'_> {
    fn gradient(&mut self, cx: &mut Ctx, examples: &[Vec<Example>]) -> Result<Loss> {
        self.0.learn(cx, &examples.iter().flatten().collect::<Vec<_>>())
    }

    fn check(&mut self, cx: &mut Ctx, examples: &[Vec<Example>]) -> Result<Checked> {
        let all: Vec<&Example> = examples.iter().flatten().collect();
        Ok(Checked { loss: self.0.passes(cx, &all, None, &mut RightTokens)?.mean(), exact: None })
    }

    fn guess(&self) -> f64 {
        self.0.guess()
    }
}
