//! What this machine can do at most: arithmetic per second of the instructions that kernels use, and bytes read
//! per second from memory; on a CPU each with one thread and with all.
//!
//! Every figure is the best of many short windows. The loops run raw instructions on registers with enough
//! independent accumulators to hide latency, and their results are consumed; the read loop sums a buffer far larger
//! than any cache. A separately written C program (`tests/roof/roof.c`) must not measure more.

#[cfg(feature = "cuda")]
pub mod cuda;
mod read;
mod scalar;
mod team;
#[cfg(feature = "wgpu")]
pub mod wgpu;

#[cfg(target_arch = "aarch64")]
mod neon;
#[cfg(target_arch = "x86_64")]
mod x86;

use std::time::{Duration, Instant};

use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_kernels::cpu::pool::Pool;
use serde::{Deserialize, Serialize};

pub(crate) use read::Beside;
use team::{Budget, fastest};

/// The measured roofs of one device: a CPU at one instruction set level, or a GPU. What a device has not is absent.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Roofs {
    /// f32 multiply-adds, all threads, in 1e9 flops per second (a multiply-add is two).
    pub fma_f32_gflops: f64,
    /// The same with one thread of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fma_f32_gflops_1t: Option<f64>,
    /// int8 multiply-adds into 32-bit sums, all threads, in 1e9 operations per second (a multiply-add is two).
    pub int8_gops: f64,
    /// The same with one thread of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub int8_gops_1t: Option<f64>,
    /// bf16 dot products into f32 sums, all threads; absent where the level has no such instruction.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_gflops: Option<f64>,
    /// The same with one thread of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bf16_gflops_1t: Option<f64>,
    /// f16 multiply-adds of a GPU that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub f16_gflops: Option<f64>,
    /// Products of f16 matrices with f32 sums of a GPU that has them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matrix_f16_gflops: Option<f64>,
    /// Streaming reads from memory, all threads, in 1e9 bytes per second.
    pub read_gbps: f64,
    /// The same with one thread of a CPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub read_gbps_1t: Option<f64>,
    /// Copies from memory to memory, all threads of a CPU, in 1e9 bytes per second read and as many written.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub copy_gbps: Option<f64>,
    /// Microseconds that a launch of no work takes: a section over all threads of a CPU's pool, a submission to a GPU.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub launch_us: Option<f64>,
}

/// One loop of multiply-adds on registers.
#[derive(Clone, Copy)]
struct Loop {
    /// Multiplications plus additions of one iteration.
    ops: f64,
    /// Runs this many iterations and returns something that depends on all of them.
    run: fn(u64) -> f32,
}

/// The loops of a level; several for one figure mean that the best counts.
struct Loops {
    fma_f32: Vec<Loop>,
    int8: Vec<Loop>,
    bf16: Vec<Loop>,
}

fn loops(isa: Isa) -> Loops {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        Level::Avx2 => x86::avx2(isa),
        #[cfg(target_arch = "x86_64")]
        Level::Avx512 => x86::avx512(isa),
        #[cfg(target_arch = "aarch64")]
        Level::Neon => neon::loops(),
        _ => scalar::loops(),
    }
}

/// What a [`Meter`] measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Figure {
    /// f32 multiply-adds.
    FmaF32,
    /// int8 multiply-adds into 32-bit sums.
    Int8,
    /// bf16 dot products into f32 sums.
    Bf16,
    /// Streaming reads from memory.
    Read,
}

/// Measures figures of the CPU at one instruction set level, each as often as wanted.
pub struct Meter {
    loops: Loops,
    stream: read::Stream,
}

impl Meter {
    /// Takes the memory that reads stream through.
    pub fn new(isa: Isa) -> Meter {
        Meter { loops: loops(isa), stream: read::Stream::new(isa) }
    }

    /// The figure of `threads` threads in 1e9 operations or bytes per second, measured for at most about `most`; `None`
    /// where the level has no such instruction.
    pub fn rate(&self, figure: Figure, threads: usize, most: Duration) -> Option<f64> {
        let loops = match figure {
            Figure::FmaF32 => &self.loops.fma_f32,
            Figure::Int8 => &self.loops.int8,
            Figure::Bf16 => &self.loops.bf16,
            Figure::Read => return Some(self.stream.rate(threads, most)),
        };
        (!loops.is_empty()).then(|| rate(threads, loops, most))
    }

    /// Copies of `threads` threads in 1e9 bytes per second.
    pub fn copies(&self, threads: usize, most: Duration) -> f64 {
        self.stream.copies(threads, most)
    }

    /// What our loop and `other` read per second, in 1e9 bytes: each sums windows of the same memory, in turns and on the
    /// same threads.
    pub fn read_beside(&self, threads: usize, most: Duration, other: &(dyn Fn(&[u8]) + Sync)) -> (f64, f64) {
        self.stream.rates(threads, most, other).into()
    }

    /// The figure of one thread and of all.
    ///
    /// A window in which every thread ran undisturbed is rare on a busy machine: where all threads do less than four
    /// fifths of what that many single ones do, they get more time. (Shared cores and shared memory end there honestly.)
    fn one_and_all(&self, figure: Figure, threads: usize) -> Option<(f64, f64)> {
        let one = self.rate(figure, 1, Duration::from_millis(500))?;
        if threads == 1 {
            return Some((one, one));
        }
        let mut all = self.rate(figure, threads, Duration::from_millis(500))?;
        if all < 0.8 * threads as f64 * one {
            all = all.max(self.rate(figure, threads, Duration::from_millis(1200))?);
        }
        Some((one, all.max(one)))
    }
}

/// Measures all roofs of `isa`, with one thread and with `threads`. Takes a few seconds.
pub fn measure(isa: Isa, threads: usize) -> Roofs {
    let meter = Meter::new(isa);
    let both = |figure| meter.one_and_all(figure, threads.max(1));
    let (fma, int8, bf16, read) =
        (both(Figure::FmaF32), both(Figure::Int8), both(Figure::Bf16), both(Figure::Read));
    let (one, all) = (|f: Option<(f64, f64)>| f.map(|f| f.0), |f: Option<(f64, f64)>| f.map(|f| f.1));
    Roofs {
        fma_f32_gflops: all(fma).unwrap_or_default(),
        fma_f32_gflops_1t: one(fma),
        int8_gops: all(int8).unwrap_or_default(),
        int8_gops_1t: one(int8),
        bf16_gflops: all(bf16),
        bf16_gflops_1t: one(bf16),
        read_gbps: all(read).unwrap_or_default(),
        read_gbps_1t: one(read),
        copy_gbps: Some(meter.copies(threads.max(1), Duration::from_millis(400))),
        ..Roofs::default()
    }
}

/// Microseconds of a section of no work over all threads of a pool: the median of some.
pub fn section_us(pool: &Pool) -> f64 {
    const SECTIONS: u32 = 64;
    let mut all: Vec<f64> = (0..33)
        .map(|_| {
            let start = Instant::now();
            for _ in 0..SECTIONS {
                pool.run(pool.threads(), |part, _| {
                    std::hint::black_box(part);
                });
            }
            start.elapsed().as_secs_f64() * 1e6 / f64::from(SECTIONS)
        })
        .collect();
    all.sort_by(f64::total_cmp);
    all[all.len() / 2]
}

/// How many threads this process may use.
pub fn default_threads() -> usize {
    std::thread::available_parallelism().map_or(1, |n| n.get())
}

/// The best rate of `loops` with this many threads, in 1e9 operations per second.
fn rate(threads: usize, loops: &[Loop], most: Duration) -> f64 {
    let budget = Budget { least: Duration::from_millis(150), most: most / loops.len() as u32 };
    loops
        .iter()
        .map(|l| {
            let iterations = window_iterations(l);
            let seconds = fastest(threads, budget, |_, _| {
                std::hint::black_box((l.run)(iterations));
            });
            l.ops * iterations as f64 * threads as f64 / seconds / 1e9
        })
        .fold(0.0, f64::max)
}

/// Iterations that take about half a millisecond: long against the start of a window, short against a time slice of
/// whatever else runs.
fn window_iterations(l: &Loop) -> u64 {
    let mut iterations = 1000;
    loop {
        let seconds = (0..3)
            .map(|_| {
                let start = Instant::now();
                std::hint::black_box((l.run)(iterations));
                start.elapsed().as_secs_f64()
            })
            .fold(f64::INFINITY, f64::min);
        if seconds > 1e-4 {
            return (iterations as f64 * 5e-4 / seconds) as u64 + 1;
        }
        iterations *= 4;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_finite_results() {
        for isa in Isa::available() {
            let l = loops(isa);
            assert!(!l.fma_f32.is_empty() && !l.int8.is_empty(), "{isa}");
            for one in l.fma_f32.iter().chain(&l.int8).chain(&l.bf16) {
                let (a, b) = ((one.run)(3), (one.run)(4));
                assert!(a.is_finite() && b.is_finite() && a != b, "{isa}: {a} {b}");
            }
        }
    }

    #[test]
    fn more_iterations_take_longer() {
        for isa in Isa::available() {
            let l = loops(isa);
            for one in l.fma_f32.iter().chain(&l.int8).chain(&l.bf16) {
                let n = window_iterations(one);
                let time = |n: u64| {
                    let best = (0..9).map(|_| {
                        let start = Instant::now();
                        std::hint::black_box((one.run)(n));
                        start.elapsed().as_secs_f64()
                    });
                    best.fold(f64::INFINITY, f64::min)
                };
                let (short, long) = (time(n), time(8 * n));
                assert!(long > 5.0 * short, "{isa}: {n} iterations {short} s, eight times as many {long} s");
            }
        }
    }

    #[test]
    fn roofs_round_trip_through_json() {
        let roofs = Roofs {
            fma_f32_gflops: 200.0,
            fma_f32_gflops_1t: Some(100.0),
            int8_gops: 400.5,
            int8_gops_1t: Some(200.25),
            read_gbps: 30.0,
            ..Roofs::default()
        };
        let text = serde_json::to_string(&roofs).unwrap();
        assert!(!text.contains("bf16") && !text.contains("read_gbps_1t"));
        assert_eq!(serde_json::from_str::<Roofs>(&text).unwrap(), roofs);
    }
}
