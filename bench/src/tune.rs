//! The fastest variant of each op at each shape on one device, found by measuring: what becomes the
//! [choices](ocelli_engine::choices) that runs load.

use std::time::{Duration, Instant};

use ocelli_engine::choices::Choice;
use ocelli_kernels::Backend;

use crate::kernels::{BenchError, Cx, Ready, Step, Tower};
use crate::record::spec_text;
use crate::shapes::Shape;
use crate::stats::Plan;

/// The estimates' pick stays unless another variant takes less than this share of its time.
const CLEARLY: f64 = 0.97;
/// Turns in which the variants of a shape are timed one after another.
const ROUNDS: usize = 3;

/// What was found.
#[derive(Clone, Debug, Default)]
pub struct Found {
    /// The choices, where there is one: specs that one variant alone runs are left out.
    pub choices: Vec<Choice>,
    /// What was left out, and why.
    pub notes: Vec<String>,
}

/// Times the variants of each shape on the device of `cx`; begins no new shape after `limit`. `progress` is told of each
/// shape before it is measured.
pub fn tune(
    cx: &mut Cx,
    shapes: &[Shape],
    limit: Duration,
    progress: &mut dyn FnMut(&Shape),
) -> Result<Found, BenchError> {
    let begin = Instant::now();
    let mut found = Found::default();
    if cx.target().caps().backend != Backend::Cpu {
        // What a shape costs at least tells which are out of reach of a software device.
        cx.measure_roofs()?;
    }
    cx.be_lenient();
    for shape in shapes.iter().filter(|shape| ![Tower::OP, Step::OP].contains(&&*shape.op)) {
        if begin.elapsed() > limit {
            found.notes.push(format!("{} {}: the time is over", shape.op, shape.spec));
            continue;
        }
        progress(shape);
        let (mut ready, notes) = match cx.prepare(shape, true) {
            Ok(prepared) => prepared,
            Err(error) => {
                found.notes.push(error.to_string());
                continue;
            }
        };
        found.notes.extend(notes);
        if ready.len() < 2 {
            continue;
        }
        let times = times(cx, &mut ready)
            .map_err(|source| BenchError::Kernel { what: format!("{} {}", shape.op, shape.spec), source })?;
        found.choices.extend(choice(&shape.op, &ready, &times));
    }
    Ok(found)
}

/// Microseconds of each kernel: the least median of some turns, forwards and backwards.
fn times(cx: &mut Cx, ready: &mut [Ready]) -> Result<Vec<f64>, ocelli_kernels::KernelError> {
    let plan = Plan {
        warm_up: Duration::from_millis(5),
        time: Duration::from_millis(40),
        least: 3,
        ..Plan::default()
    };
    let mut times = vec![f64::INFINITY; ready.len()];
    for round in 0..ROUNDS {
        for at in 0..ready.len() {
            let at = if round % 2 == 0 { at } else { ready.len() - 1 - at };
            times[at] = times[at].min(cx.time(&mut ready[at], plan)?.median_us);
        }
    }
    Ok(times)
}

/// The choice among kernels that took these times; `None` without the estimates' pick, which then is wrong or fails.
fn choice(op: &str, ready: &[Ready], times: &[f64]) -> Option<Choice> {
    let (picked, estimated_us) = ready.iter().zip(times).find(|(kernel, _)| kernel.picked)?;
    let (mut best, mut us) = (picked, *estimated_us);
    for (kernel, &time) in ready.iter().zip(times) {
        if time < us && time < CLEARLY * estimated_us {
            (best, us) = (kernel, time);
        }
    }
    Some(Choice {
        op: op.to_owned(),
        spec: spec_text(&picked.spec),
        variant: best.variant.clone(),
        us,
        estimated: picked.variant.clone(),
        estimated_us: *estimated_us,
        candidates: ready.len(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::Operands;
    use ocelli_kernels::{Cost, DeviceOptions};

    fn kernel(variant: &str, picked: bool) -> Ready {
        Ready {
            variant: variant.into(),
            picked,
            spec: serde_json::Map::new(),
            cost: Cost::default(),
            sets: 1,
            waits: false,
            run: Box::new(|_, _| Ok(())),
        }
    }

    #[test]
    fn only_what_is_clearly_faster_is_chosen() {
        let ready = [kernel("a", false), kernel("b", true), kernel("c", false)];
        let chosen = |times: &[f64]| choice("op", &ready, times).unwrap().variant;
        assert_eq!(chosen(&[9.9, 10.0, 12.0]), "b");
        assert_eq!(chosen(&[5.0, 10.0, 4.0]), "c");
        assert_eq!(choice("op", &ready, &[5.0, 10.0, 6.0]).unwrap().gain(), 2.0);
        assert!(choice("op", &ready[..1], &[1.0]).is_none());
    }

    #[test]
    fn the_cpu_is_tuned() {
        let options = DeviceOptions { threads: Some(1), ..DeviceOptions::default() };
        let mut cx = Cx::on(Operands::sized(1 << 20), Backend::Cpu, &options).unwrap();
        let shape = |op: &str, spec: &str| Shape { what: "test".into(), op: op.into(), spec: spec.into() };
        let shapes = [
            shape("matmul", "m=4 n=64 k=64 w=bf16"),
            shape("matmul", "m=4 n=64 k=64 w=int3"),
            shape("norm", "rows=4 d=64"),
        ];
        let mut seen = 0;
        let found = tune(&mut cx, &shapes, Duration::from_secs(60), &mut |_| seen += 1).unwrap();
        assert_eq!(seen, 3);
        assert!(found.notes.iter().any(|note| note.contains("int3")), "{:?}", found.notes);
        for choice in &found.choices {
            assert!(choice.us > 0.0 && choice.gain() >= 1.0 && choice.candidates > 1, "{choice:?}");
        }
        let late = tune(&mut cx, &shapes, Duration::ZERO, &mut |_| ()).unwrap();
        assert!(late.choices.is_empty() && late.notes.len() == 3);
    }
}
