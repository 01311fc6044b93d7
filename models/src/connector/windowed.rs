//! Learned queries that attend to windows of patches: Granite 4 Vision's projectors, one for each layer of the decoder that takes
//! features.
//!
//! After `Granite4VisionWindowQFormerDownsampler` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::MixRows;

use crate::layers::{Linear, Norm, constant, gather_rows};
use crate::text::{Encoder, EncoderPlan};
use crate::vision::Connect;

/// Added to the variances of the norm before the queries.
const EPS: f32 = 1e-6;

/// What the queries of a window begin with, beside what is learned.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Begins {
    /// The mean of each 2 x 2 patches.
    Mean,
    /// One of them: row and column.
    One(usize, usize),
}

/// Where features of a projector go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Group {
    /// The tower's layer that they come from: which of the list.
    pub from: usize,
    /// The layer of the decoder before which they are added.
    pub to: usize,
    /// What its queries begin with.
    pub begins: Begins,
}

/// What the projectors have in common, and where their features go.
#[derive(Clone, Debug)]
pub struct WindowedPlan {
    /// Queries along the side of a window, whose patches are twice as many.
    pub queries: usize,
    /// Patches along the side of a tile.
    pub side: usize,
    /// The queries' encoder.
    pub encoder: EncoderPlan,
    /// Features of a token.
    pub d_text: usize,
    /// Layers of the tower, ascending, that features come from.
    pub deep: Vec<usize>,
    /// The projectors, in the order of the configuration.
    pub groups: Vec<Group>,
}

impl WindowedPlan {
    /// The projector whose features are added before a layer of the decoder.
    fn to(&self, layer: usize) -> Option<usize> {
        self.groups.iter().position(|group| group.to == layer)
    }
}

/// One projector.
struct Part {
    path: String,
    begins: Begins,
    norm: Norm,
    /// `[queries^2, d]`
    queries: Tensor,
    /// `[window^2, d]`
    positions: Tensor,
    encoder: Encoder,
    out: Linear,
}

/// The projectors.
pub struct Windowed {
    plan: WindowedPlan,
    parts: Vec<Part>,
    newline: Tensor,
}

/// Rows of a raster of `side x side` window by window of `window x window`.
fn in_windows(side: usize, window: usize) -> impl Iterator<Item = (usize, usize)> {
    let across = side / window;
    (0..side * side).map(move |i| {
        let (number, inside) = (i / (window * window), i % (window * window));
        (number / across * window + inside / window, number % across * window + inside % window)
    })
}

impl Part {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &WindowedPlan, begins: Begins) -> Result<Self> {
        let (d, queries) = (plan.encoder.d, plan.queries * plan.queries);
        let learned = |cx: &mut Ctx, name: &str, rows: usize| {
            scope.take(name, &[1, rows, d])?;
            constant(cx, &[rows, d], &scope.checkpoint().floats(&scope.path(name))?)
        };
        Ok(Self {
            path: scope.prefix().to_owned(),
            begins,
            norm: Norm::layer(cx, &scope.at("norm"), d, EPS)?,
            queries: learned(cx, "query", queries)?,
            positions: learned(cx, "image_positions", 4 * queries)?,
            encoder: Encoder::load(cx, &scope.at("qformer"), plan.encoder.clone(), None)?,
            out: Linear::load(cx, &scope.at("out_linear"), plan.d_text, d, true)?,
        })
    }

    /// `x: [tiles * side^2, d]  ->  out: [tiles * (side / 2)^2, d_text]`.
    fn write_to(&self, cx: &mut Ctx, x: &Tensor, plan: &WindowedPlan, out: &Tensor) -> Result<()> {
        let (side, queries, half) = (plan.side, plan.queries, plan.side / 2);
        let (patches, rows) = (side * side, half * half);
        let tiles = x.size(0) / patches;
        let of_tiles = |ids: Vec<usize>, per_tile: usize| -> Vec<i32> {
            (0..tiles).flat_map(|tile| ids.iter().map(move |id| (tile * per_tile + id) as i32)).collect()
        };
        let x = self.norm.forward(cx, x)?;
        let seen: Vec<usize> = in_windows(side, 2 * queries).map(|(row, col)| row * side + col).collect();
        let memory = gather_rows(cx, &self.path, &x, &of_tiles(seen, patches))?;
        self.add(cx, &self.positions, &memory)?;
        let within: &[(usize, usize)] = match self.begins {
            Begins::Mean => &[(0, 0), (0, 1), (1, 0), (1, 1)],
            Begins::One(row, col) => &[(row, col)],
        };
        let first = in_windows(half, queries)
            .flat_map(|(row, col)| within.iter().map(move |(y, x)| (2 * row + y) * side + 2 * col + x));
        let first = of_tiles(first.collect(), patches);
        let h = cx.alloc(&[tiles * rows, x.size(1)], cx.dtype())?;
        self.mix(cx, &x, &first, within.len(), &h)?;
        self.add(cx, &self.queries, &h)?;
        let windows = tiles * rows / (queries * queries);
        let starts = |each: usize| -> Vec<usize> { (0..=windows).map(|window| window * each).collect() };
        let (own, seen) = (starts(queries * queries), starts(4 * queries * queries));
        self.encoder.run(cx, &h, &own, Some((&memory, &seen)), &mut |_, _| Ok(()))?;
        let mut raster = vec![0; rows];
        for (number, (row, col)) in in_windows(half, queries).enumerate() {
            raster[row * half + col] = number;
        }
        let h = gather_rows(cx, &self.path, &h, &of_tiles(raster, rows))?;
        self.out.write_to(cx, &h, out)
    }

    /// `to += rows`, which come again and again.
    fn add(&self, cx: &mut Ctx, rows: &Tensor, to: &Tensor) -> Result<()> {
        let ids: Vec<i32> = (0..to.size(0)).map(|row| (row % rows.size(0)) as i32).collect();
        let rows = gather_rows(cx, &self.path, rows, &ids)?;
        crate::layers::add_rows(cx, &self.path, to, &rows)
    }

    /// The mean of each `taps` rows of `x` that `ids` name.
    fn mix(&self, cx: &mut Ctx, x: &Tensor, ids: &[i32], taps: usize, out: &Tensor) -> Result<()> {
        let rows = out.size(0);
        let weights = cx.upload(&[rows, taps], &vec![1.0 / taps as f32; rows * taps])?;
        let ids = cx.upload(&[rows, taps], ids)?;
        let op = MixRows {
            src: cx.view(x)?,
            ids: Some(cx.view(&ids)?),
            weights: cx.view(&weights)?,
            add: false,
            out: cx.view(out)?,
        };
        cx.exec(&self.path, &op)
    }
}

impl Windowed {
    /// Loads the projectors: those that begin with means below `layerwise_projectors`, the others below `spatial_projectors`, and
    /// `image_newline`.
    pub fn load(cx: &mut Ctx, root: &Scope<'_>, plan: WindowedPlan) -> Result<Self> {
        let root = root.role(Role::Connector);
        let mut counts = [0; 2];
        let mut parts = Vec::with_capacity(plan.groups.len());
        for group in &plan.groups {
            let (list, count) = match group.begins {
                Begins::Mean => ("layerwise_projectors", &mut counts[0]),
                Begins::One(..) => ("spatial_projectors", &mut counts[1]),
            };
            parts.push(Part::load(cx, &root.at(list).at(*count), &plan, group.begins)?);
            *count += 1;
        }
        let newline = cx.stream().place_view(&root.take("image_newline", &[plan.d_text])?)?;
        Ok(Self { newline: Tensor::owned(newline.reshape(&[1, plan.d_text])?), parts, plan })
    }

    /// Writes the features that are added before a layer of the decoder.
    fn write(&self, cx: &mut Ctx, to: usize, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        self.rows(grid)?;
        match self.plan.to(to).and_then(|number| self.parts.get(number)) {
            Some(part) => cx.scope(|cx| part.write_to(cx, x, &self.plan, out)),
            None => Err(Error::Request(format!("projectors: none is for layer {to}"))),
        }
    }
}

impl Connect for Windowed {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        let side = self.plan.side;
        if grid != (side, side) {
            let found = format!("{} x {}", grid.1, grid.0);
            return Err(Error::Request(format!("tile: expected {side} patches a side, found {found}")));
        }
        Ok(side / 2 * (side / 2))
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        self.write(cx, 0, x, grid, out)
    }

    fn newline(&self) -> Option<&Tensor> {
        Some(&self.newline)
    }

    fn deep(&self) -> &[usize] {
        &self.plan.deep
    }

    fn first(&self) -> Option<usize> {
        self.plan.to(0).map(|number| self.plan.groups[number].from)
    }

    fn groups(&self) -> Vec<Option<usize>> {
        let last = self.plan.groups.iter().map(|group| group.to).max().unwrap_or(0);
        (1..=last).map(|layer| self.plan.to(layer).map(|number| self.plan.groups[number].from)).collect()
    }

    fn shown(&self, number: usize) -> usize {
        self.plan.to(number + 1).unwrap_or(number)
    }

    fn connect_deep(
        &self,
        cx: &mut Ctx,
        number: usize,
        x: &Tensor,
        grid: (usize, usize),
        out: &Tensor,
    ) -> Result<()> {
        self.write(cx, number + 1, x, grid, out)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn windows_of_a_raster() {
        let all: Vec<usize> = in_windows(4, 2).map(|(row, col)| row * 4 + col).collect();
        assert_eq!(all, [0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15]);
    }
}
