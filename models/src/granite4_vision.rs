//! Granite 4 Vision: a SigLIP tower, projectors with learned queries that feed several layers of a Granite decoder, pictures as
//! LLaVA-NeXT takes them.
//!
//! After `Granite4VisionForConditionalGeneration` and `Granite4VisionProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Result};

use crate::blip2::qformer;
use crate::composed::Composed;
use crate::connector::{Begins, Group, Windowed, WindowedPlan};
use crate::fields::{Config, Fields};
use crate::llava_next::resolutions;
use crate::processor::{ANYRES_KEYS, AnyresPlan, AnyresProcessor, ImageFields, added_token};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "granite4_vision",
    model_types: &["granite4_vision"],
    models: "Granite 4 Vision (as transformers has it)",
    pictures: "the whole picture, and fitted into the best of several resolutions; features for several layers",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &["vision_model.head.", "vision_tower.head."],
};

/// The tower as far as features come from it, the queries along the side of a window, the layers that features come from and the
/// projectors.
struct Sight {
    tower: VitPlan,
    queries: usize,
    deep: Vec<usize>,
    groups: Vec<Group>,
}

fn read(config: &Fields<'_>) -> Result<Sight> {
    let mut tower = VitPlan::siglip(&config.part("vision_config")?)?;
    config.only("vision_feature_select_strategy", "full")?;
    let rate: String = config.need("downsample_rate")?;
    let sides = rate.split_once('/').and_then(|(a, b)| Some((a.parse().ok()?, b.parse().ok()?)));
    let side = tower.side();
    // The queries of three projectors of four begin with one of 2 x 2 patches.
    let fits = |&(queries, window): &(usize, usize)| {
        (1..1 << 12).contains(&queries) && window == 2 * queries && side.is_multiple_of(window)
    };
    let Some((queries, _)) = sides.filter(fits) else {
        let what = format!("expected q/w with w = 2 q, a divisor of {side} patches a side, found {rate}");
        return Err(config.bad("downsample_rate", what));
    };
    let pairs: Vec<(i64, usize)> = config.need("deepstack_layer_map")?;
    let spatial: i64 = config.or("spatial_vision_layer", -1)?;
    let targets: Vec<usize> = config.or("spatial_target_layers", vec![12, 15, 18, 21])?;
    if targets.len() != 4 {
        return Err(
            config.bad("spatial_target_layers", format!("expected 4 layers, found {}", targets.len()))
        );
    }
    let layer = |key: &str, number: i64| -> Result<usize> {
        let layers = tower.layers as i64;
        let state = if number < 0 { layers + 1 + number } else { number };
        if (1..=layers).contains(&state) {
            return Ok(state as usize - 1);
        }
        Err(config.bad(key, format!("expected one of {layers} layers, found {number}")))
    };
    let mut ends = Vec::new();
    for &(from, to) in &pairs {
        ends.push((layer("deepstack_layer_map", from)?, to, Begins::Mean));
    }
    let from = layer("spatial_vision_layer", spatial)?;
    ends.extend(targets.iter().enumerate().map(|(i, &to)| (from, to, Begins::One(i / 2, i % 2))));
    let mut deep: Vec<usize> = ends.iter().map(|(from, ..)| *from).collect();
    deep.sort_unstable();
    deep.dedup();
    let at = |from: usize| deep.iter().position(|&layer| layer == from).unwrap_or(0);
    let groups: Vec<Group> =
        ends.iter().map(|&(from, to, begins)| Group { from: at(from), to, begins }).collect();
    let twice = (1..groups.len()).any(|i| groups[..i].iter().any(|group| group.to == groups[i].to));
    if twice || groups.iter().all(|group| group.to != 0) {
        let found: Vec<usize> = groups.iter().map(|group| group.to).collect();
        let what = format!("expected features for layer 0 and for none twice, found {found:?}");
        return Err(config.bad("deepstack_layer_map", what));
    }
    tower.used = deep.last().map_or(tower.layers, |last| last + 1);
    tower.normed = false;
    Ok(Sight { tower, queries, deep, groups })
}

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&[
        "image_grid_pinpoints",
        "image_seq_length",
        "image_token_id",
        "image_token_index",
        "projector_dropout",
        "vision_feature_layer",
    ]);
    let Sight { tower, queries, deep, groups } = read(&config)?;
    let tied = config.get("tie_word_embeddings")?;
    let types = &["granite4_vision_text", "granite"];
    let text = TextPlan::read(&config.part("text_config")?, types, tied)?;
    if let Some(group) = groups.iter().find(|group| group.to >= text.layers.len()) {
        let what = format!("expected layers below {}, found {}", text.layers.len(), group.to);
        return Err(config.bad("deepstack_layer_map", what));
    }
    let encoder = qformer(&config.part("qformer_config")?, tower.d, true)?;
    let plan = WindowedPlan { queries, side: tower.side(), encoder, d_text: text.d, deep, groups };
    let root = source.checkpoint.at_any(&["model", ""]);
    let tower = Vit::load(cx, &root.at("vision_tower").at_any(&["vision_model", ""]), tower)?;
    let connector = Windowed::load(cx, &root, plan)?;
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let language = root.at("language_model").at_any(&["model", ""]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

fn processor(files: &ModelFiles) -> Result<AnyresProcessor> {
    let config = Config::load(files, "config.json")?;
    let root = config.root();
    let Sight { tower, .. } = read(&root)?;
    let id: u32 = root.any(&["image_token_index", "image_token_id"])?.unwrap_or(32_000);
    let plan = AnyresPlan {
        resolutions: resolutions(&root, tower.image, false)?,
        side: (tower.image, tower.side() / 2),
        lone: false,
        most: None,
        token: (added_token(files, id)?, id),
        video: None,
    };
    AnyresProcessor::new(ImageFields::load(files, ANYRES_KEYS)?, plan)
}
