//! Errors of ops and backends.

use std::fmt;

use super::{Backend, DType};

/// Operands that do not fit each other, with what was expected and what was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShapeError(Box<str>);

impl ShapeError {
    /// An error with this text, which names op, operand, axis, expected and found.
    pub fn new(text: impl Into<String>) -> Self {
        Self(text.into().into_boxed_str())
    }

    /// `operand` must be `expected` but is `found`.
    pub fn mismatch(operand: &str, expected: impl fmt::Display, found: impl fmt::Display) -> Self {
        Self::new(format!("{operand}: expected {expected}, found {found}"))
    }

    pub(super) fn too_large(shape: &[usize]) -> Self {
        Self::new(format!("shape {shape:?}: more elements than can be addressed"))
    }

    /// The same error with the name of its op in front.
    #[must_use]
    pub fn of_op(self, op: &str) -> Self {
        Self::new(format!("{op}: {}", self.0))
    }
}

impl fmt::Display for ShapeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl std::error::Error for ShapeError {}

/// Why an op, an allocation or a device failed.
#[derive(Debug, thiserror::Error)]
pub enum KernelError {
    /// The operands do not fit.
    #[error("{0}")]
    Shape(#[from] ShapeError),
    /// No variant of this op runs this spec on this device.
    #[error("{op} {spec}: no {backend} kernel runs it ({reasons})")]
    Unsupported {
        /// Name of the op.
        op: &'static str,
        /// The spec in its text form.
        spec: String,
        /// The backend that was asked.
        backend: Backend,
        /// Each variant with its reason.
        reasons: String,
    },
    /// A value inside a buffer is out of range: a token id, a slot, a row.
    #[error("{op}: {what} {index} is out of range: expected less than {limit}")]
    Index {
        /// Name of the op.
        op: &'static str,
        /// What the value is.
        what: &'static str,
        /// The value found.
        index: i64,
        /// One past the largest value allowed.
        limit: usize,
    },
    /// A view lies in memory that this stream may not use so.
    #[error("a view of {found} was given to a {expected} stream")]
    WrongStorage {
        /// The storage that the stream works on.
        expected: &'static str,
        /// The storage of the view.
        found: &'static str,
    },
    /// A writable buffer belongs to another stream.
    #[error("a buffer of another stream was used; copy it through the host")]
    WrongStream,
    /// A write to memory that is only read, a mapped file for one.
    #[error("write to read-only memory")]
    ReadOnly,
    /// A view was read as another type.
    #[error("a view of {found} was read as {expected}")]
    WrongDType {
        /// The type asked for.
        expected: DType,
        /// The type of the view.
        found: DType,
    },
    /// Memory could not be had.
    #[error("out of memory: {bytes} bytes on {device}")]
    OutOfMemory {
        /// Bytes asked for.
        bytes: usize,
        /// The device.
        device: String,
    },
    /// A kernel's source was refused by a compiler.
    #[error("kernel {kernel}: {what}")]
    Compile {
        /// Its source file, and the op and variant it was compiled for.
        kernel: String,
        /// What the compiler said.
        what: String,
    },
    /// The device is gone: removed, reset, or out of memory for good.
    #[error("{device}: device lost ({doing}): {what}")]
    Lost {
        /// The device.
        device: String,
        /// What the driver said.
        what: String,
        /// What it was asked to do.
        doing: String,
    },
    /// The device did not answer.
    #[error("{device}: no answer in {seconds} s ({doing})")]
    Timeout {
        /// The device.
        device: String,
        /// How long the host waited.
        seconds: f64,
        /// What it was asked to do.
        doing: String,
    },
    /// The device or its driver cannot be used.
    #[error("{0}")]
    Device(String),
}

impl KernelError {
    /// Whether the device cannot be used any more: it is lost, or does not answer.
    #[must_use]
    pub const fn ends_device(&self) -> bool {
        matches!(self, Self::Lost { .. } | Self::Timeout { .. })
    }

    /// The same error with the names of op and variant, where it does not say them.
    #[must_use]
    pub fn in_variant(self, op: &str, variant: &str) -> Self {
        match self {
            Self::Device(what) => Self::Device(format!("{op} {variant}: {what}")),
            Self::Compile { kernel, what } => {
                Self::Compile { kernel: format!("{kernel} ({op} {variant})"), what }
            }
            other => other,
        }
    }
}
