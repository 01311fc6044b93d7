"""Writes layouts.json: how transformers' SmolVLM image processor lays out pictures of many sizes.

    pip install torch torchvision transformers
    python make_layouts.py

Rows are `[size.longest_edge, max_image_size.longest_edge, width, height, resized width, resized height, rows, cols]`,
where rows and cols are 0 for a picture of one tile.
"""

import json
import os

import numpy as np
import torch
import transformers.models.smolvlm.image_processing_smolvlm as reference

HERE = os.path.dirname(os.path.abspath(__file__))


class Sizes(reference.SmolVLMImageProcessor):
    """Records the size that a resize asks for instead of resizing."""

    def __init__(self):
        self.asked = None

    def resize(self, image, size, resample=None):
        self.asked = size.height, size.width


def layout(edge, tile, width, height):
    picture = torch.empty((1, 1, height, width), device="meta")
    high, wide = reference.get_resize_output_image_size(picture, edge)
    sizes = Sizes()
    sizes.resize_for_vision_encoder(torch.empty((1, 1, high, wide), device="meta"), tile)
    canvas_high, canvas_wide = sizes.asked
    split = canvas_high > tile or canvas_wide > tile
    return [edge, tile, width, height, wide, high] + [canvas_high // tile * split, canvas_wide // tile * split]


def main():
    rng = np.random.default_rng(11)
    rows = []
    for i in range(500):
        edge, tile = [(2048, 512), (1456, 364), (1920, 384), (512, 512), (96, 32), (6000, 512)][i % 6]
        width, height = (int(v) for v in np.exp(rng.uniform(0, 10.3, 2)))
        if i % 5 == 0:
            height = width + int(rng.integers(-2, 3)) or 1
        rows.append(layout(edge, tile, width, max(height, 1)))
    with open(os.path.join(HERE, "layouts.json"), "w") as f:
        f.write("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


main()
