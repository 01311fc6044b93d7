#!/usr/bin/env python3
"""What a process beside it costs a benchmark: the same command alone and beside one that takes a share of all cores, in turn.

    python bench/neighbour.py [--share 0.1] [--rounds 5] [--out FILE.json] FIELD -- COMMAND...

COMMAND prints one JSON object; FIELD is the number that counts in it, more being better, as in decode_tokens_per_s.median.  The neighbour
works and sleeps in turn, a few milliseconds each, as programs do that wait for something.  Needs Linux and Python alone.
"""
import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

import quiet

# Seconds from one beginning of work to the next.
PERIOD = 0.02


def work(share):
    """Takes a share of one core for ever."""
    while True:
        start = time.monotonic()
        while time.monotonic() < start + PERIOD * share:
            pass
        time.sleep(max(0.0, start + PERIOD - time.monotonic()))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--share", type=float, default=0.1, help="of all cores")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    parser.add_argument("field")
    parser.add_argument("command", nargs="*")
    args = parser.parse_args()
    of_one = args.share * os.cpu_count()
    if args.work:
        work(of_one)
    if of_one >= 1:
        parser.error("the neighbour is one thread: --share is below one core")

    def measure():
        report, _ = quiet.run(args.command)
        for name in args.field.split("."):
            report = report[name]
        return report

    rounds = []
    for _ in range(args.rounds):
        alone = measure()
        neighbour = subprocess.Popen([sys.executable, __file__, "--work", "--share", str(args.share), args.field])
        try:
            rounds.append({"alone": alone, "beside": measure()})
        finally:
            neighbour.kill()
            neighbour.wait()
    ratio = statistics.median(one["beside"] / one["alone"] for one in rounds)
    print(f"{args.field}: {quiet.median(rounds, 'alone'):.4g} alone, {quiet.median(rounds, 'beside'):.4g} beside, ratio {ratio:.3f}")
    if args.out:
        report = {"schema": "ocelli.neighbour.v1", "cpu": quiet.cpu(), "share": args.share, "field": args.field, "command": args.command,
                  "ratio": ratio, "rounds": rounds}
        args.out.write_text(json.dumps(report) + "\n")


if __name__ == "__main__":
    main()
