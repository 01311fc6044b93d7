//! Runs that end early, and the weights that their models have.

use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Error, Precision, Result};
use ocelli_kernels::{Backend, DeviceOptions};
use ocelli_tests::command::Temp;
use ocelli_train::run::{Best, Metrics, Ran};
use ocelli_train::{
    AdamWOptions, Checked, Fresh, Job, Learner, Loss, Parameters, RunOptions, Schedule, TrainRow, Watcher,
    run,
};

/// Validations with these losses, of a model whose weights decay and nothing else.
struct Scripted {
    losses: Vec<f64>,
    /// Validations before the first of these.
    at: usize,
}

impl Learner<()> for Scripted {
    fn gradient(&mut self, _: &mut Ctx, rows: &[()]) -> Result<Loss> {
        Ok(Loss { nats: 1.0, tokens: 1, read: rows.len() })
    }

    fn check(&mut self, _: &mut Ctx, _: &[()]) -> Result<Checked> {
        self.at += 1;
        Ok(Checked { loss: self.losses[self.at - 1], exact: None })
    }

    fn guess(&self) -> f64 {
        1.0
    }
}

/// Ends the run after a step.
struct Until(u64);

impl Watcher for Until {
    fn step(&mut self, metrics: &Metrics, _: u64) -> Result<()> {
        if metrics.step == self.0 { Err(Error::Cancelled) } else { Ok(()) }
    }

    fn bad_row(&mut self, _: usize, why: &Error) {
        panic!("{why}");
    }

    fn saved(&mut self, _: &Path) {}
}

const RATE: f64 = 0.1;

/// Runs of ten steps with a validation after each; gives what the run says and the first weight at its end, as a share of what it was.
fn scripted(out: &Path, losses: &[f64], done: usize, until: u64, resume: bool) -> (Result<Ran>, f64) {
    let device = ocelli_kernels::open(Backend::Cpu, &DeviceOptions::default()).expect("the CPU");
    let mut cx = Ctx::new(&*device, Precision::default()).expect("a context");
    let files = ModelFiles::dir(ocelli_tests::command::demo());
    let fresh = Fresh::of(&files, 1).expect("a configuration");
    let tensors = [("w".to_owned(), vec![3, 4])];
    let (parameters, _) =
        Parameters::fresh(&mut cx, &files, &tensors, &fresh, &|_| true).expect("parameters");
    let first = f64::from(parameters.value(&mut cx, "w").expect("a weight")[0]);
    let optimizer = AdamWOptions {
        rate: RATE,
        betas: [0.9, 0.999],
        decay: 1.0,
        clip: None,
        schedule: Schedule::Constant,
        warmup: 0,
        steps: 10,
    };
    let options = RunOptions {
        optimizer,
        task: "scripted".into(),
        batch: 1,
        together: 1,
        seed: 0,
        save_every: 100,
        check_every: 1,
        patience: 2,
    };
    let rows = [TrainRow { line: 1, messages: Vec::new(), pictures: Vec::new() }];
    let job = Job {
        parameters: &parameters,
        rows: &rows,
        validation: &rows,
        options: &options,
        read: &|_, _| Ok(()),
        threads: 1,
        write: &|_, _| Ok(()),
        out,
        resume,
    };
    let mut learner = Scripted { losses: losses.to_vec(), at: done };
    let ran = run(&mut cx, &job, &mut learner, &mut Until(until));
    let last = f64::from(parameters.value(&mut cx, "w").expect("a weight")[0]);
    (ran, last / first)
}

/// What is left of a weight after so many steps.
fn decayed(steps: i32) -> f64 {
    (1.0 - RATE).powi(steps)
}

#[test]
fn a_run_ends_where_validation_gets_no_better() {
    let temp = Temp::new();
    let losses = [3.0, 2.0, 2.5, 2.0, 1.0];
    let out = temp.path("whole");
    let (ran, left) = scripted(&out, &losses, 0, 0, false);
    let ran = ran.expect("a run");
    // The fourth validation is no better than the second: that was the second in a row.
    assert_eq!((ran.steps, ran.best), (4, Some(Best { step: 2, loss: 2.0 })));
    assert!((left - decayed(2)).abs() < 1e-6, "{left}");
    // Over is over.
    let (ran, left) = scripted(&out, &losses, 4, 0, true);
    assert_eq!(ran.expect("a run").steps, 4);
    assert!((left - decayed(2)).abs() < 1e-6, "{left}");
    // Interrupted between, it ends alike.
    let out = temp.path("cut");
    let (ran, left) = scripted(&out, &losses, 0, 3, false);
    assert!(matches!(ran, Err(Error::Cancelled)) && (left - decayed(3)).abs() < 1e-6);
    let (ran, left) = scripted(&out, &losses, 3, 0, true);
    let ran = ran.expect("a run");
    assert_eq!((ran.steps, ran.resumed, ran.best), (4, 3, Some(Best { step: 2, loss: 2.0 })));
    assert!((left - decayed(2)).abs() < 1e-6, "{left}");
}

#[test]
fn a_run_that_gets_better_goes_on_to_its_end() {
    let temp = Temp::new();
    let losses = [5.0, 6.0, 4.0, 4.5, 3.0, 3.5, 2.0, 2.5, 1.0, 1.5];
    let (ran, left) = scripted(&temp.path("out"), &losses, 0, 0, false);
    let ran = ran.expect("a run");
    assert_eq!((ran.steps, ran.best), (10, Some(Best { step: 9, loss: 1.0 })));
    assert_eq!(ran.validation, Some(1.5));
    assert!((left - decayed(9)).abs() < 1e-6, "{left}");
}
