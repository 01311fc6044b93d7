//! The emulator: a driver that runs kernels on the host, and whether it computes what a GPU does and finds what a GPU would not
//! forgive. Each kernel in `tests/emulator/tests` is run as it should be, then with each of its mistakes.

#[path = "../emulator/mod.rs"]
mod driver;

use std::path::Path;

pub use driver::{EmulatedDriver, library};
use half::{bf16, f16};
use ocelli_kernels::cuda::{Driver, Launch, TensorDesc};
use ocelli_kernels::{Arch, DType};

/// `Ok`, or what the emulator says, or that the result is wrong.
type Outcome = Result<(), String>;

/// An emulated device.
struct Machine(EmulatedDriver);

/// A launch of one of the kernels.
struct Run<'a> {
    file: &'a str,
    defines: &'a [&'a str],
    grid: u32,
    threads: u32,
    shared: u32,
    cluster: u32,
    cooperative: bool,
    params: &'a [u64],
}

impl Default for Run<'_> {
    fn default() -> Self {
        let (file, defines, params) = ("", &[], &[]);
        Self { file, defines, grid: 1, threads: 32, shared: 0, cluster: 1, cooperative: false, params }
    }
}

impl Machine {
    fn open() -> Option<Self> {
        match EmulatedDriver::open(Arch::Sm90a) {
            Ok(driver) => Some(Self(driver)),
            Err(why) => {
                assert!(!super::required("emulator"), "{why}");
                println!("skipped: the emulator's own tests: {why}");
                None
            }
        }
    }

    /// Memory with these bytes.
    fn put(&self, bytes: &[u8]) -> u64 {
        let address = self.0.alloc(bytes.len()).unwrap();
        self.0.write(address, bytes).unwrap();
        address
    }

    fn zeros(&self, floats: usize) -> u64 {
        self.put(&vec![0; 4 * floats])
    }

    fn floats(&self, address: u64, len: usize) -> Vec<f32> {
        let mut bytes = vec![0; 4 * len];
        self.0.read(address, &mut bytes).unwrap();
        bytes.chunks_exact(4).map(|four| f32::from_le_bytes(four.try_into().unwrap())).collect()
    }

    /// The map of a matrix of `shape`, innermost first.
    fn map(&self, address: u64, dtype: DType, shape: [u64; 2], tile: [u32; 2], swizzle128: bool) -> Vec<u64> {
        let tensor = TensorDesc {
            address,
            dtype,
            shape: shape.as_slice().into(),
            strides: [shape[0] * dtype.size() as u64].as_slice().into(),
            tile: tile.as_slice().into(),
            swizzle128,
        };
        self.0.tensor_map(&tensor).unwrap().0.to_vec()
    }

    fn run(&self, run: &Run<'_>) -> Outcome {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/emulator/tests").join(run.file);
        let kernel = self.0.kernel_in(&file, run.defines).map_err(|error| error.to_string())?;
        let launch = Launch {
            grid: [run.grid, 1, 1],
            threads: run.threads,
            shared: run.shared,
            cluster: run.cluster,
            dependent: false,
            cooperative: run.cooperative,
            params: bytemuck::cast_slice(run.params),
        };
        self.0.launch(kernel, &launch).map_err(|error| error.to_string())
    }
}

/// Small whole numbers: every product and sum of them is exact.
fn numbers(len: usize) -> Vec<f32> {
    let mut state = 1u32;
    let mut next = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (state >> 28) as f32 - 8.0
    };
    (0..len).map(|_| next()).collect()
}

fn bytes(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|x| x.to_le_bytes()).collect()
}

fn as_bf16(values: &[f32]) -> Vec<u8> {
    values.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect()
}

fn transposed(values: &[f32], cols: usize) -> Vec<f32> {
    let rows = values.len() / cols;
    (0..values.len()).map(|i| values[i % rows * cols + i / rows]).collect()
}

/// a [m, k] b [k, n].
fn product(a: &[f32], b: &[f32], k: usize, n: usize) -> Vec<f32> {
    let at = |i: usize| (0..k).map(|j| a[i / n * k + j] * b[j * n + i % n]).sum();
    (0..a.len() / k * n).map(at).collect()
}

fn same(got: &[f32], wanted: &[f32]) -> Outcome {
    match got.iter().zip(wanted).position(|(got, wanted)| got != wanted) {
        None => Ok(()),
        Some(i) => Err(format!("wrong: element {i} is {}, not {}", got[i], wanted[i])),
    }
}

/// Checks a kernel as it should be, then its mistakes from 1 on, each of which the emulator must report in these words.
fn check(run: impl Fn(&Machine, u32) -> Outcome, mistakes: &[&str]) {
    let Some(machine) = Machine::open() else { return };
    assert_eq!(run(&machine, 0), Ok(()));
    for (mistake, words) in (1..).zip(mistakes) {
        let outcome = run(&machine, mistake);
        assert!(
            outcome.as_ref().is_err_and(|text| text.contains(words)),
            "mistake {mistake}: {outcome:?}, not {words}"
        );
    }
}

#[test]
fn memory() {
    let run = |machine: &Machine, mistake: u32| {
        let x = numbers(128);
        let out = machine.zeros(128);
        let len = match mistake {
            5 => 5,
            6 => 32,
            _ => 128,
        };
        machine.run(&Run {
            file: "memory.cu",
            defines: &[&format!("MISTAKE={mistake}")],
            shared: 512,
            params: &[machine.put(&bytes(&x)), out, len],
            ..Run::default()
        })?;
        same(&machine.floats(out, 128), &x)
    };
    check(
        run,
        &[
            "thread 7: out of bounds: read of 4 bytes at byte 512 of an allocation of 512 bytes",
            "misaligned",
            "read before anything is written",
            "out of bounds: byte 512 of 512 bytes of shared memory",
            "element 4 of an array",
            "a shift by 32 bits",
            "thread 31: out of bounds: write",
        ],
    );
}

#[test]
fn threads() {
    let run = |machine: &Machine, mistake: u32| {
        let x = numbers(128);
        let out = machine.zeros(130);
        machine.run(&Run {
            file: "threads.cu",
            defines: &[&format!("MISTAKE={mistake}")],
            threads: 128,
            shared: 544,
            params: &[machine.put(&bytes(&x)), out],
            ..Run::default()
        })?;
        let positive = x.iter().filter(|&&x| x > 0.0).count() as f32;
        let wanted: Vec<f32> =
            [x.iter().sum(), positive].into_iter().chain(x.iter().rev().copied()).collect();
        same(&machine.floats(out, 130), &wanted)
    };
    check(run, &["31 wait at shfl_xor", "divergence: at __syncwarp", "of shared memory", "race: ", "race: "]);
}

#[test]
fn roles() {
    let run = |machine: &Machine, mistake: u32| {
        let x = numbers(5 * 32);
        let out = machine.zeros(32);
        machine.run(&Run {
            file: "roles.cu",
            defines: &[&format!("MISTAKE={mistake}")],
            threads: 64,
            shared: 128,
            params: &[machine.put(&bytes(&x)), out, 5],
            ..Run::default()
        })?;
        let wanted: Vec<f32> = (0..32).map(|i| (0..5).map(|round| x[32 * round + 31 - i]).sum()).collect();
        same(&machine.floats(out, 32), &wanted)
    };
    check(
        run,
        &[
            "race: ",
            "while others wait at it as one of 32",
            "of shared memory",
            "deadlock: 32 wait at barrier 1",
        ],
    );
}

#[test]
fn copies() {
    let run = |machine: &Machine, mistake: u32| {
        let x = numbers(5 * 128);
        let out = machine.zeros(128);
        machine.run(&Run {
            file: "copies.cu",
            defines: &[&format!("MISTAKE={mistake}")],
            shared: 1024,
            params: &[machine.put(&bytes(&x)), out, 5],
            ..Run::default()
        })?;
        let wanted: Vec<f32> = (0..128).map(|i| (0..5).map(|step| x[128 * step + 127 - i]).sum()).collect();
        same(&machine.floats(out, 128), &wanted)
    };
    let under_way = "to which a cp.async of thread 0 is under way";
    check(run, &["not aligned", under_way, under_way, "of shared memory", "race: "]);
}

#[test]
fn products_of_warps() {
    let Some(machine) = Machine::open() else { return };
    let e4m3 = |x: f32| {
        let size = x.abs();
        let exponent = size.log2().floor();
        let code = if size == 0.0 { 0 } else { ((exponent + 6.0 + size / exponent.exp2()) * 8.0) as u8 };
        code | if x < 0.0 { 128 } else { 0 }
    };
    for (kind, element, turned) in
        [(0, "bf16", 0), (0, "bf16", 1), (0, "f16", 0), (0, "f16", 1), (1, "bf16", 0), (2, "bf16", 0)]
    {
        let k = if kind == 0 { 16 } else { 32 };
        let all = numbers(24 * k);
        let (a, b) = all.split_at(16 * k);
        let encode = |values: &[f32]| -> Vec<u8> {
            match (kind, element) {
                (0, "bf16") => as_bf16(values),
                (0, _) => values.iter().flat_map(|&x| f16::from_f32(x).to_le_bytes()).collect(),
                (1, _) => values.iter().map(|&x| x as i8 as u8).collect(),
                _ => values.iter().map(|&x| e4m3(x)).collect(),
            }
        };
        let stored = if turned == 1 { b.to_vec() } else { transposed(b, 8) };
        let out = machine.zeros(128);
        let outcome = machine.run(&Run {
            file: "mma.cu",
            defines: &[
                &format!("KIND={kind}"),
                &format!("ELEMENT={element}"),
                &format!("TRANSPOSED={turned}"),
            ],
            shared: 768,
            params: &[machine.put(&encode(a)), machine.put(&encode(&stored)), out],
            ..Run::default()
        });
        let outcome = outcome.and_then(|()| same(&machine.floats(out, 128), &product(a, b, k, 8)));
        assert_eq!(outcome, Ok(()), "kind {kind} of {element}, transposed {turned}");
    }
}

/// out [64, cols] by a warpgroup, in `cluster` blocks.
fn tensor(
    machine: &Machine,
    cols: usize,
    along_cols: bool,
    registers: bool,
    cluster: u32,
    mistake: u32,
) -> Outcome {
    let k = 320;
    let all = numbers((64 + cols) * k);
    let (a, b) = all.split_at(64 * k);
    let stored = if along_cols { b.to_vec() } else { transposed(b, cols) };
    let (a_at, b_at) = (machine.put(&as_bf16(a)), machine.put(&as_bf16(&stored)));
    let out = machine.zeros(cluster as usize * 64 * cols);
    let mut params = machine.map(a_at, DType::BF16, [k as u64, 64], [64, 64], true);
    params.extend(if along_cols {
        machine.map(b_at, DType::BF16, [cols as u64, k as u64], [64, 64], true)
    } else {
        machine.map(b_at, DType::BF16, [k as u64, cols as u64], [64, cols as u32 / 2], true)
    });
    params.extend([out, k as u64, 0, 0, 0, 0, 0, 0]);
    machine.run(&Run {
        file: "tensor.cu",
        defines: &[
            &format!("COLS={cols}"),
            &format!("COLS_MAJOR={along_cols}"),
            &format!("FROM_REGISTERS={registers}"),
            &format!("MULTICAST={}", cluster > 1),
            &format!("MISTAKE={mistake}"),
        ],
        grid: cluster,
        threads: 256,
        shared: 2 * (64 * 128 + cols as u32 * 128) + 32,
        cluster,
        params: &params,
        ..Run::default()
    })?;
    let wanted = product(a, b, k, cols);
    machine.floats(out, cluster as usize * 64 * cols).chunks(64 * cols).try_for_each(|got| same(got, &wanted))
}

#[test]
fn products_of_warpgroups() {
    let Some(machine) = Machine::open() else { return };
    for (cols, along_cols, registers, cluster) in [
        (32, false, false, 1),
        (128, false, true, 1),
        (64, true, false, 1),
        (256, true, true, 1),
        (64, false, false, 2),
        (128, true, true, 2),
    ] {
        let outcome = tensor(&machine, cols, along_cols, registers, cluster, 0);
        assert_eq!(
            outcome,
            Ok(()),
            "{cols} columns, stored along them: {along_cols}, a in registers: {registers}"
        );
    }
    let not_there = tensor(&machine, 64, false, false, 2, 1);
    assert!(
        not_there.as_ref().is_err_and(|text| text.contains("mbarrier") || text.contains("race")),
        "{not_there:?}"
    );
}

#[test]
fn mistakes_of_warpgroups() {
    let run = |machine: &Machine, mistake: u32| tensor(machine, 64, false, false, 1, mistake);
    check(
        run,
        &[
            "race: ",
            "race: write of byte 0 of shared memory, which the copy engine has written",
            "wait at an mbarrier",
            "which the copy engine has written",
            "without a wgmma_fence",
            "begins within 8 rows",
            "a sum was written while",
            "which a product of a warpgroup has read",
            "which no mbarrier_init_fence has shown",
        ],
    );
}

/// What a GPU does not launch.
#[test]
fn launches() {
    let Some(machine) = Machine::open() else { return };
    let params = [machine.zeros(128), machine.zeros(128), 128];
    let run = |threads: u32, cluster: u32| {
        machine.run(&Run {
            file: "memory.cu",
            defines: &["MISTAKE=0"],
            grid: cluster,
            threads,
            shared: 512,
            cluster,
            params: &params,
            ..Run::default()
        })
    };
    assert_eq!(run(32, 1), Ok(()));
    for (outcome, words) in [
        (run(64, 1), "64 threads of a kernel that is compiled for 32"),
        (run(32, 16), "a cluster of 16 blocks"),
    ] {
        assert!(outcome.as_ref().is_err_and(|text| text.contains(words)), "{outcome:?}, not {words}");
    }
    let narrow = TensorDesc {
        address: params[0],
        dtype: DType::F32,
        shape: [16, 8].as_slice().into(),
        strides: [64].as_slice().into(),
        tile: [16, 8].as_slice().into(),
        swizzle128: true,
    };
    assert!(machine.0.tensor_map(&narrow).is_err());
    if let Ok(older) = EmulatedDriver::open(Arch::Sm80) {
        let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/emulator/tests/memory.cu");
        let kernel = older.kernel_in(&file, &["MISTAKE=0"]).unwrap();
        let launch = Launch {
            grid: [2, 1, 1],
            threads: 32,
            shared: 512,
            cluster: 2,
            dependent: false,
            cooperative: false,
            params: bytemuck::cast_slice(&params),
        };
        assert!(
            older.launch(kernel, &launch).is_err_and(|error| error.to_string().contains("before Hopper"))
        );
    }
}

#[test]
fn stores() {
    let run = |machine: &Machine, mistake: u32| {
        // The last box reaches beyond the tensor.
        let x = numbers(60 * 32);
        let out = machine.zeros(60 * 32);
        let mut params = machine.map(machine.put(&bytes(&x)), DType::F32, [32, 60], [32, 16], false);
        params.extend(machine.map(out, DType::F32, [32, 60], [32, 16], false));
        machine.run(&Run {
            file: "stores.cu",
            defines: &[&format!("MISTAKE={mistake}")],
            threads: 128,
            shared: 2056,
            params: &params,
            ..Run::default()
        })?;
        let wanted: Vec<f32> = x.iter().map(|x| 2.0 * x).collect();
        same(&machine.floats(out, 60 * 32), &wanted)
    };
    check(
        run,
        &[
            "without a fence_async_shared",
            "race: ",
            "which the copy engine has read",
            "the thread ends while its stores",
        ],
    );
}

#[test]
fn blocks_that_wait_for_each_other() {
    let run = |machine: &Machine, mistake: u32| {
        let (arrived, values, out) = (machine.zeros(1), machine.zeros(6), machine.zeros(7));
        machine.run(&Run {
            file: "grid.cu",
            grid: 6,
            cooperative: mistake == 0,
            params: &[arrived, values, out],
            ..Run::default()
        })?;
        let got: Vec<f32> = machine.floats(out, 7).iter().map(|x| x.to_bits() as f32).collect();
        same(&got, &[21.0, 21.0, 21.0, 21.0, 21.0, 21.0, 192.0])
    };
    check(run, &["deadlock: "]);
}

/// Every function of the kernels' vocabulary has a twin for the host.
#[test]
fn every_function_has_a_twin() {
    let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let twins = Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/emulator/include");
    for file in ["ptx.cuh", "hopper.cuh", "wgmma.cuh"] {
        let text = |root: &Path| std::fs::read_to_string(root.join("cuda/include").join(file)).unwrap();
        let (device, host) = (text(&sources), text(&twins));
        for line in device.lines().filter(|line| !line.trim_start().starts_with("static")) {
            let Some((_, rest)) = line.split_once("DEVICE ") else { continue };
            let Some((head, _)) = rest.split_once('(') else { continue };
            let name = head.rsplit([' ', '*']).next().unwrap_or_default();
            let name = name.split('<').next().unwrap_or_default();
            assert!(
                host.contains(&format!(" {name}(")) || host.contains(&format!(" {name}<")),
                "{file}: {name}"
            );
        }
    }
}
