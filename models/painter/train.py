"""Trains the painter from nothing, in five commands.

    python train.py codes --out run                        # a codebook of patches, in seconds
    python train.py pixels --out run --minutes 8 --crops 0.25 --threads 1
    python train.py pixels --out run --minutes 17 --crops 0 --rate 0.6 --threads 1 --resume     # what draws pixels of codes
    python train.py words --out run --minutes 40 --few 2 --first 0.3       # the decoder that writes codes for a prompt
    python train.py export --out run --model model         # a folder in the layout of Janus, in bf16

The stages:
  1. codes: k-means over all patches of 16x16 pixels that differ gives a codebook, and the code of a patch is that of the nearest one. The background
     has a code for each place, so that the decoder knows from the code before where it is;
  2. pixels: Janus's convolutions learn to draw the picture of 36 codes, first quarters of pictures around an object, then whole ones;
  3. words: a Llama decoder learns the codes of freshly drawn scenes, each with a prompt in the words of data.py. The loss is on codes only.
     One prompt in ten is blanked as Janus's guidance blanks it, so that the decoder also knows what is drawn where nothing is asked
     for. A batch has prompts of one length, so nothing is padded;
  4. export: weights in bf16 with tokenizer and processor. What reads pictures is as small as the layout allows, and untrained.
Matrices are trained with Muon (that of ../demo/train.py), the rest with AdamW. The base of the rotary positions makes its second frequency
turn once in two rows.
"""

import argparse
import copy
import json
import math
import os
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn as nn
import torch.nn.functional as F

import data as D

WIDTH, LAYERS, HEADS, MLP = 128, 5, 4, 320
TOKENS = D.GRID ** 2
PATCHES = 448
CODES, EMBED, LATENT = PATCHES + TOKENS, 32, 64
VOCAB = 384
ROPE = (D.GRID / math.pi) ** (WIDTH // HEADS // 2)
BOS, EOS, PAD, USER, ASSISTANT = "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>", "<|User|>", "<|Assistant|>"
IMAGE, BOI, EOI = "<image_placeholder>", "<begin_of_image>", "<end_of_image>"
TEMPLATE = (
    "{%- for message in messages -%}{{ ('<|User|>: ' if message['role'] == 'user' else '<|Assistant|>: ') }}"
    "{%- for part in message['content'] -%}{%- if part['type'] == 'image' -%}{{ '<image_placeholder>\\n' }}"
    "{%- elif part['type'] == 'text' -%}{{ part['text'] | trim }}{%- endif -%}{%- endfor -%}"
    "{%- if not loop.last or add_generation_prompt -%}"
    "{{ ('\\n\\n' if message['role'] == 'user' else '<｜end▁of▁sentence｜>') }}{%- endif -%}"
    "{%- endfor -%}{%- if add_generation_prompt -%}{{ '<|Assistant|>:' }}{%- endif -%}")


def wrapped(text):
    """A prompt as `TEMPLATE` and the processor lay it out for a drawing."""
    return f"{USER}: {text}\n\n{ASSISTANT}:{BOI}"


# ------------------------------------------------------- tokenizer and model

def build_tokenizer(path=None):
    """Byte-level BPE with Janus's special tokens; that of `path`, which is written if it is not there yet."""
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
    last = [PAD, IMAGE, BOI, EOI, USER, ASSISTANT]
    if path and os.path.exists(path):
        return wrap(Tokenizer.from_file(path))
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)
    tok.decoder = decoders.ByteLevel()
    rng = np.random.default_rng([21, 0])
    corpus = [f": {D.prompt(D.sample_scene(rng), rng)}\n\n:" for _ in range(4000)]
    trainer = trainers.BpeTrainer(vocab_size=VOCAB - len(last), special_tokens=[BOS, EOS], show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus, trainer)
    tok.add_special_tokens([AddedToken(t, special=True, normalized=False) for t in last])
    tok.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", pair=f"{BOS} $A {BOS} $B:1", special_tokens=[(BOS, 0)])
    assert len(tok.get_vocab()) == VOCAB
    if path:
        tok.save(path)
    return wrap(tok)


def wrap(tok):
    from transformers import PreTrainedTokenizerFast
    return PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token=BOS, eos_token=EOS, pad_token=PAD, padding_side="left", clean_up_tokenization_spaces=False,
        extra_special_tokens={"image_token": IMAGE, "boi_token": BOI, "eoi_token": EOI})


def build_processor(tok):
    import transformers as T
    ip = T.JanusImageProcessor(size={"height": D.SIDE, "width": D.SIDE}, image_mean=[0.5] * 3, image_std=[0.5] * 3)
    return T.JanusProcessor(ip, tok, chat_template=TEMPLATE, num_image_tokens=TOKENS, use_default_system_prompt=False)


def build_model(tok):
    import transformers as T
    ids = dict(bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    cfg = T.JanusConfig(
        text_config=dict(model_type="llama", vocab_size=VOCAB, hidden_size=WIDTH, intermediate_size=MLP, num_hidden_layers=LAYERS,
                         num_attention_heads=HEADS, num_key_value_heads=HEADS, head_dim=WIDTH // HEADS, max_position_embeddings=512,
                         rms_norm_eps=1e-6, tie_word_embeddings=True, rope_parameters={"rope_type": "default", "rope_theta": ROPE}, **ids),
        vision_config=dict(hidden_size=16, num_hidden_layers=1, num_attention_heads=1, image_size=D.SIDE, patch_size=D.PATCH, mlp_ratio=1.0,
                           projection_dim=WIDTH, depth=1, num_image_tokens=TOKENS),
        vq_config=dict(embed_dim=EMBED, num_embeddings=CODES, latent_channels=LATENT, base_channels=32, channel_multiplier=[1, 1, 2, 2, 2],
                       num_res_blocks=1, num_patches=D.GRID, projection_dim=WIDTH, num_hidden_layers=2, image_token_embed_dim=WIDTH),
        image_token_id=tok.convert_tokens_to_ids(IMAGE), tie_word_embeddings=True)
    model = T.JanusForConditionalGeneration(cfg)
    model.generation_config = T.GenerationConfig(**ids, guidance_scale=1.5, temperature=0.3,
                                                   generation_kwargs={"boi_token_id": tok.convert_tokens_to_ids(BOI)})
    return model


# --------------------------------------------------------------------- codes

def patches(images):
    """uint8 [n, side, side, 3] -> uint8 [n, grid * grid, 192]."""
    n, g, p = len(images), D.GRID, D.PATCH
    return images.reshape(n, g, p, g, p, 3).transpose(0, 1, 3, 2, 4, 5).reshape(n, g * g, 3 * p * p)


def seen(images):
    """Patches as they are compared, f32 from -1 to 1."""
    return torch.from_numpy(patches(images).astype(np.float32)) / 127.5 - 1.0


def nearest(table, x):
    return (x @ table.T - 0.5 * (table * table).sum(-1)).argmax(-1)


def make_codes(args):
    """k-means over all patches that differ; the first code is that of the background."""
    rng = np.random.default_rng([22, args.seed])
    scenes = [D.sample_scene(rng) for _ in range(3000)]
    x = seen(np.stack([D.draw(s) for s in scenes])).flatten(0, 1)
    x = torch.unique(x, dim=0)
    plain = torch.tensor([D.WHITE]).float().repeat(1, D.PATCH ** 2) / 127.5 - 1.0
    table = plain
    while len(table) < PATCHES:            # each next one is far from all that are there
        gaps = torch.cdist(x, table).amin(-1) ** 2
        table = torch.cat([table, x[torch.multinomial(gaps, min(8, PATCHES - len(table)))]])
    for _ in range(60):
        near = nearest(table, x)
        count = torch.bincount(near, minlength=PATCHES)
        sums = torch.zeros_like(table).index_add_(0, near, x)
        table = torch.where(count[:, None] > 0, sums / count.clamp(min=1)[:, None], table)
        empty = (count == 0).nonzero()[:, 0]
        table[empty] = x[(x - table[near]).norm(dim=-1).argsort(descending=True)[:len(empty)]]
        table[:len(plain)] = plain
    near = nearest(table, x)
    gap = (x - table[near]).abs().mean(-1)
    print(len(x), "patches that differ,", len(near.unique()), "codes, mean gap", round(float(gap.mean()), 4), "largest", round(float(gap.max()), 4))
    torch.save({"table": table}, os.path.join(args.out, "codes.pt"))


def coder(args):
    """What turns pictures into codes. The background, which is code 0 of the codebook, has one for each place in its stead."""
    table = torch.load(os.path.join(args.out, "codes.pt"), weights_only=True)["table"]
    places = PATCHES + torch.arange(TOKENS)

    def encode(images):
        codes = nearest(table, seen(images))
        return torch.where(codes == 0, places, codes)
    return encode


# -------------------------------------------------------------------- pixels

class Painter(nn.Module):
    """Codes -> a picture, [n, rows, columns] -> [n, 3, 16 * rows, 16 * columns]."""

    def __init__(self, vq):
        super().__init__()
        self.table, self.post, self.decoder = vq.quantize.embedding, vq.post_quant_conv, vq.decoder

    def forward(self, codes):
        q = F.normalize(self.table(codes), dim=-1).permute(0, 3, 1, 2).contiguous(memory_format=torch.channels_last)
        return self.decoder(self.post(q))


@torch.no_grad()
def begin(decoder):
    """First weights. With 32 channels each is normalized by itself, over the whole picture, so that how bright a channel is depends on all that is
    drawn. A ring of one pixel at the edge, which the last block adds to every channel, keeps its variance about the same."""
    for name, p in decoder.named_parameters():
        if p.ndim == 4:
            p.normal_(0, (0.5 if "conv2" in name or "proj_out" in name else 1.0) / math.sqrt(p[0].numel()))
        elif name.endswith("bias"):
            p.zero_()
    block = decoder.up[-1].block[-1]
    block.norm2.weight[0], block.norm2.bias[0] = 0.0, 2.0
    ring = torch.full((3, 3), -1.0)
    ring[1, 1] = 8.0
    block.conv2.weight[:, 0] = ring * torch.tensor([1.0, -1.0]).repeat(len(block.conv2.weight) // 2)[:, None, None]
    decoder.conv_out.weight.mul_(0.3)
    decoder.conv_out.bias.fill_(D.WHITE[0] / 127.5 - 1)


def crop(codes, images, scenes, side, rng):
    """A part of each picture around one of its objects."""
    out, px = [], []
    for b, s in enumerate(scenes):
        o = s["objects"][rng.integers(len(s["objects"]))]
        x, y = (int(np.clip(round(o[k] / D.PATCH - side / 2 + rng.uniform(-1.5, 1.5)), 0, D.GRID - side)) for k in "xy")
        out.append(codes[b].view(D.GRID, D.GRID)[y:y + side, x:x + side])
        px.append(images[b, y * D.PATCH:(y + side) * D.PATCH, x * D.PATCH:(x + side) * D.PATCH])
    return torch.stack(out), np.stack(px)


def train_pixels(args, model, log):
    encode, net = coder(args), Painter(model.model.vqmodel)
    table = torch.load(os.path.join(args.out, "codes.pt"), weights_only=True)["table"]
    table = torch.cat([table, table[:1].expand(TOKENS, -1)])
    begin(net.decoder)
    with torch.no_grad():                # codes of like patches begin near each other
        mid = table - table.mean(0)
        u = torch.linalg.svd(mid, full_matrices=False)
        net.table.weight.copy_(F.normalize(mid @ u.Vh[:EMBED].T, dim=-1))
    net.to(args.device)
    path = os.path.join(args.out, "pixels.pt")
    if args.resume:
        net.load_state_dict(torch.load(path, map_location=args.device, weights_only=False)["net"])
    kernels = [p for p in net.parameters() if p.ndim == 4 and p.shape[0] > 3]
    # Muon wants matrices: rows are channels that come out.
    flat = [nn.Parameter(p.data.view(len(p), -1)) for p in kernels]
    muon = demo().Muon(flat, lr=0.02 * args.rate)
    rest = [p for p in net.parameters() if p.ndim != 4 or p.shape[0] == 3]
    adam = torch.optim.AdamW(rest, lr=3e-3 * args.rate, betas=(0.9, 0.98), weight_decay=1e-4)
    for g in (*muon.param_groups, *adam.param_groups):
        g["base"] = g["lr"]
    rng = np.random.default_rng([24, args.seed])
    run = Clock(args.minutes)
    while (f := run.part()) < 1:
        for g in (*muon.param_groups, *adam.param_groups):
            g["lr"] = g["base"] * min(1, (run.step + 1) / 50) * min(1.0, max(0.02, (1 - f) / 0.7))
        small = f < args.crops
        scenes = [D.sample_scene(rng, (None, 3)[i % 2]) for i in range(args.batch if small else max(1, args.batch // 4))]
        images = np.stack([D.draw(s) for s in scenes])
        codes = encode(images)
        if small:
            codes, images = crop(codes, images, scenes, D.GRID // 2, rng)
        else:
            codes = codes.view(-1, D.GRID, D.GRID)
        target = torch.from_numpy(images).to(args.device).permute(0, 3, 1, 2).float() / 127.5 - 1
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            out = net(codes.to(args.device))
        # Patches of backgrounds are many and easy: they count less.
        weight = 1 + 4 * (codes < PATCHES).float()[:, None].repeat_interleave(D.PATCH, 2).repeat_interleave(D.PATCH, 3)
        gap = out.float() - target
        loss = ((gap.abs() + gap ** 2) * weight).sum() / weight.sum() / 3
        net.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for p, view in zip(kernels, flat):
            view.grad = p.grad.reshape(view.shape)
        muon.step()
        adam.step()
        if run.tick(log, "pixels", {"loss": loss.item(), "gap": gap.abs().mean().item()}):
            save(args, "pixels", {"net": net.state_dict()}, run)
    save(args, "pixels", {"net": net.state_dict()}, run)


# --------------------------------------------------------------------- words

class Batches:
    """Scenes with prompts, a batch at a time of prompts that are equally long."""

    def __init__(self, tok, encode, size, rng, blank=0.1):
        self.tok, self.encode, self.size, self.rng, self.blank = tok, encode, size, rng, blank
        self.few, self.waiting, self.kept = None, {}, {tok.bos_token_id, tok.convert_tokens_to_ids(BOI)}

    def __iter__(self):
        while True:
            scenes = [D.sample_scene(self.rng, self.few if self.rng.random() < 0.5 else None) for _ in range(self.size)]
            texts = [wrapped(D.prompt(s, self.rng)) for s in scenes]
            for ids, codes in zip(self.tok(texts)["input_ids"], self.encode(np.stack([D.draw(s) for s in scenes]))):
                if self.rng.random() < self.blank:
                    ids = [i if i in self.kept else self.tok.pad_token_id for i in ids]
                rows = self.waiting.setdefault(len(ids), [])
                rows.append((ids, codes))
                if len(rows) == self.size:
                    del self.waiting[len(ids)]
                    yield torch.tensor([r[0] for r in rows]), torch.stack([r[1] for r in rows])


def rotary(length, device):
    d = WIDTH // HEADS
    turns = torch.arange(length, device=device)[:, None] * ROPE ** (-torch.arange(0, d, 2, device=device) / d)
    return torch.cat([turns.cos()] * 2, -1), torch.cat([-turns.sin(), turns.sin()], -1)


def rotate(x, cos, sin):
    """The same as `apply_rotary_pos_emb`: signs are in `sin`."""
    return x * cos + x.roll(x.shape[-1] // 2, -1) * sin


class Writer(nn.Module):
    """The decoder of the model with embeddings and head of codes: scores of every code of a picture."""

    def __init__(self, model):
        super().__init__()
        m = model.model
        self.words, self.layers, self.norm = m.language_model.embed_tokens, m.language_model.layers, m.language_model.norm
        self.codes, self.aligner, self.head = m.generation_embeddings, m.generation_aligner, m.generation_head

    def forward(self, ids, codes, cos, sin):
        table = self.aligner(self.codes.weight)
        x = torch.cat([self.words(ids), F.embedding(codes[:, :-1], table).float()], 1)
        n, t, _ = x.shape
        cut = lambda y: y.view(n, t, HEADS, -1).transpose(1, 2)
        for layer in self.layers:
            a = layer.self_attn
            y = normed(layer.input_layernorm, x)
            q, k, v = cut(a.q_proj(y)), cut(a.k_proj(y)), cut(a.v_proj(y))
            c, s = cos.to(q.dtype), sin.to(q.dtype)
            y = F.scaled_dot_product_attention(rotate(q, c, s), rotate(k, c, s), v, is_causal=True)
            x = x + a.o_proj(y.transpose(1, 2).reshape(n, t, -1))
            y = normed(layer.post_attention_layernorm, x)
            x = x + layer.mlp.down_proj(F.silu(layer.mlp.gate_proj(y)) * layer.mlp.up_proj(y))
        return self.head(normed(self.norm, x[:, ids.shape[1] - 1:]))


def normed(norm, x):
    return x * torch.rsqrt((x * x).mean(-1, keepdim=True) + 1e-6) * norm.weight


def demo():
    """The demo model's trainer, whose file has this one's name."""
    import importlib.util
    spec = importlib.util.spec_from_file_location("demo_train", Path(__file__).resolve().parent.parent / "demo" / "train.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def optimizers(net):
    Muon = demo().Muon
    hidden, rest, plain = [], [], []
    for name, p in net.named_parameters():
        (plain if p.ndim < 2 else hidden if name.startswith("layers.") else rest).append(p)
    muon = Muon(hidden, lr=0.02)
    adam = torch.optim.AdamW([{"params": rest, "weight_decay": 0.01}, {"params": plain, "weight_decay": 0.0}], lr=3e-3, betas=(0.9, 0.98))
    for o in (muon, adam):
        for g in o.param_groups:
            g["base"] = g["lr"]
    return muon, adam


def train_words(args, model, tok, log):
    encode = coder(args)
    net = Writer(model)
    path = os.path.join(args.out, "words.pt")
    if args.resume:
        net.load_state_dict(torch.load(path, map_location=args.device, weights_only=False)["net"])
    print("parameters", sum(p.numel() for p in net.parameters()), flush=True)
    opts = optimizers(net)
    forward = torch.compile(net, dynamic=True) if args.compile else net
    rng = np.random.default_rng([23, args.seed])
    source = Batches(tok, encode, args.batch, rng)
    batches = iter(source)
    cos, sin = rotary(512, args.device)
    run = Clock(args.minutes)
    while (f := run.part()) < 1:
        scale = min(1, (run.step + 1) / 60) * (args.floor + (1 - args.floor) * min(1.0, (1 - f) / args.decay))
        for o in opts:
            for g in o.param_groups:
                g["lr"] = g["base"] * scale
            o.zero_grad(set_to_none=True)
        # What single objects look like is learned before what belongs to which of two.
        source.few = args.few if f < args.first else None
        ids, codes = next(batches)
        ids, codes = ids.to(args.device), codes.to(args.device)
        t = ids.shape[1] + TOKENS - 1
        with torch.autocast(args.device, torch.bfloat16, enabled=args.bf16):
            scores = forward(ids, codes, cos[:t], sin[:t])
        loss = F.cross_entropy(scores.float().flatten(0, 1), codes.flatten())
        loss.backward()
        nn.utils.clip_grad_norm_(net.parameters(), 1.0)
        for o in opts:
            o.step()
        if run.tick(log, "words", {"loss": loss.item(), "rate": scale}):
            save(args, "words", {"net": net.state_dict()}, run)
    save(args, "words", {"net": net.state_dict()}, run)


# ---------------------------------------------------------------- around it

class Clock:
    """Time of a stage, its metrics, and when to write and save."""

    def __init__(self, minutes):
        self.start = self.saved = time.time()
        self.cpu, self.seconds = time.process_time(), 60 * minutes
        self.step, self.rows = 0, []

    def part(self):
        return (time.time() - self.start) / self.seconds

    def tick(self, log, stage, row):
        self.step += 1
        self.rows.append(row)
        if self.step % 20 == 0 or self.step == 3:
            mean = {k: round(float(np.mean([r[k] for r in self.rows])), 5) for k in row}
            self.rows = []
            line = {"stage": stage, "step": self.step, **mean, "seconds": round(time.time() - self.start, 1),
                    "cpu_seconds": round(time.process_time() - self.cpu, 1)}
            print(json.dumps(line), file=log, flush=True)
            print(json.dumps(line), flush=True)
        if time.time() - self.saved > 120:
            self.saved = time.time()
            return True
        return False


def save(args, stage, what, run):
    path = os.path.join(args.out, stage + ".pt")
    torch.save({**what, "steps": run.step, "cpu_seconds": time.process_time() - run.cpu}, path + ".tmp")
    os.replace(path + ".tmp", path)


def export(args, model, tok):
    """The model in bf16 without what makes codes of pictures, and all that goes with it."""
    from safetensors.torch import load_file, save_file
    for net, stage in ((Painter(model.model.vqmodel), "pixels"), (Writer(model), "words")):
        path = os.path.join(args.out, f"{stage}.pt")
        if os.path.exists(path):
            net.load_state_dict(torch.load(path, map_location="cpu", weights_only=False)["net"])
    m = copy.deepcopy(model).to(torch.bfloat16).cpu()
    m.save_pretrained(args.model)
    build_processor(tok).save_pretrained(args.model)
    path = os.path.join(args.model, "model.safetensors")
    parts = ("model.vqmodel.encoder.", "model.vqmodel.quant_conv.")
    kept = {k: v.contiguous() for k, v in load_file(path).items() if not k.startswith(parts)}
    save_file(kept, path, metadata={"format": "pt"})
    print(len(kept), "tensors,", sum(v.numel() for v in kept.values()), "parameters", os.path.getsize(path), "bytes")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("stage", choices=["codes", "pixels", "words", "export"])
    ap.add_argument("--out", default="run", help="checkpoints and metrics")
    ap.add_argument("--model", default="model", help="the folder that is exported")
    ap.add_argument("--minutes", type=float, default=12, help="time budget; the schedule follows the clock")
    ap.add_argument("--batch", type=int, default=32, help="scenes of a step; of whole pictures for pixels a quarter")
    ap.add_argument("--rate", type=float, default=1.0, help="pixels: times the learning rates")
    ap.add_argument("--decay", type=float, default=0.6, help="last part of the stage with falling learning rate")
    ap.add_argument("--few", type=int, default=1, help="words: half of the scenes of the first part of the stage have this many objects")
    ap.add_argument("--first", type=float, default=0.3, help="words: the first part of the stage")
    ap.add_argument("--floor", type=float, default=0.01, help="learning rate at the end, as a part of the peak")
    ap.add_argument("--crops", type=float, default=0.3, help="pixels: the first part of the stage, which sees quarters of pictures")
    ap.add_argument("--device", default="cpu")
    ap.add_argument("--threads", type=int, default=2)
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--bf16", action="store_true", help="multiply in bf16")
    ap.add_argument("--compile", action="store_true")
    ap.add_argument("--resume", action="store_true", help="words: go on with the weights that were saved")
    args = ap.parse_args()
    torch.manual_seed(args.seed)
    torch.set_num_threads(args.threads)
    torch.set_flush_denormal(True)
    os.makedirs(args.out, exist_ok=True)
    tok = build_tokenizer(os.path.join(args.out, "tokenizer.json"))
    model = build_model(tok).to(args.device)
    with open(os.path.join(args.out, f"{args.stage}.jsonl"), "a") as log:
        if args.stage == "codes":
            make_codes(args)
        elif args.stage == "pixels":
            train_pixels(args, model, log)
        elif args.stage == "words":
            train_words(args, model, tok, log)
        else:
            export(args, model, tok)


if __name__ == "__main__":
    main()
