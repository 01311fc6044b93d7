//! Loss and gradient in f64.

use super::DistillLoss;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

/// Powers of the logits of a row about its largest one, at a temperature.
struct Powers {
    /// `(x - most) / T`
    about: Vec<f64>,
    powers: Vec<f64>,
    total: f64,
    /// Error of the total, as a share of it.
    of_total: f64,
}

impl Powers {
    fn new(x: &[f64], temperature: f64) -> Self {
        let most = x.iter().copied().fold(f64::NEG_INFINITY, f64::max);
        let about: Vec<f64> = x.iter().map(|logit| (logit - most) / temperature).collect();
        let powers: Vec<f64> = about.iter().map(|about| about.exp()).collect();
        let total: f64 = powers.iter().sum();
        let mut all = Self { about, powers, total, of_total: 0.0 };
        let of_powers: f64 = (0..x.len()).map(|at| all.share_off(at)).sum();
        let lost = x.len() as f64 * f64::from(f32::MIN_POSITIVE);
        all.of_total = (of_powers + lost) / total + tolerance::dot(x.len(), 1.0);
        all
    }

    /// The rounding of `about`: of the difference, of the factor and of the product with it.
    fn off(&self, at: usize) -> f64 {
        4.0 * DType::F32.roundoff() * self.about[at].abs()
    }

    /// The error of a power: zero, where it is none.
    fn share_off(&self, at: usize) -> f64 {
        if self.powers[at] == 0.0 {
            return 0.0;
        }
        self.powers[at] * (self.off(at) + 8.0 * DType::F32.roundoff())
    }
}

pub(super) fn reference(op: &DistillLoss, io: &mut Oracle) -> Result<(), KernelError> {
    let (classes, tiny) = (op.x.size(1), f64::from(f32::MIN_POSITIVE));
    let (x, teacher, labels) = (io.read(&op.x)?, io.read(&op.teacher)?, io.ints(&op.labels)?);
    let before = match &op.dx {
        Some(dx) if op.add => io.read(dx)?,
        _ => vec![0.0; x.len()],
    };
    let (u, temperature) = (DType::F32.roundoff(), f64::from(op.temperature));
    let factor = f64::from(op.scale) * temperature;
    let (mut losses, mut of_losses) = (Vec::new(), Vec::new());
    let (mut values, mut errors) = (before.clone(), vec![0.0; x.len()]);
    for (row, &label) in labels.iter().enumerate() {
        if label < 0 {
            losses.push(0.0);
            of_losses.push(0.0);
            continue;
        }
        let range = row * classes..(row + 1) * classes;
        let p = Powers::new(&teacher[range.clone()], temperature);
        let q = Powers::new(&x[range.clone()], temperature);
        let (mut sum, mut magnitude, mut of_sum) = (0.0, 0.0, 0.0);
        for at in 0..classes {
            // Powers below the least normal number may be none, and differences are held where powers are such.
            let far = p.about[at].max(-104.0).abs() + q.about[at].abs();
            of_sum += tiny * far;
            if p.powers[at] == 0.0 {
                continue;
            }
            let gap = p.about[at] - q.about[at];
            sum += p.powers[at] * gap;
            magnitude += p.powers[at] * gap.abs();
            of_sum += p.share_off(at) * gap.abs()
                + p.powers[at] * (p.off(at) + q.off(at) + u * gap.abs() + 2.0 * u * far);
        }
        of_sum = (of_sum + tolerance::dot(classes, magnitude)) / p.total;
        let (mean, of_mean) = (sum / p.total, of_sum + magnitude / p.total * (p.of_total + 2.0 * u));
        let (of_p, of_q) = (p.total.ln(), q.total.ln());
        losses.push(temperature * temperature * (mean + of_q - of_p));
        let of_logs = p.of_total + q.of_total + 8.0 * u * (of_p + of_q);
        let rounding = 4.0 * u * (mean.abs() + of_p + of_q);
        of_losses.push(temperature * temperature * (of_mean + of_logs + rounding));
        for at in 0..classes {
            let (to, from) = (q.powers[at] / q.total, p.powers[at] / p.total);
            let of_to = q.share_off(at) / q.total + to * (q.of_total + 4.0 * u);
            let of_from = p.share_off(at) / p.total + from * (p.of_total + 4.0 * u);
            let change = factor * (to - from);
            let value = before[range.start + at] + change;
            let inner = factor.abs() * (of_to + of_from + 2.0 * u * (to + from) + 2.0 * tiny);
            values[range.start + at] = value;
            errors[range.start + at] = inner + 2.0 * u * (change.abs() + value.abs()) + tiny;
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
    use crate::ops::grad_check;

    #[test]
    fn the_gradient_is_that_of_the_loss() {
        let mut cx = CaseCx::new(3);
        for temperature in [1.0, 2.5, 0.5] {
            let shape = [3, 5];
            let forward = DistillLoss {
                x: cx.random(&shape, DType::F32, Fill::Normal(2.0)),
                teacher: cx.random(&shape, DType::F32, Fill::Normal(2.0)),
                labels: cx.ints(&[3], &[4, -100, 0]),
                temperature,
                scale: 0.25,
                loss: cx.output(&[3], DType::F32),
                dx: None,
                add: false,
            };
            // The gradient of each loss is the scale, and the gradient is added to one that is there.
            let scales = cx.values(&[3], DType::F32, &[0.25; 3]);
            let dx = cx.random(&shape, DType::F32, Fill::Normal(1.0));
            let backward = DistillLoss { dx: Some(dx.clone()), add: true, ..forward.clone() };
            let results = [(&forward.loss, &scales)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &[("x", &forward.x, &dx)]);
            assert_eq!(checked, Ok(()), "{temperature}");
        }
    }

    /// A teacher that knows one class alone gives the loss of right classes.
    #[test]
    fn a_sure_teacher_is_a_label() {
        let mut cx = CaseCx::new(1);
        let teacher: Vec<f64> = (0..5).map(|at| if at == 3 { 0.0 } else { f64::NEG_INFINITY }).collect();
        let x = cx.random(&[1, 5], DType::F32, Fill::Normal(2.0));
        let labels = cx.ints(&[1], &[3]);
        let op = DistillLoss {
            x: x.clone(),
            teacher: cx.values(&[1, 5], DType::F32, &teacher),
            labels: labels.clone(),
            temperature: 1.0,
            scale: 0.5,
            loss: cx.output(&[1], DType::F32),
            dx: Some(cx.output(&[1, 5], DType::F32)),
            add: false,
        };
        let (loss, dx) = (cx.output(&[1], DType::F32), Some(cx.output(&[1, 5], DType::F32)));
        let hard = crate::ops::CrossEntropy { x, labels, scale: 0.5, loss, dx };
        let stated = |op: &dyn Fn(&mut Oracle) -> Result<(), KernelError>| {
            let mut io = Oracle::new(cx.id(), false);
            op(&mut io).expect("a loss");
            io.into_expected().into_iter().flat_map(|one| one.values).collect::<Vec<f64>>()
        };
        use crate::op::Op;
        let (soft, hard) = (stated(&|io| op.reference(io)), stated(&|io| hard.reference(io)));
        assert_eq!(soft.len(), 6);
        for (a, b) in soft.iter().zip(&hard) {
            assert!((a - b).abs() < 1e-12, "{soft:?} and {hard:?}");
        }
    }
}
