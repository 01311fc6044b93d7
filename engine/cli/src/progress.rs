//! Progress on stderr, only where that is a terminal.

use std::io::IsTerminal;
use std::time::Duration;

use indicatif::{ProgressBar, ProgressStyle};
use ocelli_engine::hub::DownloadProgress;

/// Whether stderr is a terminal, and is wanted for more than errors.
pub fn visible() -> bool {
    std::io::stderr().is_terminal() && !crate::fail::quiet()
}

/// A spinner with a text, until it is dropped. Nothing where stderr is no terminal.
pub struct Spinner(Option<ProgressBar>);

impl Spinner {
    /// Starts to spin.
    pub fn new(text: &str) -> Self {
        Self(visible().then(|| {
            let bar = ProgressBar::new_spinner();
            bar.set_message(text.to_owned());
            bar.enable_steady_tick(Duration::from_millis(100));
            bar
        }))
    }

    /// Changes the text.
    pub fn say(&self, text: &str) {
        if let Some(bar) = &self.0 {
            bar.set_message(text.to_owned());
        }
    }

    /// Writes to stderr while it is out of the way.
    pub fn pause(&self, write: impl FnOnce()) {
        match &self.0 {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Spinner {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A bar of the bytes of a download.
#[derive(Default)]
pub struct Download(Option<ProgressBar>);

impl DownloadProgress for Download {
    fn begin(&mut self, files: usize, bytes: Option<u64>) {
        if !visible() {
            return;
        }
        let bar = bytes.map_or_else(ProgressBar::no_length, ProgressBar::new);
        let style =
            ProgressStyle::with_template("{msg} [{bar:30}] {bytes}/{total_bytes} {bytes_per_sec} {eta}");
        bar.set_style(style.unwrap_or_else(|_| ProgressStyle::default_bar()));
        bar.set_message(format!("{files} files"));
        self.0 = Some(bar);
    }

    fn file(&mut self, name: &str, size: u64, present: u64) {
        if let Some(bar) = &self.0 {
            bar.set_message(name.to_owned());
            bar.inc(present);
            if bar.length().is_none() {
                bar.set_length(bar.position() + size - present.min(size));
            }
        }
    }

    fn advance(&mut self, bytes: u64) {
        if let Some(bar) = &self.0 {
            bar.inc(bytes);
        }
    }

    fn notice(&mut self, text: &str) {
        match &self.0 {
            Some(bar) => bar.println(text),
            None => tracing::warn!("{text}"),
        }
    }
}

impl Drop for Download {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A bar of bytes that are worked through.
pub struct Bytes(Option<ProgressBar>);

impl Bytes {
    /// An empty bar. Nothing where stderr is no terminal.
    pub fn new() -> Self {
        let style = ProgressStyle::with_template("[{bar:30}] {bytes}/{total_bytes} {wide_msg}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        Self(visible().then(|| ProgressBar::no_length().with_style(style)))
    }

    /// Shows what is in work and how far it is.
    pub fn at(&mut self, name: &str, done: u64, total: u64) {
        if let Some(bar) = &self.0 {
            bar.set_length(total);
            bar.set_position(done);
            bar.set_message(name.to_owned());
        }
    }
}

impl Drop for Bytes {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}

/// A bar of things that are done one after the other.
pub struct Steps(Option<ProgressBar>);

impl Steps {
    /// A bar of `all` things of a kind. Nothing where stderr is no terminal.
    pub fn new(what: &str, all: usize) -> Self {
        let style = ProgressStyle::with_template("{msg} [{bar:30}] {pos}/{len} {per_sec} {eta}");
        let style = style.unwrap_or_else(|_| ProgressStyle::default_bar());
        let bar = || ProgressBar::new(all as u64).with_style(style).with_message(what.to_owned());
        Self(visible().then(bar))
    }

    /// So many more are done.
    pub fn advance(&self, count: usize) {
        if let Some(bar) = &self.0 {
            bar.inc(count as u64);
        }
    }

    /// Writes to stdout or stderr while the bar is out of the way.
    pub fn pause<R>(&self, write: impl FnOnce() -> R) -> R {
        match &self.0 {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }
}

impl Drop for Steps {
    fn drop(&mut self) {
        if let Some(bar) = &self.0 {
            bar.finish_and_clear();
        }
    }
}
