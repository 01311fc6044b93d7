//! The decoder of a picture's codes: convolutions, group norms, attention between all places, and pictures twice as large.
//!
//! After `JanusVQVAEDecoder` of transformers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Filter, Seen};

use crate::fields::Fields;
use crate::layers::{Conv, Embedding, GroupNorm, Unit, add_rows};
use crate::vision::Segments;

/// Groups of channels that are normalized together.
const GROUPS: usize = 32;
/// Added to their variances.
const EPS: f32 = 1e-6;

const THREE: Filter = Filter { size: (3, 3), stride: 1, padding: 1 };
const ONE: Filter = Filter { size: (1, 1), stride: 1, padding: 0 };

/// Sizes of the decoder.
#[derive(Clone, Debug, PartialEq)]
pub struct VqPlan {
    /// Codes.
    pub codes: usize,
    /// Features of a code.
    pub d: usize,
    /// Rows and columns of codes.
    pub side: usize,
    latent: usize,
    /// Channels of each level, that of the codes first.
    levels: Vec<usize>,
    /// Blocks of a level.
    blocks: usize,
}

impl VqPlan {
    /// Reads `vq_config`.
    pub fn read(vq: &Fields<'_>) -> Result<Self> {
        vq.only("out_channels", 3)?;
        // Of what turns pictures into codes.
        vq.inert(&["double_latent", "in_channels", "beta", "resolution"]);
        let base = vq.size("base_channels", 128)?;
        let multipliers: Vec<usize> = vq.or("channel_multiplier", vec![1, 1, 2, 2, 4])?;
        let levels: Vec<usize> = multipliers.iter().rev().map(|by| by.saturating_mul(base)).collect();
        let fits = |d: &usize| *d > 0 && *d < 1 << 20 && d.is_multiple_of(GROUPS);
        if levels.is_empty() || levels.len() > 8 || !levels.iter().all(fits) {
            let what =
                format!("expected multiples of {GROUPS} channels on at most 8 levels, found {levels:?}");
            return Err(vq.bad("channel_multiplier", what));
        }
        Ok(Self {
            codes: vq.size("num_embeddings", 16384)?,
            d: vq.size("embed_dim", 8)?,
            side: vq.size("num_patches", 32)?,
            latent: vq.size("latent_channels", 256)?,
            levels,
            blocks: vq.size("num_res_blocks", 2)?.min(1 << 10) + 1,
        })
    }

    /// Rows and columns of pixels.
    #[must_use]
    pub fn pixels(&self) -> usize {
        self.side << (self.levels.len() - 1)
    }
}

/// Two convolutions with norms before them, around which the input goes.
struct Block {
    norm1: GroupNorm,
    conv1: Conv,
    norm2: GroupNorm,
    conv2: Conv,
    /// Where there are other channels after it than before.
    shortcut: Option<Conv>,
    d: usize,
}

impl Block {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, before: usize, d: usize) -> Result<Self> {
        Ok(Self {
            norm1: GroupNorm::load(cx, &scope.at("norm1"), before, GROUPS, EPS)?,
            conv1: Conv::load(cx, &scope.at("conv1"), (d, before), THREE, true)?,
            norm2: GroupNorm::load(cx, &scope.at("norm2"), d, GROUPS, EPS)?,
            conv2: Conv::load(cx, &scope.at("conv2"), (d, d), THREE, true)?,
            shortcut: match before == d {
                true => None,
                false => Some(Conv::load(cx, &scope.at("nin_shortcut"), (d, before), ONE, true)?),
            },
            d,
        })
    }

    /// `x: [rows * columns, before]  ->  out: [rows * columns, d]`.
    fn write_to(&self, cx: &mut Ctx, x: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let normed = self.norm1.forward_act(cx, x, Activation::Silu)?;
        let middle = cx.alloc(&[x.size(0), self.d], cx.dtype())?;
        self.conv1.write_to(cx, &normed, grid, &middle)?;
        let normed = self.norm2.forward_act(cx, &middle, Activation::Silu)?;
        self.conv2.write_to(cx, &normed, grid, out)?;
        match &self.shortcut {
            None => add_rows(cx, self.conv2.path(), out, x),
            Some(shortcut) => {
                shortcut.write_to(cx, x, grid, &middle)?;
                add_rows(cx, self.conv2.path(), out, &middle)
            }
        }
    }
}

/// Attention of one head between all places.
struct Mix {
    path: String,
    norm: GroupNorm,
    qkv: [Conv; 3],
    out: Conv,
}

impl Mix {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, d: usize) -> Result<Self> {
        let mut conv = |name: &str| Conv::load(cx, &scope.at(name), (d, d), ONE, true);
        let (qkv, out) = ([conv("q")?, conv("k")?, conv("v")?], conv("proj_out")?);
        let norm = GroupNorm::load(cx, &scope.at("norm"), d, GROUPS, EPS)?;
        Ok(Self { path: scope.prefix().to_owned(), norm, qkv, out })
    }

    /// `h += out(attention(norm(h)))`: `h: [rows * columns, d]`.
    fn add_to(&self, cx: &mut Ctx, h: &Tensor, grid: (usize, usize)) -> Result<()> {
        let (rows, d) = (h.size(0), h.size(1));
        let x = self.norm.forward_act(cx, h, Activation::None)?;
        let mut heads = Vec::with_capacity(3);
        for conv in &self.qkv {
            let part = cx.alloc(&[rows, d], cx.dtype())?;
            conv.write_to(cx, &x, grid, &part)?;
            heads.push(part.reshape(&[rows, 1, d])?);
        }
        let segments = Segments::of(cx, &[0, rows])?;
        let (bounds, mixed) = (cx.view(&segments.starts)?, cx.alloc(&[rows, 1, d], cx.dtype())?);
        let op = Attention {
            q: cx.view(&heads[0])?,
            kv: AttentionKv::Packed {
                k: cx.view(&heads[1])?,
                v: cx.view(&heads[2])?,
                kv_starts: bounds.clone(),
            },
            q_starts: bounds,
            seen: Seen::All,
            scale: 1.0 / (d as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&mixed)?,
            max_q: segments.max,
            max_kv: segments.max,
            pairs: segments.pairs,
        };
        cx.exec(&self.path, &op)?;
        self.out.write_to(cx, &mixed.reshape(&[rows, d])?, grid, &x)?;
        add_rows(cx, &self.path, h, &x)
    }
}

/// Blocks of one size, each with attention after it where there is such, and the convolution of a picture twice as large.
struct Level {
    d: usize,
    blocks: Vec<(Block, Option<Mix>)>,
    up: Option<Conv>,
}

/// The decoder.
pub struct VqDecoder {
    plan: VqPlan,
    codes: Embedding,
    unit: Unit,
    conv_post: Conv,
    conv_in: Conv,
    levels: Vec<Level>,
    norm_out: GroupNorm,
    conv_out: Conv,
}

impl VqDecoder {
    /// Loads the decoder of the model below `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: VqPlan) -> Result<Self> {
        let codes = &scope.at("quantize.embedding");
        let table = Embedding::load(cx, codes, plan.codes, plan.d, 1.0)?;
        let unit = Unit::new(cx, codes.prefix(), plan.d)?;
        let conv_post = Conv::load(cx, &scope.at("post_quant_conv"), (plan.latent, plan.d), ONE, true)?;
        let scope = scope.at("decoder");
        let first = plan.levels.first().copied().unwrap_or(0);
        let conv_in = Conv::load(cx, &scope.at("conv_in"), (first, plan.latent), THREE, true)?;
        let mid = scope.at("mid");
        let with_mix = Some(Mix::load(cx, &mid.at("attn_1"), first)?);
        let blocks = vec![
            (Block::load(cx, &mid.at("block_1"), first, first)?, with_mix),
            (Block::load(cx, &mid.at("block_2"), first, first)?, None),
        ];
        let mut levels = vec![Level { d: first, blocks, up: None }];
        let mut before = first;
        for (number, &d) in plan.levels.iter().enumerate() {
            let at = scope.at("up").at(number);
            let mut blocks = Vec::with_capacity(plan.blocks);
            for i in 0..plan.blocks {
                let block = Block::load(cx, &at.at("block").at(i), before, d)?;
                let mix = match number {
                    0 => Some(Mix::load(cx, &at.at("attn").at(i), d)?),
                    _ => None,
                };
                blocks.push((block, mix));
                before = d;
            }
            let up = match number + 1 < plan.levels.len() {
                true => Some(Conv::load(cx, &at.at("upsample.conv"), (d, d), THREE, true)?),
                false => None,
            };
            levels.push(Level { d, blocks, up });
        }
        Ok(Self {
            codes: table,
            unit,
            conv_post,
            conv_in,
            levels,
            norm_out: GroupNorm::load(cx, &scope.at("norm_out"), before, GROUPS, EPS)?,
            conv_out: Conv::load(cx, &scope.at("conv_out"), (3, before), THREE, true)?,
            plan,
        })
    }

    /// `codes: i32 [side * side]  ->  [pixels * pixels, 3]`.
    pub fn forward(&self, cx: &mut Ctx, codes: &Tensor) -> Result<Tensor> {
        let (side, pixels) = (self.plan.side, self.plan.pixels());
        if codes.size(0) != side * side {
            let (expected, found) = (side * side, codes.size(0));
            return Err(Error::Request(format!("a picture: expected {expected} codes, found {found}")));
        }
        let out = cx.alloc(&[pixels * pixels, 3], cx.dtype())?;
        cx.scope(|cx| {
            let mut grid = (side, side);
            let mut h = cx.alloc(&[side * side, self.plan.levels[0]], cx.dtype())?;
            cx.scope(|cx| {
                let rows = self.codes.forward(cx, codes)?;
                self.unit.write_to(cx, &rows, &rows)?;
                let latent = cx.alloc(&[side * side, self.plan.latent], cx.dtype())?;
                self.conv_post.write_to(cx, &rows, grid, &latent)?;
                self.conv_in.write_to(cx, &latent, grid, &h)
            })?;
            for level in &self.levels {
                // Two buffers take turns.
                let shape = [grid.0 * grid.1, level.d];
                let mut spare = cx.alloc(&shape, cx.dtype())?;
                for (block, mix) in &level.blocks {
                    let next = if spare.shape() == shape { spare } else { cx.alloc(&shape, cx.dtype())? };
                    cx.scope(|cx| block.write_to(cx, &h, grid, &next))?;
                    if let Some(mix) = mix {
                        cx.scope(|cx| mix.add_to(cx, &next, grid))?;
                    }
                    spare = std::mem::replace(&mut h, next);
                }
                if let Some(up) = &level.up {
                    let next = cx.alloc(&[4 * grid.0 * grid.1, level.d], cx.dtype())?;
                    up.write_zoomed(cx, &h, grid, 2, &next)?;
                    (h, grid) = (next, (2 * grid.0, 2 * grid.1));
                }
            }
            let x = self.norm_out.forward_act(cx, &h, Activation::Silu)?;
            self.conv_out.write_to(cx, &x, grid, &out)
        })?;
        Ok(out)
    }
}
