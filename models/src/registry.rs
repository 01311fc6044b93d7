//! The list of families, and how a checkpoint finds its own.

use std::collections::HashMap;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::text::Tokenizer;
use ocelli_engine::weights::{Bank, Checkpoint, Fold, Role, Scope};
use ocelli_engine::{Ctx, Error, Loaded, Model, Precision, Processor, Result};
use serde::Deserialize;

use crate::fields::Config;
use crate::{
    blip, blip2, clip, cohere_vision, deepseek_ocr2, fast_vlm, florence2, gemma3, gemma4, glm4v,
    granite4_vision, internvl, janus, lfm2_vl, llama4, llava, llava_next, minicpmv, mllama, ovis2,
    paddleocr_vl, paligemma, pixtral, qwen_vl, siglip, smolvlm, text_only,
};

/// A model family as a row of data.
pub struct Family {
    /// Name.
    pub name: &'static str,
    /// `model_type` of the configurations that it runs.
    pub model_types: &'static [&'static str],
    /// The published models that these are, for readers of `README.md`.
    pub models: &'static str,
    /// What becomes of a picture, for readers of `models/README.md`.
    pub pictures: &'static str,
    /// Where the family lies: `file!()`.
    pub file: &'static str,
    /// Makes the processor of a model; reads no weights.
    pub processor: fn(&ModelFiles) -> Result<Box<dyn Processor>>,
    /// Loads a checkpoint.
    pub load: fn(&Source<'_>, &mut Ctx) -> Result<Model>,
    /// Parts of the names of tensors that published files carry for nothing.
    pub spare: &'static [&'static str],
}

/// Every family.
pub const FAMILIES: &[Family] = &[
    smolvlm::FAMILY,
    llama4::FAMILY,
    llava::FAMILY,
    llava_next::FAMILY,
    granite4_vision::FAMILY,
    qwen_vl::QWEN2,
    qwen_vl::QWEN2_5,
    qwen_vl::QWEN3,
    qwen_vl::QWEN3_MOE,
    qwen_vl::QWEN3_5,
    qwen_vl::QWEN3_5_MOE,
    gemma3::FAMILY,
    gemma4::FAMILY,
    glm4v::GLM4V,
    glm4v::GLM46V,
    glm4v::GLM_OCR,
    deepseek_ocr2::FAMILY,
    internvl::FAMILY,
    ovis2::FAMILY,
    pixtral::FAMILY,
    paligemma::FAMILY,
    cohere_vision::FAMILY,
    lfm2_vl::FAMILY,
    paddleocr_vl::FAMILY,
    minicpmv::FAMILY,
    text_only::FAMILY,
    blip::FAMILY,
    blip2::FAMILY,
    florence2::FAMILY,
    fast_vlm::FAMILY,
    mllama::FAMILY,
    janus::FAMILY,
    clip::FAMILY,
    siglip::FAMILY,
];

/// Families whose models draw ([`Vlm::painter`](ocelli_engine::Vlm::painter)).
pub const DRAW: &[&str] = &[janus::FAMILY.name];

/// Parts of the names of tensors that files of any family may carry for nothing: tables that are computed; scales of activations, keys
/// and values, which are not rounded as a file's quantizer would.
const SPARE: &[&str] =
    &["rotary_emb.inv_freq", "position_ids", ".input_scale", ".k_proj.k_scale", ".v_proj.v_scale"];

/// What a family loads from.
pub struct Source<'a> {
    /// The files.
    pub files: &'a ModelFiles,
    /// The weights.
    pub checkpoint: &'a Checkpoint,
    /// `config.json`.
    pub config: Config,
}

/// Where the parts of a model lie in a file, as most families name them.
pub struct Layout<'a> {
    /// What is in no part.
    pub root: Scope<'a>,
    /// The tower.
    pub tower: Scope<'a>,
    /// The connector.
    pub projector: Scope<'a>,
    /// The decoder.
    pub language: Scope<'a>,
    /// Its head.
    pub head: Scope<'a>,
}

impl<'a> Source<'a> {
    /// The layout of transformers, with all parts below `model` or not, as its versions have it.
    #[must_use]
    pub fn layout(&self) -> Layout<'a> {
        let root = self.checkpoint.root();
        let root = if root.at("multi_modal_projector").exists() { root } else { root.at("model") };
        Layout {
            tower: root.at("vision_tower").at_any(&["vision_model", ""]),
            projector: root.at("multi_modal_projector"),
            language: root.at("language_model").at_any(&["model", ""]),
            head: self.checkpoint.at_any(&["language_model.lm_head", "lm_head"]),
            root,
        }
    }
}

/// What is done with fields of `config.json` that nobody reads, and with tensors that nobody uses.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Leftovers {
    /// A warning names them.
    #[default]
    Warn,
    /// They are an error.
    Refuse,
    /// Nothing: the caller tells of them itself.
    Ignore,
}

/// The family of a model. Errors name the `model_type` found and those that exist.
pub fn family(files: &ModelFiles) -> Result<&'static Family> {
    #[derive(Deserialize)]
    struct Config {
        model_type: Option<String>,
    }
    let config: Config = files.require_json("config.json")?;
    let found = config.model_type.unwrap_or_default();
    FAMILIES.iter().find(|family| family.model_types.contains(&found.as_str())).ok_or_else(|| {
        let known: Vec<&str> = FAMILIES.iter().flat_map(|family| family.model_types).copied().collect();
        Error::Config {
            path: files.describe("config.json"),
            reason: format!("model_type: expected one of {}, found `{found}`", known.join(", ")),
        }
    })
}

/// Opens the weights of a model and loads its family; what is left over is told in warnings.
pub fn load(files: &ModelFiles, cx: &mut Ctx) -> Result<Loaded> {
    load_with(files, cx, Leftovers::Warn)
}

/// As [`load`], with a choice about what is left over.
pub fn load_with(files: &ModelFiles, cx: &mut Ctx, leftovers: Leftovers) -> Result<Loaded> {
    // A model that nobody knows is told as such, whatever else it lacks.
    family(files)?;
    load_from(files, &Checkpoint::open(files)?, cx, leftovers)
}

/// As [`load_with`], from a checkpoint that is open. The tokenizer is read on another thread meanwhile.
pub fn load_from(
    files: &ModelFiles,
    checkpoint: &Checkpoint,
    cx: &mut Ctx,
    leftovers: Leftovers,
) -> Result<Loaded> {
    let tokenizer = Tokenizer::begin(files);
    let (model, processor) = load_model(files, checkpoint, cx, leftovers)?;
    Ok(Loaded { model, processor, tokenizer })
}

fn load_model(
    files: &ModelFiles,
    checkpoint: &Checkpoint,
    cx: &mut Ctx,
    leftovers: Leftovers,
) -> Result<(Model, Box<dyn Processor>)> {
    let family = family(files)?;
    let processor = (family.processor)(files)?;
    checkpoint.keep_along_n(cx.keeps_along_n());
    let config = Config::new(files.describe("config.json"), files.require_json("config.json")?);
    let source = Source { files, checkpoint, config };
    let model = (family.load)(&source, cx)?;
    let complaints = [told_fields(&source), told_tensors(&source, family)];
    for (path, reason) in complaints.into_iter().flatten() {
        match leftovers {
            Leftovers::Refuse => return Err(Error::Config { path, reason }),
            Leftovers::Warn => tracing::warn!("{path}: {reason}"),
            Leftovers::Ignore => {}
        }
    }
    Ok((model, processor))
}

fn told_fields(source: &Source<'_>) -> Option<(String, String)> {
    let unread = source.config.unread();
    let path = source.files.describe("config.json");
    (!unread.is_empty()).then(|| (path, format!("fields that nothing here reads: {}", unread.join(", "))))
}

fn told_tensors(source: &Source<'_>, family: &Family) -> Option<(String, String)> {
    let spare = |name: &str| SPARE.iter().chain(family.spare).any(|part| name.contains(part));
    let unused: Vec<&str> = source.checkpoint.unused().filter(|name| !spare(name)).collect();
    let first = unused.iter().take(4).copied().collect::<Vec<_>>().join(", ");
    let more = if unused.len() > 4 { ", ..." } else { "" };
    let reason = format!("{} tensors that nothing here uses: {first}{more}", unused.len());
    (!unused.is_empty()).then(|| (source.checkpoint.path().to_owned(), reason))
}

/// What the matrices of a model are to it.
pub struct Anatomy {
    /// What each matrix that can be quantized is, by the name of its module.
    pub roles: HashMap<String, Role>,
    /// Which matrices take what some norm or matrix gives and nothing else takes.
    pub folds: Vec<Fold>,
    /// Tensors that hold matrices of all experts of a layer.
    pub banks: Vec<Bank>,
}

/// What the matrices of a model are to it; found by loading the model without a device.
pub fn anatomy(files: &ModelFiles) -> Result<Anatomy> {
    let checkpoint = Checkpoint::open(files)?;
    let (mut cx, _) = Ctx::dry(ocelli_kernels::Caps::default(), Precision::default());
    load_model(files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    let notes = checkpoint.notes().into_iter().filter(|note| note.matrix);
    let roles = notes.filter_map(|note| Some((note.module, note.role?))).collect();
    Ok(Anatomy { roles, folds: checkpoint.folds(), banks: checkpoint.banks() })
}

/// What each tensor or module that a model takes is to it, by its name; found by loading the model without a device.
pub fn owners(files: &ModelFiles) -> Result<HashMap<String, Role>> {
    let checkpoint = Checkpoint::open(files)?;
    let (mut cx, _) = Ctx::dry(ocelli_kernels::Caps::default(), Precision::default());
    load_model(files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    Ok(checkpoint.notes().into_iter().filter_map(|note| Some((note.module, note.role?))).collect())
}

/// What a model of a configuration is made of.
pub struct Tensors {
    /// Names and shapes of its tensors.
    pub all: Vec<(String, Vec<usize>)>,
    /// What each is to the model, by its name or that of its module.
    pub owners: HashMap<String, Role>,
}

/// The tensors that a model of this configuration needs: found by loading it from a checkpoint that is not there.
///
/// # Errors
/// If the configuration is not one of a known family, or the family reads more from a file than values and shapes.
pub fn tensors(files: &ModelFiles) -> Result<Tensors> {
    let checkpoint = Checkpoint::imagined(&files.describe("model.safetensors"))?;
    let (mut cx, _) = Ctx::dry(ocelli_kernels::Caps::default(), Precision::default());
    load_model(files, &checkpoint, &mut cx, Leftovers::Ignore)?;
    let owners = checkpoint.notes().into_iter().filter_map(|note| Some((note.module, note.role?))).collect();
    Ok(Tensors { all: checkpoint.asked(), owners })
}

/// What each matrix that can be quantized is to the model, by the name of its module.
pub fn roles(files: &ModelFiles) -> Result<HashMap<String, Role>> {
    Ok(anatomy(files)?.roles)
}
