#!/usr/bin/env python3
"""Spoil the demo model with noise, and draw rows that mend it.

    spoil.py model OUT [--noise 0.3] [--seed 1]      a copy with normal noise added to each matrix, so many times its root mean square
    spoil.py rows OUT [--scenes N] [--seed 21]       pictures and `train.jsonl` as `ocelli train sft` reads them: questions about scenes that
                                                     neither the evaluation nor the demo's own training drew
"""
import argparse
import json
import shutil
import struct
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def model(args):
    shutil.copytree(HERE / "model", args.out, dirs_exist_ok=True)
    data = bytearray((HERE / "model" / "model.safetensors").read_bytes())
    length, = struct.unpack("<Q", data[:8])
    header = json.loads(data[8:8 + length])
    rng = np.random.default_rng(args.seed)
    for name, of in sorted(header.items()):
        if name == "__metadata__" or len(of["shape"]) < 2:
            continue
        start, end = (8 + length + offset for offset in of["data_offsets"])
        bits = np.frombuffer(bytes(data[start:end]), np.uint16).astype(np.uint32) << 16
        values = bits.view(np.float32)
        values = values + args.noise * np.sqrt(np.mean(values**2)) * rng.standard_normal(values.size, np.float32)
        bits = values.astype(np.float32).view(np.uint32)
        data[start:end] = ((bits + 0x7FFF + (bits >> 16 & 1)) >> 16).astype(np.uint16).tobytes()
    (args.out / "model.safetensors").write_bytes(data)


def rows(args):
    import scenes
    from PIL import Image

    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    with open(args.out / "train.jsonl", "w") as file:
        for number in range(args.scenes):
            rng = np.random.default_rng([args.seed, number])
            scene = scenes.sample_scene(rng)
            picture = f"pictures/{number:06}.png"
            Image.fromarray(np.asarray(scenes.render(scene, rng=rng))).save(args.out / picture)
            for _, question, answer in scenes.questions(scene, rng):
                file.write(json.dumps({"image": picture, "prompt": question, "text": answer}) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    what = parser.add_subparsers(required=True)
    for name, run, seed in (("model", model, 1), ("rows", rows, 21)):
        of = what.add_parser(name)
        of.add_argument("out", type=Path)
        of.add_argument("--seed", type=int, default=seed)
        of.set_defaults(run=run)
        if run is model:
            of.add_argument("--noise", type=float, default=0.3)
        else:
            of.add_argument("--scenes", type=int, default=6000)
    args = parser.parse_args()
    args.run(args)


if __name__ == "__main__":
    main()
