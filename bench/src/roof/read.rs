//! Streaming reads: all threads sum windows of one buffer that no cache holds.

use std::hint::black_box;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ocelli_kernels::cpu::isa::{Isa, Level};
use ocelli_kernels::cpu::pool::Pool;

use super::team::{Budget, fastest_of};
use crate::machine;

/// Bytes that all threads together read in one window: a millisecond or so, so that some windows are undisturbed.
const WINDOW: usize = 32 << 20;

/// Bytes ahead of a read that its line is asked for: the best of them counts.
const DISTANCES: [usize; 3] = [0, 512, 1024];

/// Sums the 64-byte blocks of a slice; the second argument is how many bytes ahead to prefetch (0 for none).
type Sum = fn(&[Block], usize) -> u64;

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
        let budget = Budget { least: most / 6, most: most / 3 };
        let share = WINDOW / size_of::<Block>() / threads;
        let windows = self.blocks.len() * size_of::<Block>() / WINDOW;
        let mut best = [f64::INFINITY; N];
        for ahead in DISTANCES {
            let total = AtomicUsize::new(0);
            let seconds: [f64; N] = fastest_of(threads, budget, |thread, window, kind| {
                // Each pass over the memory begins with another kind.
                let start =
                    (window + window / windows) % windows * (WINDOW / size_of::<Block>()) + thread * share;
                let part = &self.blocks[start..start + share];
                if kind == 0 {
                    total.fetch_add((self.sum)(part, ahead) as usize, Ordering::Relaxed);
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
}

/// Reads between the runs of a kernel, by the threads of its pool.
pub(crate) struct Beside {
    stream: Stream,
    ahead: usize,
    window: usize,
}

/// Bytes that a thread takes at a time.
const CHUNK: usize = 1 << 20;

impl Beside {
    /// Takes the memory and finds the distance at which the pool reads it fastest.
    pub fn new(isa: Isa, pool: &Pool) -> Beside {
        let mut beside = Beside { stream: Stream::new(isa), ahead: 0, window: 0 };
        let mut best = f64::INFINITY;
        let mut fastest = 0;
        for round in 0..60 {
            beside.ahead = DISTANCES[round % DISTANCES.len()];
            let seconds = beside.seconds(pool);
            if seconds < best {
                (best, fastest) = (seconds, beside.ahead);
            }
        }
        beside.ahead = fastest;
        beside
    }

    /// Seconds of one window of [`BYTES`](Self::BYTES).
    pub fn seconds(&mut self, pool: &Pool) -> f64 {
        let (windows, chunk) = (size_of_val(&*self.stream.blocks) / WINDOW, CHUNK / size_of::<Block>());
        let first = self.window % windows * (WINDOW / size_of::<Block>());
        self.window += 1;
        let total = AtomicUsize::new(0);
        let start = Instant::now();
        pool.run_apart(WINDOW / CHUNK, |part, _| {
            let blocks = &self.stream.blocks[first + part * chunk..][..chunk];
            total.fetch_add((self.stream.sum)(blocks, self.ahead) as usize, Ordering::Relaxed);
        });
        black_box(total.into_inner());
        start.elapsed().as_secs_f64()
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
        Level::Avx2 => |b, ahead| unsafe { sum_avx2(b, ahead) },
        #[cfg(target_arch = "x86_64")]
        // SAFETY: as above with AVX-512 F.
        Level::Avx512 => |b, ahead| unsafe { sum_avx512(b, ahead) },
        _ => sum_plain,
    }
}

/// The body shared by all levels: the instruction set comes from the function it is inlined into.
#[inline(always)]
fn sum_blocks(blocks: &[Block], ahead: usize) -> u64 {
    let mut sums = [[0_u64; 8]; 4];
    let mut groups = blocks.chunks_exact(4);
    for group in &mut groups {
        if ahead > 0 {
            prefetch(group, ahead);
        }
        for (sum, block) in sums.iter_mut().zip(group) {
            for (s, x) in sum.iter_mut().zip(&block.0) {
                *s ^= x;
            }
        }
    }
    let rest = groups.remainder().iter().flat_map(|b| b.0).fold(0, |s, x| s ^ x);
    sums.iter().flatten().fold(rest, |s, x| s ^ x)
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

fn sum_plain(blocks: &[Block], ahead: usize) -> u64 {
    sum_blocks(blocks, ahead)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2")]
fn sum_avx2(blocks: &[Block], ahead: usize) -> u64 {
    sum_blocks(blocks, ahead)
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f")]
fn sum_avx512(blocks: &[Block], ahead: usize) -> u64 {
    sum_blocks(blocks, ahead)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_sum_reads_every_block() {
        for isa in Isa::available() {
            for n in [0, 1, 4, 7, 64] {
                let mut blocks = vec![Block([0; 8]); n];
                for i in 0..n {
                    blocks[i].0[i % 8] = 1 << (i % 60);
                    let want = 1 << (i % 60);
                    assert_eq!(sum(isa)(&blocks, 512), want, "{isa}: block {i} of {n}");
                    blocks[i].0[i % 8] = 0;
                }
            }
        }
    }
}
