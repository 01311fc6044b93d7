//! Loss and gradient in f64.

use super::CrossEntropy;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &CrossEntropy, io: &mut Oracle) -> Result<(), KernelError> {
    let classes = op.x.size(1);
    let (x, labels) = (io.read(&op.x)?, io.ints(&op.labels)?);
    let (u, scale) = (DType::F32.roundoff(), f64::from(op.scale));
    let (mut losses, mut of_losses) = (Vec::new(), Vec::new());
    let (mut values, mut errors) = (Vec::with_capacity(x.len()), Vec::with_capacity(x.len()));
    for (row, &label) in labels.iter().enumerate() {
        let x = &x[row * classes..][..classes];
        if label < 0 {
            losses.push(0.0);
            of_losses.push(0.0);
            values.resize(values.len() + classes, 0.0);
            errors.resize(errors.len() + classes, 0.0);
            continue;
        }
        if label as usize >= classes {
            return Err(KernelError::Index {
                op: CrossEntropy::NAME,
                what: "label",
                index: label,
                limit: classes,
            });
        }
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let powers: Vec<f64> = x.iter().map(|logit| (logit - most).exp()).collect();
        let total: f64 = powers.iter().sum();
        // As of probabilities: what rounding a difference and its exponential do to a power, as a share of it.
        let off = |logit: f64| 2.0 * u * (logit - most).abs() + 8.0 * u;
        let of_powers: f64 = x.iter().zip(&powers).map(|(&logit, power)| off(logit) * power).sum();
        let lost = classes as f64 * f64::from(f32::MIN_POSITIVE);
        let of_total = (of_powers + lost) / total + tolerance::dot(classes, 1.0);
        let right = x[label as usize];
        losses.push(total.ln() + most - right);
        of_losses.push(of_total + 8.0 * u * total.ln() + 4.0 * u * (most.abs() + right.abs()));
        for (class, (&logit, power)) in x.iter().zip(&powers).enumerate() {
            let share = power / total;
            let hit = f64::from(u8::from(class == label as usize));
            values.push(scale * (share - hit));
            let inner = share * (off(logit) + of_total + 2.0 * u) + 2.0 * u * (share + hit);
            errors.push(scale.abs() * inner + f64::from(f32::MIN_POSITIVE));
        }
    }
    io.expect(&op.loss, losses, of_losses);
    if let Some(dx) = &op.dx {
        io.expect(dx, values, errors);
    }
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut cx = CaseCx::new(3);
        let (rows, classes) = (3, 5);
        let x: Vec<f64> =
            (0..rows * classes).map(|_| f64::from(cx.value(Fill::Normal(2.0)) as f32)).collect();
        let (labels, loss) = (cx.ints(&[rows], &[4, -100, 0]), cx.output(&[rows], DType::F32));
        let mut run = |x: &[f64]| {
            let dx = cx.output(&[rows, classes], DType::F32);
            let x = cx.values(&[rows, classes], DType::F32, x);
            let op =
                CrossEntropy { x, labels: labels.clone(), scale: 0.25, loss: loss.clone(), dx: Some(dx) };
            op.spec().expect("a spec");
            let mut io = Oracle::new(cx.id(), false);
            op.reference(&mut io).expect("a loss");
            let [loss, dx] = io.into_expected().try_into().expect("two outputs");
            (0.25 * loss.values.iter().sum::<f64>(), dx.values)
        };
        let (_, found) = run(&x);
        // Third derivatives of the loss are below 1: the differences err by less than `step^2`.
        let step = 2f64.powi(-10);
        for at in 0..x.len() {
            let mut moved = |by: f64| {
                let mut x = x.clone();
                x[at] = f64::from((x[at] + by) as f32);
                (x[at], run(&x).0)
            };
            let ((high, above), (low, below)) = (moved(step), moved(-step));
            let slope = (above - below) / (high - low);
            assert!((slope - found[at]).abs() < step * step, "{at}: {slope} and {}", found[at]);
        }
    }
}
