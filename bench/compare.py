#!/usr/bin/env python3
"""Compare builds of ocelli on one model, run in turn on one machine.

    python bench/compare.py --build before=PATH --build after=PATH --rounds 9 --out FILE.json -- --model DIR [options of bench model]

Each round runs `ocelli bench model` of every build, in an order that changes from round to round, so that a machine whose speed
drifts drifts for all of them.  A round in which other processes took more than --foreign of the processors is done again.  What
counts is the median over rounds of each ratio to the first build, above 1 where a build is faster.  Needs Linux and Python alone.
"""
import argparse
import json
import os

import quiet

# Higher is faster: times as their inverse.
STAGES = {"resize": "resize_ms", "tower": "encode_ms", "first token": "first_token_ms",
          "prefill": "prefill_tokens_per_s", "decode": "decode_tokens_per_s"}


def figures(report):
    """Stages that were run, in 1/ms and tokens/s."""
    of = {stage: report[key]["median"] for stage, key in STAGES.items()}
    return {stage: 1 / value if STAGES[stage].endswith("_ms") else value for stage, value in of.items() if value > 0}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build", action="append", required=True, metavar="NAME=PATH", help="a build; the first is the yardstick")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--foreign", type=float, default=0.05, help="share of the processors that others may take")
    parser.add_argument("--out", help="JSON record")
    parser.add_argument("options", nargs="+", help="options of bench model, after --")
    args = parser.parse_args()
    builds = dict(build.split("=", 1) for build in args.build)

    def contender(path):
        def measure():
            report, foreign = quiet.run([path, "bench", "model", "--json", *args.options])
            return figures(report), foreign
        return measure

    kept, again = quiet.rounds({name: contender(path) for name, path in builds.items()}, args.rounds, args.foreign)
    first = next(iter(builds))
    report = {"machine": quiet.cpu(), "threads": os.cpu_count(), "options": args.options, "rounds": args.rounds,
              "rounds_done_again": again, "stages": {}}
    for stage in kept[0][first]:
        of_stage = [{name: round[name][stage] for name in builds} for round in kept]
        middle = {name: quiet.median(of_stage, name) for name in builds}
        in_ms = STAGES[stage].endswith("_ms")
        report["stages"][stage] = {
            "unit": "ms" if in_ms else "tokens/s",
            "median": {name: 1 / value if in_ms else value for name, value in middle.items()},
            "speed_ratio": {name: quiet.ratio(of_stage, name, first) for name in builds},
        }
    for stage, of in report["stages"].items():
        shown = "  ".join(f"{name} {of['median'][name]:.4g} ({of['speed_ratio'][name]:.3f})" for name in builds)
        print(f"{stage:12} {shown}")
    if args.out:
        with open(args.out, "w") as file:
            json.dump(report, file, indent=1)
            file.write("\n")


if __name__ == "__main__":
    main()
