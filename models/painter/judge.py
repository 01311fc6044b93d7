"""Draws 100 prompts and asks the demo model what is in the pictures.

    judge.py OCELLI [--model model] [--out record/judged.jsonl] [--guidance 1.5] [--temperature 0.3] [--seed 0]

OCELLI is the program, without `--model` of which the demo model answers. Prompts are those of `data.judged`: 20 of one object, 50 of two with a
relation, 30 of three, each with size, colour and shape; no training drew colours and shapes of two or three objects together as one of
them names. A picture shows an object if the demo model's caption of it names its colour and shape, and the model answers yes to "Is there a
red circle?". A picture is right that shows all objects that were asked for. Besides it is counted in how many of these the caption has
every size, the caption has no further object, and the question of the relation is answered with yes.
Each row of the record has the prompt, the answers and the verdicts; the last one has the sums and the settings.
"""

import argparse
import json
import re
import subprocess
import tempfile
from pathlib import Path

import data as D

HERE = Path(__file__).resolve().parent
OBJECT = re.compile(rf"({'|'.join(D.S.SIZES)}) ({'|'.join(D.S.COLOUR_NAMES)}) ({'|'.join(D.S.SHAPES)})")
RELATIONS = {"left of": "to the left of", "right of": "to the right of", "above": "above", "below": "below"}


def questions(row):
    """What is asked about the picture of a prompt."""
    kinds = [f"{o['colour']} {o['shape']}" for o in row["objects"]]
    asked = ["Describe the picture.", *(f"Is there {D.S.article(kind)}?" for kind in kinds)]
    if "relation" in row:
        asked.append(f"Is the {kinds[0]} {RELATIONS[row['relation']]} the {kinds[1]}?")
    return asked


def verdict(row, answers):
    """What the answers say of the picture."""
    found = [m.groups() for m in OBJECT.finditer(answers[0])]
    n, kinds = len(row["objects"]), [(colour, shape) for _, colour, shape in found]
    named = [(o["colour"], o["shape"]) in kinds for o in row["objects"]]
    seen = [a.strip().rstrip(".").lower() == "yes" for a in answers[1:1 + n]]
    out = {"named": named, "seen": seen, "right": all(named) and all(seen)}
    out["sizes"] = out["right"] and all((o["size"], o["colour"], o["shape"]) in found for o in row["objects"])
    out["no_more"] = out["right"] and len(found) == n
    if "relation" in row:
        out["relation_right"] = out["right"] and answers[1 + n].strip().rstrip(".").lower() == "yes"
    return out


def ask(ocelli, rows, pictures):
    """The demo model's answers, a list for each row."""
    with tempfile.TemporaryDirectory() as folder:
        table, out = Path(folder) / "rows.jsonl", Path(folder) / "answers.jsonl"
        lines = [{"id": f"{i}-{j}", "image": str(picture), "prompt": question}
                 for i, (row, picture) in enumerate(zip(rows, pictures)) for j, question in enumerate(questions(row))]
        table.write_text("".join(json.dumps(line) + "\n" for line in lines))
        subprocess.run([ocelli, "batch", table, "--out", out], check=True, capture_output=True)
        said = {r["id"]: r["text"] for r in map(json.loads, out.read_text().splitlines())}
    return [[said[f"{i}-{j}"] for j in range(len(questions(row)))] for i, row in enumerate(rows)]


def summary(rows, verdicts, settings):
    count = lambda key, part=rows: sum(bool(v.get(key)) for r, v in zip(rows, verdicts) if r in part)
    by = {n: [r for r in rows if len(r["objects"]) == n] for n in (1, 2, 3)}
    return {"prompts": len(rows), "right": count("right"), "right_by_objects": {n: f"{count('right', p)}/{len(p)}" for n, p in by.items()},
            "with_sizes": count("sizes"), "with_no_more": count("no_more"),
            "with_relation": f"{count('relation_right')}/{len(by[2])}", **settings}


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("ocelli")
    ap.add_argument("--model", type=Path, default=HERE / "model")
    ap.add_argument("--out", type=Path, default=HERE / "record" / "judged.jsonl")
    ap.add_argument("--pictures", type=Path, help="keep the pictures in this folder")
    ap.add_argument("--guidance", type=float, default=1.5)
    ap.add_argument("--temperature", type=float, default=0.3)
    ap.add_argument("--top-k", type=int, default=0)
    ap.add_argument("--top-p", type=float, default=1.0)
    ap.add_argument("--seed", type=int, default=0, help="of the first prompt; each next one has the next")
    ap.add_argument("--list", type=int, default=D.JUDGED, help="seed of the list of prompts")
    args = ap.parse_args()
    rows = D.judged(args.list)
    settings = {k: getattr(args, k) for k in ("guidance", "temperature", "top_k", "top_p", "seed", "list")}
    with tempfile.TemporaryDirectory() as folder:
        folder = args.pictures or Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        pictures = [folder / f"{i:02}.png" for i in range(len(rows))]
        for i, (row, picture) in enumerate(zip(rows, pictures)):
            flags = ["--guidance", args.guidance, "--temperature", args.temperature, "--top-k", args.top_k, "--top-p", args.top_p,
                     "--seed", args.seed + i, "--out", picture]
            subprocess.run([args.ocelli, "imagine", "--model", args.model, *map(str, flags), row["text"]], check=True, capture_output=True)
        answers = ask(args.ocelli, rows, pictures)
    verdicts = [verdict(row, said) for row, said in zip(rows, answers)]
    total = summary(rows, verdicts, settings)
    lines = [{"prompt": r["text"], "answers": a, **v} for r, a, v in zip(rows, answers, verdicts)]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text("".join(json.dumps(line) + "\n" for line in [*lines, total]))
    print(json.dumps(total, indent=1))


if __name__ == "__main__":
    main()
