//! Every WGSL kernel of every op against its f64 reference, at the device's own limits and at those of plain WebGPU.
//!
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_WGPU_DEVICE=n` chooses the adapter.

mod sources;
mod sources_attention;
mod streams;

use std::sync::Arc;

use ocelli_kernels::conformance::{Part, Plan, run_wgpu};
use ocelli_kernels::wgpu::{Profile, WgpuDevice};
use ocelli_kernels::{WgpuOp, for_each_op};

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

fn conforms<O: WgpuOp>(profile: Profile, part: Part) {
    let Some(device) = device(profile) else { return };
    let only = std::env::var("OCELLI_CASE").ok();
    let place = profile.to_string();
    let plan = Plan { place: &place, seed: SEED, part, only: only.as_deref(), elsewhere: None };
    run_wgpu::<O>(&device, plan).settle(O::NAME, only.is_some());
}

/// At the limits of the device, with all its features.
mod full {
    use super::{Part, Profile, WgpuOp, conforms, for_each_op};

    fn run<O: WgpuOp>(part: &str, parts: &[&str]) {
        conforms::<O>(Profile::Full, Part::named(part, parts));
    }

    for_each_op!(part_tests = run);
}

/// At the limits of plain WebGPU, without any feature.
mod baseline {
    use super::{Part, Profile, WgpuOp, conforms, for_each_op};

    fn run<O: WgpuOp>(part: &str, parts: &[&str]) {
        conforms::<O>(Profile::Baseline, Part::named(part, parts));
    }

    for_each_op!(part_tests = run);
}
