//! DeepSeek-OCR 2: the tower of Segment Anything, an encoder whose queries see all of it and those before them, and a DeepSeek-V2
//! decoder.
//!
//! After `DeepseekOcr2ForConditionalGeneration` of transformers.

mod processor;
mod published;
mod sam;

use ocelli_engine::batch::Packed;
use ocelli_engine::image::{PreparedImage, Tile};
use ocelli_engine::kv::KvCache;
use ocelli_engine::vlm::{ModelInfo, PartInfo};
use ocelli_engine::weights::{Role, Scope};
use ocelli_engine::{Ctx, Error, Features, Model, Phase, Result, Stage, Tensor, Vlm};
use ocelli_kernels::ops::{NormKind, Seen};

use self::processor::Processor;
use self::sam::{Sam, SamPlan};
use crate::fields::Fields;
use crate::layers::{Linear, RopeConfig, RopeTable, copy_rows};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Mlp, Names, Pixels, Vit, VitPlan, activation, upload};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "deepseek_ocr2",
    model_types: &["deepseek_ocr2", published::OLD],
    models: "DeepSeek-OCR 2",
    pictures: "tiles and the whole picture on a grey square, as answers of learned queries",
    file: file!(),
    processor: |files| Ok(Box::new(Processor::load(files)?)),
    load,
    spare: &[],
};

/// Places of a tile up to which the smaller set of queries is taken; and how many queries each set has.
const QUERIES: [usize; 2] = [144, 256];

struct DeepseekOcr {
    info: ModelInfo,
    parts: Vec<PartInfo>,
    sam: Sam,
    /// The encoder's layers and norm.
    encoder: Vit,
    /// Learned queries `[144, d]` and `[256, d]`.
    queries: [Tensor; 2],
    projector: Linear,
    /// The row that ends a picture, `[1, d_text]`.
    separator: Tensor,
    decoder: Decoder,
}

/// The layers of `DeepseekOcr2VisionEncoderConfig`, and the frequencies that turn them.
fn encoder(config: &Fields<'_>) -> Result<(VitPlan, Vec<f32>)> {
    config.model_type(&["deepseek_ocr2_encoder"])?;
    config.unset("use_sliding_window")?;
    config.inert(&["vocab_size", "max_position_embeddings", "sliding_window", "max_window_layers"]);
    let kinds: Vec<String> = config.or("layer_types", Vec::new())?;
    if let Some(kind) = kinds.iter().find(|kind| *kind != "full_attention") {
        return Err(config.bad("layer_types", format!("expected full_attention, found {kind}")));
    }
    let layers = config.or("num_hidden_layers", 32)?;
    let heads = config.size("num_attention_heads", 32)?;
    let plan = VitPlan {
        d: config.size("hidden_size", 4096)?,
        mlp: config.size("intermediate_size", 22_016)?,
        layers,
        used: layers,
        heads,
        heads_kv: Some(config.get("num_key_value_heads")?.unwrap_or(heads)),
        norm: NormKind::Rms,
        norm_eps: config.or("rms_norm_eps", 1e-6)?,
        out_bias: false,
        mlp_bias: false,
        act: activation(config, "hidden_act", "silu")?,
        mlp_kind: Mlp::Gated { module: "mlp" },
        names: Names {
            layers: "layers",
            norm1: "input_layernorm",
            norm2: "post_attention_layernorm",
            out: "self_attn.o_proj",
            post_norm: Some("norm"),
            ..VitPlan::siglip_base().names
        },
        ..VitPlan::siglip_base()
    };
    let kv = plan.heads_kv();
    if !plan.d.is_multiple_of(2 * heads) || kv == 0 || !heads.is_multiple_of(kv) {
        let what = format!("expected an even number of features a head, found {} of {heads}", plan.d);
        return Err(config.bad("hidden_size", what));
    }
    let rope = RopeConfig::read(config, 10_000.0)?.inv_freq(plan.head_dim() / 2);
    Ok((plan, rope))
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let modern = published::modern(&source.config.root())?;
    let config = modern.as_ref().unwrap_or(&source.config).root();
    config.inert(&["image_token_id"]);
    let vision = config.part("vision_config")?;
    vision.model_type(&["deepseek_ocr2_vision"])?;
    let sam = SamPlan::read(&vision.part("sam_config")?)?;
    let (plan, rope) = encoder(&vision.part("encoder_config")?)?;
    if plan.d != sam.channels() {
        let what = format!("expected {} channels at last, found {}", plan.d, sam.channels());
        return Err(vision.bad("sam_config.downsample_channels", what));
    }
    let tied = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.part("text_config")?, &["deepseek_ocr2_text"], tied)?;
    let root = source.checkpoint.at_any(&["model", ""]);
    let (d, d_text) = (plan.d, text.d);
    let tower = root.at_any(&["vision_tower", ""]).role(Role::Tower);
    let sam = Sam::load(cx, &tower.at_any(&["sam_model", "sam_encoder"]), sam)?;
    let layers = root.at_any(&["qwen2_model.model.model", "vision_tower.vision_encoder"]).role(Role::Tower);
    let rope = RopeTable::new(cx, &rope, &[])?;
    let encoder = Vit::layers(cx, &layers, plan)?.turned(rope);
    let table = |cx: &mut Ctx, names: [&str; 2], rows: usize| {
        taken(cx, &root.role(Role::Tower).at_any(&names), "weight", [rows, d])
    };
    let [few, many] = QUERIES;
    let queries = [
        table(cx, ["qwen2_model.query_768", "vision_tower.query_768_resolution"], few)?,
        table(cx, ["qwen2_model.query_1024", "vision_tower.query_1024_resolution"], many)?,
    ];
    let scope = root.role(Role::Connector);
    let projector = scope.at_any(&["projector.layers", "multi_modal_projector"]);
    let projector = Linear::load(cx, &projector, d_text, d, true)?;
    // The name is written so in published files.
    let name = if scope.has("view_seperator") { "view_seperator" } else { "view_separator" };
    let row = scope.take(name, &[d_text])?.reshape(&[1, d_text])?;
    let separator = Tensor::owned(cx.stream().place_view(&row)?);
    let language = root.at_any(&["language_model", ""]);
    let head = source.checkpoint.at("lm_head");
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    let info = decoder.plan().info(FAMILY.name);
    let parts = source.checkpoint.parts();
    let model = DeepseekOcr { info, parts, sam, encoder, queries, projector, separator, decoder };
    Ok(Model::Vlm(std::sync::Arc::new(model)))
}

fn taken(cx: &mut Ctx, scope: &Scope<'_>, name: &str, shape: [usize; 2]) -> Result<Tensor> {
    Ok(Tensor::owned(cx.stream().place_view(&scope.take(name, &shape)?)?))
}

impl DeepseekOcr {
    /// Places that the tower gives for a tile, and the queries that see them.
    fn queries(&self, tile: &Tile) -> Result<(usize, &Tensor)> {
        let grid = self.sam.plan().grid(tile.height, tile.width);
        let (down, across) = self.sam.places(grid);
        let [few, many] = &self.queries;
        match down * across {
            0 => {
                let (height, width) = (tile.height, tile.width);
                Err(Error::Request(format!("tile: expected a patch or more, found {width} x {height}")))
            }
            places if places <= QUERIES[0] => Ok((places, few)),
            places => Ok((places, many)),
        }
    }
}

impl Vlm for DeepseekOcr {
    fn info(&self) -> &ModelInfo {
        &self.info
    }

    fn parts(&self) -> Vec<PartInfo> {
        self.parts.clone()
    }

    fn encode(&self, cx: &mut Ctx, images: &[&PreparedImage]) -> Result<Vec<Features>> {
        const PATH: &str = "features";
        let d = self.encoder.plan().d;
        let mut all = Vec::with_capacity(images.len());
        for (number, image) in images.iter().enumerate() {
            let each = image.tiles.iter().map(|tile| Ok(self.queries(tile)?.1.size(0)));
            let each: Vec<usize> = each.collect::<Result<_>>()?;
            let count: usize = each.iter().sum();
            let rows = cx.alloc_owned(&[count + 1, self.info.d_model], cx.dtype())?;
            let mut filled = 0;
            for (at, (tile, taken)) in image.tiles.iter().zip(each).enumerate() {
                let (places, queries) = self.queries(tile)?;
                cx.scope(|cx| {
                    let values = upload(cx, images, &[(number, tile)])?;
                    let pixels = Pixels { values, mean: image.normalize.mean, std: image.normalize.std };
                    let h = cx.alloc(&[places + taken, d], cx.dtype())?;
                    let grid = self.sam.plan().grid(tile.height, tile.width);
                    cx.measure(Phase::Tower, |cx| {
                        let seen = h.narrow(0, 0, places)?;
                        cx.scope(|cx| self.sam.write_to(cx, &pixels, grid, &seen))?;
                        copy_rows(cx, PATH, queries, &h.narrow(0, places, taken)?)?;
                        // Places see each other; a query sees them, itself and those before it.
                        let to = (0..places + taken).map(|row| (row + 1).max(places) as i32);
                        let to: Vec<i32> = to.collect();
                        let to = cx.upload(&[to.len()], &to)?;
                        let seen = Seen::Ranges { from: None, to: cx.view(&to)? };
                        self.encoder.through(cx, &h, &[0, places + taken], seen)
                    })?;
                    let answers = h.narrow(0, places, taken)?;
                    // The reference shows what the whole picture gives, which comes last.
                    if at + 1 == image.tiles.len() {
                        cx.stage(Stage::TOWER, &answers)?;
                    }
                    let to = rows.narrow(0, filled, taken)?;
                    cx.measure(Phase::Connector, |cx| self.projector.write_to(cx, &answers, &to))
                })?;
                filled += taken;
            }
            copy_rows(cx, PATH, &self.separator, &rows.narrow(0, count, 1)?)?;
            cx.stage(Stage::FEATURES, &rows)?;
            cx.timings.tiles += image.tiles.len();
            all.push(Features::of_rows(rows));
        }
        Ok(all)
    }

    fn forward(&self, cx: &mut Ctx, batch: &Packed, kv: &KvCache) -> Result<Tensor> {
        self.decoder.forward(cx, batch, kv)
    }
}
