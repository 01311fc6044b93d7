//! Ctrl-C and the other signals that end a process: at once, or gently where a command has results to keep.

use std::sync::atomic::{AtomicU8, Ordering};

use crate::fail::Failure;

/// The process ends at once.
const AT_ONCE: u8 = 0;
/// The command is asked to end.
const GENTLY: u8 = 1;
/// The command has been asked to end.
const ASKED: u8 = 2;

static STATE: AtomicU8 = AtomicU8::new(AT_ONCE);

/// What shells add to a signal's number where a process ended by it.
const BY_SIGNAL: u8 = 128;

/// That of Ctrl-C until another signal came.
static CODE: AtomicU8 = AtomicU8::new(BY_SIGNAL + 2);

/// The exit code of a command that a signal ended: 130 for Ctrl-C, 143 for SIGTERM.
pub fn code() -> u8 {
    CODE.load(Ordering::Relaxed)
}

/// From here on Ctrl-C, SIGTERM and SIGHUP end the process with their exit code: at once, or while a [`Gentle`] lives when
/// the command has seen to it. A second one always ends it at once.
pub fn install() -> Result<(), Failure> {
    listen().map_err(|error| Failure::new(format!("signal handler: {error}")))
}

fn came(signal: u8) {
    CODE.store(BY_SIGNAL + signal, Ordering::Relaxed);
    if STATE.compare_exchange(GENTLY, ASKED, Ordering::Relaxed, Ordering::Relaxed).is_err() {
        std::process::exit(i32::from(code()));
    }
}

#[cfg(unix)]
fn listen() -> std::io::Result<()> {
    use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};
    let mut signals = vec![SIGINT, SIGTERM];
    // `nohup` stays in force.
    if !is_ignored(SIGHUP) {
        signals.push(SIGHUP);
    }
    let mut signals = signal_hook::iterator::Signals::new(signals)?;
    let run = move || signals.forever().for_each(|signal| came(u8::try_from(signal).unwrap_or(0)));
    std::thread::Builder::new().name("signals".into()).spawn(run).map(drop)
}

#[cfg(unix)]
fn is_ignored(signal: i32) -> bool {
    // SAFETY: zeros are a valid value of the struct.
    let mut now: libc::sigaction = unsafe { std::mem::zeroed() };
    // SAFETY: asks for the present action and sets none; `now` is written to.
    let asked = unsafe { libc::sigaction(signal, std::ptr::null(), &mut now) };
    asked == 0 && now.sa_sigaction == libc::SIG_IGN
}

#[cfg(not(unix))]
fn listen() -> Result<(), ctrlc::Error> {
    ctrlc::set_handler(|| came(2))
}

/// While it lives, the first signal is only noted.
pub struct Gentle(());

impl Gentle {
    /// Begins.
    pub fn begin() -> Self {
        STATE.store(GENTLY, Ordering::Relaxed);
        Self(())
    }

    /// Whether a signal came.
    pub fn asked(&self) -> bool {
        STATE.load(Ordering::Relaxed) == ASKED
    }
}

impl Drop for Gentle {
    fn drop(&mut self) {
        STATE.store(AT_ONCE, Ordering::Relaxed);
    }
}
