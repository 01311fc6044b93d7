//! Conformance cases.

use super::Softmax;
use crate::conformance::{Case, CaseCx, Fill};
use crate::spec::DType;

pub(super) fn cases(cx: &mut CaseCx) -> Vec<Case<Softmax>> {
    use DType::{BF16, F16, F32};
    let mut all = Vec::new();
    let mut push = |name: String, op: Softmax| all.push(Case { name, op });
    for (rows, d) in [
        (0, 64),
        (3, 0),
        (1, 1),
        (2, 3),
        (5, 8),
        (3, 17),
        (7, 64),
        (2, 127),
        (13, 256),
        (3, 257),
        (2, 1031),
        (2, 4096),
        (1, 16379),
    ] {
        for fill in [Fill::Normal(3.0), Fill::Uniform(-300.0, -200.0)] {
            let op = Softmax { x: cx.random(&[rows, d], F32, fill), out: cx.output(&[rows, d], F32) };
            push(format!("{rows}x{d}, {fill:?}"), op);
        }
    }
    for x in [F32, BF16, F16] {
        for out in [F32, BF16, F16] {
            for (d, gap) in [(64, 0), (83, 5), (91, 4)] {
                let op = Softmax {
                    x: cx.random_gapped(&[4, d], x, Fill::Spiky, gap),
                    out: cx.output_gapped(&[4, d], out, gap + 1),
                };
                push(format!("{d} of {x} to {out}, gap {gap}"), op);
            }
        }
    }
    let (wide, onto) = (cx.random(&[6, 50], F32, Fill::Normal(20.0)), cx.output(&[6, 60], F32));
    if let (Ok(x), Ok(out)) = (wide.narrow(1, 9, 31), onto.narrow(1, 20, 31)) {
        push("windows".into(), Softmax { x, out });
    }
    all
}
