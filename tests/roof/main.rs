//! The roofs against a C program that measures the same things in its own way.
//!
//! What a machine gives changes from one second to the next. So the C program is measured between two measurements of
//! ours, and counts only where those two agree: then all three saw the same machine. Bandwidth of several threads depends
//! on where the host of a virtual machine puts its processors, which may go with the process; there the C loop is called
//! from our threads, window by window in turns with ours.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use ocelli_bench::roof::{self, Figure, Meter};
use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_tests::skip;

/// How far the C program may be above our roof.
const MARGIN: f64 = 1.10;
/// How far our figures before and after the C program may be apart for the three to count.
const STEADY: f64 = 1.06;
/// Turns that must count at least.
const LEAST: usize = 3;
/// Turns of which the median is final.
const ENOUGH: usize = 7;
/// How long one of our measurements may take.
const OURS: Duration = Duration::from_millis(400);
/// How long turns of one figure may go on.
const PATIENCE: Duration = Duration::from_secs(12);
/// How long the turns of a level may go on. What is left then gets as many turns as it needs if all count.
const ALL: Duration = Duration::from_secs(30);

/// The C program between two measurements of ours.
#[derive(Clone, Copy, Debug)]
struct Turn {
    before: f64,
    theirs: f64,
    after: f64,
}

impl Turn {
    /// How far the C program is above ours, if the machine stayed the same.
    fn ratio(&self) -> Option<f64> {
        let (low, high) = (self.before.min(self.after), self.before.max(self.after));
        (high <= STEADY * low).then(|| 2.0 * self.theirs / (low + high))
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Verdict {
    /// The median of the turns that count is within the margin.
    Holds,
    /// It is above.
    Above(f64),
    /// Too few turns count.
    Open,
}

fn verdict(turns: &[Turn]) -> Verdict {
    let ratios: Vec<f64> = turns.iter().filter_map(Turn::ratio).collect();
    if ratios.len() < LEAST {
        return Verdict::Open;
    }
    match median(ratios) {
        median if median <= MARGIN => Verdict::Holds,
        median => Verdict::Above(median),
    }
}

fn median(mut ratios: Vec<f64>) -> f64 {
    ratios.sort_by(f64::total_cmp);
    ratios[ratios.len() / 2]
}

/// The C program's figure in ours, over the turns that count.
fn median_ratio(turns: &[Turn]) -> Option<f64> {
    let ratios: Vec<f64> = turns.iter().filter_map(Turn::ratio).collect();
    (!ratios.is_empty()).then(|| median(ratios))
}

/// Takes turns until the verdict is final. `None` where the level has no such instruction.
fn turns(
    patience: Duration,
    ours: impl Fn() -> Option<f64>,
    theirs: impl Fn() -> Option<f64>,
) -> Option<Vec<Turn>> {
    let start = Instant::now();
    let mut turns = vec![];
    let mut before = ours()?;
    loop {
        let (theirs, after) = (theirs()?, ours()?);
        assert!(before > 0.0 && theirs > 0.0 && after > 0.0, "{before} {theirs} {after}");
        turns.push(Turn { before, theirs, after });
        before = after;
        let counted = turns.iter().filter_map(Turn::ratio).count();
        let settled = counted >= ENOUGH || verdict(&turns) == Verdict::Holds;
        if settled || turns.len() >= LEAST && start.elapsed() >= patience {
            return Some(turns);
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
    if isa.amx() {
        flags.extend(["-mamx-tile", "-mamx-bf16"]);
    }
    flags
}

/// Builds the C program, or with `-shared` its library; with fewer flags where the compiler does not know the last ones.
fn build(isa: Isa, kind: &[&str]) -> Option<PathBuf> {
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("roof/roof.c");
    let name = format!("roof-{isa}{}", if kind.is_empty() { "" } else { ".so" });
    let program = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    let mut flags = flags(isa);
    let base = flags.len() - usize::from(isa.vnni()) - usize::from(isa.bf16()) - 2 * usize::from(isa.amx());
    loop {
        let mut command = Command::new("cc");
        command
            .args(["-std=gnu11", "-O3", "-pthread", "-o"])
            .arg(&program)
            .arg(&source)
            .args(kind)
            .args(&flags);
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
    let output = Command::new(program).args([&threads.to_string(), name, "0.2"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    if text.trim() == "none" { None } else { Some(text.trim().parse().unwrap()) }
}

/// The read loop of the C program.
#[cfg(unix)]
struct ReadLoop(extern "C" fn(*const u8, usize) -> f64);

#[cfg(unix)]
impl ReadLoop {
    fn new(isa: Isa) -> Option<ReadLoop> {
        let library = build(isa, &["-shared", "-fPIC"])?;
        let path = std::ffi::CString::new(library.to_str()?).ok()?;
        // SAFETY: the library has no constructors; it stays loaded.
        let function = unsafe {
            let library = libc::dlopen(path.as_ptr(), libc::RTLD_NOW | libc::RTLD_LOCAL);
            assert!(!library.is_null(), "{path:?} does not load");
            libc::dlsym(library, c"roof_read".as_ptr())
        };
        assert!(!function.is_null());
        // SAFETY: `roof_read` has this type in roof.c.
        Some(ReadLoop(unsafe {
            std::mem::transmute::<*mut libc::c_void, extern "C" fn(*const u8, usize) -> f64>(function)
        }))
    }

    /// Ours before, theirs, and ours again.
    fn turns(&self, meter: &Meter, threads: usize, factor: f64) -> Vec<Turn> {
        let mut turns = vec![];
        while turns.len() < LEAST || turns.len() < ENOUGH && verdict(&turns) != Verdict::Holds {
            // The loop takes 256 bytes at a time.
            let theirs = |bytes: &[u8]| {
                (self.0)(bytes.as_ptr(), bytes.len() / 256 * 256);
            };
            let (ours, theirs) = meter.read_beside(threads, 2 * OURS, &theirs);
            turns.push(Turn { before: factor * ours, theirs, after: factor * ours });
        }
        turns
    }
}

/// Two measurements at a time would disturb each other.
static MACHINE: Mutex<()> = Mutex::new(());

fn at_level(level: Level) {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    match Isa::at(level) {
        Err(error) => skip(level.name(), &error.to_string()),
        Ok(_) if level > Isa::detect().unwrap().level() => skip(level.name(), "OCELLI_ISA caps the level"),
        Ok(isa) => {
            not_above(isa, &FIGURES);
            // What a machine without VNNI and BF16 would measure differently.
            if isa != isa.without_extensions() {
                not_above(isa.without_extensions(), &[(Figure::Int8, "int8")]);
            }
        }
    }
}

const FIGURES: [(Figure, &str); 4] =
    [(Figure::FmaF32, "fma"), (Figure::Int8, "int8"), (Figure::Bf16, "bf16"), (Figure::Read, "read")];

fn not_above(isa: Isa, figures: &[(Figure, &str)]) {
    let Some(program) = build(isa, &[]) else {
        return skip("cc", "no C compiler, the roofs are held against nothing");
    };
    let meter = Meter::new(isa);
    let all = roof::default_threads();
    let start = Instant::now();
    let mut above = vec![];
    for &(figure, name) in figures {
        for threads in [1, all] {
            let patience = PATIENCE.min(ALL.saturating_sub(start.elapsed()));
            let ours = || meter.rate(figure, threads, OURS);
            let turns = match figure {
                #[cfg(unix)]
                Figure::Read if threads > 1 => ReadLoop::new(isa).map(|c| c.turns(&meter, threads, 1.0)),
                _ => turns(patience, ours, || run(&program, threads, name)),
            };
            let Some(turns) = turns else { continue };
            let what = format!("{isa} {name} with {threads} threads");
            println!("{what}: {:?} {turns:.1?}", verdict(&turns));
            match verdict(&turns) {
                Verdict::Holds => {}
                Verdict::Above(by) => above.push(format!("{what}: {by:.2}: {turns:.1?}")),
                Verdict::Open => skip(&format!("roof of {name}"), &format!("{what}: the machine changes")),
            }
        }
    }
    assert!(above.is_empty(), "the C program measures more than 10% above the roof:\n{}", above.join("\n"));
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

/// A roof that is 20% below what the C program measures, in the place of ours. What the C program measures itself may be
/// below ours, so that comes first.
#[test]
fn a_low_roof_is_noticed() {
    let _alone = MACHINE.lock().unwrap_or_else(PoisonError::into_inner);
    let isa = Isa::detect().unwrap();
    let Some(program) = build(isa, &[]) else {
        return skip("cc", "no C compiler, the roofs are held against nothing");
    };
    let meter = Meter::new(isa);
    let fma = |factor: f64| {
        let low = || Some(factor * meter.rate(Figure::FmaF32, 1, OURS)?);
        turns(PATIENCE, low, || run(&program, 1, "fma")).unwrap()
    };
    noticed("fma", fma);
    #[cfg(unix)]
    {
        let reads = ReadLoop::new(isa).unwrap();
        noticed("read", |factor| reads.turns(&meter, roof::default_threads(), factor));
    }
}

/// Fails if [`verdict`] lets a roof pass that is at 80% of the C program's figure. `turns` are taken with our figures
/// times its argument. The machine may change between the
/// two: an attempt that finds it is enough, two that do not are too many.
fn noticed(name: &str, turns: impl Fn(f64) -> Vec<Turn>) {
    let mut held = vec![];
    for _ in 0..3 {
        let Some(theirs) = median_ratio(&turns(1.0)) else { continue };
        let low = turns(0.8 * theirs);
        match verdict(&low) {
            Verdict::Holds => held.push(low),
            Verdict::Above(by) => return println!("{name}: {by:.2} after {} attempts that held", held.len()),
            Verdict::Open => {}
        }
    }
    assert!(held.len() < 2, "{name}: a roof 20% too low holds: {held:.1?}");
    skip(&format!("roof of {name}"), "the machine changes");
}

/// Turns on a machine that gives `state(i)` at its `i`-th measurement, ours all lowered by `factor`.
fn simulated(factor: f64, state: impl Fn(usize) -> f64) -> Vec<Turn> {
    let clock = std::cell::Cell::new(0);
    let tick = || state(clock.replace(clock.get() + 1));
    turns(Duration::from_millis(1), || Some(factor * tick()), || Some(tick())).unwrap()
}

#[test]
fn verdicts_are_those_of_the_loops_not_of_the_machine() {
    let flips = |every: usize| move |i: usize| if (i / every).is_multiple_of(2) { 55.0 } else { 86.0 };
    for every in [4, 5, 7, 10, 1000] {
        assert_eq!(verdict(&simulated(1.0, flips(every))), Verdict::Holds, "{every}");
        assert!(matches!(verdict(&simulated(0.8, flips(every))), Verdict::Above(_)), "{every}");
    }
    // A fast moment of the C program alone.
    assert_eq!(verdict(&simulated(1.0, |i| if i == 1 { 86.0 } else { 55.0 })), Verdict::Holds);
    // Never the same twice: nothing can be said.
    assert_eq!(verdict(&simulated(1.0, |i| 50.0 * 1.1_f64.powi(i as i32 % 9))), Verdict::Open);
    let turn = |theirs| [Turn { before: 100.0, theirs, after: 100.0 }; 3];
    assert!(verdict(&turn(109.0)) == Verdict::Holds && verdict(&turn(111.0)) == Verdict::Above(1.11));
}
