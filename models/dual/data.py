#!/usr/bin/env python3
"""Draw the scenes that the dual encoder learns from, and write what may be said of each.

    data.py OUT [--scenes N] [--held N] [--texts N] [--processes N]

OUT gets `pictures/`, `train.jsonl` with N texts of each scene and `held.jsonl` with the caption of each scene that is held back:
rows `{"image", "text"}`, as `ocelli train contrastive` reads them. Scenes are those of ../demo/scenes.py, each from its own number, so
that any number of processes draws the same ones; those of ../demo/eval are of other numbers.
"""
import argparse
import json
import multiprocessing
import sys
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "demo"))
import scenes

# First numbers of the random streams; 1 to 5 are those of the demo model.
TRAIN, HELD = 11, 12

# Words between two objects, and along which axis the first is before (-1) or behind (1) the second.
RELATIONS = [("to the left of", "x", -1), ("left of", "x", -1), ("to the right of", "x", 1), ("right of", "x", 1),
             ("above", "y", -1), ("below", "y", 1), ("under", "y", 1), ("over", "y", -1)]


def phrase(o, rng, sized):
    return scenes.article(f"{o['size']} {o['colour']} {o['shape']}" if sized else f"{o['colour']} {o['shape']}")


def relation(scene, rng):
    """Two objects and how they lie; None if none lie clearly apart."""
    objects = scene["objects"]
    if len(objects) < 2:
        return None
    a, b = (objects[i] for i in rng.permutation(len(objects))[:2])
    true = [words for words, axis, sign in RELATIONS if sign * (a[axis] - b[axis]) >= 0.12]
    if not true:
        return None
    sized = rng.random() < 0.5
    return f"{phrase(a, rng, sized)} {true[rng.integers(len(true))]} {phrase(b, rng, sized)}"


def listing(scene, rng):
    """All objects in any order."""
    objects, sized = scene["objects"], rng.random() < 0.5
    parts = [phrase(objects[i], rng, sized) for i in rng.permutation(len(objects))]
    return ", ".join(parts[:-1]) + " and " + parts[-1] if len(parts) > 1 else parts[0]


def text(scene, rng):
    """Something true that tells the scene from most others."""
    kind = rng.random()
    if kind < 0.3:
        said = relation(scene, rng)
        if said is not None:
            return said
    if kind < 0.5:
        said = listing(scene, rng)
        if scene["number"] is not None and rng.random() < 0.5:
            said += f" with the number {scene['number']['text']}"
        return said
    if kind < 0.6 and scene["number"] is not None:
        return scenes.caption(dict(scene, number=None))
    return scenes.caption(scene)


def draw(task):
    folder, stream, number, texts = task
    rng = np.random.default_rng([stream, number])
    scene = scenes.sample_scene(rng)
    name = f"{stream}-{number:06}.png"
    scenes.render(scene, 96, rng).save(Path(folder) / "pictures" / name, compress_level=1)
    said = [scenes.caption(scene)] if texts is None else [text(scene, rng) for _ in range(texts)]
    return [json.dumps({"image": f"pictures/{name}", "text": one}) for one in dict.fromkeys(said)]


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--scenes", type=int, default=20000)
    ap.add_argument("--held", type=int, default=400)
    ap.add_argument("--texts", type=int, default=3)
    ap.add_argument("--processes", type=int, default=2)
    args = ap.parse_args()
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(args.processes) as pool:
        for name, stream, count, texts in [("held", HELD, args.held, None), ("train", TRAIN, args.scenes, args.texts)]:
            tasks = ((str(args.out), stream, number, texts) for number in range(count))
            rows = pool.imap(draw, tasks, chunksize=64)
            (args.out / f"{name}.jsonl").write_text("".join(f"{line}\n" for of_scene in rows for line in of_scene))
            print(f"{args.out / name}.jsonl", flush=True)


if __name__ == "__main__":
    main()
