//! Conformance cases.

use super::Gate;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Gate>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    {
        for shape in [
            [0, 2, 8],
            [3, 1, 0],
            [1, 1, 1],
            [5, 3, 7],
            [2, 4, 64],
            [130, 2, 33],
            [3, 1, 1031],
            [17, 16, 128],
        ] {
            let op = Gate {
                x: cx.random(&shape, F32, Fill::Spiky),
                gate: cx.random(&shape, F32, Fill::Normal(4.0)),
                out: cx.output(&shape, F32),
            };
            all.push(Case { name: format!("{shape:?}"), op });
        }
        for x in [F32, BF16, F16] {
            for (gate, out) in [(x, x), (F32, x), (x, BF16), (BF16, F32)] {
                for (d, gap) in [(27, 3), (64, 8)] {
                    let shape = [6, 3, d];
                    let op = Gate {
                        x: cx.random_gapped(&shape, x, Fill::Normal(2.0), gap),
                        gate: cx.random_gapped(&shape, gate, Fill::Spiky, gap),
                        out: cx.output_gapped(&shape, out, gap),
                    };
                    all.push(Case { name: format!("{x} by {gate} to {out}, {d} and {gap} apart"), op });
                }
            }
            // Gates beside the queries of each head, the result in place.
            let both = cx.random(&[5, 4, 48], x, Fill::Normal(2.0));
            if let Ok(gate) = both.narrow(2, 24, 24) {
                let values = cx.random(&[5, 4, 24], x, Fill::Normal(1.0));
                let op = Gate { x: values.clone(), gate, out: values };
                all.push(Case { name: format!("{x} in place, gates of heads"), op });
            }
        }
    }
    all
}
