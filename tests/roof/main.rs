//! The roofs against a C program that measures the same things in its own way.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};

use ocelli_bench::roof::{self, Roofs};
use ocelli_kernels::cpu::isa::{Isa, Level};
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
        "fma" => {
            if one {
                roofs.fma_f32_gflops_1t
            } else {
                Some(roofs.fma_f32_gflops)
            }
        }
        "int8" => {
            if one {
                roofs.int8_gops_1t
            } else {
                Some(roofs.int8_gops)
            }
        }
        "bf16" => {
            if one {
                roofs.bf16_gflops_1t
            } else {
                roofs.bf16_gflops
            }
        }
        _ => {
            if one {
                roofs.read_gbps_1t
            } else {
                Some(roofs.read_gbps)
            }
        }
    }
}

fn flags(isa: Isa) -> Vec<&'static str> {
    let (mut flags, vnni) = match isa.level() {
        Level::Scalar | Level::Neon => return vec![],
        Level::Avx2 => (vec!["-mavx2", "-mfma"], "-mavxvnni"),
        Level::Avx512 => (vec!["-mavx512f", "-mavx512bw", "-mavx512vl", "-mavx512dq"], "-mavx512vnni"),
    };
    if isa.vnni() {
        flags.push(vnni);
    }
    if isa.bf16() {
        flags.push("-mavx512bf16");
    }
    flags
}

/// Builds the C program; with fewer flags where the compiler does not know the last ones.
fn build(isa: Isa) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("roof/roof.c");
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(format!("roof-{isa}"));
    let mut flags = flags(isa);
    let base = flags.len() - usize::from(isa.vnni()) - usize::from(isa.bf16());
    loop {
        let mut command = Command::new("cc");
        command.args(["-std=gnu11", "-O3", "-pthread", "-o"]).arg(&program).arg(&source).args(&flags);
        match command.output() {
            Err(_) => return None,
            Ok(output) if output.status.success() => return Some(program),
            Ok(output) => {
                let text = String::from_utf8_lossy(&output.stderr);
                assert!(flags.len() > base, "cc failed on {}:\n{text}", source.display());
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

/// Two measurements at a time would disturb each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn at_level(level: Level) {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match Isa::at(level) {
        Err(error) => skip(level.name(), &error.to_string()),
        Ok(_) if level > Isa::detect().unwrap().level() => skip(level.name(), "OCELLI_ISA caps the level"),
        Ok(isa) => {
            not_above(isa);
            // What a machine without VNNI and BF16 would measure.
            if isa != isa.without_extensions() {
                not_above(isa.without_extensions());
            }
        }
    }
}

fn not_above(isa: Isa) {
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

#[test]
fn scalar_is_not_below_c() {
    at_level(Level::Scalar);
}

#[test]
fn avx2_is_not_below_c() {
    at_level(Level::Avx2);
}

#[test]
fn avx512_is_not_below_c() {
    at_level(Level::Avx512);
}

#[test]
fn neon_is_not_below_c() {
    at_level(Level::Neon);
}

#[test]
fn a_low_roof_is_noticed() {
    let figure = Figure { name: "fma", threads: 1, ours: 100.0, theirs: 111.0 };
    assert!(!figure.holds());
    assert!(Figure { theirs: 109.0, ..figure }.holds());
}
