//! A loaded model.

use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};

use ocelli_engine::adapter::Peft;
use ocelli_engine::choices::cache_dir;
use ocelli_engine::devices::{auto, tuned, usual_dtype, usual_kv};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::hub::{DownloadProgress, HubConfig, ModelRef};
use ocelli_engine::image::{DecodeOptions, Rgb8Image};
use ocelli_engine::parallel::try_map;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::scheduler::{Client, Limits, Request, Scheduler, Worker};
use ocelli_engine::store::FeatureStore;
use ocelli_engine::text::{Content, Conversation, Part, RenderOptions};
use ocelli_engine::{Ctx, EmbeddingPipeline, Error, Gives, Loaded, Model, Pipeline, Precision, VectorKind};
use ocelli_kernels::{Backend, DType, Device, DeviceOptions, Picks};
use ocelli_models::Leftovers;
use pyo3::prelude::*;
use pyo3::types::PyBytes;

use crate::error::{raised, value};
use crate::pictures::{self, Given};
use crate::results::{Results, Stream};

/// Pictures, or texts, whose vectors are computed together.
const BATCH: usize = 16;
/// What begins an address that stands for a picture of the list beside the messages.
const BESIDE: &str = "ocelli-picture:";

/// Tells nobody of downloads.
struct Silent;

impl DownloadProgress for Silent {
    fn begin(&mut self, _: usize, _: Option<u64>) {}

    fn file(&mut self, _: &str, _: u64, _: u64) {}

    fn advance(&mut self, _: u64) {}

    fn notice(&mut self, text: &str) {
        eprintln!("{text}");
    }
}

/// What gives answers.
struct Answers {
    pipeline: Pipeline,
    client: Client,
    /// Ends once nobody asks any more.
    _worker: Worker,
}

type Vectors = (EmbeddingPipeline, Ctx);

/// A loaded model.
#[pyclass(frozen, module = "ocelli")]
pub struct Engine {
    answers: Option<Answers>,
    /// Made when first asked for, where the model gives answers.
    vectors: Mutex<Option<Vectors>>,
    files: ModelFiles,
    processor: Vec<(String, String)>,
    device: Arc<dyn Device>,
    precision: Precision,
    threads: usize,
    decode: DecodeOptions,
    family: &'static str,
}

fn dtype(name: &str, text: &str) -> PyResult<Option<DType>> {
    match text {
        "auto" => Ok(None),
        "f32" => Ok(Some(DType::F32)),
        "bf16" => Ok(Some(DType::BF16)),
        "f16" => Ok(Some(DType::F16)),
        "int8" if name == "kv_dtype" => Ok(Some(DType::I8)),
        other => {
            let more = if name == "kv_dtype" { "f16 or int8" } else { "or f16" };
            Err(value(format!("{name}: expected auto, f32, bf16, {more}, found `{other}`")))
        }
    }
}

fn backend(text: &str) -> PyResult<Option<Backend>> {
    match text {
        "auto" => Ok(None),
        "cpu" => Ok(Some(Backend::Cpu)),
        "wgpu" => Ok(Some(Backend::Wgpu)),
        "cuda" => Ok(Some(Backend::Cuda)),
        other => Err(value(format!("backend: expected auto, cpu, wgpu or cuda, found `{other}`"))),
    }
}

/// What is asked of [`Engine::load`], beside Python.
struct Wanted {
    path: Option<String>,
    backend: Option<Backend>,
    index: usize,
    dtype: Option<DType>,
    kv: Option<DType>,
    threads: Option<usize>,
    fast_int8: bool,
    fast_fp8: bool,
    processor: Vec<(String, String)>,
    template: Vec<(String, String)>,
    strict: bool,
    max_pixels: u64,
    parallel: usize,
    kv_tokens: Option<usize>,
    cache_dir: Option<PathBuf>,
    adapter: Option<PathBuf>,
}

impl Engine {
    fn load(wanted: Wanted) -> Result<Self, Error> {
        let options = DeviceOptions {
            index: wanted.index,
            threads: wanted.threads,
            picks: Picks::default(),
            cache: cache_dir(),
        };
        let mut device = match wanted.backend {
            Some(backend) => ocelli_kernels::open(backend, &options)?,
            None => auto(&options)?,
        };
        let picks = tuned(device.caps(), options.picks);
        // Nobody else holds the device yet.
        if let Some(device) = Arc::get_mut(&mut device) {
            device.prefer(picks);
        }
        let caps = device.caps();
        let precision = Precision {
            dtype: wanted.dtype.unwrap_or_else(|| usual_dtype(caps)),
            kv: wanted.kv.or_else(|| usual_kv(caps, wanted.fast_int8)),
            fast_int8: wanted.fast_int8,
            fast_fp8: wanted.fast_fp8,
            ..Precision::default()
        };
        let threads = match caps.backend {
            Backend::Cpu => caps.units,
            _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
        };
        let dir = ModelRef::parse(wanted.path.as_deref())?.resolve(HubConfig::from_env, &mut Silent)?;
        let files = dir.map_or(ocelli_models::demo::FILES, ModelFiles::Dir);
        let leftovers = if wanted.strict { Leftovers::Refuse } else { Leftovers::Warn };
        let mut cx = Ctx::new(&*device, precision)?;
        let mut loaded = ocelli_models::load_with(&files, &mut cx, leftovers)?;
        let mut features = caps.backend.to_string();
        if let Some(folder) = &wanted.adapter {
            let peft = Peft::open(folder)?;
            let adapter = peft.place(&mut cx, &folder.display().to_string())?;
            cx.adapt(Some(Arc::new(adapter)));
            features += &format!(" {}", peft.identity()?);
        }
        for (key, value) in &wanted.processor {
            loaded.processor.set(key, value)?;
        }
        let info = loaded.model.info().clone();
        let mut engine = Self {
            answers: None,
            vectors: Mutex::new(None),
            files,
            processor: wanted.processor,
            device: device.clone(),
            precision,
            threads,
            decode: DecodeOptions { max_pixels: wanted.max_pixels, ..DecodeOptions::default() },
            family: info.family,
        };
        if loaded.model.gives() == Gives::Vectors {
            let pipeline = EmbeddingPipeline::new(&engine.files, loaded, threads)?;
            engine.vectors = Mutex::new(Some((pipeline, cx)));
            return Ok(engine);
        }
        let mut pipeline = Pipeline::new(&engine.files, loaded, threads)?;
        for (key, value) in &wanted.template {
            pipeline.options.assign(&format!("{key}={value}"))?;
        }
        let default = Limits::default();
        let most = wanted.parallel.saturating_mul(info.max_positions).min(default.kv_tokens);
        let kv_tokens = wanted.kv_tokens.unwrap_or(most).max(16);
        let limits = Limits { seqs: wanted.parallel, kv_tokens, ..default.remembering() };
        let (model, tokenizer) = (pipeline.model.clone(), pipeline.tokenizer.clone());
        let mut scheduler = Scheduler::new(&mut cx, model, tokenizer, limits)?;
        if let Some(dir) = &wanted.cache_dir {
            scheduler.set_store(FeatureStore::open(dir, &engine.files, precision, &features)?);
        }
        let worker = Worker::spawn(move || Ok((cx, scheduler)))?;
        engine.answers = Some(Answers { pipeline, client: worker.client(), _worker: worker });
        Ok(engine)
    }

    fn answers(&self) -> PyResult<&Answers> {
        self.answers.as_ref().ok_or_else(|| {
            let text =
                format!("a model of family {} gives vectors: it embeds, and answers nothing", self.family);
            crate::error::engine(text, None)
        })
    }

    /// Runs work on vectors.
    fn with_vectors<R>(&self, work: impl FnOnce(&mut Vectors) -> Result<R, Error>) -> Result<R, Error> {
        let mut held = self.vectors.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(vectors) = &mut *held {
            return work(vectors);
        }
        let Some(answers) = &self.answers else { return Err(Error::Request("the model is gone".into())) };
        // The same weights on a stream of their own, with a processor of their own.
        let mut cx = Ctx::new(&*self.device, self.precision)?;
        let mut processor = (ocelli_models::family(&self.files)?.processor)(&self.files)?;
        for (key, value) in &self.processor {
            processor.set(key, value)?;
        }
        let pipeline = &answers.pipeline;
        let tokenizer = pipeline.tokenizer.clone().into();
        let loaded = Loaded { model: Model::Vlm(pipeline.model.clone()), processor, tokenizer };
        let pipeline = EmbeddingPipeline::of_any(&self.files, loaded, self.threads, &mut cx)?;
        work(held.insert((pipeline, cx)))
    }
}

/// Pictures in the order in which a conversation places them.
fn placed(addresses: &[String], beside: &[Given]) -> PyResult<Vec<Given>> {
    let of = |address: &String| match address.strip_prefix(BESIDE) {
        Some(number) => number
            .parse()
            .ok()
            .and_then(|number: usize| beside.get(number).cloned())
            .ok_or_else(|| value(format!("messages: there is no picture {number}"))),
        None => Given::at(address),
    };
    addresses.iter().map(of).collect()
}

impl Answers {
    /// Lays a conversation out. Runs without the interpreter's lock.
    fn request(
        &self,
        conversation: Conversation,
        pictures: &[Given],
        params: SamplingParams,
        decode: &DecodeOptions,
    ) -> Result<Request, Error> {
        let threads = self.pipeline.threads;
        let images: Vec<Rgb8Image> = try_map(pictures, threads, |picture, _| picture.decode(decode))?;
        let mut options = self.pipeline.options.clone();
        options.extra.extend(conversation.variables);
        let text = self.render(&conversation.messages, &options)?;
        // A thread that has ended is told of when the request is handed in.
        let ready = |picture: &_| drop(self.client.expect(picture));
        self.pipeline.request_rendered(&text, &images, params, &ready)
    }

    fn render(
        &self,
        messages: &[ocelli_engine::text::Message],
        options: &RenderOptions,
    ) -> Result<String, Error> {
        let mark = self.pipeline.processor.image_mark();
        let said = |text: &str| !mark.is_empty() && text.contains(mark);
        let marked = messages.iter().any(|message| match &message.content {
            Content::Text(text) => said(text),
            Content::Parts(parts) => parts.iter().filter_map(Part::text).any(said),
        });
        if marked {
            return Err(Error::Request(format!(
                "the prompt contains `{mark}`, which stands for a picture in this model"
            )));
        }
        self.pipeline.render_with(messages, options)
    }
}

/// Reads what both ways of asking take.
fn read(
    messages: &str,
    params: &str,
    images: &[Bound<'_, PyAny>],
) -> PyResult<(Conversation, SamplingParams, Vec<Given>)> {
    let conversation =
        Conversation::read("messages", messages.as_bytes()).map_err(|error| value(error.to_string()))?;
    let params: SamplingParams = serde_json::from_str(params).map_err(|error| value(error.to_string()))?;
    params.validate().map_err(|error| value(error.to_string()))?;
    let pictures = placed(&conversation.pictures, &pictures::all(images)?)?;
    Ok((conversation, params, pictures))
}

#[pymethods]
impl Engine {
    #[new]
    #[pyo3(signature = (path, backend, device, dtype, kv_dtype, threads, fast_int8, fast_fp8, processor, template, strict, max_pixels, parallel, kv_tokens, cache_dir, adapter))]
    fn new(
        py: Python<'_>,
        path: Option<String>,
        backend: &str,
        device: usize,
        dtype: &str,
        kv_dtype: &str,
        threads: Option<usize>,
        fast_int8: bool,
        fast_fp8: bool,
        processor: Vec<(String, String)>,
        template: Vec<(String, String)>,
        strict: bool,
        max_pixels: u64,
        parallel: usize,
        kv_tokens: Option<usize>,
        cache_dir: Option<PathBuf>,
        adapter: Option<PathBuf>,
    ) -> PyResult<Self> {
        if parallel == 0 {
            return Err(value("parallel: expected 1 or more, found 0".into()));
        }
        let wanted = Wanted {
            path,
            backend: self::backend(backend)?,
            index: device,
            dtype: self::dtype("dtype", dtype)?,
            kv: self::dtype("kv_dtype", kv_dtype)?,
            threads,
            fast_int8,
            fast_fp8,
            processor,
            template,
            strict,
            max_pixels,
            parallel,
            kv_tokens,
            cache_dir,
            adapter,
        };
        py.detach(|| Self::load(wanted)).map_err(|error| raised(&error))
    }

    /// Family of the model.
    #[getter]
    fn family(&self) -> &'static str {
        self.family
    }

    /// Whether the model gives answers, rather than vectors alone.
    #[getter]
    fn gives_answers(&self) -> bool {
        self.answers.is_some()
    }

    /// Where it runs: backend, device, threads, type of activations.
    #[getter]
    fn place(&self) -> (String, String, usize, String) {
        let caps = self.device.caps();
        (caps.backend.to_string(), caps.device.clone(), caps.units, self.precision.dtype.to_string())
    }

    /// Begins an answer to messages in OpenAI's layout, as JSON; pictures are named there, or lie beside.
    fn stream(
        &self,
        py: Python<'_>,
        messages: &str,
        images: Vec<Bound<'_, PyAny>>,
        params: &str,
    ) -> PyResult<Stream> {
        let answers = self.answers()?;
        let (conversation, mut params, pictures) = read(messages, params, &images)?;
        params.max_tokens = params.max_tokens.min(answers.pipeline.model.info().max_positions);
        py.detach(|| {
            let request = answers.request(conversation, &pictures, params, &self.decode)?;
            Stream::submit(&answers.client, request)
        })
        .map_err(|error| raised(&error))
    }

    /// As `stream`, with the answer among others' results, under a number.
    fn submit(
        &self,
        py: Python<'_>,
        results: &Bound<'_, Results>,
        number: usize,
        messages: &str,
        images: Vec<Bound<'_, PyAny>>,
        params: &str,
    ) -> PyResult<()> {
        let answers = self.answers()?;
        let (conversation, mut params, pictures) = read(messages, params, &images)?;
        params.max_tokens = params.max_tokens.min(answers.pipeline.model.info().max_positions);
        let results = results.get();
        py.detach(|| {
            let request = answers.request(conversation, &pictures, params, &self.decode)?;
            results.submit(&answers.client, number, request)
        })
        .map_err(|error| raised(&error))
    }

    /// Vectors of pictures: f32 values, their number for each, and what they are.
    fn embed_images<'py>(
        &self,
        py: Python<'py>,
        images: Vec<Bound<'_, PyAny>>,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, String)> {
        let given = pictures::all(&images)?;
        self.embed(py, |(pipeline, cx)| {
            let mut values = Vec::new();
            for given in given.chunks(BATCH) {
                let prepared = try_map(given, pipeline.threads, |given, threads| {
                    pipeline.processor.prepare(&given.decode(&self.decode)?, threads)
                })?;
                values.extend(pipeline.images(cx, &prepared.iter().collect::<Vec<_>>())?);
            }
            Ok((values, pipeline.model.info().d_model, pipeline.kind))
        })
    }

    /// Vectors of texts: f32 values, their number for each, and what they are.
    fn embed_texts<'py>(
        &self,
        py: Python<'py>,
        texts: Vec<String>,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, String)> {
        self.embed(py, |(pipeline, cx)| {
            let mut values = Vec::new();
            for texts in texts.chunks(BATCH) {
                let tokens = texts.iter().map(|text| pipeline.tokens(text)).collect::<Result<Vec<_>, _>>()?;
                values.extend(pipeline.texts(cx, &tokens)?);
            }
            Ok((values, pipeline.model.info().d_model, pipeline.kind))
        })
    }
}

impl Engine {
    fn embed<'py>(
        &self,
        py: Python<'py>,
        work: impl FnOnce(&mut Vectors) -> Result<(Vec<Vec<f32>>, usize, VectorKind), Error> + Send,
    ) -> PyResult<(Bound<'py, PyBytes>, usize, String)> {
        let done = py.detach(|| self.with_vectors(work)).map_err(|error| raised(&error))?;
        let (vectors, d, kind) = done;
        let bytes: Vec<u8> = vectors.iter().flatten().flat_map(|value| value.to_ne_bytes()).collect();
        Ok((PyBytes::new(py, &bytes), d, kind.to_string()))
    }
}
