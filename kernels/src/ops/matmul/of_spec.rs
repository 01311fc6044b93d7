//! The op of a spec, and the blocks of it that are checked.

use super::{Matmul, MatmulSpec, RowNorm};
use crate::buffer::View;
use crate::operands::Operands;
use crate::spec::{DType, KernelError};

/// Largest matrix, in elements, that the reference decodes as a whole.
const WHOLE: usize = 1 << 24;

pub(super) fn product(spec: &MatmulSpec, operands: &mut dyn Operands) -> Result<Matmul, KernelError> {
    let (m, n, k) = (spec.m as usize, spec.n as usize, spec.k as usize);
    let w = operands.weights(spec.w, n, k, spec.parts as usize, spec.bias)?;
    let x = operands.activations(&[m, k], spec.x)?;
    let columns = match spec.heads.is_some() {
        true => (spec.heads.heads_q * spec.heads.head_dim) as usize,
        false if spec.gated => n / 2,
        false => n,
    };
    let out = operands.output(&[m, columns], spec.out)?;
    let mut op = Matmul::new(x, w, out);
    (op.act, op.gated, op.math) = (spec.act, spec.gated, spec.math);
    if spec.norm {
        let weight = operands.activations(&[k], DType::BF16)?;
        op.norm = Some(RowNorm { weight, weight_offset: 0.0, eps: 1e-5 });
    }
    if spec.heads.is_some() {
        op.heads = Some(Box::new(spec.heads.operands(m, operands)?));
    }
    op.residual = spec.residual.then(|| op.out.clone());
    Ok(op)
}

/// Blocks of rows and columns at both ends and in the middle, where the whole is too large.
pub(super) fn parts(op: &Matmul) -> Result<Vec<Matmul>, KernelError> {
    let (m, n, k) = (op.x.size(0), op.w.n(), op.w.k());
    if n * k <= WHOLE || op.gated || op.heads.is_some() || op.w.parts().len() != 1 || n < 32 {
        return Ok(vec![op.clone()]);
    }
    // Whole words of what lies along n.
    let rows = (WHOLE / 8 / k).clamp(32, n) / 32 * 32;
    let tall = 16.min(m);
    let mut all = vec![];
    for (row, top) in [(0, 0), (n / 2 / rows * rows, m - tall), ((n - rows) / 32 * 32, (m - tall) / 2)] {
        let cut = |view: &View| view.narrow(0, top, tall)?.narrow(1, row, rows);
        all.push(Matmul {
            x: op.x.narrow(0, top, tall)?,
            w: op.w.rows(row, rows)?,
            residual: op.residual.as_ref().map(cut).transpose()?,
            out: cut(&op.out)?,
            ..op.clone()
        });
    }
    Ok(all)
}
