"""What `ocelli quantize` writes in MLX's and in compressed-tensors' layout, read by those packages: the weights that it rounded to."""

import json
import os
import subprocess

import numpy as np
import pytest
from conftest import GOLDEN

MODEL = GOLDEN / "llama"
E2M1 = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6, 0, -0.5, -1, -1.5, -2, -3, -4, -6], np.float32)


def tensors(path):
    """The tensors of a safetensors file: type, shape, bytes."""
    data = path.read_bytes()
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    header.pop("__metadata__", None)
    at = 8 + length
    return {
        name: (of["dtype"], of["shape"], data[at + of["data_offsets"][0] : at + of["data_offsets"][1]])
        for name, of in header.items()
    }


def floats(entry):
    kind, shape, data = entry
    if kind == "BF16":
        values = (np.frombuffer(data, np.uint16).astype(np.uint32) << 16).view(np.float32)
    else:
        values = np.frombuffer(data, {"F32": np.float32, "F16": np.float16}[kind]).astype(np.float32)
    return values.reshape(shape)


def e4m3(data):
    code = np.frombuffer(data, np.uint8).astype(np.int32)
    exponent, mantissa = code >> 3 & 15, code & 7
    value = np.where(exponent > 0, (8 + mantissa) * 2.0 ** (exponent - 10), mantissa * 2.0**-9)
    return np.where(code & 128, -value, value).astype(np.float32)


def quantized(command, folder, format, layout, *more):
    """A copy of the golden Llama, and the modules that it has quantized."""
    out = folder / f"{format}-{layout}"
    command("quantize", MODEL, "--out", out, "--format", format, "--layout", layout, *more)
    return out, tensors(out / "model.safetensors")


def fields(data, bits):
    """Codes of words or bytes, low bits first."""
    words = np.frombuffer(data, np.uint8)
    return words if bits == 8 else np.stack([words & 15, words >> 4], -1).reshape(-1)


@pytest.mark.parametrize("format, group, bits, mode", [
    ("int4", 32, 4, "affine"),
    ("int8", 64, 8, "affine"),
    ("mxfp4", 32, 4, "mxfp4"),
    ("nvfp4", 16, 4, "nvfp4"),
    ("fp8", 32, 8, "mxfp8"),
])
def test_mlx_reads_what_was_rounded(command, tmp_path, format, group, bits, mode):
    mx = pytest.importorskip("mlx.core")
    more = ["--group", str(group), "--scales", "f32"] if mode == "affine" else []
    out, written = quantized(command, tmp_path, format, "mlx", *more)
    config = json.loads((out / "config.json").read_text())["quantization"]
    assert (config["bits"], config["group_size"], config["mode"]) == (bits, group, mode)
    loaded = mx.load(str(out / "model.safetensors"))
    modules = [name[: -len(".scales")] for name in written if name.endswith("_proj.scales")]
    assert len(modules) >= 14
    for module in modules:
        weight, scales = loaded[f"{module}.weight"], loaded[f"{module}.scales"]
        biases = loaded.get(f"{module}.biases")
        got = mx.dequantize(weight, scales, biases, group_size=group, bits=bits, mode=mode, dtype=mx.float32)
        got = np.array(got.astype(mx.float32))
        n, k = got.shape
        codes = fields(written[f"{module}.weight"][2], bits).reshape(n, k)
        if mode == "affine":
            scale, offset = floats(written[f"{module}.scales"]), floats(written[f"{module}.biases"])
            want = codes.astype(np.float32) * scale.repeat(group, 1) + offset.repeat(group, 1)
        else:
            raw = written[f"{module}.scales"][2]
            power = 2.0 ** (np.frombuffer(raw, np.uint8).astype(np.float32) - 127)
            scale = (e4m3(raw) if mode == "nvfp4" else power).reshape(n, -1)
            value = e4m3(codes.tobytes()).reshape(n, k) if bits == 8 else E2M1[codes]
            want = value * scale.repeat(group, 1)
        # A product of up to twice the largest weight and a sum, both rounded to the type of the scales.
        limit = 3 * 2.0**-24 * np.abs(want).max() if mode == "affine" else 0.0
        assert np.abs(got - want).max() <= limit, module


# Transformers and compressed-tensors want torch, which is several gigabytes: an interpreter that has them may be named.
TORCH = os.environ.get("OCELLI_TORCH_PYTHON")
LOGITS = """
import sys, json, torch
from transformers import AutoModelForCausalLM
from transformers.utils.quantization_config import CompressedTensorsConfig
more = {} if sys.argv[2] == "plain" else {"quantization_config": CompressedTensorsConfig(run_compressed=False)}
model = AutoModelForCausalLM.from_pretrained(sys.argv[1], dtype=torch.float32, **more).eval()
with torch.no_grad():
    logits = model(torch.tensor([json.loads(sys.argv[3])])).logits[0]
print(json.dumps(logits.tolist()))
"""


@pytest.mark.skipif(not TORCH, reason="OCELLI_TORCH_PYTHON names no interpreter with transformers and compressed-tensors")
# Of 4-bit integers transformers builds no packed table of tokens, and of NVFP4 it multiplies scales in bfloat16.
@pytest.mark.parametrize("format", ["int8", "fp8", "mxfp4"])
def test_transformers_reads_what_was_rounded(command, tmp_path, format):
    out, _ = quantized(command, tmp_path, format, "compressed-tensors", "--scales", "f32")
    ids = [1, 17, 4, 31, 8, 22, 5]
    run = [TORCH, "-c", LOGITS, str(out), "compressed", json.dumps(ids)]
    done = subprocess.run(run, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    logits = np.array(json.loads(done.stdout.splitlines()[-1]), np.float32)
    reference = tmp_path / "reference"
    reference.mkdir()
    data = logits.tobytes() + np.array(ids, np.int32).tobytes()
    header = json.dumps({
        "logits": {"dtype": "F32", "shape": list(logits.shape), "data_offsets": [0, logits.nbytes]},
        "input_ids": {"dtype": "I32", "shape": [len(ids)], "data_offsets": [logits.nbytes, len(data)]},
    }).encode()
    header += b" " * (-len(header) % 8)
    (reference / "golden.safetensors").write_bytes(len(header).to_bytes(8, "little") + header + data)
    command("verify", "--model", out, "--reference", reference)
