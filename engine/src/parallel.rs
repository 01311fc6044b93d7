//! Work on several things at once.

use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

/// The results of `work` on each of `items`, in their order, on up to `threads` threads. `work` also gets the number of threads that are
/// its own: all of them where there is one thing alone.
///
/// # Errors
///
/// The first error, by the order of the items; work on later ones may be left out.
pub fn try_map<T: Sync, R: Send, E: Send>(
    items: &[T],
    threads: usize,
    work: impl Fn(&T, usize) -> Result<R, E> + Sync,
) -> Result<Vec<R>, E> {
    let workers = threads.clamp(1, items.len().max(1));
    let own = (threads / workers).max(1);
    if workers == 1 {
        return items.iter().map(|item| work(item, own)).collect();
    }
    let results: Vec<Mutex<Option<Result<R, E>>>> = items.iter().map(|_| Mutex::new(None)).collect();
    let (next, failed) = (AtomicUsize::new(0), AtomicUsize::new(usize::MAX));
    let run = || {
        loop {
            let place = next.fetch_add(1, Ordering::Relaxed);
            // What comes before a failure is still wanted: it may fail too, and then that is the first.
            let Some(item) = items.get(place).filter(|_| place < failed.load(Ordering::Relaxed)) else {
                return;
            };
            let result = work(item, own);
            if result.is_err() {
                failed.fetch_min(place, Ordering::Relaxed);
            }
            if let Ok(mut slot) = results[place].lock() {
                *slot = Some(result);
            }
        }
    };
    std::thread::scope(|scope| {
        for _ in 1..workers {
            scope.spawn(run);
        }
        run();
    });
    // Places are taken in order, so those without a result lie behind the first error.
    results.into_iter().filter_map(|slot| slot.into_inner().ok().flatten()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn results_keep_their_order() {
        let items: Vec<usize> = (0..100).collect();
        for threads in [0, 1, 3, 200] {
            let squares = try_map(&items, threads, |&item, _| Ok::<_, ()>(item * item)).unwrap();
            assert_eq!(squares, items.iter().map(|item| item * item).collect::<Vec<_>>());
            for wrong in [0, 7, 99] {
                let work = |&item: &usize, _| if item % 50 == wrong % 50 { Err(item) } else { Ok(()) };
                assert_eq!(try_map(&items, threads, work), Err(wrong % 50));
            }
        }
        assert_eq!(try_map(&[] as &[usize], 4, |_, _| Ok::<usize, ()>(1)), Ok(vec![]));
        assert_eq!(try_map(&[1], 4, |_, own| Ok::<_, ()>(own)), Ok(vec![4]));
        assert_eq!(try_map(&[1, 2], 5, |_, own| Ok::<_, ()>(own)), Ok(vec![2, 2]));
    }

    #[test]
    fn threads_work_at_once() {
        let both = std::sync::Barrier::new(2);
        // Ends only if two threads are here together.
        assert!(try_map(&[1, 2], 2, |_, _| Ok::<_, ()>(both.wait().is_leader())).unwrap().contains(&true));
    }
}
