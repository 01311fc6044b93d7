//! A place in a checkpoint's tree of names.

use std::fmt;

use ocelli_kernels::View;

use super::stack::Stack;
use super::{Checkpoint, Note, Role, TensorInfo, WeightError};

/// A prefix of tensor names, from which a part of a model takes its tensors.
///
/// Cheap to make; it borrows the checkpoint.
#[derive(Clone)]
pub struct Scope<'a> {
    checkpoint: &'a Checkpoint,
    /// Without a dot at its end; empty at the root.
    prefix: String,
    /// What matrices below are to the model.
    role: Option<Role>,
    /// Which of several matrices is meant that lie one after another in each tensor here.
    pub(super) stack: Option<Stack>,
    /// Whether planes that are made here are let go as soon as they are read: they are neither counted nor left along `n`.
    pub(super) passing: bool,
}

impl<'a> Scope<'a> {
    pub(super) const fn new(checkpoint: &'a Checkpoint, prefix: String) -> Self {
        Self { checkpoint, prefix, role: None, stack: None, passing: false }
    }

    /// The same place, whose matrices are `role` to the model.
    #[must_use]
    pub fn role(&self, role: Role) -> Self {
        Self { role: Some(role), ..self.clone() }
    }

    /// The same place, of which one of several matrices is meant.
    pub(super) fn with_stack(self, stack: Stack) -> Self {
        Self { stack: Some(stack), ..self }
    }

    /// The same place, of which planes that are made are let go as soon as they are read.
    pub(super) fn passing(&self) -> Self {
        Self { passing: true, ..self.clone() }
    }

    /// What matrices here are to the model.
    pub(super) const fn role_here(&self) -> Option<Role> {
        self.role
    }

    /// The checkpoint.
    #[must_use]
    pub const fn checkpoint(&self) -> &'a Checkpoint {
        self.checkpoint
    }

    /// The prefix: `model.text_model.layers.3`.
    #[must_use]
    pub fn prefix(&self) -> &str {
        &self.prefix
    }

    /// The full name of something below; that of this place for an empty name.
    #[must_use]
    pub fn path(&self, name: impl fmt::Display) -> String {
        let name = name.to_string();
        if let Some(joined) = self.joined(&name) {
            return joined;
        }
        match (&*self.prefix, name) {
            ("", name) => name,
            (prefix, name) if name.is_empty() => prefix.to_owned(),
            (prefix, name) => format!("{prefix}.{name}"),
        }
    }

    /// A place below: `layers.at(3)`, `layer.at("self_attn.q_proj")`; this one for an empty name.
    #[must_use]
    pub fn at(&self, name: impl fmt::Display) -> Self {
        let prefix = self.path(name);
        let Self { checkpoint, role, stack, passing, .. } = *self;
        Self { checkpoint, prefix, role, stack, passing }
    }

    /// The first of several places below that has tensors; the first of the list if none has. An empty name is this
    /// place itself.
    #[must_use]
    pub fn at_any(&self, names: &[&str]) -> Self {
        let found = names.iter().map(|name| self.at(name)).find(Self::exists);
        found.unwrap_or_else(|| names.first().map_or_else(|| self.clone(), |name| self.at(name)))
    }

    /// Whether any tensor lies below.
    #[must_use]
    pub fn exists(&self) -> bool {
        let below = |name: &str| name.strip_prefix(&*self.prefix).is_some_and(|rest| rest.starts_with('.'));
        self.checkpoint.names().any(|name| self.prefix.is_empty() || below(name))
    }

    /// Whether there is a tensor of this name below.
    #[must_use]
    pub fn has(&self, name: &str) -> bool {
        self.checkpoint.contains(&self.path(name))
    }

    /// Type and shape of a tensor; of a stack, those of one matrix. Reads no data.
    #[must_use]
    pub fn info(&self, name: &str) -> Option<TensorInfo<'a>> {
        self.checkpoint.info(&self.path(name)).map(|info| self.one_of(info))
    }

    /// A tensor of any shape.
    ///
    /// # Errors
    /// If there is none of that name, or kernels know no such element type or rank.
    pub fn any(&self, name: &str) -> Result<View, WeightError> {
        self.checkpoint.tensor(&self.path(name))
    }

    /// A tensor of this shape.
    ///
    /// # Errors
    /// As [`any`](Self::any), and if the shape is another.
    pub fn tensor(&self, name: &str, shape: &[usize]) -> Result<View, WeightError> {
        self.tensor_any(&[name], shape)
    }

    /// The first that exists of several names of one tensor, of this shape.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn tensor_any(&self, names: &[&str], shape: &[usize]) -> Result<View, WeightError> {
        let Some(name) = names.iter().find(|name| self.has(name)) else {
            let first = names.first().copied().unwrap_or_default();
            if let Some(imagined) = self.checkpoint.imagine(&self.path(first), shape) {
                return imagined;
            }
            let shown: Vec<String> = names.iter().map(|name| self.path(name)).collect();
            return Err(self.checkpoint.missing(&self.path(first), &shown.join("` or `")));
        };
        let path = self.path(name);
        if let Some(info) = self.info(name)
            && info.shape != shape
        {
            return Err(self.wrong_shape(&path, shape, info.shape));
        }
        self.tensor_as(name, shape)
    }

    pub(super) fn wrong_shape(&self, name: &str, expected: &[usize], found: &[usize]) -> WeightError {
        let of = self.stack.map(|stack| format!(" for each of {}", stack.of)).unwrap_or_default();
        let reason = format!("shape: expected {expected:?}{of}, found {found:?}");
        WeightError::tensor(self.checkpoint.path(), name, reason)
    }

    /// A vector or table of this shape that a model takes: [`tensor`](Self::tensor), noted as part of it.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor).
    pub fn take(&self, name: &str, shape: &[usize]) -> Result<View, WeightError> {
        let view = self.tensor(name, shape)?;
        self.checkpoint.note(Note::of_view(self.path(name), self.role, &view));
        Ok(view)
    }

    /// A tensor of this shape, if there is one of that name.
    ///
    /// # Errors
    /// As [`tensor`](Self::tensor), less absence.
    pub fn optional(&self, name: &str, shape: &[usize]) -> Result<Option<View>, WeightError> {
        if self.has(name) { self.tensor(name, shape).map(Some) } else { Ok(None) }
    }
}

impl fmt::Debug for Scope<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} at `{}`", self.checkpoint.path(), self.prefix)
    }
}
