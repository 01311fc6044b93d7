//! Loss and gradient in f64.

use super::SquaredError;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &SquaredError, io: &mut Oracle) -> Result<(), KernelError> {
    let (rows, d) = (op.x.size(0), op.x.size(1));
    let (x, target) = (io.read(&op.x)?, io.read(&op.target)?);
    let weights = op.weights.as_ref().map_or_else(|| Ok(vec![1.0; rows]), |view| io.read(view))?;
    let (u, scale, tiny) = (DType::F32.roundoff(), f64::from(op.scale), f64::from(f32::MIN_POSITIVE));
    let (mut losses, mut of_losses) = (Vec::new(), Vec::new());
    let (mut values, mut errors) = (vec![0.0; x.len()], vec![0.0; x.len()]);
    for (row, &weight) in weights.iter().enumerate() {
        if weight == 0.0 || d == 0 {
            losses.push(0.0);
            of_losses.push(0.0);
            continue;
        }
        let (share, mut sum) = (weight / d as f64, 0.0);
        for at in row * d..(row + 1) * d {
            let gap = x[at] - target[at];
            sum += gap * gap;
            values[at] = 2.0 * scale * share * gap;
            // Of the difference, of both factors and of the product with them.
            errors[at] = 6.0 * u * values[at].abs() + tiny;
        }
        losses.push(share * sum);
        // A difference is off by a share `u` of itself, its square by `2 u`; then the share and the product with it.
        of_losses.push(share.abs() * (tolerance::dot(d, sum) + 6.0 * u * sum) + tiny);
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
        let mut cx = CaseCx::new(5);
        for weighted in [false, true] {
            let shape = [3, 7];
            let forward = SquaredError {
                x: cx.random(&shape, DType::F32, Fill::Normal(1.0)),
                target: cx.random(&shape, DType::F32, Fill::Normal(1.0)),
                weights: weighted.then(|| cx.values(&[3], DType::F32, &[1.5, 0.0, -0.5])),
                scale: 0.25,
                loss: cx.output(&[3], DType::F32),
                dx: None,
            };
            let scales = cx.values(&[3], DType::F32, &[0.25; 3]);
            // Written, and not added to.
            let dx = cx.values(&shape, DType::F32, &[0.0; 21]);
            let backward = SquaredError { dx: Some(dx.clone()), ..forward.clone() };
            let results = [(&forward.loss, &scales)];
            let checked = grad_check::check(&cx, &forward, &results, &backward, &[("x", &forward.x, &dx)]);
            assert_eq!(checked, Ok(()), "{weighted}");
        }
    }
}
