//! Quantized copies: what is written decodes to what rounding to nearest gives, and loads again.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use ocelli_engine::files::ModelFiles;
use ocelli_engine::weights::{
    Checkpoint, Layout, QuantizeError, QuantizeOptions, QuantizeScheme, Quantized, Role, quantize,
};
use ocelli_kernels::quant::grouped;
use ocelli_kernels::{Code, DType, Format, Grouped, Zero};

use super::build::{f32s, valid};
use super::{TempDir, decoded, golden};

/// Which matrix is what, in the names of SmolVLM.
fn role(module: &str) -> Option<Role> {
    let last = module.rsplit('.').next().unwrap_or(module);
    match module {
        "lm_head" => Some(Role::Head),
        _ if last == "embed_tokens" => Some(Role::Embedding),
        _ if module.contains("text_model.layers.") && last.ends_with("_proj") => Some(Role::Decoder),
        _ if module.contains("vision_model.encoder.layers.") => Some(Role::Tower),
        _ if module.contains("connector") => Some(Role::Connector),
        _ => None,
    }
}

fn run(source: &Path, out: &Path, options: &QuantizeOptions) -> Result<Quantized, QuantizeError> {
    let mut last = 0;
    let done = quantize(&ModelFiles::dir(source), out, &role, options, &mut |progress| {
        assert!(progress.done >= last && progress.done <= progress.total, "{progress:?}");
        last = progress.done;
        ControlFlow::Continue(())
    })?;
    assert_eq!(last, done.bytes_before);
    Ok(done)
}

fn demo() -> PathBuf {
    ocelli_tests::root().join("models/demo/model")
}

/// Every module of the copy decodes to the rounded original, every other tensor is the same bytes.
fn check(source: &Path, out: &Path, options: &QuantizeOptions) -> usize {
    let original = Checkpoint::open(&ModelFiles::dir(source)).expect("the source");
    let copy = Checkpoint::open(&ModelFiles::dir(out)).expect("the copy");
    let mut modules = 0;
    for (name, info) in original.infos() {
        let module = name.strip_suffix(".weight").unwrap_or(name);
        let scheme = match role(module) {
            Some(Role::Decoder | Role::Text) => Some(options.scheme),
            Some(Role::Head | Role::Embedding) => options.head.then_some(QuantizeScheme::Int8),
            Some(Role::Tower) => options.tower.then_some(options.scheme),
            Some(Role::Connector) => options.connector.then_some(options.scheme),
            Some(Role::Painter) | None => None,
        };
        let (Some(scheme), &[n, k]) = (scheme, info.shape) else {
            assert_eq!(copy.raw(name).expect(name), original.raw(name).expect(name), "{name}");
            assert_eq!(copy.info(name), Some(info), "{name}");
            continue;
        };
        modules += 1;
        let scale = options.scales.or(info.kernel_dtype()).expect("a float type");
        let group = if k.is_multiple_of(options.group.max(1) as usize) { options.group } else { 32 };
        let code = if scheme == QuantizeScheme::Int4 { Code::Int4 } else { Code::Int8 };
        let format = Format::Grouped(Grouped {
            code,
            group,
            zero: if options.zero_points { Zero::Codes } else { Zero::None },
            scale,
        });
        let weights = copy.at(module).linear(n, k, false).expect(module);
        assert_eq!(weights.format(), format, "{module}");
        let planes = grouped::encode(format, n, k, &original.floats(name).expect(name), 1.0).expect(name);
        let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
        let expected = grouped::decode(format, n, k, &planes, 1.0).expect(name);
        assert_eq!(decoded(&weights), expected, "{module}");
        assert_eq!(copy.ints(&format!("{module}.weight_shape")).expect("a shape"), [n as i64, k as i64]);
    }
    assert_eq!(copy.copied().tensors, 0, "all that is written is aligned");
    modules
}

#[test]
fn copies_decode_to_the_rounded_original() {
    let dir = TempDir::new();
    let golden = golden("smolvlm");
    for (index, (source, options)) in [
        (&golden, QuantizeOptions::new(QuantizeScheme::Int4)),
        (
            &golden,
            QuantizeOptions {
                zero_points: true,
                scales: Some(DType::F16),
                ..QuantizeOptions::new(QuantizeScheme::Int8)
            },
        ),
        (&demo(), QuantizeOptions { group: 128, ..QuantizeOptions::new(QuantizeScheme::Int4) }),
        (&demo(), QuantizeOptions { zero_points: true, ..QuantizeOptions::new(QuantizeScheme::Int4) }),
        (
            &demo(),
            QuantizeOptions {
                tower: true,
                connector: true,
                group: 0,
                ..QuantizeOptions::new(QuantizeScheme::Int8)
            },
        ),
        (
            &golden,
            QuantizeOptions {
                max_shard: 100_000,
                tower: true,
                group: 64,
                ..QuantizeOptions::new(QuantizeScheme::Int4)
            },
        ),
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.join(&format!("out{index}"));
        let done = run(source, &out, &options).expect("a copy");
        let modules = check(source, &out, &options);
        assert_eq!(done.formats.iter().map(|(_, count)| count).sum::<usize>(), modules);
        assert!(done.bytes_after < done.bytes_before);
        assert_eq!(done.files.len() > 1, options.max_shard < 1 << 20, "{:?}", done.files);
        for name in
            ["tokenizer.json", "tokenizer_config.json", "processor_config.json", "chat_template.jinja"]
        {
            assert_eq!(std::fs::read(out.join(name)).ok(), std::fs::read(source.join(name)).ok(), "{name}");
        }
    }
    let left: Vec<_> =
        std::fs::read_dir(&dir.0).expect("the folder").flatten().map(|entry| entry.file_name()).collect();
    assert_eq!(left.len(), 6, "{left:?}");
}

/// Every scheme in every layout that has it: what was written is what was rounded.
#[test]
fn other_schemes_and_layouts_decode_to_the_rounded_original() {
    use Layout::{Bitsandbytes, CompressedTensors, Mlx};
    let dir = TempDir::new();
    let original = Checkpoint::open(&ModelFiles::dir(demo())).expect("the source");
    for (index, (scheme, layout, expected)) in [
        (QuantizeScheme::Fp8, CompressedTensors, "fp8row"),
        (QuantizeScheme::Mxfp4, CompressedTensors, "fp4g32.e8m0"),
        (QuantizeScheme::Nvfp4, CompressedTensors, "fp4g16.e4m3"),
        (QuantizeScheme::Int4, Mlx, "int4g32zo"),
        (QuantizeScheme::Int8, Mlx, "int8g32zo"),
        (QuantizeScheme::Fp8, Mlx, "fp8g32.e8m0"),
        (QuantizeScheme::Mxfp4, Mlx, "fp4g32.e8m0"),
        (QuantizeScheme::Nvfp4, Mlx, "fp4g16.e4m3"),
        (QuantizeScheme::Nf4, Bitsandbytes, "nf4g64.f32"),
    ]
    .into_iter()
    .enumerate()
    {
        let out = dir.join(&format!("out{index}"));
        let options = QuantizeOptions { layout, ..QuantizeOptions::new(scheme) };
        let done = run(&demo(), &out, &options).expect("a copy");
        assert_eq!(done.formats[0].0.to_string(), expected, "{layout:?}");
        let copy = Checkpoint::open(&ModelFiles::dir(&out)).expect("the copy");
        for (name, info) in original.infos() {
            let module = name.strip_suffix(".weight").unwrap_or(name);
            let (Some(Role::Decoder), &[n, k]) = (role(module), info.shape) else { continue };
            let weights = copy.at(module).linear(n, k, false).expect(module);
            let format = weights.format();
            assert_eq!(format.to_string(), expected, "{module}");
            let values = original.floats(name).expect(name);
            let factor = if layout == CompressedTensors { grouped::factor(format, &values) } else { 1.0 };
            let planes = grouped::encode(format, n, k, &values, factor).expect(name);
            let planes: Vec<&[u8]> = planes.iter().map(Vec::as_slice).collect();
            // The factor of the file is what was written the other way round.
            let read = weights.parts()[0].factor;
            assert!((read - factor).abs() <= f32::EPSILON * factor, "{module}: {read} of {factor}");
            let rounded = grouped::decode(format, n, k, &planes, read).expect(name);
            let most = rounded.iter().fold(0.0f32, |most, w| most.max(w.abs()));
            for (got, want) in decoded(&weights).iter().zip(&rounded) {
                assert!((got - want).abs() <= 2.0 * f32::EPSILON * most, "{module}: {got}, expected {want}");
            }
            // What is lost by rounding is a share of the weights that their bits allow.
            let error: f64 = rounded.iter().zip(&values).map(|(a, b)| f64::from(a - b).powi(2)).sum();
            let size: f64 = values.iter().map(|w| f64::from(*w).powi(2)).sum();
            let limit = if matches!(scheme, QuantizeScheme::Int8 | QuantizeScheme::Fp8) { 0.05 } else { 0.2 };
            assert!((error / size).sqrt() < limit, "{module} {expected}: {}", (error / size).sqrt());
        }
        let unused: Vec<&str> = copy.unused().filter(|name| name.contains("text_model.layers.")).collect();
        assert!(unused.iter().all(|name| name.contains("layernorm")), "{unused:?}");
    }
}

#[test]
fn a_tied_head_stays_tied_and_the_configuration_says_what_is_what() {
    let dir = TempDir::new();
    let out = dir.join("int4");
    let done = run(&demo(), &out, &QuantizeOptions::new(QuantizeScheme::Int4)).expect("a copy");
    let formats: Vec<String> =
        done.formats.iter().map(|(format, count)| format!("{format} {count}")).collect();
    assert_eq!(formats, ["int4g32 35", "int8g32 1"]);
    let copy = Checkpoint::open(&ModelFiles::dir(&out)).expect("the copy");
    assert!(!copy.names().any(|name| name.contains("lm_head")));
    let quantization = copy.quantization().expect("a configuration");
    let bits = |module: &str| quantization.scheme(module).map(|scheme| scheme.bits);
    assert_eq!(bits("model.text_model.embed_tokens"), Some(8));
    assert_eq!(bits("model.text_model.layers.3.mlp.up_proj"), Some(4));
    assert_eq!(bits("model.vision_model.encoder.layers.0.mlp.fc1"), None);
    assert_eq!(bits("model.connector.modality_projection.proj"), None);
    let config =
        |dir: &Path| ModelFiles::dir(dir).require_json::<serde_json::Value>("config.json").expect("config");
    let mut written = config(&out);
    let block = written.as_object_mut().and_then(|map| map.remove("quantization_config")).expect("a block");
    assert_eq!(written, config(&demo()), "the rest of config.json is the source's");
    assert_eq!(block["config_groups"].as_object().map(serde_json::Map::len), Some(2));
    let again = run(&out, &dir.join("again"), &QuantizeOptions::new(QuantizeScheme::Int4))
        .expect_err("refused")
        .to_string();
    assert!(
        again.contains("already quantized (compressed-tensors pack-quantized: group_0 int4 group 32"),
        "{again}"
    );
    assert!(!dir.join("again").exists());
}

#[test]
fn refusals_leave_nothing_behind() {
    let dir = TempDir::new();
    let source = golden("smolvlm");
    let refused = |source: &Path, out: &Path, options: QuantizeOptions| {
        run(source, out, &options).expect_err("refused").to_string()
    };
    let new = || QuantizeOptions::new(QuantizeScheme::Int4);
    let nf4 = || QuantizeOptions::new(QuantizeScheme::Nf4);
    let text = refused(&source, &dir.join("a"), nf4());
    assert_eq!(text, "nf4: not a format of compressed-tensors; the layout of bitsandbytes has it");
    let text = refused(&source, &dir.join("a"), QuantizeOptions { layout: Layout::Bitsandbytes, ..new() });
    assert_eq!(text, "int4: not a format of bitsandbytes' layout; expected nf4");
    let text = refused(&source, &dir.join("a"), QuantizeOptions { layout: Layout::Mlx, group: 0, ..new() });
    assert_eq!(text, "group: MLX has groups of 32, 64 and 128, found 0 for whole rows");
    let text = refused(
        &source,
        &dir.join("a"),
        QuantizeOptions { head: true, layout: Layout::Bitsandbytes, ..nf4() },
    );
    assert_eq!(text, "head and token table become 8-bit integers beside integers alone, found nf4");
    let text = refused(&source, &dir.join("a"), QuantizeOptions { group: 33, ..new() });
    assert_eq!(text, "group: expected 32, 64, 128 or 0 for whole rows, found 33");
    let text = refused(&source, &dir.join("a"), QuantizeOptions { scales: Some(DType::I8), ..new() });
    assert_eq!(text, "scales: expected f32, bf16 or f16, found i8");
    assert!(refused(&dir.join("absent"), &dir.join("a"), new()).contains("found neither"));
    let nothing = quantize(&ModelFiles::dir(&source), &dir.join("a"), &|_| None, &new(), &mut |_| {
        ControlFlow::Continue(())
    });
    assert!(
        nothing
            .expect_err("refused")
            .to_string()
            .ends_with("none of 75 tensors is a linear layer of the decoder")
    );
    let stopped =
        quantize(&ModelFiles::dir(&source), &dir.join("a"), &role, &new(), &mut |_| ControlFlow::Break(()));
    assert!(matches!(stopped, Err(QuantizeError::Cancelled { done: 0, all: 1 })));

    let other = TempDir::new();
    let weight =
        ("model.text_model.layers.0.mlp.up_proj.weight", "F32", &[1usize, 2][..], f32s(&[f32::NAN, 1.0]));
    other.write("model.safetensors", valid(&[weight], 0));
    other.write("config.json", "{}");
    let text = refused(&other.0, &dir.join("a"), new());
    assert!(
        text.contains("`model.text_model.layers.0.mlp.up_proj`: weight [0, 0..2]") && text.contains("finite"),
        "{text}"
    );
    assert_eq!(std::fs::read_dir(&dir.0).expect("the folder").count(), 0, "nothing may be left");
}

#[test]
fn what_is_there_is_replaced_only_when_asked_and_safe() {
    let dir = TempDir::new();
    let out = dir.join("out");
    let force = QuantizeOptions { force: true, ..QuantizeOptions::new(QuantizeScheme::Int4) };
    run(&golden("smolvlm"), &out, &QuantizeOptions::new(QuantizeScheme::Int8)).expect("a copy");
    let before = std::fs::read(out.join("config.json")).expect("config");
    let text = run(&golden("smolvlm"), &out, &QuantizeOptions::new(QuantizeScheme::Int4))
        .expect_err("refused")
        .to_string();
    assert!(text.ends_with("out: already exists"), "{text}");
    assert_eq!(std::fs::read(out.join("config.json")).expect("config"), before);
    run(&golden("smolvlm"), &out, &force).expect("a copy in its place");
    assert_ne!(std::fs::read(out.join("config.json")).expect("config"), before);

    let file = dir.write("file", b"x");
    let text = run(&golden("smolvlm"), &file, &force).expect_err("refused").to_string();
    assert!(text.ends_with("will not be replaced: it is not a directory"), "{text}");
    std::fs::create_dir_all(dir.join("home/models")).expect("a folder");
    let text = run(&golden("smolvlm"), &dir.join("home"), &force).expect_err("refused").to_string();
    assert!(text.contains("neither empty nor a model"), "{text}");
    let text = run(&out, &out, &force).expect_err("refused").to_string();
    assert!(text.ends_with("the source lies in it"), "{text}");
    assert!(out.join("config.json").is_file());
    run(&golden("smolvlm"), &dir.join("home/models"), &force).expect("an empty directory is replaced");
}

/// A run that is stopped leaves complete files, which the next run of the same command goes on after.
#[test]
fn a_run_that_ended_early_goes_on() {
    let dir = TempDir::new();
    let (source, out, partial) = (demo(), dir.join("out"), dir.join(".out.partial"));
    let options = QuantizeOptions { max_shard: 300 << 10, ..QuantizeOptions::new(QuantizeScheme::Int4) };
    let whole = run(&source, &dir.join("whole"), &options).expect("a copy");
    let all = whole.files.len();
    assert!(all >= 4 && whole.resumed == 0, "{all}");
    let second = partial.join(format!("{}.tmp", whole.files[2]));
    let stop = |options: &QuantizeOptions| {
        let stopped = quantize(&ModelFiles::dir(&source), &out, &role, options, &mut |_| {
            if second.exists() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        });
        stopped.expect_err("stopped")
    };
    let stopped = stop(&options);
    assert!(matches!(stopped, QuantizeError::Cancelled { done: 2, all: of } if of == all), "{stopped}");
    assert!(stopped.to_string().contains("the same command goes on"), "{stopped}");
    assert!(!out.exists() && second.exists());
    let first = partial.join(&whole.files[0]);
    let written = || std::fs::metadata(&first).and_then(|of| of.modified()).expect("a complete file");
    let before = written();

    // One process at a time.
    let lock = std::fs::File::create(dir.join(".out.lock")).expect("a file");
    lock.lock().expect("nobody has it");
    let busy = run(&source, &out, &options).expect_err("refused");
    assert!(busy.to_string().ends_with("out: another process is writing it"), "{busy}");
    drop(lock);

    // A file in work that is only begun, and a complete one that somebody cut.
    let cut = partial.join(&whole.files[1]);
    std::fs::write(&cut, b"cut").expect("a file");
    assert_eq!(written(), before);
    let again = run(&source, &out, &options).expect("a copy");
    assert_eq!(again.resumed, 1, "the first file alone is as it was");
    let modified = std::fs::metadata(out.join(&whole.files[0])).and_then(|of| of.modified()).expect("a file");
    assert_eq!(modified, before, "it is not written again");
    assert_eq!((again.files.clone(), again.modules.clone()), (whole.files.clone(), whole.modules.clone()));
    for name in whole.files.iter().map(String::as_str).chain(["config.json", "model.safetensors.index.json"])
    {
        let read = |of: &Path| std::fs::read(of.join(name)).expect(name);
        assert!(read(&out) == read(&dir.join("whole")), "{name}");
    }
    let left: Vec<_> =
        std::fs::read_dir(&dir.0).expect("the folder").flatten().map(|of| of.file_name()).collect();
    assert_eq!(left.len(), 2, "{left:?}");
    let names: Vec<_> =
        std::fs::read_dir(&out).expect("the copy").flatten().map(|of| of.file_name()).collect();
    assert!(!names.iter().any(|name| name == "progress.json"), "{names:?}");

    // Other options, or another source: anew.
    std::fs::remove_dir_all(&out).expect("the copy goes");
    stop(&options);
    let other = QuantizeOptions { group: 64, ..options.clone() };
    let fresh = run(&source, &out, &other).expect("a copy");
    assert_eq!(fresh.resumed, 0);
    assert_ne!(fresh.modules, whole.modules);
}
