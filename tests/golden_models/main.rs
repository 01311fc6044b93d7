//! Golden parity of model families with transformers.

mod adapters;
mod batch;
mod calibrated;
mod cuda;
mod demo;
mod expert_copies;
mod experts;
mod florence2;
mod gpu;
mod likely;
mod mlx;
mod published;
mod quantized;
mod real_size;
mod references;
mod relaid;
mod scaled;
mod stages;
mod video;
mod wgpu;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_bench::verify::{Report, StageReport, verify};
use ocelli_engine::Precision;
use ocelli_engine::files::ModelFiles;
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::{Backend, DType, Device, DeviceOptions, ReferenceDevice};

#[rustfmt::skip]
const FAMILIES: &[&str] = &[
    "smolvlm",
    "idefics3",
    "llava",
    "qwen2_vl",
    "qwen2_5_vl",
    "qwen3_vl",
    "qwen3_vl_moe",
    "qwen3_5",
    "qwen3_5_moe",
    "gemma3",
    "gemma4",
    "gemma4_e",
    "gemma4_moe",
    "glm4v",
    "glm46v",
    "glm_ocr",
    "internvl",
    "internvl_qwen3",
    "lfm2_vl",
    "llama4",
    "llava_next",
    "llava_onevision",
    "paddleocr_vl",
    "pixtral",
    "mistral3",
    "paligemma",
    "paligemma2",
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma",
    "gemma2",
    "gemma3_text",
    "cohere2",
    "aya_vision",
    "cohere2_vision",
    "minicpmv4_6",
    "ovis2",
    "deepseek_ocr2",
    "mllama",
    "blip",
    "blip_vqa",
    "blip2",
    "florence2",
    "fast_vlm",
    "granite4_vision",
    "janus",
    "clip",
    "siglip",
    "siglip2",
];

/// Those that together run every op: on slow devices, these alone.
const SAMPLE: &[&str] = &[
    "smolvlm",
    "idefics3",
    "llava",
    "qwen2_5_vl",
    "qwen3_vl_moe",
    "gemma3",
    "internvl_qwen3",
    "lfm2_vl",
    "qwen3_5",
    "blip_vqa",
    "gemma4_e",
    "florence2",
    "ovis2",
    "janus",
];

fn golden(family: &str) -> PathBuf {
    ocelli_tests::root().join("tests/golden").join(family)
}

fn run(model: &Path, reference: &Path, device: &dyn Device) -> Report {
    run_in(model, reference, device, Precision::default())
}

fn run_in(model: &Path, reference: &Path, device: &dyn Device, precision: Precision) -> Report {
    verify(&ModelFiles::dir(model), reference, device, precision).expect("verify")
}

fn explain(report: &Report) -> String {
    let mut text = String::new();
    for case in &report.cases {
        text += &format!("{} {}: diverges at {:?}\n", report.model, case.name, case.first_divergence());
        for stage in &case.stages {
            text += &format!(
                "  {} {:.2e} of {:.1e} {:?}\n",
                stage.name, stage.max_abs, stage.tolerance, stage.note
            );
        }
        text += &format!("  greedy {:?}\n      vs {:?}\n", case.greedy.got, case.greedy.expected);
    }
    text
}

#[test]
fn reference_stream() {
    for family in FAMILIES {
        let dir = golden(family);
        let report = run(&dir, &dir, &ReferenceDevice::default());
        assert!(report.pass, "{}", explain(&report));
    }
}

/// Families that draw are those that the registry names, and their references have a picture whose every token counts.
#[test]
fn drawings_are_compared() {
    for family in ocelli_models::FAMILIES.iter().filter(|family| FAMILIES.contains(&family.name)) {
        let dir = golden(family.name);
        let report = run(&dir, &dir, &ReferenceDevice::default());
        let drawn = |stage: &StageReport| stage.name == "picture";
        let found = report.cases.iter().find(|case| case.stages.iter().any(drawn));
        assert_eq!(found.is_some(), ocelli_models::DRAW.contains(&family.name), "{}", family.name);
        let tokens = found.map(|case| (case.greedy.counted, case.greedy.got.len()));
        assert!(
            tokens.is_none_or(|(counted, got)| counted == got && got > 30),
            "{}: {tokens:?}",
            family.name
        );
    }
}

/// A line of the table that `tests/run.sh golden` prints: each stage of a case with its largest difference and what is allowed.
fn show(family: &str, report: &Report) {
    for case in &report.cases {
        let stage = |stage: &StageReport| match stage.tolerance {
            0.0 => format!("{} {}", stage.name, if stage.pass { "equal" } else { "differ" }),
            most => format!("{} {:.1e} of {most:.1e}", stage.name, stage.max_abs),
        };
        let stages: Vec<String> = case.stages.iter().map(stage).collect();
        let greedy = match case.greedy.counted {
            0 => String::new(),
            counted => format!(", {counted} greedy tokens equal"),
        };
        println!("parity: {family} {}: {}{greedy}", case.name, stages.join(", "));
    }
}

#[test]
fn every_instruction_set() {
    for isa in Isa::available() {
        let device = CpuDevice::at(isa, Arc::new(Pool::new(2)));
        for family in FAMILIES {
            let dir = golden(family);
            let report = run(&dir, &dir, &device);
            assert!(report.pass, "{isa}: {}", explain(&report));
            if isa.level() == Isa::best().level() {
                show(family, &report);
            }
        }
    }
}

/// Families whose rows choose experts. Where two scores are nearer than 16 bits tell, a row goes to another expert than in the
/// reference's run, and what its layers give has no bound.
const ROUTED: &[&str] = &["qwen3_vl_moe", "qwen3_5_moe", "gemma4_moe", "llama4", "deepseek_ocr2"];

/// Whether everything passes that comes before the first choice, and the greedy tokens that count are equal.
fn passes_but_for_choices(report: &Report) -> bool {
    report.cases.iter().all(|case| {
        let chosen = |name: &str| name.starts_with("text_layer") || name.starts_with("logits");
        let before = case.stages.iter().all(|stage| stage.pass || chosen(&stage.name));
        let counted = case.greedy.counted;
        before && case.greedy.got.iter().take(counted).eq(case.greedy.expected.iter().take(counted))
    })
}

/// In bf16, and with keys and values of 16 bits, every stage drifts no further than transformers' own bf16 run does.
#[test]
fn sixteen_bits_drift_as_the_reference_does() {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let f32 = Precision::default();
    let precisions = [
        Precision { dtype: DType::BF16, ..f32 },
        Precision { kv: Some(DType::F16), ..f32 },
        Precision { kv: Some(DType::BF16), ..f32 },
    ];
    for (family, precision) in
        FAMILIES.iter().flat_map(|family| precisions.map(|precision| (family, precision)))
    {
        let dir = golden(family);
        let report = run_in(&dir, &dir, &*device, precision);
        let pass = if ROUTED.contains(family) { passes_but_for_choices(&report) } else { report.pass };
        assert!(pass, "{}", explain(&report));
        for stage in report.cases.iter().flat_map(|case| &case.stages) {
            let drift = !["pixels", "token_ids", "source_ids", "position_ids"].contains(&&*stage.name);
            assert_eq!(stage.mean.is_some(), drift, "{family}: {}", stage.name);
        }
    }
}
