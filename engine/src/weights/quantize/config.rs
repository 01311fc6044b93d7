//! The `quantization_config` block.

use std::collections::HashSet;

use ocelli_kernels::{Format, Grouped};
use serde_json::{Map, Value, json};

/// The block for these quantized modules; `kept` are modules with a matrix that stays as it is.
pub(super) fn block(modules: &[(&str, Format)], kept: &[&str]) -> Value {
    let mut kinds: Vec<((usize, u32, bool), usize)> = Vec::new();
    for kind in modules.iter().filter_map(|(_, format)| kind(*format)) {
        match kinds.iter_mut().find(|(known, _)| *known == kind) {
            Some((_, count)) => *count += 1,
            None => kinds.push((kind, 1)),
        }
    }
    // The largest group comes first: readers that look at one group alone take that.
    kinds.sort_by_key(|(_, count)| std::cmp::Reverse(*count));
    let mut groups = Map::new();
    for (number, &((bits, group, zero), _)) in kinds.iter().enumerate() {
        let of_kind = |format: Format| kind(format) == Some((bits, group, zero));
        let (of_group, mut others): (Vec<_>, Vec<_>) =
            modules.iter().partition(|(_, format)| of_kind(*format));
        let of_group: Vec<&str> = of_group.iter().map(|(name, _)| *name).collect();
        let mut rest: Vec<&str> = others.drain(..).map(|(name, _)| name).collect();
        rest.extend(kept);
        groups.insert(
            format!("group_{number}"),
            json!({
                "targets": targets(&of_group, &rest),
                "format": "pack-quantized",
                "weights": {
                    "num_bits": bits,
                    "type": "int",
                    "symmetric": !zero,
                    "strategy": if group == 0 { "channel" } else { "group" },
                    "group_size": if group == 0 { Value::Null } else { group.into() },
                    "dynamic": false,
                },
                "input_activations": null,
                "output_activations": null,
            }),
        );
    }
    let quantized: Vec<&str> = modules.iter().map(|(name, _)| *name).collect();
    json!({
        "quant_method": "compressed-tensors",
        "format": "pack-quantized",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": targets(kept, &quantized),
        "kv_cache_scheme": null,
        "global_compression_ratio": null,
    })
}

/// What makes a group of its own: bits, group size and zero points, but not the type of the scales.
fn kind(format: Format) -> Option<(usize, u32, bool)> {
    format.grouped().map(|Grouped { code, group, zero, .. }| (code.bits(), group, zero))
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
    use ocelli_kernels::{Code, DType};

    #[test]
    fn the_block_names_each_module_and_no_other() {
        let int = |code, group| Format::Grouped(Grouped { code, group, zero: false, scale: DType::BF16 });
        let modules = [
            ("text.layers.0.q", int(Code::Int4, 32)),
            ("text.layers.1.q", int(Code::Int4, 32)),
            ("text.layers.0.o", int(Code::Int4, 0)),
            ("text.layers.1.o", int(Code::Int4, 32)),
            ("text.embed_tokens", int(Code::Int8, 32)),
        ];
        let kept = ["vision.layers.0.q", "vision.layers.1.q", "text.layers.7.q-x", "lm_head"];
        let config = json!({"quantization_config": block(&modules, &kept)});
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
