#!/usr/bin/env python3
"""Write a reference directory for any vision-language checkpoint: what Hugging Face transformers computes with it.

    python tests/golden/make.py --model DIR --out REFERENCE [--image FILE]... [--prompt TEXT]
    ocelli verify --model DIR --reference REFERENCE

The directory gets inputs.json (the cases: pictures, messages, prompt, token ids, greedy tokens), golden.safetensors
(tensors named `<case>.<key>`, float32 or int64: pixels, tower, connector, first and last decoder layer, logits, greedy
tokens) and images/.  The reference runs in float32 on the CPU with eager attention and without stop tokens.  Then the
checkpoint is loaded once more in bfloat16, and how far its stages and the logits of the same greedy tokens are from
those of float32 is stored beside them.

Cases: `photo` (first picture), `wide` (second picture), `wide_unsplit` (second picture with do_image_splitting=False,
where the image processor has that option), `two` (both) and `text` (none).  Without --image two pictures are drawn.
--like DIR takes the cases of another reference directory instead; --compare DIR reports how far the new tensors are
from those of DIR and fails above 2e-4 (drifts: above twice or below half).  --add-drift DIR runs the cases of DIR with its pixels,
compares in this way and writes nothing but the drifts to it.

Needs torch, torchvision, transformers 5 and pillow; a processor may ask for more (num2words, sentencepiece).
"""
import argparse
import json
import os
import shutil
import sys
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import torch
import transformers
from PIL import Image, ImageDraw

from levels import load_golden, save_golden
from reference import LAST, SPARE, drift, greedy

TOWERS = ("model.vision_model", "model.vision_tower", "model.visual", "vision_model", "vision_tower", "visual")
DECODERS = ("model.text_model", "model.language_model", "language_model.model", "language_model", "model")


def arguments():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--model", required=True, help="checkpoint folder, or a name on the hub")
    ap.add_argument("--out", type=Path, help="folder to write to")
    ap.add_argument("--image", action="append", type=Path, default=[], help="a picture; the first two are used")
    ap.add_argument("--prompt", default="Describe the picture in detail.", help="question about the pictures")
    ap.add_argument("--tokens", type=int, default=24, help="greedy tokens for each case")
    ap.add_argument("--like", type=Path, help="reference folder whose cases are run again")
    ap.add_argument("--compare", type=Path, help="reference folder to compare the new tensors with")
    ap.add_argument("--add-drift", type=Path, metavar="DIR", help="reference folder that gets the drifts of its own cases")
    ap.add_argument("--processor", action="append", default=[], metavar="KEY=VALUE",
                    help="option of the image processor for every case (VALUE is JSON or text)")
    args = ap.parse_args()
    if (args.out is None) == (args.add_drift is None):
        ap.error("either --out or --add-drift is needed")
    if args.add_drift:
        args.like = args.compare = args.add_drift
    return args


def draw(folder):
    """Two pictures with smooth and sharp parts, one square and one with odd sides."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, (w, h) in {"square": (384, 384), "wide": (491, 327)}.items():
        img = Image.merge("RGB", [Image.linear_gradient("L").rotate(90 * i).resize((w, h)) for i in range(3)])
        pen = ImageDraw.Draw(img)
        for i in range(12):
            x, y = (i * 97) % w, (i * 61) % h
            color = ((i * 83) % 256, (i * 151) % 256, (i * 199) % 256)
            (pen.ellipse if i % 2 else pen.rectangle)((x, y, x + w // 7, y + h // 5), fill=color)
        img.save(folder / f"{name}_{w}x{h}.png", optimize=True)
    return sorted(folder.glob("*.png"))


def chat(pictures, text):
    return [{"role": "user", "content": [{"type": "image"}] * len(pictures) + [{"type": "text", "text": text}]}]


def default_cases(args, processor, pictures, kwargs):
    first, second = pictures[0].name, pictures[1 % len(pictures)].name

    def case(name, images, text, **more):
        return dict(name=name, images=images, messages=chat(images, text), processor_kwargs={**kwargs, **more})

    cases = [case("photo", [first], args.prompt), case("wide", [second], args.prompt)]
    if hasattr(getattr(processor, "image_processor", None), "do_image_splitting"):
        cases.append(case("wide_unsplit", [second], args.prompt, do_image_splitting=False))
    cases.append(case("two", [first, second], "What is the difference between the two pictures?"))
    cases.append(case("text", [], "Write a short story about a cat."))
    if len(pictures) == 1:
        cases = [c for c in cases if c["name"] not in ("wide", "two")]
    return cases


def find(model, paths, also=None):
    """The first of `paths` that leads to a module (with the attribute `also`)."""
    for path in paths:
        module = model
        for part in path.split("."):
            module = getattr(module, part, None)
        if module is not None and (also is None or hasattr(module, also)):
            return module
    return None


def first_tensor(out):
    if torch.is_tensor(out):
        return out
    hidden = getattr(out, "last_hidden_state", None)
    return hidden if hidden is not None else out[0]


class Taps:
    """While active, keeps what the stages of the model give, under the keys of golden.safetensors."""

    def __init__(self, model):
        self.model, self.found, self.handles = model, {}, []

    def keep(self, key, value):
        self.found.setdefault(key, value.detach().clone())

    def __enter__(self):
        decoder = find(self.model, DECODERS, "layers")
        tower = find(self.model, TOWERS)
        if decoder is None:
            sys.exit(f"error: no decoder layers found in {type(self.model).__name__} under {', '.join(DECODERS)}")
        layers = decoder.layers

        def entry(_module, args, kwargs):
            self.keep("inputs_embeds", args[0] if args else kwargs["hidden_states"])

        def positions(_module, _args, kwargs):
            if kwargs.get("position_ids") is not None:
                self.keep("position_ids", kwargs["position_ids"])

        def output(key):
            return lambda _module, _args, out: self.keep(key, first_tensor(out))

        self.handles = [
            layers[0].register_forward_pre_hook(entry, with_kwargs=True),
            layers[0].register_forward_hook(output("text_layer_first")),
            layers[len(layers) - 1].register_forward_hook(output("text_layer_last")),
            decoder.register_forward_pre_hook(positions, with_kwargs=True),
        ]
        if tower is not None:
            self.handles.append(tower.register_forward_hook(output("vision_last_hidden")))
        self.owner = find(self.model, ("model",), "get_image_features") or self.model
        original = self.owner.get_image_features

        def features(*args, **kwargs):
            out = original(*args, **kwargs)
            rows = getattr(out, "pooler_output", out)
            if isinstance(rows, (list, tuple)):
                rows = torch.cat([r.reshape(-1, r.shape[-1]) for r in rows])
            self.keep("image_features", rows.reshape(-1, rows.shape[-1]))
            for i, deep in enumerate(getattr(out, "deepstack_features", None) or []):
                self.keep(f"deepstack_features_{i}", torch.cat(list(deep)) if isinstance(deep, (list, tuple)) else deep)
            return out

        self.owner.get_image_features = features
        return self

    def __exit__(self, *_):
        for handle in self.handles:
            handle.remove()
        del self.owner.get_image_features


def encode(processor, case, folders):
    """Processor output, the prompt before image tokens are expanded, and the picture files."""
    pictures = []
    for name in case["images"]:
        path = next((f / name for f in folders if (f / name).exists()), None)
        if path is None:
            sys.exit(f"error: case {case['name']}: no picture {name} in {', '.join(map(str, folders))}")
        pictures.append(Image.open(path).convert("RGB"))
    kwargs = dict(case["processor_kwargs"] or {}) or None
    if case["messages"] is None:
        batch = processor(images=pictures or None, text=case["prompt"], return_tensors="pt", **(kwargs or {}))
        return dict(batch), case["prompt"]
    prompt = processor.apply_chat_template(case["messages"], add_generation_prompt=True, tokenize=False)
    left, filled = list(pictures), []
    for message in case["messages"]:
        content = [dict(c, image=left.pop(0)) if c["type"] == "image" else dict(c) for c in message["content"]]
        filled.append(dict(role=message["role"], content=content))
    batch = processor.apply_chat_template(filled, add_generation_prompt=True, tokenize=True, return_dict=True,
                                          return_tensors="pt", processor_kwargs=kwargs)
    return dict(batch), prompt


def run(model, processor, case, folders, count, stored):
    """Tensors of one case, its entry in inputs.json, and what its drift is measured with.

    stored: tensors whose pixels are taken instead of the processor's.
    """
    inputs, prompt = encode(processor, case, folders)
    inputs = {k: v for k, v in inputs.items() if torch.is_tensor(v) and k != "labels"}
    inputs |= {k: stored[f"{case['name']}.{k}"] for k in ("pixel_values",) if f"{case['name']}.{k}" in stored}
    with Taps(model) as taps:
        logits = model(**inputs).logits
    tokens, margins, steps = greedy(model, inputs, count)
    facts = dict(distinct_greedy=len(set(tokens.tolist())), min_margin=round(float(margins.min()), 5),
                 logits_std=round(float(logits[0, -LAST:].std()), 4))
    tensors = dict(inputs)
    mask = inputs.get("pixel_attention_mask")
    if mask is not None and bool((mask == 1).all()):
        facts["pixel_attention_mask"] = f"all ones, shape {list(mask.shape)}"
        del tensors["pixel_attention_mask"]
    for key, value in taps.found.items():
        batched = key in ("inputs_embeds", "text_layer_first", "text_layer_last") and value.ndim == 3
        tensors[key] = value[0] if batched else value
    tensors |= {f"logits_last{LAST}": logits[0, -LAST:], "greedy_ids": tokens, "greedy_margins": margins}
    entry = dict(
        name=case["name"], images=case["images"], messages=case["messages"], processor_kwargs=case["processor_kwargs"],
        prompt=prompt, input_ids=inputs["input_ids"][0].tolist(), model_inputs=sorted(inputs),
        greedy_ids=tokens.tolist(), greedy_text=processor.tokenizer.decode(tokens, skip_special_tokens=False), facts=facts)
    return tensors, entry, (inputs, tensors, tokens, steps)


def plain(tensors):
    """float32 or int64, contiguous, in name order."""
    cast = lambda v: v.to(torch.float32 if v.is_floating_point() else torch.int64).contiguous().clone()
    return {k: cast(v.detach()) for k, v in sorted(tensors.items())}


def is_drift(key):
    return key.endswith(("bf16_drift", "f32_drift", "greedy_drift"))


def compare(new, old):
    """Prints the largest difference of each tensor; True if all are within 2e-4 and integers equal.

    A drift depends on how the processor rounds: the largest may be twice or half of the other. Tensors that one reference
    does not have are fine if inputs.json says the same.
    """
    fine = True
    for key in sorted(set(new) | set(old)):
        if key not in new or key not in old:
            if key.partition(".")[2] in SPARE:
                continue
            fine = False
            print(f"{key}: only in {'the new' if key in new else 'the other'} reference")
        elif new[key].shape != old[key].shape:
            fine = False
            print(f"{key}: shape {list(new[key].shape)}, expected {list(old[key].shape)}")
        elif is_drift(key):
            a, b = float(new[key].max()), float(old[key].max())
            good = a <= 2 * b and b <= 2 * a
            fine &= good
            print(f"{key}: {a:.2e}, the other {b:.2e}{'' if good else ' TOO FAR'}")
        else:
            worst = float((new[key].double() - old[key].double()).abs().max()) if new[key].numel() else 0.0
            good = worst <= (2e-4 if new[key].is_floating_point() else 0)
            fine &= good
            print(f"{key}: {worst:.2e}{'' if good else ' TOO FAR'}")
    return fine


def load(args, dtype):
    return transformers.AutoModelForImageTextToText.from_pretrained(
        args.model, dtype=dtype, attn_implementation="eager").eval()


def write(tensors, folder):
    save_golden(tensors, folder)


def choose_cases(args, processor):
    """The cases, and the folders where their pictures are; pictures are copied to, or drawn in, the new reference."""
    kwargs = {}
    for option in args.processor:
        key, _, value = option.partition("=")
        try:
            kwargs[key] = json.loads(value)
        except json.JSONDecodeError:
            kwargs[key] = value
    if args.like:
        cases = json.loads((args.like / "inputs.json").read_text())["cases"]
        folders = [args.like / "images", args.like.resolve().parent / "images"]
        if args.add_drift:
            return cases, folders
    images = args.out / "images"
    if args.like:
        for name in sorted({name for c in cases for name in c["images"]}):
            found = next((f / name for f in folders if (f / name).exists()), None)
            if found is not None and found.resolve() != (images / name).resolve():
                images.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(found, images / name)
        return cases, [images]
    if not args.image:
        return default_cases(args, processor, draw(images), kwargs), [images]
    images.mkdir(parents=True, exist_ok=True)
    pictures = []
    for path in args.image[:2]:
        target = images / path.name
        if path.resolve() != target.resolve():
            shutil.copyfile(path, target)
        pictures.append(target)
    return default_cases(args, processor, pictures, kwargs), [images]


def main():
    args = arguments()
    torch.set_grad_enabled(False)
    torch.use_deterministic_algorithms(True)
    processor = transformers.AutoProcessor.from_pretrained(args.model)
    cases, folders = choose_cases(args, processor)
    other = load_golden(args.compare) if args.compare else {}

    model = load(args, torch.float32)
    tensors, entries, runs = {}, [], []
    for case in cases:
        count = len(case["greedy_ids"]) if args.add_drift else args.tokens
        more, entry, kept = run(model, processor, case, folders, count, other if args.add_drift else {})
        tensors |= {f"{case['name']}.{k}": v for k, v in more.items()}
        entries.append(entry)
        runs.append((case["name"], kept))
        print(f"{case['name']}: {len(entry['input_ids'])} prompt tokens, answer {entry['greedy_text']!r}", flush=True)
    info = {
        "class": type(model).__name__,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "parameters": sum(p.numel() for p in model.parameters()),
        "image_processor": type(getattr(processor, "image_processor", None)).__name__,
        "cases": entries,
    }
    del model
    model = load(args, torch.bfloat16)
    for name, kept in runs:
        found = drift(model, Taps(model), *kept)
        tensors |= {f"{name}.{k}": v for k, v in found.items()}
        print(f"{name}: in bfloat16 logits move by up to {float(found['greedy_drift'].max()):.2g}", flush=True)

    tensors = plain(tensors)
    drifts = {k: v for k, v in tensors.items() if is_drift(k)}
    if args.add_drift:
        own = {k: v for k, v in other.items() if not is_drift(k)}
        if not compare({k: v for k, v in tensors.items() if k in own}, own):
            sys.exit(f"error: {args.add_drift} is not the reference of {args.model}")
        write(dict(sorted((own | drifts).items())), args.add_drift)
        return
    args.out.mkdir(parents=True, exist_ok=True)
    write(tensors, args.out)
    (args.out / "inputs.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
    if args.compare and not compare(tensors, other):
        sys.exit("error: the new tensors are not those of " + str(args.compare))


if __name__ == "__main__":
    main()
