//! The whole vision tower of SmolVLM-256M on one tile, with random weights.

use std::sync::Arc;

use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, Precision, Result};
use ocelli_kernels::{Backend, Cost, DType, Device, KernelError, ReferenceStream};
use ocelli_models::fields::Config;
use ocelli_models::vision::{Pixels, Vit, VitPlan};
use serde_json::json;

use super::random::{Fill, Tensor, file};
use super::{BenchError, Ready, fields};

/// Largest distance from the reference that a value may have, as for every stage of a model in f32.
const fn tolerance(backend: Backend) -> f32 {
    match backend {
        Backend::Cpu => 2e-4,
        Backend::Wgpu | Backend::Cuda => 1e-3,
    }
}

/// The tower with one tile.
pub struct Tower {
    cx: Ctx,
    model: Vit,
    pixels: Pixels,
    grid: (usize, usize),
    cost: Cost,
}

fn plan(layers: usize) -> Result<VitPlan> {
    let config = json!({
        "hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": layers, "num_attention_heads": 12,
        "image_size": 512, "patch_size": 16,
    });
    VitPlan::idefics(&Config::new("random tower".into(), config).root())
}

impl Tower {
    /// Its name among the ops.
    pub const OP: &str = "tower";
    /// Its spec in the text form.
    pub const SPEC: &str =
        "images=1 height=512 width=512 patch=16 d=768 layers=12 heads=12 mlp=3072 pixels=u8 x=f32 w=bf16";

    /// Makes the tower, and where it is to be `checked` holds one layer of it on a small tile against the f64 reference.
    pub fn new(device: &dyn Device, checked: bool) -> std::result::Result<Tower, BenchError> {
        Self::make(device, checked).map_err(|error| BenchError::Model("tower", error.to_string()))?
    }

    fn make(device: &dyn Device, checked: bool) -> Result<std::result::Result<Tower, BenchError>> {
        let config = plan(12)?;
        let checkpoint = Checkpoint::of_file(TensorFile::in_memory("random tower", weights(&config))?);
        let tolerance = tolerance(device.caps().backend);

        let shallow = plan(1)?;
        let forward = |mut cx: Ctx| -> Result<Vec<f32>> {
            let model = Vit::load(&mut cx, &checkpoint.root(), shallow.clone())?;
            let pixels = tile(&mut cx, 64)?;
            cx.scope(|cx| {
                let out = model.forward(cx, &pixels, 1, (4, 4), None)?;
                cx.download(&out)
            })
        };
        let got = forward(Ctx::new(device, Precision::default())?)?;
        let reference = || forward(Ctx::on(Box::<ReferenceStream>::default(), Precision::default()));
        let want = if checked { reference()? } else { got.clone() };
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap_or(0.0);
        if got.len() != want.len()
            || worst.is_nan()
            || worst > tolerance
            || got.iter().any(|v| !v.is_finite())
        {
            return Ok(Err(BenchError::Wrong {
                what: "tower of one layer".into(),
                detail: format!("expected every value within {tolerance:e}, found one {worst:e} off"),
            }));
        }

        let grid = (config.side(), config.side());
        let (mut dry, log) = Ctx::dry(device.caps().clone(), Precision::default());
        let model = Vit::load(&mut dry, &checkpoint.root(), config.clone())?;
        let pixels = tile(&mut dry, config.image)?;
        dry.scope(|cx| model.forward(cx, &pixels, 1, grid, None).map(|_| ()))?;
        let cost = log.total();

        let mut cx = Ctx::new(device, Precision::default())?;
        let model = Vit::load(&mut cx, &checkpoint.root(), config.clone())?;
        let pixels = tile(&mut cx, config.image)?;
        Ok(Ok(Tower { cx, model, pixels, grid, cost }))
    }

    /// One tile through the tower, to the end.
    pub fn forward(&mut self) -> Result<()> {
        let Tower { cx, model, pixels, grid, .. } = self;
        cx.scope(|cx| model.forward(cx, pixels, 1, *grid, None).map(|_| ()))?;
        Ok(cx.stream().sync()?)
    }

    /// The tower as something to time.
    pub fn ready(mut self) -> Ready {
        Ready {
            variant: "f32".to_owned(),
            picked: true,
            spec: fields(Self::SPEC),
            cost: self.cost,
            sets: 1,
            waits: true,
            run: Box::new(move |_, _| self.forward().map_err(|error| KernelError::Device(error.to_string()))),
        }
    }
}

/// A square tile of smooth and noisy grey levels.
fn tile(cx: &mut Ctx, side: usize) -> Result<Pixels> {
    let level = |i: usize| {
        let (y, x) = (i / 3 / side, i / 3 % side);
        (((x * 5) ^ (y * 3)) as u8).wrapping_add((i * 7919 % 31) as u8)
    };
    let levels: Vec<u8> = (0..side * side * 3).map(level).collect();
    let values = cx.alloc_owned(&[1, side, side, 3], DType::U8)?;
    cx.stream().write(values.view(), &levels)?;
    Ok(Pixels { values, mean: [127.5; 3], std: [127.5; 3] })
}

/// A safetensors file with the tower's tensors in bf16: matrices of deviation 0.02, norms of scale one.
fn weights(config: &VitPlan) -> Arc<[u8]> {
    let (d, mlp, patch) = (config.d, config.mlp, config.patch);
    let mut tensors: Vec<(String, Vec<usize>)> = vec![
        ("embeddings.patch_embedding.weight".into(), vec![d, 3, patch, patch]),
        ("embeddings.patch_embedding.bias".into(), vec![d]),
        ("embeddings.position_embedding.weight".into(), vec![config.side() * config.side(), d]),
        ("post_layernorm.weight".into(), vec![d]),
        ("post_layernorm.bias".into(), vec![d]),
    ];
    for layer in 0..config.layers {
        let matrices = [
            ("self_attn.q_proj", d, d),
            ("self_attn.k_proj", d, d),
            ("self_attn.v_proj", d, d),
            ("self_attn.out_proj", d, d),
            ("mlp.fc1", mlp, d),
            ("mlp.fc2", d, mlp),
        ];
        for (name, n, k) in matrices {
            tensors.push((format!("encoder.layers.{layer}.{name}.weight"), vec![n, k]));
            tensors.push((format!("encoder.layers.{layer}.{name}.bias"), vec![n]));
        }
        for name in ["layer_norm1", "layer_norm2"] {
            tensors.push((format!("encoder.layers.{layer}.{name}.weight"), vec![d]));
            tensors.push((format!("encoder.layers.{layer}.{name}.bias"), vec![d]));
        }
    }
    let tensors = tensors.into_iter().map(|(name, shape)| {
        let fill = if name.contains("norm") && name.ends_with("weight") { Fill::Ones } else { Fill::Normal };
        Tensor { name, shape, fill }
    });
    file(tensors)
}
