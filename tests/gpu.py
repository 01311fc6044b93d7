#!/usr/bin/env python3
"""What `tests/gpu.sh run` does once the programs are unpacked: gpu.py BIN_DIR OUT_DIR.

The most valuable results come first; after every step record.json and summary.txt are written anew, whole. Yardsticks of torch
run between two runs of the kernels, in a process of their own, on random data, cold: operands rotate through more than the caches
hold, and the launches are one graph, as the kernels' are.
"""
import json
import os
import re
import statistics
import subprocess
import sys
import time

BEGIN = time.time()
BUDGET = 8 * 60
BIN, OUT = sys.argv[1], sys.argv[2]
ROOT = os.environ["OCELLI_ROOT"]

# Bars: what is measured, with the least ratio to the yardstick or fraction of the roof.
BARS = [
    # (name, condition on a row, key, least)
    ("bf16 GEMM 4096^3 against cuBLAS", lambda op, s: op == "matmul" and s["m"] == s["n"] == s["k"] == 4096 and s["w"] == "bf16", "ratio", 1.0),
    ("bf16 GEMM 8192^3 against cuBLAS", lambda op, s: op == "matmul" and s["m"] == s["n"] == s["k"] == 8192 and s["w"] == "bf16", "ratio", 1.0),
    ("layers of 512 to 4096 rows against cuBLAS", lambda op, s: op == "matmul" and s["m"] >= 512 and not s["m"] == s["n"] == s["k"] and s["w"] == "bf16" and s.get("x") == "bf16", "ratio", 0.95),
    ("attention against the best of torch's", lambda op, s: op == "attention" and s["q"] >= 4096, "ratio", 1.0),
    ("int4 GEMV 8192^2, of read bandwidth", lambda op, s: op == "matmul" and s["m"] == 1 and s["k"] == 8192 and s["w"] == "int4g128", "fraction", 0.75),
    ("int4 GEMV 4096^2, of read bandwidth", lambda op, s: op == "matmul" and s["m"] == 1 and s["k"] == 4096 and s["w"] == "int4g128", "fraction", 0.50),
    ("int8, fp8 and bf16 GEMV 8192^2, of read bandwidth", lambda op, s: op == "matmul" and s["m"] == 1 and s["k"] == 8192 and s["w"] in ("int8g128", "fp8row", "bf16"), "fraction", 0.85),
]

record = {"schema": "ocelli.gpu.v1", "machine": {}, "conformance": {"passed": 0, "failed": 0, "skipped": 0}, "rows": [], "steps": []}
lines = []


def write():
    """Writes both files whole."""
    for name, text in (("record.json", json.dumps(record, indent=1)), ("summary.txt", "\n".join(lines) + "\n")):
        path = os.path.join(OUT, name)
        with open(path + ".part", "w") as file:
            file.write(text)
        os.replace(path + ".part", path)


def say(text):
    print(text, flush=True)
    lines.append(text)
    write()


def left():
    return BUDGET - (time.time() - BEGIN)


def run(name, command, seconds, env=None):
    """Runs a step within its time and what is left of all; gives (exit code, output). The log is kept."""
    start, limit = time.time(), min(seconds, left())
    if limit < 5:
        record["steps"].append({"name": name, "code": None, "seconds": 0})
        say(f"{name}: left out, the time is over")
        return None, ""
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=limit, env={**os.environ, **(env or {})}, cwd=ROOT)
        code, output = done.returncode, done.stdout + done.stderr
    except subprocess.TimeoutExpired as late:
        code, output = 124, ((late.stdout or b"") + (late.stderr or b"")).decode(errors="replace")
    except OSError as error:
        code, output = 127, str(error)
    with open(os.path.join(OUT, "steps.log"), "a") as file:
        file.write(f"== {name}: {' '.join(command)}: exit {code}\n{output[-200_000:]}\n")
    record["steps"].append({"name": name, "code": code, "seconds": round(time.time() - start, 1)})
    return code, output


def machine():
    fields = "name,driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"
    _, output = run("machine", ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 20)
    values = [value.strip() for value in output.strip().split("\n")[0].split(",")]
    record["machine"] = dict(zip(["gpu", "driver", "memory", "max_clock", "clock", "power_limit", "temperature"], values))
    say(f"{values[0]}, driver {values[1] if len(values) > 1 else '?'}")


def tests(name, program, choose, seconds, env=None):
    """Runs tests; adds what passed, failed and was skipped."""
    code, output = run(name, [os.path.join(BIN, program), *choose, "--nocapture", "--test-threads", "1"], seconds, env)
    if code is None:
        return False
    found = re.search(r"test result: .* (\d+) passed; (\d+) failed", output)
    passed, failed = (int(found[1]), int(found[2])) if found else (0, 1)
    skipped = len(re.findall(r"^\s*skipped: ", output, re.M))
    cases = sum(int(count) for count in re.findall(r": (\d+) cases$", output, re.M))
    counts = record["conformance"]
    counts["passed"] += passed - min(skipped, passed)
    counts["failed"] += failed
    counts["skipped"] += skipped
    say(f"{name}: {passed} passed, {failed} failed, {skipped} skipped, {cases} cases")
    for line in [line for line in output.split("\n") if re.match(r"^\S+ `.*` \(seed", line)][:10]:
        say("  " + line[:400])
    return failed == 0 and code == 0


def bench(backend, arguments, seconds):
    code, output = run(f"bench {backend}", [os.path.join(BIN, "ocelli"), "bench", "kernels", "--backend", backend, "--json", *arguments], seconds)
    try:
        return json.loads(output[output.index("{"):output.rindex("}") + 1])
    except ValueError:
        if code is not None:
            say(f"bench {backend}: exit {code}: {output.strip()[-400:]}")
        return None


YARDSTICK = r'''
import json, sys, torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel
l2 = torch.cuda.get_device_properties(0).L2_cache_size
def time_us(make, work, bytes_each):
    """Median of graphs of launches over distinct operands, which hold together more than five times the cache."""
    turns = max(4, min(64, -(-5 * l2 // max(bytes_each, 1))))
    operands = [make() for _ in range(turns)]
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        for one in operands[:2]: work(*one)
    torch.cuda.synchronize()
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        for one in operands: work(*one)
    times = []
    for _ in range(12):
        a, b = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        a.record(); graph.replay(); b.record(); torch.cuda.synchronize()
        times.append(a.elapsed_time(b) * 1e3 / turns)
    times = sorted(times[2:])
    return times[len(times) // 2]
out = []
for row in json.load(sys.stdin):
    s, result = row["spec"], None
    try:
        if row["op"] == "matmul" and s["w"].startswith("fp8"):
            m, n, k = s["m"], s["n"], s["k"]
            code = lambda rows: torch.randn(rows, k, device="cuda").to(torch.float8_e4m3fn)
            make = lambda: (code(m), code(n), torch.rand(m, 1, device="cuda"), torch.rand(1, n, device="cuda"))
            work = lambda x, w, a, b: torch._scaled_mm(x, w.t(), scale_a=a, scale_b=b, out_dtype=torch.bfloat16, use_fast_accum=False)
            us = time_us(make, work, m * k + n * k)
            result = {"name": "torch._scaled_mm (product alone, a scale a row)", "us": us}
        elif row["op"] == "matmul":
            m, n, k = s["m"], s["n"], s["k"]
            make = lambda: (torch.randn(m, k, device="cuda", dtype=torch.bfloat16), torch.randn(n, k, device="cuda", dtype=torch.bfloat16))
            us = time_us(make, lambda x, w: F.linear(x, w), 2 * (m * k + n * k))
            result = {"name": "cuBLAS (product alone)", "us": us}
        elif row["op"] == "attention":
            shape = lambda h, t: (s["seqs"], h, t, s["head_dim"])
            make = lambda: tuple(torch.randn(shape(s["heads_q"], s["q"]), device="cuda", dtype=torch.bfloat16) for _ in range(3))
            best = None
            for backend in (SDPBackend.FLASH_ATTENTION, SDPBackend.CUDNN_ATTENTION, SDPBackend.EFFICIENT_ATTENTION):
                try:
                    with sdpa_kernel(backend):
                        us = time_us(make, lambda q, k, v: F.scaled_dot_product_attention(q, k, v, is_causal=bool(s.get("causal"))), 3 * 2 * s["seqs"] * s["heads_q"] * s["q"] * s["head_dim"])
                    if best is None or us < best["us"]: best = {"name": backend.name, "us": us}
                except RuntimeError: pass
            result = best
    except (RuntimeError, AttributeError, TypeError) as error:
        result = {"name": "failed: " + str(error)[:80], "us": None}
    out.append(result)
print("RESULT" + json.dumps(out))
'''


def wants_yardstick(row):
    spec = row["spec"]
    dense = row["op"] == "matmul" and spec.get("w") == "bf16" and spec.get("x") == "bf16"
    fp8 = row["op"] == "matmul" and spec.get("math") == "fp8"
    return dense or fp8 or (row["op"] == "attention" and spec.get("x") == "bf16")


def yardsticks(rows):
    start = time.time()
    try:
        done = subprocess.run([sys.executable, "-c", YARDSTICK], input=json.dumps(rows), capture_output=True, text=True, timeout=max(5, min(90, left())))
        text = done.stdout
        record["steps"].append({"name": "yardsticks", "code": done.returncode, "seconds": round(time.time() - start, 1)})
        if "RESULT" in text:
            return json.loads(text.split("RESULT")[1])
        say("yardsticks: none: " + done.stderr.strip()[-200:])
    except subprocess.TimeoutExpired:
        say("yardsticks: the time is over")
    return [None] * len(rows)


def kernels():
    """Kernels, yardsticks, kernels again."""
    first = bench("cuda", [], 130)
    if first is None:
        return
    record["machine"]["roofs"] = first["roofs"]
    rows = [row for row in first["rows"] if wants_yardstick(row)]
    sticks = yardsticks(rows)
    second = bench("cuda", ["--only", "x=bf16"], 60)
    again = {(row["op"], json.dumps(row["spec"], sort_keys=True)): row["median_us"] for row in (second or {"rows": []})["rows"]}
    by_row = {id(row): stick for row, stick in zip(rows, sticks)}
    for row in first["rows"]:
        times = [row["median_us"]]
        other = again.get((row["op"], json.dumps(row["spec"], sort_keys=True)))
        if other:
            times.append(other)
        entry = {key: row.get(key) for key in ("op", "spec", "variant", "roof", "fraction")}
        entry["median_us"] = statistics.mean(times)
        stick = by_row.get(id(row))
        if stick and stick.get("us"):
            entry["yardstick"] = {"name": stick["name"], "median_us": stick["us"], "ratio": stick["us"] / entry["median_us"]}
        record["rows"].append(entry)
    for name, applies, key, least in BARS:
        values = []
        for entry in record["rows"]:
            if applies(entry["op"], entry["spec"]):
                value = entry.get("yardstick", {}).get("ratio") if key == "ratio" else entry.get("fraction")
                if value:
                    values.append(value)
        if values:
            say(f"{'met   ' if min(values) >= least else 'MISSED'} {name}: {min(values):.2f} to {max(values):.2f} (bar {least:.2f}, {len(values)} shapes)")
        else:
            say(f"not measured: {name}")


def model():
    """SmolVLM-256M's shape with random weights: encode, prefill, decode."""
    place = os.path.join(os.environ["OCELLI_CACHE"], "256m")
    code, _ = run("make 256M", [sys.executable, "bench/make_real_size.py", "--model", "smolvlm-256m", "--out", place], 60)
    if code != 0:
        return say("model: the checkpoint could not be made (needs torch, transformers)")
    code, output = run("bench model", [os.path.join(BIN, "ocelli"), "bench", "model", "--backend", "cuda", "--dtype", "bf16", "--json", "--model", place], 60)
    try:
        record["model"] = json.loads(output[output.index("{"):output.rindex("}") + 1])
        say("model: " + json.dumps(record["model"].get("rates", record["model"]))[:400])
    except ValueError:
        say(f"model: exit {code}: {output.strip()[-300:]}")


def main():
    os.makedirs(OUT, exist_ok=True)
    machine()
    green = tests("conformance on the GPU", "cuda", ["gpu::"], 120, {"OCELLI_REQUIRE": "cuda"})
    green &= tests("golden models on the GPU", "golden", ["on_a_gpu"], 60, {"OCELLI_REQUIRE": "cuda"})
    kernels()
    sanitizer = subprocess.run(["which", "compute-sanitizer"], capture_output=True).returncode == 0
    if sanitizer:
        program = os.path.join(BIN, "cuda")
        for op in ("norm", "matmul", "attention"):
            code, output = run(f"compute-sanitizer {op}", ["compute-sanitizer", "--error-exitcode", "9", program, f"gpu::{op}"], 30, {"OCELLI_CASE": "random"})
            say(f"compute-sanitizer {op}: exit {code}")
            green &= code in (0, 124, None)
    model()
    wgpu = bench("wgpu", ["--only", "square"], 40)
    if wgpu:
        record["wgpu"] = wgpu
        say(f"wgpu: {wgpu['machine'].get('adapter', {}).get('name')}, {len(wgpu['rows'])} rows")
    counts = record["conformance"]
    say(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped")
    return 0 if green and counts["failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
