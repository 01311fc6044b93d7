//! A spin-then-park thread pool for kernels.
//!
//! A call made while the workers still spin from the one before is a handful of atomic operations: no allocation, no
//! contended lock, no system call. Workers spin for a bounded time after a call and then park.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use super::scratch::Scratch;

/// How long a worker spins for the next call before it parks.
const SPIN: Duration = Duration::from_micros(100);

/// The first part of it, in which the worker does not offer its core to others.
const EAGER: Duration = Duration::from_micros(3);

thread_local! {
    /// Whether this thread is inside a call of some pool: calls made from there run inline.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Keeps values of different threads in different cache lines (128: pairs of lines are prefetched together).
#[derive(Default)]
#[repr(align(128))]
struct Padded<T>(T);

/// What a chunk function gets from the thread that runs it.
pub struct Worker {
    index: usize,
    /// Working memory of this thread; grow-only, reused from call to call.
    pub scratch: Scratch,
}

impl Worker {
    /// Which of the pool's threads this is: below [`Pool::threads`], and unique among the threads of one call.
    pub fn index(&self) -> usize {
        self.index
    }
}

type Call = unsafe fn(*const (), usize, &mut Worker);

#[derive(Clone, Copy)]
struct Job {
    data: *const (),
    call: Call,
    chunks: usize,
    /// In how many runs of chunks they are claimed: 1, or one for each thread.
    parts: usize,
}

impl Job {
    /// The chunks of a part.
    fn part(&self, part: usize) -> std::ops::Range<usize> {
        self.chunks * part / self.parts..self.chunks * (part + 1) / self.parts
    }
}

unsafe fn no_job(_: *const (), _: usize, _: &mut Worker) {}

/// `state` is `call number << 32 | OPEN | workers inside`. A worker enters by incrementing it while OPEN is set; the
/// caller clears OPEN when no chunk is left and returns when nobody is inside, so a job is never read after its call.
struct Shared {
    state: Padded<AtomicU64>,
    /// Chunks claimed of each part of the job.
    claimed: Vec<Padded<AtomicUsize>>,
    job: UnsafeCell<Job>,
    parked: Vec<Padded<AtomicBool>>,
    stop: AtomicBool,
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    spin: Duration,
}

const OPEN: u64 = 1 << 31;
const INSIDE_MASK: u64 = OPEN - 1;

// SAFETY: `job` is written only by the thread that holds the pool's `caller` lock while no worker is inside, and read
// only by workers that are inside; `state` orders the two.
unsafe impl Sync for Shared {}
// SAFETY: as above; the job's pointer is only dereferenced during its call.
unsafe impl Send for Shared {}

impl Shared {
    /// Claims chunks until none is left, those of the worker's own part first. The first panic is kept, and ends the call
    /// early.
    fn work(&self, job: Job, worker: &mut Worker) {
        let own = worker.index;
        let result = catch_unwind(AssertUnwindSafe(|| {
            for part in (0..job.parts).map(|i| (own + i) % job.parts) {
                let chunks = job.part(part);
                loop {
                    let i = chunks.start + self.claimed[part].0.fetch_add(1, Ordering::Relaxed);
                    if i >= chunks.end {
                        break;
                    }
                    // SAFETY: the caller of `run` waits for this thread, so the closure behind `data` is alive.
                    unsafe { (job.call)(job.data, i, worker) };
                }
            }
        }));
        if let Err(e) = result {
            for claimed in &self.claimed[..job.parts] {
                claimed.0.store(job.chunks, Ordering::Relaxed);
            }
            lock(&self.panic).get_or_insert(e);
        }
    }

    /// Waits for a call later than `seen`; `None` when the pool is being dropped.
    fn await_call(&self, index: usize, seen: u64) -> Option<u64> {
        let news = |s: u64| s >> 32 != seen >> 32;
        let started = Instant::now();
        loop {
            for _ in 0..32 {
                let s = self.state.0.load(Ordering::Acquire);
                if news(s) {
                    return Some(s);
                }
                std::hint::spin_loop();
            }
            let spun = started.elapsed();
            if spun >= self.spin {
                break;
            }
            // On a busy machine the thread that would make the next call may be waiting for this very core.
            if spun >= EAGER {
                std::thread::yield_now();
            }
        }
        let flag = &self.parked[index].0;
        loop {
            // Sequentially consistent, as in `open`: either the caller sees the flag or this thread sees the call.
            flag.store(true, Ordering::SeqCst);
            let s = self.state.0.load(Ordering::SeqCst);
            let stop = self.stop.load(Ordering::SeqCst);
            if stop || news(s) {
                flag.store(false, Ordering::SeqCst);
                return (!stop).then_some(s);
            }
            std::thread::park();
        }
    }

    fn worker(&self, index: usize) {
        INSIDE.set(true);
        let mut worker = Worker { index, scratch: Scratch::new() };
        let mut seen = 0;
        while let Some(mut s) = self.await_call(index, seen) {
            seen = s;
            while s & OPEN != 0 && s >> 32 == seen >> 32 {
                match self.state.0.compare_exchange_weak(s, s + 1, Ordering::AcqRel, Ordering::Acquire) {
                    Ok(_) => {
                        // SAFETY: this worker is inside an open call, so the caller does not write the job.
                        let job = unsafe { *self.job.get() };
                        self.work(job, &mut worker);
                        self.state.0.fetch_sub(1, Ordering::AcqRel);
                        break;
                    }
                    Err(now) => s = now,
                }
            }
        }
    }
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The pool. Dropping it ends its threads.
pub struct Pool {
    shared: Arc<Shared>,
    /// Held during a call: callers on different threads take turns.
    caller: Mutex<()>,
    threads: Vec<JoinHandle<()>>,
}

impl std::fmt::Debug for Pool {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Pool").field("threads", &self.threads()).finish()
    }
}

impl Default for Pool {
    fn default() -> Self {
        Pool::new(0)
    }
}

impl Pool {
    /// A pool of `threads` threads in all, the calling one included; 0 stands for the cores available to the process.
    /// Where the system refuses threads, the pool is smaller.
    pub fn new(threads: usize) -> Pool {
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let n = if threads == 0 { cores } else { threads.min(INSIDE_MASK as usize) };
        let shared = Arc::new(Shared {
            state: Padded(AtomicU64::new(0)),
            claimed: (0..n).map(|_| Padded::default()).collect(),
            job: UnsafeCell::new(Job { data: std::ptr::null(), call: no_job, chunks: 0, parts: 1 }),
            parked: (0..n).map(|_| Padded::default()).collect(),
            stop: AtomicBool::new(false),
            panic: Mutex::new(None),
            // Spinning with more threads than cores takes the core from a thread that has work.
            spin: if n <= cores { SPIN } else { Duration::ZERO },
        });
        let spawn = |i: usize| {
            let shared = Arc::clone(&shared);
            std::thread::Builder::new().name(format!("ocelli-{i}")).spawn(move || shared.worker(i)).ok()
        };
        let threads = (1..n).map_while(spawn).collect();
        Pool { shared, caller: Mutex::new(()), threads }
    }

    /// Threads that take part in a call, the calling one included.
    pub fn threads(&self) -> usize {
        self.threads.len() + 1
    }

    /// Calls `f(chunk, worker)` for each chunk in `0..chunks`, in any order, on all threads; returns when all are done.
    ///
    /// Threads claim chunks one by one, so chunks may differ in cost. A call from inside a chunk runs inline. A panic
    /// in a chunk is passed on once every thread has left; chunks not begun by then are skipped.
    pub fn run<F: Fn(usize, &mut Worker) + Sync>(&self, chunks: usize, f: F) {
        self.run_in(1, chunks, f);
    }

    /// [`Pool::run`] in which each thread begins with a run of chunks of its own and then helps the others: for chunks that
    /// are read from memory one behind the other.
    pub fn run_apart<F: Fn(usize, &mut Worker) + Sync>(&self, chunks: usize, f: F) {
        self.run_in(self.threads(), chunks, f);
    }

    fn run_in<F: Fn(usize, &mut Worker) + Sync>(&self, parts: usize, chunks: usize, f: F) {
        if chunks <= 1 || self.threads.is_empty() || INSIDE.get() {
            let mut worker = Worker { index: 0, scratch: Scratch::new() };
            for i in 0..chunks {
                f(i, &mut worker);
            }
            return;
        }
        unsafe fn call<F: Fn(usize, &mut Worker)>(data: *const (), i: usize, worker: &mut Worker) {
            // SAFETY: `data` is the `&F` that `run` put into the job, alive until `run` returns.
            unsafe { (*data.cast::<F>())(i, worker) }
        }
        let job = Job { data: (&raw const f).cast(), call: call::<F>, chunks, parts };
        let turn = lock(&self.caller);
        INSIDE.set(true);
        self.open(job);
        let mut worker = Worker { index: 0, scratch: Scratch::new() };
        self.shared.work(job, &mut worker);
        self.close();
        INSIDE.set(false);
        let panic = lock(&self.shared.panic).take();
        drop(turn);
        if let Some(e) = panic {
            resume_unwind(e);
        }
    }

    /// [`Pool::run`] over `0..n` in ranges of at most `grain` items: `f(range, worker)`.
    pub fn run_ranges<F: Fn(std::ops::Range<usize>, &mut Worker) + Sync>(
        &self,
        n: usize,
        grain: usize,
        f: F,
    ) {
        let grain = grain.max(1);
        self.run(n.div_ceil(grain), |i, w| f(i * grain..n.min((i + 1) * grain), w));
    }

    fn open(&self, job: Job) {
        let shared = &*self.shared;
        // SAFETY: this thread holds `caller`, the last call is closed and nobody is inside.
        unsafe { *shared.job.get() = job };
        for claimed in &shared.claimed[..job.parts] {
            claimed.0.store(0, Ordering::Relaxed);
        }
        let number = (shared.state.0.load(Ordering::Relaxed) >> 32).wrapping_add(1);
        shared.state.0.store(number << 32 | OPEN, Ordering::SeqCst);
        // No more workers are woken than there are chunks for.
        for (i, t) in self.threads.iter().enumerate().take(job.chunks - 1) {
            if shared.parked[i + 1].0.load(Ordering::SeqCst)
                && shared.parked[i + 1].0.swap(false, Ordering::SeqCst)
            {
                t.thread().unpark();
            }
        }
    }

    fn close(&self) {
        let state = &self.shared.state.0;
        let mut s = state.fetch_and(!OPEN, Ordering::AcqRel);
        let mut spins = 0u32;
        while s & INSIDE_MASK != 0 {
            if spins < 128 && !self.shared.spin.is_zero() {
                std::hint::spin_loop();
                spins += 1;
            } else {
                std::thread::yield_now();
            }
            s = state.load(Ordering::Acquire);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::SeqCst);
        for t in self.threads.drain(..) {
            t.thread().unpark();
            // A worker catches the panics of its chunks, so it has none of its own to report.
            let _ = t.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum_of(pool: &Pool, chunks: usize) -> usize {
        let sum = AtomicUsize::new(0);
        pool.run(chunks, |i, w| {
            assert!(w.index() < pool.threads());
            sum.fetch_add(i + 1, Ordering::Relaxed);
        });
        sum.into_inner()
    }

    #[test]
    fn every_chunk_runs_once() {
        for threads in [1, 2, 3, 8] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for chunks in [0, 1, 2, 3, 7, 100, 1000] {
                assert_eq!(sum_of(&pool, chunks), chunks * (chunks + 1) / 2);
                let sum = AtomicUsize::new(0);
                pool.run_apart(chunks, |i, _| {
                    sum.fetch_add(i + 1, Ordering::Relaxed);
                });
                assert_eq!(sum.into_inner(), chunks * (chunks + 1) / 2);
            }
        }
        let pool = Pool::default();
        for _ in 0..20_000 {
            assert_eq!(sum_of(&pool, 4), 10);
        }
    }

    #[test]
    fn parked_workers_wake() {
        let pool = Pool::new(2);
        for _ in 0..20 {
            std::thread::sleep(SPIN * 3);
            // Both chunks wait for each other, so this ends only if the worker wakes.
            let inside = AtomicUsize::new(0);
            pool.run(2, |_, _| {
                inside.fetch_add(1, Ordering::SeqCst);
                while inside.load(Ordering::SeqCst) < 2 {
                    std::thread::yield_now();
                }
            });
        }
    }

    #[test]
    fn ranges_cover_everything() {
        let pool = Pool::new(2);
        for (n, grain) in [(0, 4), (1, 4), (9, 4), (8, 4), (5, 0)] {
            let hits: Vec<AtomicUsize> = (0..n).map(|_| AtomicUsize::new(0)).collect();
            pool.run_ranges(n, grain, |r, _| r.for_each(|i| _ = hits[i].fetch_add(1, Ordering::Relaxed)));
            assert!(hits.iter().all(|h| h.load(Ordering::Relaxed) == 1));
        }
    }

    #[test]
    fn nested_and_concurrent_calls_finish() {
        let pool = Pool::new(3);
        let total = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..50 {
                        pool.run(5, |_, _| {
                            pool.run(4, |_, w| {
                                assert_eq!(w.index(), 0);
                                total.fetch_add(1, Ordering::Relaxed);
                            });
                        });
                    }
                });
            }
        });
        assert_eq!(total.into_inner(), 4 * 50 * 20);
    }

    #[test]
    fn panics_propagate_and_leave_the_pool_usable() {
        let pool = Pool::new(3);
        for bad in [0, 5, 99] {
            let caught = catch_unwind(AssertUnwindSafe(|| {
                pool.run(100, |i, _| assert!(i != bad, "chunk {i}"));
            }));
            let message = *caught.unwrap_err().downcast::<String>().unwrap();
            assert_eq!(message, format!("chunk {bad}"));
            assert_eq!(sum_of(&pool, 100), 5050);
        }
    }

    #[test]
    fn scratch_is_kept_between_calls() {
        let pool = Pool::new(1);
        let at = AtomicUsize::new(0);
        for i in 0..3 {
            pool.run(2, |_, w| {
                let p = w.scratch.bytes(1 << 16).as_ptr() as usize;
                let before = at.swap(p, Ordering::Relaxed);
                assert!(i == 0 || before == p);
            });
        }
    }
}
