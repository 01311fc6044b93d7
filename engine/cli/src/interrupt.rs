//! Ctrl-C: at once, or gently where a command has results to keep.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::fail::{Failure, INTERRUPTED};

/// The process ends at once.
const AT_ONCE: u8 = 0;
/// The command is asked to end.
const GENTLY: u8 = 1;
/// The command has been asked to end.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(AT_ONCE);

/// From here on Ctrl-C ends the process with exit code 130: at once, or while a [`Gentle`] lives when the command has
/// seen to it. A second Ctrl-C always ends it at once.
pub fn install() -> Result<(), Failure> {
    ctrlc::set_handler(|| {
        if STATE.compare_exchange(GENTLY, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            std::process::exit(i32::from(INTERRUPTED));
        }
    })
    .map_err(|error| Failure::new(format!("Ctrl-C handler: {error}")))
}

/// While it lives, the first Ctrl-C is only noted.
pub struct Gentle(());

impl Gentle {
    /// Begins.
    pub fn begin() -> Self {
        STATE.store(GENTLY, Ordering::Relaxed);
        Self(())
    }

    /// Whether Ctrl-C came.
    pub fn asked(&self) -> bool {
        STATE.load(Ordering::Relaxed) == ASKED
    }
}

impl Drop for Gentle {
    fn drop(&mut self) {
        STATE.store(AT_ONCE, Ordering::Relaxed);
    }
}
