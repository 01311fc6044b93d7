//! `ocelli serve`: answers over HTTP.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ocelli_engine::scheduler::{Limits, Scheduler, Worker};
use ocelli_engine::{EmbeddingPipeline, Gives, Pipeline};
use ocelli_serve::{Allowed, Config, Engine, Server, VectorWorker};
use serde_json::json;

use crate::args::ServeArgs;
use crate::fail::{Failure, Outcome, print, survive_panics};
use crate::interrupt::Gentle;
use crate::open;
use crate::progress::Spinner;

/// Runs the command: until a signal comes, then until what runs has ended.
pub fn serve(args: &ServeArgs) -> Outcome {
    let remote = Allowed::read(&args.allow_remote_images)
        .map_err(|error| Failure::usage(format!("--allow-remote-images: {error}")))?;
    let media_root = args.media_root.as_ref().map(|root| {
        let named = |error| Failure::new(format!("--media-root: {}: {error}", root.display()));
        root.canonicalize().map_err(named)
    });
    let media_root = media_root.transpose()?;
    raise_files();
    let address = SocketAddr::new(args.host, args.port);
    let server = Server::bind(address).map_err(|error| {
        Failure::new(format!("{address}: {error}")).hint("--port takes another one; 0 any that is free")
    })?;
    let (device, precision) = open::device(&args.device)?;
    let spinner = Spinner::new("loading the model");
    let (files, loaded, threads, mut cx) = open::any(&args.model, &*device, precision)?;
    let (info, caps) = (loaded.model.info().clone(), device.caps());
    let details = json!({
        "family": info.family, "gives": loaded.model.gives().to_string(), "parts": loaded.model.parts(),
        "backend": caps.backend, "device": caps.device, "isa": caps.isa.name(), "threads": caps.units,
        "dtype": precision.dtype, "layers": info.layers, "d_model": info.d_model, "vocab": info.vocab,
        "max_positions": info.max_positions, "kv_tokens": args.kv_tokens, "max_running": args.max_running,
        "max_queue": args.max_queue, "max_images": args.max_images, "max_pixels": args.max_pixels,
        "max_body": args.max_body,
    });
    survive_panics();
    let (engine, worker, vectors) = match loaded.model.gives() {
        Gives::Answers => {
            let pipeline = Box::new(Pipeline::new(&files, loaded, threads)?);
            let limits = Limits {
                seqs: args.max_running,
                kv_tokens: args.kv_tokens,
                ..Limits::default().remembering()
            };
            let (model, tokenizer) = (pipeline.model.clone(), pipeline.tokenizer.clone());
            let worker = Worker::spawn(move || {
                let scheduler = Scheduler::new(&mut cx, model, tokenizer, limits)?;
                Ok((cx, scheduler))
            })?;
            (Engine::Answers { pipeline, client: worker.client(), limits }, Some(worker), None)
        }
        Gives::Vectors => {
            let pipeline = Arc::new(EmbeddingPipeline::new(&files, loaded, threads)?);
            let (worker, client) = VectorWorker::spawn(pipeline.clone(), cx)?;
            (Engine::Vectors { pipeline, client }, None, Some(worker))
        }
    };
    let name = args.name.clone().unwrap_or_else(|| name(args.model.model.as_deref()));
    let config = Config {
        name,
        api_keys: args.api_keys.clone(),
        max_queue: args.max_queue,
        max_body: args.max_body,
        max_images: args.max_images,
        max_pixels: args.max_pixels,
        timeout: Duration::from_secs(args.timeout),
        drain: Duration::from_secs(args.drain),
        media_root,
        remote,
        cors: args.cors.clone(),
        info: details,
    };
    drop(spinner);
    let gentle = Gentle::begin();
    print(&format!("{} listens at http://{}\n", config.name, server.address()))?;
    server.run(config, engine, worker, || gentle.asked())?;
    vectors.into_iter().for_each(VectorWorker::join);
    Ok(ExitCode::SUCCESS)
}

/// What a model is called: its name on the hub, or that of its directory.
fn name(model: Option<&str>) -> String {
    let Some(model) = model else { return "demo".into() };
    let path = std::path::Path::new(model);
    match path.canonicalize().ok().as_deref().and_then(std::path::Path::file_name) {
        Some(name) => name.to_string_lossy().into_owned(),
        None => model.to_owned(),
    }
}

/// Each connection is an open file: as many are taken as the system lets the process have.
#[cfg(unix)]
fn raise_files() {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: `limit` is written to.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } == 0 {
        limit.rlim_cur = limit.rlim_max.min(65_536).max(limit.rlim_cur);
        // SAFETY: `limit` is read; a refusal leaves what was there.
        unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) };
    }
}

#[cfg(not(unix))]
fn raise_files() {}
