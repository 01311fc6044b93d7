//! The backend's own host code, `nvidia.rs`, on a stand-in for the driver (`standin/cuda.c`): contexts, uploads through pinned memory,
//! recorded launches, tensor maps and the attributes of launches are run, with kernels of the emulator in place of machine code; and
//! what goes wrong on a device is planted.
//!
//! The driver is looked for when a process starts, so each of these tests runs tests of this program in a process of its own.

use std::collections::BTreeSet;
use std::ffi::c_void;
use std::path::PathBuf;
use std::time::Duration;

use libloading::Library;
use ocelli_kernels::conformance::{CaseCx, Part, Plan, cuda_kernels, run_cuda};
use ocelli_kernels::cuda::cubin::Cubins;
use ocelli_kernels::cuda::{CudaOp, CudaStream, KernelKey, PlanDriver};
use ocelli_kernels::ops::{GatherRows, Matmul, Rope};
use ocelli_kernels::{Arch, Caps, DType, Queue, View, Weights};

use super::host::{self, Ended, is_on};
use super::{SEED, gpu, required};

const ARCH: Arch = Arch::Sm90a;

/// Cases of products that Hopper's own instructions run: tensor maps, clusters, more shared memory than a launch has without asking.
const PRODUCT: &str = "aligned 64x128x64";

/// The keys of some cases of an op.
fn keys<O: CudaOp>(only: Option<&str>) -> BTreeSet<KernelKey> {
    let of = cuda_kernels::<O>(&Caps::of_arch(ARCH), CaseCx::shapes(SEED), only).expect("keys");
    of.into_values().flatten().collect()
}

/// A folder with the kernels of these keys, as one that was compiled ahead; why there is none.
fn kernels(keys: &BTreeSet<KernelKey>) -> Result<PathBuf, String> {
    let folder = host::folder().join("kernels");
    for key in keys {
        let library = super::emulator::library(key, ARCH)?;
        let code = std::fs::read(library).expect("a library");
        Cubins::keep(key, ARCH, &code, &folder).expect("a file");
    }
    Ok(folder)
}

/// As [`host::on_stand_in`] with the kernels of these keys. `None` where there is no compiler, which is printed and counted.
fn on_stand_in(test: &str, keys: &BTreeSet<KernelKey>, variables: &[(&str, &str)]) -> Option<Ended> {
    match kernels(keys).and_then(|kernels| host::on_stand_in(test, &kernels, variables)) {
        Ok(ended) => Some(ended),
        Err(why) => {
            assert!(!required("emulator"), "{why}");
            println!("skipped: the stand-in for the driver: {why}");
            None
        }
    }
}

#[test]
fn cases_pass_without_faults_or_leaks() {
    let gather = keys::<GatherRows>(None);
    if let Some(done) = on_stand_in("gpu::gather_rows::whole", &gather, &[]) {
        done.well();
        assert!(done.output.contains(" cases"), "{}", done.output);
    }
    if let Some(done) = on_stand_in("gpu::rope::whole", &keys::<Rope>(None), &[]) {
        done.well();
    }
    if let Some(done) = on_stand_in("standin::in_a_process::products", &keys::<Matmul>(Some(PRODUCT)), &[]) {
        done.well();
    }
}

#[test]
fn recorded_launches_run_again() {
    if let Some(done) = on_stand_in("standin::in_a_process::graphs", &gather_keys(), &[]) {
        done.well();
    }
}

/// Where a driver refuses to record launches that overlap, they are recorded once more without that; and a switch has none overlap.
#[test]
fn recorded_launches_go_without_overlap() {
    let graphs = |how: &str, switch: &str| {
        let variables = [("OCELLI_STANDIN_OVERLAP", how), ("OCELLI_CUDA_DEPENDENT", switch)];
        on_stand_in("standin::in_a_process::graphs", &gather_keys(), &variables)
    };
    let Some(done) = graphs("", "") else { return };
    done.well();
    assert!(done.report["overlapping_launches"].as_i64() > Some(2), "{}", done.report);
    for how in ["launch", "instantiate"] {
        let done = graphs(how, "").expect("a compiler");
        done.well();
        assert_eq!(done.report["overlaps_refused"], 1, "tried once: {}", done.report);
    }
    let done = graphs("never", "0").expect("a compiler");
    done.well();
    assert_eq!(done.report["overlapping_launches"], 0);
}

#[test]
fn nothing_else_happens_while_launches_are_recorded() {
    if let Some(done) = on_stand_in("standin::in_a_process::work_beside_a_recording", &gather_keys(), &[]) {
        done.well();
    }
}

/// An out-of-memory error is one error; what ends a device, and a kernel that never ends, end the run at once. (The first case launches
/// nothing, so three pass before the third launch.)
#[test]
fn planted_failures_are_one_clear_error() {
    let gather = keys::<GatherRows>(None);
    let planted = |variables: &[(&str, &str)]| on_stand_in("gpu::gather_rows::whole", &gather, variables);
    let few = ("OCELLI_CASE", "1 of 1x1 f32");
    let Some(done) = planted(&[("OCELLI_STANDIN_FAIL", "cuMemAlloc:4:2"), few]) else { return };
    done.fails(&["1 failed", "out of memory"]);
    let lost = planted(&[("OCELLI_STANDIN_FAIL", "cuLaunchKernelEx:3:719")]).expect("a compiler");
    lost.fails(&["1 failed, 3 passed", "device lost"]);
    let hangs = planted(&[("OCELLI_STANDIN_HANG", "3"), ("OCELLI_CUDA_TIMEOUT", "1")]).expect("a compiler");
    hangs.fails(&["1 failed, 3 passed", "no answer in 1"]);
    assert!(hangs.took < Duration::from_secs(20), "{:?}", hangs.took);
    let old = planted(&[("OCELLI_STANDIN_VERSION", "11080")]).expect("a compiler");
    old.fails(&["12.0 or later is needed"]);
    for name in ["cuInit", "cuDriverGetVersion"] {
        let stub = planted(&[("OCELLI_STANDIN_FAIL", &format!("{name}:1:34"))]).expect("a compiler");
        stub.fails(&["the stub of a CUDA toolkit", "LD_LIBRARY_PATH"]);
    }
    // Code of a compiler that is newer than the driver.
    for code in [200, 209, 222] {
        let plant = format!("cuModuleLoadData:1:{code}");
        let refused = planted(&[("OCELLI_STANDIN_FAIL", &*plant), few]).expect("a compiler");
        refused.fails(&["1 failed", "the driver knows CUDA 12.8; its code was compiled ahead"]);
    }
}

/// The stand-in finds what breaks the driver's rules.
#[test]
fn planted_misuse_is_found() {
    let path = match host::library() {
        Ok(path) => path,
        Err(why) => {
            assert!(!required("emulator"), "{why}");
            return println!("skipped: the stand-in for the driver: {why}");
        }
    };
    // SAFETY: the library was compiled from this repository; its initializers have no requirements.
    let library = unsafe { Library::new(path) }.expect("the stand-in");
    type Call4 = unsafe extern "C" fn(u64, u64, u64, u64) -> i32;
    let call = |name: &str, arguments: [u64; 4]| -> i32 {
        // SAFETY: every function that is called here takes at most four words.
        unsafe {
            library.get::<Call4>(name.as_bytes()).expect(name)(
                arguments[0],
                arguments[1],
                arguments[2],
                arguments[3],
            )
        }
    };
    let out = |value: &mut u64| (value as *mut u64) as u64;
    let (mut context, mut stream, mut event, mut memory, mut pinned) = (0, 0, 0, 0, 0);
    assert_eq!(call("cuInit", [0; 4]), 0);
    assert_ne!(call("cuStreamCreate", [out(&mut stream), 1, 0, 0]), 0, "no context");
    assert_eq!(call("cuDevicePrimaryCtxRetain", [out(&mut context), 7, 0, 0]), 0);
    assert_eq!(call("cuCtxSetCurrent", [context, 0, 0, 0]), 0);
    assert_eq!(call("cuStreamCreate", [out(&mut stream), 1, 0, 0]), 0);
    assert_eq!(call("cuEventCreate", [out(&mut event), 0, 0, 0]), 0);
    assert_eq!(call("cuMemAlloc_v2", [out(&mut memory), 64, 0, 0]), 0);
    assert_eq!(call("cuMemHostAlloc", [out(&mut pinned), 64, 0, 0]), 0);
    let host = [0u8; 64];

    assert_ne!(call("cuMemcpyHtoDAsync_v2", [memory, pinned, 65, stream]), 0, "beyond the memory");
    assert_ne!(call("cuMemcpyHtoDAsync_v2", [memory, host.as_ptr() as u64, 64, stream]), 0, "not pinned");
    assert_eq!(call("cuMemcpyHtoDAsync_v2", [memory, pinned, 64, stream]), 0);
    // SAFETY: the memory is the stand-in's, of 64 bytes.
    unsafe { *(pinned as *mut u8) = 1 + *(pinned as *const u8) };
    let faults = || call("standin_faults", [0; 4]);
    let before = faults();
    assert_eq!(
        call("cuStreamSynchronize", [stream, 0, 0, 0]),
        0,
        "the overwritten source is told, not refused"
    );
    assert_eq!(faults(), before + 1);
    assert_eq!(call("cuStreamBeginCapture_v2", [stream, 2, 0, 0]), 0);
    assert_eq!(call("cuMemsetD8Async", [memory, 0, 64, stream]), 900, "while launches are recorded");
    let mut graph = 0;
    assert_eq!(call("cuStreamEndCapture", [stream, out(&mut graph), 0, 0]), 901, "the recording is broken");
    assert_eq!(call("cuMemFree_v2", [memory, 0, 0, 0]), 0);
    assert_ne!(call("cuMemFree_v2", [memory, 0, 0, 0]), 0, "freed twice");
    assert_ne!(call("cuMemsetD8Async", [memory, 0, 64, stream]), 0, "freed memory");

    #[repr(align(64))]
    struct Map([u64; 17]);
    let mut map = Map([0; 17]);
    assert_eq!(call("cuMemAlloc_v2", [out(&mut memory), 1 << 16, 0, 0]), 0);
    type Encode = unsafe extern "C" fn(
        *mut c_void,
        i32,
        u32,
        u64,
        *const u64,
        *const u64,
        *const u32,
        *const u32,
        i32,
        i32,
        i32,
        i32,
    ) -> i32;
    let mut encode = |at: usize, address: u64, stride: u64, tile: u32, rows: u64| {
        let (shape, strides, tile, steps) = ([64u64, rows], [stride], [64u32, tile], [1u32; 2]);
        // SAFETY: the arrays have an entry for each axis; the map has room for 128 bytes behind each place.
        unsafe {
            let encode = library.get::<Encode>(b"cuTensorMapEncodeTiled").expect("the function");
            let to = map.0.as_mut_ptr().add(at).cast();
            encode(
                to,
                9,
                2,
                address,
                shape.as_ptr(),
                strides.as_ptr(),
                tile.as_ptr(),
                steps.as_ptr(),
                0,
                3,
                3,
                0,
            )
        }
    };
    assert_eq!(encode(0, memory, 128, 64, 512), 0);
    assert_ne!(encode(1, memory, 128, 64, 512), 0, "a map that is not aligned");
    assert_ne!(encode(0, memory + 8, 128, 64, 512), 0, "a tensor that is not aligned");
    assert_ne!(encode(0, memory, 130, 64, 500), 0, "a stride that is no multiple of 16");
    assert_ne!(encode(0, memory, 128, 257, 512), 0, "a box of more than 256");
    assert_ne!(encode(0, memory, 128, 64, 513), 0, "beyond the memory");
    for (name, handle) in [
        ("cuMemFree_v2", memory),
        ("cuMemFreeHost", pinned),
        ("cuEventDestroy_v2", event),
        ("cuStreamDestroy_v2", stream),
    ] {
        assert_eq!(call(name, [handle, 0, 0, 0]), 0, "{name}");
    }
    assert_ne!(call("cuStreamDestroy_v2", [stream, 0, 0, 0]), 0, "destroyed twice");
}

/// A gather of rows of a small table.
fn gather(stream: &mut CudaStream) -> (GatherRows, View) {
    let mut dense = |shape: &[usize], dtype: DType| {
        let len = shape.iter().product::<usize>() * dtype.size();
        View::dense(stream.alloc(len).expect("memory"), shape, dtype).expect("a view")
    };
    let (table, ids, out) =
        (dense(&[4, 64], DType::F32), dense(&[3], DType::I32), dense(&[3, 64], DType::F32));
    let op =
        GatherRows { table: Weights::dense(table.clone(), None).expect("weights"), ids, scale: 2.0, out };
    (op, table)
}

fn gather_keys() -> BTreeSet<KernelKey> {
    use std::sync::Arc;
    let plan = Arc::new(PlanDriver::of_arch(ARCH));
    let mut stream = CudaStream::new(plan.clone(), Arc::default());
    let (op, _) = gather(&mut stream);
    stream.launch::<GatherRows>(&op, &GatherRows::cuda_variants().expect("kernels")[0]).expect("a launch");
    plan.keys().into_iter().collect()
}

/// Tests that others run in a process of their own; elsewhere they are nothing.
mod in_a_process {
    use super::*;

    #[test]
    fn products() {
        if !is_on() {
            return;
        }
        let device = gpu().expect("the stand-in");
        let older = Caps::of_arch(Arch::Sm80);
        let plan = Plan {
            place: "the stand-in",
            seed: SEED,
            part: Part::WHOLE,
            only: Some(PRODUCT),
            elsewhere: Some(&older),
        };
        run_cuda::<Matmul>(&device, plan).settle("matmul", false);
    }

    #[test]
    fn work_beside_a_recording() {
        if !is_on() {
            return;
        }
        let device = gpu().expect("the stand-in");
        let mut stream = device.queue();
        let (op, table) = gather(&mut stream);
        let row = &GatherRows::cuda_variants().expect("kernels")[0];
        stream.launch::<GatherRows>(&op, row).expect("a launch");
        stream.record().expect("a recording");
        let mut bytes = [0; 4 * 64 * 4];
        for refused in [
            stream.alloc(16).map(drop),
            stream.write(&table, &bytes),
            stream.read(&table, &mut bytes),
            stream.fetch(&table).map(drop),
            stream.sync(),
            stream.driver().clock().map(drop),
            stream.record(),
        ] {
            let text = refused.expect_err("other work").to_string();
            assert!(text.contains("while launches are recorded"), "{text}");
        }
        stream.launch::<GatherRows>(&op, row).expect("a launch");
        let graph = stream.recorded().expect("what was recorded is whole");
        assert!(stream.recorded().is_err(), "nothing is recorded any more");
        stream.replay(&graph).expect("a replay");
        stream.read(&table, &mut bytes).expect("a read");
    }

    #[test]
    fn graphs() {
        if !is_on() {
            return;
        }
        let device = gpu().expect("the stand-in");
        let mut stream = device.queue();
        let (op, table) = gather(&mut stream);
        let row = &GatherRows::cuda_variants().expect("kernels")[0];
        let bytes = |values: &[f32]| values.iter().flat_map(|value| value.to_le_bytes()).collect::<Vec<u8>>();
        let values: Vec<f32> = (0..256u16).map(f32::from).collect();
        stream.write(&table, &bytes(&values)).expect("a write");
        let ids = |ids: [i32; 3]| ids.iter().flat_map(|id| id.to_le_bytes()).collect::<Vec<u8>>();
        // The first launch loads the kernel, which is nothing to record.
        stream.write(&op.ids, &ids([0, 0, 0])).expect("a write");
        stream.launch::<GatherRows>(&op, row).expect("a launch");
        stream.sync().expect("an end");
        stream.record().expect("a recording");
        stream.launch::<GatherRows>(&op, row).expect("a launch");
        stream.launch::<GatherRows>(&op, row).expect("a launch");
        let graph = stream.recorded().expect("recorded launches");
        for chosen in [[3, 1, 2], [0, 3, 0]] {
            stream.write(&op.ids, &ids(chosen)).expect("a write");
            stream.replay(&graph).expect("a replay");
            let mut found = vec![0u8; 3 * 64 * 4];
            stream.read(&op.out, &mut found).expect("a read");
            let wanted: Vec<f32> = chosen
                .iter()
                .flat_map(|&id| (0..64).map(move |column| 2.0 * (64 * id + column) as f32))
                .collect();
            assert_eq!(found, bytes(&wanted));
        }
        // Two launches of 5 microseconds of the stand-in's clock, whatever the upload takes.
        let us = stream.driver().replay_us(&graph, 3).expect("a time").expect("a clock");
        assert!((us - 10.0).abs() < 0.1, "{us}");
    }
}
