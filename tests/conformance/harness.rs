//! Conformance must fail: an op whose kernels are wrong, each in its own way.

use std::sync::Arc;

use ocelli_kernels::conformance::{Case, CaseCx, Fill, run_cpu};
use ocelli_kernels::cpu::CpuCx;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops::ScatterRowsSpec;
use ocelli_kernels::{Access, CpuLaunch, CpuOp, DType, KernelError, Op, Oracle, ShapeError, Variant, View};

/// `out = 2 x`, `[rows, d]`.
#[derive(Clone)]
struct Double {
    x: View,
    out: View,
}

impl Op for Double {
    const NAME: &'static str = "double";
    type Spec = ScatterRowsSpec;

    fn spec(&self) -> Result<ScatterRowsSpec, ShapeError> {
        Ok(ScatterRowsSpec { count: self.x.size(0) as u32, d: self.x.size(1) as u32, ..Default::default() })
    }

    fn cost(&self) -> ocelli_kernels::Cost {
        ocelli_kernels::Cost::default()
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::Out, &mut self.out);
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        let values: Vec<f64> = io.read(&self.x)?.iter().map(|x| 2.0 * x).collect();
        let exact = vec![0.0; values.len()];
        io.expect(&self.out, values, exact);
        Ok(())
    }

    fn cases(cx: &mut CaseCx) -> Vec<Case<Self>> {
        let x = cx.random_gapped(&[3, 5], DType::F32, Fill::Normal(1.0), 2);
        vec![Case { name: "gapped".into(), op: Self { x, out: cx.output_gapped(&[3, 5], DType::F32, 4) } }]
    }
}

/// Doubles the rows `rows`, then changes what the kernel gets wrong: element `at` of row 0, counted in memory.
fn double(
    op: &Double,
    cx: &CpuCx,
    rows: std::ops::Range<usize>,
    wrong: Option<(isize, f32)>,
) -> Result<(), KernelError> {
    let (x, out) = (cx.input::<f32>(&op.x)?, cx.output::<f32>(&op.out)?);
    for row in rows {
        for col in 0..op.x.size(1) {
            // SAFETY: an element of each view.
            unsafe { *out.add(row * op.out.stride(0) + col) = 2.0 * *x.add(row * op.x.stride(0) + col) };
        }
    }
    if let Some((at, value)) = wrong {
        // SAFETY: an element of the view, or one of the 64 guard bytes around it.
        unsafe { *out.offset(at) = value };
    }
    Ok(())
}

impl CpuOp for Double {
    fn cpu_variants() -> &'static [Variant<ScatterRowsSpec, CpuLaunch<Self>>] {
        const fn row(
            name: &'static str,
            launch: CpuLaunch<Double>,
        ) -> Variant<ScatterRowsSpec, CpuLaunch<Double>> {
            Variant { name, reject: |_, _| None, est_us: |_, _| 1.0, launch }
        }
        const {
            &[
                row("right", |op, cx| double(op, cx, 0..3, None)),
                row("wrong-value", |op, cx| double(op, cx, 0..3, Some((4, 7.0)))),
                row("before", |op, cx| double(op, cx, 0..3, Some((-1, 0.0)))),
                row("gap", |op, cx| double(op, cx, 0..3, Some((5, 0.0)))),
                row("behind", |op, cx| double(op, cx, 0..3, Some((23, 0.0)))),
                row("input", |op, cx| {
                    // SAFETY: the first element of the input.
                    unsafe { *cx.output::<f32>(&op.x)? += 1.0 };
                    double(op, cx, 0..3, None)
                }),
                row("unwritten", |op, cx| double(op, cx, 1..3, None)),
                row("error", |_, _| Err(KernelError::ReadOnly)),
                Variant {
                    reject: |_, _| Some("never runs".into()),
                    ..row("rejected", |op, cx| double(op, cx, 0..0, None))
                },
            ]
        }
    }
}

#[test]
fn wrong_kernels_are_caught() {
    let report = run_cpu::<Double>(&[Isa::SCALAR], &Arc::new(Pool::new(1)), 3);
    assert_eq!(report.passed, 1, "{:?}", report.failed);
    let caught = [
        ("wrong-value", "element 4 of"),
        ("before", "was overwritten"),
        ("gap", "was overwritten"),
        ("behind", "was overwritten"),
        ("input", "was overwritten"),
        ("unwritten", "found NaN"),
        ("error", "read-only"),
    ];
    assert_eq!(report.failed.len(), caught.len(), "{:?}", report.failed);
    for (failure, (variant, what)) in report.failed.iter().zip(caught) {
        assert!(failure.contains(&format!(": {variant} at scalar")) && failure.contains(what), "{failure}");
        assert!(failure.contains("double `gapped` (seed 3)"), "{failure}");
    }
    assert_eq!(
        report.skipped.into_iter().collect::<Vec<_>>(),
        [("rejected at scalar: never runs".into(), 1)]
    );
    assert_eq!(report.ran["right at scalar"], 1);
}

/// An op without a kernel, and without a case.
#[derive(Clone)]
struct Empty;

impl Op for Empty {
    const NAME: &'static str = "empty";
    type Spec = ScatterRowsSpec;

    fn spec(&self) -> Result<ScatterRowsSpec, ShapeError> {
        Ok(ScatterRowsSpec::default())
    }

    fn cost(&self) -> ocelli_kernels::Cost {
        ocelli_kernels::Cost::default()
    }

    fn visit(&mut self, _: &mut dyn FnMut(Access, &mut View)) {}

    fn reference(&self, _: &mut Oracle) -> Result<(), KernelError> {
        Ok(())
    }

    fn cases(_: &mut CaseCx) -> Vec<Case<Self>> {
        vec![Case { name: "no kernel".into(), op: Self }]
    }
}

impl CpuOp for Empty {
    fn cpu_variants() -> &'static [Variant<ScatterRowsSpec, CpuLaunch<Self>>] {
        &[]
    }
}

#[test]
fn an_op_without_kernels_fails() {
    let report = run_cpu::<Empty>(&[Isa::SCALAR], &Arc::new(Pool::new(1)), 1);
    assert_eq!(report.passed, 0);
    assert!(report.failed[0].contains("no CPU kernels"), "{:?}", report.failed);
    assert!(report.failed[1].contains("no variant runs"), "{:?}", report.failed);
}
