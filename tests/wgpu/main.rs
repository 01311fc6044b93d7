//! Every WGSL kernel of every op against its f64 reference, at the device's own limits and at those of plain WebGPU.
//!
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_WGPU_DEVICE=n` chooses the adapter.

mod sources;
mod sources_attention;
mod streams;

use std::sync::Arc;

use ocelli_kernels::conformance::run_wgpu;
use ocelli_kernels::wgpu::{Profile, WgpuDevice};
use ocelli_kernels::{WgpuOp, ops};

/// Seed of the cases; each failure repeats it.
const SEED: u64 = 20;

/// The device, or `None` with the reason printed and counted where a machine has none.
fn device(profile: Profile) -> Option<WgpuDevice> {
    let index = std::env::var("OCELLI_WGPU_DEVICE").ok().and_then(|text| text.parse().ok()).unwrap_or(0);
    match WgpuDevice::open(index, profile, Arc::default()) {
        Ok(device) => Some(device),
        Err(error) => {
            let required = std::env::var("OCELLI_REQUIRE").unwrap_or_default();
            assert!(!required.split(',').any(|what| what == "wgpu" || what == "all"), "{error}");
            println!("skipped: wgpu {profile}: {error}");
            None
        }
    }
}

fn conforms<O: WgpuOp>(profile: Profile) {
    let Some(device) = device(profile) else { return };
    let only = std::env::var("OCELLI_CASE").ok();
    let report = run_wgpu::<O>(&device, &profile.to_string(), SEED, only.as_deref());
    for (what, cases) in &report.ran {
        println!("{} {what}: {cases} cases", O::NAME);
    }
    for (what, cases) in &report.skipped {
        let (kernel, why) = what.split_once(": ").unwrap_or((what, ""));
        if report.ran.contains_key(kernel) {
            println!("{} {what}: {cases} cases left out", O::NAME);
        } else {
            println!("not run: {} {kernel}: {why}", O::NAME);
        }
    }
    let failed = report.failed.len();
    let few: Vec<&str> = report.failed.iter().take(20).map(String::as_str).collect();
    assert!(failed == 0, "{failed} failed, {} passed:\n{}", report.passed, few.join("\n"));
    assert!(report.passed > 0, "{}: nothing ran", O::NAME);
}

macro_rules! conformance {
    ($($name:ident: $op:ident),+ $(,)?) => {
        mod full {
            $(#[test]
            fn $name() {
                super::conforms::<super::ops::$op>(super::Profile::Full);
            })+
        }
        mod baseline {
            $(#[test]
            fn $name() {
                super::conforms::<super::ops::$op>(super::Profile::Baseline);
            })+
        }
    };
}

conformance! {
    attention: Attention,
    gather_rows: GatherRows,
    matmul: Matmul,
    merge_patches: MergePatches,
    norm: Norm,
    patch_embed: PatchEmbed,
    pool: Pool,
    rope: Rope,
    sample: Sample,
    scatter_rows: ScatterRows,
}
