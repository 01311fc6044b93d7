//! Linear layers of a tower whose results lie side by side, with bounds of what each takes and gives where the file has such.
//!
//! After `Gemma4ClippableLinear` of transformers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, Pointwise};

use crate::layers::{Linear, Norm, Stacked};

/// Least and largest value of what a layer takes and of what it gives.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Bounds {
    input: [f32; 2],
    output: [f32; 2],
}

impl Bounds {
    fn load(scope: &Scope<'_>) -> Result<Self> {
        let one = |name: &str, unbounded: f32| {
            scope.take(name, &[])?;
            let values = scope.checkpoint().floats(&scope.path(name))?;
            match values[..] {
                [value] if value.is_finite() => Ok(value),
                // A large number is as good as none, and every device can take it.
                [value] if value.is_infinite() => Ok(unbounded.copysign(value)),
                _ => Err(Error::Config {
                    path: scope.path(name),
                    reason: format!("expected a number, found {values:?}"),
                }),
            }
        };
        let pair = |low: &str, high: &str| {
            let pair = [one(low, f32::MAX)?, one(high, f32::MAX)?];
            if pair[0] > pair[1] {
                let reason = format!("{low}, {high}: expected the least first, found {pair:?}");
                return Err(Error::Config { path: scope.prefix().to_owned(), reason });
            }
            Ok(pair)
        };
        Ok(Self { input: pair("input_min", "input_max")?, output: pair("output_min", "output_max")? })
    }
}

/// The layers.
pub enum Product {
    /// One product.
    Plain(Box<Stacked>),
    /// A product each, with bounds.
    Bounded(Box<Bounded>),
}

/// Layers with bounds.
pub struct Bounded {
    path: String,
    layers: Vec<(Linear, Bounds, usize)>,
    n: usize,
}

impl Product {
    /// Loads the layers at `scopes`, each `[n, k]`; the path is that of their common parent. Where they are `wrapped`, each is a module
    /// `linear` in one that has its bounds.
    pub fn load(
        cx: &mut Ctx,
        path: &str,
        scopes: &[(Scope<'_>, usize)],
        k: usize,
        bias: bool,
        wrapped: Option<bool>,
    ) -> Result<Self> {
        let Some(bounds) = wrapped else {
            return Ok(Self::Plain(Box::new(Stacked::load(cx, path, scopes, k, bias)?)));
        };
        let inner: Vec<_> = scopes.iter().map(|(scope, n)| (scope.at("linear"), *n)).collect();
        if !bounds {
            return Ok(Self::Plain(Box::new(Stacked::load(cx, path, &inner, k, bias)?)));
        }
        let mut layers = Vec::with_capacity(scopes.len());
        for ((scope, n), (inner, _)) in scopes.iter().zip(&inner) {
            layers.push((Linear::load(cx, inner, *n, k, bias)?, Bounds::load(scope)?, *n));
        }
        let n = scopes.iter().map(|(_, n)| n).sum();
        Ok(Self::Bounded(Box::new(Bounded { path: path.to_owned(), layers, n })))
    }

    /// `norm(x) w^T + bias`: `[m, k]  ->  [m, n]`.
    pub fn forward(&self, cx: &mut Ctx, norm: &Norm, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(layers) => layers.forward(cx, norm, x),
            Self::Bounded(layers) => {
                let x = norm.forward(cx, x)?;
                layers.forward(cx, &x)
            }
        }
    }

    /// The same of rows as they are.
    pub fn forward_plain(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        match self {
            Self::Plain(layers) => layers.forward_plain(cx, x),
            Self::Bounded(layers) => layers.forward(cx, x),
        }
    }

    /// Of two layers of one width, `act(gate) * up` of rows that are normalized first.
    pub fn forward_gated(&self, cx: &mut Ctx, norm: &Norm, x: &Tensor, act: Activation) -> Result<Tensor> {
        match self {
            Self::Plain(layers) => layers.forward_gated(cx, norm, x, act),
            Self::Bounded(layers) => {
                let x = norm.forward(cx, x)?;
                let both = layers.forward(cx, &x)?;
                let half = layers.n / 2;
                let out = cx.alloc(&[x.size(0), half], cx.dtype())?;
                let (gate, up) = (both.narrow(1, 0, half)?, both.narrow(1, half, half)?);
                let by = Some(cx.view(&up)?);
                let op = Pointwise { act, by, ..Pointwise::new(cx.view(&gate)?, cx.view(&out)?) };
                cx.exec(&layers.path, &op)?;
                Ok(out)
            }
        }
    }
}

impl Bounded {
    fn forward(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        let out = cx.alloc(&[x.size(0), self.n], cx.dtype())?;
        cx.scope(|cx| {
            let mut first = 0;
            // Layers of one input mostly have the same bounds.
            let mut held: Option<([f32; 2], Tensor)> = None;
            for (linear, bounds, n) in &self.layers {
                let within = match held.take() {
                    Some((of, within)) if of == bounds.input => within,
                    _ => {
                        let within = cx.alloc(x.shape(), cx.dtype())?;
                        self.hold(cx, x, bounds.input, &within)?;
                        within
                    }
                };
                let part = out.narrow(1, first, *n)?;
                linear.write_to(cx, &within, &part)?;
                self.hold(cx, &part, bounds.output, &part)?;
                held = Some((bounds.input, within));
                first += n;
            }
            Ok(())
        })?;
        Ok(out)
    }

    /// `out = x` within bounds.
    fn hold(&self, cx: &mut Ctx, x: &Tensor, bounds: [f32; 2], out: &Tensor) -> Result<()> {
        let op = Pointwise { bounds: Some(bounds), ..Pointwise::new(cx.view(x)?, cx.view(out)?) };
        cx.exec(&self.path, &op)
    }
}
