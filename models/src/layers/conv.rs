//! Convolutions of pictures whose channels are the fastest axis.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Result, Tensor};
use ocelli_kernels::ops::{self, Activation, Filter, Matmul, MixRows};
use ocelli_kernels::{DType, View, Weights};

/// Most elements that are gathered for a product at once.
const MOST: usize = 1 << 23;

/// Numbers on the device as f32.
pub fn table(cx: &mut Ctx, shape: &[usize], values: &[f32]) -> Result<Tensor> {
    let tensor = cx.alloc_owned(shape, DType::F32)?;
    let bytes: Vec<u8> = values.iter().flat_map(|value| value.to_le_bytes()).collect();
    cx.stream().write(tensor.view(), &bytes)?;
    Ok(tensor)
}

/// A bias as f32.
fn bias_of(cx: &mut Ctx, scope: &Scope<'_>, n: usize) -> Result<View> {
    scope.take("bias", &[n])?;
    Ok(table(cx, &[n], &scope.checkpoint().floats(&scope.path("bias"))?)?.view().clone())
}

/// A convolution over all channels: a product with the rows that each place sees, side by side.
#[derive(Clone, Debug)]
pub struct Conv {
    path: String,
    w: Weights,
    filter: Filter,
    act: Activation,
}

impl Conv {
    /// Loads `weight [n, channels, height, width]` at `scope`, and `bias [n]` if it has one; the filters are turned once, in f32.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (n, channels): (usize, usize),
        filter: Filter,
        bias: bool,
    ) -> Result<Self> {
        let taps = filter.taps();
        scope.take("weight", &[n, channels, filter.size.0 as usize, filter.size.1 as usize])?;
        let stored = scope.checkpoint().floats(&scope.path("weight"))?;
        let turned: Vec<f32> = (0..n * taps * channels)
            .map(|i| {
                let (row, tap, channel) = (i / (taps * channels), i / channels % taps, i % channels);
                stored[(row * channels + channel) * taps + tap]
            })
            .collect();
        let w = table(cx, &[n, taps * channels], &turned)?;
        let bias = if bias { Some(bias_of(cx, scope, n)?) } else { None };
        let w = cx.stream().place(&Weights::dense(w.view().clone(), bias)?)?;
        Ok(Self { path: scope.prefix().to_owned(), w, filter, act: Activation::None })
    }

    /// The same with an activation after it.
    #[must_use]
    pub fn then(self, act: Activation) -> Self {
        Self { act, ..self }
    }

    /// `x: [rows * columns, channels]  ->  [places, n]`, a picture of `grid`.
    pub fn forward(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize)) -> Result<Tensor> {
        let places = self.places(grid);
        let out = cx.alloc(&[places.0 * places.1, self.w.n()], cx.dtype())?;
        self.write_to(cx, x, grid, &out)?;
        Ok(out)
    }

    /// Path of the module.
    #[must_use]
    pub fn path(&self) -> &str {
        &self.path
    }

    /// Rows and columns of the result for a picture of `grid`.
    #[must_use]
    pub fn places(&self, grid: (usize, usize)) -> (usize, usize) {
        self.filter.places(grid)
    }

    /// `x: [rows * columns, channels]  ->  out: [places, n]`, a picture of `grid`.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        self.write_zoomed(cx, x, grid, 1, out)
    }

    /// The same of a picture in which each row and each column of `grid` comes so many times.
    pub fn write_zoomed(
        &self,
        cx: &mut Ctx,
        x: &Tensor,
        grid: (usize, usize),
        zoom: usize,
        out: &Tensor,
    ) -> Result<()> {
        let (taps, channels) = (self.filter.taps(), x.size(1));
        if taps == 1 && self.filter.stride == 1 && self.filter.padding == 0 && zoom == 1 {
            return self.product(cx, x, out);
        }
        let (places, most) = (out.size(0), (MOST / (taps * channels).max(1)).max(1));
        let ids = self.ids(grid, zoom);
        for first in (0..places).step_by(most) {
            let count = most.min(places - first);
            cx.scope(|cx| {
                let ids = ids.get(first * taps..(first + count) * taps).unwrap_or_default();
                let seen = rows_or_zeros(cx, &self.path, x, ids)?.reshape(&[count, taps * channels])?;
                self.product(cx, &seen, &out.narrow(0, first, count)?)
            })?;
        }
        Ok(())
    }

    fn product(&self, cx: &mut Ctx, x: &Tensor, out: &Tensor) -> Result<()> {
        let mut op = Matmul::new(cx.view(x)?, self.w.clone(), cx.view(out)?);
        (op.math, op.act) = (cx.math(&self.w), self.act);
        cx.exec(&self.path, &op)
    }

    /// The row that each tap of each place sees; -1 beyond the edges.
    fn ids(&self, of: (usize, usize), zoom: usize) -> Vec<i32> {
        let grid = (of.0 * zoom, of.1 * zoom);
        let (down, across) = self.filter.places(grid);
        let Filter { size: (height, width), stride, padding } = self.filter;
        let along = |place: usize, tap: u32, size: usize| {
            (place * stride as usize + tap as usize).checked_sub(padding as usize).filter(|at| *at < size)
        };
        let mut ids = Vec::with_capacity(down * across * self.filter.taps());
        for (y, x) in (0..down).flat_map(|y| (0..across).map(move |x| (y, x))) {
            for (ty, tx) in (0..height).flat_map(|ty| (0..width).map(move |tx| (ty, tx))) {
                let at = along(y, ty, grid.0).zip(along(x, tx, grid.1));
                ids.push(at.map_or(-1, |(row, col)| (row / zoom * of.1 + col / zoom) as i32));
            }
        }
        ids
    }
}

/// Rows of `x` in the order of `ids`, zeros where those are negative: `x: [rows, d]  ->  [ids, d]`.
pub fn rows_or_zeros(cx: &mut Ctx, path: &str, x: &Tensor, ids: &[i32]) -> Result<Tensor> {
    let out = cx.alloc(&[ids.len(), x.size(1)], cx.dtype())?;
    let weights = cx.upload(&[ids.len(), 1], &vec![1f32; ids.len()])?;
    let ids = cx.upload(&[ids.len(), 1], ids)?;
    let op = MixRows {
        src: cx.view(x)?,
        ids: Some(cx.view(&ids)?),
        weights: cx.view(&weights)?,
        add: false,
        out: cx.view(&out)?,
    };
    cx.exec(path, &op)?;
    Ok(out)
}

/// A convolution of each channel by itself.
#[derive(Clone, Debug)]
pub struct DepthConv {
    path: String,
    weight: View,
    bias: View,
    filter: Filter,
}

impl DepthConv {
    /// Loads `weight [channels, 1, height, width]` and `bias [channels]` at `scope`; where the input has fewer channels, neighbours
    /// of the result come from one of them. `more` is added to the taps in the middle: with 1 the
    /// result is `x + conv(x)`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, channels: usize, filter: Filter, more: f32) -> Result<Self> {
        let stored = Self::stored(scope, channels, filter)?;
        scope.take("bias", &[channels])?;
        let bias = scope.checkpoint().floats(&scope.path("bias"))?;
        Self::of(cx, scope, (&stored, &bias), filter, more)
    }

    /// Loads `weight` at `scope` with the norm by running statistics (`BatchNorm2d`) after it, at `norm`, taken in.
    pub fn normed(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        norm: &Scope<'_>,
        channels: usize,
        filter: Filter,
        eps: f32,
    ) -> Result<Self> {
        let mut stored = Self::stored(scope, channels, filter)?;
        let of = |name: &str| -> Result<Vec<f32>> {
            norm.take(name, &[channels])?;
            Ok(norm.checkpoint().floats(&norm.path(name))?)
        };
        let (mean, var, scale) = (of("running_mean")?, of("running_var")?, of("weight")?);
        let mut bias = of("bias")?;
        for channel in 0..channels {
            let factor = scale[channel] / (var[channel] + eps).sqrt();
            bias[channel] -= mean[channel] * factor;
            stored[channel * filter.taps()..][..filter.taps()].iter_mut().for_each(|tap| *tap *= factor);
        }
        Self::of(cx, scope, (&stored, &bias), filter, 0.0)
    }

    fn stored(scope: &Scope<'_>, channels: usize, filter: Filter) -> Result<Vec<f32>> {
        scope.take("weight", &[channels, 1, filter.size.0 as usize, filter.size.1 as usize])?;
        Ok(scope.checkpoint().floats(&scope.path("weight"))?)
    }

    fn of(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (stored, bias): (&[f32], &[f32]),
        filter: Filter,
        more: f32,
    ) -> Result<Self> {
        let (taps, channels) = (filter.taps(), bias.len());
        let of = |tap: usize, channel: usize| {
            stored[channel * taps + tap] + if tap == taps / 2 { more } else { 0.0 }
        };
        let turned: Vec<f32> = (0..taps * channels).map(|i| of(i / channels, i % channels)).collect();
        Ok(Self {
            path: scope.prefix().to_owned(),
            weight: table(cx, &[taps, channels], &turned)?.view().clone(),
            bias: table(cx, &[channels], bias)?.view().clone(),
            filter,
        })
    }

    /// Channels of the result.
    #[must_use]
    pub fn channels(&self) -> usize {
        self.bias.size(0)
    }

    /// Rows and columns of the result for a picture of `grid`.
    #[must_use]
    pub fn places(&self, grid: (usize, usize)) -> (usize, usize) {
        self.filter.places(grid)
    }

    /// `x: [rows * columns, channels]  ->  out: [places, channels]`, a picture of `grid`.
    pub fn write_to(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let op = ops::DepthConv {
            x: cx.view(x)?,
            weight: self.weight.clone(),
            bias: Some(self.bias.clone()),
            grid,
            filter: self.filter,
            out: cx.view(out)?,
        };
        cx.exec(&self.path, &op)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn taps_of_places() {
        let filter = Filter { size: (2, 3), stride: 2, padding: 1 };
        let w = Weights::dense(nothing(), None).expect("an empty matrix");
        let conv = Conv { path: String::new(), w, filter, act: Activation::None };
        assert_eq!(conv.places((3, 2)), (2, 1));
        let ids = conv.ids((3, 2), 1);
        assert_eq!(ids, [-1, -1, -1, -1, 0, 1, -1, 2, 3, -1, 4, 5]);
        let ids = Conv { filter: Filter { size: (1, 3), stride: 1, padding: 0 }, ..conv }.ids((1, 2), 2);
        assert_eq!(ids, [0, 0, 1, 0, 1, 1, 0, 0, 1, 0, 1, 1]);
    }

    fn nothing() -> View {
        use ocelli_kernels::{Layout, Storage, StreamId};
        let storage = Storage::host(4, StreamId::fresh()).expect("memory");
        View::new(storage, 0, Layout::dense(&[0, 1]).expect("a layout"), DType::F32).expect("a view")
    }
}
