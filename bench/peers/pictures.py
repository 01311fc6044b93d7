#!/usr/bin/env python3
"""Pictures of twelve megapixels decoded by Ocelli beside Pillow (libjpeg-turbo, libwebp, zlib), in turn, on one core each.

    python bench/peers/pictures.py --ocelli target/release/ocelli --work DIR [--rounds 5] [--out FILE.json]

The pictures are made once and kept in --work: shapes over noise of many scales, as JPEG (quality 90, chroma halved; the same
progressive; chroma whole), WebP (quality 90) and PNG.  Rounds that other processes disturbed are done again.  Ratios are Ocelli's time
by Pillow's, medians over rounds.  Needs numpy and Pillow, and Linux.
"""
import argparse
import io
import json
import statistics
import sys
import time
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw, ImageFilter, features

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet

WIDTH, HEIGHT = 4000, 3000
KINDS = {
    "jpeg": ("a.jpg", {"quality": 90, "subsampling": "4:2:0"}),
    "progressive jpeg": ("progressive.jpg", {"quality": 90, "subsampling": "4:2:0", "progressive": True}),
    "jpeg, whole chroma": ("444.jpg", {"quality": 90, "subsampling": "4:4:4"}),
    "webp": ("a.webp", {"quality": 90, "method": 2}),
    "png": ("a.png", {"compress_level": 6}),
}


def picture():
    rng = np.random.default_rng(1)
    levels = np.full((HEIGHT, WIDTH, 3), 128, np.float32)
    for side, strength in [(8, 60), (16, 45), (32, 30), (64, 22), (128, 15), (256, 9), (512, 6)]:
        noise = rng.normal(size=(side * 3 // 4, side, 3)).astype(np.float32)
        noise = 0.3 * noise + 0.9 * noise.mean(2, keepdims=True)
        for channel in range(3):
            levels[:, :, channel] += strength * np.asarray(Image.fromarray(noise[:, :, channel]).resize((WIDTH, HEIGHT), Image.BICUBIC))
    image = Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(400):
        x, y, radius = rng.integers(0, WIDTH), rng.integers(0, HEIGHT), int(rng.integers(10, 150))
        draw.ellipse([x - radius, y - radius, x + radius, y + radius], fill=tuple(int(v) for v in rng.integers(0, 255, 3)))
    levels = np.asarray(image).astype(np.float32) + rng.normal(size=(HEIGHT, WIDTH, 1)) * 3.5 + rng.normal(size=(HEIGHT, WIDTH, 3)) * 1.5
    return Image.fromarray(np.clip(levels, 0, 255).astype(np.uint8)).filter(ImageFilter.GaussianBlur(0.6))


def pillow(data, runs):
    """Median milliseconds of decoding to RGB."""
    times = []
    for _ in range(runs + 1):
        start = time.perf_counter()
        Image.open(io.BytesIO(data)).convert("RGB").load()
        times.append(1e3 * (time.perf_counter() - start))
    return statistics.median(times[1:])


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--runs", type=int, default=7)
    parser.add_argument("--foreign", type=float, default=0.05)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    args.work.mkdir(parents=True, exist_ok=True)
    missing = [(name, options) for name, options in KINDS.values() if not (args.work / name).exists()]
    image = picture() if missing else None
    for name, options in missing:
        image.save(args.work / name, **options)

    rows = []
    for kind, (name, _) in KINDS.items():
        path = args.work / name
        data = path.read_bytes()

        def ocelli():
            report, foreign = quiet.run([args.ocelli, "bench", "pictures", "--json", "--runs", str(args.runs), path])
            return report["pictures"][0]["decode_ms"]["median"], foreign

        kept, again = quiet.rounds({"ocelli": ocelli, "pillow": lambda: (pillow(data, args.runs), 0.0)}, args.rounds, args.foreign)
        row = {"picture": kind, "bytes": len(data), "ocelli_ms": quiet.median(kept, "ocelli"), "pillow_ms": quiet.median(kept, "pillow"),
               "time_ratio": quiet.ratio(kept, "ocelli", "pillow"), "disturbed_rounds": again, "rounds": kept}
        rows.append(row)
        print(f"{kind:<20} ocelli {row['ocelli_ms']:7.1f} ms  pillow {row['pillow_ms']:7.1f} ms  ratio {row['time_ratio']:.2f}")
    if args.out:
        versions = {name: features.version(name) for name in ("pil", "libjpeg_turbo", "webp", "zlib")}
        report = {"schema": "ocelli.peers.pictures.v1", "cpu": quiet.cpu(), "versions": versions, "width": WIDTH, "height": HEIGHT, "rows": rows}
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
