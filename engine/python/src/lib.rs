//! Ocelli for Python: what `ocelli/__init__.py` stands on. All work runs with the interpreter's lock released.

mod engine;
mod error;
mod pictures;
mod results;

use pyo3::prelude::*;

#[pymodule]
fn _ocelli(module: &Bound<'_, PyModule>) -> PyResult<()> {
    use tracing_subscriber::EnvFilter;
    // Warnings of loading, as the command writes them; a host program that has a subscriber keeps it.
    let filter = EnvFilter::try_from_default_env().unwrap_or_else(|_| EnvFilter::new("warn"));
    let logs = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).without_time();
    let _ = logs.with_target(false).try_init();
    module.add("OcelliError", module.py().get_type::<error::OcelliError>())?;
    module.add("__version__", env!("CARGO_PKG_VERSION"))?;
    module.add_class::<engine::Engine>()?;
    module.add_class::<results::Answer>()?;
    module.add_class::<results::Stream>()?;
    module.add_class::<results::Results>()
}
