//! Processors against the goldens of transformers: pixels, tile order, prompts.

use std::path::Path;

use ocelli_engine::files::ModelFiles;
use ocelli_engine::image::{DecodeOptions, PreparedImage, Rgb8Image, decode_file};
use ocelli_engine::{Error, Processor as _};
use ocelli_models::processor::{ImageFields, splice};
use ocelli_models::smolvlm::processor::{Layout, Processor};
use safetensors::{Dtype, SafeTensors};
use serde_json::Value;

fn json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

fn decode(name: &str) -> Rgb8Image {
    decode_file(&crate::golden("images").join(name), &DecodeOptions::default()).unwrap()
}

/// The processor of these fields of `preprocessor_config.json`, and the reference class's for the others.
fn with(fields: Value) -> Processor {
    let known = &["do_image_splitting", "image_seq_len", "max_image_size", "processor_class"];
    Processor::new(ImageFields::of_json(String::new(), None, Some(&fields), known), None).unwrap()
}

/// The processor of an edge and a tile, in pixels.
fn of_sizes(edge: usize, tile: usize) -> Processor {
    with(serde_json::json!({"size": {"longest_edge": edge}, "max_image_size": {"longest_edge": tile}}))
}

/// The prompt with the names of tiles and image tokens in the places of pictures.
fn expand(processor: &Processor, prompt: &str, images: &[PreparedImage]) -> Result<String, Error> {
    let pictures: Vec<String> =
        images.iter().map(|image| processor.expansion(image.rows, image.cols)).collect();
    splice(prompt, &processor.tokens.image, &pictures)
}

/// A case's own settings and prepared pictures.
fn prepare(processor: &Processor, case: &Value) -> (Processor, Vec<PreparedImage>) {
    let mut processor = processor.clone();
    for (key, value) in case["processor_kwargs"].as_object().unwrap() {
        processor.set(key, &value.to_string()).unwrap();
    }
    let names = case["images"].as_array().unwrap();
    let images =
        names.iter().map(|name| processor.prepare(&decode(name.as_str().unwrap()), 2).unwrap()).collect();
    (processor, images)
}

/// `input_ids` of tokens that are strings of their own in the prompt, in order; ordinary text is left out.
fn special_ids(tokenizer: &Value, prompt: &str) -> Vec<u64> {
    let added = tokenizer["added_tokens"].as_array().unwrap();
    let mut ids = Vec::new();
    let mut rest = prompt;
    while !rest.is_empty() {
        let hit = added.iter().find(|t| rest.starts_with(t["content"].as_str().unwrap()));
        match hit {
            Some(token) => {
                ids.push(token["id"].as_u64().unwrap());
                rest = &rest[token["content"].as_str().unwrap().len()..];
            }
            None => rest = &rest[rest.chars().next().unwrap().len_utf8()..],
        }
    }
    ids
}

fn check_family(family: &str) {
    let dir = crate::golden(family);
    let processor = Processor::load(&ModelFiles::dir(&dir)).unwrap();
    let tokenizer = json(&dir.join("tokenizer.json"));
    let bytes = std::fs::read(dir.join("golden.safetensors")).unwrap();
    let golden = SafeTensors::deserialize(&bytes).unwrap();
    let inputs = json(&dir.join("inputs.json"));
    let mut pictures = 0;
    for case in inputs["cases"].as_array().unwrap() {
        let name = case["name"].as_str().unwrap();
        let (processor, images) = prepare(&processor, case);

        let got: Vec<f32> = images.iter().flat_map(PreparedImage::pixel_values).collect();
        if images.is_empty() {
            assert!(golden.tensor(&format!("{name}.pixel_values")).is_err());
        } else {
            let want = golden.tensor(&format!("{name}.pixel_values")).unwrap();
            let tiles: usize = images.iter().map(|image| image.tiles.len()).sum();
            let side = processor.tile;
            assert_eq!(want.shape(), [1, tiles, 3, side, side], "{family} {name}");
            assert_eq!(want.dtype(), Dtype::U8, "{family} {name}: numbers of levels");
            let levels = golden.tensor(&format!("{name}.pixel_values.levels")).unwrap();
            let levels: Vec<_> = levels.data().chunks_exact(4).collect();
            assert_eq!(want.data().len(), got.len(), "{family} {name}");
            let of = |number: &u8| levels[usize::from(*number)];
            let differing = want.data().iter().zip(&got).filter(|(w, g)| of(w) != g.to_le_bytes()).count();
            assert_eq!(differing, 0, "{family} {name}: {differing} of {} pixel values differ", got.len());
            pictures += images.len();
        }

        let prompt = case["prompt"].as_str().unwrap();
        let expanded = expand(&processor, prompt, &images).unwrap();
        let added: Vec<u64> =
            tokenizer["added_tokens"].as_array().unwrap().iter().filter_map(|t| t["id"].as_u64()).collect();
        let ids: Vec<u64> = case["input_ids"].as_array().unwrap().iter().filter_map(Value::as_u64).collect();
        let special: Vec<u64> = ids.iter().copied().filter(|id| added.contains(id)).collect();
        assert_eq!(special_ids(&tokenizer, &expanded), special, "{family} {name}: {expanded}");
        let image_id =
            tokenizer["added_tokens"].as_array().unwrap().iter().find(|t| t["content"] == "<image>").unwrap()
                ["id"]
                .as_u64()
                .unwrap();
        let features: usize = images.iter().map(|image| image.tiles.len() * processor.image_seq_len).sum();
        assert_eq!(ids.iter().filter(|&&id| id == image_id).count(), features, "{family} {name}");
    }
    assert_eq!(pictures, 5, "{family}");
}

#[test]
fn smolvlm_goldens() {
    check_family("smolvlm");
}

#[test]
fn idefics3_goldens() {
    check_family("idefics3");
}

#[test]
fn prompt_text_with_newlines() {
    let processor = with(serde_json::json!({"image_seq_len": 2}));
    let split = "a<fake_token_around_image><row_1_col_1><image><image><fake_token_around_image><row_1_col_2><image><image>\n\
                 <fake_token_around_image><row_2_col_1><image><image><fake_token_around_image><row_2_col_2><image><image>\n\n\
                 <fake_token_around_image><global-img><image><image><fake_token_around_image>b";
    assert_eq!(format!("a{}b", processor.expansion(2, 2)), split);
    let whole = "<fake_token_around_image><global-img><image><image><fake_token_around_image>";
    assert_eq!(processor.expansion(0, 0), whole);
}

#[test]
fn pictures_and_places_must_agree() {
    let processor = with(Value::Null);
    assert_eq!(expand(&processor, "no picture", &[]).unwrap(), "no picture");
    let error = expand(&processor, "<image> and <image>", &[]).unwrap_err();
    assert_eq!(error.to_string(), "the prompt has 2 <image> tokens, but 0 pictures were given");
}

#[test]
fn published_layouts() {
    // SmolVLM-256M: 512-pixel tiles, longest side 2048.
    let mut processor = of_sizes(2048, 512);
    let grid = |p: &Processor, w, h| {
        let Layout { rows, cols, .. } = p.layout(w, h);
        (rows, cols)
    };
    assert_eq!(grid(&processor, 512, 512), (4, 4));
    assert_eq!(processor.layout(512, 512).rows * processor.layout(512, 512).cols, 16);
    assert_eq!(grid(&processor, 1920, 1080), (3, 4));
    assert_eq!(grid(&processor, 30_000, 1), (1, 4));
    assert_eq!(grid(&processor, 1, 30_000), (4, 1));
    assert_eq!(grid(&processor, 1, 1), (4, 4));
    processor.set("do_image_splitting", "false").unwrap();
    assert_eq!(processor.layout(1920, 1080).rows, 0);
    processor.set("do_image_splitting", "True").unwrap();
    processor.set("size.longest_edge", "512").unwrap();
    assert_eq!(grid(&processor, 1920, 1080), (0, 0));
    processor.set("size.longest_edge", "16384").unwrap();
    assert_eq!(processor.layout(1920, 1080).resized, (4096, 2304));
}

#[test]
fn layouts_of_many_sizes() {
    let rows = json(&crate::golden("layouts.json"));
    let rows = rows.as_array().unwrap();
    assert_eq!(rows.len(), 500);
    for row in rows {
        let row: Vec<usize> = row.as_array().unwrap().iter().map(|v| v.as_u64().unwrap() as usize).collect();
        let [edge, tile, width, height, ref want @ ..] = row[..] else { panic!("{row:?}") };
        let processor = of_sizes(edge, tile);
        let got = processor.layout(width, height);
        assert_eq!([got.resized.0, got.resized.1, got.rows, got.cols], want, "{row:?}");
        assert!(got.rows == 0 || got.canvas == (got.cols * tile, got.rows * tile), "{row:?}");
    }
}

#[test]
fn a_single_pixel_and_a_line_are_prepared() {
    let processor = Processor::load(&ModelFiles::dir(crate::golden("smolvlm"))).unwrap();
    for (width, height, grid) in [(1, 1, (3, 3)), (500, 1, (1, 3)), (1, 500, (3, 1))] {
        let image = Rgb8Image::from_raw(width, height, vec![77; width * height * 3]).unwrap();
        let prepared = processor.prepare(&image, 1).unwrap();
        assert_eq!((prepared.rows, prepared.cols), grid);
        assert_eq!(prepared.tiles.len(), grid.0 * grid.1 + 1);
        assert!(prepared.pixel_values().iter().all(|&v| v == (77.0 - 127.5) / 127.5));
    }
}

#[test]
fn overrides_are_typed() {
    let mut processor = with(Value::Null);
    let text = |result: Result<(), Error>| result.unwrap_err().to_string();
    let unknown = text(processor.set("do_splitting", "false"));
    let known =
        "--processor: image processor: unknown key \"do_splitting\"; known keys: do_image_splitting, ";
    assert!(unknown.starts_with(known), "{unknown}");
    assert!(["image_std", "size", "max_image_size"].iter().all(|key| unknown.contains(key)));
    for (key, value, want) in [
        ("do_resize", "maybe", "image processor: do_resize: expected true or false, found \"maybe\""),
        (
            "resample",
            "0",
            "image processor: resample: expected 1 (Lanczos), 2 (bilinear) or 3 (bicubic), found 0",
        ),
        (
            "image_std",
            "[1, 0, 1]",
            "image processor: image_std: expected numbers other than zero, found [1,0,1]",
        ),
        (
            "image_mean",
            "[1, 2]",
            "image processor: image_mean: expected a number or a list of three, found [1,2]",
        ),
        (
            "max_image_size",
            "0",
            "image processor: max_image_size: expected a whole number from 1 to 16384, found 0",
        ),
        (
            "size.longest_edge",
            "-3",
            "image processor: size.longest_edge: expected a whole number from 1 to 16384, found -3",
        ),
        (
            "rescale_factor",
            "0",
            "image processor: rescale_factor: expected a number other than zero, found 0",
        ),
    ] {
        assert_eq!(text(processor.set(key, value)), format!("--processor: {want}"));
    }
    // Divided by it, no grey level is a number.
    assert!(text(processor.set("image_std", "1e-40")).contains("numbers other than zero"));
    assert_eq!(processor, with(Value::Null), "a refused override changes nothing");
    processor.set("size", r#"{"height": 20, "width": 30}"#).unwrap();
    assert_eq!(processor.layout(7, 9).resized, (30, 20));
    processor.set("size.height", "10").unwrap();
    assert_eq!(processor.layout(7, 9).resized, (30, 10));
    processor.set("max_image_size", r#"{"longest_edge": 32}"#).unwrap();
    processor.set("image_mean", "0.25").unwrap();
    let image = Rgb8Image::from_raw(1, 1, vec![77; 3]).unwrap();
    let prepared = processor.prepare(&image, 1).unwrap();
    assert_eq!((processor.tile, prepared.normalize.mean), (32, [0.25 * 255.0; 3]));
}

#[test]
fn configuration_of_version_4_and_token_strings() {
    let parse = |text: &str| serde_json::from_str::<Value>(text).unwrap();
    let pre =
        parse(r#"{"size": {"longest_edge": 2048}, "max_image_size": {"longest_edge": 512}, "resample": 1}"#);
    let own = parse(r#"{"image_seq_len": 64, "processor_class": "Idefics3Processor"}"#);
    let tokenizer = parse(
        r#"{"global_image_token": "<whole>", "extra_special_tokens": {"image_token": {"content": "<pic>"}}}"#,
    );
    let load = |files: &[(&str, &Value)]| {
        let dir = crate::Dir::with(files);
        Processor::load(&ModelFiles::dir(dir.path())).unwrap()
    };
    let files = [
        ("processor_config.json", &own),
        ("preprocessor_config.json", &pre),
        ("tokenizer_config.json", &tokenizer),
    ];
    let idefics3 = load(&files);
    assert_eq!(
        (idefics3.layout(100, 50).resized, idefics3.tile, idefics3.image_seq_len),
        ((2048, 1024), 512, 64)
    );
    assert_eq!(idefics3.tokens, with(Value::Null).tokens);
    let smolvlm = load(&files[1..]);
    assert_eq!((&*smolvlm.tokens.global, &*smolvlm.tokens.image), ("<whole>", "<pic>"));
    assert_eq!(smolvlm.image_seq_len, 169);
}

#[test]
fn a_model_without_a_processor_is_refused() {
    let dir = crate::Dir::with(&[]);
    let error = Processor::load(&ModelFiles::dir(dir.path())).unwrap_err().to_string();
    assert!(error.contains("no image processor: expected processor_config.json"), "{error}");
}
