//! Conformance must fail: an op whose kernels are wrong, each in its own way.

use std::sync::Arc;

use ocelli_kernels::conformance::{Case, CaseCx, Fill, Part, Report, run_cpu};
use ocelli_kernels::cpu::CpuCx;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops::ScatterRowsSpec;
use ocelli_kernels::{
    Access, Backend, Caps, CpuLaunch, CpuOp, CpuRows, DType, KernelError, Op, Operands, Oracle, Picks,
    ShapeError, Variant, View,
};

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

    fn of_spec(_: &ScatterRowsSpec, _: &mut dyn Operands) -> Result<Self, KernelError> {
        Err(KernelError::ReadOnly)
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
    fn cpu_variants() -> CpuRows<Self> {
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

/// `out = x`, of a right kernel, with each of several references that say nothing in its second element.
#[derive(Clone)]
struct Vague {
    x: View,
    out: View,
    value: f64,
    error: f64,
    /// Values that the reference leaves out at the end.
    missing: usize,
}

impl Op for Vague {
    const NAME: &'static str = "vague";
    type Spec = ScatterRowsSpec;

    fn spec(&self) -> Result<ScatterRowsSpec, ShapeError> {
        Ok(ScatterRowsSpec { d: self.x.size(0) as u32, ..Default::default() })
    }

    fn cost(&self) -> ocelli_kernels::Cost {
        ocelli_kernels::Cost::default()
    }

    fn visit(&mut self, visit: &mut dyn FnMut(Access, &mut View)) {
        visit(Access::In, &mut self.x);
        visit(Access::Out, &mut self.out);
    }

    fn of_spec(_: &ScatterRowsSpec, _: &mut dyn Operands) -> Result<Self, KernelError> {
        Err(KernelError::ReadOnly)
    }

    fn reference(&self, io: &mut Oracle) -> Result<(), KernelError> {
        let mut values = io.read(&self.x)?;
        values[1] = self.value;
        values.truncate(values.len() - self.missing);
        let mut errors = vec![0.0; values.len()];
        errors[1] = self.error;
        io.expect(&self.out, values, errors);
        Ok(())
    }

    fn cases(cx: &mut CaseCx) -> Vec<Case<Self>> {
        let (nan, inf) = (f64::NAN, f64::INFINITY);
        let mut case = |name: &str, x: f64, value, error, missing| {
            let x = cx.values(&[3], DType::F32, &[1.0, x, 3.0]);
            let op = Self { x, out: cx.output(&[3], DType::F32), value, error, missing };
            Case { name: name.into(), op }
        };
        vec![
            case("right", 2.0, 2.0, 0.0, 0),
            case("value NaN", 2.0, nan, 0.0, 0),
            case("value and result NaN", nan, nan, 0.0, 0),
            case("bound NaN", 2.0, 2.0, nan, 0),
            case("bound infinite", 2.0, 2.0, inf, 0),
            case("bound negative", 2.0, 2.0, -1.0, 0),
            case("values missing", 2.0, 2.0, 0.0, 1),
            case("infinity is wanted and found", inf, inf, 0.0, 0),
            case("infinity is wanted", 2.0, inf, 0.0, 0),
            case("the other infinity is wanted", inf, -inf, 0.0, 0),
            case("a number is wanted, infinity found", -inf, 2.0, 0.0, 0),
        ]
    }
}

impl CpuOp for Vague {
    fn cpu_variants() -> &'static [Variant<ScatterRowsSpec, CpuLaunch<Self>>] {
        const {
            &[Variant {
                name: "copy",
                reject: |_, _| None,
                est_us: |_, _| 1.0,
                launch: |op, cx| {
                    let (x, out) = (cx.input::<f32>(&op.x)?, cx.output::<f32>(&op.out)?);
                    // SAFETY: both views have so many elements.
                    unsafe { std::ptr::copy_nonoverlapping(x, out, op.x.len()) };
                    Ok(())
                },
            }]
        }
    }
}

#[test]
fn references_that_cannot_fail_a_kernel_are_caught() {
    let report = run_cpu::<Vague>(&[Isa::SCALAR], &Arc::new(Pool::new(1)), 3);
    let caught = [
        ("value NaN", "reference of element 1 of"),
        ("value and result NaN", "reference of element 1 of"),
        ("bound NaN", "within NaN"),
        ("bound infinite", "within inf"),
        ("bound negative", "reference of element 1 of"),
        ("values missing", "expected 3 values and bounds, found 2 and 2"),
        ("infinity is wanted", "expected inf within"),
        ("the other infinity is wanted", "expected -inf within"),
        ("a number is wanted, infinity found", "found -inf"),
    ];
    assert_eq!(report.failed.len(), caught.len(), "{:?}", report.failed);
    for (failure, (case, what)) in report.failed.iter().zip(caught) {
        assert!(failure.contains(&format!("`{case}`")) && failure.contains(what), "{failure}");
    }
    assert_eq!(report.passed, 2, "a right reference, and an infinity where it is wanted");
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

    fn of_spec(_: &ScatterRowsSpec, _: &mut dyn Operands) -> Result<Self, KernelError> {
        Err(KernelError::ReadOnly)
    }

    fn reference(&self, _: &mut Oracle) -> Result<(), KernelError> {
        Ok(())
    }

    fn cases(_: &mut CaseCx) -> Vec<Case<Self>> {
        vec![Case { name: "no kernel".into(), op: Self }]
    }
}

impl CpuOp for Empty {
    fn cpu_variants() -> CpuRows<Self> {
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

#[test]
fn each_case_belongs_to_one_part() {
    let names = ["a", "b", "c"];
    for case in 0..100 {
        let count = names.iter().filter(|name| Part::named(name, &names).has(case)).count();
        assert!(count == 1 && Part::WHOLE.has(case), "case {case}");
    }
    assert!(names.iter().all(|name| (0..100).any(|case| Part::named(name, &names).has(case))));
}

/// An op may have no kernels for a backend, with a reason: that is told and is no failure.
#[test]
fn an_absent_op_is_told_with_its_reason() {
    let report = Report { absent: Some("nobody asked"), ..Report::default() };
    report.settle("empty", false);
    let nothing = std::panic::catch_unwind(|| Report::default().settle("empty", false));
    assert!(nothing.is_err(), "a run of nothing without a reason passes");
    let caps = Caps { backend: Backend::Cuda, ..Caps::default() };
    let spec = ScatterRowsSpec::default();
    let chosen = Picks::default().choose::<_, ()>("empty", Err("nobody asked"), &spec, &caps);
    let said = chosen.err().map(|error| error.to_string()).unwrap_or_default();
    assert!(said.contains("no cuda kernel") && said.contains("nobody asked"), "{said}");
}
