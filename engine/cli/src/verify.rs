//! `ocelli verify`: stage-by-stage parity with transformers.

use std::fmt::Write;
use std::process::ExitCode;

use ocelli_bench::verify::Report;
use ocelli_kernels::DType;

use crate::args::VerifyArgs;
use crate::fail::{FAILED, Outcome, print, print_json};
use crate::open;

/// Runs the command: exit code 1 if anything is out of tolerance.
pub fn verify(args: &VerifyArgs) -> Outcome {
    let files = open::files(Some(&args.model))?;
    let (device, mut precision) = open::device(&args.device)?;
    precision.dtype = args.device.dtype.named().unwrap_or(DType::F32);
    let report = ocelli_bench::verify::verify(&files, &args.reference, &*device, precision)?;
    if args.json {
        print_json(&report)?;
    } else {
        print(&table(&report))?;
    }
    Ok(if report.pass { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn table(report: &Report) -> String {
    let mut text = format!("{} on {} in {}\n", report.model, report.backend, report.dtype);
    let word = |pass: bool| if pass { "ok" } else { "FAILED" };
    for case in &report.cases {
        let _ = writeln!(text, "\n{}: {}", case.name, word(case.pass));
        for stage in &case.stages {
            let note = stage.note.as_deref().map(|note| format!("  ({note})")).unwrap_or_default();
            let mean =
                stage.mean.map(|(mean, most)| format!(", mean {mean:.2e} of {most:.1e}")).unwrap_or_default();
            let _ = writeln!(
                text,
                "  {:<18} {:>10.2e} of {:.1e}{mean}  {}{note}",
                stage.name,
                stage.max_abs,
                stage.tolerance,
                word(stage.pass)
            );
        }
        let same = case.greedy.expected.iter().zip(&case.greedy.got).take_while(|(a, b)| a == b).count();
        let (all, counted) = (case.greedy.expected.len(), case.greedy.counted);
        let some = if counted < all { format!(", {counted} have to be") } else { String::new() };
        if all > 0 {
            let _ = writeln!(text, "  {:<18} {same} of {all} tokens equal{some}", "greedy");
        }
        let _ = writeln!(text, "  {:<18} {} compared", "stages", case.compared);
        for stage in &case.not_shown {
            let _ = writeln!(text, "  {stage:<18} not compared: the model does not show it");
        }
        if let Some(stage) = case.first_divergence() {
            let _ = writeln!(text, "  diverges first at {stage}");
        }
    }
    let passed = report.cases.iter().filter(|case| case.pass).count();
    let _ = writeln!(text, "\n{passed} of {} cases passed", report.cases.len());
    text
}
