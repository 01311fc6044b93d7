//! OpenAI's protocol over HTTP in front of the scheduler: chats with pictures, texts, vectors, and a page to try them.
//!
//! A request is read on the server's threads, its pictures are decoded and its prompt is laid out on a few threads that may wait, and
//! the scheduler's own thread answers it. Whoever goes away cancels what they asked for.

mod answer;
mod app;
mod batches;
mod caller;
mod calls;
mod chat;
mod error;
mod fields;
mod files;
mod forms;
mod images;
mod likely;
mod metrics;
mod page;
mod pictures;
mod remote;
mod search;
mod server;
mod shape;
mod stream;
mod tools;
mod vectors;

pub use app::{Adopt, Config, Engine, Planner};
pub use caller::Caller;
pub use remote::Allowed;
pub use search::Search;
pub use server::Server;
pub use vectors::{Client as VectorClient, Worker as VectorWorker};
