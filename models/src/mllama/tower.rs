//! The tower: the patches of all tiles of a picture see each other; tiles that are not there are zeros, which take part.

use ocelli_engine::image::{PreparedImage, Tile};
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{
    Activation, Attention, AttentionKv, GatherRows, MixRows, PatchEmbed, Pointwise, Seen,
};
use ocelli_kernels::{View, Weights};

use crate::fields::Fields;
use crate::layers::{Linear, Norm, Stacked, add_rows, constant, copy_rows, rows_or_zeros, table};
use crate::processor::arrangements;
use crate::vision::{activation, upload};

/// Rows of a tile are filled up to a multiple of this many.
const ROWS: usize = 8;

/// The tower.
#[derive(Clone, Debug)]
pub(super) struct TowerPlan {
    d: usize,
    mlp: usize,
    heads: usize,
    /// Layers, and those with gates after them.
    layers: usize,
    global: usize,
    /// Layers whose results are part of the tower's.
    taps: Vec<usize>,
    /// Sides of a tile and of a patch, in pixels.
    image: usize,
    patch: usize,
    /// Most tiles of a picture.
    pub tiles: usize,
    eps: f32,
    act: Activation,
}

impl TowerPlan {
    /// `MllamaVisionConfig`.
    pub fn read(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["mllama_vision_model"])?;
        vision.only("num_channels", 3)?;
        vision.inert(&["tie_word_embeddings"]);
        // The norms around the layers take the value of torch.
        let plan = Self {
            d: vision.size("hidden_size", 1280)?,
            mlp: vision.size("intermediate_size", 5120)?,
            heads: vision.size("attention_heads", 16)?,
            layers: vision.or("num_hidden_layers", 32)?,
            global: vision.or("num_global_layers", 8)?,
            taps: vision.or("intermediate_layers_indices", vec![3, 7, 15, 23, 30])?,
            image: vision.size("image_size", 448)?,
            patch: vision.size("patch_size", 14)?,
            tiles: vision.size("max_num_tiles", 4)?,
            eps: vision.or("norm_eps", 1e-5)?,
            act: activation(vision, "hidden_act", "gelu")?,
        };
        let shapes: Vec<(usize, usize)> = vision.or("supported_aspect_ratios", arrangements(plan.tiles))?;
        vision.only("vision_output_dim", plan.d * (1 + plan.taps.len()))?;
        let fits = plan.d.is_multiple_of(plan.heads)
            && plan.tiles <= 64
            && plan.layers.max(plan.global) <= 1 << 16
            && plan.image >= plan.patch
            && plan.taps.iter().all(|&tap| tap < plan.layers);
        if !fits {
            let what = format!(
                "expected a multiple of attention_heads, tiles of patches and taps among the layers, found {plan:?}"
            );
            return Err(vision.bad("hidden_size", what));
        }
        if shapes != arrangements(plan.tiles) {
            let what = format!("expected all of at most {} tiles, found {shapes:?}", plan.tiles);
            return Err(vision.bad("supported_aspect_ratios", what));
        }
        Ok(plan)
    }

    /// Patches of a tile and the row before them.
    fn rows(&self) -> usize {
        (self.image / self.patch).pow(2) + 1
    }

    /// Rows of a picture of so many tiles that tokens attend to.
    pub fn rows_of(&self, tiles: usize) -> usize {
        tiles * self.rows()
    }
}

struct Layer {
    norm1: Norm,
    qkv: Stacked,
    out: Linear,
    norm2: Norm,
    up: Linear,
    down: Linear,
    /// Factors of what attention and MLP add.
    gates: [f32; 2],
}

/// The tower with the layer after it.
pub(super) struct Tower {
    plan: TowerPlan,
    path: String,
    patch: Weights,
    /// Positions of a tile's rows, the class row's embedding included, `[rows, d]`.
    positions: Tensor,
    /// Embeddings of all rows of all tiles, a row for each arrangement; their factor.
    places: (View, f32),
    /// The same of tiles, before the first layer and after the last.
    before: (View, f32),
    after: (View, f32),
    norm_pre: Norm,
    norm_post: Norm,
    layers: Vec<Layer>,
    global: Vec<Layer>,
    projector: Linear,
}

fn gate(scope: &Scope<'_>, name: &str) -> Result<f32> {
    scope.take(name, &[1])?;
    Ok(scope.checkpoint().floats(&scope.path(name))?.first().map_or(0.0, |gate| gate.tanh()))
}

impl Tower {
    /// Loads the tower below `scope`, and the layer to `d_out` features at `projector`.
    pub fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        projector: &Scope<'_>,
        plan: TowerPlan,
        d_out: usize,
    ) -> Result<Self> {
        let scope = scope.role(Role::Tower);
        let (d, rows, tiles) = (plan.d, plan.rows(), plan.tiles);
        let shapes = arrangements(tiles).len() + 1;
        let floats = |scope: &Scope<'_>, name: &str, shape: &[usize]| -> Result<Vec<f32>> {
            scope.take(name, shape)?;
            Ok(scope.checkpoint().floats(&scope.path(name))?)
        };
        let at = scope.at("gated_positional_embedding");
        let of_places = gate(&at, "gate")?;
        let mut positions = floats(&at, "embedding", &[rows, d])?;
        positions.iter_mut().for_each(|value| *value *= 1.0 - of_places);
        let class = floats(&scope, "class_embedding", &[d])?;
        positions.iter_mut().zip(class).for_each(|(position, class)| *position += class);
        let view = |cx: &mut Ctx, scope: &Scope<'_>, width: usize| -> Result<View> {
            Ok(cx.stream().place_view(&scope.take("weight", &[shapes, width])?)?)
        };
        let places = (view(cx, &at.at("tile_embedding"), tiles * rows * d)?, of_places);
        let of_tiles = |cx: &mut Ctx, name: &str| -> Result<(View, f32)> {
            let at = scope.at(name);
            Ok((view(cx, &at.at("embedding"), tiles * d)?, gate(&at, "gate")?))
        };
        let (before, after) =
            (of_tiles(cx, "pre_tile_positional_embedding")?, of_tiles(cx, "post_tile_positional_embedding")?);
        let mut layers = Vec::with_capacity(plan.layers);
        for i in 0..plan.layers {
            layers.push(Layer::load(cx, &scope.at("transformer.layers").at(i), &plan, false)?);
        }
        let mut global = Vec::with_capacity(plan.global);
        for i in 0..plan.global {
            global.push(Layer::load(cx, &scope.at("global_transformer.layers").at(i), &plan, true)?);
        }
        let patch = scope.at("patch_embedding").patch_embed(d, 3 * plan.patch * plan.patch, false)?;
        Ok(Self {
            path: scope.prefix().to_owned(),
            patch: cx.stream().place(&patch)?,
            positions: constant(cx, &[rows, d], &positions)?,
            places,
            before,
            after,
            norm_pre: Norm::layer(cx, &scope.at("layernorm_pre"), d, 1e-5)?,
            norm_post: Norm::layer(cx, &scope.at("layernorm_post"), d, 1e-5)?,
            layers,
            global,
            projector: projection(cx, projector, &plan, d_out)?,
            plan,
        })
    }

    /// Rows of a picture, those of tiles that are not there included.
    pub fn rows(&self) -> usize {
        self.plan.rows_of(self.plan.tiles)
    }

    /// Rows of picture `number` of `images` for the decoder: `out: [rows, d_out]`, those of its tiles first.
    pub fn write_to(
        &self,
        cx: &mut Ctx,
        images: &[&PreparedImage],
        number: usize,
        out: &Tensor,
    ) -> Result<()> {
        let (plan, image) = (&self.plan, images[number]);
        let shape = arrangements(plan.tiles).iter().position(|&shape| shape == (image.rows, image.cols));
        let tiles: Vec<(usize, &Tile)> = image.tiles.iter().map(|tile| (number, tile)).collect();
        let fits = |tile: &&Tile| (tile.height, tile.width) == (plan.image, plan.image);
        let (Some(shape), true) = (shape, tiles.iter().all(|(_, tile)| fits(tile))) else {
            let what = format!("expected at most {} tiles of {} pixels a side", plan.tiles, plan.image);
            return Err(Error::Request(format!("picture: {what}, found {} x {}", image.cols, image.rows)));
        };
        cx.scope(|cx| {
            let (d, rows) = (plan.d, self.rows());
            let filler = plan.tiles * (plan.rows().next_multiple_of(ROWS) - plan.rows());
            let (real, valid) = (rows, plan.rows_of(tiles.len()));
            let h = cx.alloc(&[rows + filler, d], cx.dtype())?;
            let shape = shape as i32 + 1;
            self.embed(cx, images, &tiles, shape, &h)?;
            let all = cx.alloc(&[rows, d * (1 + plan.taps.len())], cx.dtype())?;
            let bounds = Bounds::of(cx, valid, rows + filler)?;
            for (i, layer) in self.layers.iter().enumerate() {
                cx.scope(|cx| self.layer(cx, layer, &h, &bounds))?;
                for (tap, _) in plan.taps.iter().enumerate().filter(|(_, tap)| **tap == i) {
                    copy_rows(cx, &self.path, &h.narrow(0, 0, real)?, &all.narrow(1, (1 + tap) * d, d)?)?;
                }
            }
            self.norm_post.write_to(cx, &h, &h)?;
            let tile_of: Vec<i32> = (0..rows)
                .map(|row| row / plan.rows())
                .chain((0..filler).map(|row| row * plan.tiles / filler.max(1)))
                .map(|tile| tile as i32)
                .collect();
            self.add_tiles(cx, &self.after, shape, &tile_of, &h)?;
            for layer in &self.global {
                cx.scope(|cx| self.layer(cx, layer, &h, &bounds))?;
            }
            copy_rows(cx, &self.path, &h.narrow(0, 0, real)?, &all.narrow(1, 0, d)?)?;
            self.projector.write_to(cx, &all, out)
        })
    }

    /// Embeddings of the tiles' rows, normalized, then zeros.
    fn embed(
        &self,
        cx: &mut Ctx,
        images: &[&PreparedImage],
        tiles: &[(usize, &Tile)],
        shape: i32,
        h: &Tensor,
    ) -> Result<()> {
        let (plan, d, each) = (&self.plan, self.plan.d, self.plan.rows());
        let rows = self.rows();
        let normalize = tiles.first().map(|(number, _)| images[*number].normalize);
        cx.scope(|cx| {
            let x = cx.alloc(&[rows, d], cx.dtype())?;
            self.pick(cx, &self.places, shape, &x)?;
            for tile in 0..plan.tiles {
                add_rows(cx, &self.path, &x.narrow(0, tile * each, each)?, &self.positions)?;
            }
            let patch_of = |row: usize| (!row.is_multiple_of(each)).then_some((row / each, row % each - 1));
            let tile_of: Vec<i32> =
                (0..rows).map(|row| patch_of(row).map_or(-1, |(tile, _)| tile as i32)).collect();
            self.add_tiles(cx, &self.before, shape, &tile_of, &x)?;
            let values = upload(cx, images, tiles)?;
            let patches = cx.alloc(&[tiles.len() * (each - 1), d], cx.dtype())?;
            let Some(normalize) = normalize else {
                return Err(Error::Request("a picture without tiles".into()));
            };
            let embed = PatchEmbed {
                pixels: cx.view(&values)?,
                w: self.patch.clone(),
                pos: None,
                pos_ids: None,
                mean: normalize.mean,
                std: normalize.std,
                patch: plan.patch,
                out: cx.view(&patches)?,
            };
            cx.exec(&self.path, &embed)?;
            // The pixels of tiles that are not there are zeros, and so are their embeddings.
            let known = |(tile, patch): (usize, usize)| {
                (tile < tiles.len()).then_some((tile * (each - 1) + patch) as i32)
            };
            let ids: Vec<i32> = (0..rows).map(|row| patch_of(row).and_then(known).unwrap_or(-1)).collect();
            self.add_picked(cx, &patches, &ids, &x)?;
            self.norm_pre.write_to(cx, &x, &h.narrow(0, 0, rows)?)?;
            let filler = h.size(0) - rows;
            if filler > 0 {
                let zeros = rows_or_zeros(cx, &self.path, &x, &vec![-1; filler])?;
                copy_rows(cx, &self.path, &zeros, &h.narrow(0, rows, filler)?)?;
            }
            Ok(())
        })
    }

    /// The row of a table for an arrangement, times the table's factor, as `out`.
    fn pick(&self, cx: &mut Ctx, (table, factor): &(View, f32), shape: i32, out: &Tensor) -> Result<()> {
        let ids = cx.upload(&[1], &[shape])?;
        let table = Weights::dense(table.clone(), None)?;
        let out = cx.view(&out.reshape(&[1, out.size(0) * out.size(1)])?)?;
        cx.exec(&self.path, &GatherRows { table, ids: cx.view(&ids)?, scale: *factor, out })
    }

    /// Adds to each row the embedding of its tile; none to rows of tile -1.
    fn add_tiles(&self, cx: &mut Ctx, of: &(View, f32), shape: i32, tiles: &[i32], h: &Tensor) -> Result<()> {
        let table = cx.alloc(&[self.plan.tiles, self.plan.d], cx.dtype())?;
        self.pick(cx, of, shape, &table)?;
        self.add_picked(cx, &table, tiles, h)
    }

    fn add_picked(&self, cx: &mut Ctx, src: &Tensor, ids: &[i32], h: &Tensor) -> Result<()> {
        let weights = cx.upload(&[ids.len(), 1], &vec![1f32; ids.len()])?;
        let ids = cx.upload(&[ids.len(), 1], ids)?;
        let op = MixRows {
            src: cx.view(src)?,
            ids: Some(cx.view(&ids)?),
            weights: cx.view(&weights)?,
            add: true,
            out: cx.view(h)?,
        };
        cx.exec(&self.path, &op)
    }

    fn layer(&self, cx: &mut Ctx, layer: &Layer, h: &Tensor, bounds: &Bounds) -> Result<()> {
        let (d, heads, rows) = (self.plan.d, self.plan.heads, h.size(0));
        let qkv = layer.qkv.forward(cx, &layer.norm1, h)?;
        let part = |i: usize| qkv.narrow(1, i * d, d)?.reshape(&[rows, heads, d / heads]);
        let (q, k, v) = (part(0)?, part(1)?, part(2)?);
        let out = cx.alloc(&[rows, heads, d / heads], cx.dtype())?;
        // Patches of the picture see every row; rows that fill up see those alone.
        for (first, queries, q_starts, seen, kv_starts) in bounds.parts() {
            let op = Attention {
                q: cx.view(&q.narrow(0, first, queries)?)?,
                kv: AttentionKv::Packed {
                    k: cx.view(&k.narrow(0, 0, seen)?)?,
                    v: cx.view(&v.narrow(0, 0, seen)?)?,
                    kv_starts: cx.view(kv_starts)?,
                },
                q_starts: cx.view(q_starts)?,
                seen: Seen::All,
                scale: 1.0 / ((d / heads) as f32).sqrt(),
                softcap: 0.0,
                out: cx.view(&out.narrow(0, first, queries)?)?,
                max_q: queries,
                max_kv: seen,
                pairs: (queries * seen) as u64,
            };
            cx.exec(&self.path, &op)?;
        }
        self.add(cx, &layer.out, layer.gates[0], &out.reshape(&[rows, d])?, h)?;
        let x = layer.norm2.forward(cx, h)?;
        let up = layer.up.forward_act(cx, &x, self.plan.act)?;
        self.add(cx, &layer.down, layer.gates[1], &up, h)
    }

    /// `h += gate * linear(x)`.
    fn add(&self, cx: &mut Ctx, linear: &Linear, gate: f32, x: &Tensor, h: &Tensor) -> Result<()> {
        if gate == 1.0 {
            return linear.add_to(cx, x, h);
        }
        let y = linear.forward(cx, x)?;
        let (y, h) = (cx.view(&y)?, cx.view(h)?);
        cx.exec(&self.path, &Pointwise { scale: gate, add: Some(h.clone()), ..Pointwise::new(y, h) })
    }
}

/// Rows of the picture's own tiles, which come first, and of all.
struct Bounds {
    valid: usize,
    all: usize,
    of_valid: Tensor,
    of_rest: Tensor,
    of_all: Tensor,
}

impl Bounds {
    fn of(cx: &mut Ctx, valid: usize, all: usize) -> Result<Self> {
        let mut starts = |rows: usize| cx.upload(&[2], &[0, rows as i32]);
        let (of_valid, of_rest, of_all) = (starts(valid)?, starts(all - valid)?, starts(all)?);
        Ok(Self { valid, all, of_valid, of_rest, of_all })
    }

    /// First query, queries, where they begin; keys, where they begin.
    fn parts(&self) -> impl Iterator<Item = (usize, usize, &Tensor, usize, &Tensor)> {
        let Self { valid, all, .. } = *self;
        let parts = [
            (0, valid, &self.of_valid, all, &self.of_all),
            (valid, all - valid, &self.of_rest, valid, &self.of_valid),
        ];
        parts.into_iter().filter(|(_, queries, ..)| *queries > 0)
    }
}

/// The layer to the decoder, whose columns the file has feature by feature, the taps' side by side.
fn projection(cx: &mut Ctx, scope: &Scope<'_>, plan: &TowerPlan, n: usize) -> Result<Linear> {
    let (d, taps) = (plan.d, plan.taps.len());
    let k = d * (1 + taps);
    scope.take("weight", &[n, k])?;
    let stored = scope.checkpoint().floats(&scope.path("weight"))?;
    let from = |col: usize| match (col / d).checked_sub(1) {
        None => col,
        Some(tap) => d + col % d * taps + tap,
    };
    let columns: Vec<usize> = (0..k).map(from).collect();
    let turned: Vec<f32> =
        stored.chunks_exact(k).flat_map(|row| columns.iter().map(|&col| row[col])).collect();
    let bias = cx.stream().place_view(&scope.take("bias", &[n])?)?;
    let w = table(cx, &[n, k], &turned)?;
    let w = cx.stream().place(&Weights::dense(w.view().clone(), Some(bias))?)?;
    Ok(Linear::tied(scope.prefix(), w))
}

impl Layer {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: &TowerPlan, gated: bool) -> Result<Self> {
        let (d, mlp, attn) = (plan.d, plan.mlp, scope.at("self_attn"));
        let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| (attn.at(name), d));
        let gates = match gated {
            true => [gate(scope, "gate_attn")?, gate(scope, "gate_ffn")?],
            false => [1.0; 2],
        };
        Ok(Self {
            norm1: Norm::layer(cx, &scope.at("input_layernorm"), d, plan.eps)?,
            qkv: Stacked::load(cx, attn.prefix(), &qkv, d, false)?,
            out: Linear::load(cx, &attn.at("o_proj"), d, d, false)?,
            norm2: Norm::layer(cx, &scope.at("post_attention_layernorm"), d, plan.eps)?,
            up: Linear::load(cx, &scope.at("mlp.fc1"), mlp, d, true)?,
            down: Linear::load(cx, &scope.at("mlp.fc2"), d, mlp, true)?,
            gates,
        })
    }
}
