//! One decode step of SmolVLM-256M's decoder, with random weights: the products, attention and what is between them, as a model
//! runs them.

use ocelli_engine::batch::{Batch, Chunk};
use ocelli_engine::kv::{KvCache, SeqId};
use ocelli_engine::vlm::ModelInfo;
use ocelli_engine::weights::{Checkpoint, TensorFile};
use ocelli_engine::{Ctx, Precision, Prompt, Result};
use ocelli_kernels::{Backend, Cost, Device, KernelError, ReferenceStream};
use ocelli_models::fields::Config;
use ocelli_models::text::{Decoder, TextPlan};
use serde_json::{Value, json};

use super::random::{Fill, Tensor, file};
use super::{BenchError, Ready, fields};

const D: usize = 576;
const MLP: usize = 1536;
const KV: usize = 192;
const VOCAB: usize = 49_280;
const LAYERS: usize = 30;

/// Largest distance of a logit from the reference, as for every stage of a model in f32.
const fn tolerance(backend: Backend) -> f32 {
    match backend {
        Backend::Cpu => 2e-4,
        Backend::Wgpu | Backend::Cuda => 1e-3,
    }
}

/// The decoder with a sequence that is read.
pub struct Step {
    cx: Ctx,
    decoder: Decoder,
    info: ModelInfo,
    kv: KvCache,
    seq: SeqId,
    prompt: Prompt,
    spec: String,
    cost: Cost,
}

/// What a spec says.
#[derive(Clone, Copy)]
struct Asked {
    /// Bits of the weights.
    bits: usize,
    /// Tokens before the one of the step.
    depth: usize,
    fast_int8: bool,
}

impl Asked {
    fn read(spec: &str) -> Option<Self> {
        let fields = fields(spec);
        Some(Self {
            bits: match fields.get("w")?.as_str()? {
                "bf16" => 16,
                "int8g32" => 8,
                "int4g32" => 4,
                _ => return None,
            },
            depth: fields.get("depth")?.as_u64()? as usize,
            fast_int8: fields.get("math").is_some_and(|math| math == "int8"),
        })
    }

    fn precision(self) -> Precision {
        Precision { fast_int8: self.fast_int8, ..Precision::default() }
    }
}

fn plan(layers: usize) -> Result<TextPlan> {
    let config = json!({
        "model_type": "llama", "hidden_size": D, "intermediate_size": MLP, "num_hidden_layers": layers, "num_attention_heads": 9,
        "num_key_value_heads": 3, "head_dim": 64, "vocab_size": VOCAB, "max_position_embeddings": 8192, "rms_norm_eps": 1e-5,
        "rope_theta": 100_000.0,
    });
    TextPlan::read(&Config::new("random decoder".into(), config).root(), &["llama"], Some(true))
}

/// The weights of so many layers: matrices of bf16, or of codes in groups of 32; with 4 bits the table of tokens has 8.
fn checkpoint(layers: usize, bits: usize) -> Result<Checkpoint> {
    let mut tensors = Vec::new();
    let mut matrix = |name: String, n: usize, k: usize, bits: usize| match bits {
        16 => tensors.push(Tensor { name: format!("{name}.weight"), shape: vec![n, k], fill: Fill::Normal }),
        _ => {
            let (packed, scale) = (format!("{name}.weight_packed"), format!("{name}.weight_scale"));
            tensors.push(Tensor { name: packed, shape: vec![n, k * bits / 32], fill: Fill::Codes });
            tensors.push(Tensor { name: scale, shape: vec![n, k / 32], fill: Fill::Scales });
        }
    };
    matrix("embed_tokens".into(), VOCAB, D, bits.max(8));
    for layer in 0..layers {
        let parts = [
            ("self_attn.q_proj", D, D),
            ("self_attn.k_proj", KV, D),
            ("self_attn.v_proj", KV, D),
            ("self_attn.o_proj", D, D),
            ("mlp.gate_proj", MLP, D),
            ("mlp.up_proj", MLP, D),
            ("mlp.down_proj", D, MLP),
        ];
        for (part, n, k) in parts {
            matrix(format!("layers.{layer}.{part}"), n, k, bits);
        }
    }
    let norm = |name: String| Tensor { name, shape: vec![D], fill: Fill::Ones };
    tensors.push(norm("norm.weight".into()));
    for layer in 0..layers {
        tensors.push(norm(format!("layers.{layer}.input_layernorm.weight")));
        tensors.push(norm(format!("layers.{layer}.post_attention_layernorm.weight")));
    }
    let group = |target: &str, bits: usize| {
        json!({"targets": [target], "weights": {
            "num_bits": bits, "type": "int", "symmetric": true, "strategy": "group", "group_size": 32, "dynamic": false
        }})
    };
    let config = match bits {
        16 => Value::Null,
        _ => json!({"quantization_config": {
            "quant_method": "compressed-tensors", "format": "pack-quantized",
            "config_groups": {"group_0": group("re:layers.*", bits), "group_1": group("embed_tokens", bits.max(8))},
        }}),
    };
    let file = TensorFile::in_memory("random decoder", file(tensors.into_iter()))?;
    Ok(Checkpoint::of_file(file).with_config(&config))
}

fn load(cx: &mut Ctx, checkpoint: &Checkpoint, layers: usize) -> Result<(Decoder, ModelInfo)> {
    let plan = plan(layers)?;
    let info = ModelInfo {
        family: "random decoder",
        vocab: plan.vocab,
        embedded: plan.vocab,
        max_positions: plan.max_positions,
        d_model: plan.d,
        layers: plan.layers.len(),
        kv: plan.kv.clone(),
        axes: plan.axes(),
    };
    let decoder = Decoder::load(cx, &checkpoint.root(), &checkpoint.at("lm_head"), plan, "random decoder")?;
    Ok((decoder, info))
}

/// So many tokens, all over the vocabulary.
fn prompt(tokens: usize) -> Prompt {
    Prompt::text((0..tokens).map(|token| (token * 7919 % VOCAB) as u32).collect())
}

/// A pass over some tokens of the sequence that follow those that were read; logits of the last one.
fn pass(
    cx: &mut Ctx,
    (decoder, info): (&Decoder, &ModelInfo),
    kv: &mut KvCache,
    (seq, prompt): (SeqId, &Prompt),
    tokens: std::ops::Range<usize>,
) -> Result<ocelli_engine::Tensor> {
    let tokens = &prompt.tokens[tokens];
    let batch = Batch { chunks: vec![Chunk { seq, prompt, features: &[], tokens, want: 1 }], ids: None };
    let packed = batch.pack(cx, kv, info.packing())?;
    decoder.forward(cx, &packed, kv)
}

impl Step {
    /// Its name among the ops.
    pub const OP: &str = "step";

    /// Specs in the text form.
    pub const SPECS: &[&str] = &[
        "depth=128 d=576 layers=30 heads=9 heads_kv=3 mlp=1536 vocab=49280 x=f32 w=bf16",
        "depth=128 d=576 layers=30 heads=9 heads_kv=3 mlp=1536 vocab=49280 x=f32 w=int8g32",
        "depth=128 d=576 layers=30 heads=9 heads_kv=3 mlp=1536 vocab=49280 x=f32 w=int8g32 math=int8",
        "depth=128 d=576 layers=30 heads=9 heads_kv=3 mlp=1536 vocab=49280 x=f32 w=int4g32",
        "depth=128 d=576 layers=30 heads=9 heads_kv=3 mlp=1536 vocab=49280 x=f32 w=int4g32 math=int8",
    ];

    /// Makes the decoder, holds one layer of it against the f64 reference where it is to be `checked`, and reads a prompt.
    pub fn new(device: &dyn Device, spec: &str, checked: bool) -> std::result::Result<Step, BenchError> {
        let asked =
            Asked::read(spec).ok_or_else(|| BenchError::Shapes(format!("step {spec}: no such step")))?;
        Self::make(device, spec, asked, checked)
            .map_err(|error| BenchError::Model(Self::OP, error.to_string()))?
    }

    fn make(
        device: &dyn Device,
        spec: &str,
        asked: Asked,
        checked: bool,
    ) -> Result<std::result::Result<Step, BenchError>> {
        let shallow = checkpoint(1, asked.bits)?;
        let logits = |mut cx: Ctx| -> Result<Vec<f32>> {
            let (decoder, info) = load(&mut cx, &shallow, 1)?;
            let prompt = prompt(5);
            let mut kv = KvCache::for_one(&mut cx, &info.kv, prompt.extent(), prompt.len())?;
            let seq = kv.open(0);
            cx.scope(|cx| {
                let out = pass(cx, (&decoder, &info), &mut kv, (seq, &prompt), 0..prompt.len())?;
                cx.download(&out)
            })
        };
        // Rounded activations have bounds of their own, in the conformance tests.
        let got = logits(Ctx::new(device, Precision::default())?)?;
        let reference = || logits(Ctx::on(Box::<ReferenceStream>::default(), Precision::default()));
        let want = if checked { reference()? } else { got.clone() };
        let worst = got.iter().zip(&want).map(|(a, b)| (a - b).abs()).max_by(f32::total_cmp).unwrap_or(0.0);
        let tolerance = tolerance(device.caps().backend);
        if got.len() != want.len()
            || worst.is_nan()
            || worst > tolerance
            || got.iter().any(|v| !v.is_finite())
        {
            return Ok(Err(BenchError::Wrong {
                what: format!("step of one layer, {spec}"),
                detail: format!("expected every logit within {tolerance:e}, found one {worst:e} off"),
            }));
        }

        let whole = checkpoint(LAYERS, asked.bits)?;
        let prompt = prompt(asked.depth + 1);
        let (mut dry, log) = Ctx::dry(device.caps().clone(), asked.precision());
        let mut cx = Ctx::new(device, asked.precision())?;
        let mut made = None;
        for (cx, real) in [(&mut dry, false), (&mut cx, true)] {
            let (decoder, info) = load(cx, &whole, LAYERS)?;
            let mut kv = KvCache::for_one(cx, &info.kv, prompt.extent(), prompt.len())?;
            let seq = kv.open(0);
            let model = (&decoder, &info);
            cx.scope(|cx| pass(cx, model, &mut kv, (seq, &prompt), 0..asked.depth).map(drop))?;
            if real {
                made = Some((decoder, info, kv, seq));
                continue;
            }
            drop(log.take());
            let step = asked.depth..asked.depth + 1;
            cx.scope(|cx| pass(cx, model, &mut kv, (seq, &prompt), step).map(drop))?;
        }
        let cost = log.total();
        let Some((decoder, info, kv, seq)) = made else {
            return Ok(Err(BenchError::Model(Self::OP, "nothing was made".into())));
        };
        Ok(Ok(Step { cx, decoder, info, kv, seq, prompt, spec: spec.to_owned(), cost }))
    }

    /// One step, to the end; the next one does the same again.
    pub fn run(&mut self) -> Result<()> {
        let Step { cx, decoder, info, kv, seq, prompt, .. } = self;
        let depth = prompt.len() - 1;
        cx.scope(|cx| pass(cx, (decoder, info), kv, (*seq, prompt), depth..depth + 1).map(drop))?;
        kv.truncate(*seq, depth);
        Ok(cx.stream().sync()?)
    }

    /// The step as something to time.
    pub fn ready(mut self) -> Ready {
        Ready {
            variant: if self.cx.precision().fast_int8 { "int8" } else { "f32" }.to_owned(),
            picked: true,
            spec: fields(&self.spec),
            cost: self.cost,
            sets: 1,
            waits: true,
            run: Box::new(move |_, _| self.run().map_err(|error| KernelError::Device(error.to_string()))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn specs_are_read() {
        let bits: Vec<usize> = Step::SPECS.iter().filter_map(|spec| Some(Asked::read(spec)?.bits)).collect();
        assert_eq!(bits, [16, 8, 8, 4, 4]);
        assert!(Asked::read("depth=128 w=int2").is_none());
    }
}
