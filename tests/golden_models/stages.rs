//! What the stages of two models give for one request.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::scheduler::{Piece, Request, generate};
use ocelli_engine::{Ctx, Pipeline, Precision};
use ocelli_kernels::ops::GatherRows;
use ocelli_kernels::{Backend, DType, Device, DeviceOptions, Exec, Queue, ReferenceStream, View, Weights};

pub(super) fn cpu() -> Arc<dyn Device> {
    ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU")
}

/// All values of a matrix, as the kernels' reference decodes them.
pub(super) fn decoded(weights: &Weights) -> Vec<f32> {
    let (n, k) = (weights.n(), weights.k());
    let mut stream = ReferenceStream::default();
    let mut view = |bytes: usize, shape: &[usize], dtype| {
        View::dense(stream.alloc(bytes).expect("memory"), shape, dtype).expect("a view")
    };
    let (ids, out) = (view(4 * n, &[n], DType::I32), view(4 * n * k, &[n, k], DType::F32));
    stream.write(&ids, &(0..n as i32).flat_map(i32::to_le_bytes).collect::<Vec<u8>>()).expect("ids");
    stream.exec(&GatherRows { table: weights.clone(), ids, scale: 1.0, out: out.clone() }).expect("rows");
    let mut bytes = vec![0; 4 * n * k];
    stream.read(&out, &mut bytes).expect("values");
    bytes.as_chunks().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

/// What each stage gives.
pub(super) type Stages = BTreeMap<(&'static str, Option<usize>), Vec<f32>>;

/// What each stage gives for a request.
pub(super) fn stages_of(
    folder: &Path,
    device: &dyn Device,
    request: impl FnOnce(&Pipeline) -> Request,
) -> Stages {
    let files = ModelFiles::dir(folder);
    let mut cx = Ctx::new(device, Precision::default()).expect("a stream");
    let model = ocelli_models::load(&files, &mut cx).unwrap_or_else(|error| panic!("{error}"));
    let pipeline = Pipeline::new(&files, model, 2).expect("its tokenizer");
    let seen = Arc::new(Mutex::new(BTreeMap::<_, Vec<f32>>::new()));
    let sink = seen.clone();
    cx.observe(Some(Box::new(move |stage, _, values| {
        sink.lock().expect("nobody panicked").entry((stage.part, stage.layer)).or_default().extend(values);
    })));
    let request = request(&pipeline);
    let go_on = |_: usize, _: Piece<'_>| ControlFlow::Continue(());
    generate(&mut cx, &pipeline.model, &pipeline.tokenizer, vec![request], go_on).expect("an answer");
    cx.observe(None);
    let mut seen = seen.lock().expect("nobody panicked");
    std::mem::take(&mut *seen)
}

/// Fails where what stages give differs by more than rounding.
pub(super) fn equal_stages(what: &str, got: &Stages, expected: &Stages) {
    assert_eq!(got.keys().collect::<Vec<_>>(), expected.keys().collect::<Vec<_>>(), "{what}");
    assert!(expected.contains_key(&("logits", None)), "{what}: {:?}", expected.keys());
    for (stage, expected) in expected {
        let size = expected.iter().fold(0.0f32, |most, v| most.max(v.abs()));
        let off = expected.iter().zip(&got[stage]).map(|(a, b)| (a - b).abs()).fold(0.0, f32::max);
        assert!(
            off <= 2e-5 * size.max(1.0) && off.is_finite(),
            "{what}, {stage:?}: up to {size}, off by {off}"
        );
    }
}
