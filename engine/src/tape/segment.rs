//! Parts of a model whose activations are computed again when their gradient is wanted, in place of being kept (activation
//! checkpointing).
//!
//! A part runs as it would without a tape, and its ops are kept as they are: operands at fixed places of the arena, which the next part
//! uses again. Backward puts back what the part read and has been overwritten since, runs the ops once more on a tape of
//! their own, goes back through that, and lets the memory go.

use std::collections::HashMap;
use std::ops::Range;

use ocelli_kernels::ops::{Pointwise, Rope};
use ocelli_kernels::{Access, Exec, Op, Stream, View};
use smallvec::SmallVec;

use super::shadows::clear;
use super::{Moved, Tape, Tracked, add_range, is_tracked, move_away};
use crate::ctx::Ctx;
use crate::error::Result;
use crate::tensor::Mark;

/// What a part did.
pub(super) struct Segment {
    /// Heights of the arena before and after it.
    from: Mark,
    to: Mark,
    ran: Vec<Box<dyn Again>>,
    /// What it read before it had written it, and lies where it was.
    pub(super) needed: Vec<View>,
    /// Where that has gone.
    pub(super) moved: SmallVec<[Moved; 2]>,
    written: Tracked,
    /// Whether something trained is behind what it did.
    depends: bool,
}

/// Something that can be done again.
trait Again: Send {
    fn again(&self, tape: &mut Tape, cx: &mut Ctx) -> Result<()>;
}

/// An op that ran.
struct Ran<O> {
    path: String,
    op: O,
}

impl<O: Op> Again for Ran<O>
where
    dyn Stream: Exec<O>,
{
    fn again(&self, tape: &mut Tape, cx: &mut Ctx) -> Result<()> {
        tape.run(cx, &self.path, &self.op)
    }
}

/// Values that came from the host.
struct Wrote {
    to: View,
    bytes: Vec<u8>,
}

impl Again for Wrote {
    fn again(&self, _: &mut Tape, cx: &mut Ctx) -> Result<()> {
        Ok(cx.stream().write(&self.to, &self.bytes)?)
    }
}

impl Segment {
    pub(super) fn begin(from: Mark) -> Self {
        Self {
            from,
            to: from,
            ran: Vec::new(),
            needed: Vec::new(),
            moved: SmallVec::new(),
            written: HashMap::new(),
            depends: false,
        }
    }

    /// What it has done so far.
    pub(super) fn len(&self) -> usize {
        self.ran.len()
    }

    fn has_written(&self, view: &View) -> bool {
        let bytes = view.byte_range();
        let inside = |range: &Range<usize>| range.start <= bytes.start && bytes.end <= range.end;
        self.written.get(&view.storage().id()).is_some_and(|ranges| ranges.iter().any(inside))
    }
}

impl Tape {
    /// Runs an op of a part that is computed again later.
    pub(super) fn run_once<O: Op>(&mut self, cx: &mut Ctx, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        let (mut read, mut written) = (Vec::new(), Vec::new());
        op.clone().visit(&mut |access, view| {
            if access != Access::Out {
                read.push(view.clone());
            }
            if access != Access::In {
                written.push(view.clone());
            }
        });
        // Pages get the same keys and values again.
        let any: &dyn std::any::Any = op;
        if let Some(kv) = any.downcast_ref::<Rope>().and_then(|rope| rope.kv.as_ref()) {
            read.retain(|view| !view.same_elements(&kv.k_pages) && !view.same_elements(&kv.v_pages));
        }
        let depends = read.iter().any(|view| is_tracked(&self.tracked, view));
        self.save(cx, None, written.iter())?;
        let Some(mut segment) = self.segment.take() else { return cx.exec_now(path, op) };
        segment.needed.extend(read.into_iter().filter(|view| !segment.has_written(view)).collect::<Vec<_>>());
        let mut copies = Vec::new();
        for view in &written {
            move_away(cx, &mut segment.needed, &mut segment.moved, &mut copies, view, true)?;
        }
        cx.exec_now(path, op)?;
        for view in &written {
            add_range(&mut segment.written, view);
            if depends {
                add_range(&mut self.tracked, view);
            }
        }
        segment.depends |= depends;
        segment.ran.push(Box::new(Ran { path: path.to_owned(), op: op.clone() }));
        self.segment = Some(segment);
        Ok(())
    }

    /// Notes values that came from the host.
    pub(crate) fn wrote(&mut self, to: &View, bytes: &[u8]) {
        if let Some(segment) = &mut self.segment {
            add_range(&mut segment.written, to);
            segment.ran.push(Box::new(Wrote { to: to.clone(), bytes: bytes.to_vec() }));
        }
    }

    /// Begins a part, if such are to be computed again.
    pub(crate) fn begin_segment(&mut self, from: Mark) -> bool {
        let begins = self.again && self.segment.is_none();
        if begins {
            self.segment = Some(Segment::begin(from));
        }
        begins
    }

    /// Ends a part, of which the arena is as high as this.
    pub(crate) fn end_segment(&mut self, to: Mark) {
        if let Some(segment) = self.segment.take().filter(|segment| segment.depends) {
            self.notes.push(super::Noted::Segment(Segment { to, written: HashMap::new(), ..segment }));
        }
    }

    /// Goes back through a part.
    pub(super) fn back_through(&mut self, cx: &mut Ctx, segment: &Segment) -> Result<()> {
        let top = cx.arena_mark();
        cx.raise(segment.to);
        let gone = self.again_and_back(cx, segment);
        cx.release(top);
        gone
    }

    fn again_and_back(&mut self, cx: &mut Ctx, segment: &Segment) -> Result<()> {
        for Moved { from, to, .. } in &segment.moved {
            cx.exec_now("put back", &Pointwise::new(to.clone(), from.clone()))?;
        }
        let mut inner = Self {
            notes: Vec::new(),
            tracked: std::mem::take(&mut self.tracked),
            shadows: std::mem::take(&mut self.shadows),
            mark: segment.from,
            again: false,
            segment: None,
            copied: 0,
        };
        // What others left where the activations of the part are going to be.
        let cleared = cx
            .memory_between(segment.from, segment.to)
            .into_iter()
            .try_for_each(|view| inner.shadows.known(&view)?.map_or(Ok(()), |grads| clear(cx, &grads)));
        let done = cleared
            .and_then(|()| segment.ran.iter().try_for_each(|ran| ran.again(&mut inner, cx)))
            .and_then(|()| inner.back(cx));
        (self.tracked, self.shadows) = (inner.tracked, inner.shadows);
        done
    }
}
