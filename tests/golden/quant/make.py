"""Writes round.safetensors: weights rounded and packed by compressed-tensors (0.20.0), for the encoder's test.

Usage: python make.py OUT_DIR        needs torch, safetensors, compressed-tensors

The folders ct_* beside it were written by llm-compressor 0.14 with compressed-tensors 0.20 from random weights
(`model.safetensors`, module `proj`); their `golden.safetensors` hold inputs x, the outputs y = x W^T in f64 rounded to
f32, and rows of the dequantized weight. The FP8 cases `ct_fp8_*` are the presets FP8_DYNAMIC (a scale a row), FP8 (one scale)
and FP8_BLOCK (blocks of 128 x 128); `fp8_block128_*` are blocks as DeepSeek's `weight_dequant` reads them: random weights over
max|block| / 448, cast by torch, with scales of F32 or rounded up to powers of two (ue8m0), one with a partial block of rows.

The other folders were written by their own libraries from random weights: AutoAWQ 0.2.9, GPTQModel 7.7.0, llm-compressor 0.14,
bitsandbytes 0.50.2, torchao 0.18.0, optimum-quanto 0.2.7, hqq 0.2.8 and mlx 0.32.4. Their `golden.safetensors` hold some rows as the library
dequantizes them (`rows`, `w_deq`), and of every row the sum and the sum of magnitudes.
"""

import sys

import torch
from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32
from compressed_tensors.quantization import QuantizationArgs
from compressed_tensors.quantization.lifecycle.forward import quantize
from compressed_tensors.quantization.utils import calculate_qparams
from safetensors.torch import save_file

torch.manual_seed(0)
n, k = 22, 96
w = torch.randn(n, k) * torch.rand(n, 1)
w[3, 32:64] *= 100
w[4, :32] = w[4, :32].abs()
out = {"w": w}
for bits in (4, 8):
    for group in (32, 0):
        for symmetric in (True, False):
            args = QuantizationArgs(
                num_bits=bits,
                type="int",
                symmetric=symmetric,
                strategy="group" if group else "channel",
                group_size=group or None,
            )
            blocks = w.reshape(n, -1, group or k)
            scale, zero = calculate_qparams(blocks.amin(-1), blocks.amax(-1), args)
            codes = quantize(w, scale, zero, args, dtype=torch.int8)
            name = f"int{bits}{f'g{group}' if group else 'row'}{'' if symmetric else 'z'}.f32"
            out[f"{name}/packed"] = pack_to_int32(codes, bits)
            out[f"{name}/scales"] = scale.contiguous()
            if not symmetric:
                out[f"{name}/zeros"] = pack_to_int32(zero.to(torch.int8), bits, packed_dim=0)
save_file(out, f"{sys.argv[1]}/round.safetensors")
