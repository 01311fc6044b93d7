//! Threads that run short windows of work together, timed from the common start to the last end.

use std::hint::spin_loop;
use std::sync::Barrier;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

/// How long one roof is measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct Budget {
    /// Windows go on at least this long.
    pub least: Duration,
    /// And at most this long: between the two, until no better window was seen for `least`.
    pub most: Duration,
}

const STOP: usize = usize::MAX;

/// Windows from one rest to the next.
const REST: usize = 4;

/// Lets the processors of all threads fall asleep and wake.
///
/// The host of a virtual machine chooses where a processor runs when it wakes. Two that share what leads to memory, for
/// as long as they are busy, read a third less than two that do not; the roof is what the better places give.
fn rest(thread: usize, window: usize, all: &Barrier) {
    // In turns the first wakes the others and waits to be woken.
    if (thread == 0) == (window / REST).is_multiple_of(2) {
        std::thread::sleep(Duration::from_micros(100));
    }
    all.wait();
}

/// Seconds of the fastest window in which all `threads` ran `work(thread, window)`.
///
/// The fastest window is the figure wanted: anything else that runs on the machine only makes one slower, and a
/// roof that is too low flatters every kernel that is held against it.
pub(super) fn fastest(threads: usize, budget: Budget, work: impl Fn(usize, usize) + Sync) -> f64 {
    let [seconds] = fastest_of(threads, budget, |thread, window, _| work(thread, window));
    seconds
}

/// The same for `N` kinds of work in turns, `work(thread, window, kind)`: what the machine gives changes from one moment to
/// the next, and all of them see the same.
pub(super) fn fastest_of<const N: usize>(
    threads: usize,
    budget: Budget,
    work: impl Fn(usize, usize, usize) + Sync,
) -> [f64; N] {
    let go = AtomicUsize::new(0);
    let done = AtomicUsize::new(0);
    let all = Barrier::new(threads);
    let _home = Pinned::here();
    std::thread::scope(|scope| {
        for thread in 1..threads {
            let (go, done, all, work) = (&go, &done, &all, &work);
            scope.spawn(move || {
                pin(thread);
                let mut window = 0;
                loop {
                    if window % REST == 0 {
                        rest(thread, window, all);
                    }
                    wait(|| go.load(Ordering::Acquire) > window);
                    if go.load(Ordering::Acquire) == STOP {
                        return;
                    }
                    work(thread, window, window % N);
                    window += 1;
                    done.fetch_add(1, Ordering::Release);
                }
            });
        }
        pin(0);
        let begin = Instant::now();
        let (mut best, mut best_at) = ([f64::INFINITY; N], begin);
        let mut window = 0;
        loop {
            if threads > 1 && window % REST == 0 {
                rest(0, window, &all);
            }
            let start = Instant::now();
            go.store(window + 1, Ordering::Release);
            work(0, window, window % N);
            wait(|| done.load(Ordering::Acquire) == (window + 1) * (threads - 1));
            let seconds = start.elapsed().as_secs_f64();
            // The first windows start threads and raise clocks.
            if window > 1 && seconds < best[window % N] {
                best[window % N] = seconds;
                best_at = Instant::now();
            }
            window += 1;
            let now = Instant::now();
            let settled = now - best_at >= budget.least && now - begin >= budget.least;
            if window > 3 + N && (settled || now - begin >= budget.most) {
                break;
            }
        }
        go.store(STOP, Ordering::Release);
        if window % REST == 0 {
            all.wait();
        }
        best
    })
}

fn wait(ready: impl Fn() -> bool) {
    let mut spins = 0u32;
    while !ready() {
        spins += 1;
        // More threads than free cores: let the one that is waited for run.
        if spins > 20_000 {
            std::thread::yield_now();
        } else {
            spin_loop();
        }
    }
}

/// Gives the calling thread back the processors it had.
///
/// Threads are pinned each to a processor of its own while they are measured: beside other work, a scheduler may
/// else run two of them in turns on one for as long as the measurement lasts.
struct Pinned {
    #[cfg(target_os = "linux")]
    before: Option<libc::cpu_set_t>,
}

#[cfg(target_os = "linux")]
impl Pinned {
    fn here() -> Pinned {
        Pinned { before: affinity() }
    }
}

#[cfg(target_os = "linux")]
impl Drop for Pinned {
    fn drop(&mut self) {
        if let Some(set) = &self.before {
            set_affinity(set);
        }
    }
}

#[cfg(target_os = "linux")]
fn affinity() -> Option<libc::cpu_set_t> {
    // SAFETY: an all-zero set is a valid empty set.
    let mut set: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `set` is as large as said and outlives the call; 0 is the calling thread.
    let code = unsafe { libc::sched_getaffinity(0, size_of::<libc::cpu_set_t>(), &mut set) };
    (code == 0).then_some(set)
}

#[cfg(target_os = "linux")]
fn set_affinity(set: &libc::cpu_set_t) {
    // SAFETY: `set` is as large as said and outlives the call; a refusal changes nothing.
    unsafe { libc::sched_setaffinity(0, size_of::<libc::cpu_set_t>(), set) };
}

/// Pins the calling thread to the `index`-th processor that it may use, if there are that many.
#[cfg(target_os = "linux")]
fn pin(index: usize) {
    let Some(allowed) = affinity() else { return };
    // SAFETY: the index is below the size of the set.
    let has = |cpu: &usize| unsafe { libc::CPU_ISSET(*cpu, &allowed) };
    let Some(cpu) = (0..libc::CPU_SETSIZE as usize).filter(has).nth(index) else { return };
    // SAFETY: an all-zero set is a valid empty set.
    let mut one: libc::cpu_set_t = unsafe { std::mem::zeroed() };
    // SAFETY: `cpu` is below the size of the set.
    unsafe { libc::CPU_SET(cpu, &mut one) };
    set_affinity(&one);
}

#[cfg(not(target_os = "linux"))]
impl Pinned {
    fn here() -> Pinned {
        Pinned {}
    }
}

#[cfg(not(target_os = "linux"))]
fn pin(_: usize) {}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_thread_runs_every_window() {
        let budget = Budget { least: Duration::from_millis(1), most: Duration::from_millis(20) };
        let runs = [const { AtomicUsize::new(0) }; 3];
        let seconds = fastest(3, budget, |thread, window| {
            assert_eq!(runs[thread].fetch_add(1, Ordering::Relaxed), window);
        });
        assert!(seconds.is_finite() && seconds > 0.0);
        let first = runs[0].load(Ordering::Relaxed);
        assert!(first >= 5);
        assert!(runs.iter().all(|r| r.load(Ordering::Relaxed) == first));
    }

    #[cfg(target_os = "linux")]
    #[test]
    fn the_caller_keeps_its_processors() {
        let count = || {
            let set = affinity().unwrap();
            // SAFETY: the set is initialized.
            unsafe { libc::CPU_COUNT(&set) }
        };
        let before = count();
        let budget = Budget { least: Duration::from_millis(1), most: Duration::from_millis(2) };
        for threads in [1, 2] {
            fastest(threads, budget, |_, _| {});
            assert_eq!(count(), before);
        }
    }

    #[test]
    fn kinds_of_work_are_timed_apart() {
        let budget = Budget { least: Duration::from_millis(1), most: Duration::from_millis(60) };
        let [short, long] = fastest_of(2, budget, |_, window, kind| {
            assert_eq!(kind, window % 2);
            std::thread::sleep(Duration::from_millis(1 + 4 * kind as u64));
        });
        assert!(long >= 0.005 && short < long);
    }

    #[test]
    fn a_window_lasts_as_long_as_its_slowest_thread() {
        let budget = Budget { least: Duration::from_millis(1), most: Duration::from_millis(50) };
        let seconds = fastest(2, budget, |thread, _| {
            if thread == 1 {
                std::thread::sleep(Duration::from_millis(5));
            }
        });
        assert!(seconds >= 0.005);
    }
}
