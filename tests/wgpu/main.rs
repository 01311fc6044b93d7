//! Every WGSL kernel of every op against its f64 reference, at the device's own limits and at those of plain WebGPU.
//!
//! A software driver runs a share of the cases of ops that are as they were, see [`known`].
//! `OCELLI_CASE=text` runs the cases whose name contains the text; `OCELLI_WGPU_DEVICE=n` chooses the adapter;
//! `OCELLI_WGPU_ONCE=1` leaves out at the device's own limits what also runs at those of plain WebGPU.

#[path = "../known.rs"]
mod known;
mod sources;
mod sources_attention;
mod streams;

use std::sync::Arc;

use ocelli_kernels::conformance::{Kinds, Part, Plan, alone_as_among_others, run_wgpu};
use ocelli_kernels::wgpu::{Profile, WgpuDevice};
use ocelli_kernels::{Device, Picks, WgpuOp, for_each_op};

/// Seed of the cases; each failure repeats it.
const SEED: u64 = 20;
const BACKEND: known::Backend = known::Backend("wgpu");

#[test]
fn sources_are_written_down() {
    BACKEND.write();
}

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
    let once = profile == Profile::Full && std::env::var("OCELLI_WGPU_ONCE").is_ok_and(|text| text == "1");
    let plain = if once { self::device(Profile::Baseline) } else { None };
    let elsewhere = plain.as_ref().map(|device| device.caps());
    let every = if device.caps().wgpu.software { BACKEND.every(O::NAME) } else { 1 };
    let plan = Plan { place: &place, seed: SEED, part: part.share(every), only: only.as_deref(), elsewhere };
    run_wgpu::<O>(&device, plan).settle(O::NAME, only.is_some() || once || every > 1);
}

/// Batch-invariant choices, at either profile.
#[test]
fn a_row_is_the_same_alone_and_among_others() {
    for profile in [Profile::Full, Profile::Baseline] {
        let Some(mut device) = device(profile) else { return };
        let mut picks = Picks::default();
        picks.set_batch_invariant(true);
        device.prefer(picks);
        let ran = alone_as_among_others(&device, Kinds::Few, SEED);
        assert!(ran.unwrap_or_else(|error| panic!("{profile}: {error}")) >= 4);
    }
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
