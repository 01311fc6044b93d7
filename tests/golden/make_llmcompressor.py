#!/usr/bin/env python3
"""Quantize a checkpoint with llm-compressor, and write beside it what its weights mean.

    python tests/golden/make_llmcompressor.py --model DIR --kind KIND --out COPY
    python tests/golden/make.py --model COPY-plain --out REFERENCE
    ocelli verify --model COPY --reference REFERENCE

COPY is what `save_pretrained` writes after `oneshot`, towers and all but the head; COPY-plain the same model with float32 weights, decoded
here from the tensors of the file, as the definitions of the formats say. Groups are of 16 where a scheme leaves that open (small models
have no 128 columns); layers whose columns are no whole groups stay as they are. What schemes say of activations does not concern weights.

Needs torch, transformers, llmcompressor, safetensors. llm-compressor has bounds on the versions of torch and transformers: an environment
of its own.
"""
import argparse
import copy
import json
import shutil
from pathlib import Path

import torch
import transformers
from compressed_tensors.quantization import preset_name_to_scheme
from datasets import Dataset
from llmcompressor import oneshot
from llmcompressor.modifiers.quantization import QuantizationModifier
from safetensors.torch import load_file, save_file

# Kind: name of a preset scheme, and the group that its columns have to fill.
KINDS = {
    "w4a16": ("W4A16", 16),
    "w4a16-asym": ("W4A16_ASYM", 16),
    "w8a16": ("W8A16", 1),
    "w8a8": ("W8A8", 1),
    "fp8": ("FP8_DYNAMIC", 1),
    "fp8-static": ("FP8", 1),
    "fp8-block": ("FP8_BLOCK", 1),
    "nvfp4a16": ("NVFP4A16", 16),
    "mxfp4a16": ("MXFP4A16", 32),
    "mxfp4": ("MXFP4", 32),
}

FP4 = torch.tensor([0, 0.5, 1, 1.5, 2, 3, 4, 6, -0.0, -0.5, -1, -1.5, -2, -3, -4, -6])


def unpacked(words, bits, columns):
    """Codes of rows of words, low bits first."""
    fields = [(words.to(torch.int64) >> at) & ((1 << bits) - 1) for at in range(0, 32, bits)]
    return torch.stack(fields, dim=-1).flatten(-2)[..., :columns]


def decoded(tensors):
    """The weights of each quantized module of a file, in float32."""
    found = {}
    for name in [n for n in tensors if n.endswith((".weight_scale", ".weight_scale_inv"))]:
        module = name.rpartition(".")[0]
        part = lambda name: tensors.get(f"{module}.{name}")
        scale, packed, codes = tensors[name], part("weight_packed"), part("weight")
        if packed is not None and packed.dtype == torch.uint8:
            values = FP4[torch.stack([packed & 15, packed >> 4], dim=-1).flatten(-2).long()]
            if scale.dtype == torch.uint8:
                each = torch.exp2(scale.float() - 127)
            else:
                each = scale.float() / part("weight_global_scale").float()
        elif packed is not None:
            rows, columns = part("weight_shape").tolist()
            bits = 32 * packed.shape[1] // columns
            values = unpacked(packed, bits, columns).float() - (1 << (bits - 1))
            zeros = part("weight_zero_point")
            if zeros is not None:
                zeros = unpacked(zeros.T, bits, rows).T.float() - (1 << (bits - 1))
                values -= spread(zeros, values.shape, part("weight_g_idx"))
            each = scale.float()
        else:
            values, each = codes.float(), scale.float()
        found[module] = values * spread(each, values.shape, part("weight_g_idx"))
    return found


def spread(each, shape, order):
    """A number for every weight, of one for all, one a row, one a group of a row, or one a block."""
    if each.numel() == 1:
        return each.reshape(1, 1).expand(shape)
    rows, columns = each.shape[0], each.shape[1] if each.dim() > 1 else 1
    if order is not None:
        return each[:, order.long()]
    tall = 1 if rows == shape[0] else 128
    wide = -(-shape[1] // columns) if tall == 1 else 128
    return each.reshape(rows, columns).repeat_interleave(tall, 0)[: shape[0]].repeat_interleave(wide, 1)[:, : shape[1]]


def load(folder, dtype):
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=dtype)


def beside(source, folder):
    """Tokenizer, processor and template."""
    transformers.AutoProcessor.from_pretrained(source).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).exists() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def rows(model):
    """Prompts of random tokens, for what wants to see activations."""
    torch.manual_seed(1)
    text = getattr(model.config, "text_config", model.config)
    ids = torch.randint(10, text.vocab_size - 60, (8, 64)).tolist()
    return Dataset.from_dict({"input_ids": ids, "attention_mask": [[1] * 64] * 8})


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kind", required=True, choices=sorted(KINDS))
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    plain = args.out.with_name(args.out.name + "-plain")
    preset, group = KINDS[args.kind]
    model = load(args.model, torch.bfloat16)
    scheme = copy.deepcopy(preset_name_to_scheme(preset, ["Linear"]))
    if str(getattr(scheme.weights.strategy, "value", scheme.weights.strategy)) == "group" and preset.startswith("W"):
        scheme.weights.group_size = group
    layers = {n: m for n, m in model.named_modules() if isinstance(m, torch.nn.Linear)}
    ragged = [n for n, m in layers.items() if m.in_features % group or n.endswith("lm_head")]
    options = dict(config_groups={"group_0": scheme}, ignore=ragged)
    data = dict(dataset=rows(model), num_calibration_samples=8, max_seq_length=64) if args.kind == "fp8-static" else {}
    oneshot(model=model, recipe=QuantizationModifier(**options), **data)
    model.save_pretrained(args.out)
    beside(args.model, args.out)

    load(args.model, torch.bfloat16).float().save_pretrained(plain)
    beside(args.model, plain)
    stored = plain / "model.safetensors"
    weights = load_file(stored)
    for module, weight in decoded(load_file(args.out / "model.safetensors")).items():
        assert weights[f"{module}.weight"].shape == weight.shape, module
        weights[f"{module}.weight"] = weight.contiguous()
    save_file(weights, stored, metadata={"format": "pt"})
    print(json.loads((args.out / "config.json").read_text())["quantization_config"]["format"], len(layers), len(ragged))


if __name__ == "__main__":
    main()
