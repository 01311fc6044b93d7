#!/usr/bin/env python3
"""Checks a quantized copy with the libraries that define its layout.

    python check_quantized.py SOURCE COPY [--generate]

For each module that COPY stores packed: its scheme is found from config.json by compressed-tensors' own matching, its
weight is unpacked by compressed-tensors, and compared with (a) a decoder written out below and (b) SOURCE's weight,
rounded by compressed-tensors with the stored scales. With --generate, transformers loads COPY and SOURCE, and the logits
of a short text are compared; their difference is the error of rounding, not checked.

Needs torch, safetensors, compressed-tensors; --generate also transformers. Checked with compressed-tensors 0.20.0.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from compressed_tensors.compressors import BaseCompressor
from compressed_tensors.quantization import QuantizationConfig
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.utils.match import is_match
from safetensors import safe_open


def tensors(folder):
    index = folder / "model.safetensors.index.json"
    files = sorted(set(json.loads(index.read_text())["weight_map"].values())) if index.exists() else ["model.safetensors"]
    found = {}
    for file in files:
        with safe_open(folder / file, "pt") as f:
            found |= {name: f.get_tensor(name) for name in f.keys()}
    return found


def unpack(words, bits, count, axis):
    """Signed fields of 32-bit words along an axis, low bits first."""
    words = words.to(torch.int64) & 0xFFFFFFFF
    per = 32 // bits
    fields = torch.stack([words >> (bits * i) & (2**bits - 1) for i in range(per)], dim=axis + 1)
    shape = list(words.shape)
    shape[axis] *= per
    return fields.reshape(shape).narrow(axis, 0, count) - 2 ** (bits - 1)


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("source", type=Path)
    parser.add_argument("copy", type=Path)
    parser.add_argument("--generate", action="store_true")
    args = parser.parse_args()
    source, copy = tensors(args.source), tensors(args.copy)
    block = json.loads((args.copy / "config.json").read_text())["quantization_config"]
    config = QuantizationConfig.model_validate(block)
    compressor = BaseCompressor.get_value_from_registry("pack-quantized")
    modules, failures = 0, 0
    for name in sorted(copy):
        module, found, rest = name.rpartition(".weight_packed")
        if not found or rest:
            continue
        kind = torch.nn.Embedding if "embed" in module else torch.nn.Linear
        stub = kind(1, 1)
        schemes = [s for s in config.config_groups.values() if is_match(module, stub, s.targets, config.ignore)]
        if len(schemes) != 1:
            print(f"{module}: {len(schemes)} schemes match")
            failures += 1
            continue
        scheme = schemes[0]
        state = {key: copy[f"{module}.{key}"] for key in
                 ("weight_packed", "weight_scale", "weight_shape", "weight_zero_point") if f"{module}.{key}" in copy}
        theirs = compressor.decompress(state, scheme)["weight"]
        (n, k), bits = state["weight_shape"].tolist(), scheme.weights.num_bits
        q = unpack(state["weight_packed"], bits, k, 1)
        zero = unpack(state["weight_zero_point"], bits, n, 0) if "weight_zero_point" in state else torch.zeros(n, 1, dtype=torch.int64)
        per_group = -(-k // state["weight_scale"].shape[1])
        scale = state["weight_scale"].repeat_interleave(per_group, 1)[:, :k]
        wide = zero.repeat_interleave(per_group if zero.shape[1] > 1 else k, 1)[:, :k]
        ours = (q - wide).to(scale.dtype) * scale
        signed = zero.to(torch.int8) if "weight_zero_point" in state else None
        again = quantize(source[f"{module}.weight"].float(), state["weight_scale"].float(), signed, scheme.weights, dtype=torch.int8)
        good = torch.equal(theirs, ours) and torch.equal(again.to(torch.int64), q)
        modules += 1
        if not good:
            failures += 1
            print(f"{module}: decoded differs by {(theirs.float() - ours.float()).abs().max():.3g}, "
                  f"{(again != q).sum()} of {q.numel()} codes differ")
    packed = {name.rpartition(".")[0] for name in copy if name.endswith(".weight_packed")}
    for name, tensor in source.items():
        if name.rpartition(".")[0] not in packed and not torch.equal(copy[name], tensor):
            failures += 1
            print(f"{name}: differs from the source")
    for name in {name.rpartition(".")[0] for name in copy if name.endswith(".weight")} - packed:
        if any(is_match(name, torch.nn.Linear(1, 1), s.targets, config.ignore) for s in config.config_groups.values()):
            failures += 1
            print(f"{name}: dense, but config.json names it")
    print(f"{modules} packed modules, {failures} failures")
    if args.generate:
        generate(args.source, args.copy)
    sys.exit(1 if failures or not modules else 0)


def generate(source, copy):
    from transformers import AutoModelForImageTextToText, AutoTokenizer

    ids = AutoTokenizer.from_pretrained(source)("How many objects are there?", return_tensors="pt")["input_ids"]
    logits = []
    for folder in (source, copy):
        model = AutoModelForImageTextToText.from_pretrained(folder, dtype="auto").eval()
        with torch.no_grad():
            logits.append(model(input_ids=ids).logits.float())
    difference = (logits[0] - logits[1]).abs()
    print(f"logits: max difference {difference.max():.3f}, mean {difference.mean():.3f}, spread {logits[0].std():.3f}")


if __name__ == "__main__":
    main()
