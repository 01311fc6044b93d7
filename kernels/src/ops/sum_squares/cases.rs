//! Conformance cases.

use super::SumSquares;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType::F32;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<SumSquares>> {
    const BLOCK: usize = SumSquares::BLOCK;
    let mut all = Vec::new();
    for n in [0, 1, 7, 16, 100, BLOCK - 1, BLOCK, BLOCK + 1, 3 * BLOCK + 5] {
        for fill in [Fill::Normal(1.0), Fill::Spiky] {
            let op = SumSquares { x: cx.random(&[n], F32, fill), out: cx.output(&[n.div_ceil(BLOCK)], F32) };
            all.push(Case { name: format!("{n}, {fill:?}"), op });
        }
    }
    all
}
