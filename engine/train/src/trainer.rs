//! The loss of examples and its gradient.

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::image::PreparedImage;
use ocelli_engine::kv::KvCache;
use ocelli_engine::{Ctx, Error, Features, Result, Vlm};
use ocelli_kernels::DType;
use ocelli_kernels::ops::CrossEntropy;

use crate::examples::{Example, IGNORED};
use crate::learner::{Checked, Learner, Loss};
use crate::parameters::{Parameters, download};

/// Computes losses and gradients of a model.
pub struct Trainer<'a> {
    /// The model, on the memory of `parameters`.
    pub model: &'a dyn Vlm,
    /// What is trained.
    pub parameters: &'a Parameters,
    /// Most tokens of a pass; an example of more is a pass of its own.
    pub pass_tokens: usize,
    kv: Option<(Vec<usize>, KvCache)>,
}

impl<'a> Trainer<'a> {
    /// A trainer of a model.
    #[must_use]
    pub fn new(model: &'a dyn Vlm, parameters: &'a Parameters, pass_tokens: usize) -> Self {
        Self { model, parameters, pass_tokens, kv: None }
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
            if scale.is_some() {
                cx.record(&[self.parameters.trained()]);
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
        let logits = self.model.forward(cx, &packed, kv)?;
        let tape = cx.recorded();
        let labels = cx.upload(&[labels.len()], labels)?;
        let loss = cx.alloc(&[labels.size(0)], DType::F32)?;
        let d_logits = scale.map(|_| cx.alloc(logits.shape(), DType::F32)).transpose()?;
        let d_logits = d_logits.map(|tensor| cx.view(&tensor)).transpose()?;
        let op = CrossEntropy {
            x: cx.view(&logits)?,
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
                let went = tape.backward(cx, &logits, &d_logits);
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
