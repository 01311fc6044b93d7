//! Timing: medians with spread, and two things compared in turns.

use std::time::{Duration, Instant};

use serde::{Deserialize, Serialize};

/// What many runs of one thing took, in microseconds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Timing {
    /// Half of the runs took no longer.
    pub median_us: f64,
    /// A fifth of the runs took no longer.
    pub p20_us: f64,
    /// Four fifths of the runs took no longer.
    pub p80_us: f64,
    /// Number of runs.
    pub samples: usize,
}

impl Timing {
    /// The quantiles of `seconds`, which are put in order. Without any sample all are infinite.
    pub fn of(seconds: &mut [f64]) -> Timing {
        seconds.sort_by(f64::total_cmp);
        let at = |share: f64| {
            let index = (share * seconds.len().saturating_sub(1) as f64).round() as usize;
            seconds.get(index).map_or(f64::INFINITY, |s| s * 1e6)
        };
        Timing { median_us: at(0.5), p20_us: at(0.2), p80_us: at(0.8), samples: seconds.len() }
    }
}

/// How long and how often something is timed.
#[derive(Clone, Copy, Debug)]
pub struct Plan {
    /// Runs go on at least this long, without counting.
    pub warm_up: Duration,
    /// Then runs are counted at least this long.
    pub time: Duration,
    /// At least this many runs count, whatever the time.
    pub least: usize,
    /// No more than this many runs count.
    pub most: usize,
}

impl Default for Plan {
    fn default() -> Plan {
        Plan { warm_up: Duration::from_millis(25), time: Duration::from_millis(250), least: 5, most: 2000 }
    }
}

impl Plan {
    fn goes_on(&self, samples: usize, begin: Instant) -> bool {
        samples < self.least || (samples < self.most && begin.elapsed() < self.time)
    }
}

/// Times `run`, which gets the number of the run: it takes another set of operands each time, so that the caches do
/// not hold what a cold run would read (see [`rotation`]). The first error ends the timing.
pub fn time<E>(plan: Plan, mut run: impl FnMut(usize) -> Result<(), E>) -> Result<Timing, E> {
    sample(plan, |turn| {
        let start = Instant::now();
        run(turn)?;
        Ok(start.elapsed().as_secs_f64())
    })
}

/// As [`time`], of what tells the seconds that it took.
pub fn sample<E>(plan: Plan, mut run: impl FnMut(usize) -> Result<f64, E>) -> Result<Timing, E> {
    let mut turn = 0;
    let begin = Instant::now();
    while turn == 0 || begin.elapsed() < plan.warm_up {
        run(turn)?;
        turn += 1;
    }
    let mut seconds = Vec::with_capacity(plan.most.min(4096));
    let begin = Instant::now();
    while plan.goes_on(seconds.len(), begin) {
        seconds.push(run(turn)?);
        turn += 1;
    }
    Ok(Timing::of(&mut seconds))
}

/// What was timed with a yardstick between its runs.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Beside {
    /// The runs.
    pub timing: Timing,
    /// Median of the yardstick's seconds that the runs are held against.
    pub yardstick: f64,
    /// The yardstick's best.
    pub best: f64,
    /// Median over the runs of the yardstick's time, the mean of the one before and the one after, divided by the run's.
    pub ratio: f64,
}

/// As [`sample`], with a yardstick, which tells the seconds that it took, between runs: before and after as many as take as
/// long together, so that whatever the machine's state is, a run and what it is held against see the same.
pub fn sample_beside<E>(
    plan: Plan,
    mut run: impl FnMut(usize) -> Result<f64, E>,
    mut yardstick: impl FnMut() -> f64,
) -> Result<Beside, E> {
    let mut turn = 0;
    let begin = Instant::now();
    while turn == 0 || begin.elapsed() < plan.warm_up {
        run(turn)?;
        turn += 1;
    }
    let (mut seconds, mut ratios, mut yards) = (vec![], vec![], vec![]);
    let begin = Instant::now();
    let mut before = yardstick();
    let mut best = before;
    while plan.goes_on(seconds.len(), begin) {
        let (first, start) = (seconds.len(), Instant::now());
        while seconds.len() == first || start.elapsed().as_secs_f64() < before {
            seconds.push(run(turn)?);
            turn += 1;
        }
        let after = yardstick();
        let near = 0.5 * (before + after);
        best = best.min(after);
        ratios.extend(seconds[first..].iter().map(|s| near / s));
        yards.push(near);
        before = after;
    }
    let middle = |of: &mut Vec<f64>| {
        of.sort_by(f64::total_cmp);
        of.get(of.len() / 2).copied().unwrap_or(f64::INFINITY)
    };
    let (ratio, yardstick) = (middle(&mut ratios), middle(&mut yards));
    Ok(Beside { timing: Timing::of(&mut seconds), yardstick, best, ratio })
}

/// Two things timed in turns.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Comparison {
    /// The first.
    pub a: Timing,
    /// The second.
    pub b: Timing,
    /// Median over the pairs of the time of `a` divided by that of `b`: above 1, `b` is faster.
    pub ratio: f64,
}

/// Times `a` and `b` in the order A B B A, so that whatever slows the machine down meets both alike.
pub fn compare<E>(
    plan: Plan,
    mut a: impl FnMut(usize) -> Result<(), E>,
    mut b: impl FnMut(usize) -> Result<(), E>,
) -> Result<Comparison, E> {
    let begin = Instant::now();
    let mut turn = 0;
    while turn == 0 || begin.elapsed() < 2 * plan.warm_up {
        a(turn)?;
        b(turn)?;
        turn += 1;
    }
    let (mut of_a, mut of_b, mut ratios) = (vec![], vec![], vec![]);
    let begin = Instant::now();
    while plan.goes_on(of_a.len(), begin) {
        let clock = |run: &mut dyn FnMut(usize) -> Result<(), E>| {
            let start = Instant::now();
            run(turn)?;
            Ok(start.elapsed().as_secs_f64())
        };
        let (one, two) = if turn.is_multiple_of(2) {
            let one = clock(&mut a)?;
            (one, clock(&mut b)?)
        } else {
            let two = clock(&mut b)?;
            (clock(&mut a)?, two)
        };
        of_a.push(one);
        of_b.push(two);
        ratios.push(one / two);
        turn += 1;
    }
    ratios.sort_by(f64::total_cmp);
    let ratio = ratios.get(ratios.len() / 2).copied().unwrap_or(1.0);
    Ok(Comparison { a: Timing::of(&mut of_a), b: Timing::of(&mut of_b), ratio })
}

/// Bytes that a timing on the CPU has to rotate through so that operands are out of the caches before their next turn:
/// 32 times the last cache, but no more than 1 GiB. A cache may keep a part of what cyclic passes read, and a guest may have
/// more of one than it is told.
pub fn cold_bytes() -> u64 {
    let cache = crate::machine::last_cache_bytes().unwrap_or(32 << 20);
    (32 * cache).min(1 << 30)
}

/// How many sets of operands of `bytes` each make `cold` bytes together.
pub fn rotation(bytes: u64, cold: u64) -> usize {
    (cold.div_ceil(bytes.max(1)) as usize + 1).clamp(2, 4096)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_of_known_samples() {
        let mut seconds: Vec<f64> = (0..=100).rev().map(|i| f64::from(i) * 1e-6).collect();
        let timing = Timing::of(&mut seconds);
        let close = |a: f64, b: f64| (a - b).abs() < 1e-9;
        assert!(close(timing.median_us, 50.0) && close(timing.p20_us, 20.0) && close(timing.p80_us, 80.0));
        assert_eq!(timing.samples, 101);
        assert!(Timing::of(&mut []).median_us.is_infinite());
    }

    #[test]
    fn every_run_gets_its_number() {
        let plan =
            Plan { warm_up: Duration::ZERO, time: Duration::from_millis(1), least: 7, ..Plan::default() };
        let mut seen = vec![];
        let timing = time::<()>(plan, |turn| {
            seen.push(turn);
            Ok(())
        });
        assert!(timing.unwrap().samples >= 7);
        assert!(seen.iter().copied().eq(0..seen.len()));
        assert_eq!(time(plan, |turn| if turn == 3 { Err("no") } else { Ok(()) }), Err("no"));
    }

    #[test]
    fn the_slower_of_two_is_named() {
        let plan = Plan { warm_up: Duration::ZERO, time: Duration::ZERO, least: 9, ..Plan::default() };
        let pause = |ms| {
            move |_| {
                std::thread::sleep(Duration::from_millis(ms));
                Ok::<(), ()>(())
            }
        };
        let both = compare(plan, pause(4), pause(1)).unwrap();
        assert!(both.ratio > 1.5 && both.a.median_us > both.b.median_us, "{both:?}");
    }

    #[test]
    fn a_yardstick_sees_the_same_machine() {
        // A machine whose speed changes from run to run, and a thing that always takes twice its yardstick.
        let state = std::cell::Cell::new(0u32);
        let slow = || if (state.get() / 40).is_multiple_of(2) { 1.0 } else { 5.0 };
        let plan = Plan { warm_up: Duration::ZERO, time: Duration::ZERO, least: 400, ..Plan::default() };
        let run = |turn: usize| {
            state.set(turn as u32);
            std::thread::sleep(Duration::from_micros(20));
            Ok::<f64, ()>(2e-5 * slow())
        };
        let found = sample_beside(plan, run, || 1e-5 * slow()).unwrap();
        assert!((found.ratio - 0.5).abs() < 1e-9 && found.best == 1e-5, "{found:?}");
        assert!(found.timing.samples >= 400 && found.yardstick >= 1e-5);
    }

    #[test]
    fn large_operands_still_rotate() {
        let cold = cold_bytes();
        assert!(rotation(1 << 32, cold) == 2 && rotation(0, cold) == 4096 && rotation(1 << 26, cold) >= 2);
    }
}
