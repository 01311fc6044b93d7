//! The gradients in f64.

use super::NormGrad;
use crate::ops::NormKind;
use crate::ops::sums::{Sum, expect_sums};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &NormGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (d, layer) = (op.x.size(1), op.kind == NormKind::Layer);
    let (x, d_out) = (io.read(&op.x)?, io.read(&op.d_out)?);
    let offset = f64::from(op.weight_offset);
    let weight = op.weight.as_ref().map_or(Ok(vec![1.0 - offset; d]), |view| io.read(view))?;
    let u = DType::F32.roundoff();

    let mut dx = vec![Sum::default(); x.len()];
    let (mut d_weight, mut d_bias) = (vec![Sum::default(); d], vec![Sum::default(); d]);
    for (row, (x, d_out)) in x.chunks_exact(d.max(1)).zip(d_out.chunks_exact(d.max(1))).enumerate() {
        let count = d as f64;
        let average = |of: &dyn Fn(usize) -> f64| (0..d).map(of).sum::<f64>() / count;
        let mean = if layer { average(&|i| x[i]) } else { 0.0 };
        let var = average(&|i| (x[i] - mean).powi(2));
        let scale = 1.0 / (var + f64::from(op.eps)).sqrt();
        // As for the forward op.
        let mean_error = if layer { tolerance::dot(d, average(&|i| x[i].abs())) } else { 0.0 };
        let centred_error = |i: usize| 2.0 * u * (x[i].abs() + mean.abs()) + mean_error;
        let rms_error = average(&|i| centred_error(i).powi(2)).sqrt();
        let scale_error = tolerance::dot(d, 1.0) + rms_error * scale + 4.0 * u;
        let unit = |i: usize| (x[i] - mean) * scale;
        let unit_error = |i: usize| centred_error(i) * scale + unit(i).abs() * (scale_error + u);

        // Products of factors that err, and sums of them.
        let g = |i: usize| d_out[i] * (weight[i] + offset);
        let g_error = |i: usize| 2.0 * u * d_out[i].abs() * (weight[i].abs() + offset.abs());
        let mean_g = if layer { average(&g) } else { 0.0 };
        let mean_g_error =
            if layer { average(&g_error) + tolerance::dot(d, average(&|i| g(i).abs())) } else { 0.0 };
        let along = average(&|i| g(i) * unit(i));
        let along_error = average(&|i| g_error(i) * unit(i).abs() + g(i).abs() * unit_error(i))
            + tolerance::dot(d, average(&|i| (g(i) * unit(i)).abs()));
        for i in 0..d {
            let inner = g(i) - mean_g - unit(i) * along;
            let size = g(i).abs() + mean_g.abs() + (unit(i) * along).abs();
            let inner_error = g_error(i)
                + mean_g_error
                + unit_error(i) * (along.abs() + along_error)
                + unit(i).abs() * along_error
                + 3.0 * u * size;
            let error = scale * (inner_error + (inner.abs() + inner_error) * (scale_error + u));
            dx[row * d + i].add(scale * inner, error);
            let term = d_out[i] * unit(i);
            d_weight[i].add(term, d_out[i].abs() * unit_error(i) + u * term.abs());
            d_bias[i].add(d_out[i], 0.0);
        }
    }
    for (view, sums) in [(&op.dx, dx), (&op.d_weight, d_weight), (&op.d_bias, d_bias)] {
        expect_sums(io, view.as_ref(), &op.d_out, sums)?;
    }
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::buffer::View;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{Norm, grad_check};

    #[test]
    fn gradients_are_those_of_the_forward_op() {
        let mut cx = CaseCx::new(1);
        for kind in [NormKind::Rms, NormKind::Layer] {
            for in_place in [false, true] {
                let mut random =
                    |shape: &[usize]| -> View { cx.random(shape, DType::F32, Fill::Normal(1.0)) };
                let (x, weight, bias) = (random(&[3, 5]), random(&[5]), random(&[5]));
                let (d_out, dx, d_weight, d_bias) =
                    (random(&[3, 5]), random(&[3, 5]), random(&[5]), random(&[5]));
                let forward = Norm {
                    x,
                    add: None,
                    sum: None,
                    weight: Some(weight.clone()),
                    bias: Some(bias.clone()),
                    kind,
                    weight_offset: 0.5,
                    eps: 0.25,
                    out: random(&[3, 5]),
                };
                let backward = NormGrad {
                    x: forward.x.clone(),
                    weight: forward.weight.clone(),
                    kind,
                    weight_offset: 0.5,
                    eps: 0.25,
                    dx: Some(if in_place { d_out.clone() } else { dx.clone() }),
                    d_out: d_out.clone(),
                    d_weight: Some(d_weight.clone()),
                    d_bias: Some(d_bias.clone()),
                };
                let dx = if in_place { &d_out } else { &dx };
                let operands =
                    [("x", &forward.x, dx), ("weight", &weight, &d_weight), ("bias", &bias, &d_bias)];
                let checked =
                    grad_check::check(&cx, &forward, &[(&forward.out, &d_out)], &backward, &operands);
                assert_eq!(checked, Ok(()), "{kind:?}, in place: {in_place}");
            }
        }
    }
}
