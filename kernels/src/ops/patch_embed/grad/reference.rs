//! The gradients in f64.

use super::super::size_of;
use super::PatchEmbedGrad;
use crate::op::Op;
use crate::ops::sums::{Sum, expect_rows, expect_sums};
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &PatchEmbedGrad, io: &mut Oracle) -> Result<(), KernelError> {
    let (d_out, patches, n) = (io.read(&op.d_out)?, op.d_out.size(0), op.d_out.size(1));
    if let Some(d_w) = &op.d_w {
        filters(op, d_w, &d_out, io)?;
    }
    if op.d_bias.is_some() {
        let mut sums = vec![Sum::default(); n];
        d_out.iter().enumerate().for_each(|(i, &term)| sums[i % n].add(term, 0.0));
        expect_sums(io, op.d_bias.as_ref(), &op.d_out, sums)?;
    }
    if let Some(d_pos) = &op.d_pos {
        let (per_image, limit) = (op.patches_per_image(), d_pos.size(0));
        let ids = match &op.pos_ids {
            Some(ids) => io.ints(ids)?,
            None => (0..patches).map(|p| (p % per_image) as i64).collect(),
        };
        if let Some(&index) = ids.iter().find(|&&id| id < 0 || id as usize >= limit) {
            return Err(KernelError::Index { op: PatchEmbedGrad::NAME, what: "pos_ids", index, limit });
        }
        let rows = ids.iter().map(|&id| id as usize);
        expect_rows(io, d_pos, rows, |patch, col| (d_out[patch * n + col], 0.0))?;
    }
    Ok(())
}

/// States the gradient of the filters: products of `d_out` and of pixels.
fn filters(
    op: &PatchEmbedGrad,
    d_w: &crate::buffer::View,
    d_out: &[f64],
    io: &mut Oracle,
) -> Result<(), KernelError> {
    let (pixels, before) = (io.read(&op.pixels)?, io.read(d_w)?);
    let (_, height, width) = size_of(&op.pixels);
    let (patch, per_image, across) = (op.patch, op.patches_per_image(), width / op.patch);
    let (patches, n, k) = (op.d_out.size(0), op.d_out.size(1), d_w.size(1));

    // A normalized pixel, and the size of what is subtracted for it.
    let pixel = |image: usize, c: usize, y: usize, x: usize| match op.pixels.dtype() {
        DType::U8 => {
            let (mean, std) = (f64::from(op.mean[c]), f64::from(op.std[c]));
            let value = pixels[((image * height + y) * width + x) * 3 + c];
            ((value - mean) / std, (value + mean.abs()) / std.abs())
        }
        _ => {
            let value = pixels[((image * 3 + c) * height + y) * width + x];
            (value, value.abs())
        }
    };
    let (mut sums, mut sizes): (Vec<f64>, Vec<f64>) = before.iter().map(|v| (*v, v.abs())).unzip();
    for (p, d_out) in d_out.chunks_exact(n.max(1)).enumerate() {
        let (image, place) = (p / per_image, p % per_image);
        let (top, left) = (place / across * patch, place % across * patch);
        let of = |i: usize| {
            let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
            pixel(image, c, top + y, left + x)
        };
        let (values, magnitudes): (Vec<f64>, Vec<f64>) = (0..k).map(of).unzip();
        let rows = sums.chunks_exact_mut(k).zip(sizes.chunks_exact_mut(k));
        for (&d_out, (sums, sizes)) in d_out.iter().zip(rows) {
            sums.iter_mut().zip(&values).for_each(|(sum, value)| *sum += d_out * value);
            sizes.iter_mut().zip(&magnitudes).for_each(|(sum, size)| *sum += d_out.abs() * size);
        }
    }
    let bound = |size: &f64| tolerance::dot(patches + 1, *size) + 3.0 * DType::F32.roundoff() * size;
    let errors = sizes.iter().map(bound).collect();
    io.expect(d_w, sums, errors);
    Ok(())
}

#[cfg(all(test, feature = "conformance"))]
mod tests {
    use super::*;
    use crate::conformance::{CaseCx, Fill};
    use crate::ops::{PatchEmbed, grad_check};
    use crate::spec::DType::{F32, U8};
    use crate::{View, Weights};

    #[test]
    fn gradients_are_those_of_the_forward_op() {
        let mut cx = CaseCx::new(9);
        for bytes in [true, false] {
            for ids in [true, false] {
                let levels: Vec<f64> = (0..2 * 5 * 7 * 3).map(|_| cx.below(256) as f64).collect();
                let pixels = match bytes {
                    true => cx.values(&[2, 5, 7, 3], U8, &levels),
                    false => cx.random(&[2, 3, 5, 7], F32, Fill::Normal(1.0)),
                };
                let pos_ids = ids.then(|| {
                    let ids: Vec<i32> = (0..12).map(|_| cx.below(8) as i32).collect();
                    cx.ints(&[12], &ids)
                });
                let mut random = |shape: &[usize]| -> View { cx.random(shape, F32, Fill::Normal(1.0)) };
                let (w, bias, pos) = (random(&[3, 12]), random(&[3]), random(&[8, 3]));
                let (d_w, d_bias, d_pos) = (random(&[3, 12]), random(&[3]), random(&[8, 3]));
                let (mean, std, patch) = ([127.5, 116.28, 103.53], [127.5, 57.375, 58.395], 2);
                let forward = PatchEmbed {
                    pixels: pixels.clone(),
                    w: Weights::dense(w.clone(), Some(bias.clone())).unwrap(),
                    pos: Some(pos.clone()),
                    pos_ids: pos_ids.clone(),
                    mean,
                    std,
                    patch,
                    out: random(&[12, 3]),
                };
                let backward = PatchEmbedGrad {
                    pixels,
                    pos_ids,
                    mean,
                    std,
                    patch,
                    d_out: random(&[12, 3]),
                    d_w: Some(d_w.clone()),
                    d_bias: Some(d_bias.clone()),
                    d_pos: Some(d_pos.clone()),
                };
                let results = [(&forward.out, &backward.d_out)];
                let operands = [("w", &w, &d_w), ("bias", &bias, &d_bias), ("pos", &pos, &d_pos)];
                let checked = grad_check::check(&cx, &forward, &results, &backward, &operands);
                assert_eq!(checked, Ok(()), "bytes: {bytes}, ids: {ids}");
            }
        }
    }
}
