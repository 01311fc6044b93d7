//! Every CPU kernel of every op against its f64 reference, at every instruction-set level of the machine.

mod alone;
mod harness;
mod quant;
mod ranges;
mod readme;
mod streams;
mod views;

use std::sync::Arc;

use ocelli_kernels::conformance::{CaseCx, run_cpu};
use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::{CpuOp, Op, Oracle, for_each_op, ops};

/// Every level of this machine, with and without its optional extensions.
fn levels() -> Vec<Isa> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        all.push(isa);
        if isa != isa.without_extensions() {
            all.push(isa.without_extensions());
        }
    }
    all
}

/// Seed of the cases; each failure repeats it.
const SEED: u64 = 20;

fn conforms<O: CpuOp>() {
    let isas = levels();
    for level in Level::ALL.into_iter().filter(|level| Isa::at(*level).is_err()) {
        println!("{} at {level}: not run, this machine lacks it", O::NAME);
    }
    // More threads than cores: ranges are claimed in every order.
    for threads in [1, 3] {
        let report = run_cpu::<O>(&isas, &Arc::new(Pool::new(threads)), SEED + threads as u64);
        for (what, cases) in &report.ran {
            println!("{} {what}: {cases} cases on {threads} threads", O::NAME);
        }
        for (what, cases) in &report.skipped {
            println!("{} {what}: {cases} cases left out", O::NAME);
        }
        let failed = report.failed.len();
        let few: Vec<&str> = report.failed.iter().take(20).map(String::as_str).collect();
        assert!(failed == 0, "{failed} failed, {} passed:\n{}", report.passed, few.join("\n"));
        assert!(report.passed > 0, "{}: nothing ran", O::NAME);
    }
}

for_each_op!(tests = conforms);

/// Where rounding could change the token, any answer is right: few rows may be so.
#[test]
fn few_sampled_rows_are_ambiguous() {
    let mut cx = CaseCx::new(SEED);
    let (mut rows, mut ambiguous) = (0, 0);
    for case in ops::Sample::cases(&mut cx) {
        let mut oracle = Oracle::new(cx.id(), true);
        case.op.reference(&mut oracle).unwrap();
        for bound in oracle.into_expected().iter().flat_map(|expected| &expected.bounds) {
            rows += 1;
            ambiguous += usize::from(*bound > 0.0);
        }
    }
    println!("{ambiguous} of {rows} rows");
    assert!(rows > 300 && ambiguous * 12 < rows, "{ambiguous} of {rows}");
}
