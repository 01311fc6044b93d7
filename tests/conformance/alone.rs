//! Batch-invariant choices on the CPU.

use std::sync::Arc;

use ocelli_kernels::conformance::{Kinds, alone_as_among_others};
use ocelli_kernels::cpu::CpuDevice;
use ocelli_kernels::cpu::pool::Pool;
use ocelli_kernels::{Device, Picks};

#[test]
fn a_row_is_the_same_alone_and_among_others() {
    for isa in super::levels() {
        let mut device = CpuDevice::at(isa, Arc::new(Pool::new(3)));
        let mut picks = Picks::default();
        picks.set_batch_invariant(true);
        device.prefer(picks);
        let ran = alone_as_among_others(&device, Kinds::All, super::SEED);
        let ran = ran.unwrap_or_else(|error| panic!("{isa}: {error}"));
        assert!(ran > 40, "{isa}: {ran} kinds");
    }
}

/// The check finds what the usual choices do: few rows are summed in another order than many.
#[test]
fn usual_choices_depend_on_the_batch() {
    let device = CpuDevice::at(super::levels()[0], Arc::new(Pool::new(1)));
    let found = alone_as_among_others(&device, Kinds::All, super::SEED).unwrap_err();
    assert!(found.contains("differ from those of the whole batch"), "{found}");
}
