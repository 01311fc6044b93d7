//! Every CPU kernel of every op against its f64 reference, at each instruction-set level of the machine.

use std::sync::Arc;

use ocelli_kernels::CpuOp;
use ocelli_kernels::conformance::run_cpu;
use ocelli_kernels::cpu::isa::Isa;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::ops;

/// Levels to run at: all that the machine has, each also without its optional extensions.
fn isas() -> Vec<Isa> {
    let mut all = Vec::new();
    for isa in Isa::available() {
        all.push(isa);
        if isa.without_extensions() != isa {
            all.push(isa.without_extensions());
        }
    }
    all
}

fn conforms<O: CpuOp>() {
    for threads in [1, 3] {
        let report = run_cpu::<O>(&isas(), &Arc::new(Pool::new(threads)), 1);
        assert!(
            report.failed.is_empty(),
            "{} of {} failed, the first:\n{}",
            report.failed.len(),
            report.failed.len() + report.passed,
            report.failed.iter().take(12).cloned().collect::<Vec<_>>().join("\n")
        );
        assert!(report.passed > 0);
        for (what, count) in report.ran.iter().chain(&report.skipped) {
            println!("{}, {threads} threads: {what}: {count}", O::NAME);
        }
    }
}

#[test]
fn matmul() {
    conforms::<ops::Matmul>();
}
