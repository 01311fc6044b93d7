//! Gradients of tasks that PyTorch has no reference for here: along the gradient the loss changes by the square of its length.

use std::path::PathBuf;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::Checkpoint;
use ocelli_engine::{Ctx, Model, Pipeline, Precision};
use ocelli_kernels::{Backend, DeviceOptions};
use ocelli_models::Leftovers;
use ocelli_tests::command::Temp;
use ocelli_train::data::Columns;
use ocelli_train::distill::{Distiller, FeatureDistiller, Pairs, Seen, Source, Teacher};
use ocelli_train::patches::{FeatureTeacher, HEAD, Hider, PatchLearner};
use ocelli_train::{Augment, Batcher, Draw, Fresh, Learner, Parameters, Rows, TrainRow, Trainer};

use super::runs::rows;

const DRAW: Draw = Draw { seed: 5, epoch: 0, line: 1 };

fn files(name: &str) -> ModelFiles {
    ModelFiles::dir(ocelli_tests::root().join("tests/golden/train").join(name))
}

fn context() -> Ctx {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    Ctx::new(&*device, Precision::default()).expect("a context")
}

/// A model, all of which and what is beside it is trained.
fn trained(cx: &mut Ctx, name: &str, beside: &[(String, Vec<usize>, Vec<f32>)]) -> (Parameters, Pipeline) {
    let files = files(name);
    let source = Checkpoint::open(&files).expect("a checkpoint");
    let (parameters, checkpoint) =
        Parameters::read_beside(cx, &files, &source, &|_| true, beside).expect("parameters");
    let loaded = ocelli_models::load_from(&files, &checkpoint, cx, Leftovers::Ignore).expect("a model");
    (parameters, Pipeline::new(&files, loaded, 1).expect("a pipeline"))
}

/// A model that is asked.
fn teacher(name: &str) -> (Pipeline, Ctx) {
    let (files, mut cx) = (files(name), context());
    let loaded = ocelli_models::load(&files, &mut cx).expect("a model");
    (Pipeline::new(&files, loaded, 1).expect("a pipeline"), cx)
}

fn given(temp: &Temp) -> Vec<TrainRow> {
    let path: PathBuf =
        rows(temp, "rows.jsonl", 3, |row| row["answer"].as_str().expect("an answer").to_owned());
    Rows::read(&path, &Columns::default()).expect("rows").rows
}

/// Moves all parameters along the gradient, forth and back: the loss changes as the gradient says.
fn follows<E>(
    what: &str,
    cx: &mut Ctx,
    parameters: &Parameters,
    learner: &mut dyn Learner<E>,
    examples: &[E],
) {
    let loss = learner.gradient(cx, examples).expect("a gradient").mean();
    let names: Vec<String> = parameters.all().iter().map(|parameter| parameter.name.clone()).collect();
    let all: Vec<(Vec<f32>, Vec<f32>)> = names
        .iter()
        .map(|name| {
            (parameters.value(cx, name).expect("values"), parameters.gradient(cx, name).expect("a gradient"))
        })
        .collect();
    let square: f64 = all.iter().flat_map(|(_, grads)| grads).map(|&grad| f64::from(grad).powi(2)).sum();
    assert!(square > 0.0, "{what}");
    // A five-hundredth of the loss: far above what f32 rounds, and little of the curve.
    let step = 0.002 * loss / square;
    let mut at = |steps: f64| {
        for (name, (values, grads)) in names.iter().zip(&all) {
            let moved: Vec<f32> = values
                .iter()
                .zip(grads)
                .map(|(&value, &grad)| (f64::from(value) + steps * step * f64::from(grad)) as f32)
                .collect();
            let view = parameters.view(name).expect("a parameter");
            cx.stream().write(&view, bytemuck::cast_slice(&moved)).expect("memory");
        }
        // Gradients are added up, and matter no more.
        learner.gradient(cx, examples).expect("a loss").mean()
    };
    let [near, far] = [1.0, 2.0].map(|steps| (at(steps) - at(-steps)) / (2.0 * steps * step));
    // Both are off by a multiple of the square of their step. What f32 rounds of the loss, some 1e-6 of it, is a thousandth of a step.
    let slope = (4.0 * near - far) / 3.0;
    println!("{what}: loss {loss:.4}, slope {slope:.6e}, square of the gradient {square:.6e}");
    assert!((slope - square).abs() < 1e-3 * square, "{what}: slope {slope}, square of the gradient {square}");
}

#[test]
fn by_a_teacher_and_by_right_tokens() {
    let (temp, mut cx) = (Temp::new(), context());
    let (parameters, student) = trained(&mut cx, "smolvlm_tied", &[]);
    let (pipeline, teacher_cx) = teacher("smolvlm");
    let batcher = |pipeline| Batcher { pipeline, max_tokens: 256, asks: false };
    let pairs = Pairs {
        student: batcher(&student),
        teacher: Some(batcher(&pipeline)),
        stored: Default::default(),
        augment: Augment::default(),
    };
    let all: Vec<_> = given(&temp).iter().map(|row| pairs.read(row, Some(DRAW)).expect("a pair")).collect();
    let trainer = Trainer::untrained(&*pipeline.model, 64);
    let mut distiller = Distiller {
        student: Trainer::new(&*student.model, &parameters, 64),
        source: Source::Model(Box::new(Teacher { cx: teacher_cx, trainer })),
        temperature: 1.5,
        hard: 0.75,
        asks: None,
    };
    follows("distillation", &mut cx, &parameters, &mut distiller, &all);
}

#[test]
fn by_features() {
    let (temp, mut cx) = (Temp::new(), context());
    // The student is the teacher with fresh weights.
    let files = files("smolvlm");
    let tensors = ocelli_models::tensors(&files).expect("tensors");
    let mut fresh = Fresh::of(&files, 3).expect("a configuration");
    fresh.deviation = 0.3;
    let (parameters, checkpoint) =
        Parameters::fresh(&mut cx, &files, &tensors.all, &fresh, &|_| true).expect("parameters");
    let loaded = ocelli_models::load_from(&files, &checkpoint, &mut cx, Leftovers::Ignore).expect("a model");
    let student = Pipeline::new(&files, loaded, 1).expect("a pipeline");
    let (pipeline, teacher_cx) = teacher("smolvlm");
    let processors = [&*student.processor, &*pipeline.processor];
    let all: Vec<Seen> = given(&temp)
        .iter()
        .map(|row| Seen::read(row, None, &Augment::default(), processors).expect("pictures"))
        .collect();
    let mut learner = FeatureDistiller {
        student: &*student.model,
        parameters: &parameters,
        teacher: &*pipeline.model,
        teacher_cx,
    };
    follows("features", &mut cx, &parameters, &mut learner, &all);
}

#[test]
fn by_hidden_patches() {
    let temp = Temp::new();
    let all = given(&temp);
    for (what, features) in [("pixels of hidden patches", None), ("features of hidden patches", Some(12))] {
        let mut cx = context();
        // Wide enough that the head's values matter.
        let mut fresh = Fresh::of(&files("smolvlm_tied"), 7).expect("a configuration");
        fresh.deviation = 0.3;
        let n = features.unwrap_or(48);
        let head = |name: &str, shape: Vec<usize>| {
            let name = format!("{HEAD}{name}");
            let values = fresh.values(&name, &shape);
            (name, shape, values)
        };
        let beside = [head("weight", vec![n, 8]), head("bias", vec![n])];
        let (parameters, student) = trained(&mut cx, "smolvlm_tied", &beside);
        let teacher = features.map(|_| teacher("smolvlm"));
        let hider = Hider {
            processor: &*student.processor,
            teacher: teacher.as_ref().map(|(pipeline, _)| &*pipeline.processor),
            patch: 4,
            share: 0.4,
            augment: Augment { crop: Some(0.5), ..Augment::default() },
        };
        let rows: Vec<_> = all.iter().map(|row| hider.read(row, Some(DRAW)).expect("a row")).collect();
        let teacher = teacher.map(|(pipeline, cx)| FeatureTeacher {
            model: Model::Vlm(pipeline.model.clone()),
            cx,
            patch: 4,
        });
        let model = Model::Vlm(student.model.clone());
        let mut learner = PatchLearner { model: &model, parameters: &parameters, patch: 4, teacher };
        follows(what, &mut cx, &parameters, &mut learner, &rows);
    }
}
