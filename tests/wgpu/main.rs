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
    report.settle(O::NAME, false);
}

/// At the limits of the device, with all its features.
mod full {
    use super::{Profile, conforms, ops};

    #[test]
    fn attention() {
        conforms::<ops::Attention>(Profile::Full);
    }

    #[test]
    fn gather_rows() {
        conforms::<ops::GatherRows>(Profile::Full);
    }

    #[test]
    fn matmul() {
        conforms::<ops::Matmul>(Profile::Full);
    }

    #[test]
    fn merge_patches() {
        conforms::<ops::MergePatches>(Profile::Full);
    }

    #[test]
    fn norm() {
        conforms::<ops::Norm>(Profile::Full);
    }

    #[test]
    fn patch_embed() {
        conforms::<ops::PatchEmbed>(Profile::Full);
    }

    #[test]
    fn pool() {
        conforms::<ops::Pool>(Profile::Full);
    }

    #[test]
    fn rope() {
        conforms::<ops::Rope>(Profile::Full);
    }

    #[test]
    fn sample() {
        conforms::<ops::Sample>(Profile::Full);
    }

    #[test]
    fn scatter_rows() {
        conforms::<ops::ScatterRows>(Profile::Full);
    }
}

/// At the limits of plain WebGPU, without any feature.
mod baseline {
    use super::{Profile, conforms, ops};

    #[test]
    fn attention() {
        conforms::<ops::Attention>(Profile::Baseline);
    }

    #[test]
    fn gather_rows() {
        conforms::<ops::GatherRows>(Profile::Baseline);
    }

    #[test]
    fn matmul() {
        conforms::<ops::Matmul>(Profile::Baseline);
    }

    #[test]
    fn merge_patches() {
        conforms::<ops::MergePatches>(Profile::Baseline);
    }

    #[test]
    fn norm() {
        conforms::<ops::Norm>(Profile::Baseline);
    }

    #[test]
    fn patch_embed() {
        conforms::<ops::PatchEmbed>(Profile::Baseline);
    }

    #[test]
    fn pool() {
        conforms::<ops::Pool>(Profile::Baseline);
    }

    #[test]
    fn rope() {
        conforms::<ops::Rope>(Profile::Baseline);
    }

    #[test]
    fn sample() {
        conforms::<ops::Sample>(Profile::Baseline);
    }

    #[test]
    fn scatter_rows() {
        conforms::<ops::ScatterRows>(Profile::Baseline);
    }
}
