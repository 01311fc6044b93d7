//! FastViT: stages of convolutions by channel with MLPs, the last of which attend instead.
//!
//! After `FastVit` of timm in its merged form (`inference_mode`), as `TimmWrapperModel` of transformers has it: `fastvit_mci3`.

use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Result, Stage, Tensor};
use ocelli_kernels::ops::{
    self, Activation, Attention, AttentionKv, Filter, Pointwise, Pool, PoolKind, PoolOver, Seen,
};

use super::raw::RawPixels;
use super::vit::{Pixels, Segments};
use crate::fields::Fields;
use crate::layers::{Conv, DepthConv, LayerScale, Linear, Norm, gather_rows};

/// Added to variances.
const EPS: f32 = 1e-5;
/// Features of a head.
const HEAD: usize = 32;
/// Stages whose blocks attend: from this one on.
const ATTENDS: usize = 3;
/// What all activations are.
const ACT: Activation = Activation::GeluErf;

const ONE: Filter = Filter { size: (1, 1), stride: 1, padding: 0 };

/// A square filter that keeps the middle where it is.
const fn square(size: u32, stride: u32) -> Filter {
    Filter { size: (size, size), stride, padding: size / 2 }
}

/// One stage.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FastVitStage {
    /// Channels.
    d: usize,
    /// Channels between the layers of an MLP.
    mlp: usize,
    /// Blocks.
    depth: usize,
    /// Whether they attend.
    attends: bool,
}

/// A tower.
#[derive(Clone, Debug, PartialEq)]
pub struct FastVitPlan {
    stages: Vec<FastVitStage>,
    /// Channels of the result.
    d: usize,
}

impl FastVitPlan {
    /// Reads a `vision_config` of `timm_wrapper`.
    pub fn read(vision: &Fields<'_>) -> Result<Self> {
        vision.model_type(&["timm_wrapper"])?;
        vision.only("architecture", "fastvit_mci3")?;
        // Of the classifier, which is not there.
        vision.inert(&["do_pooling", "global_pool", "num_classes", "label_names", "pretrained_cfg"]);
        let args = vision.part("model_args")?;
        if !args.or("inference_mode", false)? {
            return Err(
                args.bad("inference_mode", "expected true: convolutions that are merged, found false")
            );
        }
        let layers: Vec<usize> = args.or("layers", vec![2, 12, 24, 4, 2])?;
        let dims: Vec<usize> = args.or("embed_dims", vec![96, 192, 384, 768, 1536])?;
        let ratios: Vec<f64> = args.or("mlp_ratios", vec![4.0; 5])?;
        let ratio: f64 = args.or("cls_ratio", 2.0)?;
        if layers.len() != 5 || dims.len() != 5 || ratios.len() != 5 {
            return Err(args.bad("layers", "expected five stages, as in embed_dims and mlp_ratios"));
        }
        let mut stages: Vec<FastVitStage> = Vec::with_capacity(5);
        for (i, ((&depth, &d), &ratio)) in layers.iter().zip(&dims).zip(&ratios).enumerate() {
            let before = stages.last().map_or(d, |stage| stage.d);
            let fits = d > 0 && d < 1 << 20 && before > 0 && d.is_multiple_of(before);
            let (attends, wide) = (i >= ATTENDS, ratio.is_finite() && ratio > 0.0 && ratio < 64.0);
            if !fits || !wide || depth > 1 << 10 || (attends && !d.is_multiple_of(HEAD)) {
                let what = format!(
                    "stage {i}: expected channels in multiples of the stage before, and of {HEAD} to attend, found {d}"
                );
                return Err(args.bad("embed_dims", what));
            }
            stages.push(FastVitStage { d, mlp: (d as f64 * ratio) as usize, depth, attends });
        }
        let last = dims.last().copied().unwrap_or(0);
        let d = (last as f64 * ratio) as usize;
        if d == 0 || !d.is_multiple_of(last) || d > 1 << 24 {
            return Err(args.bad("cls_ratio", format!("expected a multiple of {last} channels, found {d}")));
        }
        vision.only("hidden_size", d)?;
        Ok(Self { stages, d })
    }

    /// Channels of the result.
    #[must_use]
    pub fn d(&self) -> usize {
        self.d
    }

    /// Pixels along each side that become one place of the result.
    #[must_use]
    pub fn stride(&self) -> usize {
        2 << self.stages.len()
    }

    /// Rows and columns of places of the result.
    #[must_use]
    pub fn grid(&self, pixels: (usize, usize)) -> (usize, usize) {
        let half = |(rows, cols): (usize, usize)| (rows.div_ceil(2), cols.div_ceil(2));
        (0..=self.stages.len()).fold(pixels, |grid, _| half(grid))
    }
}

/// A convolution by channel, a norm that it has taken in, and two layers.
struct Mlp {
    conv: DepthConv,
    up: Conv,
    down: Conv,
    scale: LayerScale,
}

impl Mlp {
    fn load(cx: &mut Ctx, block: &Scope<'_>, scale: &str, plan: FastVitStage) -> Result<Self> {
        let scope = block.at("mlp");
        Ok(Self {
            conv: DepthConv::normed(
                cx,
                &scope.at("conv.conv"),
                &scope.at("conv.bn"),
                plan.d,
                square(7, 1),
                EPS,
            )?,
            up: Conv::load(cx, &scope.at("fc1"), (plan.mlp, plan.d), ONE, true)?.then(ACT),
            down: Conv::load(cx, &scope.at("fc2"), (plan.d, plan.mlp), ONE, true)?,
            scale: LayerScale::of_channels(cx, &block.at(scale), "gamma", plan.d)?,
        })
    }

    /// `h += scale * down(act(up(conv(h))))`: `h: [rows * columns, d]`.
    fn add_to(&self, cx: &mut Ctx, h: &Tensor, grid: (usize, usize)) -> Result<()> {
        let x = cx.alloc(h.shape(), cx.dtype())?;
        self.conv.write_to(cx, h, grid, &x)?;
        let up = self.up.forward(cx, &x, grid)?;
        self.down.write_to(cx, &up, grid, &x)?;
        self.scale.add_to(cx, &x, h)
    }
}

/// Attention between all places.
struct Mix {
    path: String,
    norm: Norm,
    qkv: Linear,
    out: Linear,
    scale: LayerScale,
}

impl Mix {
    fn load(cx: &mut Ctx, block: &Scope<'_>, d: usize) -> Result<Self> {
        let scope = block.at("token_mixer");
        Ok(Self {
            path: scope.prefix().to_owned(),
            norm: Norm::layer(cx, &block.at("norm"), d, EPS)?,
            qkv: Linear::load(cx, &scope.at("qkv"), 3 * d, d, false)?,
            out: Linear::load(cx, &scope.at("proj"), d, d, true)?,
            scale: LayerScale::of_channels(cx, &block.at("layer_scale_1"), "gamma", d)?,
        })
    }

    /// `h += scale * out(attention(norm(h)))`: `h: [rows * columns, d]`.
    fn add_to(&self, cx: &mut Ctx, h: &Tensor) -> Result<()> {
        let (rows, d) = (h.size(0), h.size(1));
        let x = self.norm.forward(cx, h)?;
        let qkv = self.qkv.forward(cx, &x)?;
        let head = |i: usize| qkv.narrow(1, i * d, d)?.reshape(&[rows, d / HEAD, HEAD]);
        let segments = Segments::of(cx, &[0, rows])?;
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
            scale: 1.0 / (HEAD as f32).sqrt(),
            softcap: 0.0,
            out: cx.view(&x.reshape(&[rows, d / HEAD, HEAD])?)?,
            max_q: segments.max,
            max_kv: segments.max,
            pairs: segments.pairs,
        };
        cx.exec(&self.path, &op)?;
        let out = self.out.forward(cx, &x)?;
        self.scale.add_to(cx, &out, h)
    }
}

/// What is before the MLP of a block.
enum Mixer {
    Conv(Box<DepthConv>),
    Attention(Box<Mix>),
}

/// A convolution by channel with twice the stride, and a layer.
struct Down {
    conv: DepthConv,
    layer: Conv,
}

struct Stages {
    plan: FastVitStage,
    down: Option<Down>,
    places: Option<DepthConv>,
    blocks: Vec<(Mixer, Mlp)>,
}

impl Stages {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: FastVitStage, before: Option<usize>) -> Result<Self> {
        let down = match before {
            None => None,
            Some(_) => {
                let proj = scope.at("downsample.proj");
                Some(Down {
                    conv: DepthConv::load(cx, &proj.at("0.reparam_conv"), plan.d, square(7, 2), 0.0)?,
                    layer: Conv::load(cx, &proj.at("1.reparam_conv"), (plan.d, plan.d), ONE, true)?.then(ACT),
                })
            }
        };
        let places = match plan.attends {
            true => Some(DepthConv::load(cx, &scope.at("pos_emb.reparam_conv"), plan.d, square(7, 1), 0.0)?),
            false => None,
        };
        let mut blocks = Vec::with_capacity(plan.depth);
        for i in 0..plan.depth {
            let block = scope.at("blocks").at(i);
            let (mixer, scale) = match plan.attends {
                true => (Mixer::Attention(Box::new(Mix::load(cx, &block, plan.d)?)), "layer_scale_2"),
                false => {
                    let at = block.at("token_mixer.reparam_conv");
                    (
                        Mixer::Conv(Box::new(DepthConv::load(cx, &at, plan.d, square(3, 1), 0.0)?)),
                        "layer_scale",
                    )
                }
            };
            blocks.push((mixer, Mlp::load(cx, &block, scale, plan)?));
        }
        Ok(Self { plan, down, places, blocks })
    }
}

/// What the last convolution gives, times a factor of each channel that a mean over all places says.
struct Last {
    path: String,
    conv: DepthConv,
    squeeze: Conv,
    excite: Conv,
}

impl Last {
    fn load(cx: &mut Ctx, scope: &Scope<'_>, d: usize) -> Result<Self> {
        let few = ((d as f64 / 16.0 + 0.5) as usize).max(1);
        Ok(Self {
            path: scope.prefix().to_owned(),
            conv: DepthConv::load(cx, &scope.at("reparam_conv"), d, square(3, 1), 0.0)?,
            squeeze: Conv::load(cx, &scope.at("se.fc1"), (few, d), ONE, true)?.then(Activation::Relu),
            excite: Conv::load(cx, &scope.at("se.fc2"), (d, few), ONE, true)?,
        })
    }

    /// `h: [rows * columns, before]  ->  out: [rows * columns, d]`.
    fn write_to(&self, cx: &mut Ctx, h: &Tensor, grid: (usize, usize), out: &Tensor) -> Result<()> {
        let (rows, d) = (out.size(0), out.size(1));
        self.conv.write_to(cx, h, grid, out)?;
        let mean = cx.alloc(&[1, d], cx.dtype())?;
        let all = cx.upload(&[2], &[0, rows as i32])?;
        let op = Pool {
            x: cx.view(out)?,
            over: PoolOver::Segments(cx.view(&all)?),
            kind: PoolKind::Mean,
            out: cx.view(&mean)?,
        };
        cx.exec(&self.path, &op)?;
        let few = self.squeeze.forward(cx, &mean, (1, 1))?;
        let gate = self.excite.forward(cx, &few, (1, 1))?;
        let gate = gather_rows(cx, &self.path, &gate, &vec![0; rows])?.reshape(&[rows, 1, d])?;
        let x = cx.view(&out.reshape(&[rows, 1, d])?)?;
        cx.exec(&self.path, &ops::Gate { x: x.clone(), gate: cx.view(&gate)?, out: x })?;
        activate(cx, &self.path, out)
    }
}

/// `h = act(h)`.
fn activate(cx: &mut Ctx, path: &str, h: &Tensor) -> Result<()> {
    let view = cx.view(h)?;
    cx.exec(path, &Pointwise { act: ACT, ..Pointwise::new(view.clone(), view) })
}

/// The tower.
pub struct FastVit {
    plan: FastVitPlan,
    path: String,
    pixels: RawPixels,
    stem: (Conv, DepthConv, Conv),
    stages: Vec<Stages>,
    last: Last,
}

impl FastVit {
    /// Loads the tower below `scope`.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, plan: FastVitPlan) -> Result<Self> {
        let scope = scope.role(Role::Tower);
        let first = plan.stages.first().map_or(0, |stage| stage.d);
        let stem = |i: usize| scope.at("stem").at(i).at("reparam_conv");
        let stem = (
            Conv::load(cx, &stem(0), (first, 3), square(3, 2), true)?.then(ACT),
            DepthConv::load(cx, &stem(1), first, square(3, 2), 0.0)?,
            Conv::load(cx, &stem(2), (first, first), ONE, true)?.then(ACT),
        );
        let mut stages = Vec::with_capacity(plan.stages.len());
        let mut before = None;
        for (i, &stage) in plan.stages.iter().enumerate() {
            stages.push(Stages::load(cx, &scope.at("stages").at(i), stage, before)?);
            before = Some(stage.d);
        }
        Ok(Self {
            path: scope.prefix().to_owned(),
            pixels: RawPixels::new(cx, scope.prefix())?,
            stem,
            stages,
            last: Last::load(cx, &scope.at("final_conv"), plan.d)?,
            plan,
        })
    }

    /// The plan.
    #[must_use]
    pub fn plan(&self) -> &FastVitPlan {
        &self.plan
    }

    /// `pixels: [1, ...]` of `size` rows and columns  ->  `out: [rows * columns, d]`.
    pub fn write_to(&self, cx: &mut Ctx, pixels: &Pixels, size: (usize, usize), out: &Tensor) -> Result<()> {
        cx.scope(|cx| {
            let x = self.pixels.rows(cx, pixels, size)?;
            let (first, middle, last) = &self.stem;
            let x = first.forward(cx, &x, size)?;
            let (x, mut grid) = self.halved(cx, middle, &x, first.places(size))?;
            let mut h = last.forward(cx, &x, grid)?;
            for stage in &self.stages {
                if let Some(down) = &stage.down {
                    let (x, places) = self.halved(cx, &down.conv, &h, grid)?;
                    (h, grid) = (down.layer.forward(cx, &x, places)?, places);
                }
                // Two buffers take turns.
                let mut spare = cx.alloc(&[grid.0 * grid.1, stage.plan.d], cx.dtype())?;
                let mut turned = |cx: &mut Ctx, conv: &DepthConv, h: &mut Tensor| {
                    conv.write_to(cx, h, grid, &spare)?;
                    std::mem::swap(h, &mut spare);
                    Ok::<_, ocelli_engine::Error>(())
                };
                if let Some(places) = &stage.places {
                    turned(cx, places, &mut h)?;
                }
                for (mixer, mlp) in &stage.blocks {
                    match mixer {
                        Mixer::Conv(conv) => turned(cx, conv, &mut h)?,
                        Mixer::Attention(mix) => cx.scope(|cx| mix.add_to(cx, &h))?,
                    }
                    cx.scope(|cx| mlp.add_to(cx, &h, grid))?;
                }
            }
            self.last.write_to(cx, &h, grid, out)?;
            cx.stage(Stage::TOWER, out)
        })
    }

    /// `act(conv(x))` with the places that it leaves.
    fn halved(
        &self,
        cx: &mut Ctx,
        conv: &DepthConv,
        x: &Tensor,
        grid: (usize, usize),
    ) -> Result<(Tensor, (usize, usize))> {
        let places = conv.places(grid);
        let out = cx.alloc(&[places.0 * places.1, conv.channels()], cx.dtype())?;
        conv.write_to(cx, x, grid, &out)?;
        activate(cx, &self.path, &out)?;
        Ok((out, places))
    }
}
