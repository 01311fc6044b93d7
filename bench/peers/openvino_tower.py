#!/usr/bin/env python3
"""Time a SmolVLM or Idefics3 checkpoint's tower and connector in OpenVINO on one tile and print one JSON object, as `ocelli bench model
--json` does.

    python bench/peers/openvino_tower.py --model DIR --work DIR --dtype f32|bf16|int8 --threads 2 --runs 3

The tower is converted once and kept in --work; int8 are weights and activations as NNCF quantizes them, calibrated on noise.  One
picture of noise that fills the tile.  Median of --runs after one that does not count.  Needs openvino, nncf, torch and transformers.
"""
import argparse
import json
import statistics
import time
from pathlib import Path

import numpy as np
import openvino


def convert(model_dir, path, int8):
    import torch
    import transformers

    model = transformers.AutoModelForImageTextToText.from_pretrained(model_dir, dtype=torch.float32, attn_implementation="sdpa").eval()
    vision, connector = model.model.vision_model, model.model.connector

    class Tower(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.vision, self.connector = vision, connector

        def forward(self, pixels):
            # A tile of the tower's own size: its patches take the rows of the table in order.
            patches = self.vision.embeddings.patch_embedding(pixels).flatten(2).transpose(1, 2)
            x = patches + self.vision.embeddings.position_embedding.weight
            x = self.vision.encoder(inputs_embeds=x, attention_mask=None)[0]
            return self.connector(self.vision.post_layernorm(x))

    side = model.config.vision_config.image_size
    noise = torch.rand(1, 3, side, side, generator=torch.Generator().manual_seed(1)) * 2 - 1
    with torch.inference_mode():
        found = openvino.convert_model(Tower().eval(), example_input=noise, input=[(1, 3, side, side)])
    if int8:
        import nncf

        rng = np.random.default_rng(1)
        tiles = [rng.uniform(-1, 1, (1, 3, side, side)).astype(np.float32) for _ in range(4)]
        found = nncf.quantize(found, nncf.Dataset(tiles), model_type=nncf.ModelType.TRANSFORMER, subset_size=len(tiles))
    openvino.save_model(found, path, compress_to_fp16=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--dtype", choices=["f32", "bf16", "int8"], required=True)
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--convert-only", action="store_true")
    args = parser.parse_args()
    int8 = args.dtype == "int8"
    path = args.work / ("tower-int8.xml" if int8 else "tower.xml")
    if not path.exists():
        convert(args.model, path, int8)
    if args.convert_only:
        return
    core = openvino.Core()
    hint = "bf16" if args.dtype == "bf16" else "f32"
    model = core.compile_model(path, "CPU", {
        "INFERENCE_PRECISION_HINT": hint, "INFERENCE_NUM_THREADS": args.threads, "PERFORMANCE_HINT": "LATENCY", "NUM_STREAMS": 1})
    shape = tuple(model.input(0).shape)
    pixels = np.random.default_rng(1).uniform(-1, 1, shape).astype(np.float32)
    request, times = model.create_infer_request(), []
    for run in range(args.runs + 1):
        start = time.perf_counter()
        request.infer({0: pixels})
        if run > 0:
            times.append(1e3 * (time.perf_counter() - start))
    print(json.dumps({"encode_ms": {"median": statistics.median(times)}}))


if __name__ == "__main__":
    main()
