//! The `quantization_config` block.

use std::collections::HashSet;

use ocelli_kernels::{Code, DType, Format, Grouped, Zero};
use serde_json::{Map, Value, json};

use super::Layout;

/// The block for these quantized modules; `kept` are modules with a matrix that stays as it is.
pub(super) fn block(layout: Layout, modules: &[(&str, Format)], kept: &[&str]) -> Value {
    match layout {
        Layout::CompressedTensors => compressed(modules, kept),
        Layout::Mlx => mlx(modules),
        Layout::Bitsandbytes => json!({
            "quant_method": "bitsandbytes",
            "load_in_4bit": true,
            "load_in_8bit": false,
            "_load_in_4bit": true,
            "_load_in_8bit": false,
            "bnb_4bit_quant_type": "nf4",
            "bnb_4bit_use_double_quant": false,
            "bnb_4bit_compute_dtype": "bfloat16",
            "bnb_4bit_quant_storage": "uint8",
            "llm_int8_skip_modules": kept,
        }),
    }
}

/// What makes a group of its own: code, group size and zero points, but not the type of float scales.
type Kind = (Code, u32, Zero, Option<DType>);

fn kind(format: Format) -> Option<Kind> {
    format.grouped().map(|Grouped { code, group, zero, scale }| {
        (code, group, zero, Some(scale).filter(|scale| !scale.is_float()))
    })
}

/// The kinds in use, the one of most modules first: readers that look at one alone take that.
fn kinds(modules: &[(&str, Format)]) -> Vec<Kind> {
    let mut kinds: Vec<(Kind, usize)> = Vec::new();
    for kind in modules.iter().filter_map(|(_, format)| kind(*format)) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    kinds.into_iter().map(|(kind, _)| kind).collect()
}

/// compressed-tensors: one group for each kind.
fn compressed(modules: &[(&str, Format)], kept: &[&str]) -> Value {
    let all = kinds(modules);
    let mut groups = Map::new();
    for (number, &of) in all.iter().enumerate() {
        let (of_group, others): (Vec<_>, Vec<_>) =
            modules.iter().partition(|(_, format)| kind(*format) == Some(of));
        let of_group: Vec<&str> = of_group.iter().map(|(name, _)| *name).collect();
        let mut rest: Vec<&str> = others.iter().map(|(name, _)| *name).collect();
        rest.extend(kept);
        let (name, weights) = scheme(of);
        groups.insert(
            format!("group_{number}"),
            json!({
                "targets": targets(&of_group, &rest),
                "format": name,
                "weights": weights,
                "input_activations": null,
                "output_activations": null,
            }),
        );
    }
    let quantized: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": all.first().map_or("pack-quantized", |&kind| scheme(kind).0),
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": targets(kept, &quantized),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}

/// compressed-tensors' name of a layout, and its arguments for weights.
fn scheme((code, group, zero, scale): Kind) -> (&'static str, Value) {
    let (name, strategy) = match (code.is_int(), scale) {
        (false, Some(DType::E4M3)) => ("nvfp4-pack-quantized", "tensor_group"),
        (false, Some(_)) => ("mxfp4-pack-quantized", "group"),
        (false, None) => ("float-quantized", "channel"),
        (true, _) => ("pack-quantized", if group == 0 { "channel" } else { "group" }),
    };
    let mut weights = json!({
        "num_bits": code.bits(),
        "type": if code.is_int() { "int" } else { "float" },
        "symmetric": zero == Zero::None,
        "strategy": strategy,
        "group_size": if group == 0 { Value::Null } else { group.into() },
        "dynamic": false,
    });
    let scale_dtype = match scale {
        Some(DType::E4M3) => Some("torch.float8_e4m3fn"),
        Some(_) => Some("torch.uint8"),
        None => None,
    };
    if let (Some(fields), Some(dtype)) = (weights.as_object_mut(), scale_dtype) {
        fields.insert("scale_dtype".into(), dtype.into());
    }
    (name, weights)
}

/// MLX: the commonest kind for all, the others by name.
fn mlx(modules: &[(&str, Format)]) -> Value {
    let arguments = |(code, group, zero, scale): Kind| {
        let mode = match (zero, scale, code.bits()) {
            (Zero::Offset, ..) => "affine",
            (_, Some(DType::E4M3), _) => "nvfp4",
            (.., 8) => "mxfp8",
            _ => "mxfp4",
        };
        json!({"group_size": group, "bits": code.bits(), "mode": mode})
    };
    let all = kinds(modules);
    let mut block = all.first().map_or(json!({}), |&kind| arguments(kind));
    if let Some(fields) = block.as_object_mut() {
        for (name, format) in modules {
            if let Some(kind) = kind(*format).filter(|kind| all.first() != Some(kind)) {
                fields.insert((*name).to_owned(), arguments(kind));
            }
        }
    }
    block
}

/// Names of modules, those that differ by layer numbers alone as one pattern, unless it would match one of `others`.
fn targets(modules: &[&str], others: &[&str]) -> Vec<String> {
    let taken: HashSet<String> = others.iter().map(|name| pattern(name)).collect();
    let mut seen = HashSet::new();
    let target = |name: &&str| {
        let pattern = pattern(name);
        let numbered = name.split('.').any(is_number);
        let target = if numbered && !taken.contains(&pattern) { pattern } else { (*name).to_owned() };
        seen.insert(target.clone()).then_some(target)
    };
    modules.iter().filter_map(target).collect()
}

fn is_number(part: &str) -> bool {
    !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit())
}

/// A pattern for a name and those that differ from it by numbers alone.
fn pattern(name: &str) -> String {
    let part = |part: &str| {
        if is_number(part) {
            return r"\d+".to_owned();
        }
        let escaped = |c: char| if c.is_alphanumeric() || c == '_' { vec![c] } else { vec!['\\', c] };
        part.chars().flat_map(escaped).collect()
    };
    let parts: Vec<String> = name.split('.').map(part).collect();
    format!("re:{}$", parts.join(r"\."))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::weights::Quantization;

    #[test]
    fn the_block_names_each_module_and_no_other() {
        let int =
            |code, group| Format::Grouped(Grouped { code, group, zero: Zero::None, scale: DType::BF16 });
        let modules = [
            ("text.layers.0.q", int(Code::Int4, 32)),
            ("text.layers.1.q", int(Code::Int4, 32)),
            ("text.layers.0.o", int(Code::Int4, 0)),
            ("text.layers.1.o", int(Code::Int4, 32)),
            ("text.embed_tokens", int(Code::Int8, 32)),
        ];
        let kept = ["vision.layers.0.q", "vision.layers.1.q", "text.layers.7.q-x", "lm_head"];
        let config = json!({"quantization_config": block(Layout::CompressedTensors, &modules, &kept)});
        let quantization = Quantization::of_config(&config).unwrap();
        for (name, format) in modules {
            let scheme = quantization.scheme(name).unwrap();
            let Format::Grouped(Grouped { code, group, .. }) = format else { unreachable!() };
            let groups = if group == 0 { 1 } else { 4 };
            assert_eq!(scheme.group_for(code.bits() as u8, 128, groups), Some(group as usize), "{name}");
        }
        for name in kept {
            assert!(quantization.scheme(name).is_none(), "{name}");
        }
        let groups = &config["quantization_config"]["config_groups"];
        assert_eq!(groups["group_0"]["targets"][0], r"re:text\.layers\.\d+\.q$");
        assert_eq!(groups["group_0"]["targets"][1], "text.layers.1.o");
        assert_eq!(config["quantization_config"]["ignore"][0], r"re:vision\.layers\.\d+\.q$");
    }
}
