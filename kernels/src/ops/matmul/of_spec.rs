//! The op of a spec, and the blocks of it that are checked.

use super::{Matmul, MatmulSpec, RowNorm};
use crate::buffer::{View, Weights};
use crate::operands::Operands;
use crate::spec::{DType, KernelError, ShapeError};

/// Largest matrix, in elements, that the reference decodes as a whole.
const WHOLE: usize = 1 << 24;

pub(super) fn product(spec: &MatmulSpec, operands: &mut dyn Operands) -> Result<Matmul, KernelError> {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let w = operands.weights(spec.w, n, k, spec.parts as usize, spec.bias)?;
    let x = operands.activations(&[m, k], spec.x)?;
    let out = operands.output(&[m, if spec.gated { n / 2 } else { n }], spec.out)?;
    let mut op = Matmul::new(x, w, out);
    (op.act, op.gated, op.math) = (spec.act, spec.gated, spec.math);
    if spec.norm {
        let weight = operands.activations(&[k], DType::BF16)?;
        op.norm = Some(RowNorm { weight, weight_offset: 0.0, eps: 1e-5 });
    }
    op.residual = spec.residual.then(|| op.out.clone());
    Ok(op)
}

/// Blocks of rows and columns at both ends and in the middle, where the whole is too large.
pub(super) fn parts(op: &Matmul) -> Result<Vec<Matmul>, KernelError> {
    let (m, n, k) = (op.x.size(0), op.w.n(), op.w.k());
    let [part] = op.w.parts() else { return Ok(vec![op.clone()]) };
    if n * k <= WHOLE || op.gated || part.planes.len() > 2 {
        return Ok(vec![op.clone()]);
    }
    let rows = (WHOLE / 8 / k).clamp(16, n);
    let tall = 16.min(m);
    let mut all = vec![];
    for (row, top) in [(0, 0), (n / 2 / rows * rows, m - tall), (n - rows, (m - tall) / 2)] {
        let planes = part.planes.iter().map(|plane| plane.narrow(0, row, rows));
        let bias = part.bias.as_ref().map(|bias| bias.narrow(0, row, rows)).transpose()?;
        let planes = planes.collect::<Result<Vec<View>, ShapeError>>()?;
        let cut = |view: &View| view.narrow(0, top, tall)?.narrow(1, row, rows);
        all.push(Matmul {
            x: op.x.narrow(0, top, tall)?,
            w: Weights::new(op.w.format(), rows, k, planes, bias)?,
            residual: op.residual.as_ref().map(cut).transpose()?,
            out: cut(&op.out)?,
            ..op.clone()
        });
    }
    Ok(all)
}
