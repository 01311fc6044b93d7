//! The roofs against a C program that measures the same things in its own way.

use std::path::{Path, PathBuf};
use std::process::Command;

use ocelli_bench::roof::{self, Isa, Roofs};
use ocelli_tests::skip;

/// How far the C program may be above our roof.
const MARGIN: f64 = 1.10;

/// Both measure in turns until our best is within the margin of its best, at most this often.
const TURNS: usize = 6;

#[derive(Clone, Debug)]
struct Figure {
    name: &'static str,
    threads: usize,
    ours: f64,
    theirs: f64,
}

impl Figure {
    fn holds(&self) -> bool {
        self.theirs <= MARGIN * self.ours
    }
}

fn figures(threads: usize) -> Vec<Figure> {
    let mut all = vec![];
    for name in ["fma", "int8", "bf16", "read"] {
        for threads in [1, threads] {
            all.push(Figure { name, threads, ours: 0.0, theirs: 0.0 });
        }
    }
    all
}

/// Our figure, or `None` where the level has no such instruction.
fn ours(roofs: &Roofs, name: &str, threads: usize) -> Option<f64> {
    let one = threads == 1;
    match name {
        "fma" => Some(if one { roofs.fma_f32_gflops_1t } else { roofs.fma_f32_gflops }),
        "int8" => Some(if one { roofs.int8_gops_1t } else { roofs.int8_gops }),
        "bf16" => {
            if one {
                roofs.bf16_gflops_1t
            } else {
                roofs.bf16_gflops
            }
        }
        _ => Some(if one { roofs.read_gbps_1t } else { roofs.read_gbps }),
    }
}

fn flags(isa: Isa) -> Vec<&'static str> {
    match isa {
        Isa::Scalar | Isa::Neon => vec![],
        Isa::Avx2 => vec!["-mavx2", "-mfma"],
        Isa::Avx512 => {
            let mut flags = vec!["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"];
            #[cfg(target_arch = "x86_64")]
            {
                if is_x86_feature_detected!("avx512vnni") {
                    flags.push("-mavx512vnni");
                }
                if is_x86_feature_detected!("avx512bf16") {
                    flags.push("-mavx512bf16");
                }
            }
            flags
        }
    }
}

/// Builds the C program; with fewer flags where the compiler does not know the last ones.
fn build(isa: Isa) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("roof/roof.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("roof-{isa}"));
    let mut flags = flags(isa);
    loop {
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O3", "-pthread", "-o"]).arg(&program).arg(&source).args(&flags);
        match command.output() {
            Err(_) => return None,
            Ok(output) if output.status.success() => return Some(program),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                assert!(flags.len() > 2 && isa == Isa::Avx512, "cc failed on {}:\n{text}", source.display());
                flags.pop();
            }
        }
    }
}

fn run(program: &Path, threads: usize, name: &str) -> Option<f64> {
    let output = Command::new(program).args([&threads.to_string(), name, "0.3"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if text.trim() == "none" { None } else { Some(text.trim().parse().unwrap()) }
}

fn not_above(isa: Isa) {
    if !Isa::available().contains(&isa) || isa_is_capped(isa) {
        return skip(isa.name(), "this machine or OCELLI_ISA does not have the level");
    }
    let Some(program) = build(isa) else {
        return skip("cc", "no C compiler, the roofs are held against nothing");
    };
    let threads = roof::default_threads();
    let mut open = figures(threads);
    for turn in 1..=TURNS {
        let roofs = roof::measure(isa, threads);
        open.retain_mut(|figure| {
            let (Some(ours), Some(theirs)) =
                (ours(&roofs, figure.name, figure.threads), run(&program, figure.threads, figure.name))
            else {
                return false;
            };
            assert!(ours > 0.0 && theirs > 0.0, "{isa}: {figure:?}: {ours} {theirs}");
            figure.ours = figure.ours.max(ours);
            figure.theirs = figure.theirs.max(theirs);
            println!("{isa} turn {turn}: {figure:?}");
            !figure.holds()
        });
        if open.is_empty() {
            return;
        }
    }
    panic!("{isa}: the C program measures more than 10% above the roof: {open:?}");
}

fn isa_is_capped(isa: Isa) -> bool {
    let order = |l: Isa| Isa::available().iter().position(|&a| a == l);
    order(isa) > order(Isa::current())
}

#[test]
fn scalar_is_not_below_c() {
    not_above(Isa::Scalar);
}

#[test]
fn avx2_is_not_below_c() {
    not_above(Isa::Avx2);
}

#[test]
fn avx512_is_not_below_c() {
    not_above(Isa::Avx512);
}

#[test]
fn neon_is_not_below_c() {
    not_above(Isa::Neon);
}

#[test]
fn a_low_roof_is_noticed() {
    let figure = Figure { name: "fma", threads: 1, ours: 100.0, theirs: 111.0 };
    assert!(!figure.holds());
    assert!(Figure { theirs: 109.0, ..figure }.holds());
}
