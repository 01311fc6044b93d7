//! Ranges of keys that attention refuses.

use std::sync::Arc;

use ocelli_kernels::conformance::{Case, CaseCx, Fill};
use ocelli_kernels::cpu::CpuCx;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops::{Attention, Seen};
use ocelli_kernels::{CpuOp, DType, Op, Oracle, View};

/// A case with ranges, several rows in one of its sequences.
fn with_ranges(cx: &mut CaseCx) -> Attention {
    let suits = |op: &Attention| matches!(op.seen, Seen::Ranges { .. }) && op.q.size(0) > 2 * op.seqs();
    let Case { op, .. } = Attention::cases(cx).into_iter().find(|case| suits(&case.op)).unwrap();
    op
}

#[test]
fn ranges_of_other_rows_or_types_are_refused() {
    let mut cx = CaseCx::new(5);
    let op = with_ranges(&mut cx);
    let tokens = op.q.size(0);
    let good = cx.ints(&[tokens], &vec![1; tokens]);
    let long = cx.ints(&[tokens + 1], &vec![1; tokens + 1]);
    let flat = cx.ints(&[tokens, 1], &vec![1; tokens]);
    let floats = cx.random(&[tokens], DType::F32, Fill::Normal(1.0));
    let spec = |from: Option<&View>, to: &View| {
        Attention { seen: Seen::Ranges { from: from.cloned(), to: to.clone() }, ..op.clone() }.spec()
    };
    assert!(spec(None, &good).unwrap().ranges && spec(Some(&good), &good).unwrap().ranges);
    for bad in [&long, &flat, &floats] {
        let error = spec(None, bad).unwrap_err().to_string();
        assert!(error.contains("seen to"), "{error}");
        let error = spec(Some(bad), &good).unwrap_err().to_string();
        assert!(error.contains("seen from"), "{error}");
    }
}

#[test]
fn ranges_that_descend_are_refused() {
    let mut cx = CaseCx::new(5);
    let op = with_ranges(&mut cx);
    let tokens = op.q.size(0);
    let good = cx.ints(&[tokens], &vec![1; tokens]);
    let rows: Vec<i32> = (0..tokens).map(|row| -(row as i32)).collect();
    let descending = cx.ints(&[tokens], &rows);
    let cpu = CpuCx { isa: Isa::SCALAR, pool: Arc::new(Pool::new(1)), id: cx.id() };
    for (what, from, to) in [("seen to", &good, &descending), ("seen from", &descending, &good)] {
        let op = Attention { seen: Seen::Ranges { from: Some(from.clone()), to: to.clone() }, ..op.clone() };
        let error = op.reference(&mut Oracle::new(cx.id(), true)).unwrap_err().to_string();
        assert!(error.contains(what) && error.contains("or more after a row of"), "{error}");
        for row in Attention::cpu_variants() {
            let error = (row.launch)(&op, &cpu).unwrap_err().to_string();
            assert!(
                error.contains(what) && error.contains("or more after a row of"),
                "{}: {error}",
                row.name
            );
        }
    }
}
