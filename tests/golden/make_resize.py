"""Writes resize/resize.safetensors: torchvision's antialiased resize of uint8 RGB, as the reference processors call it.

    pip install torch torchvision safetensors numpy
    python make_resize.py

Keys: `in.<w>x<h>` is an input, `[h, w, 3]`; `<filter>.<w>x<h>.<ow>x<oh>` its resized form, `[oh, ow, 3]`.
Also checks that memory layout and batching do not change torchvision's result.
"""

import os

import numpy as np
import torch
from safetensors.numpy import save_file
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional as F

HERE = os.path.dirname(os.path.abspath(__file__))
FILTERS = {
    "bilinear": InterpolationMode.BILINEAR,
    "bicubic": InterpolationMode.BICUBIC,
    "lanczos": InterpolationMode.LANCZOS,
}
# (in width, in height) -> [(out width, out height)]
CASES = {
    (1, 1): [(1, 2), (5, 7), (32, 32)],
    (2, 3): [(3, 2), (1, 3), (2, 9), (17, 16)],
    (5, 1): [(2, 4), (64, 3)],
    (31, 17): [(62, 34), (13, 7), (31, 40), (9, 17), (2, 1), (33, 19)],
    (48, 48): [(96, 96), (24, 24), (47, 49)],
    (67, 101): [(22, 33), (101, 67), (64, 64), (68, 100)],
    (200, 3): [(7, 11), (2, 3)],
    (131, 87): [(96, 64), (36, 36), (32, 32), (19, 53)],
}


def picture(rng, width, height):
    """Hard for rounding: noise over the full range in one half, smooth ramps with hard edges in the other."""
    noise = rng.integers(0, 256, (height, width, 3))
    y, x = np.mgrid[0:height, 0:width]
    ramp = np.stack([x * 255 // max(width - 1, 1), y * 255 // max(height - 1, 1), ((x // 4 + y // 4) % 2) * 255], -1)
    return np.where((x < width / 2)[..., None], noise, ramp).astype(np.uint8)


def main():
    rng = np.random.default_rng(7)
    out = {}
    for (width, height), sizes in CASES.items():
        image = picture(rng, width, height)
        out[f"in.{width}x{height}"] = image
        planar = torch.from_numpy(image.transpose(2, 0, 1).copy())
        interleaved = torch.from_numpy(image.copy()).permute(2, 0, 1)
        for name, mode in FILTERS.items():
            for w, h in sizes:
                got = F.resize(planar, [h, w], interpolation=mode, antialias=True)
                pair = F.resize(torch.stack([interleaved, interleaved]), [h, w], interpolation=mode, antialias=True)
                assert torch.equal(got, pair[0]) and torch.equal(got, pair[1]), (name, width, height, w, h)
                out[f"{name}.{width}x{height}.{w}x{h}"] = got.permute(1, 2, 0).contiguous().numpy()
    path = os.path.join(HERE, "resize", "resize.safetensors")
    os.makedirs(os.path.dirname(path), exist_ok=True)
    save_file(out, path, metadata={"torch": torch.__version__.split("+")[0]})
    print(len(out), "tensors,", os.path.getsize(path), "bytes")


main()
