#!/usr/bin/env python3
"""Build what a trainer is held to: tiny random models, a batch each, its loss, every gradient, and fifty steps of AdamW.

    make_train.py [--out DIR] [--seed N] [--scale N] [--only NAME ...]

Per model, DIR/<name>/ gets a checkpoint in float32 as `save_pretrained` lays it out, `train.safetensors` and
`train.json`; README.md says what is in them.  Loss, logits and gradients are computed by torch autograd in float64
from the float32 weights.  The steps are run in float32, and once more in float64 from the same weights.

`train.safetensors` is written after the checks here have passed: the derivative along a random direction of every tensor, and single
elements, agree with central differences in float64; transformers' own loss is the same; rows of a batch that are run
alone, without padding, give the same loss.  BLIP's rows are run so from the start: the cross-attention of transformers
5.24 reads the padding of questions.  Pictures and most texts are those of models/demo/eval.
"""
import argparse
import copy
import json
import math
import shutil
import string
import tempfile
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

import make_golden as golden

torch.set_num_threads(1)  # sums do not depend on how many cores there are
torch.set_grad_enabled(True)

HERE = Path(__file__).resolve().parent
SCENES = HERE.parent.parent / "models" / "demo" / "eval"
IGNORED = -100  # a label without loss

SCALE = 1  # factor on every width: see --scale

STEPS, WARM = 50, 10
PEAK, BETAS, EPS, DECAY, CLIP = 1e-3, (0.9, 0.999), 1e-8, 0.01, 1.0


def rate(step):
    """Learning rate of a step, counted from 0: up in a line to the peak, then down half a cosine."""
    if step < WARM:
        return PEAK * (step + 1) / WARM
    return PEAK * 0.5 * (1 + math.cos(math.pi * (step - WARM) / (STEPS - WARM)))


# --------------------------------------------------------------------------------------------------
# 1. float64 all the way
# --------------------------------------------------------------------------------------------------


class Float64(TorchFunctionMode):
    """While active, code that asks for float32 gets float64: softmax, RMS norms and rotations say so by name."""

    def __enter__(self):
        self.before = torch.get_default_dtype()
        torch.set_default_dtype(torch.float64)
        return super().__enter__()

    def __exit__(self, *error):
        torch.set_default_dtype(self.before)
        return super().__exit__(*error)

    def __torch_function__(self, func, types, args=(), kwargs=None):
        wide = lambda value: torch.float64 if value is torch.float32 else value
        func = torch.Tensor.double if func is torch.Tensor.float else func
        out = func(*map(wide, args), **{k: wide(v) for k, v in (kwargs or {}).items()})
        assert not (torch.is_tensor(out) and out.dtype == torch.float32), f"{func} computed in float32"
        return out


def to_float64(model):
    """A copy of a model in float64, with rotation frequencies that were never rounded to float32."""
    wide = copy.deepcopy(model).double()
    for module in wide.modules():
        if hasattr(module, "inv_freq"):
            c = module.config
            exact = c.rope_parameters["rope_theta"] ** -(torch.arange(0, c.head_dim, 2, dtype=torch.float64) / c.head_dim)
            torch.testing.assert_close(module.inv_freq, exact, rtol=1e-6, atol=0)
            module.inv_freq = exact
    return wide


# --------------------------------------------------------------------------------------------------
# 2. Losses
# --------------------------------------------------------------------------------------------------


def predicted(logits, labels):
    """The rows of logits [rows, places, vocab] that predict a labelled token, and these tokens, row after row."""
    counted = labels[:, 1:] != IGNORED
    return logits[:, :-1][counted], labels[:, 1:][counted]


def rows_of(batch):
    """The rows of a padded batch, each a batch of its own without padding."""
    answers = "decoder_" if "decoder_input_ids" in batch else ""
    for i in range(len(batch["labels"])):
        row = {k: v[i:i + 1] for k, v in batch.items()}
        for mask, padded in (("attention_mask", ["input_ids"]), (f"{answers}attention_mask", [f"{answers}input_ids", "labels"])):
            length = int(batch[mask][i].sum())
            row |= {k: row[k][:, :length] for k in (mask, *padded)}
        yield row


def smolvlm_run(model, batch):
    return predicted(model(**{k: batch[k] for k in ("input_ids", "attention_mask", "pixel_values")}).logits, batch["labels"])


def blip_run(model, batch):
    logits, tokens = zip(*[blip_row(model, row) for row in rows_of(batch)])
    return torch.cat(logits), torch.cat(tokens)


def blip_row(model, row):
    image = model.vision_model(pixel_values=row["pixel_values"]).last_hidden_state
    question = model.text_encoder(input_ids=row["input_ids"], encoder_hidden_states=image).last_hidden_state
    logits = model.text_decoder(input_ids=row["decoder_input_ids"], encoder_hidden_states=question).logits
    return predicted(logits, row["labels"])


def dual_run(model, batch):
    names = [n for n in ("input_ids", "attention_mask", "pixel_values") if n in batch]
    return model(**{k: batch[k] for k in names}).logits_per_text, None


def token_loss(logits, tokens):
    """Mean of -log p over the labelled tokens of the whole batch."""
    return F.cross_entropy(logits, tokens)


def softmax_loss(logits, _):
    """Mean of two means of -log p: of each text among the pictures, and of each picture among the texts."""
    pairs = torch.arange(len(logits))
    return (F.cross_entropy(logits, pairs) + F.cross_entropy(logits.T, pairs)) / 2


def sigmoid_loss(logits, _):
    """Sum of -log sigmoid(+-logit) over all pairs, + where they belong together, divided by the number of texts."""
    sign = 2 * torch.eye(len(logits), dtype=logits.dtype) - 1
    return -F.logsigmoid(sign * logits).sum() / len(logits)


def hub_loss(model, batch):
    """The loss as transformers' own models compute it, of rows without padding where there are labels."""
    if "labels" not in batch:
        return model(**{k: v for k, v in batch.items() if k != "pictures"}, return_loss=True).loss
    total, count = 0.0, 0
    for row in rows_of(batch):
        counted = int((row["labels"][:, 1:] != IGNORED).sum())
        total = total + counted * model(**{k: v for k, v in row.items() if k != "pictures"}).loss
        count += counted
    return total / count


# --------------------------------------------------------------------------------------------------
# 3. Models and batches
# --------------------------------------------------------------------------------------------------


class Task:
    """A model with random weights, its processor, a batch of it, and how its loss is computed."""

    def __init__(self, model, processor, batch, run, loss, reduction, final, texts, **spec):
        self.model, self.processor, self.batch, self.run, self.criterion = model, processor, batch, run, loss
        self.reduction, self.final, self.texts = reduction, final, texts
        self.spec = golden.Spec(None, None, [], **spec)

    def loss(self, model, batch):
        return self.criterion(*self.run(model, batch))


def scene(number, side):
    return Image.open(SCENES / f"{number:03}.png").convert("RGB").resize((side, side), Image.LANCZOS)


def picture_tensors(pictures, processor):
    """uint8 [n, h, w, 3] and float32 [n, 3, h, w]: the processor leaves pictures of the model's size as they are."""
    levels = torch.from_numpy(np.stack([np.asarray(p) for p in pictures]))
    options = processor.image_processor
    mean, std = (torch.tensor(v) for v in (options.image_mean, options.image_std))
    pixels = ((levels.float() / 255 - mean) / std).permute(0, 3, 1, 2).contiguous()
    own = processor.image_processor(pictures, return_tensors="pt")["pixel_values"]
    torch.testing.assert_close(own.reshape(pixels.shape), pixels, rtol=0, atol=1e-6)
    return levels, pixels


def right_padded(rows, fill):
    """[rows, longest] of token ids, and the mask that tells them from filling."""
    longest = max(map(len, rows))
    ids = torch.tensor([row + [fill] * (longest - len(row)) for row in rows])
    return ids, torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows])


def said(role, *parts):
    content = [{"type": "image"} if part is None else {"type": "text", "text": part} for part in parts]
    return {"role": role, "content": content}


# Conversations about a scene each; None is where the picture stands.
TALKS = [
    (1, [said("user", None, "What is the colour of the square?"), said("assistant", "orange"),
         said("user", "Can you see a blue square?"), said("assistant", "no")]),
    (3, [said("user", None, "What color is the star?"), said("assistant", "cyan")]),
    (0, [said("user", "Count the objects.", None), said("assistant", "two")]),
]

CAPTIONS = {0: "a large green cross", 1: "an orange square", 3: "a cyan star above an orange ring", 4: "a pink ring"}

QUESTIONS = [(1, "what is the colour of the square?", "orange"), (3, "is there a ring?", "yes"), (0, "count the objects", "two")]


def conversations(processor, end):
    """Token ids of each conversation, and the labels: what the assistant says, with the token that ends it."""
    rows, labels = [], []
    tokens = lambda messages, start: processor.apply_chat_template(
        messages, tokenize=True, return_dict=True, add_generation_prompt=start)["input_ids"][0]
    for number, talk in TALKS:
        talk = golden.fill_images(talk, [scene(number, 16)])
        row = list(tokens(talk, False))
        label = [IGNORED] * len(row)
        for i, message in enumerate(talk):
            if message["role"] == "assistant":
                before, after = list(tokens(talk[:i], True)), list(tokens(talk[:i + 1], False))
                assert row[:len(before)] == before and row[:len(after)] == after, "a turn changes the ones before it"
                stop = len(before) + row[len(before):len(after)].index(end) + 1
                label[len(before):stop] = row[len(before):stop]
        rows.append(row)
        labels.append(label)
    return rows, labels


def sizes(width, inner, heads, **more):
    """Two layers of a part of a model."""
    return dict(hidden_size=SCALE * width, intermediate_size=SCALE * inner, num_hidden_layers=2, num_attention_heads=heads, **more)


def vision(width, inner, heads):
    return sizes(width, inner, heads, image_size=16, patch_size=4)


def smolvlm(tied):
    added = ("<fake_token_around_image>", "<image>", "<end_of_utterance>", "<global-img>")
    first = ("<|endoftext|>", "<|im_start|>", "<|im_end|>")
    base = golden.bytelevel_tokenizer(golden.GPT2_SPLIT, first, added, merges=24, digits=True,
                                      alphabet=sorted(string.ascii_letters + string.digits + ".,:?'ĠĊ"))
    tok = golden.wrap(base, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>",
                      unk_token="<|endoftext|>", fake_image_token="<fake_token_around_image>", image_token="<image>",
                      global_image_token="<global-img>", end_of_utterance_token="<end_of_utterance>", padding_side="left")
    vocab = golden.pad_vocab(tok, 4)
    image, end = golden.ids(tok, "<image>", "<end_of_utterance>")
    config = transformers.SmolVLMConfig(
        text_config=sizes(*((8, 12, 4) if tied else (16, 20, 4)), num_key_value_heads=2, head_dim=SCALE * (4 if tied else 8),
                          model_type="llama", vocab_size=vocab, rms_norm_eps=1e-5, max_position_embeddings=256,
                          tie_word_embeddings=tied, bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id,
                          pad_token_id=tok.pad_token_id),
        vision_config=vision(*((8, 12, 2) if tied else (12, 16, 3))),
        image_token_id=image, scale_factor=2, tie_word_embeddings=tied, pad_token_id=tok.pad_token_id)
    model = golden.make(transformers.SmolVLMForConditionalGeneration, config)
    golden.generation(model, tok)
    size = {"longest_edge": 16}
    processor = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(size=size, max_image_size=size, do_image_splitting=False), tok,
        transformers.SmolVLMVideoProcessor(size=size, max_image_size=size), image_seq_len=4,
        chat_template=golden.SMOLVLM_TEMPLATE.replace("{start}", "<|im_start|>"))
    rows, labels = conversations(processor, end)
    ids, mask = right_padded(rows, tok.pad_token_id)
    levels, pixels = picture_tensors([scene(number, 16) for number, _ in TALKS], processor)
    batch = dict(input_ids=ids, attention_mask=mask, labels=right_padded(labels, IGNORED)[0], pixel_values=pixels[:, None],
                 pictures=levels)
    return Task(model, processor, batch, smolvlm_run, token_loss, "mean over the labelled tokens of the batch",
                ("model.vision_model.embeddings.patch_embedding.weight", "model.text_model.layers.0.input_layernorm.weight"),
                [talk for _, talk in TALKS], vocab=vocab, embed_std=0.4 if tied else 1.0)


def clip():
    base = golden.clip_tokenizer(merges=12, alphabet=sorted(string.ascii_lowercase))
    tok = golden.wrap(base, bos_token="<|startoftext|>", eos_token="<|endoftext|>", unk_token="<|endoftext|>",
                      pad_token="<|endoftext|>", model_max_length=32)
    config = transformers.CLIPConfig(
        text_config=sizes(12, 16, 3, projection_dim=SCALE * 10, vocab_size=len(tok), max_position_embeddings=32,
                          bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id),
        vision_config=dict(vision(8, 12, 2), projection_dim=SCALE * 10), projection_dim=SCALE * 10)
    side = {"height": 16, "width": 16}
    processor = transformers.CLIPProcessor(transformers.CLIPImageProcessor(size={"shortest_edge": 16}, crop_size=side), tok)
    return dual(transformers.CLIPModel(config), processor, softmax_loss, "mean of the means over texts and over pictures",
                dict(padding=True))


def siglip():
    tok = golden.wrap(golden.unigram_tokenizer(24), eos_token="</s>", unk_token="<unk>", pad_token="</s>", model_max_length=32,
                      model_input_names=["input_ids"])
    config = transformers.SiglipConfig(
        text_config=sizes(12, 16, 3, projection_size=SCALE * 12, vocab_size=len(tok), max_position_embeddings=32,
                          bos_token_id=0, eos_token_id=0, pad_token_id=0),
        vision_config=vision(12, 16, 3))
    processor = transformers.SiglipProcessor(transformers.SiglipImageProcessor(size={"height": 16, "width": 16}), tok)
    return dual(transformers.SiglipModel(config), processor, sigmoid_loss, "sum over all pairs, divided by the number of texts",
                dict(padding="max_length", truncation=True))


def dual(model, processor, loss, reduction, padding):
    levels, pixels = picture_tensors([scene(number, 16) for number in CAPTIONS], processor)
    tokens = processor.tokenizer(list(CAPTIONS.values()), return_tensors="pt", **padding)
    batch = dict(tokens, pixel_values=pixels, pictures=levels)
    batch.pop("token_type_ids", None)
    return Task(model.float().eval(), processor, batch, dual_run, loss, reduction,
                ("vision_model.embeddings.patch_embedding.weight", "text_model.final_layer_norm.weight"),
                list(CAPTIONS.values()), vocab=len(processor.tokenizer))


def blip_vqa():
    tok = golden.wrap(golden.wordpiece_tokenizer(extra=("[DEC]", "[ENC]"), merges=12), pad_token="[PAD]", unk_token="[UNK]",
                      cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]", model_max_length=32)
    start = tok.convert_tokens_to_ids("[DEC]")
    config = transformers.BlipConfig(
        text_config=sizes(8, 12, 2, vocab_size=len(tok), max_position_embeddings=32, bos_token_id=start,
                          eos_token_id=tok.sep_token_id, sep_token_id=tok.sep_token_id, pad_token_id=tok.pad_token_id),
        vision_config=vision(8, 12, 2))
    model = golden.make(transformers.BlipForQuestionAnswering, config)
    model.generation_config = transformers.GenerationConfig(bos_token_id=start, eos_token_id=tok.sep_token_id, pad_token_id=0)
    processor = transformers.BlipProcessor(transformers.BlipImageProcessor(size={"height": 16, "width": 16}), tok)
    levels, pixels = picture_tensors([scene(number, 16) for number, _, _ in QUESTIONS], processor)
    ids, mask = right_padded([tok(question)["input_ids"] for _, question, _ in QUESTIONS], tok.pad_token_id)
    # [CLS] answer [SEP] becomes [DEC] answer [SEP]; the first place has nothing before it that could predict it.
    answers = [[start, *tok(answer)["input_ids"][1:]] for _, _, answer in QUESTIONS]
    given, counted = right_padded(answers, tok.pad_token_id)
    labels = right_padded([[IGNORED, *answer[1:]] for answer in answers], IGNORED)[0]
    batch = dict(input_ids=ids, attention_mask=mask, pixel_values=pixels, pictures=levels, decoder_input_ids=given,
                 decoder_attention_mask=counted, labels=labels)
    return Task(model, processor, batch, blip_run, token_loss, "mean over the labelled tokens of the batch",
                ("vision_model.embeddings.patch_embedding.weight", "text_encoder.embeddings.LayerNorm.weight"),
                [dict(question=q, answer=a) for _, q, a in QUESTIONS], vocab=len(tok), embed_std=0.4)


TASKS = {"smolvlm": lambda: smolvlm(False), "smolvlm_tied": lambda: smolvlm(True), "clip": clip, "siglip": siglip,
         "blip_vqa": blip_vqa}


# --------------------------------------------------------------------------------------------------
# 4. Gradients and steps
# --------------------------------------------------------------------------------------------------


def widened(batch):
    return {k: v.double() if v.is_floating_point() else v for k, v in batch.items()}


def check_differences(task, model, batch, seed):
    """Holds the gradients that a float64 model has to central differences of fourth order; returns the worst gap."""
    gen, worst, width = torch.Generator().manual_seed(seed), 0.0, 2e-4

    def check(name, p, direction):
        nonlocal worst
        kept, values = p.detach().clone(), []
        for at in (-2, -1, 1, 2):
            p.data = kept + at * width * direction
            values.append(float(task.loss(model, batch)))
        p.data = kept
        found = (values[0] - 8 * values[1] + 8 * values[2] - values[3]) / (12 * width)
        told = float((p.grad * direction).sum())
        worst = max(worst, abs(found - told))
        assert abs(found - told) <= 1e-8 + 1e-6 * abs(told), f"{name}: gradient {told}, by differences {found}"

    with torch.no_grad():
        parameters = list(model.named_parameters())
        for name, p in parameters:
            direction = torch.randn(p.shape, generator=gen, dtype=p.dtype)
            check(name, p, direction / direction.norm())
        for i in torch.randint(len(parameters), (16,), generator=gen).tolist():
            name, p = parameters[i]
            direction = torch.zeros_like(p)
            direction.view(-1)[torch.randint(p.numel(), (1,), generator=gen)] = 1
            check(name, p, direction)
    return worst


def check_rows_alone(task, model, batch, loss):
    """Rows without their padding, one by one: the losses of their tokens add up to that of the batch."""
    logits, tokens = zip(*[task.run(model, row) for row in rows_of(batch)])
    alone = float(token_loss(torch.cat(logits), torch.cat(tokens)))
    assert abs(alone - loss) < 1e-12, f"alone {alone}, in a batch {loss}"


def stored(model, values):
    """Tensors by the parameters' names in model.safetensors, of any values that the model's parameters have."""
    holder = copy.deepcopy(model).float()
    for (name, p), (other, value) in zip(holder.named_parameters(), values, strict=True):
        assert name == other
        p.data = value.detach().float().clone()
    with tempfile.TemporaryDirectory() as folder:
        holder.save_pretrained(folder)
        return load_file(Path(folder) / "model.safetensors")


def train(task, model, batch):
    """Trains the model; returns the losses before each step and the lengths of the gradient before clipping."""
    groups = [dict(params=[p for p in model.parameters() if (p.ndim >= 2) == decays], weight_decay=DECAY if decays else 0.0)
              for decays in (True, False)]
    adam = torch.optim.AdamW(groups, lr=PEAK, betas=BETAS, eps=EPS, foreach=False)
    losses, lengths = [], []
    for step in range(STEPS):
        for group in adam.param_groups:
            group["lr"] = rate(step)
        adam.zero_grad()
        loss = task.loss(model, batch)
        loss.backward()
        lengths.append(torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP).detach())
        losses.append(loss.detach())
        adam.step()
    return torch.stack(losses), torch.stack(lengths)


def produce(name, out, seed):
    task = TASKS[name]()
    model, folder = task.model, out / name
    golden.randomise(model, seed, 1.2, task.spec)
    model.requires_grad_(True)
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir(parents=True)
    model.save_pretrained(folder)
    task.processor.save_pretrained(folder)
    model = type(model).from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()

    exact, wide = to_float64(model), widened(task.batch)
    with Float64():
        logits, tokens = task.run(exact, wide)
        loss = task.criterion(logits, tokens)
        loss.backward()
    assert loss.dtype == torch.float64
    unused = [n for n, p in exact.named_parameters() if p.grad is None]
    assert not unused, f"without a gradient: {unused}"
    gradients = [(n, p.grad) for n, p in exact.named_parameters()]
    length = float(torch.stack([g.norm() for _, g in gradients]).norm())
    with Float64():
        worst = check_differences(task, exact, wide, seed)
        if "labels" in task.batch:
            with torch.no_grad():
                check_rows_alone(task, exact, wide, float(loss.detach()))

    narrow = copy.deepcopy(model)
    own = task.loss(narrow, task.batch)
    own.backward()
    torch.testing.assert_close(hub_loss(model, task.batch), own, rtol=0, atol=2e-6)
    largest = max(float(g.abs().max()) for _, g in gradients)
    off = max(float((p.grad - g).abs().max()) for p, (_, g) in zip(narrow.parameters(), gradients))

    after = copy.deepcopy(model)
    losses, lengths = train(task, after, task.batch)
    after64 = to_float64(model)
    with Float64():
        losses64, lengths64 = train(task, after64, wide)
    assert abs(float(lengths64[0]) - length) < 1e-9 and float(losses[-1]) < 0.8 * float(losses[0])
    assert float(lengths64.max()) > CLIP, "nothing was clipped"

    gradients = stored(model, gradients)
    weights = load_file(folder / "model.safetensors")
    assert {n: v.shape for n, v in gradients.items()} == {n: v.shape for n, v in weights.items()}
    ends, ends64 = (stored(model, m.named_parameters()) for m in (after, after64))
    tensors = dict(task.batch, loss=loss.detach().reshape(1), logits=logits.detach().float())
    tensors |= {f"grad.{n}": g for n, g in gradients.items()}
    tensors |= dict(losses=losses, losses_f64=losses64, grad_norms=lengths, grad_norms_f64=lengths64,
                    learning_rates=torch.tensor([rate(step) for step in range(STEPS)], dtype=torch.float64))
    tensors |= {f"final.{n}": ends[n] for n in task.final} | {f"final_f64.{n}": ends64[n] for n in task.final}
    save_file({k: tensors[k].contiguous().clone() for k in sorted(tensors)}, folder / "train.safetensors")

    gap = lambda a, b: float((a.double() - b.double()).abs().max())
    facts = dict(
        parameters=sum(p.numel() for p in model.parameters()), first_loss=float(losses[0]), last_loss=float(losses[-1]),
        grad_norm=length, largest_gradient=largest, gradient_by_differences=worst, gradient_in_f32=off,
        losses_in_f32=gap(losses, losses64), grad_norms_in_f32=gap(lengths, lengths64),
        final_in_f32=max(gap(ends[n], ends64[n]) for n in task.final))
    facts = {k: v if isinstance(v, int) else float(f"{v:.3g}") for k, v in facts.items()}
    info = {"class": type(model).__name__, "seed": seed, "scale": SCALE, "transformers": transformers.__version__,
            "torch": torch.__version__.split("+")[0], "reduction": task.reduction, "final": list(task.final),
            "texts": task.texts, "facts": facts}
    (folder / "train.json").write_text(json.dumps(info, indent=1, ensure_ascii=False) + "\n")
    for file in folder.iterdir():
        file.chmod(0o644)
    print(f"{name}: {golden.folder_size(folder)} bytes, {json.dumps(facts)}", flush=True)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", type=Path, default=HERE / "train", help="folder to write to")
    ap.add_argument("--seed", type=int, default=1, help="seed of the weights")
    ap.add_argument("--scale", type=int, default=1, help="factor on every width")
    ap.add_argument("--only", nargs="+", metavar="NAME", choices=sorted(TASKS), help="just these models")
    args = ap.parse_args()
    global SCALE
    SCALE = args.scale
    for name in args.only or TASKS:
        produce(name, args.out, args.seed)


if __name__ == "__main__":
    main()
