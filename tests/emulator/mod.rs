//! Runs CUDA kernels on the host: a driver for [`CudaDevice`](ocelli_kernels::cuda::CudaDevice) whose kernels are compiled by the
//! host's C++ compiler against a shim. See README.md.

use std::collections::{BTreeMap, HashMap};
use std::ffi::CStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use libloading::Library;
use ocelli_kernels::cuda::{Driver, KernelId, KernelKey, Launch, TensorDesc, TensorMap, source};
use ocelli_kernels::{Arch, Caps, Fetch, KernelError, Recorded};

/// Bytes before and behind each allocation that belong to nobody.
const GUARD: usize = 256;
/// The word that tells a tensor map, see `engine.cpp`.
const MAGIC: u64 = 0x6f63_656c_6c69;

/// The emulator's own files.
const RUNTIME: [&str; 5] = ["fibers.cpp", "memory.cpp", "matrices.cpp", "engine.cpp", "warpgroups.cpp"];
/// Multiply-adds are fused as on the device; nothing else is contracted or reordered.
const COMMON: [&str; 6] = [
    "-std=c++17",
    "-fPIC",
    "-fvisibility=hidden",
    "-fno-gnu-unique",
    "-ffp-contract=fast",
    "-fno-strict-aliasing",
];

/// Of kernels: calls at each access, wherever a pointer is not aligned to its type, an array's index or a shift too large; local
/// variables hold no plausible values before they are written.
const CHECKED: [&str; 7] = [
    "-O1",
    "-w",
    "-fsanitize=thread",
    "-fsanitize=alignment",
    "-fsanitize=bounds",
    "-fsanitize=shift-exponent",
    "-ftrivial-auto-var-init=pattern",
];

/// `Launch` of `machine.h`.
#[repr(C)]
struct RawLaunch {
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    cluster: u32,
    cooperative: u32,
    params: *const u8,
    params_len: u64,
    allocations: *const [u64; 2],
    allocation_count: u64,
}

/// A kernel compiled for the host.
struct Loaded {
    library: Library,
    name: String,
}

/// A launch that was noted instead of run.
struct Noted {
    kernel: KernelId,
    grid: [u32; 3],
    threads: u32,
    shared: u32,
    cluster: u32,
    cooperative: bool,
    params: Vec<u8>,
}

/// A device that the host emulates.
pub struct EmulatedDriver {
    caps: Caps,
    memory: Mutex<BTreeMap<u64, Vec<u128>>>,
    lens: Mutex<BTreeMap<u64, usize>>,
    keys: Mutex<HashMap<KernelKey, KernelId>>,
    kernels: Mutex<Vec<Arc<Loaded>>>,
    recording: Mutex<Option<Vec<Noted>>>,
}

/// The compiler and its version, or why there is none.
fn compiler() -> Result<&'static (String, String), String> {
    static FOUND: OnceLock<Result<(String, String), String>> = OnceLock::new();
    let found = FOUND.get_or_init(|| {
        let name = std::env::var("CXX").unwrap_or_else(|_| "c++".to_owned());
        let output = Command::new(&name).arg("--version").output();
        match output {
            Ok(output) if output.status.success() => Ok((
                name,
                String::from_utf8_lossy(&output.stdout).lines().next().unwrap_or_default().to_owned(),
            )),
            _ => Err(format!("no C++ compiler ({name})")),
        }
    });
    found.as_ref().map_err(Clone::clone)
}

fn folder() -> PathBuf {
    Path::new(env!("CARGO_TARGET_TMPDIR")).join("emulator")
}

fn here() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../tests/emulator")
}

fn hash(text: &[u8], mut state: u64) -> u64 {
    for &byte in text {
        state = (state ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    }
    state
}

/// A digest of the emulator and the compiler.
fn digest() -> Result<u64, String> {
    static DIGEST: OnceLock<Result<u64, String>> = OnceLock::new();
    let find = || {
        let mut state = hash(compiler()?.1.as_bytes(), 0xcbf2_9ce4_8422_2325);
        let mut files = vec!["entry.h".to_owned(), "machine.h".to_owned()];
        files.extend(RUNTIME.map(str::to_owned));
        files.extend(["runtime.h", "prelude.h"].map(|file| format!("include/{file}")));
        files.extend(["ptx", "hopper", "wgmma"].map(|file| format!("include/cuda/include/{file}.cuh")));
        for file in files {
            let text = std::fs::read(here().join(&file)).map_err(|error| format!("{file}: {error}"))?;
            state = hash(&text, state);
        }
        Ok(COMMON.iter().chain(&CHECKED).fold(state, |state, option| hash(option.as_bytes(), state)))
    };
    DIGEST.get_or_init(find).clone()
}

/// Runs the compiler; the error is what it says.
fn call(arguments: &[String]) -> Result<(), String> {
    let output = Command::new(&compiler()?.0).args(arguments).output().map_err(|error| error.to_string())?;
    if output.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&output.stderr).into_owned()) }
}

/// Makes a file that others may be making too: it appears whole.
fn make(path: &Path, write: impl FnOnce(&Path) -> Result<(), String>) -> Result<(), String> {
    if path.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(folder()).map_err(|error| error.to_string())?;
    let part = path.with_extension(format!("{}-{:?}", std::process::id(), std::thread::current().id()));
    write(&part)?;
    std::fs::rename(&part, path).map_err(|error| error.to_string())
}

/// The emulator's objects, compiled once.
fn runtime() -> Result<Vec<PathBuf>, String> {
    static ONE: Mutex<()> = Mutex::new(());
    let _alone = ONE.lock().unwrap();
    let digest = digest()?;
    let object = |file: &&str| {
        let path = folder().join(format!("{file}-{digest:016x}.o"));
        make(&path, |part| {
            let mut arguments: Vec<String> = COMMON.map(str::to_owned).to_vec();
            arguments.extend(["-O3", "-c", "-o"].map(str::to_owned));
            arguments.push(part.display().to_string());
            arguments.push(here().join(file).display().to_string());
            call(&arguments)
        })?;
        Ok(path)
    };
    RUNTIME.iter().map(object).collect()
}

/// A kernel as a library for the host.
fn compile(path: &str, text: Option<&Path>, defines: &[String], arch: Arch) -> Result<PathBuf, String> {
    let runtime = runtime()?;
    let mut state = hash(format!("{path} {arch} {}", defines.join(" ")).as_bytes(), digest()?);
    state = hash(&source::digest(path).to_le_bytes(), state);
    if let Some(text) = text {
        state = hash(&std::fs::read(text).map_err(|error| error.to_string())?, state);
    }
    let library = folder().join(format!("{}-{state:016x}.so", path.replace(['/', '.'], "-")));
    make(&library, |part| {
        let sources = Path::new(env!("CARGO_MANIFEST_DIR")).join("../kernels/src");
        let kernel = text.map_or_else(|| sources.join(path), Path::to_path_buf);
        // Names of this process and thread alone, as `part` is.
        let beside = |ending: &str| PathBuf::from(format!("{}.{ending}", part.display()));
        let (wrapper, object) = (beside("cpp"), beside("o"));
        let entry = here().join("entry.h");
        let lines = format!("#include \"{}\"\n#include \"{}\"\n", kernel.display(), entry.display());
        std::fs::write(&wrapper, lines).map_err(|error| error.to_string())?;
        let mut arguments: Vec<String> = COMMON.map(str::to_owned).to_vec();
        arguments.extend(CHECKED.map(str::to_owned));
        arguments.extend(["--param", "tsan-instrument-func-entry-exit=0"].map(str::to_owned));
        arguments.push(format!("-D__CUDA_ARCH__={}", arch.number()));
        arguments.extend(defines.iter().map(|define| format!("-D{define}")));
        arguments.extend(["-I".to_owned(), here().join("include").display().to_string()]);
        arguments.extend(["-I".to_owned(), sources.display().to_string()]);
        arguments.extend(["-include".to_owned(), "prelude.h".to_owned(), "-c".to_owned(), "-o".to_owned()]);
        arguments.extend([object.display().to_string(), wrapper.display().to_string()]);
        call(&arguments)?;
        let mut link = vec!["-shared".to_owned(), "-o".to_owned(), part.display().to_string()];
        link.push(object.display().to_string());
        link.extend(runtime.iter().map(|object| object.display().to_string()));
        call(&link)?;
        for file in [wrapper, object] {
            let _ = std::fs::remove_file(file);
        }
        Ok(())
    })?;
    Ok(library)
}

/// A kernel of the backend as a library for the host, for who runs it without this driver.
#[allow(dead_code, reason = "not every program that has the emulator has the stand-in")]
pub fn library(key: &KernelKey, arch: Arch) -> Result<PathBuf, String> {
    let defines: Vec<String> = key.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
    compile(key.path, None, &defines, arch)
}

impl EmulatedDriver {
    /// A typical device of an architecture; the error says why there is none.
    pub fn open(arch: Arch) -> Result<Self, String> {
        runtime()?;
        Ok(Self {
            caps: Caps::of_arch(arch),
            memory: Mutex::default(),
            lens: Mutex::default(),
            keys: Mutex::default(),
            kernels: Mutex::default(),
            recording: Mutex::default(),
        })
    }

    /// A kernel in a file outside of the backend, for tests of the emulator.
    pub fn kernel_in(&self, file: &Path, defines: &[&str]) -> Result<KernelId, KernelError> {
        let defines: Vec<String> = defines.iter().map(|define| (*define).to_owned()).collect();
        let name = file.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        self.load(&name, Some(file), &defines)
    }

    fn load(&self, path: &str, text: Option<&Path>, defines: &[String]) -> Result<KernelId, KernelError> {
        let fail =
            |what: String| KernelError::Compile { kernel: format!("{path} {}", defines.join(" ")), what };
        let library = compile(path, text, defines, self.caps.cuda.arch).map_err(fail)?;
        // SAFETY: the library was made by `compile` from sources of this repository.
        let library = unsafe { Library::new(&library) }.map_err(|error| fail(error.to_string()))?;
        let mut kernels = self.kernels.lock().unwrap();
        kernels.push(Arc::new(Loaded { library, name: format!("{path} {}", defines.join(" ")) }));
        Ok(KernelId(kernels.len() - 1))
    }

    /// Checks that bytes lie in one allocation.
    fn check(&self, address: u64, bytes: usize) -> Result<(), KernelError> {
        let lens = self.lens.lock().unwrap();
        let inside = lens
            .range(..=address)
            .next_back()
            .is_some_and(|(first, len)| address + bytes as u64 <= first + *len as u64);
        if inside || bytes == 0 {
            return Ok(());
        }
        Err(KernelError::Device(format!("a copy of {bytes} bytes at {address:#x} is out of bounds")))
    }

    fn run(&self, kernel: KernelId, launch: &Launch<'_>) -> Result<(), KernelError> {
        type Run = unsafe extern "C" fn(*const RawLaunch, *mut i8, u64) -> i32;
        let loaded = self.kernels.lock().unwrap()[kernel.0].clone();
        if launch.cluster > 1 && self.caps.cuda.arch.number() < 900 {
            return Err(KernelError::Device(format!("{}: a cluster before Hopper", loaded.name)));
        }
        let allocations: Vec<[u64; 2]> =
            self.lens.lock().unwrap().iter().map(|(address, len)| [*address, *len as u64]).collect();
        // The parameters are read as the kernel's struct, so they must be aligned like one.
        let mut params = vec![0u128; launch.params.len().div_ceil(16) + 4];
        let base = params.as_mut_ptr().cast::<u8>();
        let params_at = base.wrapping_add(base.align_offset(64));
        // SAFETY: the vector has room for the bytes behind at most 63 bytes of alignment.
        unsafe { std::ptr::copy_nonoverlapping(launch.params.as_ptr(), params_at, launch.params.len()) };
        let raw = RawLaunch {
            grid: launch.grid,
            threads: launch.threads,
            shared: launch.shared,
            cluster: launch.cluster,
            cooperative: u32::from(launch.cooperative),
            params: params_at,
            params_len: launch.params.len() as u64,
            allocations: allocations.as_ptr(),
            allocation_count: allocations.len() as u64,
        };
        let mut text = [0i8; 2048];
        // SAFETY: the function has this signature; everything that `raw` points to outlives the call.
        let code = unsafe {
            let run = loaded
                .library
                .get::<Run>(b"emulator_run")
                .map_err(|error| KernelError::Device(format!("{}: {error}", loaded.name)))?;
            run(&raw, text.as_mut_ptr(), text.len() as u64)
        };
        if code == 0 {
            return Ok(());
        }
        // SAFETY: the function ends the text with a NUL.
        let what = unsafe { CStr::from_ptr(text.as_ptr().cast()) }.to_string_lossy().into_owned();
        Err(KernelError::Device(format!(
            "{} on a grid of {:?} blocks of {} threads: {what}",
            loaded.name, launch.grid, launch.threads
        )))
    }
}

impl Driver for EmulatedDriver {
    fn caps(&self) -> &Caps {
        &self.caps
    }

    fn alloc(&self, bytes: usize) -> Result<u64, KernelError> {
        let memory = vec![0u128; (bytes + 3 * GUARD) / 16 + 1];
        let address = (memory.as_ptr() as u64 + GUARD as u64).next_multiple_of(GUARD as u64);
        self.memory.lock().unwrap().insert(address, memory);
        self.lens.lock().unwrap().insert(address, bytes);
        Ok(address)
    }

    fn free(&self, address: u64) {
        self.lens.lock().unwrap().remove(&address);
        self.memory.lock().unwrap().remove(&address);
    }

    fn write(&self, to: u64, bytes: &[u8]) -> Result<(), KernelError> {
        self.check(to, bytes.len())?;
        // SAFETY: the range lies in an allocation of this driver.
        unsafe { std::ptr::copy_nonoverlapping(bytes.as_ptr(), to as *mut u8, bytes.len()) };
        Ok(())
    }

    fn read(&self, from: u64, bytes: &mut [u8]) -> Result<(), KernelError> {
        self.check(from, bytes.len())?;
        // SAFETY: the range lies in an allocation of this driver.
        unsafe { std::ptr::copy_nonoverlapping(from as *const u8, bytes.as_mut_ptr(), bytes.len()) };
        Ok(())
    }

    fn fetch(&self, from: u64, bytes: usize) -> Result<Box<dyn Fetch>, KernelError> {
        let mut all = vec![0; bytes];
        self.read(from, &mut all)?;
        Ok(Box::new(all))
    }

    fn kernel(&self, key: &KernelKey) -> Result<KernelId, KernelError> {
        if let Some(id) = self.keys.lock().unwrap().get(key) {
            return Ok(*id);
        }
        let defines: Vec<String> =
            key.defines.iter().map(|(name, value)| format!("{name}={value}")).collect();
        let id = self.load(key.path, None, &defines)?;
        self.keys.lock().unwrap().insert(key.clone(), id);
        Ok(id)
    }

    fn launch(&self, kernel: KernelId, launch: &Launch<'_>) -> Result<(), KernelError> {
        if let Some(noted) = &mut *self.recording.lock().unwrap() {
            let Launch { grid, threads, shared, cluster, cooperative, .. } = *launch;
            noted.push(Noted {
                kernel,
                grid,
                threads,
                shared,
                cluster,
                cooperative,
                params: launch.params.to_vec(),
            });
            return Ok(());
        }
        self.run(kernel, launch)
    }

    fn tensor_map(&self, tensor: &TensorDesc) -> Result<TensorMap, KernelError> {
        let fail = |what: &str| Err(KernelError::Device(format!("tensor map {tensor:?}: {what}")));
        let (rank, element) = (tensor.shape.len(), tensor.dtype.size() as u64);
        if rank == 0 || rank > 5 || tensor.strides.len() + 1 != rank || tensor.tile.len() != rank {
            return fail("axes");
        }
        if !tensor.address.is_multiple_of(16)
            || tensor.strides.iter().any(|stride| !stride.is_multiple_of(16))
        {
            return fail("not aligned to 16 bytes");
        }
        if tensor.tile.iter().any(|&size| size == 0 || size > 256) || tensor.shape.contains(&0) {
            return fail("a box of 1 to 256 elements an axis is wanted, of a tensor that is not empty");
        }
        let row = u64::from(tensor.tile[0]) * element;
        // Narrower boxes may be swizzled too, but how their rows lie is not known here.
        if !row.is_multiple_of(16) || (tensor.swizzle128 && row != 128) {
            return fail("the innermost axis of a box");
        }
        let mut words = [0u64; 16];
        words[..5].copy_from_slice(&[
            MAGIC,
            tensor.address,
            rank as u64,
            element,
            u64::from(tensor.swizzle128),
        ]);
        words[5..5 + rank].copy_from_slice(&tensor.shape);
        words[10..9 + rank].copy_from_slice(&tensor.strides);
        for (axis, &size) in tensor.tile.iter().enumerate() {
            words[14 + axis / 4] |= u64::from(size) << (16 * (axis % 4));
        }
        Ok(TensorMap(words))
    }

    fn sync(&self) -> Result<(), KernelError> {
        Ok(())
    }

    fn overlaps(&self) -> bool {
        false
    }

    fn records(&self) -> bool {
        true
    }

    fn record(&self) -> Result<(), KernelError> {
        *self.recording.lock().unwrap() = Some(Vec::new());
        Ok(())
    }

    fn recorded(&self) -> Result<Recorded, KernelError> {
        match self.recording.lock().unwrap().take() {
            Some(noted) => Ok(Arc::new(noted)),
            None => Err(KernelError::Device("nothing was recorded".into())),
        }
    }

    fn replay(&self, recorded: &Recorded) -> Result<(), KernelError> {
        let Some(noted) = recorded.downcast_ref::<Vec<Noted>>() else { return Err(KernelError::WrongStream) };
        for one in noted {
            let Noted { kernel, grid, threads, shared, cluster, cooperative, ref params } = *one;
            self.run(
                kernel,
                &Launch { grid, threads, shared, cluster, dependent: false, cooperative, params },
            )?;
        }
        Ok(())
    }
}
