//! The loss of examples and its gradient.

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::tape::Trained;
use ocelli_engine::vlm::HeadApart;
use ocelli_engine::{Ctx, Error, Features, Result, Tensor, Vlm};
use ocelli_kernels::DType;
use ocelli_kernels::ops::{CrossEntropy, Pointwise};

use crate::examples::{Example, IGNORED};
use crate::learner::{Checked, Learner, Loss};
use crate::parameters::{Parameters, download};

/// Logits that exist at once, about: 64 MiB of f32.
const LOGITS: usize = 16 << 20;

/// Computes losses and gradients of a model.
pub struct Trainer<'a> {
    /// The model, on the memory of `parameters`.
    pub model: &'a dyn Vlm,
    /// What is trained.
    pub parameters: &'a Parameters,
    /// Most tokens of a pass; an example of more is a pass of its own.
    pub pass_tokens: usize,
    /// Whether activations of layers are computed again in place of being kept.
    pub lean: bool,
    kv: Option<(Vec<usize>, KvCache)>,
}

impl<'a> Trainer<'a> {
    /// A trainer of a model.
    #[must_use]
    pub fn new(model: &'a dyn Vlm, parameters: &'a Parameters, pass_tokens: usize) -> Self {
        Self { model, parameters, pass_tokens, lean: false, kv: None }
    }

    /// The loss alone.
    ///
    /// # Errors
    /// If the model cannot run an example.
    pub fn loss(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<Loss> {
        self.passes(cx, examples, None)
    }

    fn passes(&mut self, cx: &mut Ctx, examples: &[Example], scale: Option<f32>) -> Result<Loss> {
        let mut loss = Loss::default();
        let mut rest = examples;
        while !rest.is_empty() {
            let mut tokens = 0;
            let fits = rest.iter().take_while(|example| {
                tokens += example.prompt.len();
                tokens <= self.pass_tokens
            });
            let count = fits.count().max(1);
            let (pass, after) = rest.split_at(count);
            loss.add(self.pass(cx, pass, scale)?);
            rest = after;
        }
        Ok(loss)
    }

    fn pass(&mut self, cx: &mut Ctx, examples: &[Example], scale: Option<f32>) -> Result<Loss> {
        let mut kv = self.take_cache(cx, examples)?;
        let loss = cx.scope(|cx| {
            match (scale, self.lean) {
                (None, _) => {}
                (Some(_), false) => cx.record(&[self.parameters.trained()]),
                (Some(_), true) => cx.record_lean(&[self.parameters.trained()]),
            }
            let ran = self.run(cx, examples, &mut kv.1, scale);
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
    fn take_cache(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<(Vec<usize>, KvCache)> {
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

    fn run(&self, cx: &mut Ctx, examples: &[Example], kv: &mut KvCache, scale: Option<f32>) -> Result<Loss> {
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
        let done = self.read(cx, Batch { chunks, ids: None }, &labels, kv, scale);
        seqs.into_iter().for_each(|seq| kv.close(seq));
        let read = examples.iter().map(|example| example.prompt.len()).sum();
        Ok(Loss { nats: done?, tokens: labels.iter().filter(|&&label| label != IGNORED).count(), read })
    }

    fn read(
        &self,
        cx: &mut Ctx,
        batch: Batch<'_>,
        labels: &[i32],
        kv: &mut KvCache,
        scale: Option<f32>,
    ) -> Result<f64> {
        let packed = batch.pack(cx, kv, self.model.info().packing())?;
        let Some(parts) = self.model.apart() else {
            let logits = self.model.forward(cx, &packed, kv)?;
            return self.loss_of(cx, &logits, labels, scale);
        };
        let hidden = parts.hidden(cx, &packed, kv)?;
        let tape = cx.recorded();
        let done = self.head_by_rows(cx, parts, &hidden, labels, scale);
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
        labels: &[i32],
        scale: Option<f32>,
    ) -> Result<(f64, Option<Tensor>)> {
        let most = (LOGITS / self.model.info().vocab.max(1)).max(16);
        let (mut nats, mut given) = (0.0, hidden.clone());
        let mut d_hidden = None;
        if scale.is_some() {
            // Memory of its own, whose gradients have memory of their own.
            given = cx.alloc_owned(hidden.shape(), DType::F32)?;
            cx.exec("head", &Pointwise::new(cx.view(hidden)?, cx.view(&given)?))?;
            d_hidden = Some(cx.alloc_owned(hidden.shape(), DType::F32)?);
        }
        for first in (0..labels.len()).step_by(most) {
            let labels = &labels[first..labels.len().min(first + most)];
            nats += cx.scope(|cx| {
                if let Some(d_hidden) = &d_hidden {
                    let (values, grads) = (given.view().storage().clone(), d_hidden.view().storage().clone());
                    let ranges = vec![given.view().byte_range()];
                    cx.record(&[self.parameters.trained(), Trained { values, grads, ranges }]);
                }
                let logits = parts.head(cx, &given.narrow(0, first, labels.len())?)?;
                self.loss_of(cx, &logits, labels, scale)
            })?;
        }
        Ok((nats, d_hidden))
    }

    /// The loss of logits; with a scale, goes back through what is recorded.
    fn loss_of(&self, cx: &mut Ctx, logits: &Tensor, labels: &[i32], scale: Option<f32>) -> Result<f64> {
        let tape = cx.recorded();
        let labels = cx.upload(&[labels.len()], labels)?;
        let loss = cx.alloc(&[labels.size(0)], DType::F32)?;
        let d_logits = scale.map(|_| cx.alloc(logits.shape(), DType::F32)).transpose()?;
        let d_logits = d_logits.map(|tensor| cx.view(&tensor)).transpose()?;
        let op = CrossEntropy {
            x: cx.view(logits)?,
            labels: cx.view(&labels)?,
            scale: scale.unwrap_or(1.0),
            loss: cx.view(&loss)?,
            dx: d_logits.clone(),
        };
        let computed = cx.exec("loss", &op);
        let back = || -> Result<f64> {
            computed?;
            let values = download(cx, &op.loss)?;
            let nats: f64 = values.into_iter().map(f64::from).sum();
            if !nats.is_finite() {
                return Err(Error::Train(
                    "the loss is not finite: a smaller learning rate may help, or the weights are broken"
                        .into(),
                ));
            }
            Ok(nats)
        };
        let nats = back();
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
        let learnt: usize = examples.iter().map(Example::learnt).sum();
        self.passes(cx, examples, Some(1.0 / learnt.max(1) as f32))
    }

    fn check(&mut self, cx: &mut Ctx, examples: &[Example]) -> Result<Checked> {
        Ok(Checked { loss: self.loss(cx, examples)?.mean(), exact: None })
    }

    fn guess(&self) -> f64 {
        (self.model.info().vocab as f64).ln()
    }
}
