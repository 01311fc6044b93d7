//! Every kernel compiled for every architecture that its row declares; its resources and instructions checked. What was found right
//! before and is as it was is compiled in a sample ([`Compiled`]).
//!
//! A kernel may keep nothing in local memory: no spilled registers, no arrays that are indexed at run time. What a file claims of
//! its machine code stands in its first comment, after `SASS:`, and is looked for in what the disassembler prints.

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

use ocelli_kernels::conformance::{CaseCx, cuda_kernels};
use ocelli_kernels::cuda::nvrtc::Nvrtc;
use ocelli_kernels::cuda::{KernelKey, source};
use ocelli_kernels::{Arch, BackendOp, Caps, OpVisitor, for_each_op};

use super::ahead::Order;
use super::compiled::{Compiled, digest};
use super::{SEED, cases_of, required};

/// Kernels of a row that are compiled for architectures other than the two that are compiled whole.
const SAMPLE: usize = 2;

/// Kernels by op and row.
pub type Rows = BTreeMap<String, BTreeSet<KernelKey>>;

struct Add {
    arch: Arch,
    cases: fn(u64) -> CaseCx,
    /// The text of the cases of an op; an error where there are none.
    chosen: fn(&str) -> Result<Option<String>, String>,
    all: Rows,
}

impl OpVisitor for Add {
    fn visit<O: BackendOp>(&mut self) {
        let Ok(only) = (self.chosen)(O::NAME) else { return };
        match cuda_kernels::<O>(&Caps::of_arch(self.arch), (self.cases)(SEED), only.as_deref()) {
            Ok(rows) => {
                self.all.extend(rows.into_iter().map(|(row, keys)| (format!("{} {row}", O::NAME), keys)));
            }
            Err(error) => panic!("{} on {}: {error}", O::NAME, self.arch),
        }
    }
}

/// The rows of all ops on one architecture, with the kernels that cases of these shapes ask for.
fn rows(arch: Arch) -> Rows {
    rows_of(arch, CaseCx::shapes, |_| Ok(None))
}

/// The same for these cases of the ops that are chosen.
fn rows_of(arch: Arch, cases: fn(u64) -> CaseCx, chosen: fn(&str) -> Result<Option<String>, String>) -> Rows {
    let mut add = Add { arch, cases, chosen, all: Rows::new() };
    for_each_op(&mut add);
    let mut all = add.all;
    for (path, _) in source::FILES.iter().filter(|(path, _)| path.starts_with("cuda/roof/")) {
        let keys = match (*path, arch) {
            ("cuda/roof/wgmma.cu", Arch::Sm80 | Arch::Sm86 | Arch::Sm89 | Arch::Sm120) => BTreeSet::new(),
            _ => BTreeSet::from([KernelKey { path, defines: source::Defines::new() }]),
        };
        all.insert((*path).to_owned(), keys);
    }
    all
}

/// The compiler, or `None` with the reason printed and counted.
fn compiler() -> Option<Nvrtc> {
    match Nvrtc::find() {
        Ok(nvrtc) => Some(nvrtc),
        Err(why) => {
            assert!(!required("nvrtc"), "{why}");
            println!("skipped: nvrtc: {why}");
            None
        }
    }
}

/// Whether a kernel is one of a whole architecture's or of a sample.
fn wanted(arch: Arch, keys: BTreeSet<KernelKey>) -> Vec<KernelKey> {
    match arch {
        Arch::Sm80 | Arch::Sm90a => keys.into_iter().collect(),
        _ => keys.into_iter().take(SAMPLE).collect(),
    }
}

/// Instructions that a file claims for a kernel: `SASS: HMMA LDG*.128` for all (what is between does not matter), `SASS sm_90a: HGMMA`
/// for one architecture, `SASS X=f16: HMMA` for those with this value, or both; `LDG<ACQBULK`: the first LDG stands before the first ACQBULK.
fn claims(key: &KernelKey, arch: Arch) -> Vec<&'static str> {
    let text = source::file(key.path).map_or("", |(_, text)| text);
    let head = text.lines().take_while(|line| line.starts_with("//"));
    let applies = |word: &str| match word.split_once('=') {
        Some((name, value)) => key.defines.get(name).is_some_and(|given| given == value),
        None => word == arch.name(),
    };
    head.filter_map(|line| line.trim_start_matches('/').trim_start().strip_prefix("SASS"))
        .filter_map(|rest| rest.split_once(':'))
        .filter(|(of, _)| of.split_whitespace().all(applies))
        .flat_map(|(_, claims)| claims.split_whitespace())
        .collect()
}

/// The disassembler, or `None` with the reason printed and counted.
fn disassembler() -> Option<PathBuf> {
    let path = std::env::var_os("OCELLI_NVDISASM").filter(|path| !path.is_empty()).map(PathBuf::from);
    if path.is_none() {
        let why = "OCELLI_NVDISASM names no disassembler, so what files claim of their machine code is not looked for";
        assert!(!required("nvdisasm"), "{why}");
        println!("skipped: nvdisasm: {why}");
    }
    path
}

/// The first word of some machine code that a claim names.
fn place(claim: &str, code: &str) -> Option<usize> {
    code.split_whitespace().position(|word| match claim.split_once('*') {
        Some((first, later)) => word.starts_with(first) && word.contains(later),
        None => word.contains(claim),
    })
}

/// Whether a claim is true of some machine code.
fn holds(claim: &str, code: &str) -> bool {
    match claim.split_once('<') {
        Some((first, then)) => {
            place(first, code).zip(place(then, code)).is_some_and(|(first, then)| first < then)
        }
        None => place(claim, code).is_some(),
    }
}

#[test]
fn claims_of_machine_code() {
    let code = "/*0010*/ LDG.E.NA.128 R4, [R2] ;\n/*0020*/ ACQBULK ;\n/*0030*/ FFMA R0, R4, R4, R0 ;";
    assert!(["FFMA", "LDG*.128", "LDG<ACQBULK", "LDG*.128<FFMA"].iter().all(|claim| holds(claim, code)));
    assert!(["HMMA", "LDG*.64", "FFMA<ACQBULK", "LDS<ACQBULK"].iter().all(|claim| !holds(claim, code)));
}

/// What is wrong with a kernel's machine code; `None` if nothing is.
fn fault(nvrtc: &Nvrtc, key: &KernelKey, arch: Arch, disassembler: Option<&Path>) -> Option<String> {
    let compiled = match nvrtc.compile(key, arch) {
        Ok(compiled) => compiled,
        Err(error) => return Some(error.to_string()),
    };
    let says = |what: &str| compiled.log.lines().find(|line| line.contains(what)).map(str::trim);
    if let Some(line) = says("bytes stack frame")
        && !line.ends_with(" 0 bytes stack frame, 0 bytes spill stores, 0 bytes spill loads")
    {
        return Some(format!("local memory: {line}"));
    }
    // The compiler's complaint that products of a warpgroup run one after another.
    if let Some(line) = says("wgmma.mma_async instructions are serialized").or(says("setmaxnreg ignored")) {
        return Some(line.to_owned());
    }
    let (claims, disassembler) = (claims(key, arch), disassembler?);
    if claims.is_empty() {
        return None;
    }
    let name = format!("{}-{}-{:?}.cubin", std::process::id(), arch, std::thread::current().id());
    let file = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
    std::fs::write(&file, &compiled.code).unwrap();
    let output = Command::new(disassembler).arg("-c").arg(&file).output().unwrap();
    std::fs::remove_file(&file).unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let code = String::from_utf8_lossy(&output.stdout);
    let missing: Vec<&str> = claims.into_iter().filter(|claim| !holds(claim, &code)).collect();
    (!missing.is_empty()).then(|| format!("the machine code lacks {}", missing.join(", ")))
}

/// Compiles the kernels of one of so many parts, so that no test takes long.
fn compiles(arch: Arch, part: usize, parts: usize) {
    let Some(nvrtc) = compiler() else { return };
    if !nvrtc.supports(arch) {
        assert!(!required("nvrtc"), "NVRTC {:?} does not know {arch}", nvrtc.version);
        println!("skipped: {arch}: NVRTC {:?} does not know it", nvrtc.version);
        return;
    }
    let disassembler = disassembler();
    let mut refused = 0;
    let mut todo: BTreeSet<KernelKey> = BTreeSet::new();
    for (row, keys) in rows(arch) {
        if keys.is_empty() && part == 1 {
            refused += 1;
            println!("refused on {arch}: {row}");
        }
        todo.extend(wanted(arch, keys));
    }
    let compiled = Compiled::of(arch, part).unwrap();
    let mut digests = BTreeSet::new();
    // By what a kernel is, so that it stays in its part when others come and go.
    let mine: Vec<(u64, KernelKey)> = todo
        .into_iter()
        .map(|key| (digest(&key, arch, nvrtc.version), key))
        .filter(|(digest, _)| *digest / 16 % parts as u64 == part as u64 - 1)
        .collect();
    digests.extend(mine.iter().map(|(digest, _)| *digest));
    let all = mine.len();
    let todo: BTreeSet<KernelKey> =
        mine.into_iter().filter(|(digest, _)| compiled.asks_for(*digest)).map(|(_, key)| key).collect();
    let (count, todo, faults) = (todo.len(), Mutex::new(todo), Mutex::new(Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..std::thread::available_parallelism().map_or(1, usize::from) {
            scope.spawn(|| {
                loop {
                    let Some(key) = todo.lock().unwrap().pop_first() else { return };
                    if let Some(what) = fault(&nvrtc, &key, arch, disassembler.as_deref()) {
                        faults.lock().unwrap().push(format!("{key} for {arch}: {what}"));
                    }
                }
            });
        }
    });
    println!(
        "compiled for {arch}, part {part} of {parts}: {count} kernels of {all}; {refused} rows are not for it"
    );
    let faults = faults.into_inner().unwrap();
    assert!(faults.is_empty(), "{} of {count} kernels:\n{}", faults.len(), faults.join("\n"));
    assert!(all > 0, "{arch}: there is nothing to compile");
    compiled.keep(&digests).unwrap();
}

#[test]
fn sm_80_part_1_of_4() {
    compiles(Arch::Sm80, 1, 4);
}

#[test]
fn sm_80_part_2_of_4() {
    compiles(Arch::Sm80, 2, 4);
}

#[test]
fn sm_80_part_3_of_4() {
    compiles(Arch::Sm80, 3, 4);
}

#[test]
fn sm_80_part_4_of_4() {
    compiles(Arch::Sm80, 4, 4);
}

#[test]
fn sm_86() {
    compiles(Arch::Sm86, 1, 1);
}

#[test]
fn sm_89() {
    compiles(Arch::Sm89, 1, 1);
}

#[test]
fn sm_90a_part_1_of_8() {
    compiles(Arch::Sm90a, 1, 8);
}

#[test]
fn sm_90a_part_2_of_8() {
    compiles(Arch::Sm90a, 2, 8);
}

#[test]
fn sm_90a_part_3_of_8() {
    compiles(Arch::Sm90a, 3, 8);
}

#[test]
fn sm_90a_part_4_of_8() {
    compiles(Arch::Sm90a, 4, 8);
}

#[test]
fn sm_90a_part_5_of_8() {
    compiles(Arch::Sm90a, 5, 8);
}

#[test]
fn sm_90a_part_6_of_8() {
    compiles(Arch::Sm90a, 6, 8);
}

#[test]
fn sm_90a_part_7_of_8() {
    compiles(Arch::Sm90a, 7, 8);
}

#[test]
fn sm_90a_part_8_of_8() {
    compiles(Arch::Sm90a, 8, 8);
}

#[test]
fn sm_120() {
    compiles(Arch::Sm120, 1, 1);
}

/// The compiler of the next major version, which `OCELLI_NVRTC_NEWER` names, lies elsewhere than where the system looks for what it needs.
#[test]
fn a_newer_compiler_makes_code() {
    let path = std::env::var_os("OCELLI_NVRTC_NEWER").filter(|path| !path.is_empty());
    let found =
        path.map_or(Err("OCELLI_NVRTC_NEWER names no compiler".into()), |path| Nvrtc::at(Path::new(&path)));
    match found {
        Ok(nvrtc) => {
            let key = KernelKey { path: "cuda/roof/wgmma.cu", defines: source::Defines::new() };
            assert!(nvrtc.version >= (13, 0), "{:?}", nvrtc.version);
            assert_eq!(fault(&nvrtc, &key, Arch::Sm90a, disassembler().as_deref()), None);
        }
        Err(why) => {
            assert!(!required("nvrtc"), "{why}");
            println!("skipped: nvrtc: {why}");
        }
    }
}

/// The rows with the kernels that the tests on a GPU ask for.
pub fn asked(arch: Arch) -> Rows {
    let mut rows = rows_of(arch, CaseCx::new, cases_of);
    rows.insert("chains of kernels".to_owned(), super::canaries::keys(arch));
    rows
}

/// Makes the kernels that the tests on a GPU of this program ask for, where an [`Order`] is given.
#[test]
fn kernels_for_a_gpu() {
    let Some(order) = Order::given() else { return };
    let keys = asked(order.arch).into_values().flatten().collect();
    order.make("cases", &keys, super::emulator::library);
}

/// Each row runs on some architecture, and each `.cu` file belongs to some row.
#[test]
fn every_file_belongs_to_a_row() {
    let mut files: BTreeSet<&str> =
        source::FILES.iter().map(|(path, _)| *path).filter(|path| path.ends_with(".cu")).collect();
    let all = Arch::ALL.map(rows);
    let mut idle: BTreeSet<&String> = all[0].keys().collect();
    for rows in &all {
        for (row, keys) in rows {
            for key in keys {
                files.remove(key.path);
            }
            if !keys.is_empty() {
                idle.remove(row);
            }
        }
    }
    assert!(files.is_empty(), "no case of any row asks for {files:?}");
    assert!(idle.is_empty(), "no case of any architecture runs {idle:?}");
}
