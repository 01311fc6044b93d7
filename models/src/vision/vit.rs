//! The tower that every [`VitPlan`] describes.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Stage, Tensor};
use ocelli_kernels::ops::{
    Attention, AttentionKv, GatherRows, MixRows, PatchEmbed, QkNorm, Rope, RopeStyle, Seen,
};
use ocelli_kernels::{DType, View, Weights};

use super::inner::WindowMerger;
use super::plan::{Mlp, Places, Together, VitPlan};
use super::positions::ResizedTable;
use super::product::Product;
use crate::layers::{
    Embedding, LayerScale, Linear, Norm, RopeConfig, RopeTable, add_rows, copy_rows, put_rows, table,
};

enum LayerMlp {
    Plain(Box<(Linear, Product)>),
    Gated(Box<(Product, Product)>),
}

struct Layer {
    norm1: Norm,
    qkv: Product,
    qk: Option<(Norm, Norm)>,
    v: Option<Norm>,
    out: Product,
    norm2: Norm,
    mlp: LayerMlp,
    /// Factors of what attention and MLP add.
    scales: [Option<LayerScale>; 2],
    /// Norms of what attention and MLP give.
    after: [Option<Norm>; 2],
}

/// The tower.
pub struct Vit {
    plan: VitPlan,
    path: String,
    /// The patch embedding, unless something else embeds rows.
    patch: Option<Weights>,
    /// The filters of each frame, of towers that take several for one picture; the first have the bias.
    frames: Vec<Weights>,
    /// Position embeddings of the patches `[side * side, d]`.
    positions: Option<View>,
    /// The same table for pictures of other sizes.
    resized: Option<ResizedTable>,
    /// The row before the patches of a picture, and its position.
    class_row: Option<ClassRow>,
    /// Rotations of equal shares of a head.
    ropes: Vec<RopeTable>,
    pre_norm: Option<Norm>,
    layers: Vec<Layer>,
    merger: Option<WindowMerger>,
    post_norm: Option<Norm>,
}

/// The pixels of some tiles of one size.
pub struct Pixels {
    /// u8 `[tiles, height, width, 3]` or f32 `[tiles, 3, height, width]`; of tiles of several frames those of each frame one after
    /// the other.
    pub values: Tensor,
    /// Mean of each channel in grey levels, for bytes.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in grey levels, for bytes.
    pub std: [f32; 3],
}

/// A row that stands before the patches of each picture: that of one table and that of another, `[1, d]` each, added.
struct ClassRow {
    own: Embedding,
    position: Embedding,
}

impl ClassRow {
    /// `[tiles, d]`, all the same.
    fn rows(&self, cx: &mut Ctx, path: &str, tiles: usize) -> Result<Tensor> {
        let first = cx.upload(&[tiles], &vec![0i32; tiles])?;
        let rows = self.own.forward(cx, &first)?;
        let positions = self.position.forward(cx, &first)?;
        add_rows(cx, path, &rows, &positions)?;
        Ok(rows)
    }
}

/// Order and windows of the patches of a tile, where they are not row by row and all together.
#[derive(Clone, Debug, Default)]
pub struct Layout {
    /// Patches of the tile in the order in which the layers take them.
    pub order: Vec<usize>,
    /// First patch of each window in that order, and at the end the number of patches.
    pub windows: Vec<usize>,
}

/// Rows that see each other: first row of each segment, the most rows of one, the pairs, and which rows of its segment one sees.
pub(crate) struct Segments {
    pub starts: Tensor,
    pub max: usize,
    pub pairs: u64,
    pub seen: Seen,
}

impl Segments {
    pub fn of(cx: &mut Ctx, starts: &[usize]) -> Result<Self> {
        let sizes = || starts.windows(2).map(|pair| pair[1] - pair[0]);
        let list: Vec<i32> = starts.iter().map(|&start| start as i32).collect();
        Ok(Self {
            starts: cx.upload(&[list.len()], &list)?,
            max: sizes().max().unwrap_or(0),
            pairs: sizes().map(|size| (size * size) as u64).sum(),
            seen: Seen::All,
        })
    }
}

/// The filters at `scope`, `[d, 3, frames, patch, patch]`, of whichever axis colours are in the file.
fn filters(scope: &Scope<'_>, plan: &VitPlan) -> Result<Vec<f32>> {
    if scope.is_quantized() {
        return Ok(scope.values(plan.d, 3 * plan.frames * plan.patch * plan.patch)?);
    }
    let stored = scope.checkpoint().floats(&scope.path("weight"))?;
    if !scope.has_colours_last() {
        return Ok(stored);
    }
    let places = plan.frames * plan.patch * plan.patch;
    let from = |i: usize| i / (3 * places) * 3 * places + i % places * 3 + i / places % 3;
    Ok((0..stored.len()).map(|i| stored[from(i)]).collect())
}

impl Vit {
    /// Loads the tower below `scope`. Errors name the field of the configuration that cannot be run.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: VitPlan) -> Result<Self> {
        let scope = scope.role(Role::Tower);
        let (d, names) = (plan.d, &plan.names);
        let filters = scope.at(names.patch);
        let stored = filters.patch_embed(d, 3 * plan.frames * plan.patch * plan.patch, plan.patch_bias)?;
        let patch = Some(Self::patch_weights(cx, &filters, &plan, &stored)?);
        let frames = Self::frame_weights(cx, &filters, &plan, &stored)?;
        let (mut positions, mut class_row, mut resized) = (None, None, None);
        let only_turns = matches!(plan.places, Places::Rotation | Places::Turns { .. });
        if plan.places == Places::Resized {
            resized =
                Some(ResizedTable::load(cx, &scope.at("embeddings.position_embedding"), plan.side(), d)?);
        } else if !only_turns {
            let (first, patches, extra) = match plan.places {
                Places::Crossed { places, .. } => (2, places, 0),
                _ => (1, plan.side() * plan.side(), plan.extra_rows()),
            };
            let shape = [first, extra + patches, d];
            let shape = if names.batched || first > 1 { &shape[..] } else { &shape[1..] };
            let table = scope.take(names.positions, shape)?.reshape(&[first * (extra + patches), d])?;
            let table = cx.stream().place_view(&table)?;
            if plan.class_row {
                class_row = Some(Self::class(cx, &scope, &plan, &table)?);
            }
            let before = if matches!(plan.places, Places::Counted { .. }) { 0 } else { extra };
            positions = Some(table.narrow(0, before, first * patches)?);
        }
        let ropes = Self::rotations(cx, &plan)?;
        Ok(Self { patch, frames, positions, resized, class_row, ropes, ..Self::layers(cx, &scope, plan)? })
    }

    /// Loads the layers and norms below `scope` alone, for rows that something else embeds.
    pub fn layers(cx: &mut Ctx, scope: &Scope<'_>, plan: VitPlan) -> Result<Self> {
        let (d, names) = (plan.d, &plan.names);
        let norm = |cx: &mut Ctx, scope: Scope<'_>| Norm::load(cx, &scope, d, plan.norm_eps, plan.norm);
        let optional =
            |cx: &mut Ctx, name: Option<&str>| name.map(|name| norm(cx, scope.at(name))).transpose();
        let pre_norm = optional(cx, names.pre_norm)?;
        let mut layers = Vec::new();
        for i in 0..plan.layers {
            layers.push(Layer::load(cx, &scope.at(names.layers).at(i), &plan)?);
        }
        let post_norm = optional(cx, names.post_norm)?;
        let merger = match plan.merges {
            Some(_) => Some(WindowMerger::load(cx, &scope.at("vit_merger"), &plan)?),
            None => None,
        };
        Ok(Self {
            path: scope.prefix().to_owned(),
            patch: None,
            frames: Vec::new(),
            positions: None,
            resized: None,
            class_row: None,
            ropes: Vec::new(),
            pre_norm,
            layers,
            merger,
            post_norm,
            plan,
        })
    }

    /// Filters `[d, 3 * patch * patch]`: those of all frames of a picture, which are the same, are one.
    fn patch_weights(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan, w: &Weights) -> Result<Weights> {
        let (d, area) = (plan.d, plan.patch * plan.patch);
        if plan.frames == 1 && !plan.channels_last {
            return Ok(cx.stream().place(w)?);
        }
        let stored = filters(scope, plan)?;
        if plan.channels_last {
            let turned =
                (0..d * 3 * area).map(|i| stored[i / (3 * area) * 3 * area + i % area * 3 + i / area % 3]);
            let filters = cx.alloc_owned(&[d, 3 * area], DType::F32)?;
            cx.stream().write(filters.view(), &bytes_of(&turned.collect::<Vec<f32>>()))?;
            let bias = w.parts().first().and_then(|part| part.bias.as_ref());
            let bias = bias.map(|bias| cx.stream().place_view(bias)).transpose()?;
            return Ok(Weights::dense(filters.view().clone(), bias)?);
        }
        let mut sums = vec![0f32; d * 3 * area];
        for (i, sum) in sums.iter_mut().enumerate() {
            let (channel, at) = (i / area, i % area);
            *sum = (0..plan.frames).map(|frame| stored[(channel * plan.frames + frame) * area + at]).sum();
        }
        let filters = cx.alloc_owned(&[d, 3 * area], DType::F32)?;
        cx.stream().write(filters.view(), bytes_of(&sums).as_slice())?;
        let bias = w.parts().first().and_then(|part| part.bias.as_ref());
        let bias = bias.map(|bias| cx.stream().place_view(bias)).transpose()?;
        Ok(Weights::dense(filters.view().clone(), bias)?)
    }

    /// The filters `[d, 3 * patch * patch]` of each frame by itself, of towers that take several for one picture.
    fn frame_weights(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan, w: &Weights) -> Result<Vec<Weights>> {
        if plan.frames == 1 {
            return Ok(Vec::new());
        }
        let (d, area) = (plan.d, plan.patch * plan.patch);
        let stored = filters(scope, plan)?;
        let bias = w.parts().first().and_then(|part| part.bias.as_ref());
        let mut all = Vec::with_capacity(plan.frames);
        for frame in 0..plan.frames {
            let of = |i: usize| stored[(i / area * plan.frames + frame) * area + i % area];
            let filters = table(cx, &[d, 3 * area], &(0..d * 3 * area).map(of).collect::<Vec<f32>>())?;
            let bias = bias.filter(|_| frame == 0).map(|bias| cx.stream().place_view(bias)).transpose()?;
            all.push(Weights::dense(filters.view().clone(), bias)?);
        }
        Ok(all)
    }

    /// The class embedding and its position, which is the first row of the table or the last.
    fn class(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan, positions: &View) -> Result<ClassRow> {
        let (d, names) = (plan.d, &plan.names);
        let shape = [1, 1, d];
        let own = scope.take(names.class, if names.batched { &shape } else { &shape[2..] })?;
        let own = cx.stream().place_view(&own.reshape(&[1, d])?)?;
        let row = match plan.places {
            Places::Counted { .. } => positions.size(0).saturating_sub(1),
            _ => 0,
        };
        let position = Weights::dense(positions.narrow(0, row, 1)?, None)?;
        Ok(ClassRow {
            own: Embedding::of(scope.path(names.class), Weights::dense(own, None)?),
            position: Embedding::of(scope.path(names.positions), position),
        })
    }

    /// Half of the pairs are turned by the row, half by the column.
    fn rotations(cx: &mut Ctx, plan: &VitPlan) -> Result<Vec<RopeTable>> {
        if !plan.places.rotate() {
            return Ok(Vec::new());
        }
        let pairs = plan.head_dim() / 2;
        let across_first = matches!(plan.places, Places::Counted { .. });
        let axes: Vec<i32> =
            (0..pairs).map(|pair| i32::from((pair >= pairs.div_ceil(2)) != across_first)).collect();
        let frequencies = |theta: f32, count| {
            RopeConfig { theta: f64::from(theta), ..RopeConfig::default() }.inv_freq(count)
        };
        let all = match plan.places {
            Places::Crossed { theta, .. } => {
                let all = frequencies(theta, pairs / 2);
                let by = |cx: &mut Ctx, axis: i32| RopeTable::new(cx, &all, &vec![axis; pairs / 2]);
                return Ok(vec![by(cx, 1)?, by(cx, 0)?]);
            }
            Places::Turns { theta } => {
                let all = frequencies(theta, pairs);
                all.iter().step_by(2).chain(all.iter().skip(1).step_by(2)).copied().collect()
            }
            Places::Counted { theta } => frequencies(theta, pairs / 2).repeat(2),
            _ => frequencies(10_000.0, pairs / 2).repeat(2),
        };
        Ok(vec![RopeTable::new(cx, &all, &axes)?])
    }

    /// The same tower, whose queries and keys are turned by these frequencies.
    #[must_use]
    pub fn turned(self, rope: RopeTable) -> Self {
        Self { ropes: vec![rope], ..self }
    }

    /// Runs rows that something else embedded through the layers and the norm after them, in place: `h: [rows, d]`, the rows from
    /// one of `starts` to the next being one sequence. A [`turned`](Self::turned) tower takes their numbers there for positions.
    pub fn through(&self, cx: &mut Ctx, h: &Tensor, starts: &[usize], seen: Seen) -> Result<()> {
        let segments = Segments { seen, ..Segments::of(cx, starts)? };
        let numbers: Vec<i32> = starts.windows(2).flat_map(|pair| 0..(pair[1] - pair[0]) as i32).collect();
        let positions = match self.ropes.is_empty() {
            true => None,
            false => Some(cx.upload(&[1, numbers.len()], &numbers)?),
        };
        for layer in &self.layers {
            cx.segment(|cx| self.layer(cx, layer, h, &segments, positions.as_ref()))?;
        }
        match &self.post_norm {
            Some(norm) => norm.write_to(cx, h, h),
            None => Ok(()),
        }
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &VitPlan {
        &self.plan
    }

    /// Rows and columns of patches in a tile. Errors if the position embeddings do not reach.
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let patch = self.plan.patch;
        let (rows, cols, side) = (height / patch, width / patch, self.plan.side());
        let fits = match self.plan.places {
            Places::Table | Places::Counted { .. } => (rows, cols) == (side, side),
            Places::Buckets => self.plan.merges.is_some() || (rows <= side && cols <= side),
            Places::Crossed { places, .. } => rows.max(cols) <= places,
            Places::Rotation | Places::Turns { .. } | Places::RotationAndTable(_) | Places::Resized => true,
        };
        if rows == 0 || cols == 0 || !fits {
            let exact = matches!(self.plan.places, Places::Table | Places::Counted { .. });
            let least = if exact { self.plan.image } else { patch };
            let most = match self.plan.places {
                Places::Crossed { places, .. } => places.saturating_mul(patch),
                _ => self.plan.image,
            };
            return Err(Error::Request(format!(
                "tile: expected {least} to {most} pixels a side, found {width} x {height}"
            )));
        }
        Ok((rows, cols))
    }

    /// Row of the position table for each patch of a tile: the bucket that its fraction of the side falls into, in f32.
    fn buckets(&self, rows: usize, cols: usize) -> Vec<i32> {
        let side = self.plan.side();
        let step = 1.0 / side as f64;
        let boundaries: Vec<f32> = (1..side).map(|i| (step + (i - 1) as f64 * step) as f32).collect();
        let buckets = |count: usize| -> Vec<usize> {
            let step = 1.0 / count as f32;
            let place = |i: usize| (i as f32 * step).min(1.0 - 1e-6);
            (0..count).map(|i| boundaries.partition_point(|&b| b <= place(i))).collect()
        };
        let (down, across) = (buckets(rows), buckets(cols));
        down.iter().flat_map(|&r| across.iter().map(move |&c| (r * side + c) as i32)).collect()
    }

    /// `pixels: [tiles, ...]  ->  [tiles * (extra + rows * cols), d]`, in the order of `layout`. Each tile attends to itself.
    pub fn forward(
        &self,
        cx: &mut Ctx,
        pixels: &Pixels,
        tiles: usize,
        grid: (usize, usize),
        layout: Option<&Layout>,
    ) -> Result<Tensor> {
        Ok(self.forward_deep(cx, pixels, tiles, grid, layout, &[])?.0)
    }

    /// As [`forward`](Self::forward), and the results of the layers `deep`, which ascend.
    pub fn forward_deep(
        &self,
        cx: &mut Ctx,
        pixels: &Pixels,
        tiles: usize,
        grid: (usize, usize),
        layout: Option<&Layout>,
        deep: &[usize],
    ) -> Result<(Tensor, Vec<Tensor>)> {
        let plan = &self.plan;
        let per_tile = plan.extra_rows() + grid.0 * grid.1;
        let rows = tiles * per_tile;
        let mut h = cx.alloc(&[rows, plan.d], cx.dtype())?;
        self.embed(cx, pixels, tiles, grid, layout, &h)?;
        if let Some(norm) = self.pre_norm.as_ref().filter(|_| !plan.norm_first) {
            norm.write_to(cx, &h, &h)?;
        }
        let whole: Vec<usize> = (0..=tiles).map(|tile| tile * per_tile).collect();
        let mut whole = Segments::of(cx, &whole)?;
        let windows = match layout.filter(|_| plan.full.is_some()) {
            Some(layout) => {
                let of_tile =
                    |tile: usize| layout.windows.iter().skip(1).map(move |end| tile * per_tile + end);
                let starts: Vec<usize> = std::iter::once(0).chain((0..tiles).flat_map(of_tile)).collect();
                Some(Segments::of(cx, &starts)?)
            }
            None => None,
        };
        let positions = if self.ropes.is_empty() {
            None
        } else {
            Some(places(cx, tiles, grid, layout, plan.extra_rows())?)
        };
        let result = if plan.used < plan.layers { Some(cx.alloc(h.shape(), cx.dtype())?) } else { None };
        let mut taken = Vec::with_capacity(deep.len());
        for _ in deep {
            taken.push(cx.alloc(h.shape(), cx.dtype())?);
        }
        for (i, layer) in self.layers.iter().enumerate() {
            if i == plan.used {
                if !cx.is_observed() && deep.iter().all(|&layer| layer < i) {
                    // What is kept is what is used.
                    cx.stage(Stage::TOWER, &h)?;
                    return Ok((h, taken));
                }
                // The rest is for those who look, or goes deeper.
                if let Some(result) = &result {
                    copy_rows(cx, &self.path, &h, result)?;
                }
            }
            let full = plan.full.as_ref().is_none_or(|full| full.contains(&i));
            let segments = windows.as_ref().filter(|_| !full).unwrap_or(&whole);
            cx.segment(|cx| self.layer(cx, layer, &h, segments, positions.as_ref()))?;
            if let Some(merger) = self.merger.as_ref().filter(|_| plan.merges == Some(i)) {
                h = merger.forward(cx, &h)?;
                let starts: Vec<usize> = (0..=tiles).map(|tile| tile * (per_tile / 4)).collect();
                whole = Segments::of(cx, &starts)?;
            }
            for (_, to) in deep.iter().zip(&taken).filter(|(layer, _)| **layer == i) {
                copy_rows(cx, &self.path, &h, to)?;
            }
        }
        if let Some(norm) = self.post_norm.as_ref().filter(|_| plan.normed) {
            norm.write_to(cx, &h, &h)?;
        }
        let normed = self.post_norm.as_ref().filter(|_| plan.shown_normed && !plan.normed);
        match normed.filter(|_| cx.is_observed()) {
            _ if !plan.whole => {}
            Some(norm) => {
                let shown = norm.forward(cx, &h)?;
                cx.stage(Stage::TOWER, &shown)?;
            }
            None => cx.stage(Stage::TOWER, &h)?,
        }
        Ok((result.unwrap_or(h), taken))
    }

    /// Embeddings of patches and class rows, to `h`.
    fn embed(
        &self,
        cx: &mut Ctx,
        pixels: &Pixels,
        tiles: usize,
        grid: (usize, usize),
        layout: Option<&Layout>,
        h: &Tensor,
    ) -> Result<()> {
        let patches = grid.0 * grid.1;
        let pos_ids = match self.plan.places {
            Places::Buckets => {
                Some(cx.upload(&[tiles * patches], &self.buckets(grid.0, grid.1).repeat(tiles))?)
            }
            Places::Table
            | Places::Rotation
            | Places::Turns { .. }
            | Places::RotationAndTable(_)
            | Places::Crossed { .. }
            | Places::Counted { .. }
            | Places::Resized => None,
        };
        let frames = pixels.values.size(0) / tiles.max(1);
        let patch = if frames > 1 { self.frames.first() } else { self.patch.as_ref() };
        let Some(patch) = patch.filter(|_| frames == 1 || frames == self.frames.len()) else {
            return Err(Error::Request(format!("{}: no patch embedding of {frames} frames", self.path)));
        };
        cx.scope(|cx| {
            let resized = self.resized.as_ref().map(|table| table.of(cx, grid)).transpose()?;
            let positions = resized.as_ref().map(|table| cx.view(table)).transpose()?;
            let direct = layout.is_none() && !self.plan.class_row;
            let out = if direct { h.clone() } else { cx.alloc(&[tiles * patches, self.plan.d], cx.dtype())? };
            let added = !self.plan.places.rotate() || matches!(self.plan.places, Places::Counted { .. });
            let embed = PatchEmbed {
                pixels: cx.view(&pixels.values.narrow(0, 0, tiles)?)?,
                w: patch.clone(),
                pos: positions.or_else(|| {
                    let with_patches = added && !self.plan.norm_first;
                    self.positions.clone().filter(|_| with_patches)
                }),
                pos_ids: pos_ids.as_ref().map(|ids| cx.view(ids)).transpose()?,
                mean: pixels.mean,
                std: pixels.std,
                patch: self.plan.patch,
                out: cx.view(&out)?,
            };
            cx.exec(&self.path, &embed)?;
            for (frame, w) in self.frames.iter().enumerate().take(frames).skip(1) {
                let more = cx.alloc(out.shape(), cx.dtype())?;
                let seen = cx.view(&pixels.values.narrow(0, frame * tiles, tiles)?)?;
                let (w, to) = (w.clone(), cx.view(&more)?);
                let embed =
                    PatchEmbed { pixels: seen, w, pos: None, pos_ids: None, out: to, ..embed.clone() };
                cx.exec(&self.path, &embed)?;
                add_rows(cx, &self.path, &out, &more)?;
            }
            if let Some(norm) = self.pre_norm.as_ref().filter(|_| self.plan.norm_first) {
                norm.write_to(cx, &out, &out)?;
            }
            let taps = match self.plan.places {
                Places::RotationAndTable(between) => Some(between.taps(grid, self.plan.side())),
                Places::Crossed { places, .. } => Some(crossed(grid, places)),
                Places::Table if self.plan.norm_first => {
                    Some(((0..patches as i32).collect(), vec![1.0; patches], 1))
                }
                _ => None,
            };
            if let (Some((ids, factors, taps)), Some(table)) = (taps, &self.positions) {
                let ids = cx.upload(&[tiles * patches, taps], &ids.repeat(tiles))?;
                let factors = cx.upload(&[tiles * patches, taps], &factors.repeat(tiles))?;
                let op = MixRows {
                    src: table.clone(),
                    ids: Some(cx.view(&ids)?),
                    weights: cx.view(&factors)?,
                    add: true,
                    out: cx.view(&out)?,
                };
                cx.exec(&self.path, &op)?;
            }
            if let Some(layout) = layout {
                let ids: Vec<i32> = (0..tiles)
                    .flat_map(|tile| layout.order.iter().map(move |patch| (tile * patches + patch) as i32))
                    .collect();
                let ids = cx.upload(&[ids.len()], &ids)?;
                let table = Weights::dense(cx.view(&out)?, None)?;
                let op = GatherRows { table, ids: cx.view(&ids)?, scale: 1.0, out: cx.view(h)? };
                cx.exec(&self.path, &op)?;
            } else if let Some(class) = &self.class_row {
                let rows = class.rows(cx, &self.path, tiles)?;
                let first = |tile: usize| tile * (patches + 1);
                let places = (0..tiles).map(|tile| first(tile) as i32).collect::<Vec<_>>();
                put_rows(cx, &self.path, &rows, &places, h)?;
                let of_tile = |tile: usize| (first(tile) + 1..first(tile + 1)).map(|row| row as i32);
                let places = (0..tiles).flat_map(of_tile).collect::<Vec<_>>();
                put_rows(cx, &self.path, &out, &places, h)?;
            }
            Ok(())
        })
    }

    fn layer(
        &self,
        cx: &mut Ctx,
        layer: &Layer,
        h: &Tensor,
        segments: &Segments,
        positions: Option<&Tensor>,
    ) -> Result<()> {
        let plan = &self.plan;
        let (d, heads, heads_kv, head_dim) = (plan.d, plan.heads, plan.heads_kv(), plan.head_dim());
        let rows = h.size(0);
        let qkv = layer.qkv.forward(cx, &layer.norm1, h)?;
        let part = |first: usize, heads: usize| {
            qkv.narrow(1, first * head_dim, heads * head_dim)?.reshape(&[rows, heads, head_dim])
        };
        let (q, k, v) = (part(0, heads)?, part(heads, heads_kv)?, part(heads + heads_kv, heads_kv)?);
        if let Some((q_norm, k_norm)) = layer.qk.as_ref().filter(|_| plan.qk_norm == Some(Together::Rows)) {
            for (norm, i) in [(q_norm, 0), (k_norm, 1)] {
                let part = qkv.narrow(1, i * d, d)?;
                norm.write_to(cx, &part, &part)?;
            }
        }
        let of_heads = layer.qk.as_ref().filter(|_| plan.qk_norm == Some(Together::Heads));
        // A norm of whole heads goes before rotations of their parts.
        let parts = self.ropes.len();
        if let (Some((q_norm, k_norm)), Some(positions)) = (of_heads.filter(|_| parts > 1), positions) {
            q_norm.heads(cx, &q, &k, k_norm, positions)?;
        }
        if let (Some(norm), Some(positions)) = (&layer.v, positions) {
            norm.heads(cx, &v, &v.narrow(1, 0, 0)?, norm, positions)?;
        }
        for (number, table) in self.ropes.iter().enumerate() {
            let Some(positions) = positions else { break };
            let share = head_dim / parts;
            let rope = Rope {
                q: cx.view(&q.narrow(2, number * share, share)?)?,
                k: cx.view(&k.narrow(2, number * share, share)?)?,
                positions: cx.view(positions)?,
                inv_freq: cx.view(&table.inv_freq)?,
                pair_axis: table.pair_axis.as_ref().map(|axes| cx.view(axes)).transpose()?,
                style: match plan.places {
                    Places::Counted { .. } => RopeStyle::Interleaved,
                    _ => RopeStyle::Half,
                },
                attention_scaling: table.attention_scaling,
                norm: of_heads.filter(|_| parts == 1).map(|(q, k)| {
                    let (scale, weight_offset, eps) = q.scale();
                    QkNorm { q: scale.clone(), k: k.scale().0.clone(), weight_offset, eps }
                }),
                kv: None,
            };
            cx.exec(&self.path, &rope)?;
        }
        let out = cx.alloc(&[rows, heads, head_dim], cx.dtype())?;
        let starts = cx.view(&segments.starts)?;
        let op = Attention {
            q: cx.view(&q)?,
            kv: AttentionKv::Packed { k: cx.view(&k)?, v: cx.view(&v)?, kv_starts: starts.clone() },
            q_starts: starts,
            seen: segments.seen.clone(),
            scale: plan.attention_scale.unwrap_or(1.0 / (head_dim as f32).sqrt()),
            softcap: 0.0,
            out: cx.view(&out)?,
            max_q: segments.max,
            max_kv: segments.max,
            pairs: segments.pairs,
        };
        cx.exec(&self.path, &op)?;
        let of_attention = (&layer.scales[0], &layer.after[0]);
        let of_mlp = (&layer.scales[1], &layer.after[1]);
        self.add(cx, &layer.out, of_attention, &out.reshape(&[rows, d])?, h)?;
        match &layer.mlp {
            LayerMlp::Plain(layers) => {
                let (up, down) = &**layers;
                let x = layer.norm2.forward(cx, h)?;
                let up = up.forward_act(cx, &x, self.plan.act)?;
                self.add(cx, down, of_mlp, &up, h)
            }
            LayerMlp::Gated(layers) => {
                let (gate_up, down) = &**layers;
                let up = gate_up.forward_gated(cx, &layer.norm2, h, self.plan.act)?;
                self.add(cx, down, of_mlp, &up, h)
            }
        }
    }

    /// `h += scale * norm(product(x))`.
    fn add(
        &self,
        cx: &mut Ctx,
        product: &Product,
        (scale, norm): (&Option<LayerScale>, &Option<Norm>),
        x: &Tensor,
        h: &Tensor,
    ) -> Result<()> {
        if let (None, None, Product::Plain(layer)) = (scale, norm, product) {
            return layer.add_to(cx, x, h);
        }
        let y = product.forward_plain(cx, x)?;
        if let Some(norm) = norm {
            norm.write_to(cx, &y, &y)?;
        }
        match scale {
            None => add_rows(cx, &self.path, h, &y),
            Some(scale) => scale.add_to(cx, &y, h),
        }
    }
}

/// Rows of two tables of `places` rows, one behind the other, for each patch of a grid: the first has columns, the second rows. With their
/// factors, and how many rows a patch has.
fn crossed(grid: (usize, usize), places: usize) -> (Vec<i32>, Vec<f32>, usize) {
    let patch = |row: usize, col: usize| [col as i32, (places + row) as i32];
    let ids: Vec<i32> =
        (0..grid.0).flat_map(|row| (0..grid.1).flat_map(move |col| patch(row, col))).collect();
    let factors = vec![1.0; ids.len()];
    (ids, factors, 2)
}

/// Added to mean squares by the norms of queries and keys.
const QK_EPS: f32 = 1e-6;

impl Layer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &VitPlan) -> Result<Self> {
        let (d, mlp, names) = (plan.d, plan.mlp, &plan.names);
        let of_keys = plan.heads_kv() * plan.head_dim();
        let widths: &[usize] = if names.qkv.len() == 1 { &[d + 2 * of_keys] } else { &[d, of_keys, of_keys] };
        let qkv: Vec<_> = names.qkv.iter().zip(widths).map(|(name, n)| (scope.at(name), *n)).collect();
        let product = |cx: &mut Ctx, name: &str, n: usize, k: usize, bias: bool| {
            let at = scope.at(name);
            Product::load(cx, &scope.path(name), &[(at, n)], k, bias, plan.wrapped)
        };
        let norm = |cx: &mut Ctx, name: &str| Norm::load(cx, &scope.at(name), d, plan.norm_eps, plan.norm);
        let parent = names.out.rsplit_once('.').map_or(names.out, |(parent, _)| parent);
        let path = scope.path(parent);
        let scale = |cx: &mut Ctx, i: usize| {
            plan.scales.map(|names| LayerScale::load(cx, scope, names[i], d)).transpose()
        };
        let qk = |cx: &mut Ctx, together: Together| {
            let (width, eps) = match together {
                Together::Rows => (d, QK_EPS),
                Together::Heads => (plan.head_dim(), plan.norm_eps),
            };
            let norm = |cx: &mut Ctx, name| Norm::rms(cx, &scope.at(parent).at(name), width, eps);
            Ok::<_, Error>((norm(cx, "q_norm")?, norm(cx, "k_norm")?))
        };
        Ok(Self {
            norm1: norm(cx, names.norm1)?,
            qkv: Product::load(cx, &path, &qkv, d, plan.qkv_bias, plan.wrapped)?,
            qk: plan.qk_norm.map(|together| qk(cx, together)).transpose()?,
            v: if plan.value_norm {
                Some(Norm::bare(cx, &*path, plan.head_dim(), plan.norm_eps)?)
            } else {
                None
            },
            scales: [scale(cx, 0)?, scale(cx, 1)?],
            after: match names.after {
                Some([attention, mlp]) => [Some(norm(cx, attention)?), Some(norm(cx, mlp)?)],
                None => [None, None],
            },
            out: product(cx, names.out, d, d, plan.out_bias)?,
            norm2: norm(cx, names.norm2)?,
            mlp: match plan.mlp_kind {
                Mlp::Plain { up, down } => LayerMlp::Plain(Box::new((
                    Linear::load(cx, &scope.at(up), mlp, d, plan.mlp_bias)?,
                    product(cx, down, d, mlp, plan.mlp_bias)?,
                ))),
                Mlp::Gated { module } => {
                    let ffn = scope.at(module);
                    let gate_up = [(ffn.at("gate_proj"), mlp), (ffn.at("up_proj"), mlp)];
                    LayerMlp::Gated(Box::new((
                        Product::load(cx, ffn.prefix(), &gate_up, d, plan.mlp_bias, plan.wrapped)?,
                        product(cx, &format!("{module}.down_proj"), d, mlp, plan.mlp_bias)?,
                    )))
                }
            },
        })
    }
}

fn bytes_of(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|value| value.to_le_bytes()).collect()
}

/// Row and column of each patch in the order of the layers, i32 `[2, rows]`; after `extra` rows at 0 they are counted from 1.
fn places(
    cx: &mut Ctx,
    tiles: usize,
    grid: (usize, usize),
    layout: Option<&Layout>,
    extra: usize,
) -> Result<Tensor> {
    let first = i32::from(extra > 0);
    let row_by_row: Vec<usize> = (0..grid.0 * grid.1).collect();
    let order = layout.map_or(&row_by_row, |layout| &layout.order);
    let axis = |of: fn(usize, usize) -> usize| {
        let patches = move || order.iter().map(move |&patch| of(patch, grid.1) as i32 + first);
        (0..tiles).flat_map(move |_| std::iter::repeat_n(0, extra).chain(patches()))
    };
    let values: Vec<i32> = axis(|patch, cols| patch / cols).chain(axis(|patch, cols| patch % cols)).collect();
    cx.upload(&[2, tiles * (extra + order.len())], &values)
}
