#!/usr/bin/env python3
"""`ocelli batch` over many pictures at once beside one picture at a time, in turn.

    python bench/peers/batch.py --ocelli target/release/ocelli --model DIR --pictures DIR [--tokens 32] [--rounds 3] [--out FILE.json]

DIR is a checkpoint such as that of bench/make_real_size.py, and a folder of different pictures.  Each answer has --tokens tokens,
whatever the model says.  Rounds that other processes disturbed are done again.  The ratio is pictures a second with --parallel as
many as there are by those with --parallel 1, median over rounds.  Needs Linux and Python alone.
"""
import argparse
import json
import os
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import quiet


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ocelli", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--pictures", type=Path, required=True)
    parser.add_argument("--tokens", type=int, default=32)
    parser.add_argument("--threads", type=int, default=os.cpu_count())
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--foreign", type=float, default=0.05)
    parser.add_argument("--options", default="", help="further options of `ocelli batch`, with spaces between")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    count = sum(path.suffix.lower() in (".jpg", ".jpeg", ".png", ".webp") for path in args.pictures.iterdir())

    def run(parallel):
        def measure():
            with tempfile.TemporaryDirectory() as folder:
                command = [args.ocelli, "batch", args.pictures, "--out", Path(folder) / "out.jsonl", "--model", args.model,
                           "--prompt", "Describe this picture.", "--max-tokens", args.tokens, "--ignore-eos", "--parallel", parallel,
                           "--backend", "cpu", "--threads", args.threads, "--processor", "do_image_splitting=false", "--json",
                           *args.options.split()]
                report, foreign = quiet.run(list(map(str, command)))
            assert report["rows"] == count and report["failed"] == 0, report
            return report, foreign
        return measure

    kept, again = quiet.rounds({"together": run(count), "alone": run(1)}, args.rounds, args.foreign)
    speeds = [{name: report["pictures_per_s"] for name, report in one.items()} for one in kept]
    ratio = quiet.ratio(speeds, "together", "alone")
    print(f"{count} pictures, {args.tokens} tokens each: {quiet.median(speeds, 'together'):.3f} pictures/s together, "
          f"{quiet.median(speeds, 'alone'):.3f} one at a time, ratio {ratio:.2f}")
    if args.out:
        report = {"schema": "ocelli.peers.batch.v1", "cpu": quiet.cpu(), "threads": args.threads, "pictures": count, "tokens": args.tokens,
                  "options": args.options, "ratio": ratio, "disturbed_rounds": again, "rounds": kept}
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
