//! `--otlp` where this command was built without it.

use ocelli_serve::Caller;

use crate::fail::Failure;

/// Leaves a span as it is.
pub fn adopt(_: &tracing::Span, _: &Caller) {}

/// Spans on their way: there are none.
pub enum Export {}

impl Export {
    /// # Errors
    /// Always.
    pub fn to(_url: &str, _verbose: bool) -> Result<Self, Failure> {
        Err(Failure::usage("--otlp: this ocelli was built without the feature `otlp`"))
    }

    /// Nothing.
    pub fn layer(&self) -> tracing_subscriber::layer::Identity {
        match *self {}
    }
}
