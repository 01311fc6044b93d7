//! Passes that are started before the host has looked at the tokens of the one before.
//!
//! Most answers go on with whatever token comes: the pass reads it where it is, on the device. Others are bound: what may come next follows
//! from the token, by a form or by a penalty, so that they miss the pass that runs ahead, and take part in the one after it. That is
//! worth it where they are few.

use super::request::Live;
use super::{Pass, Scheduler};
use crate::ctx::Ctx;

/// Of so many answers that go on by themselves, one bound one is made to wait.
const FREE_FOR_BOUND: usize = 8;

impl Scheduler {
    /// Starts the pass after `pass`, if what it takes is known without the tokens of `pass`: one token of each of its requests, but
    /// for those that are bound, and of bound ones that missed it.
    pub(super) fn run_ahead(&mut self, cx: &mut Ctx, pass: &Pass) -> Option<Pass> {
        if !cx.overlaps() || self.running.is_empty() {
            return None;
        }
        let limit = self.model.info().max_positions;
        let goes_on = |live: &Live| {
            let answer = live.answer.len() + live.coming;
            live.coming == 1
                && live.params.speculate == 0
                && answer < live.params.max_tokens
                && live.prompt.len() + answer < limit
        };
        // The tokens of the free ones are the first of the pass, which plans see to.
        let (mut free, mut bound) = (Vec::new(), 0);
        for &number in &pass.rows {
            let live = &self.running[self.place(number)?];
            match live.is_free() {
                true if bound == 0 && goes_on(live) => free.push(number),
                false => bound += 1,
                true => return None,
            }
        }
        let (mut joins, mut tokens) = (Vec::new(), Vec::new());
        for live in self.running.iter().filter(|live| !pass.rows.contains(&live.number)) {
            let next = live.answer.last().filter(|_| live.coming == 0 && live.params.speculate == 0);
            let next = next.filter(|_| !live.is_free() && live.ask().answers())?;
            bound += 1;
            // A form that is still being computed is not waited for.
            if live.guide().is_none_or(|guide| guide.is_ready()) {
                joins.push(live.number);
                tokens.push(*next as i32);
            }
        }
        let chunks: Vec<(usize, usize)> = free.iter().chain(&joins).map(|&number| (number, 1)).collect();
        let room = chunks.len().next_power_of_two() <= pass.ids.size(0);
        if free.is_empty() || bound * FREE_FOR_BOUND > free.len() || !(joins.is_empty() || room) {
            return None;
        }
        let plan = self.plan(usize::MAX);
        self.begin_later();
        let only_answers = plan.admitted == 0
            && plan.preempted == 0
            && plan.pictures.is_empty()
            && !self.expects()
            && plan.chunks.len() == self.running.len()
            && plan.chunks.iter().all(|&(_, len)| len == 1);
        if !only_answers {
            return None;
        }
        if !joins.is_empty() {
            // Behind the tokens of the free ones, in place of those that are on their way to the host already.
            let view = pass.ids.narrow(0, free.len(), joins.len()).and_then(|ids| cx.view(&ids)).ok()?;
            cx.stream().write(&view, bytemuck::cast_slice(&tokens)).ok()?;
        }
        // What fails ahead of its turn is tried again in its turn.
        self.start(cx, &chunks, Some(pass)).ok()
    }
}
