//! `ocelli serve`: answers over HTTP.

use std::net::SocketAddr;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::scheduler::{Limits, Scheduler, Worker};
use ocelli_engine::{Ctx, EmbeddingPipeline, Gives, Loaded, Model, Pipeline, VectorKind};
use ocelli_search::{Index, Live};
use ocelli_serve::{Adopt, Allowed, Config, Engine, Planner, Search, Server, VectorClient, VectorWorker};
use serde_json::json;

use crate::args::ServeArgs;
use crate::fail::{Failure, Outcome, print, survive_panics};
use crate::inspect;
use crate::interrupt::Gentle;
use crate::open;
use crate::otlp;
use crate::progress::Spinner;
use crate::search::about;

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
    let index = args.index.as_deref().map(Index::open).transpose()?;
    let mut details = json!({
        "family": info.family, "gives": loaded.model.gives().to_string(), "parts": loaded.model.parts(),
        "backend": caps.backend, "device": caps.device, "isa": caps.isa.name(), "threads": caps.units,
        "dtype": precision.dtype, "layers": info.layers, "d_model": info.d_model, "vocab": info.vocab,
        "max_positions": info.max_positions, "kv_tokens": args.kv_tokens, "max_running": args.max_running,
        "max_queue": args.max_queue, "max_images": args.max_images, "max_pixels": args.max_pixels,
        "max_body": args.max_body,
    });
    survive_panics();
    let (engine, worker, vectors, search) = match loaded.model.gives() {
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
            let mut search = None;
            if let Some(index) = index {
                let mut cx = Ctx::new(&*device, precision)?;
                // An index that the embedded dual encoder made is asked by that, beside the embedded model that answers.
                let embedded = args.model.model.is_none() && index.about().kind == VectorKind::DualEncoder;
                let files = if embedded { ocelli_models::demo::VECTORS } else { files };
                let loaded = if embedded {
                    ocelli_models::load(&files, &mut cx)?
                } else {
                    // The same weights on a stream of their own, with a processor of their own.
                    let mut processor = (ocelli_models::family(&files)?.processor)(&files)?;
                    open::set_processor(&mut *processor, &args.model.processor)?;
                    let tokenizer = pipeline.tokenizer.clone().into();
                    Loaded { model: Model::Vlm(pipeline.model.clone()), processor, tokenizer }
                };
                let tower = Arc::new(EmbeddingPipeline::of_any(&files, loaded, threads, &mut cx)?);
                let (worker, client) = VectorWorker::spawn(tower.clone(), cx)?;
                search = Some((searched(args, &files, index, tower, client)?, Some(worker)));
            }
            let engine = Engine::Answers { pipeline, client: worker.client(), limits };
            let (search, vectors) = search.map_or((None, None), |(search, worker)| (Some(search), worker));
            (engine, Some(worker), vectors, search)
        }
        Gives::Vectors => {
            let pipeline = Arc::new(EmbeddingPipeline::new(&files, loaded, threads)?);
            let (worker, client) = VectorWorker::spawn(pipeline.clone(), cx)?;
            let search = index.map(|index| searched(args, &files, index, pipeline.clone(), client.clone()));
            (Engine::Vectors { pipeline, client }, None, Some(worker), search.transpose()?)
        }
    };
    if let Some((_, pictures, kind)) = &search {
        details["search"] = json!({"pictures": pictures, "kind": kind});
    }
    let plan = {
        let (model, processor) = (args.model.model.clone(), args.model.processor.clone());
        let caps = caps.clone();
        let plan = move || inspect::planned(model.as_deref(), &processor, &caps, precision);
        Planner(Arc::new(move || plan().map_err(|failure| failure.message().to_owned())))
    };
    let name = args.name.clone().unwrap_or_else(|| name(args.model.model.as_deref()));
    let adapters = args.model.adapters.iter().filter_map(|adapter| adapter.name.clone()).collect();
    let config = Config {
        name,
        adapters,
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
        search: search.map(|(search, ..)| Arc::new(search)),
        files: args.files_dir.clone(),
        plan,
        adopt: args.trace.otlp.as_ref().map(|_| otlp::adopt as Adopt),
    };
    drop(spinner);
    let gentle = Gentle::begin();
    print(&format!("{} listens at http://{}\n", config.name, server.address()))?;
    server.run(config, engine, worker, || gentle.asked())?;
    vectors.into_iter().for_each(VectorWorker::join);
    Ok(ExitCode::SUCCESS)
}

/// An index that can be asked, its pictures, and what its vectors are. Errors if it is of another model.
fn searched(
    args: &ServeArgs,
    files: &ModelFiles,
    index: Index,
    pipeline: Arc<EmbeddingPipeline>,
    client: VectorClient,
) -> Result<(Search, usize, VectorKind), Failure> {
    let root = index.about().root.clone();
    let about = about(args.model.model.as_deref(), files, &pipeline, &args.model.processor, root)?;
    index.is_of(&about)?;
    let (pictures, kind) = (index.len()?, about.kind);
    Ok((Search::new(Live::new(index)?, pipeline, client), pictures, kind))
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
