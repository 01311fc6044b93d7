//! The SigLIP vision tower as Idefics3 and SmolVLM use it: `Idefics3VisionTransformer` of transformers.

use ocelli_engine::weights::Scope;
use ocelli_engine::{Ctx, Error, Result, Tensor};
use ocelli_kernels::ops::{Activation, Attention, AttentionKv, Mask, PatchEmbed};
use ocelli_kernels::{View, Weights};
use serde::Deserialize;

use crate::layers::{Linear, Norm, Stacked};

/// `vision_config`.
#[derive(Clone, Debug, Deserialize)]
#[serde(default)]
pub struct SiglipConfig {
    /// Features of a patch.
    pub hidden_size: usize,
    /// Features between the layers of an MLP.
    pub intermediate_size: usize,
    /// Layers.
    pub num_hidden_layers: usize,
    /// Heads.
    pub num_attention_heads: usize,
    /// Side of the square pictures that the position embeddings are for, in pixels.
    pub image_size: usize,
    /// Side of a patch, in pixels.
    pub patch_size: usize,
    /// Colour channels.
    pub num_channels: usize,
    /// Added to variances.
    pub layer_norm_eps: f32,
    /// Activation of the MLP.
    pub hidden_act: String,
}

impl Default for SiglipConfig {
    /// The defaults of `Idefics3VisionConfig`.
    fn default() -> Self {
        Self {
            hidden_size: 1152,
            intermediate_size: 3072,
            num_hidden_layers: 12,
            num_attention_heads: 16,
            image_size: 224,
            patch_size: 32,
            num_channels: 3,
            layer_norm_eps: 1e-6,
            hidden_act: "gelu_pytorch_tanh".into(),
        }
    }
}

impl SiglipConfig {
    /// Patches along a side of a picture of `image_size`.
    #[must_use]
    pub fn side(&self) -> usize {
        self.image_size.checked_div(self.patch_size).unwrap_or(0)
    }
}

struct Layer {
    norm1: Norm,
    qkv: Stacked,
    out: Linear,
    norm2: Norm,
    fc1: Linear,
    fc2: Linear,
}

/// The tower.
pub struct Siglip {
    config: SiglipConfig,
    path: String,
    patch: Weights,
    positions: View,
    layers: Vec<Layer>,
    post_norm: Norm,
}

/// The pixels of some tiles of one size.
pub struct Pixels {
    /// u8 `[tiles, height, width, 3]` or f32 `[tiles, 3, height, width]`.
    pub values: Tensor,
    /// Mean of each channel in grey levels, for bytes.
    pub mean: [f32; 3],
    /// Standard deviation of each channel in grey levels, for bytes.
    pub std: [f32; 3],
}

impl Siglip {
    /// Loads the tower below `scope`. Errors name the field of the configuration that cannot be run.
    pub fn load(cx: &mut Ctx, scope: &Scope<'_>, config: &SiglipConfig, config_path: &str) -> Result<Self> {
        let bad = |reason: String| Error::Config { path: config_path.to_owned(), reason };
        let (d, mlp) = (config.hidden_size, config.intermediate_size);
        if config.num_channels != 3 {
            return Err(bad(format!(
                "vision_config.num_channels: expected 3, found {}",
                config.num_channels
            )));
        }
        if config.hidden_act != "gelu_pytorch_tanh" {
            let found = &config.hidden_act;
            return Err(bad(format!("vision_config.hidden_act: expected gelu_pytorch_tanh, found {found}")));
        }
        if config.side() == 0
            || config.num_attention_heads == 0
            || !d.is_multiple_of(config.num_attention_heads)
        {
            return Err(bad(format!(
                "vision_config: expected image_size >= patch_size > 0 and hidden_size a multiple of num_attention_heads, \
                 found {}, {}, {d} and {}",
                config.image_size, config.patch_size, config.num_attention_heads
            )));
        }
        let k = 3 * config.patch_size * config.patch_size;
        let embeddings = scope.at("embeddings");
        let patch = embeddings.at("patch_embedding").patch_embed(d, k)?;
        let patch = cx.stream().place(&patch)?;
        let positions =
            embeddings.at("position_embedding").tensor("weight", &[config.side() * config.side(), d])?;
        let positions = cx.stream().place_view(&positions)?;
        let mut layers = Vec::with_capacity(config.num_hidden_layers);
        for i in 0..config.num_hidden_layers {
            let layer = scope.at(format_args!("encoder.layers.{i}"));
            let attn = layer.at("self_attn");
            let qkv = ["q_proj", "k_proj", "v_proj"].map(|name| (attn.at(name), d));
            layers.push(Layer {
                norm1: Norm::layer(cx, &layer.at("layer_norm1"), d, config.layer_norm_eps)?,
                qkv: Stacked::load(cx, attn.prefix(), &qkv, d)?,
                out: Linear::load(cx, &attn.at("out_proj"), d, d)?,
                norm2: Norm::layer(cx, &layer.at("layer_norm2"), d, config.layer_norm_eps)?,
                fc1: Linear::load(cx, &layer.at("mlp.fc1"), mlp, d)?,
                fc2: Linear::load(cx, &layer.at("mlp.fc2"), d, mlp)?,
            });
        }
        let post_norm = Norm::layer(cx, &scope.at("post_layernorm"), d, config.layer_norm_eps)?;
        Ok(Self {
            config: config.clone(),
            path: scope.prefix().to_owned(),
            patch,
            positions,
            layers,
            post_norm,
        })
    }

    /// Matrices of the tower.
    pub fn weights(&self) -> impl Iterator<Item = &Weights> {
        let layers = self.layers.iter().flat_map(|layer| {
            layer.qkv.weights().chain([layer.out.weights(), layer.fc1.weights(), layer.fc2.weights()])
        });
        std::iter::once(&self.patch).chain(layers)
    }

    /// Vectors and tables of the tower.
    pub fn views(&self) -> impl Iterator<Item = &View> {
        let layers = self.layers.iter().flat_map(|layer| layer.norm1.views().chain(layer.norm2.views()));
        std::iter::once(&self.positions).chain(layers).chain(self.post_norm.views())
    }

    /// Rows and columns of patches in a tile. Errors if the position embeddings do not reach.
    pub fn grid(&self, height: usize, width: usize) -> Result<(usize, usize)> {
        let (rows, cols, side) =
            (height / self.config.patch_size, width / self.config.patch_size, self.config.side());
        if rows == 0 || cols == 0 || rows > side || cols > side {
            return Err(Error::Request(format!(
                "tile: expected {0} to {1} pixels a side, found {width} x {height}",
                self.config.patch_size, self.config.image_size
            )));
        }
        Ok((rows, cols))
    }

    /// Row of the position table for each patch of a tile: the bucket that its fraction of the side falls into, in f32.
    fn position_ids(&self, rows: usize, cols: usize) -> Vec<i32> {
        let side = self.config.side();
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

    /// `pixels: [tiles, ...]  ->  [tiles * rows * cols, d]`, after the last norm. Each tile attends to itself.
    pub fn forward(
        &self,
        cx: &mut Ctx,
        pixels: &Pixels,
        tiles: usize,
        grid: (usize, usize),
    ) -> Result<Tensor> {
        let (d, heads) = (self.config.hidden_size, self.config.num_attention_heads);
        let head_dim = d / heads;
        let per_tile = grid.0 * grid.1;
        let patches = tiles * per_tile;
        let h = cx.alloc(&[patches, d], cx.dtype())?;
        let ids = self.position_ids(grid.0, grid.1).repeat(tiles);
        let ids = cx.upload(&[patches], &ids)?;
        let embed = PatchEmbed {
            pixels: cx.view(&pixels.values)?,
            w: self.patch.clone(),
            pos: Some(self.positions.clone()),
            pos_ids: Some(cx.view(&ids)?),
            mean: pixels.mean,
            std: pixels.std,
            patch: self.config.patch_size,
            out: cx.view(&h)?,
        };
        cx.exec(&self.path, &embed)?;
        let starts: Vec<i32> = (0..=tiles).map(|tile| (tile * per_tile) as i32).collect();
        let starts = cx.upload(&[tiles + 1], &starts)?;

        for layer in &self.layers {
            cx.scope(|cx| {
                let qkv = layer.qkv.forward(cx, &layer.norm1, &h)?;
                let part = |i: usize| qkv.narrow(1, i * d, d)?.reshape(&[patches, heads, head_dim]);
                let (q, k, v) = (part(0)?, part(1)?, part(2)?);
                let out = cx.alloc(&[patches, heads, head_dim], cx.dtype())?;
                let op = Attention {
                    q: cx.view(&q)?,
                    kv: AttentionKv::Packed {
                        k: cx.view(&k)?,
                        v: cx.view(&v)?,
                        kv_starts: cx.view(&starts)?,
                    },
                    q_starts: cx.view(&starts)?,
                    mask: Mask::default(),
                    scale: 1.0 / (head_dim as f32).sqrt(),
                    softcap: 0.0,
                    out: cx.view(&out)?,
                    max_q: per_tile,
                    max_kv: per_tile,
                    pairs: (tiles * per_tile * per_tile) as u64,
                };
                cx.exec(&self.path, &op)?;
                layer.out.add_to(cx, &out.reshape(&[patches, d])?, &h)?;
                let x = layer.norm2.forward(cx, &h)?;
                let up = layer.fc1.forward_act(cx, &x, Activation::GeluTanh)?;
                layer.fc2.add_to(cx, &up, &h)
            })?;
        }
        self.post_norm.forward(cx, &h)
    }
}
