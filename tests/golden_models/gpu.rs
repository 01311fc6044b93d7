//! What `tests/gpu.sh run` runs of this program on a GPU, and the kernels that it asks for.
//!
//! `OCELLI_FAMILIES` names families, with commas between, in place of the sample; `OCELLI_EVERY=n` has one in n of the demo model's
//! questions asked; `OCELLI_GPU_SHAPES` is a file of shapes that benchmarks measure in place of the embedded ones.

#[path = "../cuda/ahead.rs"]
mod ahead;

use std::collections::BTreeSet;
use std::ops::ControlFlow;
use std::path::PathBuf;
use std::sync::Arc;

use ocelli_bench::eval::Difference;
use ocelli_bench::kernels;
use ocelli_bench::model::{Asked, Options, measure};
use ocelli_bench::shapes::{Set, Shapes};
use ocelli_bench::verify::verify;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::Rgb8Image;
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::cuda::{CudaDevice, KernelKey, PlanDriver};
use ocelli_kernels::{Arch, Backend, DType};

use super::cuda::{answers, emulator, gpu, host};
use super::{SAMPLE, explain, golden, real_size};
use ahead::Order;

fn families() -> Vec<String> {
    match std::env::var("OCELLI_FAMILIES") {
        Ok(named) => named.split(',').map(str::to_owned).collect(),
        Err(_) => SAMPLE.iter().map(|family| (*family).to_owned()).collect(),
    }
}

fn every() -> usize {
    std::env::var("OCELLI_EVERY").map_or(1, |every| every.parse().expect("OCELLI_EVERY, a number"))
}

/// Tells a case as it is done, for whoever may end the process at any moment; gives what is wrong.
fn told(what: &str, result: Result<(), String>) -> Option<String> {
    let word = result.as_ref().map_or_else(|why| format!("FAILED: {why}"), |()| "ok".to_owned());
    println!("case: {what}: {}", word.replace('\n', " "));
    result.err().map(|why| format!("{what}: {why}"))
}

#[test]
fn golden_models_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let passes = |family: &String| {
        let dir = golden(family);
        let report = verify(&ModelFiles::dir(&dir), &dir, &device, Precision::default());
        let report = report.map_err(|error| error.to_string())?;
        if report.pass { Ok(()) } else { Err(explain(&report)) }
    };
    let failed: Vec<String> =
        families().iter().filter_map(|family| told(&format!("model {family}"), passes(family))).collect();
    assert!(failed.is_empty(), "{}", failed.join("\n"));
}

/// How near two logits of the reference may be for sums in another order to have the second come first: every logit may be `most` off,
/// the best one down and the second up, so no answer whose smallest gap is larger can differ. The recorded gap is rounded to four places.
fn near_tie(most: f32) -> f64 {
    2.0 * f64::from(most) + 5e-5
}

/// Answers that differ, those apart that a near tie explains.
fn explained(differing: Vec<Difference>, most: f32) -> (Vec<Difference>, Vec<Difference>) {
    differing.into_iter().partition(|one| one.gap <= near_tie(most))
}

#[test]
fn only_a_near_tie_explains_another_answer() {
    let differing = |gap| Difference { row: 7, expected: "two".into(), got: "three".into(), gap };
    let most = real_size::TOLERANCE;
    let rows = [0.0019, 0.0020, 0.0021, 0.0030, 0.1267].map(differing).into();
    let (near, wrong) = explained(rows, most);
    assert_eq!(near.iter().map(|one| one.gap).collect::<Vec<_>>(), [0.0019, 0.0020]);
    assert_eq!(wrong.len(), 3);
}

#[test]
fn demo_answers_on_a_gpu() {
    let Some(device) = gpu() else { return };
    let report = answers(&device, every());
    assert!(report.rows > 1000 / every(), "{} rows", report.rows);
    let (near, wrong) = explained(report.differing.expect("answers.jsonl"), real_size::TOLERANCE);
    for one in near {
        println!("look: demo answer {}, a near tie: {:?}", one.row, one);
    }
    let result = if wrong.is_empty() { Ok(()) } else { Err(format!("{} differ: {wrong:?}", wrong.len())) };
    let failed = told(&format!("{} demo answers", report.rows), result);
    assert_eq!(failed, None);
}

/// The kernels that `work` asks a typical device of an architecture for.
fn wanted(arch: Arch, work: impl FnOnce(&CudaDevice)) -> Vec<KernelKey> {
    let driver = Arc::new(PlanDriver::of_arch(arch));
    work(&CudaDevice::on(driver.clone(), Arc::default()));
    driver.keys()
}

/// What `ocelli bench model` does with a model unless told otherwise, once.
fn benchmark(files: &ModelFiles, device: &CudaDevice) {
    let precision = Precision { dtype: DType::BF16, ..Precision::default() };
    let mut cx = Ctx::new(device, precision).expect("a stream");
    let model = ocelli_models::load(files, &mut cx).expect("the model");
    let pipeline = Pipeline::new(files, model, 2).expect("its tokenizer");
    let picture = Rgb8Image::from_raw(512, 512, vec![127; 512 * 512 * 3]).expect("a picture");
    let asked =
        Asked::Pictures { requests: vec![vec![picture]], prompt: "Describe this picture.".into(), depth: 0 };
    let options = Options { asked, max_tokens: 64, runs: 1, ops: false };
    measure(&mut cx, &pipeline, &options, &mut |_| ControlFlow::Continue(())).expect("a run");
}

/// What the tests on a GPU of this program read of the repository, for `tests/gpu.sh pack`.
#[test]
fn files_of_a_gpus_run() {
    let of_families = families().into_iter().map(|family| format!("tests/golden/{family}"));
    let shared = ["tests/golden/images", "models/demo/eval"].map(str::to_owned);
    for path in of_families.chain(shared) {
        assert!(ocelli_tests::root().join(&path).is_dir(), "{path}");
        println!("\nreads: {path}");
    }
}

/// Makes the kernels that the tests on a GPU of this program and the benchmarks ask for, where an [`Order`] is given.
#[test]
fn kernels_for_a_gpu() {
    let Some(order) = Order::given() else { return };
    let (arch, mut keys) = (order.arch, BTreeSet::new());
    for family in families() {
        let dir = golden(&family);
        let work = |device: &CudaDevice| {
            verify(&ModelFiles::dir(&dir), &dir, device, Precision::default()).expect("a run");
        };
        keys.extend(wanted(arch, work));
    }
    keys.extend(wanted(arch, |device| drop(answers(device, every()))));
    let shapes = match std::env::var_os("OCELLI_GPU_SHAPES").map(PathBuf::from) {
        Some(path) => Shapes::parse(&std::fs::read_to_string(path).expect("a file")).expect("shapes").shapes,
        None => kernels::shapes(Backend::Cuda, None, Set::Usual).expect("shapes"),
    };
    keys.extend(kernels::cuda_kernels(arch, &shapes).expect("kernels of shapes"));
    keys.extend(wanted(arch, |device| benchmark(&ocelli_models::demo::FILES, device)));
    if std::env::var_os("OCELLI_FAMILIES").is_none() {
        let folder = real_size::checkpoint();
        keys.extend(wanted(arch, |device| benchmark(&ModelFiles::dir(&folder.0), device)));
    }
    order.make("models and benchmarks", &keys, emulator::library);
}
