//! Learning of pairs by dual encoders: vectors of pictures and texts that belong together are to be alike, all others not.
//!
//! The loss is of the whole batch, but its memory is that of `chunk` pairs (gradient caching: Gao et al., "Scaling deep contrastive
//! learning batch size under memory limited setup", 2021): vectors of all chunks without a tape, the loss and the gradients of the vectors,
//! then chunk by chunk again with a tape, backward from those. A batch of one chunk goes forward once.

use std::sync::Arc;

use ocelli_engine::image::PreparedImage;
use ocelli_engine::tape::Tape;
use ocelli_engine::vlm::Chance;
use ocelli_engine::{Ctx, Embedder, Error, Result, Tensor};
use ocelli_kernels::ops::{ContrastiveKind, ContrastiveLoss, Matmul, Pointwise};
use ocelli_kernels::{DType, View, Weights};
use serde::{Deserialize, Serialize};

use crate::learner::{Checked, Learner, Loss};
use crate::parameters::{Parameters, download};

/// A picture and a text that belong together.
#[derive(Clone)]
pub struct Pair {
    /// The picture.
    pub picture: Arc<PreparedImage>,
    /// Tokens of the text, as the model wants them.
    pub text: Vec<u32>,
}

/// Largest logarithm of the factor of products: that of 100, as CLIP has it.
const MOST_SCALE: f32 = 4.605_170_2;

/// Rows of products that are ranked at a time.
const RANKED: usize = 512;

/// What a dual encoder has two of.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Side {
    Pictures,
    Texts,
}

/// Of how many the nearest one of the other side belongs to them: shares of all.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Recall {
    /// Of pictures: the nearest text is theirs.
    pub texts: f64,
    /// Of texts: the nearest picture is theirs.
    pub pictures: f64,
}

/// Computes losses and gradients of a dual encoder.
pub struct Contrastive<'a> {
    /// The model, on the memory of `parameters`.
    pub model: &'a dyn Embedder,
    /// What is trained.
    pub parameters: &'a Parameters,
    /// Most pairs of a pass: bounds the memory of activations, and changes no result but for rounding.
    pub chunk: usize,
    /// Pairs of a step: validation is in batches of as many.
    pub batch: usize,
    /// What the last validation came to.
    recall: Option<Recall>,
    kind: ContrastiveKind,
    scale: Number,
    bias: Option<Number>,
    /// Whether nothing of the pictures' side, and of the texts', is trained.
    still: [bool; 2],
}

/// A parameter of one number.
#[derive(Clone)]
struct Number {
    value: View,
    /// Its gradient, if it is trained.
    grad: Option<View>,
}

impl Number {
    fn of(parameters: &Parameters, name: &str) -> Result<Self> {
        let parameter = parameters.find(name)?;
        let (found, grad) = (parameter.len(), parameter.trained.then(|| parameters.grads(&parameter.bytes)));
        if found != 1 {
            return Err(Error::Train(format!("`{name}`: expected one number, found {found}")));
        }
        Ok(Self { value: parameters.values(&parameter.bytes)?, grad: grad.transpose()? })
    }
}

impl<'a> Contrastive<'a> {
    /// A trainer of a model, whose scoring says which loss is its own: softmax with `logit_scale` as CLIP's, sigmoid with `logit_bias`
    /// too as SigLIP's.
    ///
    /// # Errors
    /// If the model has no such parameters.
    pub fn new(
        model: &'a dyn Embedder,
        parameters: &'a Parameters,
        (batch, chunk): (usize, usize),
    ) -> Result<Self> {
        let scale = Number::of(parameters, "logit_scale")?;
        let (kind, bias) = match model.scoring().chance {
            Chance::OneOf => (ContrastiveKind::Softmax, None),
            Chance::Each => (ContrastiveKind::Sigmoid, Some(Number::of(parameters, "logit_bias")?)),
        };
        let (batch, chunk) = (batch.max(1), chunk.max(1));
        Ok(Self { model, parameters, chunk, batch, recall: None, kind, scale, bias, still: [false; 2] })
    }

    fn step(&mut self, cx: &mut Ctx, pairs: &[Pair]) -> Result<Loss> {
        cx.scope(|cx| {
            let shape = [pairs.len(), self.model.info().d_model];
            if pairs.len() <= self.chunk {
                // Texts are recorded last, and go first.
                let (pictures, of_pictures) = self.taped(cx, pairs, Side::Pictures)?;
                let (texts, of_texts) = self.taped(cx, pairs, Side::Texts)?;
                let (loss, [da, db]) = self.loss(cx, &pictures, &texts, true)?;
                for (vectors, tape, gradient) in [(texts, of_texts, db), (pictures, of_pictures, da)] {
                    back(cx, tape, &vectors, gradient)?;
                }
                return Ok(loss);
            }
            let (pictures, texts) = (cx.alloc(&shape, DType::F32)?, cx.alloc(&shape, DType::F32)?);
            self.vectors(cx, pairs, &pictures, &texts)?;
            let (loss, [da, db]) = self.loss(cx, &pictures, &texts, true)?;
            for (side, gradient) in [(Side::Pictures, da), (Side::Texts, db)] {
                let mut first = 0;
                for chunk in pairs.chunks(self.chunk) {
                    let part = gradient.as_ref().map(|gradient| gradient.narrow(0, first, chunk.len()));
                    let part = part.transpose()?;
                    first += chunk.len();
                    if self.still[side as usize] {
                        continue;
                    }
                    cx.scope(|cx| {
                        let (vectors, tape) = self.taped(cx, chunk, side)?;
                        back(cx, tape, &vectors, part)
                    })?;
                }
            }
            Ok(loss)
        })
    }

    /// The loss of pairs in batches, and the recall among all.
    ///
    /// # Errors
    /// If the model cannot run a pair.
    pub fn rank(&self, cx: &mut Ctx, pairs: &[Pair]) -> Result<(Loss, Recall)> {
        cx.scope(|cx| {
            let shape = [pairs.len(), self.model.info().d_model];
            let (pictures, texts) = (cx.alloc(&shape, DType::F32)?, cx.alloc(&shape, DType::F32)?);
            self.vectors(cx, pairs, &pictures, &texts)?;
            let mut loss = Loss::default();
            for first in (0..pairs.len()).step_by(self.batch) {
                let count = self.batch.min(pairs.len() - first);
                let part = |all: &Tensor| all.narrow(0, first, count);
                loss.add(self.loss(cx, &part(&pictures)?, &part(&texts)?, false)?.0);
            }
            let of_pictures = recall(cx, pairs, &pictures, &texts)?;
            let of_texts = recall(cx, pairs, &texts, &pictures)?;
            Ok((loss, Recall { texts: of_pictures, pictures: of_texts }))
        })
    }

    /// Vectors of one side, in the caller's scope.
    fn side(&self, cx: &mut Ctx, pairs: &[Pair], side: Side) -> Result<Tensor> {
        match side {
            Side::Pictures => {
                let pictures: Vec<&PreparedImage> = pairs.iter().map(|pair| &*pair.picture).collect();
                self.model.images(cx, &pictures)
            }
            Side::Texts => {
                let texts: Vec<Vec<u32>> = pairs.iter().map(|pair| pair.text.clone()).collect();
                self.model.texts(cx, &texts)
            }
        }
    }

    /// Vectors of all pairs, chunk by chunk.
    fn vectors(&self, cx: &mut Ctx, pairs: &[Pair], pictures: &Tensor, texts: &Tensor) -> Result<()> {
        let mut first = 0;
        for chunk in pairs.chunks(self.chunk) {
            for (side, to) in [(Side::Pictures, pictures), (Side::Texts, texts)] {
                let to = to.narrow(0, first, chunk.len())?;
                cx.scope(|cx| {
                    let from = self.side(cx, chunk, side)?;
                    cx.exec("vectors", &Pointwise::new(cx.view(&from)?, cx.view(&to)?))
                })?;
            }
            first += chunk.len();
        }
        Ok(())
    }

    /// Vectors of one side, with what was recorded of them unless nothing there is trained.
    fn taped(&mut self, cx: &mut Ctx, pairs: &[Pair], side: Side) -> Result<(Tensor, Option<Tape>)> {
        if self.still[side as usize] {
            return Ok((self.side(cx, pairs, side)?, None));
        }
        cx.record(&[self.parameters.trained()]);
        let vectors = self.side(cx, pairs, side);
        let tape = cx.recorded();
        self.still[side as usize] = vectors.is_ok() && tape.as_ref().is_some_and(Tape::is_empty);
        Ok((vectors?, tape))
    }

    /// The loss of some pairs, and the gradients of their vectors where they are wanted; those of scale and bias are added to.
    fn loss(
        &self,
        cx: &mut Ctx,
        pictures: &Tensor,
        texts: &Tensor,
        gradients: bool,
    ) -> Result<(Loss, [Option<View>; 2])> {
        let mut grads = [None, None];
        if gradients {
            for grad in &mut grads {
                let tensor = cx.alloc(pictures.shape(), DType::F32)?;
                *grad = Some(cx.view(&tensor)?);
            }
        }
        let loss = cx.alloc(&[1], DType::F32)?;
        let of = |number: &Number| number.grad.clone().filter(|_| gradients);
        let op = ContrastiveLoss {
            a: cx.view(pictures)?,
            b: cx.view(texts)?,
            scale: self.scale.value.clone(),
            bias: self.bias.as_ref().map(|bias| bias.value.clone()),
            kind: self.kind,
            loss: cx.view(&loss)?,
            da: grads[0].clone(),
            db: grads[1].clone(),
            d_scale: of(&self.scale),
            d_bias: self.bias.as_ref().and_then(of),
        };
        cx.exec("loss", &op)?;
        let pairs = pictures.size(0);
        let mean = download(cx, &op.loss)?.first().map_or(f64::NAN, |&value| f64::from(value));
        if !mean.is_finite() {
            return Err(Error::Train(
                "the loss is not finite: a smaller learning rate may help, or the weights are broken".into(),
            ));
        }
        Ok((Loss { nats: mean * pairs as f64, tokens: pairs, read: pairs }, grads))
    }
}

impl Learner<Pair> for Contrastive<'_> {
    fn gradient(&mut self, cx: &mut Ctx, pairs: &[Pair]) -> Result<Loss> {
        self.step(cx, pairs)
    }

    fn check(&mut self, cx: &mut Ctx, pairs: &[Pair]) -> Result<Checked> {
        let (loss, recall) = self.rank(cx, pairs)?;
        self.recall = Some(recall);
        Ok(Checked { loss: loss.mean(), exact: None })
    }

    fn recall(&self) -> Option<Recall> {
        self.recall
    }

    fn guess(&self) -> f64 {
        match self.kind {
            ContrastiveKind::Softmax => (self.batch.max(2) as f64).ln(),
            // Even odds for each of all pairs.
            ContrastiveKind::Sigmoid => self.batch as f64 * std::f64::consts::LN_2,
        }
    }

    /// Keeps the factor of products at 100 or below.
    fn stepped(&mut self, cx: &mut Ctx) -> Result<()> {
        let beyond = |scale: &f32| *scale > MOST_SCALE;
        if self.scale.grad.is_some() && download(cx, &self.scale.value)?.iter().any(beyond) {
            cx.stream().write(&self.scale.value, &MOST_SCALE.to_le_bytes())?;
        }
        Ok(())
    }
}

/// Goes back from some vectors, if anything behind them is trained.
fn back(cx: &mut Ctx, tape: Option<Tape>, vectors: &Tensor, gradient: Option<View>) -> Result<()> {
    let Some(mut tape) = tape else { return Ok(()) };
    let went = match gradient {
        Some(gradient) if !tape.is_empty() => tape.backward(cx, vectors, &gradient),
        _ => Ok(()),
    };
    cx.forget(tape);
    went
}

/// The share of rows of `from` whose largest product with a row of `to` is that of their own, or of one with the same text.
fn recall(cx: &mut Ctx, pairs: &[Pair], from: &Tensor, to: &Tensor) -> Result<f64> {
    let (all, mut hits) = (pairs.len(), 0);
    for first in (0..all).step_by(RANKED) {
        let count = RANKED.min(all - first);
        let products = cx.scope(|cx| {
            let out = cx.alloc(&[count, all], DType::F32)?;
            let rows = from.narrow(0, first, count)?;
            let op = Matmul::new(cx.view(&rows)?, Weights::dense(cx.view(to)?, None)?, cx.view(&out)?);
            cx.exec("recall", &op)?;
            cx.download(&out)
        })?;
        for (row, products) in products.chunks_exact(all.max(1)).enumerate() {
            let best = (0..all).max_by(|&a, &b| products[a].total_cmp(&products[b]));
            hits += usize::from(best.is_some_and(|best| pairs[best].text == pairs[first + row].text));
        }
    }
    Ok(hits as f64 / all.max(1) as f64)
}
