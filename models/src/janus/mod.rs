//! Janus: what it says of pictures, by a tower, a few layers and a Llama decoder, and pictures that it draws.
//!
//! After `JanusForConditionalGeneration`, `JanusProcessor` and `JanusImageProcessor` of transformers.

mod drawing;
mod vq;

use std::sync::Arc;

use ocelli_engine::drawing::DrawingProcessor;
use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{Filter, PreparedImage, Rgb8Image, resize};
use ocelli_engine::text::Tokenizer;
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Model, Prompt, Result, Tensor};
use ocelli_kernels::ops::Activation;
use serde_json::Value;

use self::drawing::{Drawing, Janus, Prompts};
use crate::composed::Composed;
use crate::fields::{Config, Fields};
use crate::layers::Linear;
use crate::processor::{Edge, ImageFields, added_token, in_square, lay_out, special_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Connect, Vit, VitPlan, activation};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "janus",
    model_types: &["janus"],
    models: "Janus (answers, and draws: `imagine`)",
    pictures: "one square, filled up",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    // What makes codes of pictures, which neither answers nor drawings need.
    spare: &["vqmodel.encoder.", "vqmodel.quant_conv."],
};

/// Layers with an activation between each and the next.
struct Aligner {
    layers: Vec<Linear>,
    act: Activation,
}

impl Aligner {
    fn load(
        cx: &mut Ctx,
        scope: &Scope<'_>,
        (d, out, depth): (usize, usize, usize),
        act: Activation,
    ) -> Result<Self> {
        let mut layers = vec![Linear::load(cx, &scope.at("fc1"), out, d, true)?];
        for i in 1..depth {
            layers.push(Linear::load(cx, &scope.at("hidden_layers").at(i - 1), out, out, true)?);
        }
        Ok(Self { layers, act })
    }

    /// `x: [rows, d]  ->  [rows, out]`.
    fn forward(&self, cx: &mut Ctx, x: &Tensor) -> Result<Tensor> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            let last = i + 1 == self.layers.len();
            x = layer.forward_act(cx, &x, if last { Activation::None } else { self.act })?;
        }
        Ok(x)
    }
}

impl Connect for Aligner {
    fn rows(&self, grid: (usize, usize)) -> Result<usize> {
        Ok(grid.0 * grid.1)
    }

    fn connect(&self, cx: &mut Ctx, x: &Tensor, _: (usize, usize), out: &Tensor) -> Result<()> {
        let mut x = x.clone();
        for (i, layer) in self.layers.iter().enumerate() {
            if i + 1 == self.layers.len() {
                return layer.write_to(cx, &x, out);
            }
            x = layer.forward_act(cx, &x, self.act)?;
        }
        Ok(())
    }
}

fn tower(vision: &Fields<'_>) -> Result<VitPlan> {
    let plan = VitPlan::janus(vision)?;
    vision.only("num_image_tokens", plan.side() * plan.side())?;
    Ok(plan)
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id"]);
    let vision = config.part("vision_config")?;
    let plan = tower(&vision)?;
    let text = TextPlan::read(&config.part("text_config")?, &["llama"], config.get("tie_word_embeddings")?)?;
    let depth = vision.size("depth", 2)?.min(1 << 10);
    vision.only("projection_dim", text.d)?;
    let act = activation(&vision, "hidden_act", "gelu")?;
    let rows = plan.side() * plan.side();
    let root = source.checkpoint.at_any(&["model", ""]);
    let sizes = (plan.d, text.d, depth);
    let tower = Vit::load(cx, &root.at("vision_model"), plan)?;
    let connector = Aligner::load(cx, &root.at("aligner").role(Role::Connector), sizes, act)?;
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let language = root.at("language_model").at_any(&["model", ""]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    let vq = config.part("vq_config")?;
    let drawing = Drawing::load(cx, &root, &vq, rows, sizes.1)?;
    let answers = Composed::part_of(FAMILY.name, source, tower, connector, decoder);
    Ok(Model::Vlm(Arc::new(Janus { answers, drawing })))
}

/// What the prompt begins with, where the processor is told so.
const SYSTEM: &str = "You are a helpful language and vision assistant. You are able to understand the visual content that the user \
                      provides, and assist the user with a variety of tasks using natural language.\n\n";

#[derive(Clone, Debug)]
struct Processor {
    fields: ImageFields,
    side: usize,
    least: usize,
    filter: Filter,
    colour: Option<[u8; 3]>,
    token: (String, u32),
    /// Around the tokens of a picture.
    ends: [String; 2],
    rows: usize,
    system: bool,
    prompts: Prompts,
}

/// Fields of the outer `processor_config.json` and of the image processor beside those that all have.
const KEYS: &[&str] =
    &["num_image_tokens", "use_default_system_prompt", "min_size", "background_color", "do_pad"];

impl Processor {
    fn load(files: &ModelFiles) -> Result<Self> {
        let config = Config::load(files, "config.json")?;
        let root = config.root();
        let plan = tower(&root.part("vision_config")?)?;
        let id = root.or("image_token_id", 100_581)?;
        let tokenizer = files.json::<Value>("tokenizer_config.json")?;
        let special = |key: &str, usual: &str| {
            special_token(tokenizer.as_ref(), key).unwrap_or_else(|| usual.to_owned())
        };
        let ends = [special("boi_token", "<begin_of_image>"), special("eoi_token", "<end_of_image>")];
        let rows = plan.side() * plan.side();
        let fields = ImageFields::load(files, KEYS)?;
        let prompts = Prompts::load(files, &ends[0], fields.normalize(MEAN, STD)?)?;
        Self::of(fields, (added_token(files, id)?, id), ends, rows, prompts)
    }

    fn of(
        fields: ImageFields,
        token: (String, u32),
        ends: [String; 2],
        rows: usize,
        prompts: Prompts,
    ) -> Result<Self> {
        let side = match fields.edge("size", Edge::Exact { height: 384, width: 384 })? {
            Edge::Exact { height, width } if height == width => height,
            other => {
                let what = format!("expected a height and the same width, found {other:?}");
                return Err(Error::Request(format!("size: {what}")));
            }
        };
        if !fields.flag("do_resize", true)? {
            return Err(fields.bad("do_resize", "true", &Value::Bool(false)));
        }
        if let Some(found) = fields.pixels("num_image_tokens")?.filter(|found| *found != rows) {
            return Err(Error::Request(format!("num_image_tokens: expected {rows}, found {found}")));
        }
        let mean = fields.mean(MEAN)?;
        let prompts = prompts.with(fields.normalize(MEAN, STD)?);
        Ok(Self {
            prompts,
            side,
            least: fields.pixels("min_size")?.unwrap_or(14),
            filter: fields.resample(Filter::Bicubic)?,
            // The reference computes it, whatever the configuration says.
            colour: fields.flag("do_pad", true)?.then(|| mean.map(|mean| (mean * 255.0) as u8)),
            system: fields.flag("use_default_system_prompt", false)?,
            fields,
            token,
            ends,
            rows,
        })
    }
}

/// What `JanusImageProcessor` takes where the file says nothing: `OPENAI_CLIP_MEAN` and `OPENAI_CLIP_STD`.
const MEAN: [f32; 3] = crate::processor::CLIP_MEAN;
const STD: [f32; 3] = crate::processor::CLIP_STD;

impl ocelli_engine::Processor for Processor {
    fn set(&mut self, key: &str, value: &str) -> Result<()> {
        let mut fields = self.fields.clone();
        fields.set(key, value)?;
        *self = Self::of(fields, self.token.clone(), self.ends.clone(), self.rows, self.prompts.clone())?;
        Ok(())
    }

    fn prepare(&self, image: &Rgb8Image, threads: usize) -> Result<PreparedImage> {
        let longest = image.width().max(image.height());
        let scale = self.side as f64 / longest as f64;
        let scaled = |size: usize| ((size as f64 * scale).round_ties_even() as usize).max(self.least);
        let fitted = resize(image, scaled(image.width()), scaled(image.height()), self.filter, threads)?;
        let square = self.colour.map(|colour| in_square(&fitted, colour)).unwrap_or(fitted);
        let normalize = self.fields.normalize(MEAN, STD)?;
        Ok(PreparedImage { tiles: vec![square.into()], rows: 0, cols: 0, normalize, assembly: None })
    }

    fn drawing(&self) -> Option<&dyn DrawingProcessor> {
        Some(&self.prompts)
    }

    fn image_mark(&self) -> &str {
        &self.token.0
    }

    fn lay_out(&self, text: &str, images: &[&PreparedImage], tokenizer: &Tokenizer) -> Result<Prompt> {
        let [first, last] = &self.ends;
        let picture = format!("{first}{}{last}", self.token.0.repeat(self.rows));
        let text = if self.system { format!("{SYSTEM}{text}") } else { text.to_owned() };
        let (pictures, rows) = (vec![picture; images.len()], vec![self.rows; images.len()]);
        lay_out(tokenizer, &text, &self.token.0, &pictures, self.token.1, &rows)
    }
}
