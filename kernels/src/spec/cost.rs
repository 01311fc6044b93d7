//! What one execution of an op costs at least.

use std::ops::{Add, AddAssign};

use serde::Serialize;

/// Arithmetic and traffic that an op cannot avoid; masks count only what they keep.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize)]
pub struct Cost {
    /// Floating-point operations; a multiply-add is two.
    pub flops: u64,
    /// Bytes that must be read once.
    pub read: u64,
    /// Bytes that must be written once.
    pub written: u64,
}

impl Cost {
    /// Bytes read and written.
    #[must_use]
    pub fn bytes(&self) -> u64 {
        self.read + self.written
    }
}

impl Add for Cost {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            flops: self.flops + other.flops,
            read: self.read + other.read,
            written: self.written + other.written,
        }
    }
}

impl AddAssign for Cost {
    fn add_assign(&mut self, other: Self) {
        *self = *self + other;
    }
}
