//! Kernels compiled by threads of their own before they are asked for.

use std::collections::{HashMap, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;

use super::source::KernelKey;
use crate::spec::KernelError;

/// Machine code of a kernel, or why there is none.
type Code = Result<Vec<u8>, KernelError>;
/// Makes it.
type Compile = Box<dyn Fn(&KernelKey) -> Code + Send + Sync>;

/// Most threads that compile: each takes some 100 MB.
const MOST_THREADS: usize = 8;

/// Where machine code comes from: what was expected is compiled already, or is waited for if a thread is at it; everything
/// else is compiled by who asks. Dropping it waits for the kernels that are being compiled and begins no more.
pub struct Ahead {
    shared: Arc<Shared>,
    /// Those that compile.
    threads: Mutex<Vec<JoinHandle<()>>>,
}

struct Shared {
    compile: Compile,
    state: Mutex<State>,
    /// A kernel is expected, one is ready, or no more are coming.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    kernels: HashMap<KernelKey, Progress>,
    /// Expected kernels in the order in which they were named, those among them that have been taken since.
    queue: VecDeque<KernelKey>,
    /// Threads that may still name kernels.
    planning: usize,
    stop: bool,
}

enum Progress {
    Expected,
    Begun,
    Done(Code),
    /// Asked for: nobody prepares it any more.
    Taken,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Ahead {
    /// Compiles by `compile`, which several threads call at once.
    pub fn new(compile: impl Fn(&KernelKey) -> Code + Send + Sync + 'static) -> Self {
        let shared = Shared { compile: Box::new(compile), state: Mutex::default(), changed: Condvar::new() };
        Self { shared: Arc::new(shared), threads: Mutex::default() }
    }

    /// Machine code of a kernel. It is not kept here: who asks again has it compiled again.
    pub fn get(&self, key: &KernelKey) -> Code {
        let mut state = lock(&self.shared.state);
        loop {
            match state.kernels.insert(key.clone(), Progress::Taken) {
                Some(Progress::Done(code)) => return code,
                Some(Progress::Begun) => {
                    state.kernels.insert(key.clone(), Progress::Begun);
                    state = self.shared.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                }
                Some(Progress::Expected | Progress::Taken) | None => break,
            }
        }
        drop(state);
        (self.shared.compile)(key)
    }

    /// Runs `plan` on a thread of its own and compiles what it names, in that order, on further ones.
    pub fn expect(&self, plan: impl FnOnce(Names) + Send + 'static) {
        lock(&self.shared.state).planning += 1;
        let shared = self.shared.clone();
        let planner = move || {
            let ending = Planning(&shared);
            plan(Names(shared.clone()));
            drop(ending);
        };
        // Nobody waits for the end of a plan. Where the system refuses a thread, kernels are compiled when they are asked for.
        if spawn("ocelli-plan", planner).is_none() {
            drop(Planning(&self.shared));
            return;
        }
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let compilers = (0..cores.min(MOST_THREADS)).map_while(|_| {
            let shared = self.shared.clone();
            spawn("ocelli-compile", move || shared.work())
        });
        lock(&self.threads).extend(compilers);
    }
}

/// Takes the names of kernels that will be asked for.
pub struct Names(Arc<Shared>);

impl Names {
    /// Expects a kernel.
    pub fn expect(&self, key: &KernelKey) {
        let mut state = lock(&self.0.state);
        if !state.kernels.contains_key(key) {
            state.kernels.insert(key.clone(), Progress::Expected);
            state.queue.push_back(key.clone());
            self.0.changed.notify_all();
        }
    }
}

fn spawn(name: &str, work: impl FnOnce() + Send + 'static) -> Option<JoinHandle<()>> {
    std::thread::Builder::new().name(name.to_owned()).spawn(work).ok()
}

impl Drop for Ahead {
    fn drop(&mut self) {
        lock(&self.shared.state).stop = true;
        self.shared.changed.notify_all();
        for thread in lock(&self.threads).drain(..) {
            // A thread that panicked has left its kernels to who asks for them.
            let _ = thread.join();
        }
    }
}

/// Counts a plan as ended, however it ends.
struct Planning<'a>(&'a Shared);

impl Drop for Planning<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).planning -= 1;
        self.0.changed.notify_all();
    }
}

impl Shared {
    /// Compiles expected kernels until no more are coming.
    fn work(&self) {
        let mut state = lock(&self.state);
        while !state.stop {
            let Some(key) = state.queue.pop_front() else {
                if state.planning == 0 {
                    return;
                }
                state = self.changed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            // Somebody may have asked for it since.
            let Some(progress @ Progress::Expected) = state.kernels.get_mut(&key) else { continue };
            *progress = Progress::Begun;
            drop(state);
            let code = catch_unwind(AssertUnwindSafe(|| (self.compile)(&key)));
            state = lock(&self.state);
            match code {
                Ok(code) => state.kernels.insert(key, Progress::Done(code)),
                // Whoever asks for it sees the panic.
                Err(_) => state.kernels.remove(&key),
            };
            self.changed.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::sync::mpsc;
    use std::time::Duration;

    use super::*;

    fn key(index: usize) -> KernelKey {
        KernelKey { path: "ops/norm/rows.cu", defines: [("N", index.to_string())].into() }
    }

    /// Code that tells which kernel it is, counted, after `pause`.
    fn ahead(pause: Duration) -> (Ahead, Arc<AtomicUsize>) {
        let count = Arc::new(AtomicUsize::new(0));
        let counted = count.clone();
        let compile = move |key: &KernelKey| {
            counted.fetch_add(1, Ordering::Relaxed);
            std::thread::sleep(pause);
            match key.to_string() {
                text if text.contains("N=13") => Err(KernelError::Device("unlucky".into())),
                text => Ok(text.into_bytes()),
            }
        };
        (Ahead::new(compile), count)
    }

    #[test]
    fn each_kernel_is_compiled_once_whoever_is_first() {
        for pause in [0, 3] {
            let (ahead, count) = ahead(Duration::from_millis(pause));
            ahead.expect(|names| (0..20).for_each(|index| names.expect(&key(index))));
            ahead.expect(|names| (10..30).rev().for_each(|index| names.expect(&key(index))));
            for index in (0..40).rev() {
                match ahead.get(&key(index)) {
                    Ok(code) => assert_eq!(code, key(index).to_string().into_bytes()),
                    Err(error) => assert!(index == 13 && error.to_string().contains("unlucky"), "{error}"),
                }
            }
            drop(ahead);
            assert_eq!(count.load(Ordering::Relaxed), 40);
        }
    }

    #[test]
    fn what_was_expected_is_ready_without_being_asked_for() {
        let (ahead, count) = ahead(Duration::ZERO);
        ahead.expect(|names| (0..10).for_each(|index| names.expect(&key(index))));
        while count.load(Ordering::Relaxed) < 10 {
            std::thread::yield_now();
        }
        for index in 0..10 {
            assert_eq!(ahead.get(&key(index)).unwrap(), key(index).to_string().into_bytes());
        }
        assert_eq!(count.load(Ordering::Relaxed), 10);
    }

    #[test]
    fn a_plan_may_end_badly_or_never() {
        let (ahead, _) = ahead(Duration::ZERO);
        ahead.expect(|names| {
            names.expect(&key(1));
            panic!("a plan of this test");
        });
        assert!(ahead.get(&key(1)).is_ok() && ahead.get(&key(2)).is_ok());
        // Nor does its owner wait for a plan to end.
        let (end, ended) = mpsc::channel::<()>();
        ahead.expect(move |names| {
            let _ = ended.recv();
            names.expect(&key(3));
        });
        drop(ahead);
        drop(end);
    }
}
