#!/usr/bin/env python3
"""Quantize a checkpoint with bitsandbytes, and write beside it what its weights mean.

    python tests/golden/make_bitsandbytes.py --model DIR --kind nf4|fp4|int8 --out COPY
    python tests/golden/make.py --model COPY-plain --out REFERENCE
    ocelli verify --model COPY --reference REFERENCE

COPY is what `save_pretrained` writes after transformers has loaded DIR with bitsandbytes, towers and all; COPY-plain the same
model with float32 weights. Those of 4 bits are decoded here: bitsandbytes 0.50.2 dequantizes matrices wrongly on a CPU whose
rows are no whole number of blocks (by more than its own rounding; its GPU kernels run blocks over the rows, as its quantizer does
everywhere). Those of 8 bits are what transformers' `dequantize` gives.

Needs torch, transformers, bitsandbytes, safetensors.
"""
import argparse
import json
import shutil
from pathlib import Path

import torch
import transformers
from safetensors.torch import load_file, save_file
from transformers import BitsAndBytesConfig

KINDS = {
    "nf4": dict(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=torch.float32),
    "fp4": dict(load_in_4bit=True, bnb_4bit_quant_type="fp4", bnb_4bit_compute_dtype=torch.float32),
    "int8": dict(load_in_8bit=True),
}


def load(folder, **options):
    return transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, device_map="cpu", **options)


def beside(source, folder):
    """Tokenizer, processor and template."""
    transformers.AutoProcessor.from_pretrained(source).save_pretrained(folder)
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        if (source / name).exists() and not (folder / name).exists():
            shutil.copyfile(source / name, folder / name)


def decoded(tensors):
    """The 4-bit weights of a file: codes, the first in the high half of a byte, in blocks that run over the rows."""
    found = {}
    for name in [n for n in tensors if n.endswith(".weight")]:
        key = next((k for k in tensors if k.startswith(f"{name}.quant_state.")), None)
        if key is None:
            continue
        state = json.loads(bytes(tensors[key].tolist()))
        codes = tensors[name].reshape(-1).view(torch.uint8)
        codes = torch.stack([codes >> 4, codes & 15], dim=1).reshape(-1).long()
        scales = tensors[f"{name}.absmax"]
        if state.get("nested_blocksize"):
            largest = tensors[f"{name}.nested_absmax"].repeat_interleave(state["nested_blocksize"])[: scales.numel()]
            scales = tensors[f"{name}.nested_quant_map"][scales.long()] * largest + state["nested_offset"]
        rows, columns = state["shape"]
        each = scales.repeat_interleave(state["blocksize"])[: rows * columns]
        found[name] = (tensors[f"{name}.quant_map"][codes][: rows * columns] * each).reshape(rows, columns)
    return found


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, type=Path)
    parser.add_argument("--kind", required=True, choices=sorted(KINDS))
    parser.add_argument("--out", required=True, type=Path)
    args = parser.parse_args()
    plain = args.out.with_name(args.out.name + "-plain")
    load(args.model, quantization_config=BitsAndBytesConfig(**KINDS[args.kind])).save_pretrained(args.out)
    beside(args.model, args.out)
    copy = load(args.out)
    model = (copy.dequantize() or copy).to(torch.float32)
    model.hf_quantizer, model.is_quantized = None, False
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(plain)
    beside(args.model, plain)
    stored = plain / "model.safetensors"
    weights = load_file(stored)
    for name, weight in decoded(load_file(args.out / "model.safetensors")).items():
        assert weights[name].shape == weight.shape, name
        weights[name] = weight
    save_file(weights, stored, metadata={"format": "pt"})


if __name__ == "__main__":
    main()
