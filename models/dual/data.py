#!/usr/bin/env python3
"""Draw the scenes that the dual encoder learns from, and write what may be said of each.

    data.py OUT [--groups N] [--held N] [--processes N]

OUT gets `pictures/`, `train.jsonl` and `held.jsonl`: rows `{"image", "text"}`, as `ocelli train contrastive` reads them. The rows to learn from are
in groups of four, which a step sees together (`--together 4`): a scene and three that differ from it in one thing, such as which object is on
the left, or in two colours that have changed places; their texts differ in that alone, so that nothing but this tells them apart. Of a scene
that is held back there is its caption. Scenes are those of ../demo/scenes.py, each from its own number, so that any number of
processes draws the same ones; those of ../demo/eval are of other numbers.
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

GROUP = 4

# Words between two objects, by the axis along which the first is before or behind the second.
BEFORE = {"x": ["to the left of", "left of"], "y": ["above", "over"]}
BEHIND = {"x": ["to the right of", "right of"], "y": ["below", "under"]}


def phrase(o, sized):
    return scenes.article(f"{o['size']} {o['colour']} {o['shape']}" if sized else f"{o['colour']} {o['shape']}")


def choose(scene, rng):
    """What is said of a scene and those that are like it: a function of a scene, and the axis along which order matters."""
    objects, number, sized = scene["objects"], rng.random() < 0.5, rng.random() < 0.6
    gap = lambda i, j, axis: objects[i][axis] - objects[j][axis]
    apart = [(i, j, axis) for i in range(len(objects)) for j in range(len(objects)) for axis in "xy"
             if i != j and abs(gap(i, j, axis)) >= 0.12 and abs(gap(i, j, axis)) >= 0.5 * abs(gap(i, j, "y" if axis == "x" else "x"))]
    if apart and rng.random() < 0.5:
        i, j, axis = apart[rng.integers(len(apart))]
        word = int(rng.integers(2))

        def relation(s):
            a, b = s["objects"][i], s["objects"][j]
            words = BEFORE if a[axis] < b[axis] else BEHIND
            return f"{phrase(a, sized)} {words[axis][word]} {phrase(b, sized)}"
        return relation, axis
    vertical = len(objects) == 2 and abs(gap(0, 1, "x")) <= abs(gap(0, 1, "y"))
    if len(objects) == 1 and not number:
        return lambda s: phrase(s["objects"][0], sized), "x"
    return lambda s: scenes.caption(s if number else dict(s, number=None)), "y" if vertical else "x"


def turned(scene, axis):
    """The scene with everything at its mirrored place."""
    turn = lambda o: dict(o, **{axis: 1 - o[axis]})
    return dict(scene, objects=[turn(o) for o in scene["objects"]], number=scene["number"] and turn(scene["number"]))


def swapped(scene, rng):
    """The scene with the colours or the shapes of two objects exchanged that differ in both; without such, one object changed."""
    objects = [dict(o) for o in scene["objects"]]
    keys = [("colour", "rgb"), ("shape", "angle")][rng.integers(2)]
    # Were one of both the same, it would be the mirrored scene.
    pairs = [(a, b) for a in objects for b in objects if a["colour"] != b["colour"] and a["shape"] != b["shape"]]
    if pairs:
        a, b = pairs[rng.integers(len(pairs))]
        for key in keys:
            a[key], b[key] = b[key], a[key]
        return dict(scene, objects=objects)
    o = objects[rng.integers(len(objects))]
    if keys[0] == "colour":
        o["colour"] = scenes.COLOUR_NAMES[(scenes.COLOUR_NAMES.index(o["colour"]) + rng.integers(1, 8)) % 8]
        o["rgb"] = scenes._jitter_colour(o["colour"], rng)
    else:
        o["shape"] = scenes.SHAPES[(scenes.SHAPES.index(o["shape"]) + rng.integers(1, 6)) % 6]
    return dict(scene, objects=objects)


def group(rng):
    """Scenes with texts that all differ."""
    found = {}
    while len(found) < GROUP:
        scene = scenes.sample_scene(rng)
        said, axis = choose(scene, rng)
        other = turned(scene, axis)
        for one in (scene, other, swapped(scene, rng), swapped(other, rng)):
            if len(found) < GROUP:
                found.setdefault(said(one), one)
    return found


def draw(task):
    folder, stream, number = task
    rng = np.random.default_rng([stream, number])
    if stream == HELD:
        scene = scenes.sample_scene(rng)
        found = {scenes.caption(scene): scene}
    else:
        found = group(rng)
    lines = []
    for i, (text, scene) in enumerate(found.items()):
        name = f"{stream}-{number:06}-{i}.png"
        scenes.render(scene, 96, rng).save(Path(folder) / "pictures" / name, compress_level=1)
        lines.append(json.dumps({"image": f"pictures/{name}", "text": text}))
    return lines


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("out", type=Path)
    ap.add_argument("--groups", type=int, default=3000)
    ap.add_argument("--held", type=int, default=400)
    ap.add_argument("--processes", type=int, default=2)
    args = ap.parse_args()
    (args.out / "pictures").mkdir(parents=True, exist_ok=True)
    with multiprocessing.Pool(args.processes) as pool:
        for name, stream, count in [("held", HELD, args.held), ("train", TRAIN, args.groups)]:
            tasks = ((str(args.out), stream, number) for number in range(count))
            rows = pool.imap(draw, tasks, chunksize=64)
            (args.out / f"{name}.jsonl").write_text("".join(f"{line}\n" for of_scene in rows for line in of_scene))
            print(f"{args.out / name}.jsonl", flush=True)


if __name__ == "__main__":
    main()
