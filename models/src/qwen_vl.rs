//! Qwen2-VL, Qwen2.5-VL, Qwen3-VL and Qwen3.5: towers with rotations on pictures of any size, a merger, and decoders with positions of three
//! axes. Qwen2.5's tower has windows; Qwen3's has a table of positions too, and gives features for the first layers of the decoder.
//!
//! After `Qwen2VLForConditionalGeneration`, `Qwen2_5_VLForConditionalGeneration`, `Qwen3VLForConditionalGeneration` and
//! `Qwen2VLImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Processor, Result};

use crate::composed::Composed;
use crate::connector::{Merger, MergerPlan};
use crate::fields::Fields;
use crate::processor::{AreaDefaults, AreaProcessor, AreaRule, CLIP_MEAN, CLIP_STD, VideoRule};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// Qwen2-VL's row in the registry.
pub const QWEN2: Family = Family {
    name: "qwen2_vl",
    model_types: &["qwen2_vl"],
    models: "Qwen2-VL",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Run),
    load: |source, cx| load(QWEN2.name, source, cx, qwen2, &["qwen2_vl_text", "qwen2_vl"]),
    spare: &[],
};

/// Qwen2.5-VL's row in the registry.
pub const QWEN2_5: Family = Family {
    name: "qwen2_5_vl",
    model_types: &["qwen2_5_vl"],
    models: "Qwen2.5-VL",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Timed),
    load: |source, cx| load(QWEN2_5.name, source, cx, qwen2_5, &["qwen2_5_vl_text", "qwen2_5_vl"]),
    spare: &[],
};

/// Qwen3-VL's row in the registry.
pub const QWEN3: Family = Family {
    name: "qwen3_vl",
    model_types: &["qwen3_vl"],
    models: "Qwen3-VL",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Before),
    load: |source, cx| load(QWEN3.name, source, cx, qwen3, &["qwen3_vl_text"]),
    spare: &[],
};

/// Qwen3-VL with experts: its row in the registry.
pub const QWEN3_MOE: Family = Family {
    name: "qwen3_vl_moe",
    model_types: &["qwen3_vl_moe"],
    models: "Qwen3-VL with experts",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Before),
    load: |source, cx| load(QWEN3_MOE.name, source, cx, qwen3, &["qwen3_vl_moe_text"]),
    spare: &[],
};

/// Qwen3.5's row in the registry.
pub const QWEN3_5: Family = Family {
    name: "qwen3_5",
    model_types: &["qwen3_5"],
    models: "Qwen3.5",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Before),
    load: |source, cx| load(QWEN3_5.name, source, cx, qwen3_5, &["qwen3_5_text"]),
    spare: &["mtp."],
};

/// Qwen3.5 with experts: its row in the registry.
pub const QWEN3_5_MOE: Family = Family {
    name: "qwen3_5_moe",
    model_types: &["qwen3_5_moe"],
    models: "Qwen3.5 with experts",
    pictures: "any size, three axes of positions; videos",
    file: file!(),
    processor: |files| processor(files, VideoRule::Before),
    load: |source, cx| load(QWEN3_5_MOE.name, source, cx, qwen3_5, &["qwen3_5_moe_text"]),
    spare: &["mtp."],
};

fn processor(files: &ModelFiles, video: VideoRule) -> Result<Box<dyn Processor>> {
    let defaults = AreaDefaults {
        image_token: 151_655,
        patch: 14,
        frames: 2,
        area: (56 * 56, 28 * 28 * 1280),
        rule: AreaRule::Qwen,
        mean: CLIP_MEAN,
        std: CLIP_STD,
        video: Some(video),
    };
    Ok(Box::new(AreaProcessor::load(files, defaults)?))
}

/// Reads tower and merger; the width of the decoder is known already.
type ReadVision = fn(&Fields<'_>, d_text: usize) -> Result<(VitPlan, MergerPlan)>;

fn qwen2(vision: &Fields<'_>, d_text: usize) -> Result<(VitPlan, MergerPlan)> {
    let tower = VitPlan::qwen2(vision)?;
    vision.only("hidden_size", d_text)?;
    let merger = merger(vision, &tower, ["ln_q", "mlp.0", "mlp.2"])?;
    Ok((tower, merger))
}

fn qwen2_5(vision: &Fields<'_>, d_text: usize) -> Result<(VitPlan, MergerPlan)> {
    let tower = VitPlan::qwen2_5(vision)?;
    vision.only("out_hidden_size", d_text)?;
    vision.inert(&["tokens_per_second"]);
    let mut merger = merger(vision, &tower, ["ln_q", "mlp.0", "mlp.2"])?;
    let window = vision.size("window_size", 112)?;
    match window / merger.block / tower.patch {
        0 => {
            let least = merger.block.saturating_mul(tower.patch);
            return Err(vision.bad("window_size", format!("expected at least {least}, found {window}")));
        }
        side => merger.window = Some(side),
    }
    Ok((tower, merger))
}

const QWEN3_TOWERS: &[&str] = &["qwen3_vl_vision", "qwen3_vl", "qwen3_vl_moe_vision", "qwen3_vl_moe"];

const QWEN3_5_TOWERS: &[&str] = &["qwen3_5_vision", "qwen3_5", "qwen3_5_moe_vision", "qwen3_5_moe"];

fn qwen3(vision: &Fields<'_>, d_text: usize) -> Result<(VitPlan, MergerPlan)> {
    let tower = VitPlan::qwen3(vision, QWEN3_TOWERS)?;
    vision.only("out_hidden_size", d_text)?;
    let mut merger = merger(vision, &tower, ["norm", "linear_fc1", "linear_fc2"])?;
    merger.deep = vision.or("deepstack_visual_indexes", vec![8, 16, 24])?;
    if !merger.deep.is_sorted_by(|a, b| a < b) || merger.deep.last().is_some_and(|last| *last >= tower.layers)
    {
        let what = format!("expected ascending layers below {}, found {:?}", tower.layers, merger.deep);
        return Err(vision.bad("deepstack_visual_indexes", what));
    }
    Ok((tower, merger))
}

/// As Qwen3's, without deep features.
fn qwen3_5(vision: &Fields<'_>, d_text: usize) -> Result<(VitPlan, MergerPlan)> {
    let tower = VitPlan::qwen3(vision, QWEN3_5_TOWERS)?;
    vision.only("out_hidden_size", d_text)?;
    vision.unset("deepstack_visual_indexes")?;
    let merger = merger(vision, &tower, ["norm", "linear_fc1", "linear_fc2"])?;
    Ok((tower, merger))
}

fn merger(vision: &Fields<'_>, tower: &VitPlan, names: [&'static str; 3]) -> Result<MergerPlan> {
    let block = vision.size("spatial_merge_size", 2)?;
    Ok(MergerPlan { block, window: None, norm: tower.norm, eps: tower.norm_eps, names, deep: Vec::new() })
}

fn load(
    family: &'static str,
    source: &Source<'_>,
    cx: &mut Ctx,
    vision: ReadVision,
    types: &[&'static str],
) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "video_token_id", "vision_token_id", "rope_scaling"]);
    let tied = config.get("tie_word_embeddings")?;
    let text = TextPlan::read(&config.at_or_here("text_config"), types, tied)?;
    let (tower, merger) = vision(&config.part("vision_config")?, text.d)?;
    let sizes = (tower.d, text.d);
    let visual = source.checkpoint.at_any(&["visual", "model.visual", "vision_tower"]);
    let tower = Vit::load(cx, &visual, tower)?;
    let connector = Merger::load(cx, &visual, merger, sizes)?;
    let language = source.checkpoint.at_any(&["model.language_model", "model", "language_model.model"]);
    let head = source.checkpoint.at_any(&["lm_head", "language_model.lm_head"]);
    let decoder = Decoder::load(cx, &language, &head, text, config.file())?;
    Ok(Composed::of(family, source, tower, connector, decoder))
}
