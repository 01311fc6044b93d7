//! Ovis 2 in the layout of transformers: an AIMv2 tower, tokens that are means over a visual vocabulary, and a Qwen 2 decoder.
//!
//! After `Ovis2ForConditionalGeneration`, `Ovis2Processor` and `Ovis2ImageProcessor` of transformers.

use ocelli_engine::files::ModelFiles;
use ocelli_engine::{Ctx, Model, Result};

use crate::composed::Composed;
use crate::connector::{VisualWords, VisualWordsPlan};
use crate::fields::Config;
use crate::processor::{
    CLIP_MEAN, CLIP_STD, CanvasPlan, CanvasProcessor, ImageFields, added_token, grids, nearest_aspect,
};
use crate::registry::{Family, Source};
use crate::text::{Decoder, TextPlan};
use crate::vision::{Vit, VitPlan};

/// The family's row in the registry.
pub const FAMILY: Family = Family {
    name: "ovis2",
    model_types: &["ovis2"],
    models: "Ovis 2 (as transformers has it)",
    pictures: "the whole picture and tiles, as words of a visual vocabulary",
    file: file!(),
    processor: |files| Ok(Box::new(processor(files)?)),
    load,
    spare: &[],
};

/// `visual_indicator_token_ids` of the reference class: start, grid, column, row, end.
const MARKS: [u32; 5] = [151_666, 151_667, 151_668, 151_669, 151_670];

fn load(source: &Source<'_>, cx: &mut Ctx) -> Result<Model> {
    let config = source.config.root();
    config.inert(&["image_token_id", "visual_indicator_token_ids"]);
    let vision = config.part("vision_config")?;
    let tower = VitPlan::ovis2(&vision)?;
    let block = vision.size("hidden_stride", 1)?;
    if !tower.side().is_multiple_of(block) {
        let what = format!("expected a divisor of {} patches a side, found {block}", tower.side());
        return Err(vision.bad("hidden_stride", what));
    }
    vision.only("tokenize_function", "softmax")?;
    let marks = vision.size("num_visual_indicator_tokens", MARKS.len())?;
    let all = vision.size("vocab_size", 16_384)?;
    let tied = config.get("tie_word_embeddings")?.or(Some(true));
    let text = TextPlan::read(&config.part("text_config")?, &["qwen2"], tied)?;
    config.only("hidden_size", text.d)?;
    config.only("vocab_size", text.vocab)?;
    if all <= marks || marks != MARKS.len() {
        let what = format!("expected {} of {all} words, found {marks}", MARKS.len());
        return Err(vision.bad("num_visual_indicator_tokens", what));
    }
    let plan = VisualWordsPlan { d_vision: tower.d, d_text: text.d, block, words: all - marks, marks };
    let at = source.layout();
    let table = at.root.at("visual_embeddings_table");
    let connector = VisualWords::load(cx, &at.tower, &table, plan)?;
    let tower = Vit::load(cx, &at.tower.at("transformer"), tower)?;
    let decoder = Decoder::load(cx, &at.language, &at.head, text, config.file())?;
    Ok(Composed::of(FAMILY.name, source, tower, connector, decoder))
}

/// Fields beside the common ones.
const KEYS: &[&str] =
    &["crop_to_patches", "min_patches", "max_patches", "image_seq_length", "use_covering_area_grid"];

fn processor(files: &ModelFiles) -> Result<CanvasProcessor> {
    let config = Config::load(files, "config.json")?;
    let id: u32 = config.root().or("image_token_id", 151_665)?;
    let behind: Vec<u32> = config.root().or("visual_indicator_token_ids", MARKS.to_vec())?;
    let words = behind.iter().map(|&id| added_token(files, id)).collect::<Result<Vec<_>>>()?;
    if words.len() != MARKS.len() {
        let what = format!("expected {} tokens, found {}", MARKS.len(), words.len());
        return Err(config.root().bad("visual_indicator_token_ids", what));
    }
    let fields = ImageFields::load(files, KEYS)?;
    let plan = CanvasPlan {
        side: 384,
        cuts: false,
        grid: covering,
        unless: Some(("use_covering_area_grid", nearest_aspect)),
        mean: CLIP_MEAN,
        std: CLIP_STD,
        mark: "<image>".into(),
        token: (added_token(files, id)?, id),
        per_tile: fields.pixels("image_seq_length")?.unwrap_or(256),
        expand,
        words,
        whole_first: true,
        behind,
    };
    CanvasProcessor::new(fields, plan)
}

/// The whole picture, then rows of tiles.
fn expand(tile: &str, words: &[String], rows: usize, cols: usize) -> String {
    let [start, grid, col, row, end] = words else { return String::new() };
    let line = vec![tile; cols].join(col);
    format!("{start}{tile}{grid}{}{end}", vec![line; rows].join(row))
}

/// The grid of fewest tiles that show more than 0.9 of a picture of `(width, height)`, or else the one that shows most. As in the
/// reference, what is measured are as many rows as the grid has columns, and the other way around.
fn covering(
    (width, height): (usize, usize),
    (_, side): (usize, usize),
    (_, most): (usize, usize),
) -> (usize, usize) {
    const ENOUGH: f64 = 0.9;
    let shown = |&(down, across): &(usize, usize)| {
        let (tall, wide) = (height / down, width / across);
        let of_tile = |row: usize, col: usize| {
            let tall = if row + 1 == down { height - row * tall } else { tall };
            let wide = if col + 1 == across { width - col * wide } else { wide };
            let (long, short) = (tall.max(wide) as f64, tall.min(wide) as f64);
            let side = side as f64;
            if long > side { short / long * side * side } else { long * short }
        };
        let tiles = (0..down).flat_map(|row| (0..across).map(move |col| (row, col)));
        tiles.map(|(row, col)| of_tile(row, col)).sum::<f64>() / (width * height) as f64
    };
    let count = |grid: &(usize, usize)| grid.0 * grid.1;
    let all: Vec<_> = grids((1, most)).into_iter().map(|grid| (grid, shown(&grid))).collect();
    let by_count = |a: &&((usize, usize), f64), b: &&((usize, usize), f64)| {
        count(&a.0).cmp(&count(&b.0)).then(b.1.total_cmp(&a.1))
    };
    let by_share = |a: &&((usize, usize), f64), b: &&((usize, usize), f64)| {
        b.1.total_cmp(&a.1).then(count(&a.0).cmp(&count(&b.0)))
    };
    let enough = all.iter().filter(|(_, shown)| *shown > ENOUGH).min_by(by_count);
    enough.or_else(|| all.iter().min_by(by_share)).map_or((1, 1), |(grid, _)| *grid)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As `get_min_tile_covering_grid` of transformers gives them.
    #[test]
    fn few_tiles_that_show_most() {
        let table = [
            ((100, 100), (1, 1)),
            ((900, 900), (2, 2)),
            ((1000, 100), (1, 3)),
            ((100, 340), (1, 1)),
            ((500, 448), (1, 2)),
            ((3000, 2000), (2, 3)),
            ((1, 5000), (9, 1)),
            ((640, 480), (2, 2)),
        ];
        for (size, grid) in table {
            assert_eq!(covering(size, (448, 448), (1, 9)), grid, "{size:?}");
        }
    }
}
