#!/usr/bin/env python3
"""Write what a full-size dry run of published checkpoints needs: their configurations, and the names and shapes of their tensors.

    python tests/golden/checkpoints/make.py PUBLISHED [NAME]...

PUBLISHED is a folder with one folder per checkpoint, OWNER__NAME, that has its small files as published (config.json,
preprocessor_config.json, tokenizer_config.json, ...) and, where known, names.txt: names of tensors with layer numbers folded to N.
Each becomes OWNER__NAME.json here:

    files     file name -> content, all as published but tokenizer_config.json, of which the named tokens are kept
    borrowed  file name -> the checkpoint of the same processor that it is taken from, where the checkpoint's own is not known
    tokens    added tokens and their ids
    tensors   [name, shape] or [name, shape, type]; `{0-3,7}` in a name stands for one tensor for each of these numbers
    type      type of the others
    parameters  elements of all tensors that transformers' model has, each counted once
    refused   of checkpoints that are not run: what the error says; there are no tensors where their names are not known

Names and shapes are those of transformers' model of the configuration, on the meta device, under the names that it saves them by.
"""
import itertools
import json
import re
import sys
from pathlib import Path

import torch
import transformers
from transformers.core_model_loading import revert_weight_conversion

HERE = Path(__file__).resolve().parent
FILES = ["config.json", "preprocessor_config.json", "processor_config.json", "generation_config.json"]
# Checkpoint -> the one whose processor and tokenizer it has, where its own files are not known.
LIKE = {
    "Qwen__Qwen2-VL-2B-Instruct": "Qwen__Qwen2-VL-7B-Instruct",
    "Qwen__Qwen3-VL-2B-Instruct": "Qwen__Qwen3-VL-4B-Instruct",
    "Qwen__Qwen3-VL-8B-Instruct": "Qwen__Qwen3-VL-4B-Instruct",
    "Qwen__Qwen3-VL-32B-Instruct": "Qwen__Qwen3-VL-4B-Instruct",
    "Qwen__Qwen3-VL-30B-A3B-Instruct": "Qwen__Qwen3-VL-4B-Instruct",
    "Qwen__Qwen3-VL-235B-A22B": "Qwen__Qwen3-VL-4B-Instruct",
    "Qwen__Qwen3.5-27B": "Qwen__Qwen3.5-0.8B",
    "Qwen__Qwen3.5-35B-A3B": "Qwen__Qwen3.5-0.8B",
    "Qwen__Qwen3-32B-FP8": "Qwen__Qwen3-VL-4B-Instruct",
    "google__gemma-3-27b-it": "google__gemma-3-4b-it",
    "google__medgemma-27b-it": "google__gemma-3-4b-it",
    "google__gemma-4-26B-A4B": "google__gemma-4-E2B-it",
    "google__gemma-4-E4B-it": "google__gemma-4-E2B-it",
    "openbmb__MiniCPM-V-4.6-AWQ": "openbmb__MiniCPM-V-4.6",
    "Qwen__Qwen2-VL-7B-Instruct-AWQ": "Qwen__Qwen2-VL-2B-Instruct-AWQ",
    "nvidia__Qwen3.6-27B-NVFP4": "Qwen__Qwen3.5-0.8B",
    "nvidia__Qwen3.6-35B-A3B-NVFP4": "Qwen__Qwen3.5-0.8B",
    "nvidia__Gemma-4-26B-A4B-NVFP4": "google__gemma-4-E2B-it",
    "nvidia__Gemma-4-31B-IT-NVFP4": "google__gemma-4-E2B-it",
}
# Values that the files do not have, as published elsewhere, or as the reference class has them where nobody says otherwise.
SQUARE = {"do_normalize": True, "do_rescale": True, "do_resize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3,
          "rescale_factor": 1 / 255, "image_processor_type": "SiglipImageProcessor", "size": {"height": 384, "width": 384}}
BY_HAND = {
    "google__siglip-so400m-patch14-384": {"preprocessor_config.json": SQUARE},
    "meta-llama__Llama-4-Scout-17B-16E-Instruct": {"preprocessor_config.json": {"image_processor_type": "Llama4ImageProcessor"}},
    "meta-llama__Llama-4-Maverick-17B-128E-Instruct-FP8": {"preprocessor_config.json": {"image_processor_type": "Llama4ImageProcessor"}},
    "LiquidAI__LFM2.5-VL-1.6B": {"preprocessor_config.json": {"image_processor_type": "Lfm2VlImageProcessorFast"}},
}
# Ids of tokens, by the beginning of a checkpoint's name: some files have none, and some come from tests with other numbers.
# MiniCPM's marks of slices have other numbers here than published.
QWEN = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|object_ref_start|>", "<|object_ref_end|>", "<|box_start|>", "<|box_end|>",
        "<|quad_start|>", "<|quad_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>", "<|image_pad|>", "<|video_pad|>"]
TOKENS = {
    "Qwen__Qwen2-VL": {text: 151643 + i for i, text in enumerate(QWEN)},
    "llava-hf": {"<unk>": 0, "<s>": 1, "</s>": 2, "<image>": 32000, "<pad>": 32001},
    "google__gemma-3": {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<start_of_turn>": 105, "<end_of_turn>": 106,
                        "<start_of_image>": 255999, "<end_of_image>": 256000, "<image_soft_token>": 262144},
    "openbmb__MiniCPM-V-4.6": {text: 248044 + i for i, text in enumerate(QWEN)} | {
        "<image>": 248080, "</image>": 248081, "<slice>": 248082, "</slice>": 248083, "<image_id>": 248084, "</image_id>": 248085},
    "LiquidAI": {"<|pad|>": 0, "<|startoftext|>": 1, "<|im_start|>": 6, "<|im_end|>": 7, "<image>": 396, "<|img_row_1_col_1|>": 397,
                 "<|img_thumbnail|>": 497, "<|image_start|>": 498, "<|image_end|>": 499},
    "google__siglip": {"</s>": 1, "<unk>": 2},
    "meta-llama__Llama-4": {"<|begin_of_text|>": 200000, "<|end_of_text|>": 200001, "<|header_start|>": 200005, "<|header_end|>": 200006,
                            "<|eot|>": 200008, "<|finetune_right_pad|>": 200018, "<|image_start|>": 200080, "<|image_end|>": 200081,
                            "<|tile_x_separator|>": 200084, "<|tile_y_separator|>": 200085, "<|image|>": 200090, "<|patch|>": 200092},
}
TOKENS["google__gemma-4"] = {"<pad>": 0, "<eos>": 1, "<bos>": 2, "<unk>": 3, "<turn|>": 106, "<|image>": 255999, "<|audio>": 256000,
                             "<|image|>": 258880, "<|audio|>": 258881, "<image|>": 258882, "<audio|>": 258883, "<|video|>": 258884}
TOKENS["deepseek-ai__DeepSeek-OCR-2"] = {"<\uff5cbegin\u2581of\u2581sentence\uff5c>": 0, "<\uff5cend\u2581of\u2581sentence\uff5c>": 1,
                                         "<\uff5c\u2581pad\u2581\uff5c>": 2, "<image>": 128815}
TOKENS["google__medgemma"] = TOKENS["google__gemma-3"]
TOKENS["nvidia__Gemma-4"] = TOKENS["google__gemma-4"]
TOKENS["microsoft__Florence-2"] = {"<s>": 0, "<pad>": 1, "</s>": 2, "<unk>": 3, "<mask>": 50264}
# Checkpoints whose configuration transformers does not read: what it reads in place of it.
SPELLED = {
    "deepseek-ai__DeepSeek-OCR-2": lambda old: transformers.DeepseekOcr2Config(
        architectures=["DeepseekOcr2ForConditionalGeneration"],
        vision_config={"sam_config": {}, "encoder_config": {"hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
                                                            "num_attention_heads": 14, "num_key_value_heads": 2}},
        text_config={key: value for key, value in old["language_config"].items() if key in (
            "hidden_size", "intermediate_size", "max_position_embeddings", "moe_intermediate_size", "n_routed_experts", "n_shared_experts",
            "num_attention_heads", "num_experts_per_tok", "num_hidden_layers", "num_key_value_heads", "vocab_size")}
        | {"mlp_layer_types": ["dense"] + ["sparse"] * (old["language_config"]["num_hidden_layers"] - 1)}),
}


def davit(old):
    """The tower's configuration of Microsoft's Florence-2 as transformers spells it."""
    same = ("depths", "drop_path_rate", "num_groups", "num_heads", "patch_padding", "patch_prenorm", "patch_size", "patch_stride",
            "projection_dim", "window_size")
    return {key: old[key] for key in same} | {
        "embed_dim": old["dim_embed"], "max_position_embeddings": old["image_pos_embed"]["max_pos_embeddings"],
        "max_temporal_embeddings": old["visual_temporal_embedding"]["max_temporal_embeddings"]}


def florence(old):
    text = {key: value for key, value in old["text_config"].items() if key != "model_type"}
    return transformers.Florence2Config(architectures=["Florence2ForConditionalGeneration"], vision_config=davit(old["vision_config"]),
                                        text_config=text | {"model_type": "bart"})


SPELLED |= {"microsoft__Florence-2-base": florence, "microsoft__Florence-2-large": florence}


def of_microsoft(shapes):
    """Names and shapes of transformers' Florence-2 as Microsoft's files have them."""
    out = {}
    for name, shape in shapes.items():
        name = name.removeprefix("model.")
        attention = "window_attn" if "spatial_block" in name else "channel_attn"
        for old, new in [("language_model.", "language_model.model."), ("multi_modal_projector.", ""),
                         ("image_position_embed", "image_pos_embed"), ("image_projection.weight", "image_projection"),
                         ("_attn.qkv", "_attn.fn.qkv"), ("_attn.proj", "_attn.fn.proj"), (".conv.", ".proj."), (".conv1.", ".conv1.fn.dw."),
                         (".conv2.", ".conv2.fn.dw."), (".norm1.", f".{attention}.norm."), (".norm2.", ".ffn.norm."),
                         (".ffn.fc", ".ffn.fn.net.fc")]:
            name = name.replace(old, new)
        out[name] = shape[::-1] if name == "image_projection" else shape
    out["language_model.final_logits_bias"] = [1, out["language_model.model.shared.weight"][0]]
    return out


# Checkpoints whose model_type is that of a supported family and which are not run, and what is said of them.
REFUSED = {
    "deepseek-ai__DeepSeek-OCR": "vision_config.model_name: expected deepencoderv2, found `deeplip_b_l`",
    "deepseek-ai__deepseek-vl2-tiny": "vision_config.model_name: expected deepencoderv2, found `siglip_so400m_patch14_384`",
    "liuhaotian__llava-v1.5-7b": "mm_vision_tower: the tower is in another checkpoint",
    "Qwen__Qwen3-VL-Embedding-8B": "`lm_head.weight`",
}
TYPES = {"bfloat16": "BF16", "float16": "F16", "float32": "F32"}


def read(folder, name):
    path = folder / name
    return json.loads(path.read_text()) if path.exists() else None


def tokens(config):
    """Added tokens with their ids, and the fields that name tokens."""
    added = {token["content"]: int(id) for id, token in config.get("added_tokens_decoder", {}).items()}
    named = {key: value for key, value in config.items()
             if key.endswith("_token") or key in ("extra_special_tokens", "model_specific_special_tokens", "processor_class", "tokenizer_class")}
    return added, named


def meta(config):
    """transformers' model without weights."""
    cls = getattr(transformers, config.architectures[0])
    with torch.device("meta"):
        return cls._from_config(config)


def saved(model, layout):
    """Names and shapes as files have them; tied tensors once."""
    state = dict(model.state_dict())
    tied = getattr(model, "all_tied_weights_keys", None) or {}
    for name in tied:
        state.pop(name, None)
    state = revert_weight_conversion(model, state)
    rename = lambda name: next((to + name[len(old):] for old, to in layout if name.startswith(old)), name)
    return {rename(name): list(tensor.shape) for name, tensor in state.items()}


def block_scales(config, shapes):
    """Tensors of files with FP8 weights in blocks: the type of each weight, and its scales."""
    quant = config["quantization_config"]
    rows, cols = quant["weight_block_size"]
    skipped = (quant.get("modules_to_not_convert") or []) + ["lm_head", "embed_tokens", "norm", "visual", "gate.weight"]
    out = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in skipped):
            out[name] = (shape, "F8_E4M3")
            out[name + "_scale_inv"] = ([-(-shape[0] // rows), -(-shape[1] // cols)], None)
        else:
            out[name] = (shape, None)
    return out


def packed(config, shapes):
    """Tensors of AutoAWQ's files: eight columns of 4 bits in an integer."""
    quant = config["quantization_config"]
    skipped = (quant.get("modules_to_not_convert") or []) + ["lm_head", "embed_tokens", "norm", "visual", "vision_tower", "merger"]
    out = {}
    for name, shape in shapes.items():
        if len(shape) == 2 and name.endswith(".weight") and not any(part in name for part in skipped):
            (n, k), module = shape, name.removesuffix("weight")
            groups = k // quant["group_size"]
            out[module + "qweight"] = ([k, n // 8], "I32")
            out[module + "qzeros"] = ([groups, n // 8], "I32")
            out[module + "scales"] = ([groups, n], "F16")
        else:
            out[name] = (shape, None)
    return out


def experts(config, shapes):
    """Tensors of compressed-tensors' files whose experts alone are FP8, one matrix each, with a scale for each row."""
    out = {}
    for name, shape in shapes.items():
        if not name.endswith((".experts.gate_up_proj", ".experts.down_proj")):
            out[name] = (shape, None)
            continue
        at, last = name.rsplit(".", 1)
        count, k, n = shape
        for part, rows in ([("gate_proj", n // 2), ("up_proj", n // 2)] if last == "gate_up_proj" else [("down_proj", n)]):
            for expert in range(count):
                out[f"{at}.{expert}.{part}.weight"] = ([rows, k], "F8_E4M3")
                out[f"{at}.{expert}.{part}.weight_scale"] = ([rows, 1], None)
    return out


def apart(shapes):
    """Experts one by one, as NVIDIA's exporter writes those that it quantizes."""
    out = {}
    for name, shape in shapes.items():
        if ".experts." not in name or len(shape) != 3:
            out[name] = shape
            continue
        above, last = name.rsplit(".", 1)
        count, n, k = shape
        names = {"gate_up_proj": [("gate_proj", n // 2), ("up_proj", n // 2)], "down_proj": [("down_proj", n)]}[last]
        out |= {f"{above}.{expert}.{one}.weight": [rows, k] for expert in range(count) for one, rows in names}
    return out


def modelopt(config, shapes):
    """Tensors of NVIDIA's files: FP8 with one scale, or NVFP4, by the lists of `config`."""
    quant = config["quantization_config"]
    shapes = apart(shapes)
    bits = {target: group["weights"]["num_bits"] for group in quant["config_groups"].values() for target in group["targets"]}
    ignored = [re.compile(re.escape(pattern).replace(r"\*", ".*") + "$") for pattern in quant["ignore"]]
    out = {}
    for name, shape in shapes.items():
        module = name.removesuffix(".weight")
        # Those that the class "Linear" stands for, less embeddings and norms.
        linear = len(shape) == 2 and module != name and "embed" not in name and not any(ignore.match(module) for ignore in ignored)
        of_all = re.sub(r"(\.experts)\.\d+\..*", r"\1", module)
        found = bits.get(module, bits.get(of_all, bits.get("Linear") if linear else None))
        if found is None or any(ignore.match(module) for ignore in ignored):
            out[name] = (shape, None)
            continue
        n, k = shape
        if found == 8:
            out |= {name: (shape, "F8_E4M3"), f"{module}.weight_scale": ([], "F32"), f"{module}.input_scale": ([], "F32")}
        else:
            out |= {name: ([n, k // 2], "U8"), f"{module}.weight_scale": ([n, k // 16], "F8_E4M3"),
                    f"{module}.weight_scale_2": ([], "F32"), f"{module}.input_scale": ([], "F32")}
    return out


def ranges(numbers):
    numbers = sorted(numbers)
    runs = []
    for n in numbers:
        if runs and runs[-1][1] == n - 1:
            runs[-1][1] = n
        else:
            runs.append([n, n])
    return "{" + ",".join(f"{a}-{b}" if a != b else f"{a}" for a, b in runs) + "}"


def folded(tensors):
    """Rows of names with their numbers folded, in the order of first names."""
    groups = {}
    for name, (shape, kind) in tensors.items():
        parts = re.split(r"(?<=\.)(\d+)(?=\.)", name)
        key = (tuple(parts[::2]), tuple(shape), kind)
        groups.setdefault(key, []).append(tuple(map(int, parts[1::2])))
    rows = []
    for (texts, shape, kind), found in groups.items():
        axes = [sorted(set(axis)) for axis in zip(*found)]
        whole = len(found) == len(list(itertools.product(*axes)))
        for values in ([axes] if whole else [[[n] for n in one] for one in found]):
            name = texts[0] + "".join(ranges(v) + text for v, text in zip(values, texts[1:]))
            rows.append([name, list(shape)] + ([kind] if kind else []))
    return rows


def fold(text):
    return re.sub(r"(?<=\.)\d+(?=\.)", "N", text)


def known(folder):
    """Names of names.txt."""
    lines = (folder / "names.txt").read_text().splitlines()
    return {line.split()[-1] for line in lines if line.strip() and not line.startswith("#")}


def compare(name, folder, tensors):
    """Says how the names differ from those that are known."""
    path = folder / "names.txt"
    if not path.exists():
        return
    ours = {fold(t) for t in tensors}
    theirs = known(folder)
    odd = [f"only published: {sorted(theirs - ours)[:6]}" if theirs - ours else "",
           f"only here: {sorted(ours - theirs)[:6]}" if ours - theirs else ""]
    print(f"  {name}: names.txt", *(odd if any(odd) else ["agrees"]), file=sys.stderr)


def make(folder, layouts):
    name = folder.name
    config = read(folder, "config.json")
    like = folder.parent / LIKE[name] if name in LIKE else None
    out = {"checkpoint": name.replace("__", "/"), "files": {}, "borrowed": {}}
    for file in FILES + ["tokenizer_config.json"]:
        trimmed = file.replace(".json", ".trimmed.json")
        content = read(folder, file) or read(folder, trimmed)
        if content is None and like is not None and file not in ("config.json", "generation_config.json"):
            content = read(like, file) or read(like, trimmed)
            if content is not None:
                out["borrowed"][file] = like.name.replace("__", "/")
        content = content or BY_HAND.get(name, {}).get(file)
        if content is None:
            continue
        if file == "tokenizer_config.json":
            out["tokens"], content = tokens(content)
        content.pop("chat_template", None)
        out["files"][file] = content
    out["tokens"] = next((tokens for start, tokens in TOKENS.items() if name.startswith(start)), out.get("tokens", {}))
    kind = config.get("dtype") or config.get("torch_dtype") or (config.get("text_config") or {}).get("dtype") or (
        config.get("text_config") or {}).get("torch_dtype") or "bfloat16"
    out["type"] = TYPES[kind]
    if name in REFUSED:
        out["refused"] = REFUSED[name]
    if name in REFUSED and not (folder / "names.txt").exists():
        return out | {"parameters": 0, "tensors": []}
    parsed = SPELLED[name](config) if name in SPELLED else transformers.AutoConfig.from_pretrained(folder)
    model = meta(parsed)
    shapes = saved(model, layouts.get(config["model_type"], []))
    compare(name, folder, shapes)
    if (folder / "names.txt").exists():
        # Those that are published: an embedding model has no head.
        shapes = {tensor: shape for tensor, shape in shapes.items() if fold(tensor) in known(folder)}
    out["parameters"] = sum(torch.Size(shape).numel() for shape in shapes.values())
    if "dim_embed" in config.get("vision_config", {}):
        shapes = of_microsoft(shapes)
    quant = config.get("quantization_config", {})
    if quant.get("quant_method") == "fp8":
        tensors = block_scales(config, shapes)
    elif quant.get("quant_method") == "awq":
        tensors = packed(config, shapes)
    elif quant.get("quant_method") == "compressed-tensors":
        tensors = experts(config, shapes)
    elif quant.get("quant_method") == "modelopt":
        tensors = modelopt(config, shapes)
    else:
        tensors = {tensor: (shape, None) for tensor, shape in shapes.items()}
    out["tensors"] = folded(tensors)
    return out


def write(path, out):
    """One line for each file and tensor."""
    dump = lambda value: json.dumps(value, ensure_ascii=False)
    lines = []
    for key, value in out.items():
        if key == "files":
            rows = ",\n".join(f"  {dump(file)}: {dump(content)}" for file, content in value.items())
            lines.append(f' "files": {{\n{rows}\n }}')
        elif key == "tensors":
            rows = ",\n".join(f"  {dump(row)}" for row in value)
            lines.append(f' "tensors": [\n{rows}\n ]')
        else:
            lines.append(f" {dump(key)}: {dump(value)}")
    path.write_text("{\n" + ",\n".join(lines) + "\n}\n")


def main():
    published = Path(sys.argv[1])
    names = sys.argv[2:] or sorted(path.stem for path in HERE.glob("*.json"))
    hub = json.loads((HERE.parent / "published.json").read_text())
    layouts = {family: entry["layouts"]["hub"] for family, entry in hub.items()}
    for name in names:
        try:
            out = make(published / name, layouts)
        except Exception as error:
            print(f"{name}: {type(error).__name__}: {str(error)[:300]}", file=sys.stderr)
            continue
        write(HERE / f"{name}.json", out)
        print(f"{name}: {len(out['tensors'])} rows, {out['parameters'] / 1e9:.2f} G, {(HERE / (name + '.json')).stat().st_size} bytes", file=sys.stderr)


main()
