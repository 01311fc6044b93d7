//! Kernels of the programs of `tests/gpu.sh pack`, made before they run. Each program finds out by itself what it will ask a GPU for:
//! it does the same work on a device that computes nothing and notes the kernels.

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::Mutex;

use ocelli_kernels::Arch;
use ocelli_kernels::cuda::KernelKey;
use ocelli_kernels::cuda::cubin::Cubins;

/// What is to be made: `OCELLI_COMPILE_TO` names the folder, for use as `OCELLI_CUBINS`, and `OCELLI_CUDA_ARCH` the architecture.
/// `OCELLI_COMPILE_WITH=host` has the kernels be those of the emulator, for the stand-in for the driver; without that they are
/// NVRTC's, and kept in the folder that `OCELLI_CACHE` names too.
pub struct Order {
    folder: PathBuf,
    pub arch: Arch,
    host: bool,
}

impl Order {
    /// What is asked for; `None` is nothing.
    pub fn given() -> Option<Self> {
        let folder = PathBuf::from(std::env::var_os("OCELLI_COMPILE_TO")?);
        let arch = std::env::var("OCELLI_CUDA_ARCH").expect("OCELLI_CUDA_ARCH").parse();
        let host = std::env::var("OCELLI_COMPILE_WITH").is_ok_and(|with| with == "host");
        Some(Self { folder, arch: arch.expect("an architecture"), host })
    }

    /// Makes kernels, as many at a time as there are cores, and says how many. `library` makes one for the host.
    pub fn make(
        &self,
        of: &str,
        keys: &BTreeSet<KernelKey>,
        library: fn(&KernelKey, Arch) -> Result<PathBuf, String>,
    ) {
        let bytes = if self.host {
            self.for_the_host(keys, library)
        } else {
            let cache = std::env::var_os("OCELLI_CACHE").map(PathBuf::from);
            Cubins::new(None, cache.as_deref()).compile_all(keys, self.arch, &self.folder).expect("kernels")
        };
        println!("{} kernels of {of} for {}, {} KiB", keys.len(), self.arch, bytes >> 10);
    }

    /// What measures a device has nothing to measure in an emulator: in its place stands a kernel that ends at once.
    fn for_the_host(
        &self,
        keys: &BTreeSet<KernelKey>,
        library: fn(&KernelKey, Arch) -> Result<PathBuf, String>,
    ) -> u64 {
        let idle = super::host::idle_kernel().expect("a C compiler");
        let (todo, bytes) = (Mutex::new(keys.iter()), Mutex::new(0));
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    loop {
                        let Some(key) = todo.lock().expect("keys").next() else { return };
                        let made = match key.path.starts_with("cuda/roof/") {
                            true => idle.clone(),
                            false => library(key, self.arch).expect("a kernel for the host"),
                        };
                        let code = std::fs::read(made).expect("a library");
                        Cubins::keep(key, self.arch, &code, &self.folder).expect("a file");
                        *bytes.lock().expect("a count") += code.len() as u64;
                    }
                });
            }
        });
        bytes.into_inner().expect("a count")
    }
}
