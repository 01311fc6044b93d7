//! Reverse-mode differentiation of what runs on a context.
//!
//! While a context [records](Ctx::record), each op that depends on trained memory is noted with its operands, and activations stay where
//! they are. [`Tape::backward`] goes through the notes from the last to the first. The gradient of an activation lies at the same
//! place of a shadow of its memory, f32 for f32: views and slices need no bookkeeping of their own, and what is added in place has its
//! gradient in place. What an op overwrites is copied first if the gradient of an earlier op needs it.

mod rules;
mod segment;
mod shadows;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::ops::Range;

use ocelli_kernels::ops::Pointwise;
use ocelli_kernels::{Access, DType, Exec, Op, Stream, View};
use ocelli_kernels::{Layout, ShapeError, Storage};
use smallvec::SmallVec;

use self::segment::Segment;
pub(crate) use self::shadows::Spare;
use self::shadows::{Shadows, clear};
use crate::ctx::Ctx;
use crate::error::{Error, Result};
use crate::tensor::{Mark, Tensor};

/// Memory that is trained, and memory of its size for its gradients.
#[derive(Clone, Debug)]
pub struct Trained {
    /// f32 values.
    pub values: Storage,
    /// Their gradients, which are added to.
    pub grads: Storage,
    /// Bytes of `values` that are trained.
    pub ranges: Vec<Range<usize>>,
}

/// What ran, in order, as far as it depends on trained memory.
pub struct Tape {
    notes: Vec<Noted>,
    /// Memory that holds trained values or what was computed from such.
    tracked: Tracked,
    shadows: Shadows,
    /// Height of the arena when recording began.
    mark: Mark,
    /// Whether activations of parts are computed again in place of being kept.
    again: bool,
    /// The part that runs now, of those.
    segment: Option<Segment>,
    /// Copies of what was overwritten.
    copied: usize,
}

/// Ranges of bytes of memory, by its identity.
type Tracked = HashMap<usize, Vec<Range<usize>>>;

/// What ran.
enum Noted {
    /// An op.
    Op(Note),
    /// A part that is computed again.
    Segment(Segment),
}

/// An op that ran.
struct Note {
    path: String,
    op: Box<dyn Taped>,
    /// Views whose values its gradient needs, and which lie where they were.
    needed: Vec<View>,
    /// Where values have gone that were overwritten since.
    moved: SmallVec<[Moved; 2]>,
    /// Results over what other ops had written: their gradients end here.
    ends: SmallVec<[View; 1]>,
}

/// A range of bytes whose values were copied.
#[derive(Clone)]
struct Moved {
    storage: usize,
    bytes: Range<usize>,
    from: View,
    to: View,
}

impl Moved {
    /// Copies the bytes of a view, gaps included; `owned`: to memory of its own.
    fn copy(cx: &mut Ctx, view: &View, owned: bool) -> Result<Self> {
        let bytes = view.byte_range();
        let layout = Layout::dense(&[1, bytes.len() / view.dtype().size()])?;
        let from = View::new(view.storage().clone(), bytes.start, layout, view.dtype())?;
        let to = match owned {
            true => cx.alloc_owned(from.shape(), view.dtype())?,
            false => cx.alloc(from.shape(), view.dtype())?,
        };
        let to = cx.view(&to)?;
        cx.exec_now("saved", &Pointwise::new(from.clone(), to.clone()))?;
        Ok(Self { storage: view.storage().id(), bytes, from, to })
    }

    /// The view in the copy, if all of it is there.
    fn find(&self, view: &View) -> Option<Result<View, ShapeError>> {
        let bytes = view.byte_range();
        let inside = view.storage().id() == self.storage
            && self.bytes.start <= bytes.start
            && bytes.end <= self.bytes.end;
        inside.then(|| {
            let offset = self.to.offset() + view.offset() - self.bytes.start;
            View::new(self.to.storage().clone(), offset, *view.layout(), view.dtype())
        })
    }
}

/// Views whose values a gradient needs.
#[derive(Default)]
struct Needs {
    /// Operands as they are before the op runs.
    before: Vec<View>,
    /// Results as it leaves them.
    after: Vec<View>,
}

/// An op with a gradient.
trait Taped: Send {
    /// What its gradient needs.
    fn needs(&self) -> Needs;

    /// Runs it in the pieces that its gradient is of; false: it is to be run as it is.
    fn run(&self, cx: &mut Ctx, path: &str) -> Result<bool> {
        let _ = (cx, path);
        Ok(false)
    }

    /// Adds to the gradients of its operands what follows from those of its results.
    fn backward(&self, cx: &mut Backward<'_>) -> Result<()>;
}

/// What a gradient is computed with.
struct Backward<'a> {
    cx: &'a mut Ctx,
    tracked: &'a HashMap<usize, Vec<Range<usize>>>,
    shadows: &'a mut Shadows,
    path: &'a str,
    moved: &'a [Moved],
}

impl Backward<'_> {
    /// The gradient of a view; `None` if nothing trained is behind it.
    fn grad(&mut self, view: &View) -> Result<Option<View>> {
        if !is_tracked(self.tracked, view) {
            return Ok(None);
        }
        self.shadows.of(self.cx, view).map(Some)
    }

    /// As [`grad`](Self::grad), of what may be absent.
    fn grad_of(&mut self, view: Option<&View>) -> Result<Option<View>> {
        view.map_or(Ok(None), |view| self.grad(view))
    }

    /// The gradient of a result, which something trained is behind.
    fn grad_out(&mut self, view: &View) -> Result<View> {
        self.shadows.of(self.cx, view)
    }

    /// A view as the op met or left it.
    fn value(&self, view: &View) -> Result<View> {
        let found = self.moved.iter().find_map(|moved| moved.find(view));
        Ok(found.unwrap_or_else(|| Ok(view.clone()))?)
    }

    /// As [`value`](Self::value), of what may be absent.
    fn value_of(&self, view: Option<&View>) -> Result<Option<View>> {
        view.map(|view| self.value(view)).transpose()
    }

    /// A vector or matrix as f32: weights that are not trained may be of fewer bits.
    fn wide(&mut self, view: View) -> Result<View> {
        if view.dtype() == DType::F32 {
            return Ok(view);
        }
        let wide = self.temp(view.shape())?;
        let rows = |view: &View| {
            if view.shape().len() == 1 { view.reshape(&[1, view.len()]) } else { Ok(view.clone()) }
        };
        self.exec(&Pointwise::new(rows(&view)?, rows(&wide)?))?;
        Ok(wide)
    }

    /// As [`wide`](Self::wide), of what may be absent.
    fn wide_of(&mut self, view: Option<View>) -> Result<Option<View>> {
        view.map(|view| self.wide(view)).transpose()
    }

    /// Memory for values in between.
    fn temp(&mut self, shape: &[usize]) -> Result<View> {
        let tensor = self.cx.alloc(shape, DType::F32)?;
        self.cx.view(&tensor)
    }

    fn exec<O: Op>(&mut self, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        self.cx.exec(self.path, op)
    }

    /// Zeros.
    fn clear(&mut self, view: &View) -> Result<()> {
        clear(self.cx, view)
    }

    /// `to += from`, matrices.
    fn add(&mut self, from: View, to: View) -> Result<()> {
        self.exec(&Pointwise { add: Some(to.clone()), ..Pointwise::new(from, to) })
    }
}

fn overlaps(ranges: &[Range<usize>], bytes: &Range<usize>) -> bool {
    ranges.iter().any(|range| range.start < bytes.end && bytes.start < range.end)
}

fn is_tracked(tracked: &HashMap<usize, Vec<Range<usize>>>, view: &View) -> bool {
    tracked.get(&view.storage().id()).is_some_and(|ranges| overlaps(ranges, &view.byte_range()))
}

impl Tape {
    fn new(trained: &[Trained], mark: Mark, again: bool) -> Self {
        let mut tape = Self {
            notes: Vec::new(),
            tracked: HashMap::new(),
            shadows: Shadows::new(trained),
            mark,
            again,
            segment: None,
            copied: 0,
        };
        for Trained { values, ranges, .. } in trained {
            tape.tracked.entry(values.id()).or_default().extend(ranges.iter().cloned());
        }
        tape
    }

    /// Runs an op, and notes it if something trained is behind what it reads.
    fn run<O: Op>(&mut self, cx: &mut Ctx, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        if self.segment.is_some() {
            return self.run_once(cx, path, op);
        }
        let (mut read, mut written) = (Vec::new(), Vec::new());
        op.clone().visit(&mut |access, view| {
            if access != Access::Out {
                read.push(view.clone());
            }
            if access != Access::In {
                written.push((access, view.clone()));
            }
        });
        let depends = read.iter().any(|view| is_tracked(&self.tracked, view));
        let mut note = match depends {
            true => Some(rules::note(cx, path, op)?),
            false => None,
        };
        self.save(cx, note.as_mut(), written.iter().map(|(_, view)| view))?;
        let ran = note.as_ref().map_or(Ok(false), |note| note.op.run(cx, path))?;
        if !ran {
            cx.exec_now(path, op)?;
        }
        let Some(mut note) = note else {
            // Over results of ops that are noted: what those had before is no part of what follows.
            written.retain(|(access, view)| *access == Access::Out && is_tracked(&self.tracked, view));
            if !written.is_empty() {
                let ends = written.into_iter().map(|(_, view)| view);
                self.notes.push(Noted::Op(Note::new(path, Box::new(rules::Nothing), ends)));
            }
            return Ok(());
        };
        for (access, view) in written {
            let aliased = read.iter().any(|read| read.same_elements(&view));
            if access == Access::Out && !aliased && is_tracked(&self.tracked, &view) {
                note.ends.push(view.clone());
            }
            add_range(&mut self.tracked, &view);
        }
        self.notes.push(Noted::Op(note));
        Ok(())
    }

    /// Copies what is about to be overwritten and a gradient needs: `own`, that of the op which writes, as it was before.
    fn save<'a>(
        &mut self,
        cx: &mut Ctx,
        own: Option<&mut Note>,
        written: impl Iterator<Item = &'a View>,
    ) -> Result<()> {
        let mut copies: Vec<Moved> = Vec::new();
        let mut own = own;
        // What a part leaves in the arena goes with it.
        let owned = self.segment.is_some();
        for view in written {
            for noted in &mut self.notes {
                let (needed, moved) = match noted {
                    Noted::Op(note) => (&mut note.needed, &mut note.moved),
                    Noted::Segment(part) => (&mut part.needed, &mut part.moved),
                };
                // What a part needs outlives what is above its memory.
                let owned = owned || self.again;
                move_away(cx, needed, moved, &mut copies, view, owned)?;
            }
            if let Some(note) = own.as_deref_mut() {
                move_away(cx, &mut note.needed, &mut note.moved, &mut copies, view, owned)?;
            }
        }
        self.copied += copies.len();
        if let Some(own) = own {
            own.needed.extend(own.op.needs().after);
        }
        Ok(())
    }

    /// Goes back from `result`, whose gradient is `d_result` of the same shape, to what is trained.
    ///
    /// # Errors
    /// If nothing trained is behind the result, or a gradient cannot be computed.
    pub fn backward(&mut self, cx: &mut Ctx, result: &Tensor, d_result: &View) -> Result<()> {
        let view = cx.view(result)?;
        if !is_tracked(&self.tracked, &view) {
            return Err(Error::Train("nothing that is trained has a part in the loss".into()));
        }
        let to = self.shadows.of(cx, &view)?;
        cx.exec("loss", &Pointwise { add: Some(to.clone()), ..Pointwise::new(d_result.clone(), to) })?;
        self.back(cx)
    }

    /// Goes back through all that ran.
    fn back(&mut self, cx: &mut Ctx) -> Result<()> {
        let notes = std::mem::take(&mut self.notes);
        let done = notes.iter().rev().try_for_each(|noted| self.back_over(cx, noted));
        self.notes = notes;
        done
    }

    fn back_over(&mut self, cx: &mut Ctx, noted: &Noted) -> Result<()> {
        let note = match noted {
            Noted::Op(note) => note,
            Noted::Segment(part) => return self.back_through(cx, part),
        };
        {
            let (tracked, shadows) = (&self.tracked, &mut self.shadows);
            cx.scope(|cx| {
                let mut back = Backward { cx, tracked, shadows, path: &note.path, moved: &note.moved };
                note.op.backward(&mut back)
            })?;
            for view in &note.ends {
                let view = self.shadows.of(cx, view)?;
                clear(cx, &view)?;
            }
        }
        Ok(())
    }

    /// A number that grows with whatever may need activations later.
    pub(crate) fn noted(&self) -> usize {
        self.notes.len() + self.copied + self.segment.as_ref().map_or(0, Segment::len)
    }

    /// Ops noted so far.
    #[must_use]
    pub fn len(&self) -> usize {
        self.notes.len()
    }

    /// Whether nothing was noted.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.notes.is_empty()
    }
}

impl Note {
    fn new(path: &str, op: Box<dyn Taped>, ends: impl IntoIterator<Item = View>) -> Self {
        let needed = op.needs().before;
        Self { path: path.to_owned(), op, needed, moved: SmallVec::new(), ends: ends.into_iter().collect() }
    }
}

/// Copies what is needed of what is to be written, unless it has been copied for another.
fn move_away(
    cx: &mut Ctx,
    needed: &mut Vec<View>,
    moved: &mut SmallVec<[Moved; 2]>,
    copies: &mut Vec<Moved>,
    written: &View,
    owned: bool,
) -> Result<()> {
    while let Some(at) = needed.iter().position(|view| view.overlaps(written)) {
        let view = needed.swap_remove(at);
        let copy = match copies.iter().find(|moved| moved.find(&view).is_some()) {
            Some(copy) => copy.clone(),
            None => {
                let copy = Moved::copy(cx, &view, owned)?;
                copies.push(copy.clone());
                copy
            }
        };
        moved.push(copy);
    }
    Ok(())
}

/// Adds the bytes of a view.
fn add_range(all: &mut Tracked, view: &View) {
    let ranges = all.entry(view.storage().id()).or_default();
    let bytes = view.byte_range();
    // Results follow each other in the arena: most ranges grow at their end.
    match ranges.last_mut() {
        Some(last) if last.start <= bytes.start && bytes.start <= last.end => {
            last.end = last.end.max(bytes.end);
        }
        _ => ranges.push(bytes),
    }
}

impl Ctx {
    /// Begins to note what runs, until [`recorded`](Self::recorded). Scopes end nothing meanwhile: activations stay.
    pub fn record(&mut self, trained: &[Trained]) {
        self.tape = Some(Tape::new(trained, self.arena_mark(), false));
    }

    /// As [`record`](Self::record), but activations of [parts](Self::segment) are computed again when they are wanted: memory for time.
    pub fn record_lean(&mut self, trained: &[Trained]) {
        self.tape = Some(Tape::new(trained, self.arena_mark(), true));
    }

    /// Ends what [`record`](Self::record) began and gives what was noted, for [`Tape::backward`]. Activations stay until
    /// [`forget`](Self::forget).
    pub fn recorded(&mut self) -> Option<Tape> {
        self.tape.take()
    }

    /// Ends the activations of a tape, and the tape.
    pub fn forget(&mut self, tape: Tape) {
        self.release(tape.mark);
        tape.shadows.retire(self);
    }

    /// Runs an op through the tape.
    pub(crate) fn exec_taped<O: Op>(&mut self, path: &str, op: &O) -> Result<()>
    where
        dyn Stream: Exec<O>,
    {
        let Some(mut tape) = self.tape.take() else { return self.exec_now(path, op) };
        let ran = tape.run(self, path, op);
        self.tape = Some(tape);
        ran
    }
}
