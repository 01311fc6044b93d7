//! NVIDIA's run-time compiler, found and loaded when it is first needed.
//!
//! It is looked for in `OCELLI_NVRTC` (the library or its folder), in the folders of the dynamic linker, in CUDA toolkits and in
//! the folders of Python packages (`nvidia/cuda_nvrtc/lib`).

use std::ffi::{CStr, CString, c_char, c_int, c_void};
use std::path::{Path, PathBuf};

use libloading::Library;

use super::source::{self, KernelKey};
use crate::spec::{Arch, KernelError};

/// Options of every kernel beside architecture and defines. Multiply-adds are fused; division and functions are exact.
const OPTIONS: [&str; 3] = ["--std=c++17", "--generate-line-info", "--ptxas-options=-v"];

/// Names of the library without a version in them; others are found in folders.
const NAMES: [&str; 4] = ["libnvrtc.so", "libnvrtc.so.13", "libnvrtc.so.12", "nvrtc64_120_0.dll"];

type Program = *mut c_void;

/// The compiler.
pub struct Nvrtc {
    library: &'static Library,
    /// Where it was found.
    pub path: PathBuf,
    /// Major and minor version.
    pub version: (u32, u32),
}

/// Machine code with what the compiler said of it.
pub struct Compiled {
    /// The cubin.
    pub code: Vec<u8>,
    /// Warnings, and registers and memory of the kernel.
    pub log: String,
}

/// Options that a kernel is compiled with, in order.
#[must_use]
pub fn options(key: &KernelKey, arch: Arch) -> Vec<String> {
    let mut all = vec![format!("--gpu-architecture={arch}")];
    all.extend(OPTIONS.iter().map(|option| (*option).to_owned()));
    all.extend(key.defines.iter().map(|(name, value)| format!("-D{name}={value}")));
    all
}

impl Nvrtc {
    /// Finds and loads the compiler. The error lists where it was looked for.
    pub fn find() -> Result<Self, String> {
        Self::find_for(None)
    }

    /// The same for a driver that knows CUDA up to this major version, which need not take code of a later one: a compiler of a later
    /// one is taken only where there is no other.
    pub fn find_for(driver: Option<u32>) -> Result<Self, String> {
        let candidates = candidates();
        let found = choose(&candidates, driver, Self::load, |nvrtc| nvrtc.version.0)?;
        let tried: Vec<String> = candidates.iter().map(|path| path.display().to_string()).collect();
        found.ok_or_else(|| {
            format!(
                "NVRTC, NVIDIA's run-time compiler, was not found: set OCELLI_NVRTC to libnvrtc.so or its folder, install a CUDA \
                 toolkit or the Python package nvidia-cuda-nvrtc-cu12, or name a folder that `ocelli kernels compile` \
                 wrote in OCELLI_CUBINS (looked for {})",
                tried.join(", ")
            )
        })
    }

    /// Loads the compiler from a library; `None` if there is none.
    fn load(path: &Path) -> Result<Option<Self>, String> {
        match load_for_good(path) {
            Ok(library) => {
                load_builtins(path);
                Self::open(library, path.to_owned()).map(Some)
            }
            Err(error) if path.exists() => Err(format!("{}: {error}", path.display())),
            Err(_) => Ok(None),
        }
    }

    /// The compiler in this library.
    pub fn at(path: &Path) -> Result<Self, String> {
        Self::load(path)?.ok_or_else(|| format!("{}: there is no such library", path.display()))
    }

    fn open(library: &'static Library, path: PathBuf) -> Result<Self, String> {
        let mut nvrtc = Self { library, path, version: (0, 0) };
        let (mut major, mut minor): (c_int, c_int) = (0, 0);
        let version: unsafe extern "C" fn(*mut c_int, *mut c_int) -> c_int = nvrtc.symbol("nvrtcVersion")?;
        // SAFETY: the function writes two integers.
        nvrtc.check("nvrtcVersion", unsafe { version(&mut major, &mut minor) })?;
        nvrtc.version = (major.unsigned_abs(), minor.unsigned_abs());
        Ok(nvrtc)
    }

    /// A function of the library. `F` must be its type.
    fn symbol<F: Copy>(&self, name: &str) -> Result<F, String> {
        // SAFETY: callers name the C signature that NVRTC documents for this function.
        let found = unsafe { self.library.get::<F>(name.as_bytes()) };
        found.map(|symbol| *symbol).map_err(|error| format!("{}: {error}", self.path.display()))
    }

    fn check(&self, what: &str, code: c_int) -> Result<(), String> {
        if code == 0 {
            return Ok(());
        }
        let text: unsafe extern "C" fn(c_int) -> *const c_char = self.symbol("nvrtcGetErrorString")?;
        // SAFETY: the function gives a static string for every code.
        let text = unsafe { CStr::from_ptr(text(code)) };
        Err(format!("{what}: {}", text.to_string_lossy()))
    }

    /// The architectures whose machine code this compiler makes.
    pub fn supports(&self, arch: Arch) -> bool {
        match arch {
            Arch::Sm120 => self.version >= (12, 8),
            Arch::Sm90a | Arch::Sm89 => self.version >= (12, 0),
            _ => true,
        }
    }

    /// Machine code of a kernel. The error has the compiler's log.
    pub fn compile(&self, key: &KernelKey, arch: Arch) -> Result<Compiled, KernelError> {
        let fail = |what: String| KernelError::Compile { kernel: format!("{key} for {arch}"), what };
        self.try_compile(key, arch).map_err(fail)
    }

    fn try_compile(&self, key: &KernelKey, arch: Arch) -> Result<Compiled, String> {
        if !self.supports(arch) {
            let (major, minor) = self.version;
            return Err(format!("NVRTC {major}.{minor} at {} does not know {arch}", self.path.display()));
        }
        let files = source::closure(key.path);
        let Some(((name, text), headers)) = files.split_first() else {
            return Err(format!("there is no source file {}", key.path));
        };
        let c = |text: &str| CString::new(text).map_err(|error| error.to_string());
        let (name, text) = (c(name)?, c(text)?);
        let strings = |all: &[&str]| all.iter().map(|one| c(one)).collect::<Result<Vec<_>, _>>();
        let header_names = strings(&headers.iter().map(|(name, _)| *name).collect::<Vec<_>>())?;
        let header_texts = strings(&headers.iter().map(|(_, text)| *text).collect::<Vec<_>>())?;
        let options = options(key, arch);
        let options = strings(&options.iter().map(String::as_str).collect::<Vec<_>>())?;
        let pointers = |all: &[CString]| all.iter().map(|one| one.as_ptr()).collect::<Vec<_>>();
        let (names, texts, options) = (pointers(&header_names), pointers(&header_texts), pointers(&options));

        type Create = unsafe extern "C" fn(
            *mut Program,
            *const c_char,
            *const c_char,
            c_int,
            *const *const c_char,
            *const *const c_char,
        ) -> c_int;
        type Compile = unsafe extern "C" fn(Program, c_int, *const *const c_char) -> c_int;
        type Destroy = unsafe extern "C" fn(*mut Program) -> c_int;
        let create: Create = self.symbol("nvrtcCreateProgram")?;
        let compile: Compile = self.symbol("nvrtcCompileProgram")?;
        let destroy: Destroy = self.symbol("nvrtcDestroyProgram")?;

        let mut program: Program = std::ptr::null_mut();
        // SAFETY: all strings are NUL-terminated and outlive the call, and the counts are those of the arrays.
        let code = unsafe {
            create(
                &mut program,
                text.as_ptr(),
                name.as_ptr(),
                names.len() as c_int,
                texts.as_ptr(),
                names.as_ptr(),
            )
        };
        self.check("nvrtcCreateProgram", code)?;
        // SAFETY: the program is alive; the options outlive the call.
        let code = unsafe { compile(program, options.len() as c_int, options.as_ptr()) };
        let log = self.bytes(program, "nvrtcGetProgramLogSize", "nvrtcGetProgramLog");
        let result = match (self.check("nvrtcCompileProgram", code), log) {
            (_, Err(error)) => Err(error),
            (Err(error), Ok(log)) => Err(format!("{error}\n{}", text_of(&log))),
            (Ok(()), Ok(log)) => self
                .bytes(program, "nvrtcGetCUBINSize", "nvrtcGetCUBIN")
                .map(|code| Compiled { code, log: text_of(&log) }),
        };
        // SAFETY: the program is alive and not used any more.
        unsafe { destroy(&mut program) };
        result
    }

    /// What a pair of functions gives: the size, then that many bytes.
    fn bytes(&self, program: Program, size: &str, get: &str) -> Result<Vec<u8>, String> {
        let size_of: unsafe extern "C" fn(Program, *mut usize) -> c_int = self.symbol(size)?;
        let fill: unsafe extern "C" fn(Program, *mut c_char) -> c_int = self.symbol(get)?;
        let mut len = 0;
        // SAFETY: the program is alive; the function writes one size.
        self.check(size, unsafe { size_of(program, &mut len) })?;
        let mut bytes = vec![0u8; len];
        // SAFETY: the function writes `len` bytes.
        self.check(get, unsafe { fill(program, bytes.as_mut_ptr().cast()) })?;
        Ok(bytes)
    }
}

fn text_of(log: &[u8]) -> String {
    String::from_utf8_lossy(log).trim_end_matches(['\0', '\n']).to_owned()
}

/// The first library whose major version is at most `most`; else the first. What is there but cannot be opened is an error where no
/// other is found before it.
fn choose<L>(
    candidates: &[PathBuf],
    most: Option<u32>,
    open: impl Fn(&Path) -> Result<Option<L>, String>,
    major: impl Fn(&L) -> u32,
) -> Result<Option<L>, String> {
    let mut newer = None;
    for path in candidates {
        match open(path) {
            Ok(Some(library)) if most.is_none_or(|most| major(&library) <= most) => return Ok(Some(library)),
            Ok(Some(library)) => newer = newer.or(Some(library)),
            Ok(None) => {}
            Err(_) if newer.is_some() => {}
            Err(error) => return Err(error),
        }
    }
    Ok(newer)
}

/// Libraries to try, best first.
fn candidates() -> Vec<PathBuf> {
    let var = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(named) = var("OCELLI_NVRTC") {
        let inside = if named.is_dir() { libraries(&named) } else { Vec::new() };
        return if inside.is_empty() { vec![named] } else { inside };
    }
    let mut all: Vec<PathBuf> = NAMES.iter().map(PathBuf::from).collect();
    for toolkit in ["CUDA_PATH", "CUDA_HOME"].into_iter().filter_map(var).chain(["/usr/local/cuda".into()]) {
        all.extend(libraries(&toolkit.join("lib64")));
    }
    for root in ["VIRTUAL_ENV", "CONDA_PREFIX"]
        .into_iter()
        .filter_map(var)
        .chain(var("HOME").map(|home| home.join(".local")))
    {
        all.extend(packages(&root.join("lib")));
    }
    for root in ["/usr/local/lib", "/usr/lib", "/opt/conda/lib"] {
        all.extend(packages(Path::new(root)));
    }
    all
}

/// Loads a library that stays: a thread that compiled runs code of it once more when it ends, which may be after the last use of
/// the compiler.
fn load_for_good(path: &Path) -> Result<&'static Library, libloading::Error> {
    // SAFETY: loading NVIDIA's library runs its initializers, which have no requirements.
    unsafe { Library::new(path) }.map(|library| &*Box::leak(Box::new(library)))
}

/// Loads the libraries of declarations that lie beside a compiler. It asks for them by name when it compiles, and in Python packages of
/// CUDA 13 does not itself say that they are where it is.
fn load_builtins(compiler: &Path) {
    let folder = compiler.parent().filter(|folder| !folder.as_os_str().is_empty());
    let is = |path: &PathBuf| {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        name.starts_with("libnvrtc-builtins.so")
    };
    let paths = folder.map(entries).unwrap_or_default().into_iter().filter(is);
    for path in paths {
        // One that does not load is none of this compiler's.
        let _ = load_for_good(&path);
    }
}

/// The compiler's libraries in a folder.
fn libraries(folder: &Path) -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = entries(folder)
        .into_iter()
        .filter(|path| {
            let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            name.starts_with("libnvrtc.so") || (name.starts_with("nvrtc64_") && name.ends_with("_0.dll"))
        })
        .collect();
    all.sort();
    all
}

/// The compiler's libraries in the Python packages below a `lib` folder.
fn packages(lib: &Path) -> Vec<PathBuf> {
    let pythons = entries(lib).into_iter().filter(|path| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|name| name.starts_with("python3"))
    });
    let sites = pythons.flat_map(|python| ["site-packages", "dist-packages"].map(|site| python.join(site)));
    sites
        .flat_map(|site| {
            ["nvidia/cuda_nvrtc/lib", "nvidia/cu13/lib"].map(|below| libraries(&site.join(below)))
        })
        .flatten()
        .collect()
}

fn entries(folder: &Path) -> Vec<PathBuf> {
    std::fs::read_dir(folder).into_iter().flatten().flatten().map(|entry| entry.path()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Paths stand for what is found there: a version, nothing, or something broken.
    fn chosen(paths: &[&str], most: Option<u32>) -> Result<Option<u32>, String> {
        let open = |path: &Path| match path.to_str().unwrap_or_default() {
            "nothing" => Ok(None),
            "broken" => Err("broken".to_owned()),
            version => version.parse().map(Some).map_err(|_| version.to_owned()),
        };
        choose(&paths.iter().map(PathBuf::from).collect::<Vec<_>>(), most, open, |version| *version)
    }

    #[test]
    fn a_compiler_is_no_newer_than_the_driver_where_there_is_one() {
        assert_eq!(chosen(&["nothing", "13", "12"], None), Ok(Some(13)));
        assert_eq!(chosen(&["nothing", "13", "12"], Some(13)), Ok(Some(13)));
        assert_eq!(chosen(&["nothing", "13", "12"], Some(12)), Ok(Some(12)));
        assert_eq!(chosen(&["14", "13", "nothing"], Some(12)), Ok(Some(14)), "better than none");
        assert_eq!(chosen(&["12", "13"], Some(13)), Ok(Some(12)), "the first that will do");
        assert_eq!(chosen(&["nothing"], Some(12)), Ok(None));
        assert_eq!(chosen(&["broken", "12"], Some(12)), Err("broken".to_owned()));
        assert_eq!(chosen(&["13", "broken", "nothing"], Some(12)), Ok(Some(13)));
    }
}
