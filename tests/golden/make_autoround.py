#!/usr/bin/env python3
"""Quantize a checkpoint with AutoRound, and write beside it what its weights mean.

    python tests/golden/make_autoround.py --model DIR --kind w4a16|w3a16|w2a16|w8a16|mxfp4|gptq|awq --out COPY
    python tests/golden/make.py --model COPY-plain --out REFERENCE
    ocelli verify --model COPY --reference REFERENCE

COPY is what `quantize_and_save` writes of the decoder, in AutoRound's own format, or in that of AutoGPTQ or AutoAWQ. COPY-plain is
the same model with float32 weights, decoded here from the tensors of the file.
Weights are rounded without tuning, and in groups of 16 where a scheme leaves that open (small models have no 128 columns).

Needs torch, transformers, auto-round, safetensors; what `make_llmcompressor.py` needs has all of them.
"""
import argparse
import shutil
from pathlib import Path

import torch
from auto_round import AutoRound
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, AutoTokenizer

from make_llmcompressor import beside, decoded, load

# Kind: scheme, what else is said of it, format.
KINDS = {
    "w4a16": ("W4A16", dict(group_size=16), "auto_round"),
    "w3a16": ("W3A16", dict(group_size=32), "auto_round"),
    "w2a16": ("W2A16", dict(group_size=16), "auto_round"),
    "w8a16": ("W8A16", dict(group_size=16), "auto_round"),
    "mxfp4": ("MXFP4", {}, "auto_round"),
    "gptq": ("W4A16", dict(group_size=16), "auto_gptq"),
    "awq": ("W4A16", dict(group_size=16, sym=False), "auto_awq"),
}

# Columns of an output that the nibbles of AWQ's words hold, from the low one on.
AWQ = [0, 2, 4, 6, 1, 3, 5, 7]


def fields(words, bits):
    """Codes of rows of words, which may cross from one word to the next, low bits first."""
    stream = ((words.to(torch.int64)[..., None] >> torch.arange(32)) & 1).flatten(-2)
    return (stream.unflatten(-1, (-1, bits)) << torch.arange(bits)).sum(-1)


def columnwise(tensors):
    """The weights of the modules that lie along their outputs, in float32."""
    found = {}
    for name in [n for n in tensors if n.endswith(".qweight")]:
        module = name.removesuffix(".qweight")
        words, scales, zeros = (tensors[f"{module}.{part}"] for part in ("qweight", "scales", "qzeros"))
        n = scales.shape[1]
        if words.shape[1] != n:
            nibbles = lambda words: fields(words, 4).unflatten(-1, (-1, 8))[..., torch.tensor(AWQ).argsort()].flatten(-2)
            codes, zeros = nibbles(words), nibbles(zeros)
        else:
            bits = 32 * zeros.shape[1] // n
            # Stored less one, within their bits.
            codes, zeros = fields(words.T, bits).T, (fields(zeros, bits) + 1) & ((1 << bits) - 1)
        order = tensors.get(f"{module}.g_idx")
        if order is None:
            order = torch.arange(codes.shape[0]) // (codes.shape[0] // scales.shape[0])
        order = order.long()
        found[module] = ((codes - zeros[order]).float() * scales.float()[order]).T
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kind", required=True, choices=sorted(KINDS))
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    plain = args.out.with_name(args.out.name + "-plain")
    scheme, options, form = KINDS[args.kind]
    model = load(args.model, torch.bfloat16)
    tools = dict(tokenizer=AutoTokenizer.from_pretrained(args.model), processor=AutoProcessor.from_pretrained(args.model))
    rounding = AutoRound(model, scheme=scheme, iters=0, disable_opt_rtn=True, device_map="cpu", **tools, **options)
    work = args.out.with_name(args.out.name + "-work")
    rounding.quantize_and_save(str(work), format=form)
    # It may make a folder of its own below.
    shutil.rmtree(args.out, ignore_errors=True)
    next(work.rglob("config.json")).parent.rename(args.out)
    shutil.rmtree(work, ignore_errors=True)
    beside(args.model, args.out)

    load(args.model, torch.bfloat16).float().save_pretrained(plain)
    beside(args.model, plain)
    stored = plain / "model.safetensors"
    weights, tensors = load_file(stored), load_file(args.out / "model.safetensors")
    found = decoded(tensors) | columnwise(tensors)
    assert found, "no quantized weights"
    for module, weight in found.items():
        assert weights[f"{module}.weight"].shape == weight.shape, module
        off = (weights[f"{module}.weight"] - weight).norm() / weights[f"{module}.weight"].norm()
        assert off < 0.6, (module, off)
        weights[f"{module}.weight"] = weight.contiguous()
    save_file(weights, stored, metadata={"format": "pt"})
    print(args.kind, len(found))


if __name__ == "__main__":
    main()
