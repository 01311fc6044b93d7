#!/usr/bin/env python3
"""How often a picture's own caption is the nearest of a hundred, and a caption's own picture.

    evaluate.py [--model DIR] [--data FILE] [--ocelli PROGRAM]

FILE has rows `{"image", "text"}` as data.py writes them, or is ../demo/eval/eval.jsonl, whose captions are taken. Rows whose caption
another one has are left out; the others are ranked in groups of a hundred, in their order.
"""
import argparse
import json
import subprocess
import tempfile
from pathlib import Path

import numpy as np

HERE = Path(__file__).resolve().parent


def rows(path):
    taken = {}
    for line in path.read_text().splitlines():
        row = json.loads(line)
        if row.get("task", "caption") == "caption":
            taken.setdefault(row.get("answer", row.get("text")), path.parent / row["image"])
    return list(taken.items())


def vectors(program, model, arguments, folder):
    out = Path(folder) / "vectors.npy"
    model = ["--model", model] if model else []
    subprocess.run([program, "embed", *model, "--format", "npy", "--out", out, "--backend", "cpu", "-q", *arguments], check=True)
    return np.load(out).astype(np.float64)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", help="directory of the model; without it the one inside the program")
    ap.add_argument("--data", type=Path, default=HERE.parent / "demo" / "eval" / "eval.jsonl")
    ap.add_argument("--ocelli", default="ocelli", help="the program")
    args = ap.parse_args()
    pairs = rows(args.data)
    pairs = pairs[:len(pairs) // 100 * 100]
    with tempfile.TemporaryDirectory() as folder:
        pictures = vectors(args.ocelli, args.model, [picture for _, picture in pairs], folder)
        texts = vectors(args.ocelli, args.model, [word for text, _ in pairs for word in ("--text", text)], folder)
    found = {"texts": 0, "pictures": 0}
    for first in range(0, len(pairs), 100):
        products = pictures[first:first + 100] @ texts[first:first + 100].T
        own = np.arange(len(products))
        found["texts"] += int((products.argmax(1) == own).sum())
        found["pictures"] += int((products.argmax(0) == own).sum())
    print(json.dumps({"pairs": len(pairs), "nearest text is its own": found["texts"] / len(pairs),
                      "nearest picture is its own": found["pictures"] / len(pairs)}))


if __name__ == "__main__":
    main()
