//! How commands end: one `error:` line, at most one `hint:` line, and the exit code.

use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering};

use clap::error::ErrorKind;
use ocelli_engine::files::FileError;
use ocelli_engine::text::TextError;
use ocelli_engine::weights::WeightError;
use ocelli_engine::{Error, Gives};

use crate::args::TIP;
use crate::interrupt;
use crate::otlp::Export;

/// Done, but what was asked for does not hold: a verification that failed.
pub const FAILED: u8 = 1;
/// Done, but some of the many things that were asked for have an error in place of a result.
pub const SOME_FAILED: u8 = 3;
/// Wrong arguments.
const USAGE: u8 = 2;

/// Why a command failed.
#[derive(Debug)]
pub struct Failure {
    message: String,
    hint: Option<String>,
    code: u8,
}

/// Result of a command: the exit code, or a failure to report.
pub type Outcome = Result<ExitCode, Failure>;

impl Failure {
    /// A failure of the work itself.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: FAILED }
    }

    /// Wrong arguments that only show once they are used.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: USAGE }
    }

    /// Ended by a signal.
    pub fn interrupted(message: impl Into<String>) -> Self {
        Self { message: message.into(), hint: None, code: interrupt::code() }
    }

    /// With a line on what to do about it.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }

    /// Whether the arguments are wrong, not what they name.
    pub fn is_usage(&self) -> bool {
        self.code == USAGE
    }

    /// The error line without its `error: `.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// Prints it alone: something that does not end the command.
    pub fn tell(&self) {
        say(&self.message, self.hint.as_deref());
    }

    /// Prints it and gives the exit code.
    pub fn report(self) -> ExitCode {
        say(&self.message, self.hint.as_deref());
        ExitCode::from(self.code)
    }
}

/// Writes the lines of an error. A stderr that is closed is no further failure.
fn say(message: &str, hint: Option<&str>) {
    let mut err = std::io::stderr().lock();
    let _ = writeln!(err, "error: {}", one_line(message));
    if let Some(hint) = hint {
        let _ = writeln!(err, "hint: {}", one_line(hint));
    }
}

/// Makes a panic of any thread one error line and the end of the process.
pub fn catch_panics() {
    std::panic::set_hook(Box::new(|info| {
        say_panic(info);
        std::process::exit(i32::from(FAILED));
    }));
}

/// Makes a panic of any thread one error line: what one request does is not to end those of others.
pub fn survive_panics() {
    std::panic::set_hook(Box::new(say_panic));
}

fn say_panic(info: &std::panic::PanicHookInfo<'_>) {
    let text = info.payload_as_str().unwrap_or("panic");
    let place = info.location().map(|place| format!(" ({}:{})", in_crate(place.file()), place.line()));
    let place = place.unwrap_or_default();
    say(&format!("internal: {text}{place}"), Some("this is a bug of ocelli; please report it"));
    if std::env::var_os("RUST_BACKTRACE").is_some_and(|value| value != "0") {
        let _ = writeln!(std::io::stderr(), "{}", std::backtrace::Backtrace::force_capture());
    }
}

/// A source file from its crate's folder on: nobody needs to know where the binary was built.
fn in_crate(file: &str) -> String {
    let parts: Vec<&str> = file.split(['/', '\\']).collect();
    let absolute = file.starts_with(['/', '\\']) || parts[0].ends_with(':');
    let src = parts.iter().rposition(|&part| part == "src");
    match (absolute, src) {
        (false, _) => file.to_owned(),
        (true, Some(at)) => parts[at.saturating_sub(1)..].join("/"),
        (true, None) => parts.last().copied().unwrap_or_default().to_owned(),
    }
}

/// Line breaks and control characters of file names and of other programs' messages become visible.
fn one_line(text: &str) -> String {
    let mut line = String::with_capacity(text.len());
    for c in text.trim_end().chars() {
        match c {
            '\n' => line.push_str("; "),
            c if c.is_control() => line.extend(c.escape_default()),
            c => line.push(c),
        }
    }
    line
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        let code = match &error {
            Error::Param(_) | Error::Grammar(_) => USAGE,
            Error::Cancelled => interrupt::code(),
            _ => FAILED,
        };
        let hint = error.hint().or_else(|| way_out(&error).map(str::to_owned));
        Self { hint, message: error.to_string(), code }
    }
}

/// What to do about errors of a kind, in the words of the command line.
fn way_out(error: &Error) -> Option<&'static str> {
    const DAMAGED: &str = "the file may be damaged or only partly downloaded; get it again";
    const DIRECTORY: &str = "a model is a directory with config.json, tokenizer.json and model.safetensors (or shards with their index)";
    const LOOK: &str = "`ocelli inspect MODEL` shows what is known of a model; `ocelli run` without --model has one built in";
    let of_file = |error: &FileError| match error {
        FileError::Missing(_) => Some(DIRECTORY),
        FileError::Json { .. } | FileError::Utf8 { .. } => Some(DAMAGED),
        _ => None,
    };
    match error {
        Error::File(error) | Error::Weights(WeightError::File(error)) => of_file(error),
        Error::Weights(WeightError::Invalid { .. }) => Some(DAMAGED),
        Error::Weights(WeightError::NoFile { instead: None, .. }) => Some(DIRECTORY),
        Error::Weights(WeightError::NoFile { .. }) => {
            Some("transformers reads it, and writes safetensors by `save_pretrained`")
        }
        Error::Weights(WeightError::Tensor { .. }) => {
            Some("the file may be damaged, only partly downloaded, or of another model than config.json")
        }
        Error::Weights(WeightError::Unsupported { .. }) => {
            Some("`ocelli quantize` makes int8 and int4 copies of an unquantized checkpoint")
        }
        Error::Weights(WeightError::Missing { .. }) => {
            Some("config.json and the weights may belong to different models")
        }
        Error::Config { .. } => Some(LOOK),
        Error::OtherKind { found: Gives::Vectors, .. } => {
            Some("`ocelli embed` and `ocelli classify` take models that give vectors")
        }
        Error::OtherKind { .. } => {
            Some("`ocelli run` takes models that give answers; CLIP, SigLIP and SigLIP 2 give vectors")
        }
        Error::Text(TextError::File(error)) => of_file(error),
        Error::Text(TextError::Conversation { .. }) => Some(
            "messages are a list of objects with `role` and `content`, or an object with such a list as `messages`",
        ),
        Error::Text(_) => {
            Some("tokenizer and chat template have to be those of the model; get its files again")
        }
        Error::Param(_) => Some("`ocelli run --help` lists the parameters with their ranges"),
        _ => None,
    }
}

impl From<ocelli_engine::hub::HubError> for Failure {
    fn from(error: ocelli_engine::hub::HubError) -> Self {
        Error::from(error).into()
    }
}

impl From<ocelli_engine::image::ImageError> for Failure {
    fn from(error: ocelli_engine::image::ImageError) -> Self {
        Error::from(error).into()
    }
}

impl From<ocelli_kernels::KernelError> for Failure {
    fn from(error: ocelli_kernels::KernelError) -> Self {
        Error::from(error).into()
    }
}

impl From<serde_json::Error> for Failure {
    fn from(error: serde_json::Error) -> Self {
        Self::new(error.to_string())
    }
}

impl From<std::io::Error> for Failure {
    fn from(error: std::io::Error) -> Self {
        Self::new(error.to_string())
    }
}

/// Prints a usage error in the common form, or the help that was asked for.
pub fn usage(error: &clap::Error) -> ExitCode {
    if !error.use_stderr() {
        let printed = print(&error.render().to_string());
        return printed.map_or_else(Failure::report, |()| ExitCode::SUCCESS);
    }
    if error.kind() == ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand {
        let hint = "`ocelli --help` and `ocelli COMMAND --help` list what is accepted";
        return Failure::usage("no command given").hint(hint).report();
    }
    let text = error.render().to_string();
    let mut lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    let first = lines.next().unwrap_or("wrong arguments");
    let mut message = first.trim_start_matches("error: ").to_owned();
    let mut hint = "`ocelli --help` and `ocelli COMMAND --help` list what is accepted".to_owned();
    for line in lines.take_while(|line| !line.starts_with("For more")) {
        if let Some(tip) = line.strip_prefix(TIP) {
            hint = tip.to_owned();
            break;
        }
        match line.strip_prefix("Usage: ") {
            Some(usage) => hint = format!("usage: {usage} (`--help` says more)"),
            None => message = format!("{message} {line}"),
        }
    }
    Failure::usage(message).hint(hint).report()
}

/// Sends logs to stderr, by `-v`, `-q` or `RUST_LOG`, and spans where they are exported to.
pub fn logging(verbose: u8, quiet: bool, export: Option<&Export>) {
    use tracing_subscriber::layer::SubscriberExt;
    use tracing_subscriber::util::SubscriberInitExt;
    use tracing_subscriber::{EnvFilter, Layer};
    let level = if quiet { "error" } else { ["warn", "info", "debug"][usize::from(verbose.min(2))] };
    QUIET.store(quiet, Ordering::Relaxed);
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new(level));
    let logs =
        tracing_subscriber::fmt::layer().with_writer(std::io::stderr).without_time().with_target(false);
    let logs = tracing_subscriber::registry().with(logs.with_filter(filter));
    // A second subscriber cannot come: this is the only place that sets one.
    let _ = match export {
        Some(export) => logs.with(export.layer()).try_init(),
        None => logs.try_init(),
    };
}

static QUIET: AtomicBool = AtomicBool::new(false);

/// Whether stderr is for errors alone.
pub fn quiet() -> bool {
    QUIET.load(Ordering::Relaxed)
}

/// Writes a line to stderr that users should know of, unless they want to be left alone.
pub fn note(text: &str) {
    if !quiet() {
        let _ = writeln!(std::io::stderr(), "note: {}", one_line(text));
    }
}

/// Writes a line to stdout. A reader that has gone away ends the program quietly.
pub fn print(text: &str) -> Result<(), Failure> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text.as_bytes()).and_then(|()| out.flush()) {
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => std::process::exit(0),
        other => Ok(other?),
    }
}

/// Writes one JSON object and a line break to stdout.
pub fn print_json(value: &impl serde::Serialize) -> Result<(), Failure> {
    print(&format!("{}\n", serde_json::to_string(value)?))
}

#[cfg(test)]
mod tests {
    use super::in_crate;

    #[test]
    fn places_of_panics_begin_at_the_crate() {
        for (file, shown) in [
            ("engine/src/text/stop.rs", "engine/src/text/stop.rs"),
            (
                "/h/me/.cargo/registry/src/index-1949cf8c/hf-hub-0.5.0/src/api/sync.rs",
                "hf-hub-0.5.0/src/api/sync.rs",
            ),
            ("/rustc/ab12/library/core/src/option.rs", "core/src/option.rs"),
            ("C:\\Users\\me\\registry\\src\\index\\gif-0.14.1\\src\\lib.rs", "gif-0.14.1/src/lib.rs"),
            ("/h/me/target/release/build/x-1/out/made.rs", "made.rs"),
            ("/src/lib.rs", "/src/lib.rs"),
            ("lib.rs", "lib.rs"),
        ] {
            assert_eq!(in_crate(file), shown);
        }
    }
}
