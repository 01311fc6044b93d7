//! From arguments to devices and models.

use std::path::Path;
use std::sync::Arc;

use ocelli_engine::adapter::{Adapter, Peft};
use ocelli_engine::choices::cache_dir;
use ocelli_engine::devices::{auto, tuned};
use ocelli_engine::files::ModelFiles;
use ocelli_engine::hub::{HubConfig, ModelRef};
use ocelli_engine::image::{DecodeOptions, ImageError, PictureSource, Rgb8Image};
use ocelli_engine::kv::Keep;
use ocelli_engine::parallel::try_map;
use ocelli_engine::sample::SamplingParams;
use ocelli_engine::text::Message;
use ocelli_engine::weights::{Checkpoint, Role};
use ocelli_engine::{Ctx, EmbeddingPipeline, Error, Loaded, Pipeline, Precision, Processor};
use ocelli_kernels::{Backend, BackendOp, Device, DeviceOptions, OpVisitor, Picks, for_each_op};
use ocelli_models::Leftovers;

use crate::args::{AdapterArg, BackendArg, DeviceArgs, ModelArgs, VectorArgs};
use crate::chat::Chat;
use crate::fail::{Failure, note};
use crate::progress::Download;

/// The environment variable that names the variant to run wherever it can: `VARIANT` or `OP/VARIANT`.
const FORCE_ENV: &str = "OCELLI_KERNEL_FORCE";

/// Opens the device that the arguments ask for, and says how precisely it computes.
pub fn device(args: &DeviceArgs) -> Result<(Arc<dyn Device>, Precision), Failure> {
    let threads = args.threads.map(usize::from);
    let mut picks = picks()?;
    picks.set_batch_invariant(args.batch_invariant);
    let options = DeviceOptions { index: args.device, threads, picks, cache: cache_dir() };
    let mut opened = match args.backend.backend() {
        Some(backend) => ocelli_kernels::open(backend, &options).map_err(|error| no_device(error.into()))?,
        None => auto(&options)?,
    };
    if !args.no_tune {
        let picks = tuned(opened.caps(), options.picks);
        // Nobody else holds the device yet.
        if let Some(device) = Arc::get_mut(&mut opened) {
            device.prefer(picks);
        }
    }
    let precision = args.precision(opened.caps());
    Ok((opened, precision))
}

/// With the way to what there is.
pub fn no_device(failure: Failure) -> Failure {
    failure.hint("`ocelli devices` lists what this machine has")
}

/// The backend of the device that the arguments ask for.
pub fn backend(arg: BackendArg, options: &DeviceOptions) -> Result<Backend, Failure> {
    match arg.backend() {
        Some(backend) => Ok(backend),
        None => Ok(auto(options)?.caps().backend),
    }
}

/// What comes before the estimates of variants.
pub fn picks() -> Result<Picks, Failure> {
    let mut picks = Picks::default();
    let Ok(text) = std::env::var(FORCE_ENV) else { return Ok(picks) };
    if text.is_empty() {
        return Ok(picks);
    }
    struct Known<'a>(&'a str, bool);
    impl OpVisitor for Known<'_> {
        fn visit<O: BackendOp>(&mut self) {
            let name = self.0.strip_prefix(O::NAME).and_then(|rest| rest.strip_prefix('/')).unwrap_or(self.0);
            self.1 |= Backend::ALL
                .into_iter()
                .any(|backend| O::variants(backend).is_ok_and(|rows| rows.contains(&name)));
        }
    }
    let mut known = Known(&text, false);
    for_each_op(&mut known);
    if !known.1 {
        return Err(Failure::usage(format!("{FORCE_ENV}: no kernel variant `{text}`"))
            .hint("VARIANT or OP/VARIANT; `ocelli kernels list` names them"));
    }
    picks.force(&text);
    Ok(picks)
}

/// The files of a model, downloaded if need be.
pub fn files(model: Option<&str>) -> Result<ModelFiles, Failure> {
    let dir = ModelRef::parse(model)?.resolve(HubConfig::from_env, &mut Download::default())?;
    Ok(dir.map_or(ocelli_models::demo::FILES, ModelFiles::Dir))
}

/// What is to be known of the dual encoder that is inside the binary.
const DEMO_VECTORS: &str = "this is the demo dual encoder, which knows drawn shapes and numbers alone; \
                            --model DIR or --model OWNER/NAME takes a real one";

/// As [`files`], of a model that gives vectors: without a name the embedded dual encoder.
pub fn vector_files(model: Option<&str>) -> Result<ModelFiles, Failure> {
    if model.is_some() { files(model) } else { Ok(ocelli_models::demo::VECTORS) }
}

/// Tells that the embedded dual encoder is used, if that is so.
pub fn tell_vectors(model: Option<&str>) {
    if model.is_none() {
        note(DEMO_VECTORS);
    }
}

/// What is to be known of the model that draws and is inside the binary.
const DEMO_PAINTER: &str = "this is the demo painter, which draws coloured shapes and nothing else; \
                            --model DIR or --model OWNER/NAME takes a real one";

/// As [`files`], of a model that draws: without a name the embedded one, and that it is used is told.
pub fn painter_files(model: Option<&str>) -> Result<ModelFiles, Failure> {
    if model.is_some() {
        return files(model);
    }
    note(DEMO_PAINTER);
    Ok(ocelli_models::demo::PAINTER)
}

/// A model with its tokenizer, and a context to run it in.
pub fn pipeline(
    args: &ModelArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(Pipeline, Ctx), Failure> {
    pipeline_of(&files(args.model.as_deref())?, &args.setup(), device, precision)
}

/// How a model is loaded.
#[derive(Clone, Copy)]
pub struct Setup<'a> {
    /// Fields of its image processor.
    pub processor: &'a [(String, String)],
    /// What is done with what its files have left over.
    pub leftovers: Leftovers,
    /// Adapters beside its weights.
    pub adapters: &'a [AdapterArg],
    /// Whether they are added to the weights.
    pub merge: bool,
}

impl<'a> Setup<'a> {
    /// What features of pictures follow from beside the files and the precision: the backend, and adapters that all requests use.
    pub fn features(&self, backend: Backend) -> Result<String, Failure> {
        let mut of = backend.to_string();
        for adapter in self.adapters.iter().filter(|adapter| self.merge || adapter.name.is_none()) {
            of += &format!(" {} {}", self.merge, Peft::open(&adapter.folder)?.identity()?);
        }
        Ok(of)
    }

    /// Without adapters.
    pub fn plain(processor: &'a [(String, String)], leftovers: Leftovers) -> Self {
        Self { processor, leftovers, adapters: &[], merge: false }
    }
}

/// The same with files that are here.
pub fn pipeline_of(
    files: &ModelFiles,
    setup: &Setup<'_>,
    device: &dyn Device,
    precision: Precision,
) -> Result<(Pipeline, Ctx), Failure> {
    let (model, threads, cx) = loaded(files, setup, device, precision)?;
    Ok((Pipeline::new(files, model, threads)?, cx))
}

/// A model of any kind with its files, the threads that prepare pictures for it, and a context to run it in.
pub fn any(
    args: &ModelArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(ModelFiles, ocelli_engine::Loaded, usize, Ctx), Failure> {
    let files = files(args.model.as_deref())?;
    let (model, threads, cx) = loaded(&files, &args.setup(), device, precision)?;
    Ok((files, model, threads, cx))
}

/// A model, the threads that prepare pictures for it, and a context to run it in.
pub fn loaded(
    files: &ModelFiles,
    setup: &Setup<'_>,
    device: &dyn Device,
    precision: Precision,
) -> Result<(ocelli_engine::Loaded, usize, Ctx), Failure> {
    let mut cx = Ctx::new(device, precision)?;
    let mut model = load(files, setup, &mut cx)?;
    set_processor(&mut *model.processor, setup.processor)?;
    let caps = device.caps();
    let threads = match caps.backend {
        Backend::Cpu => caps.units,
        _ => std::thread::available_parallelism().map_or(1, std::num::NonZero::get),
    };
    Ok((model, threads, cx))
}

/// Loads a model and its adapters.
fn load(files: &ModelFiles, setup: &Setup<'_>, cx: &mut Ctx) -> Result<ocelli_engine::Loaded, Failure> {
    if setup.merge {
        let [adapter] = setup.adapters else {
            return Err(Failure::new("--merge-adapter: expected one adapter"));
        };
        let peft = Peft::open(&adapter.folder)?;
        ocelli_models::family(files)?;
        let checkpoint = Checkpoint::open(files).map_err(Error::from)?.merged_with(&peft)?;
        let model = ocelli_models::load_from(files, &checkpoint, cx, setup.leftovers)?;
        checkpoint.deltas().check(&adapter.folder.display().to_string())?;
        return Ok(model);
    }
    let model = ocelli_models::load_with(files, cx, setup.leftovers)?;
    for AdapterArg { name, folder } in setup.adapters {
        let shown = folder.display().to_string();
        let adapter = Peft::open(folder)?.place(cx, name.as_deref().unwrap_or(&shown))?;
        match name {
            Some(name) => {
                of_tokens(files, &model, &adapter)
                    .map_err(|reason| Error::Adapter { name: name.clone(), reason })?;
                cx.name_adapter(adapter);
            }
            None => cx.adapt(Some(Arc::new(adapter))),
        }
    }
    Ok(model)
}

/// Errors unless requests of one batch can have adapters of their own: of products whose rows are the tokens of the batch.
fn of_tokens(files: &ModelFiles, model: &Loaded, adapter: &Adapter) -> Result<(), String> {
    let hint = "without a name, as --adapter DIR, it is used for all requests";
    if model.model.info().kv.0.iter().any(|group| group.keep == Keep::Memory) {
        return Err(format!("layers of this model look at pictures apart from the tokens; {hint}"));
    }
    let owners = ocelli_models::owners(files).map_err(|error| error.to_string())?;
    match adapter.modules().iter().find(|module| owners.get(&**module) != Some(&Role::Decoder)) {
        None => Ok(()),
        Some(module) => Err(format!("`{module}` is no layer of the decoder; {hint}")),
    }
}

/// A model that gives vectors, with its tokenizer, and a context to run it in.
pub fn vectors(
    args: &VectorArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(EmbeddingPipeline, Ctx), Failure> {
    let files = vector_files(args.model.as_deref())?;
    let leftovers = if args.strict { Leftovers::Refuse } else { Leftovers::Warn };
    let setup = Setup::plain(&args.processor, leftovers);
    let (model, threads, cx) = loaded(&files, &setup, device, precision)?;
    Ok((EmbeddingPipeline::new(&files, model, threads)?, cx))
}

/// As [`vectors`], with pooled features of the tower where the model gives answers.
pub fn any_vectors(
    args: &VectorArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(EmbeddingPipeline, Ctx), Failure> {
    let files = vector_files(args.model.as_deref())?;
    let leftovers = if args.strict { Leftovers::Refuse } else { Leftovers::Warn };
    let setup = Setup::plain(&args.processor, leftovers);
    let (model, threads, mut cx) = loaded(&files, &setup, device, precision)?;
    Ok((EmbeddingPipeline::of_any(&files, model, threads, &mut cx)?, cx))
}

/// What will be asked of a model.
pub struct Question {
    /// The conversation.
    pub chat: Chat,
    /// How pictures are read.
    pub decode: DecodeOptions,
    /// How the answer is drawn.
    pub params: SamplingParams,
}

/// As [`pipeline`]. What `question` needs is compiled while the weights are on their way to the device.
pub fn pipeline_for(
    question: Question,
    args: &ModelArgs,
    device: &dyn Device,
    precision: Precision,
) -> Result<(Pipeline, Ctx), Failure> {
    let files = files(args.model.as_deref())?;
    let (theirs, processor) = (files.clone(), args.processor.clone());
    device.warm_up(Box::new(move |device| {
        let rehearse = || -> Result<(), Failure> {
            let Question { chat, decode, params } = question;
            if chat.messages.iter().any(Message::shows_video) {
                // Their frames are not read twice.
                return Ok(());
            }
            let images = read_pictures(&chat.pictures, &decode)?;
            let (mut pipeline, mut cx) =
                pipeline_of(&theirs, &Setup::plain(&processor, Leftovers::Warn), device, precision)?;
            pipeline.options = chat.render;
            Ok(pipeline.rehearse(&mut cx, &chat.messages, &images, &[params])?)
        };
        // Whatever is wrong, the question itself meets it too.
        if let Err(failure) = rehearse() {
            tracing::debug!("not all kernels are compiled ahead: {failure:?}");
        }
    }));
    pipeline_of(&files, &args.setup(), device, precision)
}

/// Reads pictures, several at once.
pub fn read_pictures(
    pictures: &[PictureSource],
    options: &DecodeOptions,
) -> Result<Vec<Rgb8Image>, ImageError> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    try_map(pictures, threads, |picture, _| picture.decode(options))
}

/// Errors where a picture of messages is an address that nothing here reads.
pub fn is_picture_name(file: &str, address: &str, path: &Path) -> Result<(), Failure> {
    let scheme = address.split_once("://").map(|(scheme, _)| scheme);
    match scheme.filter(|scheme| *scheme != "file" && !path.exists()) {
        None => Ok(()),
        Some(_) => {
            let shown: String = address.chars().take(200).collect();
            Err(Failure::new(format!(
                "{file}: image_url: expected a path or a data: address, found `{shown}`"
            ))
            .hint("nothing is downloaded; save the picture to a file and give its path"))
        }
    }
}

/// Errors where what stands for a picture is no file's name: an address, or `-`.
pub fn is_file_name(path: &Path) -> Result<(), Failure> {
    if path.exists() {
        return Ok(());
    }
    let text = path.to_string_lossy();
    let hint = match text.split_once(':') {
        _ if text == "-" => {
            "a picture is read from a file; `-` as the prompt reads the prompt from standard input"
        }
        Some(("http" | "https", _)) => "a picture is read from a file; download it first",
        Some(("file", _)) => "give the path alone, without `file:`",
        Some(("data", _)) => "a picture is read from a file; decode it to one first",
        _ => return Ok(()),
    };
    let shown: String = text.chars().take(200).collect();
    Err(Failure::usage(format!("--image: expected the name of a file, found `{shown}`")).hint(hint))
}

/// The failure that a request's error is. Where pictures make a prompt too long, it says what would make them shorter.
pub fn too_long(
    error: Error,
    pipeline: &mut Pipeline,
    messages: &[Message],
    pictures: &[Rgb8Image],
) -> Failure {
    let Error::PromptTooLong { limit, .. } = error else { return error.into() };
    if pictures.is_empty() {
        return error.into();
    }
    let mut whole = || -> ocelli_engine::Result<usize> {
        pipeline.processor.set("do_image_splitting", "false")?;
        let prepared = pipeline.prepare(pictures)?;
        match pipeline.lay_out(messages, &prepared.iter().collect::<Vec<_>>()) {
            Err(Error::PromptTooLong { found, .. }) => Ok(found),
            prompt => Ok(prompt?.len()),
        }
    };
    shorter(error, whole().ok().filter(|found| *found <= limit))
}

/// The failure of a prompt that pictures make too long; `whole` is what it would have with one tile of each, if that fits.
pub fn shorter(error: Error, whole: Option<usize>) -> Failure {
    Failure::from(error).hint(match whole {
        Some(found) => format!(
            "pictures take most of it; with `--processor do_image_splitting=false`, which makes one tile of each, it has {found}"
        ),
        None => "fewer pictures or a shorter prompt take fewer".to_owned(),
    })
}

/// Overrides fields of the image processor.
pub fn set_processor(target: &mut dyn Processor, fields: &[(String, String)]) -> Result<(), Failure> {
    for (key, value) in fields {
        target.set(key, value).map_err(|error| Failure::usage(error.to_string()))?;
    }
    Ok(())
}
