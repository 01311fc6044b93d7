#!/usr/bin/env python3
"""Build tiny random vision-language models and golden outputs of Hugging Face transformers.

    make_golden.py --out DIR --seed N [--variant public|second] [--weights f32|bf16] [--lean] [--only NAME ...]

The committed families were made with `--seed 1`, some with `--weights bf16 --lean`; see README.md.

For every architecture this writes

    DIR/<name>/            a Hugging Face model directory (float32 safetensors, configs, tokenizer,
                           image processor, chat template), as `save_pretrained` lays it out
    DIR/<name>/inputs.json the cases: image files, messages, rendered prompt, input ids, facts
    DIR/<name>/golden.safetensors
                           the tensors that the reference computed for each case
    DIR/images/*.png       the input pictures
    DIR/manifest.json      sizes, cases, distinct greedy tokens, tolerances measured

Everything is made locally from a seed: weights are drawn from a seeded normal, tokenizers are trained
on the small text below, pictures come from two photos that scikit-learn ships.  The reference runs in
float32 on the CPU with eager attention; how far a run in bfloat16 is from it is stored beside.
"""
import argparse
import collections
import copy
import json
import math
import os
import shutil
import sys
import zlib
from pathlib import Path

os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from sklearn.datasets import load_sample_images
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from levels import save_golden
from reference import SPARE, drift, drift_f32, greedy

torch.set_num_threads(2)
torch.use_deterministic_algorithms(True)
torch.set_grad_enabled(False)
transformers.utils.logging.disable_progress_bar()

NEW_TOKENS = 24  # greedy tokens per case
WEIGHTS = "f32"  # or "bf16": see --weights
MIN_DISTINCT = 8  # fewer distinct greedy tokens than this counts as a collapsed model

# --------------------------------------------------------------------------------------------------
# 1. Tokenizers.  A small byte-pair trainer (ties broken by the pair itself, so the result depends on
#    nothing but the text) and one pipeline per tokenizer family met in real checkpoints.
# --------------------------------------------------------------------------------------------------

CORPUS = """
The picture shows a large red flower with many thin petals in front of dark green leaves.
A photo of an old temple in the mountains, with a curved roof and a small garden before it.
What is in this image? Describe the picture in detail. What colour is the flower? How many people are there?
There are two images. What is the difference between the first image and the second image?
In the first picture we can see a flower; in the second one we see a building made of wood and stone.
Question: what is the weather like? Answer: the sky is blue and the sun is shining over the hills.
You are a helpful assistant. Answer the question of the user with a short sentence, please.
User: Can you tell me what this is? Assistant: Yes, it is a photograph of a garden near the river.
caption en, describe en, ocr, answer en where is the house? detect flower; segment the roof.
Write a short story about a cat and a dog that live in a house with a green door and a yellow window.
The quick brown fox jumps over the lazy dog, while 12 birds and 34 fish watch them from the lake.
Here is the original image and here are some crops to help you see better.
It's not easy to see what they're doing, but we'll try; I've counted 5, 10, 15, 20, 25 and 100 of them.
def read(path): return open(path).read()  # a line of code with (brackets), [lists] and {braces}
Numbers: 0 1 2 3 4 5 6 7 8 9, dates 2024-01-31, prices $4.50, and an e-mail like name@mail.org.
Das Bild zeigt eine Blume. La photo montre un temple. El jardín está cerca del río. 漢字 and émigré café.
Look at the image and list every object: table, chair, lamp, book, cup, plate, knife, fork, spoon, bottle.
The man in the white shirt is holding an umbrella; the woman next to him is riding a bicycle down the street.
A close-up of a bowl of fresh fruit: apples, oranges, bananas, grapes, and a slice of melon.
First think about the shape, then about the size, and then give the final answer in one word.
The train arrives at the station at nine o'clock. The children are playing football in the park.
An airplane is flying above the clouds. A boat is sailing on the water. The bridge crosses the river.
This is a test of the emergency reading system. Nothing else is known about this place at this time.
Please translate the text in the picture, and explain the meaning of the sign on the left side.
Which of the following is true? (A) The roof is red. (B) The roof is grey. (C) There is no roof. (D) None.
""".strip()

# Split patterns of the byte-level families.
GPT2_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
QWEN2_SPLIT = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)
LLAMA3_SPLIT = QWEN2_SPLIT.replace(r"|\p{N}|", r"|\p{N}{1,3}|")
CLIP_SPLIT = r"'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"


def byte_alphabet():
    """The 256 printable stand-ins for bytes that GPT-2 introduced, in code point order."""
    return sorted(pre_tokenizers.ByteLevel.alphabet())


MERGE_FACTOR = 1.0  # set by the variant


def train_bpe(words, budget, joined=lambda a, b: a + b):
    """Merge the most frequent neighbouring pair `budget` times; return the merges in order.

    words: {tuple of symbols: count}.
    """
    words = {tuple(w): c for w, c in words.items()}
    merges = []
    for _ in range(int(budget * MERGE_FACTOR)):
        pairs = collections.Counter()
        for word, count in words.items():
            for pair in zip(word, word[1:]):
                pairs[pair] += count
        if not pairs:
            break
        best, count = min(pairs.items(), key=lambda item: (-item[1], item[0]))
        if count < 2:
            break
        merges.append(best)
        new_words = {}
        for word, c in words.items():
            out, i = [], 0
            while i < len(word):
                if i + 1 < len(word) and (word[i], word[i + 1]) == best:
                    out.append(joined(*best))
                    i += 2
                else:
                    out.append(word[i])
                    i += 1
            new_words[tuple(out)] = new_words.get(tuple(out), 0) + c
        words = new_words
    return merges


def corpus_words(normalizer, pre_tokenizer):
    """Corpus pieces after the pipeline's own normalizer and pre-tokenizer, with counts."""
    counts = collections.Counter()
    for line in CORPUS.split("\n"):
        text = normalizer.normalize_str(line) if normalizer else line
        for piece, _ in pre_tokenizer.pre_tokenize_str(text):
            counts[piece] += 1
    return counts


def words_within(words, alphabet):
    """The words that are written with an alphabet alone; all of them without one."""
    return words if alphabet is None else {w: c for w, c in words.items() if set(w) <= set(alphabet)}


def number(*groups):
    """Vocabulary dict: tokens of all groups in order, first mention wins."""
    vocab = {}
    for group in groups:
        for token in group:
            vocab.setdefault(token, len(vocab))
    return vocab


def special(token):
    return AddedToken(token, special=True, normalized=False)


def bytelevel_tokenizer(split, first=(), last=(), merges=256, digits=False, normalizer=None, add_prefix_space=False, alphabet=None):
    """Byte-level BPE (GPT-2, Qwen2, Llama 3, DeepSeek, Tekken...).  `first`/`last` are special tokens.

    `alphabet`: the bytes that texts may have, where not all 256; merges with others are left out, and so are other bytes of a text.
    """
    steps = []
    if digits:
        steps.append(pre_tokenizers.Digits(individual_digits=True))
    if split == GPT2_SPLIT:
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=add_prefix_space, use_regex=True))
    else:
        steps.append(pre_tokenizers.Split(Regex(split), behavior="isolated", invert=False))
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False))
    pre = pre_tokenizers.Sequence(steps) if len(steps) > 1 else steps[0]
    pairs = train_bpe(words_within(corpus_words(normalizer, pre), alphabet), merges)
    vocab = number(first, alphabet or byte_alphabet(), [a + b for a, b in pairs])
    tok = Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False, byte_fallback=False))
    if normalizer:
        tok.normalizer = normalizer
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([special(t) for t in (*first, *last)])
    return tok


def clip_tokenizer(merges=256, alphabet=None):
    """CLIP's lower-cased BPE with '</w>' word ends; <|endoftext|> has the highest id.  `alphabet` as in `bytelevel_tokenizer`."""
    norm = normalizers.Sequence([normalizers.NFC(), normalizers.Replace(Regex(r"\s+"), " "), normalizers.Lowercase()])
    pre = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(CLIP_SPLIT), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    words = {tuple(w[:-1]) + (w[-1] + "</w>",): c for w, c in words_within(corpus_words(norm, pre), alphabet).items()}
    pairs = train_bpe(words, merges)
    alphabet = alphabet or byte_alphabet()
    vocab = number(
        alphabet,
        [a + "</w>" for a in alphabet],
        [a + b for a, b in pairs],
        ["<|startoftext|>", "<|endoftext|>"],
    )
    tok = Tokenizer(
        models.BPE(
            vocab=vocab,
            merges=pairs,
            continuing_subword_prefix="",
            end_of_word_suffix="</w>",
            fuse_unk=False,
            unk_token="<|endoftext|>",
        )
    )
    tok.normalizer = norm
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([special("<|startoftext|>"), special("<|endoftext|>")])
    tok.post_processor = processors.RobertaProcessing(
        ("<|endoftext|>", vocab["<|endoftext|>"]), ("<|startoftext|>", vocab["<|startoftext|>"]), False, False
    )
    return tok


def metaspace_bpe(first, last, style, merges=256, lower=False):
    """SentencePiece-style BPE with byte fallback.

    style 'llama': the text gets a leading '▁' and is not split; style 'gemma': only ' ' -> '▁'.
    """
    steps = [normalizers.Lowercase()] if lower else []
    if style == "llama":
        steps += [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    else:
        steps += [normalizers.Replace(" ", "▁")]
    norm = normalizers.Sequence(steps) if len(steps) > 1 else steps[0]
    # Train on words that carry their leading '▁'.
    counts = collections.Counter()
    for line in CORPUS.split("\n"):
        text = norm.normalize_str(line)
        for piece in text.replace("▁", "\0▁").split("\0"):
            if piece:
                counts[piece] += 1
    chars = sorted({ch for w in counts for ch in w if ord(ch) < 128 or ch == "▁"})
    counts = {tuple(w): c for w, c in counts.items() if all(ch in chars for ch in w)}
    pairs = train_bpe(counts, merges)
    fallback = [f"<0x{b:02X}>" for b in range(256)]
    vocab = number(first, fallback, [a + b for a, b in pairs], chars)
    tok = Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=True, byte_fallback=True, unk_token="<unk>"))
    tok.normalizer = norm
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    if style == "llama":
        steps.append(decoders.Strip(content=" ", left=1))
    else:
        tok.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous", invert=False)
    tok.decoder = decoders.Sequence(steps)
    tok.add_special_tokens([special(t) for t in (*first, *last)])
    return tok


def unigram_tokenizer(merges=256):
    """T5/SigLIP-style Unigram: lower-cased, Metaspace, '</s>' appended.  Scores are log frequencies."""
    norm = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"[^\w\s]"), ""), normalizers.Replace(Regex(r"\s+"), " "),
         normalizers.Strip()]
    )
    pre = pre_tokenizers.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    counts = corpus_words(norm, pre)
    pieces = collections.Counter()
    for word, c in counts.items():
        for ch in word:
            pieces[ch] += c
    for a, b in train_bpe({tuple(w): c for w, c in counts.items()}, merges):
        pieces[a + b] += sum(c * w.count(a + b) for w, c in counts.items())
    total = sum(pieces.values())
    ranked = sorted(pieces.items(), key=lambda item: (-item[1], item[0]))
    vocab = [("</s>", 0.0), ("<unk>", 0.0)] + [(p, round(math.log(c / total), 6)) for p, c in ranked]
    tok = Tokenizer(models.Unigram(vocab, unk_id=1, byte_fallback=False))
    tok.normalizer = norm
    tok.pre_tokenizer = pre
    tok.decoder = decoders.Metaspace(replacement="▁", prepend_scheme="always", split=True)
    tok.add_special_tokens([special("</s>"), special("<unk>")])
    tok.post_processor = processors.TemplateProcessing(single="$A </s>", pair="$A </s> $B </s>", special_tokens=[("</s>", 0)])
    return tok


def wordpiece_tokenizer(extra=(), merges=320):
    """BERT's lower-cased WordPiece, with [CLS] ... [SEP] around the text."""
    norm = normalizers.BertNormalizer(clean_text=True, handle_chinese_chars=True, strip_accents=None, lowercase=True)
    pre = pre_tokenizers.BertPreTokenizer()
    counts = corpus_words(norm, pre)
    words = {tuple([w[0]] + ["##" + ch for ch in w[1:]]): c for w, c in counts.items()}
    join = lambda a, b: a + b[2:]
    pairs = train_bpe(words, merges, join)
    chars = sorted({s for w in words for s in w})
    first = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    vocab = number(first, chars, [join(a, b) for a, b in pairs], extra)
    tok = Tokenizer(models.WordPiece(vocab, unk_token="[UNK]", continuing_subword_prefix="##", max_input_chars_per_word=100))
    tok.normalizer = norm
    tok.pre_tokenizer = pre
    tok.decoder = decoders.WordPiece(prefix="##")
    tok.add_special_tokens([special(t) for t in (*first, *extra)])
    tok.post_processor = processors.TemplateProcessing(
        single="[CLS]:0 $A:0 [SEP]:0",
        pair="[CLS]:0 $A:0 [SEP]:0 $B:1 [SEP]:1",
        special_tokens=[("[CLS]", vocab["[CLS]"]), ("[SEP]", vocab["[SEP]"])],
    )
    return tok


def with_bos(tok, bos, eos=None):
    """Template post-processor that puts `bos` before (and `eos` after) a text."""
    parts = ([bos] if bos else []) + ["$A"] + ([eos] if eos else [])
    pair = parts + [p.replace("$A", "$B") + (":1" if p == "$A" else "") for p in parts]
    tok.post_processor = processors.TemplateProcessing(
        single=" ".join(parts),
        pair=" ".join(pair),
        special_tokens=[(t, tok.token_to_id(t)) for t in (bos, eos) if t],
    )
    return tok


def wrap(tok, **named):
    """transformers wrapper; keyword names such as image_token become tokenizer attributes."""
    common = {"bos_token", "eos_token", "unk_token", "pad_token", "sep_token", "cls_token", "mask_token"}
    plain = {k: v for k, v in named.items() if k in common or not k.endswith("_token")}
    own = {k: v for k, v in named.items() if k not in plain}
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, extra_special_tokens=own, clean_up_tokenization_spaces=False, **plain
    )


# --------------------------------------------------------------------------------------------------
# 2. Pictures
# --------------------------------------------------------------------------------------------------


class Pictures:
    """Writes each picture once as PNG under DIR/images and gives it back as PIL image, read from there."""

    def __init__(self, root):
        self.dir = Path(root) / "images"
        self.dir.mkdir(parents=True, exist_ok=True)
        data = load_sample_images()
        self.photos = {Path(n).stem: Image.fromarray(a) for n, a in zip(data.filenames, data.images)}

    def get(self, name, crop, size):
        """name: china or flower; crop: box in the photo or None; size: (width, height)."""
        img = self.photos[name]
        tag = ""
        if crop:
            img = img.crop(crop)
            tag = "_c" + "-".join(map(str, crop))
        file = f"{name}{tag}_{size[0]}x{size[1]}.png"
        path = self.dir / file
        if not path.exists():
            img.resize(size, Image.LANCZOS).save(path, optimize=True)
        return file, Image.open(path).convert("RGB")


# --------------------------------------------------------------------------------------------------
# 3. Random weights
# --------------------------------------------------------------------------------------------------


def randomise(model, seed, gain, spec):
    """Give every parameter a seeded value of a sensible scale.

    Each parameter has its own generator, keyed by its name, so that the order of parameters does not
    matter.  Norm weights lie around 1 (around 0 where the norm adds 1 itself), all biases around 0.
    """
    kind = {}
    for mod_name, mod in model.named_modules():
        cls = type(mod).__name__
        for p_name, _ in mod.named_parameters(recurse=False):
            kind[f"{mod_name}.{p_name}" if mod_name else p_name] = (cls, mod)

    def fresh(name, shape):
        gen = torch.Generator().manual_seed((zlib.crc32(name.encode()) + 7919 * seed) % (2**31))
        return torch.randn(shape, generator=gen, dtype=torch.float32)

    own = lambda name: next(((mean, std) for part, mean, std in spec.values if part in name), None)
    stored = set(model.state_dict())
    for name, b in model.named_buffers():
        if own(name) and name in stored:
            mean, std = own(name)
            b.data.copy_((mean + std * fresh(name, b.shape)).to(b.dtype))
    for name, p in model.named_parameters():
        cls, mod = kind[name]
        leaf = name.rsplit(".", 1)[-1]
        r = fresh(name, p.shape)
        if own(name):
            mean, std = own(name)
            value = mean + std * r
        elif leaf == "logit_scale":
            value = torch.full(p.shape, 1.5) + 0.05 * r
        elif leaf == "logit_bias":
            value = torch.full(p.shape, -1.25) + 0.05 * r
        elif "gate" in leaf and p.numel() <= 2:  # tanh gates, zero in fresh models
            value = 0.8 + 0.2 * r
        elif leaf in ("lambda_1", "lambda_2", "layer_scale1", "layer_scale2"):
            value = 0.8 + 0.2 * r
        elif "Norm" in cls and p.ndim == 1:
            if leaf == "weight":
                offset = 0.0 if ("Gemma" in cls and "RMS" in cls) else 1.0
                offset = (spec.norm_offset or {}).get(cls, offset)
                for part, boost in spec.norm_boost.items():
                    offset += boost if part in name else 0.0
                value = offset + 0.2 * r
            else:
                value = 0.1 * r
        elif leaf in ("bias", "in_proj_bias") or (leaf.endswith("_bias") and p.ndim == 1):
            value = 0.1 * r
        elif isinstance(mod, torch.nn.Embedding):
            std = spec.embed_std if p.shape[0] == spec.vocab else 0.5
            value = std * r
        elif isinstance(mod, (torch.nn.Linear, torch.nn.modules.conv._ConvNd, torch.nn.MultiheadAttention)):
            fan_in = p[0].numel()
            value = gain / math.sqrt(fan_in) * r
            if name.endswith("lm_head.weight"):
                value = spec.head_std / math.sqrt(fan_in) * r
        elif p.ndim >= 2 and leaf.endswith(("projection_weight", "gate_up_proj", "down_proj", "proj")):
            fan_in = p.shape[-1] if p.ndim == 3 else p.shape[-2]  # experts: x @ W.T, Gemma 3's projector: x @ W
            value = gain / math.sqrt(fan_in) * r
        else:  # class tokens, position tables, queries, newline vectors
            value = 0.5 * r
        if p.ndim >= 2:
            for part, factor in spec.scales.items():
                value = value * factor if part in name else value
        p.data.copy_(value.to(p.dtype))
    if WEIGHTS == "bf16":  # values that bfloat16 holds, still computed with in float32
        for t in model.state_dict().values():
            if t.dtype == torch.float32:
                t.copy_(t.bfloat16().float())
    # Placeholder tokens must never be the argmax: shrink their output rows.
    head = model.get_output_embeddings()
    if head is not None:
        for token_id in spec.never:
            head.weight.data[token_id] *= 0.02
            if WEIGHTS == "bf16":
                head.weight.data[token_id] = head.weight.data[token_id].bfloat16().float()
    if hasattr(model, "tie_weights"):
        model.tie_weights()


# --------------------------------------------------------------------------------------------------
# 4. Taps: capture intermediate tensors by module path
# --------------------------------------------------------------------------------------------------


def first_tensor(out):
    if torch.is_tensor(out):
        return out
    if hasattr(out, "last_hidden_state") and out.last_hidden_state is not None:
        return out.last_hidden_state
    return out[0]


def resolve(model, path):
    obj = model
    for part in path.split("."):
        obj = obj[int(part)] if part.lstrip("-").isdigit() else getattr(obj, part)
    return obj


class Taps:
    """Context manager: while active, records outputs (and a few inputs) of named modules."""

    def __init__(self, model, spec):
        self.model, self.spec, self.found, self.handles = model, spec, {}, []

    def __enter__(self):
        def keep(key, pick=first_tensor):
            def hook(_m, _args, out):
                t = pick(out).detach().clone()
                # Of towers that are convolutions to the end, as rows.
                self.found.setdefault(key, t.flatten(2).transpose(1, 2) if t.ndim == 4 and key == "vision_last_hidden" else t)
            return hook

        for key, path in self.spec.taps.items():
            self.handles.append(resolve(self.model, path).register_forward_hook(keep(key)))
        if self.spec.layers:
            layers = resolve(self.model, self.spec.layers)

            def first_in(_m, args, kwargs):
                h = args[0] if args else kwargs["hidden_states"]
                self.found.setdefault("inputs_embeds", h.detach().clone())

            self.handles.append(layers[0].register_forward_pre_hook(first_in, with_kwargs=True))
            self.handles.append(layers[0].register_forward_hook(keep("text_layer_first")))
            self.handles.append(layers[len(layers) - 1].register_forward_hook(keep("text_layer_last")))
        if self.spec.positions:
            def pos(_m, _args, kwargs):
                p = kwargs.get("position_ids")
                if p is not None:
                    self.found.setdefault("position_ids", p.detach().clone())

            self.handles.append(resolve(self.model, self.spec.positions).register_forward_pre_hook(pos, with_kwargs=True))
        if self.spec.features:
            owner = resolve(self.model, self.spec.features) if self.spec.features != "." else self.model
            self.owner, self.original = owner, owner.get_image_features

            def wrapped(*args, **kwargs):
                out = self.original(*args, **kwargs)
                feats = self.spec.pooled(out) if self.spec.pooled else getattr(out, "pooler_output", out)
                if isinstance(feats, (list, tuple)):
                    feats = torch.cat([f.reshape(-1, f.shape[-1]) for f in feats], dim=0)
                self.found.setdefault("image_features", feats.reshape(-1, feats.shape[-1]).detach().clone())
                for i, extra in enumerate(getattr(out, "deepstack_features", None) or []):
                    if isinstance(extra, tuple) and isinstance(extra[0], int):  # Granite 4: (layer, features); those of layer 0 are above
                        if extra[0] == 0:
                            continue
                        extra = extra[1]
                    extra = torch.cat(list(extra), dim=0) if isinstance(extra, (list, tuple)) else extra
                    self.found.setdefault(f"deepstack_features_{i}", extra.detach().clone())
                return out

            owner.get_image_features = wrapped
        return self

    def __exit__(self, *exc):
        for h in self.handles:
            h.remove()
        if self.spec.features:
            del self.owner.get_image_features


# --------------------------------------------------------------------------------------------------
# 5. One architecture = one Spec
# --------------------------------------------------------------------------------------------------


class Case:
    """images: keys of the variant's pictures; text: a question, a raw prompt, or a message list."""

    def __init__(self, name, images, text, **processor_kwargs):
        self.name, self.images, self.text, self.kwargs = name, images, text, processor_kwargs


class Spec:
    """What the runner must know about an architecture."""

    def __init__(self, model, processor, cases, **kw):
        self.model, self.processor, self.cases = model, processor, cases
        self.taps = kw.pop("taps", {})  # golden key -> module path
        self.layers = kw.pop("layers", None)  # path of the decoder layer list
        self.features = kw.pop("features", None)  # path of the owner of get_image_features
        self.positions = kw.pop("positions", None)  # module that gets position_ids
        self.chat = kw.pop("chat", True)  # False: Case.text is the raw prompt
        self.vocab = kw.pop("vocab", None)  # rows of the text embedding
        self.embed_std = kw.pop("embed_std", 1.0)
        self.norm_boost = kw.pop("norm_boost", {})  # name part -> added to norm weights, against echoing models
        self.scales = kw.pop("scales", {})  # name part -> factor on matrices, likewise
        self.never = kw.pop("never", [])  # token ids that must not be generated
        self.gains = kw.pop("gains", (1.2, 1.5, 1.0, 1.8, 2.2))  # tried in turn until greedy text is varied
        self.recheck = kw.pop("recheck", True)  # compare the KV cache run with one full forward
        self.run = kw.pop("run", run_generative)
        self.extra_save = kw.pop("extra_save", None)
        self.norm_offset = kw.pop("norm_offset", None)  # class -> mean of its norm weights, where the rule by name is wrong
        self.values = kw.pop("values", ())  # (name part, mean, std): parameters or buffers with a range of their own
        self.head_std = kw.pop("head_std", 2.5)
        self.pooled = kw.pop("pooled", None)  # picks the image features out of get_image_features' result
        self.coarse = kw.pop("coarse", False)  # whether rounding in float32 alone may exceed what others are held to: its drift is stored
        self.drifts = {}  # case name -> what its drift is measured with, where the runner keeps it
        assert not kw, kw


def ids(tok, *tokens):
    return [tok.convert_tokens_to_ids(t) for t in tokens]


def pad_vocab(tok, multiple=32):
    n = len(tok)
    return (n + multiple - 1) // multiple * multiple


def messages_of(case):
    """Turn a case's text into chat messages, images first in the first user turn."""
    if isinstance(case.text, list):
        return case.text
    content = [{"type": "image"} for _ in case.images] + [{"type": "text", "text": case.text}]
    return [{"role": "user", "content": content}]


def fill_images(messages, pics):
    """Copy of messages in which the image entries hold the pictures, in order."""
    pics, out = list(pics), []
    for m in messages:
        content = []
        for c in m["content"]:
            c = dict(c)
            if c["type"] == "image":
                c["image"] = pics.pop(0)
            content.append(c)
        out.append({"role": m["role"], "content": content})
    assert not pics
    return out


def encode(spec, case, ctx):
    """Run the processor; returns (tensors, rendered prompt, picture files, messages)."""
    files, pics = [], []
    for key in case.images:
        file, img = ctx.picture(key)
        files.append(file)
        pics.append(img)
    proc = spec.processor
    if spec.chat:
        messages = messages_of(case)
        prompt = proc.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        batch = proc.apply_chat_template(
            fill_images(messages, pics), add_generation_prompt=True, tokenize=True, return_dict=True,
            return_tensors="pt", processor_kwargs=dict(case.kwargs) if case.kwargs else None,
        )
    else:
        messages, prompt = None, case.text
        batch = proc(images=pics or None, text=prompt, return_tensors="pt", **case.kwargs)
    return dict(batch), prompt, files, messages


def continue_inputs(inputs, new):
    """The prompt's inputs with generated ids appended, for one forward pass without a cache."""
    out = {}
    n = new.shape[0]
    for k, v in inputs.items():
        if k == "input_ids":
            v = torch.cat([v, new[None]], dim=1)
        elif k == "attention_mask":
            v = torch.cat([v, torch.ones(1, n, dtype=v.dtype)], dim=1)
        elif k in ("mm_token_type_ids", "token_type_ids"):
            v = torch.cat([v, torch.zeros(1, n, dtype=v.dtype)], dim=1)
        elif k == "cross_attention_mask":
            v = torch.cat([v, v[:, -1:].expand(-1, n, -1, -1)], dim=1)
        out[k] = v
    return out


def drop_batch(key, t):
    """Text activations lose their batch dimension of 1; everything else keeps its shape."""
    return t[0] if key in ("inputs_embeds", "text_layer_first", "text_layer_last") and t.ndim == 3 else t


def run_generative(spec, ctx):
    """Prefill taps, logits and greedy text for every case of an autoregressive model."""
    model, golden, cases = spec.model, {}, []
    for case in spec.cases:
        inputs, prompt, files, messages = encode(spec, case, ctx)
        fwd = {k: v for k, v in inputs.items() if torch.is_tensor(v) and k != "labels"}
        fwd = {k: v.float() if v.is_floating_point() else v for k, v in fwd.items()}  # Llama 4 makes bfloat16 pixels
        with Taps(model, spec) as taps:
            logits = model(**fwd).logits
        new, margins, step_logits = greedy(model, fwd, NEW_TOKENS)
        facts = {"distinct_greedy": len(set(new.tolist())), "min_margin": round(float(margins.min()), 5)}
        if spec.recheck:
            full = model(**continue_inputs(fwd, new)).logits[0, -NEW_TOKENS - 1 : -1]
            facts["cache_vs_full_max_abs"] = float((full - step_logits).abs().max())
            assert facts["cache_vs_full_max_abs"] < 2e-3, facts
        add_pil_difference(spec, case, ctx, fwd, facts)
        for k, v in fwd.items():
            if k == "pixel_attention_mask" and bool((v == 1).all()):
                facts["pixel_attention_mask"] = f"all ones, shape {list(v.shape)}"  # not stored: large and dull
            else:
                golden[f"{case.name}.{k}"] = v
        for k, v in taps.found.items():
            golden[f"{case.name}.{k}"] = drop_batch(k, v)
        golden[f"{case.name}.logits_last8"] = logits[0, -8:]
        golden[f"{case.name}.greedy_ids"] = new
        golden[f"{case.name}.greedy_margins"] = margins
        facts["logits_std"] = round(float(logits[0, -8:].std()), 4)
        stages = {k: drop_batch(k, v) for k, v in taps.found.items()} | {"logits_last8": logits[0, -8:]}
        spec.drifts[case.name] = (fwd, stages, new, step_logits)
        tok = getattr(spec.processor, "tokenizer", None)
        cases.append(
            {
                "name": case.name,
                "images": files,
                "messages": messages,
                "processor_kwargs": case.kwargs,
                "prompt": prompt,
                "input_ids": inputs["input_ids"][0].tolist(),
                "model_inputs": sorted(fwd),
                "greedy_ids": new.tolist(),
                "greedy_text": tok.decode(new, skip_special_tokens=False),
                "facts": facts,
            }
        )
    return golden, cases


def add_pil_difference(spec, case, ctx, inputs, facts):
    """How far the Pillow image processor of the same class is from the default (torchvision) one."""
    key = next((k for k in ("pixel_values", "flattened_patches") if k in inputs), None)
    ip = getattr(spec.processor, "image_processor", None)
    if key is None or ip is None or not case.images:
        return
    name = type(ip).__name__ + "Pil"
    cls = getattr(transformers, name, None)
    if cls is None:
        facts["pil"] = "no Pillow processor"
        return
    kept = spec.processor.image_processor
    try:
        spec.processor.image_processor = cls.from_dict(kept.to_dict())
        other = encode(spec, case, ctx)[0][key]
    except Exception as err:  # some Pillow processors lack options; the golden itself does not need them
        facts["pil"] = f"failed: {type(err).__name__}"
        return
    finally:
        spec.processor.image_processor = kept
    if other.shape != inputs[key].shape:
        facts["pil"] = f"shape {list(other.shape)}"
        return
    diff = (other.float() - inputs[key].float()).abs()
    facts["pil_pixel_max_abs"] = round(float(diff.max()), 5)
    facts["pil_pixel_changed"] = round(float((diff > 1e-4).float().mean()), 4)


# --------------------------------------------------------------------------------------------------
# 6. Variants: sizes, pictures and prompts
# --------------------------------------------------------------------------------------------------

VARIANTS = {
    "public": dict(
        merge_factor=1.0,
        t_hidden=64, t_layers=2, t_heads=4, t_kv=2, t_mlp=128, v_hidden=64, v_layers=3, v_heads=4, v_mlp=96,
        photo=("flower", (107, 0, 533, 427)), wide=("china", None), ratio=(3, 2),
        q_photo="What is in this image?",
        q_wide="Describe the picture in detail.",
        q_two="What is the difference between the first image and the second image?",
        chat=[("user", "Write a short story about a cat."), ("assistant", "A cat lived in a house."),
              ("user", "And what did it see in the garden?")],
        raw=["caption en", "answer en where is the house?"],
        labels=["a photo of a flower", "An old temple in the mountains.", "two cats & a dog, 12 birds"],
    ),
    "second": dict(
        merge_factor=0.7,
        t_hidden=96, t_layers=3, t_heads=6, t_kv=2, t_mlp=104, v_hidden=48, v_layers=4, v_heads=3, v_mlp=80,
        photo=("flower", (20, 30, 340, 350)), wide=("china", (190, 0, 475, 427)), ratio=(2, 3),
        q_photo="How many petals does the red flower have?",
        q_wide="Is the roof of the temple grey, or is it green? Explain.",
        q_two="Compare both photos; which one shows a building?",
        chat=[("system", "Answer with one word."), ("user", "Name a fruit."), ("assistant", "Melon."),
              ("user", "Name another one, please!")],
        raw=["describe en", "detect roof ; flower"],
        labels=["garden near the river", "A close-up of petals!", "the bridge crosses 34 rivers", "café"],
    ),
}


class Ctx:
    """Variant values by attribute, and the pictures under short keys."""

    def __init__(self, variant, seed, pictures):
        self.variant, self.seed, self.pictures = variant, seed, pictures
        globals()["MERGE_FACTOR"] = VARIANTS[variant]["merge_factor"]
        self.is_second = variant == "second"
        self.__dict__.update(VARIANTS[variant])
        self.sizes = {}

    def sizes_for(self, square, long_side):
        """photo: square x square; wide: the other photo with the long side given, odd sizes on purpose."""
        a, b = self.ratio
        short = long_side * min(a, b) // max(a, b)
        self.sizes = {
            "photo": (square, square),
            "wide": (long_side, short) if a > b else (short, long_side),
        }

    def picture(self, key):
        if key not in self.sizes:
            raise KeyError(key)
        name, crop = self.photo if key == "photo" else self.wide
        return self.pictures.get(name, crop, self.sizes[key])

    def pick(self, public, second):
        return second if self.is_second else public

    def chat_messages(self, system=True):
        turns = [t for t in self.chat if system or t[0] != "system"]
        return [{"role": r, "content": [{"type": "text", "text": t}]} for r, t in turns]

    def standard_cases(self, two=True, text=True, system=True):
        cases = [Case("photo", ["photo"], self.q_photo), Case("wide", ["wide"], self.q_wide)]
        if two:
            cases.append(Case("two", ["photo", "wide"], self.q_two))
        if text:
            cases.append(Case("text", [], self.chat_messages(system)))
        return cases


def text_dims(c, **more):
    """Common Llama-like text settings."""
    base = dict(
        hidden_size=c.t_hidden, intermediate_size=c.t_mlp, num_hidden_layers=c.t_layers,
        num_attention_heads=c.t_heads, num_key_value_heads=c.t_kv, max_position_embeddings=2048,
    )
    base.update(more)
    return base


def vit_dims(c, image, patch, **more):
    """Common ViT settings."""
    base = dict(
        hidden_size=c.v_hidden, intermediate_size=c.v_mlp, num_hidden_layers=c.v_layers,
        num_attention_heads=c.v_heads, image_size=image, patch_size=patch,
    )
    base.update(more)
    return base


def generation(model, tok, **kw):
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
        pad_token_id=tok.pad_token_id if tok.pad_token_id is not None else tok.eos_token_id, **kw
    )


def make(cls, config):
    model = cls._from_config(config, attn_implementation="eager") if hasattr(cls, "_from_config") else cls(config)
    return model.float().eval()


BUILDERS = {}


def arch(name):
    def register(fn):
        BUILDERS[name] = fn
        return fn
    return register

# --------------------------------------------------------------------------------------------------
# 7. Dual encoders: CLIP, SigLIP, SigLIP 2
# --------------------------------------------------------------------------------------------------


def run_dual(spec, ctx):
    """image_embeds, text_embeds (both unit length) and logits for image/label lists."""
    model, proc, golden, cases = spec.model, spec.processor, {}, []
    for case in spec.cases:
        files, pics = zip(*[ctx.picture(k) for k in case.images])
        inputs = dict(proc(images=list(pics), text=case.text, return_tensors="pt", **case.kwargs))
        with Taps(model, spec) as taps:
            out = model(**inputs)
        golden.update({f"{case.name}.{k}": v for k, v in inputs.items()})
        golden.update({f"{case.name}.{k}": v for k, v in taps.found.items()})
        for k in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text"):
            golden[f"{case.name}.{k}"] = out[k]
        stages = {k: out[k] for k in ("image_embeds", "text_embeds", "logits_per_image", "logits_per_text")} | taps.found
        spec.drifts[case.name] = (inputs, stages)
        facts = {"logits_spread": round(float(out.logits_per_image.max() - out.logits_per_image.min()), 4)}
        assert facts["logits_spread"] > 0.05, facts
        kept = spec.processor.image_processor
        cls = getattr(transformers, type(kept).__name__ + "Pil", None)
        if cls is not None:
            spec.processor.image_processor = cls.from_dict(kept.to_dict())
            other = dict(proc(images=list(pics), text=case.text, return_tensors="pt", **case.kwargs))["pixel_values"]
            spec.processor.image_processor = kept
            diff = (other.float() - inputs["pixel_values"]).abs()
            facts["pil_pixel_max_abs"] = round(float(diff.max()), 5)
            facts["pil_pixel_changed"] = round(float((diff > 1e-4).float().mean()), 4)
        cases.append({"name": case.name, "images": list(files), "texts": case.text, "processor_kwargs": case.kwargs,
                      "input_ids": inputs["input_ids"].tolist(), "model_inputs": sorted(inputs), "facts": facts})
    return golden, cases


def drift_dual(model, taps, inputs, stages):
    """How far a bfloat16 run of one case is from the float32 run, in rows that do not fill up a batch."""
    rows = {"text_last_hidden": inputs.get("attention_mask"), "vision_last_hidden": inputs.get("pixel_attention_mask")}
    inputs = {k: v.to(torch.bfloat16) if v.is_floating_point() else v for k, v in inputs.items()}
    with taps:
        out = model(**inputs)
    found, drifts = {**out, **taps.found}, {}
    for key, want in stages.items():
        gap = (found[key].float() - want.float()).abs()
        if rows.get(key) is not None:
            gap = gap[rows[key].bool()]
        drifts[f"{key}.bf16_drift"] = torch.stack([gap.max(), gap.mean()])
    return drifts


DUAL_TAPS = {"vision_last_hidden": "vision_model", "text_last_hidden": "text_model"}


@arch("clip")
def build_clip(c):
    tok = wrap(clip_tokenizer(), bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
               pad_token="<|endoftext|>", model_max_length=32)
    size = c.pick(64, 80)
    # eos_token_id 2 is what older CLIP configs say; pooling then takes the highest id instead of the first EOS.
    eos = c.pick(tok.eos_token_id, 2)
    cfg = transformers.CLIPConfig(
        text_config=dict(vocab_size=len(tok), hidden_size=c.t_hidden, intermediate_size=c.t_mlp, projection_dim=c.pick(48, 56),
                         num_hidden_layers=c.t_layers, num_attention_heads=c.t_heads, max_position_embeddings=32,
                         bos_token_id=tok.bos_token_id, eos_token_id=eos, pad_token_id=c.pick(tok.pad_token_id, 1)),
        vision_config=vit_dims(c, size, c.pick(16, 10), projection_dim=c.pick(48, 56)),
        projection_dim=c.pick(48, 56),
    )
    ip = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    c.sizes_for(size, c.pick(131, 127))
    return Spec(make(transformers.CLIPModel, cfg), transformers.CLIPProcessor(ip, tok),
                [Case("photo", ["photo"], c.labels, padding=True), Case("both", ["photo", "wide"], c.labels, padding=True)],
                run=run_dual, taps=DUAL_TAPS, vocab=len(tok))


@arch("siglip")
def build_siglip(c):
    tok = wrap(unigram_tokenizer(), eos_token="</s>", unk_token="<unk>", pad_token="</s>", model_max_length=24,
               model_input_names=["input_ids"])
    size = c.pick(64, 70)
    cfg = transformers.SiglipConfig(
        text_config=dict(vocab_size=len(tok), hidden_size=c.t_hidden, intermediate_size=c.t_mlp, num_hidden_layers=c.t_layers,
                         num_attention_heads=c.t_heads, max_position_embeddings=24, projection_size=c.v_hidden,
                         bos_token_id=0, eos_token_id=0, pad_token_id=0),
        vision_config=vit_dims(c, size, c.pick(16, 14)),
    )
    ip = transformers.SiglipImageProcessor(size={"height": size, "width": size})
    c.sizes_for(size, c.pick(131, 127))
    kw = dict(padding="max_length", truncation=True)
    return Spec(make(transformers.SiglipModel, cfg), transformers.SiglipProcessor(ip, tok),
                [Case("photo", ["photo"], c.labels, **kw), Case("both", ["photo", "wide"], c.labels, **kw)],
                run=run_dual, taps=DUAL_TAPS, vocab=len(tok))


@arch("siglip2")
def build_siglip2(c):
    names = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")
    base = with_bos(metaspace_bpe(names, (), "gemma", lower=True), None, "<eos>")
    tok = wrap(base, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>",
               model_max_length=24, model_input_names=["input_ids"], padding_side="right")
    patch, limit = c.pick(16, 12), c.pick(24, 40)
    cfg = transformers.Siglip2Config(
        text_config=dict(vocab_size=len(tok), hidden_size=c.t_hidden, intermediate_size=c.t_mlp, num_hidden_layers=c.t_layers,
                         num_attention_heads=c.t_heads, max_position_embeddings=24, projection_size=c.v_hidden,
                         bos_token_id=2, eos_token_id=1, pad_token_id=0),
        vision_config=dict(hidden_size=c.v_hidden, intermediate_size=c.v_mlp, num_hidden_layers=c.v_layers,
                           num_attention_heads=c.v_heads, patch_size=patch, num_patches=c.pick(16, 25)),
    )
    ip = transformers.Siglip2ImageProcessor(patch_size=patch, max_num_patches=limit)
    c.sizes_for(c.pick(64, 72), c.pick(131, 127))
    # The processor class would otherwise put its own 256 patches of 16 pixels in place of the configured values.
    kw = dict(padding="max_length", truncation=True, max_length=24, max_num_patches=limit, patch_size=patch)
    return Spec(make(transformers.Siglip2Model, cfg), transformers.Siglip2Processor(ip, tok),
                [Case("photo", ["photo"], c.labels, **kw), Case("both", ["photo", "wide"], c.labels, **kw)],
                run=run_dual, taps=DUAL_TAPS, vocab=len(tok))


# --------------------------------------------------------------------------------------------------
# 8. LLaVA family
# --------------------------------------------------------------------------------------------------

LLAVA_TEMPLATE = """\
{% for message in messages %}{% if message['role'] != 'system' %}{{ message['role'].upper() + ': ' }}{% endif %}\
{# images first #}{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{# then text #}{% if message['role'] != 'assistant' %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] + ' ' }}{% endfor %}\
{% else %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{% generation %}{{ part['text'] + ' ' }}{% endgeneration %}{% endfor %}\
{% endif %}{% endfor %}{% if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif %}"""

MISTRAL_TEMPLATE = """\
{% for message in messages %}{% if message['role'] == 'system' %}{{ '<<SYS>>\\n' + message['content'][0]['text'] + '\\n<</SYS>>\\n\\n' }}\
{% elif message['role'] == 'user' %}{{ '[INST] ' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>\\n' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ part['text'] }}{% endfor %}{{ ' [/INST]' }}\
{% elif message['role'] == 'assistant' %}{{ ' ' + message['content'][0]['text'] + '</s> ' }}\
{% else %}{{ raise_exception('Only user and assistant roles are supported!') }}{% endif %}{% endfor %}"""

ONEVISION_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}\
{% for part in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}\
{% for part in message['content'] | selectattr('type', 'equalto', 'text') %}{{ '\\n' + part['text'] }}{% endfor %}\
{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def llama_like_tokenizer(added=("<image>", "<pad>")):
    base = with_bos(metaspace_bpe(("<unk>", "<s>", "</s>"), added, "llama"), "<s>")
    return wrap(base, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", image_token="<image>",
                padding_side="left")


@arch("llava")
def build_llava(c):
    tok = llama_like_tokenizer()
    vocab = pad_vocab(tok)
    size, patch = c.pick(64, 70), c.pick(16, 10)
    image_id, pad_id = ids(tok, "<image>", "<pad>")
    cfg = transformers.LlavaConfig(
        text_config=dict(model_type="llama", vocab_size=vocab, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         rope_parameters={"rope_type": "default", "rope_theta": c.pick(10000.0, 5000.0)}, **text_dims(c)),
        vision_config=dict(model_type="clip_vision_model", projection_dim=32, **vit_dims(c, size, patch)),
        image_token_index=image_id, image_seq_length=(size // patch) ** 2,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False, pad_token_id=pad_id,
    )
    model = make(transformers.LlavaForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size})
    proc = transformers.LlavaProcessor(ip, tok, patch_size=patch, vision_feature_select_strategy="default",
                                       num_additional_image_tokens=1, chat_template=LLAVA_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.vision_tower"},
                features="model", layers="model.language_model.layers", vocab=vocab, never=[image_id, pad_id])


@arch("llava_next")
def build_llava_next(c):
    tok = llama_like_tokenizer()
    vocab = pad_vocab(tok)
    size, patch = c.pick(32, 36), c.pick(8, 9)
    grid = [[size, 2 * size], [2 * size, size], [2 * size, 2 * size], [3 * size, size], [size, 3 * size]]
    image_id, pad_id = ids(tok, "<image>", "<pad>")
    cfg = transformers.LlavaNextConfig(
        text_config=dict(model_type="mistral", vocab_size=vocab, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         sliding_window=None, **text_dims(c)),
        vision_config=dict(model_type="clip_vision_model", projection_dim=32, **vit_dims(c, size, patch)),
        image_token_index=image_id, image_grid_pinpoints=grid, image_seq_length=(size // patch) ** 2,
        vision_feature_layer=-2, vision_feature_select_strategy="default", tie_word_embeddings=False,
    )
    model = make(transformers.LlavaNextForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.LlavaNextImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size},
                                              image_grid_pinpoints=grid)
    proc = transformers.LlavaNextProcessor(ip, tok, patch_size=patch, vision_feature_select_strategy="default",
                                           num_additional_image_tokens=1, chat_template=MISTRAL_TEMPLATE)
    c.sizes_for(2 * size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.vision_tower"},
                features="model", layers="model.language_model.layers", vocab=vocab, never=[image_id, pad_id])


@arch("llava_onevision")
def build_llava_onevision(c):
    tok = wrap(bytelevel_tokenizer(QWEN2_SPLIT, last=("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>"),
                                   normalizer=normalizers.NFC()),
               eos_token="<|im_end|>", pad_token="<|endoftext|>", image_token="<image>", video_token="<video>",
               padding_side="left")
    vocab = pad_vocab(tok)
    size, patch = c.pick(32, 36), c.pick(8, 9)
    grid = [[a * size, b * size] for a in (1, 2, 3) for b in (1, 2, 3)]
    image_id, video_id = ids(tok, "<image>", "<video>")
    limit = c.pick("anyres_max_9", "anyres_max_2")  # the second makes the features be interpolated
    cfg = transformers.LlavaOnevisionConfig(
        text_config=dict(model_type="qwen2", vocab_size=vocab, rms_norm_eps=1e-6, tie_word_embeddings=False,
                         eos_token_id=tok.eos_token_id, bos_token_id=None, **text_dims(c)),
        vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **vit_dims(c, size, patch)),
        image_token_index=image_id, video_token_index=video_id, image_grid_pinpoints=grid, vision_aspect_ratio=limit,
        vision_feature_layer=-1, vision_feature_select_strategy="full", tie_word_embeddings=False,
    )
    model = make(transformers.LlavaOnevisionForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.LlavaOnevisionImageProcessor(size={"height": size, "width": size}, image_grid_pinpoints=grid)
    vp = transformers.LlavaOnevisionVideoProcessor(size={"height": size, "width": size})
    proc = transformers.LlavaOnevisionProcessor(ip, tok, vp, num_image_tokens=(size // patch) ** 2,
                                                vision_feature_select_strategy="full", vision_aspect_ratio=limit,
                                                chat_template=ONEVISION_TEMPLATE)
    c.sizes_for(2 * size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.vision_tower"},
                features="model", layers="model.language_model.layers", vocab=vocab, never=[image_id, video_id])


# --------------------------------------------------------------------------------------------------
# 9. Idefics3 / SmolVLM
# --------------------------------------------------------------------------------------------------

SMOLVLM_TEMPLATE = """\
{start}{% for message in messages %}{{ message['role'] | capitalize }}{% if message['content'][0]['type'] == 'image' %}{{ ':' }}\
{% else %}{{ ': ' }}{% endif %}{% for line in message['content'] %}{% if line['type'] == 'text' %}{{ line['text'] }}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""

ROW_COL = [f"<row_{r}_col_{k}>" for r in range(1, 7) for k in range(1, 7)]
IDEFICS_TOKENS = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>", *ROW_COL)


def idefics_like(c, smol):
    if smol:
        first = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
        base = bytelevel_tokenizer(GPT2_SPLIT, first=first, last=IDEFICS_TOKENS, digits=True)
        tok = wrap(base, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>", unk_token="<|endoftext|>",
                   fake_image_token="<fake_token_around_image>", image_token="<image>", global_image_token="<global-img>",
                   end_of_utterance_token="<end_of_utterance>", padding_side="left")
        start = "<|im_start|>"
    else:
        last = ("<|begin_of_text|>", "<|end_of_text|>", "<|eot_id|>", *IDEFICS_TOKENS)
        base = with_bos(bytelevel_tokenizer(LLAMA3_SPLIT, last=last), "<|begin_of_text|>")
        tok = wrap(base, bos_token="<|begin_of_text|>", eos_token="<|end_of_text|>", pad_token="<|end_of_text|>", padding_side="left")
        start = "<|begin_of_text|>"
    vocab = pad_vocab(tok)
    size, patch, scale = (c.pick(32, 36), c.pick(8, 6), c.pick(2, 3)) if smol else (c.pick(36, 32), c.pick(6, 8), c.pick(3, 2))
    image_id, fake_id = ids(tok, "<image>", "<fake_token_around_image>")
    prefix = "SmolVLM" if smol else "Idefics3"
    extra = {} if smol else {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0,
                                                 "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                                                 "original_max_position_embeddings": 64}}
    cfg = getattr(transformers, prefix + "Config")(
        text_config=dict(model_type="llama", vocab_size=vocab, rms_norm_eps=1e-5, tie_word_embeddings=False,
                         bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
                         **extra, **text_dims(c)),
        vision_config=vit_dims(c, size, patch), image_token_id=image_id, scale_factor=scale, tie_word_embeddings=False,
        pad_token_id=tok.pad_token_id,
    )
    model = make(getattr(transformers, prefix + "ForConditionalGeneration"), cfg)
    generation(model, tok)
    ip = getattr(transformers, prefix + "ImageProcessor")(size={"longest_edge": c.pick(3, 2) * size},
                                                         max_image_size={"longest_edge": size})
    seq = (size // patch) ** 2 // scale**2
    template = SMOLVLM_TEMPLATE.replace("{start}", start)
    if smol:
        vp = transformers.SmolVLMVideoProcessor(size={"longest_edge": size}, max_image_size={"longest_edge": size})
        proc = transformers.SmolVLMProcessor(ip, tok, vp, image_seq_len=seq, chat_template=template)
    else:
        proc = transformers.Idefics3Processor(ip, tok, image_seq_len=seq, chat_template=template)
    c.sizes_for(size, c.pick(131, 127))
    cases = c.standard_cases()
    cases.insert(2, Case("wide_unsplit", ["wide"], c.q_wide, do_image_splitting=False))
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_model"}, features="model",
                layers="model.text_model.layers", vocab=vocab, never=[image_id, fake_id])


@arch("smolvlm")
def build_smolvlm(c):
    return idefics_like(c, True)


@arch("idefics3")
def build_idefics3(c):
    return idefics_like(c, False)


# --------------------------------------------------------------------------------------------------
# 10. Qwen VL family
# --------------------------------------------------------------------------------------------------

QWEN_TEMPLATE = """\
{% set image_count = namespace(value=0) %}{% for message in messages %}{% if loop.first and message['role'] != 'system' %}<|im_start|>system
You are a helpful assistant.<|im_end|>
{% endif %}<|im_start|>{{ message['role'] }}
{% if message['content'] is string %}{{ message['content'] }}<|im_end|>
{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' or 'image' in part or 'image_url' in part %}\
{% set image_count.value = image_count.value + 1 %}{% if add_vision_id %}Picture {{ image_count.value }}: {% endif %}\
<|vision_start|><|image_pad|><|vision_end|>{% elif 'text' in part %}{{ part['text'] }}{% endif %}{% endfor %}<|im_end|>
{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant
{% endif %}"""

QWEN3_TEMPLATE = """\
{%- if messages[0].role == 'system' %}
    {{- '<|im_start|>system\\n' }}
    {%- if messages[0].content is string %}
        {{- messages[0].content }}
    {%- else %}
        {%- for part in messages[0].content %}{% if 'text' in part %}{{- part.text }}{% endif %}{% endfor %}
    {%- endif %}
    {{- '<|im_end|>\\n' }}
{%- endif %}
{%- set image_count = namespace(value=0) %}
{%- for message in messages %}
    {%- if message.role == "user" or message.role == "assistant" %}
        {{- '<|im_start|>' + message.role + '\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'image' or 'image' in part or 'image_url' in part %}
                    {%- set image_count.value = image_count.value + 1 %}
                    {%- if add_vision_id %}Picture {{ image_count.value }}: {% endif -%}
                    <|vision_start|><|image_pad|><|vision_end|>
                {%- elif 'text' in part %}
                    {{- part.text }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
{%- endif %}
"""

QWEN_SPECIALS = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|vision_pad|>",
                 "<|image_pad|>", "<|video_pad|>")


def qwen_tokenizer(extra=()):
    base = bytelevel_tokenizer(QWEN2_SPLIT, last=QWEN_SPECIALS + tuple(extra), normalizer=normalizers.NFC())
    return wrap(base, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")


def qwen_like(c, version, moe=False):
    tok = qwen_tokenizer()
    vocab = pad_vocab(tok)
    image_id, video_id, start_id, end_id = ids(tok, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    patch = c.pick(8, 10)
    ip_kw = dict(patch_size=patch, merge_size=2, temporal_patch_size=2,
                 size={"shortest_edge": c.pick(1024, 1600), "longest_edge": c.pick(5120, 8000)})
    tok_ids = dict(image_token_id=image_id, video_token_id=video_id, vision_start_token_id=start_id, vision_end_token_id=end_id)
    text = dict(vocab_size=vocab, rms_norm_eps=1e-6, bos_token_id=ids(tok, "<|endoftext|>")[0], eos_token_id=tok.eos_token_id,
                **text_dims(c))
    tied = c.pick(False, True) and version == "2"
    if version == "3":
        ip_kw.update(image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
        # head_dim is a setting of its own here: heads * head_dim differs from the hidden size.
        # One layer more than there are deepstack inputs, or the last of them would not reach the text.
        text.update(num_hidden_layers=c.pick(3, 4), intermediate_size=c.pick(112, 96), head_dim=c.pick(24, 20), rope_parameters={"rope_type": "default", "rope_theta": 5000000.0,
                    "mrope_interleaved": True, "mrope_section": c.pick([6, 3, 3], [4, 3, 3])})
        vision = dict(depth=c.pick(3, 4), hidden_size=c.pick(32, 36), intermediate_size=c.v_mlp, num_heads=c.pick(2, 3), patch_size=patch,
                      out_hidden_size=c.t_hidden, num_position_embeddings=c.pick(36, 64), deepstack_visual_indexes=c.pick([0, 1], [1, 2, 3]))
        name = "Qwen3VL"
        if moe:
            text.update(num_experts=c.pick(6, 5), num_experts_per_tok=c.pick(2, 3), moe_intermediate_size=c.pick(40, 24),
                        decoder_sparse_step=1, mlp_only_layers=[], norm_topk_prob=True)
            name = "Qwen3VLMoe"
        proc_cls, vp_cls, template = "Qwen3VLProcessor", "Qwen3VLVideoProcessor", QWEN3_TEMPLATE
    else:
        half = text["hidden_size"] // text["num_attention_heads"] // 2
        text.update(rope_parameters={"rope_type": "default", "rope_theta": 1000000.0,
                                     "mrope_section": [half - 2 * (3 * half // 8), 3 * half // 8, 3 * half // 8]})
        if version == "2":
            vision = dict(depth=c.v_layers, embed_dim=c.v_hidden, hidden_size=c.t_hidden, num_heads=c.v_heads, patch_size=patch,
                          mlp_ratio=2)
            name, proc_cls = "Qwen2VL", "Qwen2VLProcessor"
        else:
            vision = dict(depth=c.v_layers, hidden_size=c.v_hidden, intermediate_size=c.v_mlp, num_heads=c.v_heads, patch_size=patch,
                          out_hidden_size=c.t_hidden, window_size=patch * 4, fullatt_block_indexes=c.pick([1], [1, 3]))
            name, proc_cls = "Qwen2_5_VL", "Qwen2_5_VLProcessor"
        vp_cls, template = "Qwen2VLVideoProcessor", QWEN_TEMPLATE
    cfg = getattr(transformers, name + "Config")(text_config=text, vision_config=vision, tie_word_embeddings=tied, **tok_ids)
    model = make(getattr(transformers, name + "ForConditionalGeneration"), cfg)
    generation(model, tok)
    ip = transformers.Qwen2VLImageProcessor(**ip_kw)
    vp = getattr(transformers, vp_cls)(**{k: v for k, v in ip_kw.items()})
    proc = getattr(transformers, proc_cls)(ip, tok, vp, chat_template=template)
    c.sizes_for(c.pick(64, 60), c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.visual"}, features="model",
                layers="model.language_model.layers", positions="model.language_model", vocab=vocab,
                embed_std=0.3 if tied else 1.0, scales={"down_proj": 1.6, "o_proj": 0.7} if tied else {},
                never=[image_id, video_id, start_id])


@arch("qwen2_vl")
def build_qwen2_vl(c):
    return qwen_like(c, "2")


@arch("qwen2_5_vl")
def build_qwen2_5_vl(c):
    return qwen_like(c, "2.5")


@arch("qwen3_vl")
def build_qwen3_vl(c):
    return qwen_like(c, "3")


@arch("qwen3_vl_moe")
def build_qwen3_vl_moe(c):
    return qwen_like(c, "3", moe=True)

# --------------------------------------------------------------------------------------------------
# 11. Gemma family: PaliGemma 1 and 2, Gemma 3
# --------------------------------------------------------------------------------------------------

# Tied embeddings would make these models echo their last token; strong MLP branches prevent that.
GEMMA_BOOST = {"post_attention_layernorm": 0.7, "post_feedforward_layernorm": 2.5, "language_model.norm": 3.0}
GEMMA_SPECIALS = ("<pad>", "<eos>", "<bos>", "<unk>", "<mask>")

GEMMA3_TEMPLATE = """\
{{ bos_token }}
{%- if messages[0]['role'] == 'system' -%}
    {%- if messages[0]['content'] is string -%}
        {%- set prefix = messages[0]['content'] + '\\n\\n' -%}
    {%- else -%}
        {%- set prefix = messages[0]['content'][0]['text'] + '\\n\\n' -%}
    {%- endif -%}
    {%- set turns = messages[1:] -%}
{%- else -%}
    {%- set prefix = '' -%}
    {%- set turns = messages -%}
{%- endif -%}
{%- for message in turns -%}
    {%- if (message['role'] == 'user') != (loop.index0 % 2 == 0) -%}
        {{ raise_exception('Conversation roles must alternate user/assistant/user/assistant/...') }}
    {%- endif -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{ '<start_of_turn>' + role + '\\n' + (prefix if loop.first else '') }}
    {%- if message['content'] is string -%}
        {{ message['content'] | trim }}
    {%- elif message['content'] is iterable -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{ '<start_of_image>' }}
            {%- elif item['type'] == 'text' -%}
                {{ item['text'] | trim }}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{ '<start_of_turn>model\\n' }}
{%- endif -%}
"""


def paligemma_like(c, version):
    base = with_bos(metaspace_bpe(GEMMA_SPECIALS, ("<image>",), "gemma", merges=160), "<bos>")
    tok = wrap(base, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", image_token="<image>",
               padding_side="left")
    size, patch = c.pick(64, 60), c.pick(16, 12)
    ip = transformers.SiglipImageProcessor(size={"height": size, "width": size}, image_seq_length=(size // patch) ** 2)
    proc = transformers.PaliGemmaProcessor(ip, tok)  # adds 1152 <locDDDD> and <segDDD> tokens
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    text = dict(model_type="gemma" if version == 1 else "gemma2", vocab_size=vocab, head_dim=c.pick(24, 20), rms_norm_eps=1e-6,
                hidden_activation="gelu_pytorch_tanh", bos_token_id=2, eos_token_id=1, pad_token_id=0, **text_dims(c))
    if version == 1:
        text["num_key_value_heads"] = 1
    else:
        text.update(query_pre_attn_scalar=c.pick(32, 28), sliding_window=c.pick(12, 16), attn_logit_softcapping=c.pick(4.0, 5.0),
                    final_logit_softcapping=c.pick(6.0, 8.0), num_hidden_layers=c.pick(2, 3))
    cfg = transformers.PaliGemmaConfig(
        text_config=text, vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, **vit_dims(c, size, patch)),
        image_token_index=image_id, projection_dim=c.t_hidden, hidden_size=c.t_hidden, vocab_size=vocab, bos_token_id=2,
        eos_token_id=1, pad_token_id=0,
    )
    model = make(transformers.PaliGemmaForConditionalGeneration, cfg)
    generation(model, tok)
    c.sizes_for(size, c.pick(131, 127))
    cases = [Case("photo", ["photo"], "<image>" + c.raw[0]), Case("wide", ["wide"], "<image>" + c.raw[1]),
             Case("two", ["photo", "wide"], "<image><image>" + c.raw[1])]
    return Spec(model, proc, cases, chat=False, taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", positions="model.language_model", vocab=vocab, embed_std=0.1,
                norm_boost={"language_model.norm": 2.0} if version == 1 else GEMMA_BOOST,
                scales={"self_attn.o_proj": 0.6, "mlp.down_proj": 1.6} if version == 1 else {},
                never=[image_id, 0], recheck=False, gains=(1.2, 1.4, 1.6, 1.8))


@arch("paligemma")
def build_paligemma(c):
    return paligemma_like(c, 1)


@arch("paligemma2")
def build_paligemma2(c):
    return paligemma_like(c, 2)


@arch("gemma3")
def build_gemma3(c):
    last = ("<start_of_turn>", "<end_of_turn>", "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    base = with_bos(metaspace_bpe(GEMMA_SPECIALS, last, "gemma"), "<bos>")
    tok = wrap(base, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>",
               boi_token="<start_of_image>", eoi_token="<end_of_image>", image_token="<image_soft_token>", padding_side="left")
    vocab = pad_vocab(tok)
    boi, eoi, image_id = ids(tok, "<start_of_image>", "<end_of_image>", "<image_soft_token>")
    size, patch = c.pick(64, 72), c.pick(8, 12)
    tokens = c.pick(16, 9)
    layers = c.pick(3, 4)
    cfg = transformers.Gemma3Config(
        text_config=dict(
            vocab_size=vocab, head_dim=c.pick(24, 20), rms_norm_eps=1e-6, query_pre_attn_scalar=c.pick(32, 28),
            sliding_window=c.pick(20, 16), layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"],
            rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                             "full_attention": {"rope_type": "linear", "factor": 8.0, "rope_theta": 1000000.0}},
            hidden_activation="gelu_pytorch_tanh", bos_token_id=2, eos_token_id=1, pad_token_id=0,
            **text_dims(c, num_hidden_layers=layers),
        ),
        vision_config=dict(model_type="siglip_vision_model", vision_use_head=False,
                           **vit_dims(c, size, patch, num_hidden_layers=2)),
        mm_tokens_per_image=tokens, boi_token_index=boi, eoi_token_index=eoi, image_token_index=image_id,
    )
    model = make(transformers.Gemma3ForConditionalGeneration, cfg)
    generation(model, tok)
    model.generation_config.eos_token_id = [1, tok.convert_tokens_to_ids("<end_of_turn>")]
    ip = transformers.Gemma3ImageProcessor(size={"height": size, "width": size}, image_seq_length=tokens)
    proc = transformers.Gemma3Processor(ip, tok, image_seq_length=tokens, chat_template=GEMMA3_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    cases = c.standard_cases()
    cases.insert(2, Case("wide_pan_scan", ["wide"], c.q_wide, do_pan_and_scan=True, pan_and_scan_min_crop_size=24,
                         pan_and_scan_max_num_crops=4, pan_and_scan_min_ratio_to_activate=1.2))
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, embed_std=0.1, norm_boost=GEMMA_BOOST,
                never=[image_id, 0, boi], gains=(1.4, 1.8, 2.2, 2.6, 3.2))


# --------------------------------------------------------------------------------------------------
# 12. InternVL
# --------------------------------------------------------------------------------------------------

INTERNVL_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\\n' }}{% if message['content'] is string %}{{ message['content'] }}\
{% else %}{% for part in message['content'] %}{% if part['type'] == 'image' %}{{ '<IMG_CONTEXT>\\n' }}\
{% elif part['type'] == 'video' %}{{ '<video>\\n' }}{% elif part['type'] == 'text' %}{{ part['text'] }}{% endif %}{% endfor %}{% endif %}\
{{ '<|im_end|>\\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


def internvl_like(c, text_type):
    last = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<img>", "</img>", "<IMG_CONTEXT>", "<video>")
    base = bytelevel_tokenizer(QWEN2_SPLIT, last=last, normalizer=normalizers.NFC())
    tok = wrap(base, eos_token="<|im_end|>", pad_token="<|endoftext|>", start_image_token="<img>", end_image_token="</img>",
               context_image_token="<IMG_CONTEXT>", video_token="<video>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id, video_id = ids(tok, "<IMG_CONTEXT>", "<video>")
    size, patch = c.pick(32, 40), c.pick(8, 10)
    tokens = (size // patch // 2) ** 2
    text = dict(model_type=text_type, vocab_size=vocab, rms_norm_eps=1e-6, tie_word_embeddings=False,
                bos_token_id=ids(tok, "<|endoftext|>")[0], eos_token_id=tok.eos_token_id, **text_dims(c))
    if text_type == "qwen3":
        text["head_dim"] = c.pick(24, 20)
    big = text_type == "qwen3"  # this one also shows the options of the large vision tower
    cfg = transformers.InternVLConfig(
        text_config=text,
        vision_config=vit_dims(c, [size, size], [patch, patch], attention_bias=not big, use_qk_norm=big,
                               norm_type="rms_norm" if big else "layer_norm"),
        image_token_id=image_id, image_seq_length=tokens, downsample_ratio=0.5, tie_word_embeddings=False,
    )
    model = make(transformers.InternVLForConditionalGeneration, cfg)
    generation(model, tok)
    ip_kw = dict(size={"height": size, "width": size}, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225])
    ip = transformers.GotOcr2ImageProcessor(crop_to_patches=True, min_patches=1, max_patches=c.pick(6, 4), **ip_kw)
    vp = transformers.InternVLVideoProcessor(**ip_kw)
    proc = transformers.InternVLProcessor(ip, tok, vp, image_seq_length=tokens, chat_template=INTERNVL_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, never=[image_id, video_id])


@arch("internvl")
def build_internvl(c):
    return internvl_like(c, "qwen2")


@arch("internvl_qwen3")
def build_internvl_qwen3(c):
    return internvl_like(c, "qwen3")


# --------------------------------------------------------------------------------------------------
# 13. BLIP: captioning and question answering
# --------------------------------------------------------------------------------------------------


def blip_stages(model, memory, start, tokens):
    """Stages of the decoder on its start and on so many tokens after it, and what it was fed with."""
    fed = torch.cat([start, tokens[None]], dim=1)
    dec = dict(input_ids=fed, attention_mask=torch.ones_like(fed), encoder_hidden_states=memory,
               encoder_attention_mask=torch.ones(memory.shape[:2], dtype=torch.long))
    with Taps(model.text_decoder, Spec(None, None, [], layers="bert.encoder.layer")) as taps:
        logits = model.text_decoder(**dec).logits
    return {k: drop_batch(k, v) for k, v in taps.found.items()} | {"logits_last8": logits[0]}, dec


def drift_blip(model, _taps, inputs, start, stages, tokens, steps):
    """How far a bfloat16 run of one case is from the float32 run. A prompt of one token says little of the decoder's: its greedy
    tokens are fed to it too."""
    memory = model.vision_model(pixel_values=inputs["pixel_values"].bfloat16()).last_hidden_state
    found = {"vision_last_hidden": memory}
    if "question_hidden" in stages:
        memory = model.text_encoder(
            input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=memory,
            encoder_attention_mask=torch.ones(memory.shape[:2], dtype=torch.long)).last_hidden_state
        found["question_hidden"] = memory
    found |= blip_stages(model, memory, start, tokens)[0]
    out = {}
    for key, want in stages.items():
        gap = (found[key].float().reshape(want.shape) - want.float()).abs()
        out[f"{key}.bf16_drift"] = torch.stack([gap.max(), gap.mean()])
    dec = blip_stages(model, memory, start, tokens[:0])[1]
    forced = greedy(model.text_decoder, dec, len(tokens), forced=tokens)[2]
    out["greedy_drift"] = (forced - steps).abs().amax(-1)
    return out


def run_blip(spec, ctx):
    """Caption: the decoder reads the picture.  VQA: the decoder reads the encoded question."""
    model, proc, golden, cases = spec.model, spec.processor, {}, []
    text_cfg = model.config.text_config
    vqa = hasattr(model, "text_encoder")
    for case in spec.cases:
        file, pic = ctx.picture(case.images[0])
        inputs = dict(proc(images=pic, text=case.text, return_tensors="pt"))
        image = model.vision_model(pixel_values=inputs["pixel_values"]).last_hidden_state
        facts = {}
        if vqa:
            question = model.text_encoder(
                input_ids=inputs["input_ids"], attention_mask=inputs["attention_mask"], encoder_hidden_states=image,
                encoder_attention_mask=torch.ones(image.shape[:2], dtype=torch.long),
            ).last_hidden_state
            golden[f"{case.name}.question_hidden"] = question
            memory, start = question, torch.tensor([[text_cfg.bos_token_id]])
        else:
            memory = image
            if case.text is None:
                start = torch.tensor([[text_cfg.bos_token_id]])
            else:  # [CLS] becomes the decoder's start token, the final [SEP] goes
                start = inputs["input_ids"].clone()[:, :-1]
                start[:, 0] = text_cfg.bos_token_id
        dec = dict(input_ids=start, attention_mask=torch.ones_like(start), encoder_hidden_states=memory,
                   encoder_attention_mask=torch.ones(memory.shape[:2], dtype=torch.long))
        sub = Spec(None, None, [], layers="bert.encoder.layer")
        with Taps(model.text_decoder, sub) as taps:
            logits = model.text_decoder(**dec).logits
        new, margins, steps = greedy(model.text_decoder, dec, NEW_TOKENS)
        stages = blip_stages(model, memory, start, new)[0] | {"vision_last_hidden": image}
        stages |= {"question_hidden": memory} if vqa else {}
        spec.drifts[case.name] = (inputs, start, stages, new, steps)
        # The public generate() must agree up to its stop token.
        public = model.generate(**inputs, max_new_tokens=NEW_TOKENS, do_sample=False, num_beams=1)[0]
        tail = public[start.shape[1]:]
        tail = tail[: len(tail) - 1] if len(tail) < NEW_TOKENS else tail
        assert torch.equal(tail, new[: len(tail)]), (public, new)
        facts["distinct_greedy"] = len(set(new.tolist()))
        facts["min_margin"] = round(float(margins.min()), 5)
        facts["logits_std"] = round(float(logits.std()), 4)
        golden.update({f"{case.name}.{k}": v for k, v in inputs.items()})
        golden.update({f"{case.name}.{k}": drop_batch(k, v) for k, v in taps.found.items()})
        golden[f"{case.name}.vision_last_hidden"] = image
        golden[f"{case.name}.decoder_input_ids"] = start
        golden[f"{case.name}.logits_last8"] = logits[0, -8:]
        golden[f"{case.name}.greedy_ids"] = new
        golden[f"{case.name}.greedy_margins"] = margins
        spec.processor.image_processor, kept = transformers.BlipImageProcessorPil.from_dict(
            proc.image_processor.to_dict()), proc.image_processor
        diff = (dict(proc(images=pic, text=case.text, return_tensors="pt"))["pixel_values"] - inputs["pixel_values"]).abs()
        spec.processor.image_processor = kept
        facts["pil_pixel_max_abs"] = round(float(diff.max()), 5)
        facts["pil_pixel_changed"] = round(float((diff > 1e-4).float().mean()), 4)
        cases.append({"name": case.name, "images": [file], "prompt": case.text,
                      "input_ids": inputs["input_ids"][0].tolist() if "input_ids" in inputs else None,
                      "decoder_input_ids": start[0].tolist(), "model_inputs": sorted(inputs) + ["decoder_input_ids"],
                      "greedy_ids": new.tolist(),
                      "greedy_text": proc.tokenizer.decode(new, skip_special_tokens=False), "facts": facts})
    return golden, cases


def blip_like(c, cls):
    tok = wrap(wordpiece_tokenizer(extra=("[DEC]", "[ENC]")), pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]",
               sep_token="[SEP]", mask_token="[MASK]", model_max_length=64)
    dec = tok.convert_tokens_to_ids("[DEC]")
    vqa = cls is transformers.BlipForQuestionAnswering
    width = c.pick(48, 72 if vqa else c.t_hidden)
    size, patch = c.pick(64, 60), c.pick(16, 12)
    cfg = transformers.BlipConfig(
        text_config=dict(vocab_size=len(tok), hidden_size=width, intermediate_size=c.t_mlp,
                         num_hidden_layers=2 if vqa else c.t_layers,
                         num_attention_heads=c.t_heads, max_position_embeddings=64, bos_token_id=dec, eos_token_id=tok.sep_token_id,
                         sep_token_id=tok.sep_token_id, pad_token_id=tok.pad_token_id),
        # the question answering decoder reads question states through a layer sized for pictures: equal widths
        vision_config=dict(hidden_size=width if vqa else c.pick(56, c.v_hidden), intermediate_size=c.v_mlp, image_size=size, patch_size=patch,
                           num_hidden_layers=2 if vqa else c.v_layers, num_attention_heads=c.t_heads if vqa else c.v_heads),
    )
    model = make(cls, cfg)
    model.generation_config = transformers.GenerationConfig(bos_token_id=dec, eos_token_id=tok.sep_token_id, pad_token_id=0)
    ip = transformers.BlipImageProcessor(size={"height": size, "width": size})
    c.sizes_for(size, c.pick(131, 127))
    if not vqa:
        cases = [Case("photo", ["photo"], None), Case("wide", ["wide"], c.pick("a photo of", "a picture of an old"))]
    else:
        cases = [Case("photo", ["photo"], c.q_photo), Case("wide", ["wide"], c.q_wide)]
    # The output layer is tied to the word embeddings: small ones, and strong positions, prevent echoes.
    return Spec(model, transformers.BlipProcessor(ip, tok), cases, run=run_blip, vocab=len(tok), embed_std=0.25,
                scales={"position_embeddings": 2.0, "attention.output.dense": 0.5, "crossattention.self.value": 0.4, "intermediate.dense": 1.5},
                gains=(1.3, 1.1, 1.5))


@arch("blip")
def build_blip(c):
    return blip_like(c, transformers.BlipForConditionalGeneration)


@arch("blip_vqa")
def build_blip_vqa(c):
    return blip_like(c, transformers.BlipForQuestionAnswering)


# --------------------------------------------------------------------------------------------------
# 14. Janus: reading pictures, and drawing them
# --------------------------------------------------------------------------------------------------

JANUS_TEMPLATE = """\
{%- set seps = ['\\n\\n', '<｜end▁of▁sentence｜>'] -%}
{%- for message in messages -%}
    {%- if message['role'] | lower == 'user' -%}{{ '<|User|>: ' }}
    {%- elif message['role'] | lower == 'assistant' -%}{{ '<|Assistant|>: ' }}
    {%- else -%}{{ message['role'].capitalize() + ': ' }}
    {%- endif -%}
    {%- for part in message['content'] -%}
        {%- if part['type'] == 'image' -%}
            {%- if not loop.first -%}{{ '\\n' }}{%- endif -%}
            {{ '<image_placeholder>' }}
            {%- if not loop.last -%}{{ '\\n' }}{%- endif -%}
        {%- elif part['type'] == 'text' -%}
            {%- set text = part['text'] -%}
            {%- if loop.first -%}{%- set text = text.lstrip() -%}{%- endif -%}
            {%- if loop.last -%}{%- set text = text.rstrip() -%}{%- endif -%}
            {%- if not loop.first and message['content'][loop.index0 - 1]['type'] == 'text' -%}{{ ' ' + text }}{%- else -%}{{ text }}{%- endif -%}
        {%- endif -%}
    {%- endfor -%}
    {%- if not loop.last or add_generation_prompt -%}
        {%- if message['role'] | lower == 'user' -%}{{ seps[0] }}{%- else -%}{{ seps[1] }}{%- endif -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}
"""


def janus_scores(model, inputs, tokens):
    """Raw scores of each step of drawing given image tokens, (tokens, 2, codes): row 0 with the prompt, row 1 without."""
    own = model.generation_config
    ids = inputs["input_ids"].repeat(2, 1)
    kept = (ids[1] == own.bos_token_id) | (ids[1] == own.generation_kwargs["boi_token_id"])
    ids[1] = torch.where(kept, ids[1], own.pad_token_id)
    embeds, cache, scores = model.get_input_embeddings()(ids), None, []
    for token in tokens:
        out = model.model.language_model(inputs_embeds=embeds, past_key_values=cache, use_cache=True)
        cache = out.past_key_values
        scores.append(model.model.generation_head(out.last_hidden_state[:, -1]))
        embeds = model.prepare_embeddings_for_image_generation(token.repeat(2, 1))
    return torch.stack(scores).float()


def drift_janus(model, taps, *run):
    """As `drift`; of a drawing the scores of its tokens and its pixels, and the largest difference of a guided score for each token."""
    if not isinstance(run[0], torch.Tensor):
        return drift(model, taps, *run)
    tokens, inputs, guidance, stages = run
    scores = janus_scores(model, inputs, tokens)
    found = {"scores_first": scores[0], "scores_last": scores[-1], "decoded": model.decode_image_tokens(tokens[None])[0]}
    gaps = {k: (v.float() - stages[k]).abs() for k, v in found.items()}
    mixed = [s[:, 1] + (s[:, 0] - s[:, 1]) * guidance for s in (scores, stages["scores"])]
    return {f"{k}.bf16_drift": torch.stack([v.max(), v.mean()]) for k, v in gaps.items()} | {
        "drift": (mixed[0] - mixed[1]).abs().amax(-1)}


def run_janus(spec, ctx):
    """The usual understanding cases, then image generation with classifier-free guidance, greedily."""
    golden, cases = run_generative(spec, ctx)
    model, proc = spec.model, spec.processor
    guidance = ctx.pick(5.0, 3.0)
    text = ctx.pick("A red flower in a garden.", "An old temple near the river.")
    messages = [{"role": "user", "content": [{"type": "text", "text": text}]}]
    prompt = proc.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
    inputs = dict(proc(text=prompt, generation_mode="image", return_tensors="pt"))
    cfg = copy.deepcopy(model.generation_config)
    cfg.update(do_sample=False, num_beams=1, guidance_scale=guidance, eos_token_id=None, max_new_tokens=None)
    steps = []
    hook = model.model.generation_head.register_forward_hook(lambda _m, _a, out: steps.append(out.detach().clone()))
    tokens = model.generate(**inputs, generation_mode="image", generation_config=cfg, use_cache=True)
    hook.remove()
    scores = torch.stack(steps)
    assert (janus_scores(model, inputs, tokens[0]) - scores).abs().max() < 2e-3
    mixed = scores[:, 1] + (scores[:, 0] - scores[:, 1]) * guidance
    assert torch.equal(mixed.argmax(-1), tokens[0])
    top = mixed.topk(2, dim=-1).values
    pixels = model.decode_image_tokens(tokens)  # (1, H, W, 3), still normalised
    image = proc.postprocess(list(pixels.float()), return_tensors="pt")["pixel_values"][0]  # uint8, truncated
    stages = {
        "scores_first": scores[0],  # row 0 with the prompt, row 1 without
        "scores_last": scores[-1],
        "decoded": pixels[0],
    }
    spec.drifts["generate"] = (tokens[0], inputs, guidance, stages | {"scores": scores})
    golden.update({f"generate.{k}": v for k, v in (inputs | stages).items()})
    golden.update({
        "generate.image_tokens": tokens[0],
        "generate.margins": top[:, 0] - top[:, 1],
        "generate.image_uint8": image.long(),
    })
    # The VQ encoder, which plain use never touches: picture -> tokens -> picture
    _, pic = ctx.picture("photo")
    pv = proc.image_processor(pic, return_tensors="pt")["pixel_values"]
    side = model.config.vq_config.num_patches * 2 ** (len(model.config.vq_config.channel_multiplier) - 1)
    enc = model.model.vqmodel.encode(pv[:, :, :side, :side].contiguous())
    again = model.decode_image_tokens(enc.image_tokens.view(1, -1))
    golden.update({"vq.image_tokens": enc.image_tokens.reshape(-1), "vq.decoded": again[0]})
    facts = {"distinct_image_tokens": len(set(tokens[0].tolist())), "min_margin": round(float((top[:, 0] - top[:, 1]).min()), 5),
             "guidance_scale": guidance, "decoded_std": round(float(pixels.std()), 4),
             "vq_distinct": len(set(enc.image_tokens.reshape(-1).tolist()))}
    cases.append({"name": "generate", "images": [], "messages": messages, "generation_mode": "image", "guidance_scale": guidance,
                  "prompt": prompt + proc.image_start_token, "input_ids": inputs["input_ids"][0].tolist(),
                  "image_tokens": tokens[0].tolist(), "facts": facts})
    return golden, cases


def without_encoder(target):
    """Takes the tensors out that turn pictures into tokens to draw, which neither reading nor drawing needs."""
    path = target / "model.safetensors"
    parts = ("model.vqmodel.encoder.", "model.vqmodel.quant_conv.")
    save_file({k: v for k, v in load_file(path).items() if not k.startswith(parts)}, path, metadata={"format": "pt"})


@arch("janus")
def build_janus(c):
    first = ("<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>")
    last = ("<｜▁pad▁｜>", "<image_placeholder>", "<begin_of_image>", "<end_of_image>", "<|User|>", "<|Assistant|>")
    base = with_bos(bytelevel_tokenizer(GPT2_SPLIT, first=first, last=last, merges=180), first[0])
    tok = wrap(base, bos_token=first[0], eos_token=first[1], pad_token="<｜▁pad▁｜>", image_token="<image_placeholder>",
               boi_token="<begin_of_image>", eoi_token="<end_of_image>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id, boi = ids(tok, "<image_placeholder>", "<begin_of_image>")
    size, patch = c.pick(48, 50), c.pick(8, 10)
    per_side = size // patch
    width = c.pick(48, c.t_hidden)
    cfg = transformers.JanusConfig(
        text_config=dict(model_type="llama", vocab_size=vocab, rms_norm_eps=1e-6, tie_word_embeddings=False,
                         bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
                         **text_dims(c, num_hidden_layers=2, hidden_size=width)),
        vision_config=dict(hidden_size=c.pick(48, c.v_hidden), num_hidden_layers=2, num_attention_heads=c.v_heads, image_size=size,
                           patch_size=patch, mlp_ratio=1.5, projection_dim=width, depth=c.pick(2, 3), num_image_tokens=per_side**2),
        vq_config=dict(embed_dim=8, num_embeddings=c.pick(96, 80), latent_channels=c.pick(24, 16), base_channels=32,
                       channel_multiplier=c.pick([1, 1], [2, 1]), num_res_blocks=1, num_patches=per_side, projection_dim=width,
                       num_hidden_layers=2, image_token_embed_dim=width),
        image_token_id=image_id, tie_word_embeddings=False,
    )
    model = make(transformers.JanusForConditionalGeneration, cfg)
    generation(model, tok, generation_kwargs={"boi_token_id": boi})
    ip = transformers.JanusImageProcessor(size={"height": size, "width": size}, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    proc = transformers.JanusProcessor(ip, tok, chat_template=JANUS_TEMPLATE, num_image_tokens=per_side**2,
                                       use_default_system_prompt=c.pick(False, True))
    c.sizes_for(size, c.pick(131, 127))
    cases = c.standard_cases() if c.is_second else c.standard_cases(two=False, text=False)
    return Spec(model, proc, cases, run=run_janus, taps={"vision_last_hidden": "model.vision_model"}, features="model",
                layers="model.language_model.layers", vocab=vocab, never=[image_id, boi],
                extra_save=None if c.is_second else without_encoder)


# --------------------------------------------------------------------------------------------------
# 15. Llama 3.2 Vision
# --------------------------------------------------------------------------------------------------

MLLAMA_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif part['type'] == 'text' %}
                {{- part['text'] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}
{%- endif %}
"""


@arch("mllama")
def build_mllama(c):
    last = ("<|begin_of_text|>", "<|end_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>", "<|python_tag|>",
            "<|finetune_right_pad_id|>", "<|image|>")
    base = with_bos(bytelevel_tokenizer(LLAMA3_SPLIT, last=last, merges=200), "<|begin_of_text|>")
    tok = wrap(base, bos_token="<|begin_of_text|>", eos_token="<|eot_id|>", pad_token="<|finetune_right_pad_id|>", padding_side="left")
    vocab = len(tok) - 1  # as in the real models, <|image|> is the first id past the output layer
    image_id = tok.convert_tokens_to_ids("<|image|>")
    assert image_id == vocab
    size, patch = c.pick(24, 36), c.pick(8, 9)
    width = c.pick(48, c.v_hidden)
    layers = 4
    middle = c.pick([0, 2], [1])
    cfg = transformers.MllamaConfig(
        text_config=dict(vocab_size=vocab, rms_norm_eps=1e-5, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                         pad_token_id=tok.pad_token_id, cross_attention_layers=c.pick([1, 3], [2]),
                         rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                          "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
                         **text_dims(c, num_hidden_layers=layers, intermediate_size=c.pick(64, 96), hidden_size=c.pick(48, c.t_hidden))),
        vision_config=dict(hidden_size=width, num_hidden_layers=3, num_global_layers=c.pick(1, 2), attention_heads=c.v_heads,
                           intermediate_size=c.pick(64, c.v_mlp), vision_output_dim=width * (1 + len(middle)), image_size=size, patch_size=patch,
                           max_num_tiles=4, intermediate_layers_indices=middle),
        image_token_index=image_id,
    )
    model = make(transformers.MllamaForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.MllamaImageProcessor(size={"height": size, "width": size}, max_image_tiles=4)
    proc = transformers.MllamaProcessor(ip, tok, chat_template=MLLAMA_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"image_features": "model.multi_modal_projector"},
                layers="model.language_model.layers", vocab=vocab + 8, embed_std=3.0, scales={"cross_attn.o_proj": 0.5})


# --------------------------------------------------------------------------------------------------
# 16. Pixtral and Mistral 3
# --------------------------------------------------------------------------------------------------

PIXTRAL_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {%- if message['role'] == 'system' %}
        {{- '[SYSTEM_PROMPT]' + message['content'][0]['text'] + '[/SYSTEM_PROMPT]' }}
    {%- elif message['role'] == 'user' %}
        {{- '[INST]' }}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'text' %}
                {{- part['text'] }}
            {%- elif part['type'] == 'image' %}
                {{- '[IMG]' }}
            {%- endif %}
        {%- endfor %}
        {{- '[/INST]' }}
    {%- elif message['role'] == 'assistant' %}
        {{- message['content'][0]['text'] + eos_token }}
    {%- endif %}
{%- endfor %}
"""


def pixtral_like(c, mistral3):
    first = ("<unk>", "<s>", "</s>", "[INST]", "[/INST]", "<pad>", "[IMG]", "[IMG_BREAK]", "[IMG_END]", "[SYSTEM_PROMPT]", "[/SYSTEM_PROMPT]")
    base = with_bos(bytelevel_tokenizer(LLAMA3_SPLIT, first=first), "<s>")
    tok = wrap(base, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<pad>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("[IMG]")
    patch, merge = c.pick(8, 10), 2 if mistral3 else 1
    longest = c.pick(64, 80)
    text = dict(model_type="mistral", vocab_size=vocab, rms_norm_eps=1e-5, head_dim=c.pick(24, 20), sliding_window=None,
                tie_word_embeddings=False, bos_token_id=1, eos_token_id=2, pad_token_id=5, **text_dims(c))
    vision = dict(model_type="pixtral", hidden_size=c.v_hidden, intermediate_size=c.v_mlp, num_hidden_layers=c.v_layers,
                  num_attention_heads=c.v_heads, image_size=longest, patch_size=patch, hidden_act="silu",
                  rope_parameters={"rope_type": "axial", "rope_theta": 10000.0})
    if mistral3:
        cfg = transformers.Mistral3Config(text_config=text, vision_config=vision, image_token_index=image_id, spatial_merge_size=merge,
                                          vision_feature_layer=-1, multimodal_projector_bias=False, tie_word_embeddings=False)
        model = make(transformers.Mistral3ForConditionalGeneration, cfg)
    else:
        cfg = transformers.LlavaConfig(text_config=text, vision_config=vision, image_token_index=image_id, vision_feature_layer=-1,
                                       vision_feature_select_strategy="full", image_seq_length=1, tie_word_embeddings=False)
        model = make(transformers.LlavaForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.PixtralImageProcessor(size={"longest_edge": longest}, patch_size={"height": patch * merge, "width": patch * merge})
    proc = transformers.PixtralProcessor(ip, tok, patch_size=patch, spatial_merge_size=merge, chat_template=PIXTRAL_TEMPLATE)
    c.sizes_for(c.pick(48, 60), c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, never=[image_id])


@arch("pixtral")
def build_pixtral(c):
    return pixtral_like(c, False)


@arch("mistral3")
def build_mistral3(c):
    return pixtral_like(c, True)


# --------------------------------------------------------------------------------------------------
# 17. BLIP-2 and Florence-2
# --------------------------------------------------------------------------------------------------


@arch("blip2")
def build_blip2(c):
    first = ("<s>", "<pad>", "</s>", "<unk>")
    base = with_bos(bytelevel_tokenizer(GPT2_SPLIT, first=first, last=("<image>",)), "</s>")
    tok = wrap(base, bos_token="</s>", eos_token="</s>", pad_token="<pad>", unk_token="</s>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    size, patch, queries = c.pick(64, 60), c.pick(16, 12), c.pick(6, 8)
    width = c.pick(48, c.t_hidden)
    cfg = transformers.Blip2Config(
        vision_config=dict(hidden_size=c.pick(48, c.v_hidden), intermediate_size=c.v_mlp, num_hidden_layers=2, num_attention_heads=c.v_heads,
                           image_size=size, patch_size=patch),
        qformer_config=dict(vocab_size=vocab, hidden_size=c.pick(40, 56), num_hidden_layers=c.pick(2, 3), num_attention_heads=4,
                            intermediate_size=80, max_position_embeddings=32, cross_attention_frequency=2,
                            hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        text_config=dict(model_type="opt", vocab_size=vocab, hidden_size=width, word_embed_proj_dim=width, ffn_dim=c.t_mlp,
                         num_hidden_layers=c.t_layers, num_attention_heads=c.t_heads, max_position_embeddings=128, dropout=0.0,
                         bos_token_id=2, eos_token_id=2, pad_token_id=1),
        num_query_tokens=queries, image_token_index=image_id,
    )
    model = make(transformers.Blip2ForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.BlipImageProcessor(size={"height": size, "width": size})
    proc = transformers.Blip2Processor(ip, tok, num_query_tokens=queries)
    c.sizes_for(size, c.pick(131, 127))
    ask = "Question: {} Answer:"
    cases = [Case("photo", ["photo"], ask.format(c.q_photo)), Case("wide", ["wide"], ask.format(c.q_wide))]
    return Spec(model, proc, cases, chat=False, taps={"vision_last_hidden": "vision_model", "qformer_last_hidden": "qformer",
                                                      "image_features": "language_projection"},
                layers="language_model.model.decoder.layers", vocab=vocab, embed_std=0.25, never=[image_id],
                scales={"embed_positions": 2.0, "language_model.model.decoder.layers.0.self_attn.out_proj": 0.5, "fc1": 1.5},
                gains=(1.2, 1.6, 2.0, 2.5, 3.0, 3.5))


def florence_stages(model, spec, inputs, start, tokens):
    """Stages of encoder and decoder, the latter on its start and on so many tokens after it. The tower's rows come one after another."""
    with Taps(model, spec) as taps:
        logits = model(**inputs, decoder_input_ids=torch.cat([start, tokens[None]], dim=1)).logits
    found = {k: drop_batch(k, v) for k, v in taps.found.items()}
    return found | {"logits_last8": logits[0]}


def drift_florence(model, taps, inputs, start, stages, tokens, steps):
    """As drift_blip."""
    inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    found, out = florence_stages(model, taps.spec, inputs, start, tokens), {}
    for key, want in stages.items():
        gap = (found[key].float().reshape(want.shape) - want.float()).abs()
        out[f"{key}.bf16_drift"] = torch.stack([gap.max(), gap.mean()])
    forced = greedy(model, inputs, len(tokens), forced=tokens)[2]
    out["greedy_drift"] = (forced - steps).abs().amax(-1)
    return out


def run_florence2(spec, ctx):
    """Encoder-decoder: what the encoder makes, the first step of the decoder, and greedy text."""
    model, proc, golden, cases = spec.model, spec.processor, {}, []
    for case in spec.cases:
        inputs, prompt, files, _ = encode(spec, case, ctx)
        new, margins, step_logits = greedy(model, inputs, NEW_TOKENS)
        start = torch.tensor([[model.generation_config.decoder_start_token_id]])
        full = florence_stages(model, spec, inputs, start, new)
        diff = float((full["logits_last8"][:-1] - step_logits).abs().max())
        assert diff < 2e-3, diff
        found = florence_stages(model, spec, inputs, start, new[:0])
        spec.drifts[case.name] = (inputs, start, full, new, step_logits)
        facts = {"distinct_greedy": len(set(new.tolist())), "min_margin": round(float(margins.min()), 5), "cache_vs_full_max_abs": diff,
                 "logits_std": round(float(full["logits_last8"].std()), 4)}
        add_pil_difference(spec, case, ctx, inputs, facts)
        golden.update({f"{case.name}.{k}": v for k, v in (inputs | found).items()})
        golden[f"{case.name}.decoder_input_ids"] = start
        golden[f"{case.name}.greedy_ids"] = new
        golden[f"{case.name}.greedy_margins"] = margins
        cases.append({"name": case.name, "images": files, "prompt": prompt, "input_ids": inputs["input_ids"][0].tolist(),
                      "decoder_input_ids": start[0].tolist(), "model_inputs": sorted(inputs) + ["decoder_input_ids"],
                      "greedy_ids": new.tolist(), "greedy_text": proc.tokenizer.decode(new), "facts": facts})
    return golden, cases


@arch("florence2")
def build_florence2(c):
    first = ("<s>", "<pad>", "</s>", "<unk>")
    base = with_bos(bytelevel_tokenizer(GPT2_SPLIT, first=first, last=("<mask>", "<image>"), merges=180), "<s>", "</s>")
    tok = wrap(base, bos_token="<s>", eos_token="</s>", pad_token="<pad>", unk_token="<unk>", cls_token="<s>", sep_token="</s>",
               mask_token="<mask>", image_token="<image>")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    size = c.pick(64, 96)
    grid = size // 32
    width = c.pick(48, 72)
    cfg = transformers.Florence2Config(
        vision_config=dict(depths=[1, 1, 2, 1] if c.is_second else [1, 1, 1, 1], embed_dim=c.pick([16, 24, 32, 48], [16, 24, 36, 40]),
                           num_heads=c.pick([2, 2, 4, 4], [2, 3, 3, 5]), num_groups=c.pick([2, 2, 4, 4], [2, 3, 3, 5]),
                           window_size=c.pick(5, 7), projection_dim=width, mlp_ratio=2.0, drop_path_rate=0.0,
                           max_temporal_embeddings=8, max_position_embeddings=8),
        text_config=dict(model_type="bart", vocab_size=vocab, d_model=width, encoder_layers=2, decoder_layers=c.pick(2, 3),
                         encoder_attention_heads=c.t_heads, decoder_attention_heads=c.t_heads, encoder_ffn_dim=c.t_mlp,
                         decoder_ffn_dim=c.t_mlp, max_position_embeddings=128, dropout=0.0, attention_dropout=0.0,
                         activation_dropout=0.0, scale_embedding=False, bos_token_id=0, pad_token_id=1, eos_token_id=2,
                         decoder_start_token_id=2, forced_bos_token_id=None, forced_eos_token_id=None, is_encoder_decoder=True),
        image_token_id=image_id, bos_token_id=0, pad_token_id=1, eos_token_id=2,
    )
    model = make(transformers.Florence2ForConditionalGeneration, cfg)
    generation(model, tok, decoder_start_token_id=2)
    ip = transformers.CLIPImageProcessor(size={"height": size, "width": size}, crop_size={"height": size, "width": size},
                                         do_center_crop=False, image_mean=[0.485, 0.456, 0.406], image_std=[0.229, 0.224, 0.225],
                                         image_seq_length=grid * grid + 1)
    proc = transformers.Florence2Processor(ip, tok)
    c.sizes_for(size, c.pick(131, 127))
    cases = [Case("photo", ["photo"], c.pick("<CAPTION>", "<MORE_DETAILED_CAPTION>")),
             Case("wide", ["wide"], c.pick("<CAPTION_TO_PHRASE_GROUNDING>an old temple", "<OPEN_VOCABULARY_DETECTION>the roof")),
             Case("plain", ["wide"], c.q_wide)]
    return Spec(model, proc, cases, chat=False, run=run_florence2, features="model", layers="model.language_model.decoder.layers",
                taps={"vision_last_hidden": "model.vision_tower", "encoder_last_hidden": "model.language_model.encoder"},
                vocab=vocab, embed_std=0.25, never=[image_id], gains=(1.2, 1.5, 1.8),
                scales={"embed_positions": 2.0, "decoder.layers.0.encoder_attn.out_proj": 0.4, "decoder.layers.1.encoder_attn.out_proj": 0.4,
                        "decoder.layers.2.encoder_attn.out_proj": 0.4, "self_attn.out_proj": 0.5, "language_model.decoder": 1.2})

# --------------------------------------------------------------------------------------------------
# 18. LFM2-VL: short convolutions and attention, SigLIP 2 tower with tiles
# --------------------------------------------------------------------------------------------------

LFM2_TEMPLATE = """\
{{- bos_token -}}
{%- for message in messages -%}
    {{- '<|im_start|>' + message['role'] + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'image' -%}
                {{- '<image>' -}}
            {%- elif item['type'] == 'text' -%}
                {{- item['text'] -}}
            {%- else -%}
                {{- item | tojson -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<|im_end|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|im_start|>assistant\\n' -}}
{%- endif -%}
"""


@arch("lfm2_vl")
def build_lfm2_vl(c):
    grid = [f"<|img_row_{r}_col_{k}|>" for r in range(1, 7) for k in range(1, 7) if r * k <= 6]
    first = ("<|pad|>", "<|startoftext|>", "<|endoftext|>")
    last = ("<|im_start|>", "<|im_end|>", "<image>", "<|image_start|>", "<|image_end|>", "<|img_thumbnail|>", *grid)
    base = with_bos(bytelevel_tokenizer(LLAMA3_SPLIT, first=first, last=last), "<|startoftext|>")
    tok = wrap(base, bos_token="<|startoftext|>", eos_token="<|im_end|>", pad_token="<|pad|>", padding_side="left", image_token="<image>",
               image_start_token="<|image_start|>", image_end_token="<|image_end|>", image_thumbnail_token="<|img_thumbnail|>")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    patch = c.pick(8, 6)
    types = [{"c": "conv", "f": "full_attention"}[t] for t in c.pick("ccfc", "cfc")]
    text = dict(
        model_type="lfm2", vocab_size=vocab, norm_eps=1e-5, layer_types=types, conv_L_cache=c.pick(3, 4), conv_bias=c.is_second,
        block_ff_dim=c.pick(136, 100), block_multiple_of=c.pick(24, 16), block_ffn_dim_multiplier=1.0, block_auto_adjust_ff_dim=not c.is_second,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, tie_word_embeddings=True,
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
        **text_dims(c, num_hidden_layers=len(types)),
    )
    del text["intermediate_size"]
    vision = dict(model_type="siglip2_vision_model", vision_use_head=False, hidden_size=c.pick(48, 40), intermediate_size=c.v_mlp,
                  num_hidden_layers=c.pick(3, 2), num_attention_heads=c.pick(4, 2), patch_size=patch, num_patches=c.pick(16, 25))
    cfg = transformers.Lfm2VlConfig(
        text_config=text, vision_config=vision, image_token_id=image_id, projector_hidden_size=c.pick(80, 72),
        projector_use_layernorm=not c.is_second, projector_bias=True, downsample_factor=2, tie_word_embeddings=True)
    model = make(transformers.Lfm2VlForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.Lfm2VlImageProcessor(
        encoder_patch_size=patch, tile_size=c.pick(32, 36), downsample_factor=2, min_tiles=2, max_tiles=c.pick(6, 4),
        min_image_tokens=c.pick(4, 6), max_image_tokens=c.pick(9, 12), do_image_splitting=True, use_thumbnail=True)
    proc = transformers.Lfm2VlProcessor(ip, tok, chat_template=LFM2_TEMPLATE)
    c.sizes_for(c.pick(48, 36), c.pick(131, 127))
    cases = c.standard_cases()
    cases.insert(2, Case("wide_unsplit", ["wide"], c.q_wide, do_image_splitting=False))
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model", layers="model.language_model.layers",
                vocab=vocab, embed_std=0.3, scales={"feed_forward.w2": 1.6, "out_proj": 0.8}, norm_boost={"embedding_norm": 0.8},
                never=[image_id, tok.pad_token_id, *ids(tok, *grid)])


# --------------------------------------------------------------------------------------------------
# 19. Aya Vision and Cohere 2 Vision
# --------------------------------------------------------------------------------------------------

COHERE_TEMPLATE = """\
{{ bos_token }}{% for message in messages %}{{ '<|START_OF_TURN_TOKEN|>' }}\
{% if message['role'] == 'user' %}{{ '<|USER_TOKEN|>' }}{% elif message['role'] == 'assistant' %}{{ '<|CHATBOT_TOKEN|><|START_RESPONSE|>' }}\
{% else %}{{ '<|SYSTEM_TOKEN|>' }}{% endif %}\
{% if message['content'] is string %}{{ message['content'] }}{% else %}{% for item in message['content'] %}\
{% if item['type'] == 'image' %}{{ '<|IMG_PATCH|>' }}{% elif item['type'] == 'text' %}{{ item['text'] }}{% endif %}{% endfor %}{% endif %}\
{% if message['role'] == 'assistant' %}{{ '<|END_RESPONSE|>' }}{% endif %}{{ '<|END_OF_TURN_TOKEN|>' }}{% endfor %}\
{% if add_generation_prompt %}{{ '<|START_OF_TURN_TOKEN|><|CHATBOT_TOKEN|><|START_RESPONSE|>' }}{% endif %}"""


def cohere_like(c, aya):
    first = ("<PAD>", "<UNK>", "<CLS>", "<SEP>", "<MASK_TOKEN>", "<BOS_TOKEN>", "<EOS_TOKEN>", "<EOP_TOKEN>")
    last = ("<|START_OF_TURN_TOKEN|>", "<|END_OF_TURN_TOKEN|>", "<|USER_TOKEN|>", "<|CHATBOT_TOKEN|>", "<|SYSTEM_TOKEN|>", "<|START_RESPONSE|>",
            "<|END_RESPONSE|>", "<|START_OF_IMG|>", "<|END_OF_IMG|>", "<|IMG_PATCH|>", "<|IMG_LINE_BREAK|>")
    last += ("<image>", "TILE", "TILE_GLOBAL") if aya else ()
    base = with_bos(bytelevel_tokenizer(GPT2_SPLIT, first=first, last=last, digits=True, normalizer=normalizers.NFC()), "<BOS_TOKEN>")
    tok = wrap(base, pad_token="<PAD>", unk_token="<UNK>", bos_token="<BOS_TOKEN>", eos_token="<|END_OF_TURN_TOKEN|>", padding_side="left",
               image_token="<|IMG_PATCH|>", boi_token="<|START_OF_IMG|>", eoi_token="<|END_OF_IMG|>", img_line_break_token="<|IMG_LINE_BREAK|>")
    vocab = pad_vocab(tok)
    image_id, boi = ids(tok, "<|IMG_PATCH|>", "<|START_OF_IMG|>")
    size, patch = c.pick((32, 4), (36, 6))
    types = [{"s": "sliding_attention", "f": "full_attention"}[t] for t in c.pick("sfs", "ssf")]
    text = dict(model_type="cohere2", vocab_size=vocab, layer_types=types, sliding_window=c.pick(20, 16), logit_scale=c.pick(0.75, 1.25),
                layer_norm_eps=1e-5, rope_parameters={"rope_type": "default", "rope_theta": 50000.0}, tie_word_embeddings=True, pad_token_id=0,
                bos_token_id=5, eos_token_id=tok.eos_token_id, **text_dims(c, num_hidden_layers=len(types)))
    vision = dict(model_type="siglip_vision_model", vision_use_head=False, **vit_dims(c, size, patch, num_hidden_layers=2))
    if aya:
        cfg = transformers.AyaVisionConfig(
            text_config=text, vision_config=vision, image_token_index=image_id, downsample_factor=2, vision_feature_layer=-1,
            vision_feature_select_strategy="full", alignment_intermediate_size=c.pick(112, 96), adapter_layer_norm_eps=1e-6, tie_word_embeddings=True)
        model = make(transformers.AyaVisionForConditionalGeneration, cfg)
        ip = transformers.GotOcr2ImageProcessor(size={"height": size, "width": size}, crop_to_patches=True, min_patches=1, max_patches=c.pick(6, 4),
                                                image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
        proc = transformers.AyaVisionProcessor(ip, tok, patch_size=patch, img_size=size, downsample_factor=2,
                                               chat_template=COHERE_TEMPLATE.replace("<|IMG_PATCH|>", "<image>"))
    else:
        cfg = transformers.Cohere2VisionConfig(text_config=text, vision_config=vision, image_token_id=image_id, downsample_factor=2,
                                               alignment_intermediate_size=c.pick(112, 96), tie_word_embeddings=True)
        model = make(transformers.Cohere2VisionForConditionalGeneration, cfg)
        # The processor takes the tokens of a tile to be patch_size squared; that is no patch size of anything here.
        ip = transformers.Cohere2VisionImageProcessor(size={"height": size, "width": size}, patch_size=size // patch // 2, crop_to_patches=True,
                                                      min_patches=1, max_patches=c.pick(6, 4))
        proc = transformers.Cohere2VisionProcessor(ip, tok, chat_template=COHERE_TEMPLATE)
    generation(model, tok)
    c.sizes_for(size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(two=c.is_second or not aya), taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, embed_std=0.3, scales={"mlp.down_proj": 1.6, "o_proj": 0.8},
                never=[image_id, 0, boi])


@arch("cohere2_vision")
def build_cohere2_vision(c):
    return cohere_like(c, aya=False)


@arch("aya_vision")
def build_aya_vision(c):
    return cohere_like(c, aya=True)


# --------------------------------------------------------------------------------------------------
# 20. Decoders by themselves
# --------------------------------------------------------------------------------------------------


class TextProcessor:
    """What run_generative needs of a processor, of a tokenizer alone."""

    def __init__(self, tokenizer, template):
        self.tokenizer = tokenizer
        tokenizer.chat_template = template

    def apply_chat_template(self, messages, processor_kwargs=None, **kw):
        return self.tokenizer.apply_chat_template(messages, **kw)

    def save_pretrained(self, target):
        self.tokenizer.save_pretrained(target)


def decoder(c, name, tok, template, vocab, text, **more):
    """A causal language model of config class `name`Config, with one case."""
    cfg = getattr(transformers, f"{name}Config")(vocab_size=vocab, **text)
    model = make(getattr(transformers, f"{name.removesuffix('Text')}ForCausalLM"), cfg)
    generation(model, tok)
    return Spec(model, TextProcessor(tok, template), [Case("text", [], c.chat_messages())], layers="model.layers",
                vocab=vocab, **more)


def plain_tokenizer():
    base = with_bos(metaspace_bpe(("<unk>", "<s>", "</s>"), (), "llama"), "<s>")
    return wrap(base, unk_token="<unk>", bos_token="<s>", eos_token="</s>", padding_side="left")


def gemma_tokenizer():
    last = ("<start_of_turn>", "<end_of_turn>")
    base = with_bos(metaspace_bpe(GEMMA_SPECIALS, last, "gemma"), "<bos>")
    return wrap(base, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", padding_side="left")


@arch("llama")
def build_llama(c):
    tok = plain_tokenizer()
    rope = {"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 64}
    return decoder(c, "Llama", tok, LLAVA_TEMPLATE, pad_vocab(tok), text_dims(
        c, rope_parameters=rope, rms_norm_eps=1e-5, tie_word_embeddings=False, attention_bias=c.pick(False, True),
        mlp_bias=c.pick(False, True)))


@arch("granite")
def build_granite(c):
    tok = plain_tokenizer()
    return decoder(c, "Granite", tok, LLAVA_TEMPLATE, pad_vocab(tok), text_dims(
        c, embedding_multiplier=c.pick(3.0, 2.5), logits_scaling=c.pick(1.5, 0.75), residual_multiplier=c.pick(0.7, 0.8),
        attention_multiplier=c.pick(0.2, 0.25), attention_bias=c.pick(False, True), mlp_bias=c.pick(True, False),
        tie_word_embeddings=False))


@arch("mistral")
def build_mistral(c):
    tok = plain_tokenizer()
    return decoder(c, "Mistral", tok, MISTRAL_TEMPLATE, pad_vocab(tok), text_dims(
        c, sliding_window=c.pick(20, 33), head_dim=c.pick(24, 20), rms_norm_eps=1e-5, tie_word_embeddings=False))


@arch("qwen2")
def build_qwen2(c):
    tok = qwen_tokenizer()
    return decoder(c, "Qwen2", tok, ONEVISION_TEMPLATE, pad_vocab(tok), text_dims(
        c, use_sliding_window=True, sliding_window=c.pick(17, 24), max_window_layers=1, tie_word_embeddings=c.pick(True, False)),
        embed_std=c.pick(0.3, 1.0))


@arch("qwen3")
def build_qwen3(c):
    tok = qwen_tokenizer()
    return decoder(c, "Qwen3", tok, ONEVISION_TEMPLATE, pad_vocab(tok), text_dims(
        c, head_dim=c.pick(24, 40), attention_bias=c.pick(False, True), tie_word_embeddings=False))


@arch("gemma")
def build_gemma(c):
    tok = gemma_tokenizer()
    return decoder(c, "Gemma", tok, GEMMA3_TEMPLATE, pad_vocab(tok), text_dims(
        c, head_dim=c.pick(24, 20), num_key_value_heads=1, bos_token_id=2, eos_token_id=1, pad_token_id=0), embed_std=0.1,
        norm_boost={"model.norm": 2.0}, scales={"self_attn.o_proj": 0.6, "mlp.down_proj": 1.6}, never=[0])


@arch("gemma2")
def build_gemma2(c):
    tok = gemma_tokenizer()
    return decoder(c, "Gemma2", tok, GEMMA3_TEMPLATE, pad_vocab(tok), text_dims(
        c, head_dim=c.pick(24, 20), query_pre_attn_scalar=c.pick(32, 28), sliding_window=c.pick(12, 16),
        attn_logit_softcapping=c.pick(4.0, 5.0), final_logit_softcapping=c.pick(6.0, 8.0), bos_token_id=2, eos_token_id=1,
        pad_token_id=0), embed_std=0.1, norm_boost=GEMMA_BOOST, never=[0], gains=(1.2, 1.4, 1.6, 1.8))


@arch("cohere2")
def build_cohere2(c):
    tok = plain_tokenizer()
    layers = c.pick(3, 4)
    return decoder(c, "Cohere2", tok, LLAVA_TEMPLATE, pad_vocab(tok), text_dims(
        c, num_hidden_layers=layers, layer_types=["full_attention" if i % 3 == 1 else "sliding_attention" for i in range(layers)],
        sliding_window=c.pick(20, 31), logit_scale=c.pick(0.25, 0.5), attention_bias=c.pick(False, True), bos_token_id=1,
        eos_token_id=2, pad_token_id=0), embed_std=c.pick(0.3, 0.4))


@arch("gemma3_text")
def build_gemma3_text(c):
    tok = gemma_tokenizer()
    rope = {"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
            "full_attention": {"rope_type": "default", "rope_theta": 1000000.0}}
    layers = c.pick(2, 4)
    return decoder(c, "Gemma3Text", tok, GEMMA3_TEMPLATE, pad_vocab(tok), text_dims(
        c, num_hidden_layers=layers, layer_types=["sliding_attention"] * (layers - 1) + ["full_attention"], rope_parameters=rope,
        head_dim=c.pick(24, 20), query_pre_attn_scalar=c.pick(32, 28), sliding_window=c.pick(20, 16), bos_token_id=2,
        eos_token_id=1, pad_token_id=0), embed_std=0.1, norm_boost=GEMMA_BOOST, never=[0], gains=(1.4, 1.8, 2.2, 2.6, 3.2))


# --------------------------------------------------------------------------------------------------
# 21. GLM-4.1V, GLM-4.6V-Flash, GLM-OCR
# --------------------------------------------------------------------------------------------------

GLM_TEMPLATE = """\
[gMASK]<sop>
{%- for message in messages %}
    {%- if message.role == 'system' %}
        {{- '<|system|>\\n' }}
        {%- if message.content is string %}{{- message.content }}{% else %}{%- for part in message.content %}{{- part.text }}{% endfor %}{% endif %}
    {%- elif message.role == 'user' %}
        {{- '<|user|>\\n' }}
        {%- if message.content is string %}
            {{- message.content }}
        {%- else %}
            {%- for part in message.content %}
                {%- if part.type == 'text' %}
                    {{- part.text }}
                {%- elif part.type == 'image' or 'image' in part %}
                    {{- '<|begin_of_image|><|image|><|end_of_image|>' }}
                {%- endif %}
            {%- endfor %}
        {%- endif %}
        {%- if NOTHINK and enable_thinking is defined and not enable_thinking %}{{- '/nothink' }}{% endif %}
    {%- elif message.role == 'assistant' %}
        {{- '<|assistant|>\\n' }}
        {%- if message.content is string %}{% set text = message.content %}{% else %}{% set text = message.content[0].text %}{% endif %}
        {%- if NOTHINK %}{{- '<think></think>\\n' }}{% endif %}
        {{- text.split('</think>')[-1].strip() }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|assistant|>\\n' }}
    {%- if NOTHINK and enable_thinking is defined and not enable_thinking %}{{- '<think></think>\\n' }}{% endif %}
{%- endif %}
"""


def glm_like(c, kind):
    last = ("<|endoftext|>", "[gMASK]", "<sop>", "<|system|>", "<|user|>", "<|assistant|>", "<|observation|>", "<|begin_of_image|>", "<|end_of_image|>",
            "<|begin_of_video|>", "<|end_of_video|>", "<|image|>", "<|video|>", "<think>", "</think>")
    base = bytelevel_tokenizer(LLAMA3_SPLIT, last=last)
    tok = wrap(base, eos_token="<|endoftext|>", pad_token="<|endoftext|>", padding_side="left", image_token="<|image|>", video_token="<|video|>")
    vocab = pad_vocab(tok)
    image_id, video_id, start, end, vstart, vend = ids(tok, "<|image|>", "<|video|>", "<|begin_of_image|>", "<|end_of_image|>", "<|begin_of_video|>",
                                                       "<|end_of_video|>")
    patch = c.pick(8, 10)
    ocr = kind == "ocr"
    rope = {"rope_type": "default", "rope_theta": 10000.0 if ocr else 500000.0}
    layers = c.pick(2, 3)
    text = dict(vocab_size=vocab, rms_norm_eps=1e-5, pad_token_id=tok.pad_token_id, eos_token_id=tok.eos_token_id,
                **text_dims(c, num_hidden_layers=layers, intermediate_size=c.pick(112, 72) - (16 if kind == "4.6" else 0)))
    if ocr:  # heads * head_dim differs from the hidden size; the whole head turns
        text.update(head_dim=c.pick(24, 20))
        rope.update(partial_rotary_factor=1.0, mrope_section=c.pick([2, 5, 5], [4, 3, 3]))
    else:  # the first half of each head turns
        rope.update(partial_rotary_factor=0.5, mrope_section=c.pick([2, 1, 1], [1, 2, 1]))
    text["rope_parameters"] = rope
    vision = dict(depth=c.pick(3, 1) if kind == "4.6" else 2, hidden_size=c.pick(48, 40), num_heads=c.pick(3, 2), intermediate_size=c.pick(72, 56), out_hidden_size=c.t_hidden,
                  image_size=patch * c.pick(6, 5), patch_size=patch, attention_bias=ocr)
    name = {"4.1": "Glm4v", "4.6": "Glm46V", "ocr": "GlmOcr"}[kind]
    if kind == "4.6":
        text["model_type"], vision["model_type"] = "glm4v_text", "glm4v_vision"
    cfg = getattr(transformers, name + "Config")(
        text_config=text, vision_config=vision, image_token_id=image_id, video_token_id=video_id, image_start_token_id=start,
        image_end_token_id=end, video_start_token_id=vstart, video_end_token_id=vend, tie_word_embeddings=False)
    model = make(getattr(transformers, name + "ForConditionalGeneration"), cfg)
    generation(model, tok)
    model.generation_config.eos_token_id = ids(tok, "<|endoftext|>", "<|user|>")
    part = "Glm4v" if kind == "4.1" else "Glm46V"
    # The two limits count both copies of a still picture.
    ip_kw = dict(patch_size=patch, merge_size=2, temporal_patch_size=2, size={"shortest_edge": c.pick(2048, 3200), "longest_edge": c.pick(14336, 16000)})
    proc = getattr(transformers, part + "Processor")(
        getattr(transformers, part + "ImageProcessor")(**ip_kw), tok, getattr(transformers, part + "VideoProcessor")(**ip_kw),
        chat_template=GLM_TEMPLATE.replace("NOTHINK", "true" if kind == "4.6" else "false"))
    c.sizes_for(c.pick(64, 40), c.pick(131, 103))
    return Spec(model, proc, c.standard_cases(two=c.is_second or kind != "4.6"), taps={"vision_last_hidden": "model.visual"}, features="model",
                layers="model.language_model.layers", positions="model.language_model", vocab=vocab, never=[image_id, video_id, start, vstart])


@arch("glm4v")
def build_glm4v(c):
    return glm_like(c, "4.1")


@arch("glm46v")
def build_glm46v(c):
    return glm_like(c, "4.6")


@arch("glm_ocr")
def build_glm_ocr(c):
    return glm_like(c, "ocr")


# --------------------------------------------------------------------------------------------------
# 22. PaddleOCR-VL
# --------------------------------------------------------------------------------------------------

PADDLE_TEMPLATE = """\
{%- if not add_generation_prompt is defined -%}
    {%- set add_generation_prompt = true -%}
{%- endif -%}
{%- if not cls_token is defined -%}
    {%- set cls_token = "<|begin_of_sentence|>" -%}
{%- endif -%}
{%- set picture = "<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>" -%}
{{- cls_token -}}
{%- for message in messages -%}
    {%- if message["role"] == "user" -%}
        {{- "User: " -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "image" -%}{{- picture -}}{%- endif -%}
        {%- endfor -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}{{- content["text"] -}}{%- endif -%}
        {%- endfor -%}
        {{- "\\n" -}}
    {%- elif message["role"] == "assistant" -%}
        {{- "Assistant:\\n" -}}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}{{- content["text"] -}}{%- endif -%}
        {%- endfor -%}
        {{- eos_token -}}
    {%- elif message["role"] == "system" -%}
        {%- for content in message["content"] -%}
            {%- if content["type"] == "text" -%}{{- content["text"] + "\\n" -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- "Assistant:\\n" -}}
{%- endif -%}
"""


@arch("paddleocr_vl")
def build_paddleocr_vl(c):
    last = ("<|begin_of_sentence|>", "<|IMAGE_START|>", "<|IMAGE_END|>", "<|IMAGE_PLACEHOLDER|>", "<|video_pad|>")
    base = metaspace_bpe(("<unk>", "<s>", "</s>"), last, "llama")
    tok = wrap(base, unk_token="<unk>", bos_token="<s>", eos_token="</s>", pad_token="<unk>", cls_token="<|begin_of_sentence|>",
               image_token="<|IMAGE_PLACEHOLDER|>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id, video_id, start_id, end_id = ids(tok, "<|IMAGE_PLACEHOLDER|>", "<|video_pad|>", "<|IMAGE_START|>", "<|IMAGE_END|>")
    patch = c.pick(8, 6)
    tied = c.is_second
    text = dict(vocab_size=vocab, rms_norm_eps=1e-5, head_dim=c.pick(24, 20), use_bias=c.is_second, tie_word_embeddings=tied, pad_token_id=0,
                bos_token_id=1, eos_token_id=2, rope_parameters={"rope_type": "default", "rope_theta": 500000.0,
                                                                 "mrope_section": c.pick([4, 4, 4], [2, 4, 4])},
                **text_dims(c, num_hidden_layers=c.pick(3, 2)))
    vision = dict(hidden_size=c.pick(48, 40), intermediate_size=c.pick(80, 56), num_hidden_layers=c.pick(3, 2), num_attention_heads=c.pick(3, 2),
                  image_size=patch * c.pick(6, 5), patch_size=patch, spatial_merge_size=2)
    cfg = transformers.PaddleOCRVLConfig(
        text_config=text, vision_config=vision, image_token_id=image_id, video_token_id=video_id, vision_start_token_id=start_id,
        vision_end_token_id=end_id, tie_word_embeddings=tied)
    model = make(transformers.PaddleOCRVLForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.PaddleOCRVLImageProcessor(patch_size=patch, merge_size=2, temporal_patch_size=1,
                                                size={"shortest_edge": c.pick(1024, 1152), "longest_edge": c.pick(10240, 4320)})
    proc = transformers.PaddleOCRVLProcessor(ip, tok, chat_template=PADDLE_TEMPLATE)
    c.sizes_for(c.pick(64, 48), c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "model.visual"}, features="model",
                layers="model.language_model.layers", positions="model.language_model", vocab=vocab, embed_std=0.3 if tied else 1.0,
                scales={"down_proj": 1.6, "o_proj": 0.7} if tied else {}, never=[image_id, video_id, start_id])


# --------------------------------------------------------------------------------------------------
# 23. Qwen 3.5 / 3.6: gated DeltaNet layers and gated attention, dense and mixture of experts
# --------------------------------------------------------------------------------------------------

QWEN35_SPLIT = QWEN2_SPLIT.replace(r"[^\r\n\p{L}\p{N}]?\p{L}+", r"[^\r\n\p{L}\p{N}]?[\p{L}\p{M}]+").replace(
    r" ?[^\s\p{L}\p{N}]+[\r\n]*", r" ?[^\s\p{L}\p{M}\p{N}]+[\r\n]*")

QWEN35_TEMPLATE = """\
{%- set image_count = namespace(value=0) %}
{%- macro render_content(content, do_vision_count, is_system_content=false) %}
    {%- if content is string %}
        {{- content }}
    {%- elif content is iterable and content is not mapping %}
        {%- for item in content %}
            {%- if 'image' in item or 'image_url' in item or item.type == 'image' %}
                {%- if is_system_content %}
                    {{- raise_exception('System message cannot contain images.') }}
                {%- endif %}
                {%- if do_vision_count %}
                    {%- set image_count.value = image_count.value + 1 %}
                {%- endif %}
                {%- if add_vision_id %}
                    {{- 'Picture ' ~ image_count.value ~ ': ' }}
                {%- endif %}
                {{- '<|vision_start|><|image_pad|><|vision_end|>' }}
            {%- elif 'text' in item %}
                {{- item.text }}
            {%- else %}
                {{- raise_exception('Unexpected item type in content.') }}
            {%- endif %}
        {%- endfor %}
    {%- elif content is none or content is undefined %}
        {{- '' }}
    {%- else %}
        {{- raise_exception('Unexpected content type.') }}
    {%- endif %}
{%- endmacro %}
{%- if not messages %}
    {{- raise_exception('No messages provided.') }}
{%- endif %}
{%- if messages[0].role == 'system' %}
    {%- set content = render_content(messages[0].content, false, true)|trim %}
    {{- '<|im_start|>system\\n' + content + '<|im_end|>\\n' }}
{%- endif %}
{%- set ns = namespace(last_query_index=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- set index = (messages|length - 1) - loop.index0 %}
    {%- if message.role == 'user' and ns.last_query_index == messages|length - 1 %}
        {%- set ns.last_query_index = index %}
    {%- endif %}
{%- endfor %}
{%- for message in messages %}
    {%- set content = render_content(message.content, true)|trim %}
    {%- if message.role == 'system' %}
        {%- if not loop.first %}
            {{- raise_exception('System message must be at the beginning.') }}
        {%- endif %}
    {%- elif message.role == 'user' %}
        {{- '<|im_start|>' + message.role + '\\n' + content + '<|im_end|>' + '\\n' }}
    {%- elif message.role == 'assistant' %}
        {%- if '</think>' in content %}
            {%- set content = content.split('</think>')[-1].lstrip('\\n') %}
        {%- endif %}
        {%- if loop.index0 > ns.last_query_index %}
            {{- '<|im_start|>' + message.role + '\\n<think>\\n\\n</think>\\n\\n' + content }}
        {%- else %}
            {{- '<|im_start|>' + message.role + '\\n' + content }}
        {%- endif %}
        {{- '<|im_end|>\\n' }}
    {%- else %}
        {{- raise_exception('Unexpected message role.') }}
    {%- endif %}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\\n' }}
    {%- if enable_thinking is defined and enable_thinking is false %}
        {{- '<think>\\n\\n</think>\\n\\n' }}
    {%- else %}
        {{- '<think>\\n' }}
    {%- endif %}
{%- endif %}
"""


def qwen35_like(c, moe):
    base = bytelevel_tokenizer(QWEN35_SPLIT, last=QWEN_SPECIALS + ("<think>", "</think>"), normalizer=normalizers.NFC())
    tok = wrap(base, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id, video_id, start_id, end_id = ids(tok, "<|image_pad|>", "<|video_pad|>", "<|vision_start|>", "<|vision_end|>")
    patch = c.pick(8, 10)
    tied = c.is_second and not moe
    ip_kw = dict(patch_size=patch, merge_size=2, temporal_patch_size=2, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5],
                 size={"shortest_edge": c.pick(1024, 1600), "longest_edge": c.pick(3072 if moe else 5120, 8000)})
    layers = c.pick(3 if moe else 4, 4 if moe else 5)
    interval = c.pick(3 if moe else 4, 3)
    # Key heads differ from value heads in number and size, so that no two axes of a state can be mixed up unnoticed.
    text = dict(
        vocab_size=vocab, rms_norm_eps=1e-6, bos_token_id=ids(tok, "<|endoftext|>")[0], eos_token_id=tok.eos_token_id, head_dim=c.pick(32, 24),
        layer_types=["full_attention" if (i + 1) % interval == 0 else "linear_attention" for i in range(layers)],
        linear_conv_kernel_dim=c.pick(4, 3), linear_key_head_dim=c.pick(16, 12), linear_value_head_dim=c.pick(24, 20),
        linear_num_key_heads=c.pick(2, 1), linear_num_value_heads=c.pick(4, 3), tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
                         "mrope_section": c.pick([2, 1, 1], [1, 1, 1])},
        **text_dims(c, num_hidden_layers=layers, intermediate_size=c.pick(96, 72)),
    )
    if moe:
        del text["intermediate_size"]
        text.update(num_experts=c.pick(6, 5), num_experts_per_tok=c.pick(2, 3), moe_intermediate_size=16,
                    shared_expert_intermediate_size=c.pick(40, 28))
    vision = dict(depth=2, hidden_size=c.pick(24 if moe else 32, 36), intermediate_size=c.pick(80, 56), num_heads=c.pick(2, 3), patch_size=patch,
                  out_hidden_size=c.t_hidden, num_position_embeddings=c.pick(36, 64))
    name = "Qwen3_5Moe" if moe else "Qwen3_5"
    cfg = getattr(transformers, name + "Config")(
        text_config=text, vision_config=vision, tie_word_embeddings=tied, image_token_id=image_id, video_token_id=video_id,
        vision_start_token_id=start_id, vision_end_token_id=end_id)
    model = make(getattr(transformers, name + "ForConditionalGeneration"), cfg)
    generation(model, tok)
    proc = transformers.Qwen3VLProcessor(transformers.Qwen2VLImageProcessor(**ip_kw), tok, transformers.Qwen3VLVideoProcessor(**ip_kw),
                                         chat_template=QWEN35_TEMPLATE)
    c.sizes_for(c.pick(64, 40), c.pick(131, 103))
    cases = [case for case in c.standard_cases() if c.is_second or not moe or case.name in ("two", "text")]
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.visual"}, features="model",
                layers="model.language_model.layers", positions="model.language_model", vocab=vocab,
                norm_offset={name + "RMSNorm": 0.0}, values=(("A_log", -2.0, 1.0), ("dt_bias", 0.3, 0.5)),
                embed_std=0.3 if tied else 1.0, scales={"down_proj": 1.6, "o_proj": 0.7} if tied else {},
                coarse=moe, never=[image_id, video_id, start_id])


@arch("qwen3_5")
def build_qwen3_5(c):
    return qwen35_like(c, moe=False)


@arch("qwen3_5_moe")
def build_qwen3_5_moe(c):
    return qwen35_like(c, moe=True)


# --------------------------------------------------------------------------------------------------
# 24. MiniCPM-V 4.6: Qwen 3.5's decoder, slices
# --------------------------------------------------------------------------------------------------

@arch("minicpmv4_6")
def build_minicpmv4_6(c):
    last = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "</image>", "<slice>", "</slice>", "<image_id>", "</image_id>", "<|image_pad|>",
            "<|video_pad|>", "<think>", "</think>")
    base = bytelevel_tokenizer(QWEN35_SPLIT, last=last, normalizer=normalizers.NFC())
    tok = wrap(base, eos_token="<|im_end|>", pad_token="<|endoftext|>", padding_side="left", image_token="<|image_pad|>",
               video_token="<|video_pad|>", image_start_token="<image>", image_end_token="</image>", slice_start_token="<slice>",
               slice_end_token="</slice>", image_id_start_token="<image_id>", image_id_end_token="</image_id>")
    vocab = pad_vocab(tok)
    image_id, video_id, start_id, slice_id = ids(tok, "<|image_pad|>", "<|video_pad|>", "<image>", "<slice>")
    patch, scale = c.pick(4, 5), c.pick(48, 40)
    tied = not c.is_second
    types = [{"l": "linear_attention", "f": "full_attention"}[t] for t in c.pick("llf", "lfl")]
    text = dict(
        model_type="qwen3_5_text", vocab_size=vocab, rms_norm_eps=1e-6, bos_token_id=ids(tok, "<|endoftext|>")[0], eos_token_id=tok.eos_token_id,
        head_dim=c.pick(32, 24), layer_types=types, linear_conv_kernel_dim=4, linear_key_head_dim=c.pick(16, 12),
        linear_value_head_dim=c.pick(24, 20), linear_num_key_heads=c.pick(2, 1), linear_num_value_heads=c.pick(4, 3), tie_word_embeddings=tied,
        rope_parameters={"rope_type": "default", "rope_theta": 10000000.0, "partial_rotary_factor": 0.25, "mrope_interleaved": True,
                         "mrope_section": c.pick([2, 1, 1], [1, 1, 1])},
        **text_dims(c, num_hidden_layers=len(types), intermediate_size=c.pick(96, 72)),
    )
    vision = dict(hidden_size=c.pick(32, 40), intermediate_size=c.pick(48, 36), num_hidden_layers=3, num_attention_heads=c.pick(4, 2),
                  image_size=patch * c.pick(10, 7), patch_size=patch)
    cfg = transformers.MiniCPMV4_6Config(
        text_config=text, vision_config=vision, insert_layer_id=c.pick(1, 0), image_size=scale, image_token_id=image_id, video_token_id=video_id,
        tie_word_embeddings=tied)
    model = make(transformers.MiniCPMV4_6ForConditionalGeneration, cfg)
    generation(model, tok)
    ip_kw = dict(max_slice_nums=c.pick(9, 4), scale_resolution=scale, patch_size=patch)
    proc = transformers.MiniCPMV4_6Processor(
        transformers.MiniCPMV4_6ImageProcessor(**ip_kw), transformers.MiniCPMV4_6VideoProcessor(**ip_kw), tok,
        chat_template=QWEN35_TEMPLATE.replace("<|vision_start|><|image_pad|><|vision_end|>", "<|image_pad|>\\n"))
    c.sizes_for(scale, c.pick(131, 103))
    cases = c.standard_cases()
    cases.insert(2, Case("wide_unsplit", ["wide"], c.q_wide, max_slice_nums=1))
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model", layers="model.language_model.layers",
                vocab=vocab, norm_offset={"Qwen3_5RMSNorm": 0.0}, values=(("A_log", -2.0, 1.0), ("dt_bias", 0.3, 0.5)),
                embed_std=0.3 if tied else 1.0, scales={"language_model.layers.0.mlp.down_proj": 1.6, "o_proj": 0.7} if tied else {},
                never=[image_id, video_id, start_id, slice_id])


# --------------------------------------------------------------------------------------------------
# 25. Gemma 4: dense (31B kind), E (E2B/E4B kind), mixture of experts (26B-A4B kind)
# --------------------------------------------------------------------------------------------------

GEMMA4_TEMPLATE = """\
{{- bos_token -}}
{%- set turns = messages -%}
{%- if messages[0]['role'] in ['system', 'developer'] or (enable_thinking is defined and enable_thinking) -%}
    {{- '<|turn>system\\n' -}}
    {%- if enable_thinking is defined and enable_thinking -%}
        {{- '<|think|>' -}}
    {%- endif -%}
    {%- if messages[0]['role'] in ['system', 'developer'] -%}
        {%- if messages[0]['content'] is string -%}
            {{- messages[0]['content'] | trim -}}
        {%- else -%}
            {%- for item in messages[0]['content'] -%}{{- item['text'] | trim -}}{%- endfor -%}
        {%- endif -%}
        {%- set turns = messages[1:] -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endif -%}
{%- for message in turns -%}
    {%- set role = 'model' if message['role'] == 'assistant' else message['role'] -%}
    {{- '<|turn>' + role + '\\n' -}}
    {%- if message['content'] is string -%}
        {{- message['content'] | trim -}}
    {%- else -%}
        {%- for item in message['content'] -%}
            {%- if item['type'] == 'text' -%}
                {{- item['text'] | trim -}}
            {%- elif item['type'] == 'image' -%}
                {{- '\\n\\n<|image|>\\n\\n' -}}
            {%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {{- '<turn|>\\n' -}}
{%- endfor -%}
{%- if add_generation_prompt -%}
    {{- '<|turn>model\\n' -}}
{%- endif -%}
"""


def gemma4_like(c, kind):
    last = ("<|turn>", "<turn|>", "<|think|>", "<|channel>", "<channel|>", "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>",
            "<|video|>")
    base = with_bos(metaspace_bpe(GEMMA_SPECIALS, last, "gemma", merges=120), "<bos>")
    tok = wrap(base, pad_token="<pad>", eos_token="<eos>", bos_token="<bos>", unk_token="<unk>", mask_token="<mask>", padding_side="left",
               boi_token="<|image>", eoi_token="<image|>", image_token="<|image|>", boa_token="<|audio>", eoa_token="<audio|>",
               audio_token="<|audio|>")
    vocab = pad_vocab(tok)
    boi, eoi, image_id, boa, eoa, audio_id, video_id = ids(tok, "<|image>", "<image|>", "<|image|>", "<|audio>", "<audio|>", "<|audio|>", "<|video|>")
    # 70 soft tokens is the least the image processor takes; patches are small instead.
    patch, pool = c.pick(2, 6), c.pick(3, 2)
    types = {"dense": c.pick("ssf", "sfsf"), "e": c.pick("ssfsf", "sfsf"), "moe": c.pick("ssf", "sf")}[kind]
    layer_types = [{"s": "sliding_attention", "f": "full_attention"}[t] for t in types]
    text = dict(
        vocab_size=vocab, rms_norm_eps=1e-6, head_dim=c.pick(16, 20), global_head_dim=c.pick(32, 24), sliding_window=c.pick(20, 16),
        layer_types=layer_types, final_logit_softcapping=c.pick(30.0, 12.0), hidden_activation="gelu_pytorch_tanh", tie_word_embeddings=True,
        rope_parameters={"sliding_attention": {"rope_type": "default", "rope_theta": 10000.0},
                         "full_attention": {"rope_type": "proportional", "partial_rotary_factor": 0.25, "rope_theta": 1000000.0}},
        bos_token_id=2, eos_token_id=1, pad_token_id=0,
        **text_dims(c, hidden_size=c.pick(64, 72), num_hidden_layers=len(types), num_attention_heads=c.pick(4, 6), num_key_value_heads=c.pick(2, 3),
                    intermediate_size=c.pick(80, 72)),
    )
    vision = dict(hidden_size=c.pick(48, 40), intermediate_size=c.pick(64, 56), num_hidden_layers=2, num_attention_heads=c.pick(3, 2),
                  num_key_value_heads=c.pick(3, 1), head_dim=c.pick(16, 20), patch_size=patch, pooling_kernel_size=pool,
                  position_embedding_size=c.pick(40, 36), rope_parameters={"rope_type": "axial", "rope_theta": 100.0})
    if kind == "e":
        text.update(hidden_size_per_layer_input=c.pick(16, 12), vocab_size_per_layer_input=vocab, num_kv_shared_layers=2,
                    use_double_wide_mlp=c.pick(True, False), intermediate_size=c.pick(56, 64), num_key_value_heads=c.pick(1, 2), attention_k_eq_v=False)
        vision.update(use_clipped_linears=True)
    else:
        text.update(hidden_size_per_layer_input=0, attention_k_eq_v=True, num_global_key_value_heads=c.pick(1, 2),
                    use_bidirectional_attention="vision")
        vision.update(standardize=True)
    if kind == "moe":
        text.update(enable_moe_block=True, num_experts=c.pick(6, 5), top_k_experts=c.pick(2, 3), moe_intermediate_size=c.pick(24, 16))
    cfg = transformers.Gemma4Config(
        text_config=text, vision_config=vision, audio_config=None, boi_token_id=boi, eoi_token_id=eoi, image_token_id=image_id,
        boa_token_id=boa, eoa_token_index=eoa, audio_token_id=audio_id, video_token_id=video_id, tie_word_embeddings=True)
    model = make(transformers.Gemma4ForConditionalGeneration, cfg)
    generation(model, tok)
    model.generation_config.eos_token_id = [1, tok.convert_tokens_to_ids("<turn|>")]
    ip_kw = dict(patch_size=patch, pooling_kernel_size=pool, max_soft_tokens=70)
    proc = transformers.Gemma4Processor(
        transformers.Gemma4AudioFeatureExtractor(), transformers.Gemma4ImageProcessor(**ip_kw), tok, transformers.Gemma4VideoProcessor(**ip_kw),
        image_seq_length=70, chat_template=GEMMA4_TEMPLATE)
    c.sizes_for(c.pick(64, 96), c.pick(131, 127))
    boost = dict(GEMMA_BOOST, **{"q_norm": -0.3, "k_norm": -0.3})
    values = (("layer_scalar", 0.8, 0.1), ("std_bias", 0.0, 2.0), ("std_scale", 1.0, 0.2), ("router.scale", 1.0, 0.2), ("per_expert_scale", 1.0, 0.2),
              ("o_proj.input_max", 0.4, 0.05), ("down_proj.input_max", 0.4, 0.05), ("o_proj.input_min", -0.4, 0.05), ("down_proj.input_min", -0.3, 0.05),
              ("input_min", -1.2, 0.1), ("input_max", 1.2, 0.1), ("down_proj.output_min", -0.4, 0.05),
              ("down_proj.output_max", 0.4, 0.05), ("output_min", -1.2, 0.1), ("output_max", 1.2, 0.1),
              ("embed_tokens_per_layer", 0.0, 0.3), ("router.proj", 0.0, 1.5))
    every = c.standard_cases()
    kept = ("two",) if kind == "dense" else ("wide", "text")
    cases = every if c.is_second else [case for case in every if case.name in kept]
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, embed_std=0.1, norm_boost=boost, norm_offset={"Gemma4RMSNorm": 1.0},
                values=values, coarse=kind == "e", never=[image_id, video_id, audio_id, 0, boi], gains=(1.4, 1.8, 2.2, 2.6, 3.2))


@arch("gemma4")
def build_gemma4(c):
    return gemma4_like(c, "dense")


@arch("gemma4_e")
def build_gemma4_e(c):
    return gemma4_like(c, "e")


@arch("gemma4_moe")
def build_gemma4_moe(c):
    return gemma4_like(c, "moe")


# --------------------------------------------------------------------------------------------------
# 26. Ovis 2
# --------------------------------------------------------------------------------------------------


@arch("ovis2")
def build_ovis2(c):
    marks = ("<IMG_START>", "<IMG_GRID>", "<IMG_COL>", "<IMG_ROW>", "<IMG_END>")
    tok = qwen_tokenizer(("<image>", "<IMG_ATOM>", *marks))
    vocab = pad_vocab(tok)
    atom, image_id, *mark_ids = ids(tok, "<IMG_ATOM>", "<image>", *marks)
    size, patch = c.pick((32, 4), (36, 6))
    tied = True
    cfg = transformers.Ovis2Config(
        vision_config=dict(hidden_size=c.pick(48, 40), intermediate_size=c.pick(80, 56), num_hidden_layers=2, num_attention_heads=c.pick(3, 2),
                           image_size=size, patch_size=patch, vocab_size=c.pick(96, 80), hidden_stride=2, num_visual_indicator_tokens=5,
                           qkv_bias=c.is_second, mlp_bias=c.is_second, tokenize_function="softmax"),
        text_config=dict(model_type="qwen2", vocab_size=vocab, rms_norm_eps=1e-6, eos_token_id=tok.eos_token_id, tie_word_embeddings=tied,
                         rope_parameters={"rope_type": "default", "rope_theta": 1000000.0}, **text_dims(c)),
        image_token_id=atom, visual_indicator_token_ids=mark_ids, vocab_size=vocab, hidden_size=c.t_hidden, tie_word_embeddings=tied)
    model = make(transformers.Ovis2ForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.Ovis2ImageProcessor(size={"height": size, "width": size}, crop_to_patches=True, min_patches=1, max_patches=c.pick(6, 4))
    proc = transformers.Ovis2Processor(ip, tok, image_seq_length=(size // patch // 2) ** 2, chat_template=ONEVISION_TEMPLATE.replace("' '", "'\\n'"))
    c.sizes_for(size, c.pick(131, 127))
    cases = [case for case in c.standard_cases() if c.is_second or case.name in ("two", "text")]
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, embed_std=0.3, scales={"mlp.down_proj": 1.6, "o_proj": 0.7},
                norm_boost={"head_norm": 2.5}, never=[atom, image_id, *mark_ids])


# --------------------------------------------------------------------------------------------------
# 27. DeepSeek-OCR 2
# --------------------------------------------------------------------------------------------------


DEEPSEEK_TEMPLATE = """\
{%- for message in messages -%}
    {%- if message['role'] == 'assistant' -%}{{- ' ' -}}{%- endif -%}
    {%- if message['content'] is string -%}
        {{- message['content'] -}}
    {%- else -%}
        {%- for part in message['content'] -%}
            {%- if part['type'] == 'image' -%}{{- '<image>\\n' -}}
            {%- elif part['type'] == 'text' -%}{{- part['text'] -}}{%- endif -%}
        {%- endfor -%}
    {%- endif -%}
    {%- if message['role'] == 'assistant' -%}{{- eos_token -}}{%- else -%}{{- '\\n' -}}{%- endif -%}
{%- endfor -%}"""


def deepseek_tokenizer(first, last, merges=256):
    """Byte-level BPE behind the three splits of DeepSeek-V3."""
    pre = pre_tokenizers.Sequence([
        pre_tokenizers.Split(Regex(r"\p{N}{1,3}"), behavior="isolated", invert=False),
        pre_tokenizers.Split(Regex("[\u4e00-\u9fa5\u3040-\u309f\u30a0-\u30ff]+"), behavior="isolated", invert=False),
        pre_tokenizers.Split(Regex(r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+| ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"),
                             behavior="isolated", invert=False),
        pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
    ])
    pairs = train_bpe(corpus_words(None, pre), merges)
    vocab = number(first, byte_alphabet(), [a + b for a, b in pairs])
    tok = Tokenizer(models.BPE(vocab=vocab, merges=pairs, fuse_unk=False, byte_fallback=False))
    tok.pre_tokenizer = pre
    tok.decoder = decoders.ByteLevel()
    tok.add_special_tokens([special(t) for t in (*first, *last)])
    return tok


@arch("deepseek_ocr2")
def build_deepseek_ocr2(c):
    bos, eos, pad = "<\uff5cbegin\u2581of\u2581sentence\uff5c>", "<\uff5cend\u2581of\u2581sentence\uff5c>", "<\uff5c\u2581pad\u2581\uff5c>"
    base = with_bos(deepseek_tokenizer((bos, eos, pad), ("<image>", "<|grounding|>", "<|ref|>", "<|/ref|>", "<|det|>", "<|/det|>"), merges=200), bos)
    tok = wrap(base, bos_token=bos, eos_token=eos, pad_token=pad, image_token="<image>", padding_side="left")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    # The model class has 144 and 256 queries whatever the configuration says, so one patch is one pixel here:
    # tiles of 48 pixels give 12 x 12 positions, the whole picture of 64 pixels 16 x 16.
    width, heads = c.pick(32, 40), c.pick(4, 5)
    sam = dict(hidden_size=c.pick(12, 18), output_channels=c.pick(16, 12), num_hidden_layers=2, num_attention_heads=c.pick(2, 3), image_size=64,
               patch_size=1, window_size=c.pick(14, 10), global_attn_indexes=c.pick([1], [0]), mlp_dim=c.pick(28, 36),
               downsample_channels=[c.pick(24, 20), width])
    encoder = dict(vocab_size=vocab, hidden_size=width, intermediate_size=c.pick(56, 48), num_hidden_layers=2, num_attention_heads=heads,
                   num_key_value_heads=c.pick(2, 1), rms_norm_eps=1e-6, rope_parameters={"rope_type": "default", "rope_theta": 1000000.0})
    kinds = c.pick(["dense", "sparse"], ["dense", "sparse", "sparse"])
    text = dict(vocab_size=vocab, hidden_size=width, intermediate_size=c.pick(72, 64), num_hidden_layers=len(kinds), num_attention_heads=heads,
                num_key_value_heads=heads, mlp_layer_types=kinds, n_routed_experts=c.pick(6, 5), n_shared_experts=c.pick(2, 1),
                num_experts_per_tok=c.pick(2, 3), moe_intermediate_size=c.pick(24, 16), topk_method="greedy", n_group=1, topk_group=1,
                routed_scaling_factor=1.0, rms_norm_eps=1e-6, max_position_embeddings=2048, bos_token_id=0, eos_token_id=1, pad_token_id=2,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    cfg = transformers.DeepseekOcr2Config(vision_config=dict(sam_config=sam, encoder_config=encoder), text_config=text, image_token_id=image_id)
    model = make(transformers.DeepseekOcr2ForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.DeepseekOcr2ImageProcessor(size={"height": 64, "width": 64}, tile_size=48, min_patches=2, max_patches=c.pick(2, 3))
    proc = transformers.DeepseekOcr2Processor(ip, tok, chat_template=DEEPSEEK_TEMPLATE, patch_size=1, downsample_ratio=4)
    # As in the released processor the call itself says 2 to 6 tiles; that wins over the image processor's own values.
    tiles = dict(min_patches=2, max_patches=c.pick(2, 3))
    c.sizes_for(c.pick(48, 44), c.pick(131, 127))
    cases = [Case("photo", ["photo"], c.q_photo), Case("wide", ["wide"], "<|grounding|>" + c.q_wide, **tiles), Case("text", [], c.chat_messages())]
    cases = [case for case in cases if c.is_second or case.name != "photo"]
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model", layers="model.language_model.layers",
                vocab=vocab, coarse=c.is_second, never=[image_id, 2])


# --------------------------------------------------------------------------------------------------
# 28. FastVLM (its tower needs timm)
# --------------------------------------------------------------------------------------------------


@arch("fast_vlm")
def build_fast_vlm(c):
    tok = qwen_tokenizer(("<image>",))
    tok.image_token, tok.image_token_id = "<image>", tok.convert_tokens_to_ids("<image>")
    vocab = pad_vocab(tok)
    image_id = tok.image_token_id
    size = c.pick(128, 192)
    dims, ratio = [4, 8, 16, 32, 64], c.pick(2.0, 3.0)
    cfg = transformers.FastVlmConfig(
        vision_config=dict(model_type="timm_wrapper", architecture="fastvit_mci3", do_pooling=True, global_pool="avg", hidden_size=int(ratio * dims[-1]),
                           num_classes=0, initializer_range=0.02,
                           model_args=dict(inference_mode=True, layers=c.pick([1, 1, 2, 1, 1], [1, 1, 1, 2, 1]), embed_dims=dims,
                                           mlp_ratios=c.pick([3, 3, 3, 3, 3], [2, 2, 2, 2, 2]), cls_ratio=ratio)),
        text_config=dict(model_type="qwen2", vocab_size=vocab, rms_norm_eps=1e-6, tie_word_embeddings=False, eos_token_id=tok.eos_token_id,
                         rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
                         **text_dims(c, num_hidden_layers=2, intermediate_size=c.pick(128, 88))),
        image_token_index=image_id, image_seq_length=(size // 64) ** 2, tie_word_embeddings=False,
    )
    model = make(transformers.FastVlmForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.CLIPImageProcessor(size={"shortest_edge": size}, crop_size={"height": size, "width": size}, image_mean=[0.0, 0.0, 0.0],
                                         image_std=[1.0, 1.0, 1.0])
    proc = transformers.LlavaProcessor(ip, tok, patch_size=64, vision_feature_select_strategy="full", num_additional_image_tokens=0,
                                       chat_template=ONEVISION_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    return Spec(model, proc, c.standard_cases(two=c.is_second), taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                layers="model.language_model.layers", vocab=vocab, never=[image_id],
                values=(("running_mean", 0.0, 0.2), ("running_var", 1.0, 0.1), ("stem.0.reparam_conv.bias", 0.0, 0.6),
                        ("vision_tower.timm_model.final_conv.se.fc1.bias", 0.3, 0.2)))


# --------------------------------------------------------------------------------------------------
# 29. Granite 4 Vision
# --------------------------------------------------------------------------------------------------


GRANITE4_TEMPLATE = """\
{%- for message in messages %}
    {{- '<|start_of_role|>' + message['role'] + '<|end_of_role|>' }}
    {%- if message['content'] is string %}
        {{- message['content'] }}
    {%- else %}
        {%- for part in message['content'] %}
            {%- if part['type'] == 'image' %}{{- '<image>\\n' }}{% elif part['type'] == 'text' %}{{- part['text'] }}{% endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|end_of_text|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_of_role|>assistant<|end_of_role|>' }}{% endif %}"""


@arch("granite4_vision")
def build_granite4_vision(c):
    last = ("<|end_of_text|>", "<|pad|>", "<|start_of_role|>", "<|end_of_role|>", "<image>")
    tok = wrap(bytelevel_tokenizer(LLAMA3_SPLIT, last=last, merges=160), bos_token="<|end_of_text|>", eos_token="<|end_of_text|>", pad_token="<|pad|>",
               padding_side="left", image_token="<image>")
    vocab = pad_vocab(tok)
    image_id = tok.convert_tokens_to_ids("<image>")
    size, patch = c.pick((32, 4), (36, 6))
    pins = c.pick([[32, 64], [64, 32], [32, 96]], [[36, 72], [72, 36], [36, 108]])
    rate = c.pick("2/4", "3/6")  # one query per window would hide the query and key weights of self attention
    layers = 5
    text = dict(vocab_size=vocab, rms_norm_eps=1e-5, embedding_multiplier=c.pick(3.0, 2.5), logits_scaling=c.pick(1.5, 0.75),
                residual_multiplier=c.pick(0.7, 0.8), attention_multiplier=c.pick(0.2, 0.25), attention_bias=False, mlp_bias=False,
                rope_parameters={"rope_type": "default", "rope_theta": 10000.0}, pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id,
                eos_token_id=tok.eos_token_id, tie_word_embeddings=False,
                **text_dims(c, num_hidden_layers=layers, hidden_size=40, intermediate_size=c.pick(48, 40)))
    # The configuration sets one Q-Former head per 64 of vision width, so below 128 there is one.
    cfg = transformers.Granite4VisionConfig(
        text_config=text, vision_config=dict(model_type="siglip_vision_model", vision_use_head=False, hidden_size=c.pick(64, 72),
                                             intermediate_size=c.pick(72, 48), num_hidden_layers=2, num_attention_heads=c.pick(4, 3),
                                             image_size=size, patch_size=patch),
        qformer_config=dict(model_type="blip_2_qformer", num_hidden_layers=1, intermediate_size=c.pick(20, 16), cross_attention_frequency=1,
                            max_position_embeddings=64, use_qformer_text_input=False, hidden_dropout_prob=0.0, attention_probs_dropout_prob=0.0),
        image_token_index=image_id, vision_feature_select_strategy="full", vision_feature_layer=-1, image_grid_pinpoints=pins, downsample_rate=rate,
        deepstack_layer_map=c.pick([[-2, 0]], [[1, 1]]), spatial_vision_layer=-1, spatial_target_layers=c.pick([1, 2, 3, 4], [0, 2, 3, 4]),
        projector_dropout=0.0)
    model = make(transformers.Granite4VisionForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.LlavaNextImageProcessor(size={"height": size, "width": size}, crop_size={"height": size, "width": size}, image_grid_pinpoints=pins,
                                              do_center_crop=False, image_mean=[0.5, 0.5, 0.5], image_std=[0.5, 0.5, 0.5])
    proc = transformers.Granite4VisionProcessor(ip, tok, patch_size=patch, vision_feature_select_strategy="full", downsample_rate=rate,
                                                chat_template=GRANITE4_TEMPLATE)
    c.sizes_for(size, c.pick(131, 127))
    cases = [case for case in c.standard_cases() if c.is_second or case.name in ("wide", "text")]
    return Spec(model, proc, cases, taps={"vision_last_hidden": "model.vision_tower"}, features="model",
                pooled=lambda out: torch.cat(list(next(rows for layer, rows in out.deepstack_features if layer == 0)), dim=0),
                layers="model.language_model.layers", vocab=vocab,
                never=[image_id, tok.pad_token_id])


# --------------------------------------------------------------------------------------------------
# 30. Driver
# --------------------------------------------------------------------------------------------------


# --------------------------------------------------------------------------------------------------
# 27. Llama 4: layers that see a chunk of positions, experts that take scaled rows
# --------------------------------------------------------------------------------------------------

LLAMA4_TEMPLATE = """\
{{- bos_token }}
{%- for message in messages %}
    {{- '<|header_start|>' + message['role'] + '<|header_end|>\\n\\n' }}
    {%- if message['content'] is string %}
        {{- message['content'] | trim }}
    {%- else %}
        {%- for content in message['content'] %}
            {%- if content['type'] == 'image' %}
                {{- '<|image|>' }}
            {%- elif content['type'] == 'text' %}
                {{- content['text'] | trim }}
            {%- endif %}
        {%- endfor %}
    {%- endif %}
    {{- '<|eot|>' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|header_start|>assistant<|header_end|>\\n\\n' }}
{%- endif %}
"""


@arch("llama4")
def build_llama4(c):
    last = ("<|begin_of_text|>", "<|end_of_text|>", "<|header_start|>", "<|header_end|>", "<|eot|>", "<|image_start|>", "<|image_end|>",
            "<|tile_x_separator|>", "<|tile_y_separator|>", "<|image|>", "<|patch|>", "<|finetune_right_pad|>")
    base = with_bos(bytelevel_tokenizer(LLAMA3_SPLIT, last=last), "<|begin_of_text|>")
    tok = wrap(base, bos_token="<|begin_of_text|>", eos_token="<|eot|>", pad_token="<|finetune_right_pad|>", padding_side="left")
    vocab = pad_vocab(tok)
    patch_id, image_id, boi, eoi = ids(tok, "<|patch|>", "<|image|>", "<|image_start|>", "<|image_end|>")
    size, patch, width = c.pick((32, 8, 48), (36, 6, 40))
    layers = c.pick(4, 3)
    text = dict(vocab_size=vocab, rms_norm_eps=1e-5, head_dim=c.pick(16, 20), intermediate_size=c.pick(40, 32), intermediate_size_mlp=c.pick(96, 72),
                num_local_experts=c.pick(4, 5), num_experts_per_tok=1, moe_layers=c.pick([1, 3], [0, 2]), use_qk_norm=not c.is_second,
                no_rope_layers=c.pick([1, 1, 1, 0], [1, 0, 1]), attention_chunk_size=c.pick(32, 24), attn_temperature_tuning=True,
                floor_scale=c.pick(16, 12), attn_scale=0.3, tie_word_embeddings=False, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                pad_token_id=tok.pad_token_id, rope_parameters={"rope_type": "llama3", "rope_theta": 500000.0, "factor": 8.0, "low_freq_factor": 1.0,
                                                                "high_freq_factor": 4.0, "original_max_position_embeddings": 64},
                **{k: v for k, v in text_dims(c, num_hidden_layers=layers, hidden_size=c.pick(48, 56)).items() if k != "intermediate_size"})
    vision = dict(hidden_size=width, intermediate_size=4 * width, num_hidden_layers=2, num_attention_heads=c.pick(3, 5), image_size=size,
                  patch_size=patch, pixel_shuffle_ratio=0.5, projector_input_dim=c.pick(56, 64), projector_output_dim=c.pick(56, 64),
                  vision_output_dim=c.pick(56, 64), rope_parameters={"rope_type": "default", "rope_theta": 10000.0})
    cfg = transformers.Llama4Config(text_config=text, vision_config=vision, boi_token_index=boi, eoi_token_index=eoi, image_token_index=patch_id)
    # Versions 5.23 and 5.24 read a field that the text model's output class lacks; without this no forward pass works.
    transformers.models.llama4.modeling_llama4.MoeCausalLMOutputWithPast.image_outputs = None
    model = make(transformers.Llama4ForConditionalGeneration, cfg)
    generation(model, tok)
    ip = transformers.Llama4ImageProcessor(size={"height": size, "width": size}, max_patches=c.pick(6, 4), resize_to_max_canvas=c.is_second)
    proc = transformers.Llama4Processor(ip, tok, patch_size=patch, pixel_shuffle_ratio=0.5, chat_template=LLAMA4_TEMPLATE)
    c.sizes_for(size, c.pick(83, 79))
    return Spec(model, proc, c.standard_cases(), taps={"vision_last_hidden": "vision_model", "image_features": "multi_modal_projector"},
                layers="language_model.model.layers", vocab=vocab, never=[patch_id, image_id, boi])


def tidy(golden):
    """float32 / int64 contiguous tensors with their own storage."""
    out = {}
    for k, v in golden.items():
        v = v.detach()
        v = v.to(torch.float32) if v.is_floating_point() else v.to(torch.int64)
        out[k] = v.contiguous().clone()
    return dict(sorted(out.items()))


def good_enough(cases):
    worst = [c["facts"]["distinct_greedy"] for c in cases if "distinct_greedy" in c["facts"]]
    return not worst or min(worst) >= MIN_DISTINCT


def build(name, ctx):
    """Builds the model and its goldens, raising the gain until greedy text is varied."""
    spec = BUILDERS[name](ctx)
    report = []
    for attempt in range(3 * len(spec.gains)):
        gain, salt = spec.gains[attempt % len(spec.gains)], attempt // len(spec.gains)
        randomise(spec.model, ctx.seed + 1000003 * salt, gain, spec)
        golden, cases = spec.run(spec, ctx)
        report.append((gain, salt, [c["facts"].get("distinct_greedy") for c in cases]))
        if good_enough(cases):
            return spec, golden, cases, gain
    raise RuntimeError(f"{name}: greedy text stays monotonous: {report}")


def narrow_weights(folder):
    """Store float32 tensors as bfloat16, which holds their values exactly (see randomise)."""
    path, config = folder / "model.safetensors", folder / "config.json"
    tensors = load_file(path)
    for name, t in tensors.items():
        if t.dtype == torch.float32:
            assert torch.equal(t, t.bfloat16().float()), name
            tensors[name] = t.bfloat16()
    save_file(tensors, path, metadata={"format": "pt"})
    config.write_text(config.read_text().replace('"dtype": "float32"', '"dtype": "bfloat16"'))


def folder_size(path):
    return sum(p.stat().st_size for p in Path(path).rglob("*") if p.is_file())


def produce(name, ctx, out, lean):
    spec, golden, cases, gain = build(name, ctx)
    target = Path(out) / name
    if target.exists():
        shutil.rmtree(target)
    target.mkdir(parents=True)
    spec.model.save_pretrained(target)
    spec.processor.save_pretrained(target)
    if spec.extra_save:
        spec.extra_save(target)
    if WEIGHTS == "bf16":
        narrow_weights(target)
    if spec.drifts:
        model = type(spec.model).from_pretrained(target, dtype=torch.bfloat16, attn_implementation="eager").eval()
        for case, run in spec.drifts.items():
            measure = {run_dual: drift_dual, run_blip: drift_blip, run_florence2: drift_florence, run_janus: drift_janus}.get(spec.run, drift)
            golden |= {f"{case}.{k}": v for k, v in measure(model, Taps(model, spec), *run).items()}
    if spec.coarse:
        exact = type(spec.model).from_pretrained(target, dtype=torch.float64, attn_implementation="eager",
                                                experts_implementation="eager").eval()
        for case, run in spec.drifts.items():
            found = drift_f32(exact, Taps(exact, spec), spec.model, Taps(spec.model, spec), *run[:2])
            golden |= {f"{case}.{k}": v for k, v in found.items()}
    if lean:
        # Texts of dual encoders are of several lengths: their mask is told by nothing else.
        spare = ("input_ids",) if spec.run is run_dual else SPARE
        golden = {k: v for k, v in golden.items() if k.partition(".")[2] not in spare}
        # The first case shows where a decoder begins to differ; of the others its last layer is enough.
        early, first = ("inputs_embeds", "text_layer_first"), cases[0]["name"] if cases else ""
        golden = {k: v for k, v in golden.items() if k.split(".")[0] == first or k.split(".")[1] not in early}
    for file in target.iterdir():
        file.chmod(0o644)
    model_bytes = folder_size(target)
    save_golden(tidy(golden), target)
    info = {
        "architecture": name,
        "class": type(spec.model).__name__,
        "seed": ctx.seed,
        "variant": ctx.variant,
        "gain": gain,
        "transformers": transformers.__version__,
        "torch": torch.__version__.split("+")[0],
        "parameters": sum(p.numel() for p in spec.model.parameters()),
        "image_processor": type(getattr(spec.processor, "image_processor", None)).__name__,
        "cases": cases,
    }
    (target / "inputs.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
    entry = {
        "model_bytes": model_bytes,
        "golden_bytes": (target / "golden.safetensors").stat().st_size,
        "parameters": info["parameters"],
        "gain": gain,
        "cases": {c["name"]: c["facts"] for c in cases},
    }
    return entry


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, help="folder to write to")
    ap.add_argument("--seed", type=int, required=True, help="seed of the weights")
    ap.add_argument("--variant", choices=sorted(VARIANTS), default="public", help="sizes, pictures and prompts")
    ap.add_argument("--weights", choices=("f32", "bf16"), default="f32", help="bf16: values that bfloat16 holds, stored in half the bytes")
    ap.add_argument("--lean", action="store_true", help="leave out tensors that inputs.json says too, and a decoder's first stages but for the first case")
    ap.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(BUILDERS), help="just these architectures")
    args = ap.parse_args()
    global WEIGHTS
    WEIGHTS = args.weights
    out = Path(args.out)
    out.mkdir(parents=True, exist_ok=True)
    pictures = Pictures(out)
    manifest_file = out / "manifest.json"
    manifest = json.loads(manifest_file.read_text()) if manifest_file.exists() else {}
    failed = []
    for name in args.only or BUILDERS:
        ctx = Ctx(args.variant, args.seed, pictures)
        try:
            entry = produce(name, ctx, out, args.lean)
        except Exception as err:
            failed.append(name)
            print(f"{name}: FAILED {type(err).__name__}: {err}", file=sys.stderr)
            if args.only:
                raise
            continue
        manifest[name] = entry
        distinct = {k: v.get("distinct_greedy") for k, v in entry["cases"].items()}
        print(f"{name}: model {entry['model_bytes'] / 1e6:.2f} MB, golden {entry['golden_bytes'] / 1e6:.2f} MB, "
              f"gain {entry['gain']}, distinct {distinct}", flush=True)
        manifest_file.write_text(json.dumps(dict(sorted(manifest.items())), indent=1) + "\n")
    if failed:
        sys.exit("failed: " + " ".join(failed))


if __name__ == "__main__":
    main()
