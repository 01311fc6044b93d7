#!/usr/bin/env python3
"""Pixels of few distinct values, kept in `golden.safetensors` as numbers of levels: a quarter or half of the bytes, nothing lost.

    levels.py REFERENCE...     packs the references in place

`<case>.pixel_values` is then uint8 or uint16, and `<case>.pixel_values.levels` has the float32 value of each number.
"""
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file

KEY = ".pixel_values"


def pack(tensors):
    """The tensors of a reference with their pixels as numbers of levels, where that takes fewer bytes."""
    out = dict(tensors)
    for name in [n for n in tensors if n.endswith(KEY) and tensors[n].dtype == torch.float32]:
        bits, numbers = torch.unique(tensors[name].contiguous().view(torch.int32), return_inverse=True)
        dtype = torch.uint8 if len(bits) <= 256 else torch.uint16
        if len(bits) > 65536 or numbers.numel() * dtype.itemsize + 4 * len(bits) >= 4 * numbers.numel():
            continue
        out |= {name: numbers.to(torch.int32).to(dtype), f"{name}.levels": bits.view(torch.float32)}
    return out


def unpack(tensors):
    """The tensors of a reference with their pixels in float32."""
    out = {name: tensor for name, tensor in tensors.items() if not name.endswith(f"{KEY}.levels")}
    for name in [n for n in tensors if n.endswith(f"{KEY}.levels")]:
        pixels = name.removesuffix(".levels")
        out[pixels] = tensors[name][tensors[pixels].to(torch.int64)]
    return out


def save_golden(tensors, folder):
    save_file(pack(tensors), folder / "golden.safetensors", metadata={"format": "pt"})
    (folder / "golden.safetensors").chmod(0o644)


def load_golden(folder):
    return unpack(load_file(folder / "golden.safetensors"))


if __name__ == "__main__":
    for folder in map(Path, sys.argv[1:]):
        before = load_golden(folder)
        save_golden(before, folder)
        after = load_golden(folder)
        assert before.keys() == after.keys() and all(torch.equal(before[n], after[n]) for n in before), folder
