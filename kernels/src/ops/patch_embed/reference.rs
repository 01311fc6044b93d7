//! Patch embedding in f64.

use super::PatchEmbed;
use crate::op::Op;
use crate::oracle::Oracle;
use crate::spec::{DType, KernelError, tolerance};

pub(super) fn reference(op: &PatchEmbed, io: &mut Oracle) -> Result<(), KernelError> {
    let (pixels, w, bias) = (io.read(&op.pixels)?, io.weights(&op.w)?, io.biases(&op.w)?);
    let pos = op.pos.as_ref().map(|view| io.read(view)).transpose()?;
    let ids = op.pos_ids.as_ref().map(|view| io.ints(view)).transpose()?;
    let (_, height, width) = op.size();
    let (patch, per_image, across) = (op.patch, op.patches_per_image(), width / op.patch);
    let (n, k) = (op.w.n(), op.w.k());

    // A normalized pixel, and the size of the terms that a kernel which folds the normalization into the filters adds.
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

    let picked = io.pick(op.out.len(), k);
    let (mut values, mut errors) = (Vec::with_capacity(picked.len()), Vec::with_capacity(picked.len()));
    for &index in &picked {
        let (row, col) = (index / n, index % n);
        let (image, place) = (row / per_image, row % per_image);
        let (top, left) = (place / across * patch, place % across * patch);
        let (mut sum, mut magnitude) = (bias[col], bias[col].abs());
        for (i, weight) in w[col * k..][..k].iter().enumerate() {
            let (c, y, x) = (i / (patch * patch), i / patch % patch, i % patch);
            let (value, size) = pixel(image, c, top + y, left + x);
            sum += weight * value;
            magnitude += weight.abs() * size;
        }
        if let Some(pos) = &pos {
            let id = ids.as_ref().map_or(place as i64, |ids| ids[row]);
            let limit = pos.len() / n.max(1);
            if id < 0 || id as usize >= limit {
                return Err(KernelError::Index { op: PatchEmbed::NAME, what: "pos_ids", index: id, limit });
            }
            sum += pos[id as usize * n + col];
            magnitude += pos[id as usize * n + col].abs();
        }
        values.push(sum);
        errors.push(tolerance::dot(k, magnitude) + 6.0 * DType::F32.roundoff() * magnitude);
    }
    let indices = (picked.len() < op.out.len()).then_some(picked);
    io.expect_some(&op.out, indices, values, errors);
    Ok(())
}
