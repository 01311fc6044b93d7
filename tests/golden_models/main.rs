//! Golden parity of model families with transformers.

mod batch;
mod cuda;
mod demo;
mod published;
mod real_size;
mod wgpu;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use ocelli_bench::verify::{Report, verify};
use ocelli_engine::Precision;
use ocelli_engine::files::ModelFiles;
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::{Device, ReferenceDevice};

const FAMILIES: [&str; 5] = ["smolvlm", "idefics3", "llava", "qwen2_5_vl", "gemma3"];

fn golden(family: &str) -> PathBuf {
    ocelli_tests::root().join("tests/golden").join(family)
}

fn run(model: &Path, reference: &Path, device: &dyn Device) -> Report {
    verify(&ModelFiles::dir(model), reference, device, Precision::default()).expect("verify")
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

#[test]
fn every_instruction_set() {
    for isa in Isa::available() {
        let device = CpuDevice::at(isa, Arc::new(Pool::new(2)));
        for family in FAMILIES {
            let dir = golden(family);
            let report = run(&dir, &dir, &device);
            assert!(report.pass, "{isa}: {}", explain(&report));
        }
    }
}
