//! Streaming reads: all threads sum windows of one buffer that no cache holds.
//!
//! A thread reads its share along one front or several at once, each in the order of addresses: what memory gives depends on it,
//! and the best counts.

use std::hint::black_box;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_kernels::cpu::pool::Pool;

use super::team::{Budget, fastest, fastest_of};
use crate::machine;

/// Bytes that all threads together read in one window: a millisecond or so, so that some windows are undisturbed.
const WINDOW: usize = 32 << 20;

/// How a thread reads.
#[derive(Clone, Copy, Debug)]
struct Way {
    /// Fronts: 1, 2, 4 or 8.
    fronts: usize,
    /// Bytes ahead of a read that its line is asked for, 0 for none.
    ahead: usize,
}

/// The ways that are tried.
const WAYS: [Way; 12] = {
    let mut ways = [Way { fronts: 1, ahead: 0 }; 12];
    let mut i = 0;
    while i < 12 {
        ways[i] = Way { fronts: 1 << (i / 3), ahead: i % 3 * 512 };
        i += 1;
    }
    ways
};

/// Sums the blocks `at..at + count` of each of the equal parts that a slice has for fronts; `count` is a multiple of 4.
type Sum = fn(&[Block], Way, at: usize, count: usize) -> u64;

#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Block([u64; 8]);

/// The buffer, and the loop of one level that reads it.
pub(super) struct Stream {
    blocks: Vec<Block>,
    sum: Sum,
}

impl Stream {
    /// Memory in huge pages where the system gives them, every page written once.
    pub fn new(isa: Isa) -> Stream {
        let bytes = buffer_bytes();
        let n = bytes / size_of::<Block>();
        let mut blocks: Vec<Block> = Vec::with_capacity(n);
        machine::advise_huge_pages(blocks.as_mut_ptr().cast(), bytes);
        blocks.extend((0..n as u64).map(|i| Block([i.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1; 8])));
        Stream { blocks, sum: sum(isa) }
    }

    /// Bandwidth of `threads` threads in 1e9 bytes per second, measured for at most about `most`.
    pub fn rate(&self, threads: usize, most: Duration) -> f64 {
        let [rate] = self.rates(threads, most, &|_| {});
        rate
    }

    /// The same, and with `N = 2` that of another loop, window by window in turns with ours.
    pub fn rates<const N: usize>(
        &self,
        threads: usize,
        most: Duration,
        other: &(dyn Fn(&[u8]) + Sync),
    ) -> [f64; N] {
        let budget = Budget { least: most / 24, most: most / 12 };
        let share = WINDOW / size_of::<Block>() / threads / 32 * 32;
        let windows = self.blocks.len() * size_of::<Block>() / WINDOW;
        let mut best = [f64::INFINITY; N];
        for way in WAYS {
            let total = AtomicUsize::new(0);
            let seconds: [f64; N] = fastest_of(threads, budget, |thread, window, kind| {
                // Each pass over the memory begins with another kind.
                let start =
                    (window + window / windows) % windows * (WINDOW / size_of::<Block>()) + thread * share;
                let part = &self.blocks[start..start + share];
                if kind == 0 {
                    let sum = (self.sum)(part, way, 0, share / way.fronts);
                    total.fetch_add(sum as usize, Ordering::Relaxed);
                } else {
                    // SAFETY: blocks are plain bytes without padding.
                    other(unsafe { std::slice::from_raw_parts(part.as_ptr().cast(), size_of_val(part)) });
                }
            });
            black_box(total.into_inner());
            for (best, seconds) in best.iter_mut().zip(seconds) {
                *best = best.min(seconds);
            }
        }
        best.map(|seconds| (share * threads * size_of::<Block>()) as f64 / seconds / 1e9)
    }

    /// Bytes that `threads` threads copy, each its share of a window, in 1e9 per second; no cache holds where they go either.
    pub fn copies(&self, threads: usize, most: Duration) -> f64 {
        const PLACES: usize = 4;
        let share = WINDOW / size_of::<Block>() / threads;
        let windows = self.blocks.len() * size_of::<Block>() / WINDOW;
        let to: Vec<Mutex<Vec<Block>>> =
            (0..threads).map(|_| Mutex::new(vec![Block([0; 8]); PLACES * share])).collect();
        let budget = Budget { least: most / 4, most };
        let seconds = fastest(threads, budget, |thread, window| {
            let start = window % windows * (WINDOW / size_of::<Block>()) + thread * share;
            // Each thread has a place of its own: nobody waits.
            if let Ok(mut to) = to[thread].lock() {
                let at = window % PLACES * share;
                to[at..at + share].copy_from_slice(&self.blocks[start..start + share]);
                black_box(&mut to[at]);
            }
        });
        (share * threads * size_of::<Block>()) as f64 / seconds / 1e9
    }
}

/// Reads between the runs of a kernel, by the threads of its pool.
pub(crate) struct Beside {
    stream: Stream,
    way: Way,
    window: usize,
}

/// Bytes that a thread takes at a time, of all its fronts.
const CHUNK: usize = 1 << 20;

impl Beside {
    /// Takes the memory and finds the way in which the pool reads it fastest.
    pub fn new(isa: Isa, pool: &Pool) -> Beside {
        let mut beside = Beside { stream: Stream::new(isa), way: WAYS[0], window: 0 };
        let mut best = f64::INFINITY;
        let mut fastest = WAYS[0];
        for round in 0..10 * WAYS.len() {
            beside.way = WAYS[round % WAYS.len()];
            let seconds = beside.seconds(pool);
            if seconds < best {
                (best, fastest) = (seconds, beside.way);
            }
        }
        beside.way = fastest;
        beside
    }

    /// Seconds of one window of [`BYTES`](Self::BYTES).
    pub fn seconds(&mut self, pool: &Pool) -> f64 {
        let blocks = &self.stream.blocks[..];
        let (windows, window) = (size_of_val(blocks) / WINDOW, WINDOW / size_of::<Block>());
        let blocks = &blocks[self.window % windows * window..][..window];
        self.window += 1;
        let (way, sum) = (self.way, self.stream.sum);
        // Each thread has a share of the window, with fronts of its own; the last may take a little more than the others.
        let (threads, step) = (pool.threads(), CHUNK / size_of::<Block>() / way.fronts);
        let share = window / threads / 32 * 32;
        let jobs = (share / way.fronts).div_ceil(step);
        let total = AtomicUsize::new(0);
        let start = Instant::now();
        pool.run_apart(threads * jobs, |job, _| {
            let (thread, at) = (job / jobs, job % jobs * step);
            let count = step.min(share / way.fronts - at);
            let found = sum(&blocks[thread * share..][..share], way, at, count);
            total.fetch_add(found as usize, Ordering::Relaxed);
        });
        black_box(total.into_inner());
        start.elapsed().as_secs_f64() * (window as f64 / (share * threads) as f64)
    }

    /// Bytes of one window.
    pub const BYTES: usize = WINDOW;
}

/// 32 times the last cache, at least 512 MiB, at most 1 GiB and a quarter of the memory. A cache may keep a part of what
/// cyclic passes read, up to all that it holds, and each core may have a last cache of its own: what they keep has to be
/// little of what a thread reads.
fn buffer_bytes() -> usize {
    let cache = machine::last_cache_bytes().unwrap_or(32 << 20);
    let memory = machine::memory_bytes().unwrap_or(4 << 30);
    let bytes = (32 * cache).clamp(512 << 20, 1 << 30).min(memory / 4) as usize;
    bytes.next_multiple_of(WINDOW).max(2 * WINDOW)
}

fn sum(isa: Isa) -> Sum {
    match isa.level() {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: an `Isa` exists only for levels of this machine, and this one has AVX2.
        Level::Avx2 => |blocks, way, at, count| unsafe { sum_avx2(blocks, way, at, count) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above with AVX-512 F.
        Level::Avx512 => |blocks, way, at, count| unsafe { sum_avx512(blocks, way, at, count) },
        _ => sum_plain,
    }
}

/// The body shared by all levels: the instruction set comes from the function it is inlined into.
#[inline(always)]
fn sum_blocks(blocks: &[Block], way: Way, at: usize, count: usize) -> u64 {
    match way.fronts {
        1 => sum_fronts::<1>(blocks, way.ahead, at, count),
        2 => sum_fronts::<2>(blocks, way.ahead, at, count),
        4 => sum_fronts::<4>(blocks, way.ahead, at, count),
        _ => sum_fronts::<8>(blocks, way.ahead, at, count),
    }
}

#[inline(always)]
fn sum_fronts<const F: usize>(blocks: &[Block], ahead: usize, at: usize, count: usize) -> u64 {
    let apart = blocks.len() / F;
    let mut sums = [[0_u64; 8]; F];
    for group in (at..at + count).step_by(4) {
        for (front, sum) in sums.iter_mut().enumerate() {
            let group = &blocks[front * apart + group..][..4];
            if ahead > 0 {
                prefetch(group, ahead);
            }
            for block in group {
                for (s, x) in sum.iter_mut().zip(&block.0) {
                    *s ^= x;
                }
            }
        }
    }
    sums.iter().flatten().fold(0, |s, x| s ^ x)
}

#[inline(always)]
fn prefetch(group: &[Block], ahead: usize) {
    #[cfg(target_arch = "x86_64")]
    for block in group {
        let address = std::ptr::from_ref(block).cast::<i8>().wrapping_add(ahead);
        // SAFETY: a prefetch never faults, whatever the address.
        unsafe { std::arch::x86_64::_mm_prefetch::<{ std::arch::x86_64::_MM_HINT_T0 }>(address) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (group, ahead);
}

fn sum_plain(blocks: &[Block], way: Way, at: usize, count: usize) -> u64 {
    sum_blocks(blocks, way, at, count)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(blocks: &[Block], way: Way, at: usize, count: usize) -> u64 {
    sum_blocks(blocks, way, at, count)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(blocks: &[Block], way: Way, at: usize, count: usize) -> u64 {
    sum_blocks(blocks, way, at, count)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sum_reads_every_block() {
        for isa in Isa::available() {
            for n in [32, 64, 96] {
                let mut blocks = vec![Block([0; 8]); n];
                for i in 0..n {
                    blocks[i].0[i % 8] = 1 << (i % 60);
                    for way in WAYS {
                        let whole = n / way.fronts;
                        let sum = |at, count| sum(isa)(&blocks, way, at, count);
                        let parts = (0..whole).step_by(4).fold(0, |all, at| all ^ sum(at, 4));
                        let want = 1 << (i % 60);
                        assert_eq!((sum(0, whole), parts), (want, want), "{isa} {way:?}: block {i} of {n}");
                    }
                    blocks[i].0[i % 8] = 0;
                }
            }
        }
    }
}
