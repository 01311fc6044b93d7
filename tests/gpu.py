#!/usr/bin/env python3
"""What `tests/gpu.sh run` does once the programs are unpacked: gpu.py BIN_DIR OUT_DIR.

The most valuable results come first; after every step record.json and summary.txt are written anew, whole. Yardsticks of torch
run between two runs of the kernels, in a process of their own, on random data, cold: operands rotate through more than the caches
hold, and the launches are one graph, as the kernels' are.

Variables: OCELLI_GPU_ONLY has words with commas between; of the tests only those run whose name contains one of them, and of the steps
`model` and `wgpu` those that are named. OCELLI_GPU_SHAPES names a file of shapes that is measured in place of the embedded ones.
OCELLI_GPU_TIME_SCALE is what every time limit is multiplied by. OCELLI_GPU_TINY is set where what runs is the harness more than the
kernels. OCELLI_CUBINS names the folder of kernels that came with the programs.

The record: `complete` is true once every step was tried; `limited` has every variable that makes less run or gives less time than a whole run
has, so `{}` is a whole run; `left_out` has what could not run here, with the reason; `cubins` counts the kernels that came with the programs,
those of them that were used, and those that had to be compiled here.
"""
import concurrent.futures
import glob
import json
import os
import re
import shutil
import signal
import site
import statistics
import subprocess
import sys
import threading
import time

BEGIN = time.time()
# Share of each time limit: less where programs stand in for the real ones.
SCALE = float(os.environ.get("OCELLI_GPU_TIME_SCALE", "1"))
BUDGET = 8 * 60 * SCALE
BIN, OUT = sys.argv[1], sys.argv[2]
ROOT = os.environ["OCELLI_ROOT"]
ONLY = [word for word in os.environ.get("OCELLI_GPU_ONLY", "").split(",") if word]
SHAPES = os.environ.get("OCELLI_GPU_SHAPES")
TINY = bool(os.environ.get("OCELLI_GPU_TINY"))
CUBINS = os.environ.get("OCELLI_CUBINS")
# What makes a run less than a whole one, or other than its programs are.
LIMITS = ("OCELLI_GPU_TINY", "OCELLI_GPU_ONLY", "OCELLI_GPU_SHAPES", "OCELLI_GPU_TIME_SCALE", "OCELLI_CASE", "OCELLI_FAMILIES",
          "OCELLI_EVERY", "OCELLI_KERNEL_FORCE", "OCELLI_CUDA_DEPENDENT")
KERNELS = os.path.join(OUT, "kernels.log")
# Has a program end with this one, however that is, where the system knows how.
WITH_US = ["setpriv", "--pdeathsig", "KILL"] if shutil.which("setpriv") else []

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

record = {"schema": "ocelli.gpu.v1", "complete": False, "limited": {name: os.environ[name] for name in LIMITS if os.environ.get(name)},
          "machine": {}, "conformance": {"passed": 0, "failed": 0, "skipped": 0, "look": 0}, "cubins": {}, "rows": [], "left_out": {}, "steps": []}
lines = []
LOCK = threading.RLock()


def write():
    """Writes both files whole."""
    with LOCK:
        for name, text in (("record.json", json.dumps(record, indent=1)), ("summary.txt", "\n".join(lines) + "\n")):
            path = os.path.join(OUT, name)
            with open(path + ".part", "w") as file:
                file.write(text)
            os.replace(path + ".part", path)


def say(text):
    with LOCK:
        print(text, flush=True)
        lines.append(text)
        write()


def leave_out(what, why):
    """Notes what cannot run here."""
    with LOCK:
        record["left_out"][what] = why
        say(f"skipped: {what}: {why}")


def left():
    return BUDGET - (time.time() - BEGIN)


def end(child):
    """Ends a program and all that it started."""
    try:
        os.killpg(child.pid, signal.SIGKILL)
    except ProcessLookupError:
        pass


def begin(command, env=None, **options):
    """Starts a program in a group of its own."""
    return subprocess.Popen(WITH_US + command, stdout=subprocess.PIPE, text=True, errors="replace", env={**os.environ, **(env or {})}, cwd=ROOT, start_new_session=True, **options)


def told(command, limit, env=None, given=None):
    """Runs a program for so many seconds at most; (exit code, what it said), 124 where its time was over and 127 where it is not there."""
    try:
        child = begin(command, env, stderr=subprocess.PIPE, stdin=subprocess.DEVNULL if given is None else subprocess.PIPE)
    except OSError as error:
        return 127, str(error)
    try:
        output, errors = child.communicate(given, timeout=limit)
        code = child.returncode
    except subprocess.TimeoutExpired:
        end(child)
        output, errors = child.communicate()
        code = 124
    return code, output + errors


def first_object(text):
    """The JSON object that a program printed, before what it said of other things."""
    return json.JSONDecoder().raw_decode(text[text.index("{"):])[0]


def run(name, command, seconds, env=None):
    """Runs a step within its time and what is left of all; gives (exit code, output). The log is kept."""
    start, limit = time.time(), min(seconds * SCALE, left())
    if limit < 5 * SCALE:
        record["steps"].append({"name": name, "code": None, "seconds": 0})
        say(f"{name}: left out, the time is over")
        return None, ""
    code, output = told(command, limit, env=env)
    with open(os.path.join(OUT, "steps.log"), "a") as file:
        file.write(f"== {name}: {' '.join(command)}: exit {code}\n{output[-200_000:]}\n")
    record["steps"].append({"name": name, "code": code, "seconds": round(time.time() - start, 1)})
    write()
    return code, output


def machine():
    code, output = run("machine", [os.path.join(BIN, "ocelli"), "devices", "--json"], 20)
    try:
        gpu = [one for one in first_object(output)["devices"] if one["backend"] == "cuda" and not one["unavailable"]]
    except (ValueError, KeyError):
        gpu = []
    record["machine"] = {"gpu": gpu[0]["name"]} if gpu else {}
    say(f"{gpu[0]['name'] if gpu else f'no GPU: exit {code}: {output.strip()[-300:]}'}")
    if not shutil.which("nvidia-smi"):
        return leave_out("clocks and power", "there is no nvidia-smi here")
    fields = "driver_version,memory.total,clocks.max.sm,clocks.sm,power.limit,temperature.gpu"
    _, output = run("nvidia-smi", ["nvidia-smi", f"--query-gpu={fields}", "--format=csv,noheader"], 20)
    values = [value.strip() for value in output.strip().split("\n")[0].split(",")]
    record["machine"].update(zip(["driver", "memory", "max_clock", "clock", "power_limit", "temperature"], values))
    say(f"driver {values[0]}")


def nvrtc():
    """Where torch's own copy of NVRTC lies, for machines that have no other: of the driver's major version of CUDA, or the newest."""
    places = {*sys.path, *site.getsitepackages(), site.getusersitepackages()}
    found = [path for place in places if place for path in glob.glob(os.path.join(place, "nvidia", "*", "lib", "libnvrtc.so.*"))]
    found = [path for path in found if "builtins" not in path]
    version = lambda path: [int(n) for n in re.findall(r"\d+", os.path.basename(path))]
    driver = re.match(r"\d+", record["machine"].get("driver", ""))
    most = 13 if driver and int(driver[0]) >= 580 else 12
    return max([path for path in found if version(path)[0] <= most] or found, default=None, key=version)


def listed(program, choose):
    """The tests of a program."""
    code, output = run(f"list {program}", [os.path.join(BIN, program), "--list", choose], 30)
    names = re.findall(r"^(\S+): test$", output, re.M)
    if not names:
        say(f"{program}: no tests named {choose}: exit {code}: {output.strip()[-200:]}")
    return [name for name in names if not ONLY or any(word in name for word in ONLY)]


def test(program, name, seconds, env=None):
    """Runs one test in a process of its own, which is ended with all that it started when its time is over.

    Its cases are kept as they come: one that hangs or ends the device takes none of those before it along.
    """
    limit = min(seconds * SCALE, left())
    if limit < 5 * SCALE:
        return {"name": name, "code": None, "ok": 0, "failed": [], "skipped": [], "look": [], "seconds": 0}
    start, lines_of = time.time(), []
    command = [os.path.join(BIN, program), "--exact", name, "--nocapture", "--test-threads", "1"]
    try:
        child = begin(command, {"OCELLI_REQUIRE": "cuda", "OCELLI_EACH_CASE": "1", **(env or {})}, stderr=subprocess.STDOUT)
    except OSError as error:
        return {"name": name, "code": 127, "ok": 0, "failed": [str(error)], "skipped": [], "look": [], "seconds": 0}
    late = threading.Timer(limit, end, [child])
    late.start()
    for line in child.stdout:
        # The test program begins the line in which its first case is told, or what else it says first.
        if line.startswith("test ") and re.search(r" \.\.\. (case|look|skipped): ", line):
            line = line.split(" ... ", 1)[1]
        lines_of.append(line)
        if line.startswith("case: "):
            with LOCK, open(os.path.join(OUT, "cases.log"), "a") as file:
                file.write(line)
    code = child.wait()
    over = not late.is_alive() and code == -signal.SIGKILL
    late.cancel()
    cases = [line[len("case: "):].strip() for line in lines_of if line.startswith("case: ")]
    failed = [case for case in cases if ": FAILED: " in case]
    if over:
        failed.append(f"{name}: ended after {limit:.0f} s, behind `{cases[-1][:200] if cases else 'no case'}`")
    elif code != 0 and not failed:
        failed.append(f"{name}: exit {code}: {''.join(lines_of).strip()[-300:]}")
    skipped = [line.strip() for line in lines_of if line.strip().startswith("skipped: ")]
    look = [line.strip()[len("look: "):] for line in lines_of if line.strip().startswith("look: ")]
    with LOCK, open(os.path.join(OUT, "steps.log"), "a") as file:
        file.write(f"== {name}: exit {code}\n{''.join(line for line in lines_of if not line.startswith('case: '))[-100_000:]}\n")
    return {"name": name, "code": 124 if over else code, "ok": len(cases) - len([case for case in cases if ": FAILED: " in case]),
            "failed": failed, "skipped": skipped, "look": look, "seconds": round(time.time() - start, 1)}


def note(result):
    """Adds what a test found."""
    counts = record["conformance"]
    with LOCK:
        record["steps"].append({key: result[key] for key in ("name", "code", "seconds")})
        counts["passed"] += result["ok"] + (1 if result["code"] == 0 and not result["ok"] and not result["skipped"] else 0)
        counts["failed"] += len(result["failed"])
        counts["look"] += len(result["look"])
        counts["skipped"] += len(result["skipped"]) + (1 if result["code"] is None else 0)
        word = "left out, the time is over" if result["code"] is None else f"{result['ok']} cases, {len(result['failed'])} failed"
        say(f"{result['name']}: {word}, {result['seconds']} s")
        for failure in result["failed"][:5]:
            say("  " + failure[:400])
        for look in result["look"][:5]:
            say("  LOOK " + look[:400])
        sources()
    return not result["failed"]


def sources():
    """Counts where kernels came from: the pack, or the compiler of this machine."""
    shipped = len(glob.glob(os.path.join(CUBINS, "*.cubin"))) if CUBINS else 0
    words = []
    if os.path.exists(KERNELS):
        with open(KERNELS, errors="replace") as file:
            words = [line.rstrip("\n").partition(" ") for line in file if line.endswith("\n")]
    used = {key for origin, _, key in words if origin == "ahead"}
    compiled = {key for origin, _, key in words if origin != "ahead"} - used
    record["cubins"] = {"shipped": shipped, "used": len(used), "compiled": len(compiled), "compiled_names": sorted(compiled)[:100]}


def tell_sources():
    sources()
    counts = record["cubins"]
    say(f"kernels: {counts['shipped']} in the pack, {counts['used']} of them used, {counts['compiled']} compiled here")
    for name in counts["compiled_names"][:5]:
        say("  compiled here: " + name[:300])


# Small kernels first: what fails there would fail the others in ways that are harder to read.
LARGE = ("attention", "expert_matmul", "matmul")
WORKERS = max(1, min(8, (os.cpu_count() or 2) // 2))


def chains():
    """Chains of kernels, as they are launched, and, should that fail, with none beginning before the one before it has ended."""
    if note(test("cuda", "canaries::chains_on_a_gpu", 20)):
        return True
    apart = test("cuda", "canaries::chains_on_a_gpu", 20, {"OCELLI_CUDA_DEPENDENT": "0"})
    say(f"chains of kernels with OCELLI_CUDA_DEPENDENT=0: exit {apart['code']}, {len(apart['failed'])} failed")
    return False


def conformance(program, choose, seconds):
    """Each test in a process of its own: the first alone, then several at once, since most of their time is compilation."""
    names = listed(program, choose)
    of = lambda name: name.split("::")[1] if "::" in name else name
    names.sort(key=lambda name: (LARGE.index(of(name)) + 1 if of(name) in LARGE else 0, name))
    if not names:
        return False
    green = note(test(program, names[0], min(60, seconds)))
    with concurrent.futures.ThreadPoolExecutor(WORKERS) as pool:
        for done in concurrent.futures.as_completed([pool.submit(test, program, name, seconds) for name in names[1:]]):
            green &= note(done.result())
    return green


def bench(backend, arguments, seconds):
    """Rows of kernels. They are kept as they come: what ends the run takes none of them along."""
    lines_at = os.path.join(OUT, "rows.jsonl")
    before = os.path.getsize(lines_at) if os.path.exists(lines_at) else 0
    command = [os.path.join(BIN, "ocelli"), "bench", "kernels", "--backend", backend, "--json", "--keep-going", "--rows", lines_at, "--limit", str(max(5, int(seconds) - 25))]
    if SHAPES:
        command += ["--shapes", SHAPES]
    code, output = run(f"bench {backend}", command + arguments, seconds)
    if code is None:
        return None
    try:
        return first_object(output)
    except ValueError:
        pass
    say(f"bench {backend}: exit {code}, no record at its end: {output.strip()[-400:]}")
    rows = []
    if os.path.exists(lines_at):
        with open(lines_at) as file:
            file.seek(before)
            for line in file:
                try:
                    rows.append(json.loads(line))
                except ValueError:  # The last line of a process that was ended.
                    pass
    return {"machine": {}, "roofs": {}, "rows": rows} if rows else None


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
    code, text = told([sys.executable, "-c", YARDSTICK], max(5 * SCALE, min(90 * SCALE, left())), given=json.dumps(rows))
    record["steps"].append({"name": "yardsticks", "code": code, "seconds": round(time.time() - start, 1)})
    if "RESULT" in text:
        return json.loads(text.split("RESULT")[1].splitlines()[0])
    leave_out("yardsticks", "the time is over" if code == 124 else text.strip()[-200:])
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
    """SmolVLM-256M's shape with random weights, or the demo model where that cannot be made: encode, prefill, decode."""
    place = os.path.join(os.environ["OCELLI_CACHE"], "256m")
    command = [os.path.join(BIN, "ocelli"), "bench", "model", "--backend", "cuda", "--dtype", "bf16", "--json"]
    code, output = run("make 256M", [sys.executable, "bench/make_real_size.py", "--model", "smolvlm-256m", "--out", place], 60)
    if code == 0:
        command += ["--model", place]
    else:
        leave_out("model 256M", "its checkpoint could not be made, so the demo model is measured: " + (output.strip().splitlines() or [""])[-1][-200:])
    code, output = run("bench model", command + (["--runs", "1", "--max-tokens", "4"] if TINY else []), 60)
    try:
        record["model"] = first_object(output)
        say("model: " + json.dumps(record["model"].get("rates", record["model"]))[:400])
    except ValueError:
        say(f"model: exit {code}: {output.strip()[-300:]}")
        return code is None
    return True


def sanitizer():
    """A few cases under the tool that watches memory."""
    if not shutil.which("compute-sanitizer"):
        leave_out("compute-sanitizer", "it is not here")
        return True
    green = True
    for op in ("norm", "matmul", "attention"):
        if ONLY and op not in ONLY:
            continue
        command = ["compute-sanitizer", "--error-exitcode", "9", os.path.join(BIN, "cuda"), f"gpu::{op}::"]
        code, _ = run(f"compute-sanitizer {op}", command, 30, {} if TINY else {"OCELLI_CASE": "random"})
        say(f"compute-sanitizer {op}: exit {code}")
        green &= code in (0, 124, None)
    return green


def main():
    os.makedirs(OUT, exist_ok=True)
    os.environ["OCELLI_KERNEL_LOG"] = KERNELS
    write()
    if record["limited"]:
        say("NOT A WHOLE RUN: " + ", ".join(f"{name}={value}" for name, value in record["limited"].items()))
    machine()
    if "OCELLI_NVRTC" not in os.environ and nvrtc():
        os.environ["OCELLI_NVRTC"] = nvrtc()
    green = True
    if CUBINS:
        green &= note(test("cuda", "every_kernel_loads_on_a_gpu", 60))
    green &= chains()
    green &= conformance("cuda", "gpu::", 110)
    green &= conformance("golden", "on_a_gpu", 90)
    kernels()
    green &= sanitizer()
    if not ONLY or "model" in ONLY:
        green &= model()
    wgpu = bench("wgpu", ["--only", "square"], 40) if not ONLY or "wgpu" in ONLY else None
    if wgpu:
        record["wgpu"] = wgpu
        say(f"wgpu: {wgpu['machine'].get('adapter', {}).get('name')}, {len(wgpu['rows'])} rows")
    tell_sources()
    counts = record["conformance"]
    look = f", {counts['look']} to look at" if counts["look"] else ""
    record["complete"] = True
    say(f"{counts['passed']} passed, {counts['failed']} failed, {counts['skipped']} skipped{look}")
    return 0 if green and counts["failed"] == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
