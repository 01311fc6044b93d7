//! The same models on wgpu, at the device's own limits and at those of plain WebGPU.

use std::path::Path;
use std::sync::Arc;

use ocelli_bench::eval::evaluate;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::wgpu::{Profile, WgpuDevice};

use super::{SAMPLE, explain, golden, run};

const PROFILES: [Profile; 2] = [Profile::Full, Profile::Baseline];

/// The first adapter, or `None`, counted as skipped.
fn device(profile: Profile) -> Option<WgpuDevice> {
    match WgpuDevice::open(0, profile, Arc::default()) {
        Ok(device) => Some(device),
        Err(error) => {
            ocelli_tests::skip("wgpu", &error.to_string());
            None
        }
    }
}

#[test]
fn golden_models() {
    for profile in PROFILES {
        let Some(device) = device(profile) else { return };
        for family in SAMPLE {
            let dir = golden(family);
            let report = run(&dir, &dir, &device);
            assert!(report.pass, "{profile}: {}", explain(&report));
        }
    }
}

/// A sample of the demo model's questions, token for token as transformers answers them.
#[test]
fn demo_answers() {
    for (profile, every) in [(Profile::Full, 24), (Profile::Baseline, 96)] {
        let Some(device) = device(profile) else { return };
        let mut cx = Ctx::new(&device, Precision::default()).expect("a stream");
        let files = &ocelli_models::demo::FILES;
        let model = ocelli_models::load(files, &mut cx).expect("the demo model");
        let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
        let eval = Path::new(env!("CARGO_MANIFEST_DIR")).join("../models/demo/eval");
        let report = evaluate(&pipeline, &mut cx, &eval, every).expect("the evaluation set");
        let differing = report.differing.expect("answers.jsonl");
        assert!(report.rows > 15, "{} rows", report.rows);
        assert!(differing.is_empty(), "{profile}: {differing:?}");
    }
}

#[test]
fn adapters_on_some_rows() {
    if let Some(device) = device(Profile::Full) {
        super::adapters::on_some_rows(&device);
    }
}

/// As on the CPU: the device works beside the host.
#[test]
fn a_crowd_with_too_few_pages() {
    if let Some(device) = device(Profile::Full) {
        super::batch::crowd(&device, 64, 1500);
    }
}
