//! The tower of Segment Anything: windows and relative places of rows and columns, then convolutions that make the picture smaller.
//!
//! After `DeepseekOcr2SamVisionEncoder` of transformers. The scores of a query `q` at row `r` are `q k / sqrt(c) + q H[r - row of k] + ..`:
//! each query gets further elements, `q H` for every row of keys and `q W` for every column, and each key ones where its row and its
//! column are, so that attention adds what relative places add.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{
    Activation, Attention, AttentionKv, Filter, GatherRows, Matmul, MixRows, NormKind, PatchEmbed,
    ScatterRows, Seen,
};
use ocelli_kernels::{View, Weights};

use crate::fields::Fields;
use crate::layers::{Conv, Linear, Norm, constant, gather_rows, rows_or_zeros, table};
use crate::vision::{Pixels, activation, cubic_taps, stretched};

/// Sizes of the tower.
#[derive(Clone, Debug)]
pub struct SamPlan {
    /// Features of a patch.
    pub d: usize,
    mlp: usize,
    layers: usize,
    heads: usize,
    /// Patches along a side of a whole picture, for which tables are.
    side: usize,
    /// Side of a patch, in pixels.
    pub patch: usize,
    norm_eps: f32,
    qkv_bias: bool,
    act: Activation,
    /// Side of a window, in patches.
    window: usize,
    /// Layers that see the whole picture.
    whole: Vec<usize>,
    /// Channels of the two convolutions after the layers, and of the two that make the picture smaller.
    neck: usize,
    down: [usize; 2],
}

/// Added to variances by the norms between convolutions.
const NECK_EPS: f32 = 1e-6;

impl SamPlan {
    /// `DeepseekOcr2SamVisionConfig`.
    pub fn read(sam: &Fields<'_>) -> Result<Self> {
        sam.model_type(&["deepseek_ocr2_sam_vision_model"])?;
        sam.only("num_channels", 3)?;
        sam.only("use_abs_pos", true)?;
        sam.only("use_rel_pos", true)?;
        sam.inert(&["scale"]);
        let d = sam.size("hidden_size", 768)?;
        let ratio: f64 = sam.or("mlp_ratio", 4.0)?;
        let (image, patch) = (sam.size("image_size", 1024)?, sam.size("patch_size", 16)?);
        let down: Vec<usize> = sam.get("downsample_channels")?.unwrap_or_else(|| vec![512, 896]);
        let [first, second] = down[..] else {
            return Err(sam.bad("downsample_channels", format!("expected two, found {}", down.len())));
        };
        let heads = sam.size("num_attention_heads", 12)?;
        if !d.is_multiple_of(heads) || image < patch {
            let what = format!("expected a multiple of num_attention_heads {heads}, found {d}");
            return Err(sam.bad("hidden_size", what));
        }
        Ok(Self {
            d,
            mlp: sam.size("mlp_dim", (d as f64 * ratio) as usize)?,
            layers: sam.or("num_hidden_layers", 12)?,
            heads,
            side: image / patch,
            patch,
            norm_eps: sam.or("layer_norm_eps", 1e-6)?,
            qkv_bias: sam.or("qkv_bias", true)?,
            act: activation(sam, "hidden_act", "gelu")?,
            window: sam.size("window_size", 14)?,
            whole: sam.or("global_attn_indexes", vec![2, 5, 8, 11])?,
            neck: sam.size("output_channels", 256)?,
            down: [first, second],
        })
    }

    /// Channels of the result.
    #[must_use]
    pub const fn channels(&self) -> usize {
        self.down[1]
    }

    /// Patches of a tile.
    #[must_use]
    pub const fn grid(&self, height: usize, width: usize) -> (usize, usize) {
        (height / self.patch, width / self.patch)
    }
}

struct Layer {
    norm1: Norm,
    qkv: Linear,
    proj: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
    /// Embeddings of relative rows and columns, `[2 size - 1, c]` each.
    relative: [Vec<f32>; 2],
    whole: bool,
}

/// The tower.
pub struct Sam {
    path: String,
    plan: SamPlan,
    patch: Weights,
    /// Embeddings of places `[side * side, d]`.
    places: View,
    layers: Vec<Layer>,
    neck: [(Conv, Norm); 2],
    down: [Conv; 2],
}

/// The windows of a picture, or the picture as one, and what attention needs for them.
struct Windows {
    /// Rows and columns of a window.
    size: (usize, usize),
    /// Patch of each row, -1 where windows go beyond the picture; none where the picture is one window.
    patches: Option<Vec<i32>>,
    /// First row of each window, and at the end the number of rows.
    starts: Tensor,
    count: usize,
    /// Numbers `0, 1, ..` of rows times heads.
    all: Tensor,
    /// For each of these the place in its window, in `ones`.
    within: Tensor,
    /// One where the row and where the column of a place is, `[places, rows + columns]`.
    ones: Tensor,
    /// Rows times heads by their row in the window, and by their column.
    by: [Vec<i32>; 2],
}

impl Windows {
    fn of(cx: &mut Ctx, grid: (usize, usize), window: Option<usize>, heads: usize) -> Result<Self> {
        let size = window.map_or(grid, |side| (side, side));
        let (down, across) = (grid.0.div_ceil(size.0), grid.1.div_ceil(size.1));
        let each = size.0 * size.1;
        let count = down * across;
        let places = || (0..size.0).flat_map(|row| (0..size.1).map(move |col| (row, col)));
        let patches = window.map(|_| {
            let windows = (0..down).flat_map(|row| (0..across).map(move |col| (row, col)));
            let patch = |(row, col): (usize, usize)| {
                if row < grid.0 && col < grid.1 { (row * grid.1 + col) as i32 } else { -1 }
            };
            let of = |(y, x)| places().map(move |(row, col)| patch((y * size.0 + row, x * size.1 + col)));
            windows.flat_map(of).collect()
        });
        let rows = count * each * heads;
        let within: Vec<i32> = (0..rows).map(|row| (row / heads % each) as i32).collect();
        let mut ones = vec![0f32; each * (size.0 + size.1)];
        for ((row, col), line) in places().zip(ones.chunks_exact_mut(size.0 + size.1)) {
            line[row] = 1.0;
            line[size.0 + col] = 1.0;
        }
        let sorted = |key: fn(usize, usize) -> usize| {
            let mut all: Vec<i32> = (0..rows as i32).collect();
            all.sort_by_key(|&row| key(row as usize / heads % each, size.1));
            all
        };
        let starts: Vec<i32> = (0..=count).map(|number| (number * each) as i32).collect();
        Ok(Self {
            size,
            patches,
            starts: cx.upload(&[starts.len()], &starts)?,
            count,
            all: cx.upload(&[rows], &(0..rows as i32).collect::<Vec<_>>())?,
            within: cx.upload(&[rows], &within)?,
            ones: constant(cx, &[each, size.0 + size.1], &ones)?,
            by: [sorted(|place, cols| place / cols), sorted(|place, cols| place % cols)],
        })
    }

    /// The row of each patch, where the picture is cut.
    fn back(&self, patches: usize) -> Option<Vec<i32>> {
        let mut rows = vec![0; patches];
        for (row, &patch) in self.patches.as_ref()?.iter().enumerate() {
            if let Some(to) = usize::try_from(patch).ok().and_then(|patch| rows.get_mut(patch)) {
                *to = row as i32;
            }
        }
        Some(rows)
    }
}

impl Sam {
    /// Loads the tower below `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: SamPlan) -> Result<Self> {
        let scope = &scope.role(Role::Tower);
        let (d, side) = (plan.d, plan.side);
        let area = plan.patch * plan.patch;
        let patch = cx.stream().place(
            &scope.at_any(&["patch_embed.proj", "patch_embed.projection"]).patch_embed(d, 3 * area, true)?,
        )?;
        let places = scope.take("pos_embed", &[1, side, side, d])?.reshape(&[side * side, d])?;
        let places = cx.stream().place_view(&places)?;
        let mut layers = Vec::new();
        for number in 0..plan.layers {
            layers.push(Layer::load(cx, &scope.at_any(&["blocks", "layers"]).at(number), &plan, number)?);
        }
        let filter = |side, stride, padding| Filter { size: (side, side), stride, padding };
        let norm = |cx: &mut Ctx, name| Norm::load(cx, &scope.at(name), plan.neck, NECK_EPS, NormKind::Layer);
        let norms = [norm(cx, "neck.1")?, norm(cx, "neck.3")?];
        let conv = |cx: &mut Ctx, name, sizes, filter| Conv::load(cx, &scope.at(name), sizes, filter, false);
        let [first, second] = norms;
        let (wide, down) = (plan.neck, plan.down);
        Ok(Self {
            path: scope.prefix().to_owned(),
            patch,
            places,
            layers,
            neck: [
                (conv(cx, "neck.0", (wide, d), filter(1, 1, 0))?, first),
                (conv(cx, "neck.2", (wide, wide), filter(3, 1, 1))?, second),
            ],
            down: [
                conv(cx, "net_2", (down[0], wide), filter(3, 2, 1))?,
                conv(cx, "net_3", (down[1], down[0]), filter(3, 2, 1))?,
            ],
            plan,
        })
    }

    /// The plan.
    #[must_use]
    pub const fn plan(&self) -> &SamPlan {
        &self.plan
    }

    /// Rows and columns of the result for a tile with that grid of patches.
    #[must_use]
    pub fn places(&self, grid: (usize, usize)) -> (usize, usize) {
        self.down.iter().fold(grid, |grid, conv| conv.places(grid))
    }

    /// The pixels of one tile  ->  `out: [places, channels]`.
    pub fn write_to(&self, cx: &mut Ctx, pixels: &Pixels, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let plan = &self.plan;
        let patches = grid.0 * grid.1;
        let h = cx.alloc(&[patches, plan.d], cx.dtype())?;
        cx.scope(|cx| {
            let embed = PatchEmbed {
                pixels: cx.view(&pixels.values)?,
                w: self.patch.clone(),
                pos: None,
                pos_ids: None,
                mean: pixels.mean,
                std: pixels.std,
                patch: plan.patch,
                out: cx.view(&h)?,
            };
            cx.exec(&self.path, &embed)?;
            let (ids, factors, taps) = cubic_taps(plan.side, grid);
            let ids = cx.upload(&[patches, taps], &ids)?;
            let factors = cx.upload(&[patches, taps], &factors)?;
            let op = MixRows {
                src: self.places.clone(),
                ids: Some(cx.view(&ids)?),
                weights: cx.view(&factors)?,
                add: true,
                out: cx.view(&h)?,
            };
            cx.exec(&self.path, &op)
        })?;
        let whole = Windows::of(cx, grid, None, plan.heads)?;
        let cut = Windows::of(cx, grid, Some(plan.window), plan.heads)?;
        for layer in &self.layers {
            let windows = if layer.whole { &whole } else { &cut };
            cx.scope(|cx| {
                let x = self.attend(cx, layer, windows, &h)?;
                layer.proj.add_to(cx, &x, &h)
            })?;
            cx.scope(|cx| {
                let x = layer.norm2.forward(cx, &h)?;
                let up = layer.up.forward_act(cx, &x, plan.act)?;
                layer.down.add_to(cx, &up, &h)
            })?;
        }
        let mut x = h;
        for (conv, norm) in &self.neck {
            let y = cx.alloc(&[patches, plan.neck], cx.dtype())?;
            conv.write_to(cx, &x, grid, &y)?;
            norm.write_to(cx, &y, &y)?;
            x = y;
        }
        let [first, second] = &self.down;
        let half = first.places(grid);
        let y = cx.alloc(&[half.0 * half.1, plan.down[0]], cx.dtype())?;
        first.write_to(cx, &x, grid, &y)?;
        second.write_to(cx, &y, half, out)
    }

    /// What attention gives for each patch before the projection, `[patches, d]`.
    fn attend(&self, cx: &mut Ctx, layer: &Layer, windows: &Windows, h: &Tensor) -> Result<Tensor> {
        let (d, heads) = (self.plan.d, self.plan.heads);
        let c = d / heads;
        let size = windows.size;
        let mut x = layer.norm1.forward(cx, h)?;
        if let Some(patches) = &windows.patches {
            x = rows_or_zeros(cx, &self.path, &x, patches)?;
        }
        let qkv = layer.qkv.forward(cx, &x)?;
        let n = x.size(0);
        let wide = c + size.0 + size.1;
        let mut parts = Vec::with_capacity(3);
        let rows: Vec<i32> = (0..n as i32).collect();
        let rows = cx.upload(&[n], &rows)?;
        for part in 0..3 {
            let own = cx.alloc(&[n, d], cx.dtype())?;
            let op = ScatterRows {
                src: cx.view(&qkv.narrow(1, part * d, d)?)?,
                rows: cx.view(&rows)?,
                out: cx.view(&own)?,
            };
            cx.exec(&self.path, &op)?;
            let own = own.reshape(&[n * heads, c])?;
            let long = cx.alloc(&[n * heads, wide], cx.dtype())?;
            self.put(cx, &own, &windows.all, &long.narrow(1, 0, c)?)?;
            let more = long.narrow(1, c, size.0 + size.1)?;
            if part == 0 {
                let ends = [(0, size.0), (size.0, size.1)];
                for ((relative, order), (first, size)) in layer.relative.iter().zip(&windows.by).zip(ends) {
                    self.relate(cx, &own, relative, order, &more.narrow(1, first, size)?)?;
                }
            } else {
                // Ones for keys, nothing for values.
                let op = GatherRows {
                    table: Weights::dense(cx.view(&windows.ones)?, None)?,
                    ids: cx.view(&windows.within)?,
                    scale: if part == 1 { 1.0 } else { 0.0 },
                    out: cx.view(&more)?,
                };
                cx.exec(&self.path, &op)?;
            }
            parts.push(long.reshape(&[n, heads, wide])?);
        }
        let [q, k, v] = &parts[..] else {
            return Err(Error::Request(format!("{}: no queries", self.path)));
        };
        let out = cx.alloc(&[n, heads, wide], cx.dtype())?;
        let starts = cx.view(&windows.starts)?;
        let each = size.0 * size.1;
        let op = Attention {
            q: cx.view(q)?,
            kv: AttentionKv::Packed { k: cx.view(k)?, v: cx.view(v)?, kv_starts: starts.clone() },
            q_starts: starts,
            seen: Seen::All,
            scale: 1.0 / (c as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&out)?,
            max_q: each,
            max_kv: each,
            pairs: (windows.count * each * each) as u64,
        };
        cx.exec(&self.path, &op)?;
        let own = cx.alloc(&[n * heads, c], cx.dtype())?;
        self.put(cx, &out.reshape(&[n * heads, wide])?.narrow(1, 0, c)?, &windows.all, &own)?;
        let own = own.reshape(&[n, d])?;
        match windows.back(h.size(0)) {
            Some(back) => gather_rows(cx, &self.path, &own, &back),
            None => Ok(own),
        }
    }

    /// `out[rows[i]] = x[i]`.
    fn put(&self, cx: &mut Ctx, x: &Tensor, rows: &Tensor, out: &Tensor) -> Result<()> {
        let op = ScatterRows { src: cx.view(x)?, rows: cx.view(rows)?, out: cx.view(out)? };
        cx.exec(&self.path, &op)
    }

    /// Products of each query with the embeddings of all keys' relative places on one axis: `q: [rows, c]  ->  out: [rows, size]`.
    /// `order` has the rows by their own place there, as many of each.
    fn relate(&self, cx: &mut Ctx, q: &Tensor, relative: &[f32], order: &[i32], out: &Tensor) -> Result<()> {
        let (c, size) = (q.size(1), out.size(1));
        let span = 2 * size - 1;
        // The scale of attention does not count for them.
        let factor = (c as f32).sqrt();
        let resized = stretched(relative, c, span);
        // Behind each other as keys ascend.
        let turned: Vec<f32> = resized.chunks_exact(c).rev().flatten().map(|value| value * factor).collect();
        let turned = table(cx, &[span, c], &turned)?;
        let sorted = gather_rows(cx, &self.path, q, order)?;
        let products = cx.alloc(&[order.len(), size], cx.dtype())?;
        let each = order.len() / size;
        for place in 0..size {
            let w = Weights::dense(turned.narrow(0, size - 1 - place, size)?.view().clone(), None)?;
            let part = |x: &Tensor| x.narrow(0, place * each, each);
            let mut op = Matmul::new(cx.view(&part(&sorted)?)?, w.clone(), cx.view(&part(&products)?)?);
            op.math = cx.math(&w);
            cx.exec(&self.path, &op)?;
        }
        let rows = cx.upload(&[order.len()], order)?;
        self.put(cx, &products, &rows, out)
    }
}

impl Layer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &SamPlan, number: usize) -> Result<Self> {
        let (d, mlp) = (plan.d, plan.mlp);
        let norm = |cx: &mut Ctx, names: [&str; 2]| {
            Norm::load(cx, &scope.at_any(&names), d, plan.norm_eps, NormKind::Layer)
        };
        let whole = plan.whole.contains(&number);
        let size = if whole { plan.side } else { plan.window };
        let attn = scope.at("attn");
        let relative = |name: &str| {
            attn.take(name, &[2 * size - 1, d / plan.heads])?;
            Ok::<_, Error>(attn.checkpoint().floats(&attn.path(name))?)
        };
        Ok(Self {
            norm1: norm(cx, ["norm1", "layer_norm1"])?,
            qkv: Linear::load(cx, &attn.at("qkv"), 3 * d, d, plan.qkv_bias)?,
            proj: Linear::load(cx, &attn.at("proj"), d, d, true)?,
            norm2: norm(cx, ["norm2", "layer_norm2"])?,
            up: Linear::load(cx, &scope.at("mlp.lin1"), mlp, d, true)?,
            down: Linear::load(cx, &scope.at("mlp.lin2"), d, mlp, true)?,
            relative: [relative("rel_pos_h")?, relative("rel_pos_w")?],
            whole,
        })
    }
}
