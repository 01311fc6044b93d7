//! DaViT: stages of blocks that mix windows of patches and then channels, with convolutions before each part.
//!
//! After `Florence2VisionBackbone` of transformers.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::Weights;
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Filter, Math, Matmul, Seen};

use super::plan::activation;
use super::raw::RawPixels;
use super::vit::{Pixels, Segments};
use crate::fields::Fields;
use crate::layers::{Conv, DepthConv, Linear, Norm, copy_rows, rows_or_zeros, table};

/// Added to variances.
const EPS: f32 = 1e-5;

/// One stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DavitStage {
    /// Features of a patch.
    pub d: usize,
    /// Features between the layers of an MLP.
    pub mlp: usize,
    /// Blocks.
    pub depth: usize,
    /// Heads of attention in windows.
    pub heads: usize,
    /// Groups of channels that see each other.
    pub groups: usize,
    /// The convolution before the blocks.
    pub filter: Filter,
    /// Whether the norm is before it, and not after.
    pub norm_first: bool,
}

/// How modules are named in a file.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum DavitNames {
    /// As transformers has them: norms beside what they precede.
    #[default]
    Beside,
    /// As Microsoft's files have them: norms within it, and what they precede below `fn`.
    Within,
}

/// A tower.
#[derive(Clone, Debug)]
pub struct DavitPlan {
    /// The stages.
    pub stages: Vec<DavitStage>,
    /// Patches along the side of a window.
    pub window: usize,
    /// Activation of the MLPs.
    pub act: Activation,
    /// Whether query, key and value projections have biases.
    pub qkv_bias: bool,
    /// Names in the file.
    pub names: DavitNames,
}

impl DavitPlan {
    /// `Florence2VisionConfig`.
    pub fn read(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["florence_vision"])?;
        vision.only("in_channels", 3)?;
        vision.inert(&["drop_path_rate"]);
        let list = |key: &str, usual: &[usize]| vision.or(key, usual.to_vec());
        let (d, depths) = (list("embed_dim", &[128, 256, 512, 1024])?, list("depths", &[1, 1, 9, 1])?);
        let (heads, groups) = (list("num_heads", &[4, 8, 16, 32])?, list("num_groups", &[4, 8, 16, 32])?);
        let (size, stride) = (list("patch_size", &[7, 3, 3, 3])?, list("patch_stride", &[4, 2, 2, 2])?);
        let padding = list("patch_padding", &[3, 1, 1, 1])?;
        let first: Vec<bool> = vision.or("patch_prenorm", vec![false, true, true, true])?;
        let ratio: f64 = vision.or("mlp_ratio", 4.0)?;
        let mut stages = Vec::with_capacity(d.len());
        for (i, &d) in d.iter().enumerate() {
            let at = |list: &[usize]| list.get(i).copied().filter(|&value| value <= 1 << 16);
            let parts =
                (at(&depths), at(&heads), at(&groups), at(&size), at(&stride), at(&padding), first.get(i));
            let (
                Some(depth),
                Some(heads),
                Some(groups),
                Some(size),
                Some(stride),
                Some(padding),
                Some(&norm_first),
            ) = parts
            else {
                return Err(
                    vision.bad("embed_dim", format!("expected {} entries in each list of stages", i + 1))
                );
            };
            let whole = |parts: usize| parts > 0 && d > 0 && d.is_multiple_of(parts);
            if !whole(heads)
                || !whole(groups)
                || size == 0
                || stride == 0
                || padding >= size
                || ratio.is_nan()
                || ratio <= 0.0
            {
                let what = format!(
                    "stage {i}: expected features a multiple of heads and groups, and a filter, found {d}, {heads}, {groups}, {size}, {stride} and {padding}"
                );
                return Err(vision.bad("embed_dim", what));
            }
            let filter =
                Filter { size: (size as u32, size as u32), stride: stride as u32, padding: padding as u32 };
            stages.push(DavitStage {
                d,
                mlp: (d as f64 * ratio) as usize,
                depth,
                heads,
                groups,
                filter,
                norm_first,
            });
        }
        if stages.is_empty() {
            return Err(vision.bad("embed_dim", "expected at least one stage, found none"));
        }
        Ok(Self {
            stages,
            window: vision.size("window_size", 12)?,
            act: activation(vision, "activation_function", "gelu")?,
            qkv_bias: vision.or("qkv_bias", true)?,
            names: DavitNames::default(),
        })
    }

    /// Features of a patch of the last stage.
    #[must_use]
    pub fn d(&self) -> usize {
        self.stages.last().map_or(0, |stage| stage.d)
    }

    /// Rows and columns of patches of the last stage.
    #[must_use]
    pub fn grid(&self, pixels: (usize, usize)) -> (usize, usize) {
        self.stages.iter().fold(pixels, |grid, stage| stage.filter.places(grid))
    }
}

/// Attention or its like, with a convolution before and an MLP after it.
struct Part {
    path: String,
    conv1: DepthConv,
    norm1: Norm,
    qkv: Linear,
    out: Linear,
    conv2: DepthConv,
    norm2: Norm,
    mlp: [Linear; 2],
}

impl Part {
    fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        plan: &DavitPlan,
        stage: &DavitStage,
        name: &str,
    ) -> Result<Self> {
        let (d, attn, mlp) = (stage.d, scope.at(name), scope.at("ffn"));
        let (norms, attn, mlp, conv) = match plan.names {
            DavitNames::Beside => ([scope.at("norm1"), scope.at("norm2")], attn, mlp, ""),
            DavitNames::Within => {
                ([attn.at("norm"), mlp.at("norm")], attn.at("fn"), mlp.at("fn.net"), "fn.dw")
            }
        };
        let filter = Filter { size: (3, 3), stride: 1, padding: 1 };
        Ok(Self {
            path: attn.prefix().to_owned(),
            conv1: DepthConv::load(cx, &scope.at("conv1").at(conv), d, filter, 1.0)?,
            norm1: Norm::layer(cx, &norms[0], d, EPS)?,
            qkv: Linear::load(cx, &attn.at("qkv"), 3 * d, d, plan.qkv_bias)?,
            out: Linear::load(cx, &attn.at("proj"), d, d, true)?,
            conv2: DepthConv::load(cx, &scope.at("conv2").at(conv), d, filter, 1.0)?,
            norm2: Norm::layer(cx, &norms[1], d, EPS)?,
            mlp: [
                Linear::load(cx, &mlp.at("fc1"), stage.mlp, d, true)?,
                Linear::load(cx, &mlp.at("fc2"), d, stage.mlp, true)?,
            ],
        })
    }
}

struct Blocks {
    plan: DavitStage,
    conv: Conv,
    norm: Norm,
    /// Windows, then channels.
    blocks: Vec<[Part; 2]>,
    /// The identity of the channels of a group, and the same once for each group.
    identity: Tensor,
    identities: Tensor,
}

/// The tower.
pub struct Davit {
    plan: DavitPlan,
    pixels: RawPixels,
    stages: Vec<Blocks>,
}

impl Davit {
    /// Loads the tower below `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: DavitPlan) -> Result<Self> {
        let scope = scope.role(Role::Tower);
        let mut stages = Vec::with_capacity(plan.stages.len());
        let mut before = 3;
        for (i, stage) in plan.stages.iter().enumerate() {
            let at = scope.at("convs").at(i);
            let name = match plan.names {
                DavitNames::Beside => "conv",
                DavitNames::Within => "proj",
            };
            let conv = Conv::load(cx, &at.at(name), (stage.d, before), stage.filter, true)?;
            let norm = Norm::layer(cx, &at.at("norm"), if stage.norm_first { before } else { stage.d }, EPS)?;
            let mut blocks = Vec::with_capacity(stage.depth);
            for block in 0..stage.depth {
                let at = scope.at("blocks").at(i).at(block);
                blocks.push([
                    Part::load(cx, &at.at("spatial_block"), &plan, stage, "window_attn")?,
                    Part::load(cx, &at.at("channel_block"), &plan, stage, "channel_attn")?,
                ]);
            }
            let each = stage.d / stage.groups;
            let (identity, identities) = (ones(cx, each, 1)?, ones(cx, each, stage.groups)?);
            stages.push(Blocks { plan: *stage, conv, norm, blocks, identity, identities });
            before = stage.d;
        }
        let pixels = RawPixels::new(cx, scope.prefix())?;
        Ok(Self { pixels, stages, plan })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &DavitPlan {
        &self.plan
    }

    /// `pixels: [1, ...]` of `size` rows and columns  ->  `out: [rows * columns, d]` of the last stage.
    pub fn write_to(&self, cx: &mut Ctx, pixels: &Pixels, size: (usize, usize), out: &Tensor) -> Result<()> {
        cx.scope(|cx| {
            let mut h = self.pixels.rows(cx, pixels, size)?;
            let mut grid = size;
            for (i, stage) in self.stages.iter().enumerate() {
                let places = stage.conv.places(grid);
                let last = i + 1 == self.stages.len();
                let next = if last {
                    out.clone()
                } else {
                    cx.alloc(&[places.0 * places.1, stage.plan.d], cx.dtype())?
                };
                if stage.plan.norm_first {
                    stage.norm.write_to(cx, &h, &h)?;
                }
                stage.conv.write_to(cx, &h, grid, &next)?;
                if !stage.plan.norm_first {
                    stage.norm.write_to(cx, &next, &next)?;
                }
                for [windows, channels] in &stage.blocks {
                    cx.scope(|cx| {
                        self.part(cx, windows, &next, places, |cx, x, h| {
                            self.windows(cx, stage, windows, x, places, h)
                        })
                    })?;
                    cx.scope(|cx| {
                        self.part(cx, channels, &next, places, |cx, x, h| {
                            self.channels(cx, stage, channels, x, h)
                        })
                    })?;
                }
                (h, grid) = (next, places);
            }
            cx.stage(Stage::TOWER, out)
        })
    }

    /// `h = conv(h)`, `h += mix(norm(h))`, `h = conv(h)`, `h += mlp(norm(h))`; convolutions add to their input.
    fn part(
        &self,
        cx: &mut Ctx,
        part: &Part,
        h: &Tensor,
        grid: (usize, usize),
        mix: impl FnOnce(&mut Ctx, &Tensor, &Tensor) -> Result<()>,
    ) -> Result<()> {
        let middle = cx.alloc(h.shape(), cx.dtype())?;
        part.conv1.write_to(cx, h, grid, &middle)?;
        let x = part.norm1.forward(cx, &middle)?;
        cx.scope(|cx| mix(cx, &x, &middle))?;
        part.conv2.write_to(cx, &middle, grid, h)?;
        part.norm2.write_to(cx, h, &x)?;
        let up = part.mlp[0].forward_act(cx, &x, self.plan.act)?;
        part.mlp[1].add_to(cx, &up, h)
    }

    /// `h += out(attention(x))` within windows; those at the edges are filled up with zeros, which take part.
    fn windows(
        &self,
        cx: &mut Ctx,
        stage: &Blocks,
        part: &Part,
        x: &Tensor,
        grid: (usize, usize),
        h: &Tensor,
    ) -> Result<()> {
        let (d, heads, window) = (stage.plan.d, stage.plan.heads, self.plan.window);
        let (ids, back) = window_ids(grid, window);
        let (rows, each) = (ids.len(), window * window);
        let x = rows_or_zeros(cx, &part.path, x, &ids)?;
        let qkv = part.qkv.forward(cx, &x)?;
        let head = |i: usize| qkv.narrow(1, i * d, d)?.reshape(&[rows, heads, d / heads]);
        let starts: Vec<usize> = (0..=rows / each).map(|window| window * each).collect();
        let segments = Segments::of(cx, &starts)?;
        let out = cx.alloc(&[rows, heads, d / heads], cx.dtype())?;
        let bounds = cx.view(&segments.starts)?;
        let op = Attention {
            q: cx.view(&head(0)?)?,
            kv: AttentionKv::Packed {
                k: cx.view(&head(1)?)?,
                v: cx.view(&head(2)?)?,
                kv_starts: bounds.clone(),
            },
            q_starts: bounds,
            seen: Seen::All,
            scale: 1.0 / ((d / heads) as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&out)?,
            max_q: segments.max,
            max_kv: segments.max,
            pairs: segments.pairs,
        };
        cx.exec(&part.path, &op)?;
        let mixed = rows_or_zeros(cx, &part.path, &out.reshape(&[rows, d])?, &back)?;
        part.out.add_to(cx, &mixed, h)
    }

    /// `h += out(p v)`, where `p = softmax(q^T k / sqrt(rows))` says how much of each channel of its group a channel is made of.
    fn channels(&self, cx: &mut Ctx, stage: &Blocks, part: &Part, x: &Tensor, h: &Tensor) -> Result<()> {
        let (rows, d, groups) = (x.size(0), stage.plan.d, stage.plan.groups);
        let each = d / groups;
        let qkv = part.qkv.forward(cx, x)?;
        // What products take for weights lies in memory of its own: devices bind that for reading alone.
        let own = |cx: &mut Ctx, shape: &[usize]| cx.alloc_owned(shape, cx.dtype());
        let (rows_of, columns) = (own(cx, &[rows, 2 * d])?, own(cx, &[d, rows])?);
        copy_rows(cx, &part.path, &qkv.narrow(1, 0, 2 * d)?, &rows_of)?;
        let scores = cx.alloc(&[d, each], cx.dtype())?;
        for number in 0..groups {
            cx.scope(|cx| {
                // Products with the identity turn rows into columns.
                let q = cx.alloc(&[each, rows], cx.dtype())?;
                let k = columns.narrow(0, number * each, each)?;
                let of = |i: usize| rows_of.narrow(1, i * d + number * each, each);
                product(cx, &part.path, &stage.identity, &of(0)?, &q)?;
                product(cx, &part.path, &stage.identity, &of(1)?, &k)?;
                product(cx, &part.path, &q, &k, &scores.narrow(0, number * each, each)?)
            })?;
        }
        // Attention to the identity, with the scores for queries, is their softmax.
        let shares = own(cx, &[d, 1, each])?;
        let starts: Vec<usize> = (0..=groups).map(|group| group * each).collect();
        let segments = Segments::of(cx, &starts)?;
        let bounds = cx.view(&segments.starts)?;
        let identities = cx.view(&stage.identities.reshape(&[d, 1, each])?)?;
        let op = Attention {
            q: cx.view(&scores.reshape(&[d, 1, each])?)?,
            kv: AttentionKv::Packed { k: identities.clone(), v: identities, kv_starts: bounds.clone() },
            q_starts: bounds,
            seen: Seen::All,
            scale: 1.0 / (rows as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&shares)?,
            max_q: segments.max,
            max_kv: segments.max,
            pairs: segments.pairs,
        };
        cx.exec(&part.path, &op)?;
        let shares = shares.reshape(&[d, each])?;
        let mixed = cx.alloc(&[rows, d], cx.dtype())?;
        for number in 0..groups {
            let (shares, to) =
                (shares.narrow(0, number * each, each)?, mixed.narrow(1, number * each, each)?);
            product(cx, &part.path, &qkv.narrow(1, 2 * d + number * each, each)?, &shares, &to)?;
        }
        part.out.add_to(cx, &mixed, h)
    }
}

/// `out = x w^T` of activations.
fn product(cx: &mut Ctx, path: &str, x: &Tensor, w: &Tensor, out: &Tensor) -> Result<()> {
    let w = Weights::dense(cx.view(w)?, None)?;
    let op = Matmul { math: Math::Exact, ..Matmul::new(cx.view(x)?, w, cx.view(out)?) };
    cx.exec(path, &op)
}

/// The identity of `n` numbers, so many times one below the other.
fn ones(cx: &mut Ctx, n: usize, times: usize) -> Result<Tensor> {
    let values: Vec<f32> = (0..times * n * n).map(|i| f32::from(u8::from(i / n % n == i % n))).collect();
    let from = table(cx, &[times * n, n], &values)?;
    let to = cx.alloc_owned(&[times * n, n], cx.dtype())?;
    copy_rows(cx, "identity", &from, &to)?;
    Ok(to)
}

/// Patches of a grid in the order of windows, -1 where a window goes beyond it; and the place of each patch in that order.
fn window_ids(grid: (usize, usize), window: usize) -> (Vec<i32>, Vec<i32>) {
    let (down, across) = (grid.0.div_ceil(window), grid.1.div_ceil(window));
    let mut back = vec![0; grid.0 * grid.1];
    let ids = (0..down * across * window * window)
        .map(|place| {
            let (number, inner) = (place / (window * window), place % (window * window));
            let row = number / across * window + inner / window;
            let col = number % across * window + inner % window;
            if row >= grid.0 || col >= grid.1 {
                return -1;
            }
            back[row * grid.1 + col] = place as i32;
            (row * grid.1 + col) as i32
        })
        .collect();
    (ids, back)
}

#[cfg(test)]
mod tests {
    use super::window_ids;

    #[test]
    fn windows_and_back() {
        let (ids, back) = window_ids((3, 2), 2);
        assert_eq!(ids, [0, 1, 2, 3, 4, 5, -1, -1]);
        assert_eq!(back, [0, 1, 2, 3, 4, 5]);
        let (ids, back) = window_ids((2, 3), 2);
        assert_eq!(ids, [0, 1, 3, 4, 2, -1, 5, -1]);
        assert_eq!(back, [0, 1, 4, 2, 3, 6]);
    }
}
