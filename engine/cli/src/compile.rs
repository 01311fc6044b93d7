//! `ocelli kernels compile`: CUDA kernels ahead of a run, without a GPU.

#[cfg(not(feature = "cuda"))]
use crate::args::CompileArgs;
#[cfg(not(feature = "cuda"))]
use crate::fail::Failure;

/// Runs the command.
#[cfg(not(feature = "cuda"))]
pub fn compile(_: &CompileArgs) -> Result<(), Failure> {
    Err(Failure::new("backend cuda: this binary was built without the `cuda` feature"))
}

#[cfg(feature = "cuda")]
pub use with_cuda::compile;

#[cfg(feature = "cuda")]
mod with_cuda {
    use std::collections::BTreeSet;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::{Arc, Mutex, PoisonError};

    use ocelli_engine::Precision;
    use ocelli_engine::choices::cache_dir;
    use ocelli_engine::image::Rgb8Image;
    use ocelli_engine::sample::SamplingParams;
    use ocelli_engine::text::Message;
    use ocelli_kernels::Arch;
    use ocelli_kernels::cuda::cubin::Cubins;
    use ocelli_kernels::cuda::{CudaDevice, Driver, KernelKey, PlanDriver};

    use crate::args::CompileArgs;
    use crate::fail::{Failure, print, print_json};
    use crate::open;
    use crate::progress::Spinner;

    /// Sides of the pictures of a dry run: one tile, and the most that a processor makes of one.
    const PICTURES: [usize; 2] = [512, 2048];
    /// Words of the prompts of a dry run.
    const PROMPTS: [usize; 4] = [4, 100, 500, 2000];
    /// Requests that are answered together.
    const TOGETHER: [usize; 4] = [1, 2, 8, 64];

    /// Runs the command.
    pub fn compile(args: &CompileArgs) -> Result<(), Failure> {
        let cubins = Cubins::new(None, cache_dir().as_deref());
        // A missing compiler is one error, before any work.
        let nvrtc = cubins.nvrtc()?;
        let spinner = Spinner::new("finding out which kernels the model needs");
        let mut rows = Vec::new();
        let mut written = 0;
        for &arch in &args.arch {
            if !nvrtc.supports(arch) {
                let (major, minor) = nvrtc.version;
                return Err(Failure::new(format!(
                    "NVRTC {major}.{minor} at {} does not know {arch}",
                    nvrtc.path.display()
                )));
            }
            let keys = keys(args, arch)?;
            spinner.say(&format!("compiling {} kernels for {arch}", keys.len()));
            let bytes = all(&cubins, &keys, arch, args)?;
            written += keys.len();
            rows.push(serde_json::json!({ "arch": arch.name(), "kernels": keys.len(), "bytes": bytes }));
        }
        drop(spinner);
        let (major, minor) = nvrtc.version;
        let out = args.out.display().to_string();
        if args.json {
            return print_json(&serde_json::json!({
                "schema": "ocelli.kernels.compile.v1", "out": out, "nvrtc": format!("{major}.{minor}"), "archs": rows,
            }));
        }
        print(&format!("{written} kernels in {out}; run with OCELLI_CUBINS={out}\n"))
    }

    /// Compiles kernels to the folder, on all cores; the bytes of their files.
    fn all(
        cubins: &Cubins,
        keys: &BTreeSet<KernelKey>,
        arch: Arch,
        args: &CompileArgs,
    ) -> Result<u64, Failure> {
        let (keys, next) = (keys.iter().collect::<Vec<_>>(), AtomicUsize::new(0));
        let results = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
                scope.spawn(|| {
                    while let Some(key) = keys.get(next.fetch_add(1, Ordering::Relaxed)) {
                        let result = cubins.compile_to(key, arch, &args.out);
                        let failed = result.is_err();
                        results.lock().unwrap_or_else(PoisonError::into_inner).push(result);
                        if failed {
                            next.store(keys.len(), Ordering::Relaxed);
                        }
                    }
                });
            }
        });
        let mut bytes = 0;
        for path in results.into_inner().unwrap_or_else(PoisonError::into_inner) {
            bytes += std::fs::metadata(path?).map_or(0, |file| file.len());
        }
        Ok(bytes)
    }

    /// The kernels that a model asks for: a dry run of pictures, prompts and answers, alone and together.
    fn keys(args: &CompileArgs, arch: Arch) -> Result<BTreeSet<KernelKey>, Failure> {
        let driver = Arc::new(PlanDriver::of_arch(arch));
        let device = CudaDevice::on(driver.clone(), Arc::default());
        let precision = Precision {
            dtype: args.dtype.on(driver.caps()),
            kv: args.kv_dtype.on(driver.caps(), false),
            fast_fp8: args.fast_fp8,
            ..Precision::default()
        };
        let (pipeline, mut cx) = open::pipeline(&args.model, &device, precision)?;
        // Greedy for the first half of the requests, sampled for the others.
        let params = |together: usize| -> Vec<SamplingParams> {
            let temperature = |index| if index * 2 < together { 0.0 } else { 1.0 };
            let params =
                |index| SamplingParams { temperature: temperature(index), ..SamplingParams::default() };
            (0..together).map(params).collect()
        };
        for side in PICTURES {
            let Some(picture) = Rgb8Image::from_raw(side, side, vec![127; side * side * 3]) else { continue };
            pipeline.rehearse(&mut cx, &[Message::user(1, "What is it?")], &[picture], &params(1))?;
        }
        let limit = pipeline.model.info().max_positions;
        for words in PROMPTS {
            if words + 64 < limit {
                pipeline.rehearse(&mut cx, &[Message::user(0, "a ".repeat(words))], &[], &params(1))?;
            }
        }
        for together in TOGETHER {
            pipeline.rehearse(&mut cx, &[Message::user(0, "hello")], &[], &params(together))?;
        }
        Ok(driver.keys().into_iter().collect())
    }
}
