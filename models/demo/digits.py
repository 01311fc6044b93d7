#!/usr/bin/env python3
"""Write rows that teach the demo model to count in digits: its evaluation's questions with `2` in place of `two`, all else as it was.

    digits.py OUT

OUT gets `train.jsonl` and `held.jsonl`, every fifth question, as `ocelli train sft` reads them. Needs Python alone.
"""
import json
import sys
from pathlib import Path

HERE = Path(__file__).resolve().parent
DIGITS = {"zero": "0", "one": "1", "two": "2", "three": "3", "four": "4"}


def main():
    out = Path(sys.argv[1])
    out.mkdir(parents=True, exist_ok=True)
    files = [open(out / name, "w") for name in ("held.jsonl", "train.jsonl")]
    for number, line in enumerate(open(HERE / "eval" / "eval.jsonl")):
        row = json.loads(line)
        text = DIGITS.get(row["answer"], row["answer"])
        row = {"image": str(HERE / "eval" / row["image"]), "prompt": row["question"], "text": text}
        files[number % 5 > 0].write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
