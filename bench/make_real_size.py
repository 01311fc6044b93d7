#!/usr/bin/env python3
"""Write a SmolVLM checkpoint with random weights at the real dimensions of a released model.

    python bench/make_real_size.py --model smolvlm-256m --out target/smolvlm-256m [--seed 0]

The folder holds what a downloaded SmolVLM checkpoint holds: config.json, generation_config.json,
model.safetensors (bf16), tokenizer.json, tokenizer_config.json,
preprocessor_config.json, processor_config.json and chat_template.json/.jinja, plus test images
(images/*.png).  The weights are seeded normal noise, so the text it writes means nothing; shapes,
file layout and speed are those of the real thing.  Needs torch, transformers, tokenizers, pillow.
"""
import argparse
import json
import sysconfig
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers import AddedToken

BASE_VISION = dict(hidden_size=768, num_hidden_layers=12, num_attention_heads=12, intermediate_size=3072,
                   patch_size=16, image_size=512)
SO400M_VISION = dict(hidden_size=1152, num_hidden_layers=27, num_attention_heads=16, intermediate_size=4304,
                     patch_size=14, image_size=384)
DIMS = {
    "smolvlm-256m": dict(
        vision=BASE_VISION, scale_factor=4,
        text=dict(hidden_size=576, num_hidden_layers=30, num_attention_heads=9, num_key_value_heads=3, head_dim=64,
                  intermediate_size=1536, rope_theta=100000.0, max_position_embeddings=8192)),
    "smolvlm-500m": dict(
        vision=BASE_VISION, scale_factor=4,
        text=dict(hidden_size=960, num_hidden_layers=32, num_attention_heads=15, num_key_value_heads=5, head_dim=64,
                  intermediate_size=2560, rope_theta=100000.0, max_position_embeddings=8192)),
    "smolvlm-2.2b": dict(
        vision=SO400M_VISION, scale_factor=3,
        text=dict(hidden_size=2048, num_hidden_layers=24, num_attention_heads=32, num_key_value_heads=32, head_dim=64,
                  intermediate_size=8192, rope_theta=273768.0, max_position_embeddings=16384)),
}
BASE_VOCAB, VOCAB = 49152, 49280

FIRST = ["<|endoftext|>", "<|im_start|>", "<|im_end|>", "<repo_name>", "<reponame>", "<file_sep>", "<filename>",
         "<gh_stars>", "<issue_start>", "<issue_comment>", "<issue_closed>", "<jupyter_start>", "<jupyter_text>",
         "<jupyter_code>", "<jupyter_output>", "<jupyter_script>", "<empty_output>"]
IMAGE_TOKENS = ["<global-img>", *(f"<row_{r}_col_{c}>" for r in range(1, 7) for c in range(1, 7)),
                "<fake_token_around_image>", "<image>"]

CHAT_TEMPLATE = """<|im_start|>{% for message in messages %}{{message['role'] | capitalize}}\
{% if message['content'][0]['type'] == 'image' %}{{':'}}{% else %}{{': '}}{% endif %}\
{% for line in message['content'] %}{% if line['type'] == 'text' %}{{line['text']}}\
{% elif line['type'] == 'image' %}{{ '<image>' }}{% endif %}{% endfor %}<end_of_utterance>
{% endfor %}{% if add_generation_prompt %}{{ 'Assistant:' }}{% endif %}"""


def corpus(folder, limit):
    """The text of the .py/.txt/.rst files under folder, in name order, until `limit` characters."""
    total = 0
    for p in sorted(Path(folder).rglob("*")):
        if p.suffix not in (".py", ".txt", ".rst") or "site-packages" in p.parts or not p.is_file():
            continue
        text = p.read_text("utf-8", errors="ignore")
        total += len(text)
        yield text
        if total >= limit:
            return


def make_tokenizer(folder, limit):
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence([
        pre_tokenizers.Digits(individual_digits=True),
        pre_tokenizers.ByteLevel(add_prefix_space=False, trim_offsets=True, use_regex=True)])
    tok.decoder = decoders.ByteLevel(add_prefix_space=True, trim_offsets=True, use_regex=True)
    trainer = trainers.BpeTrainer(vocab_size=BASE_VOCAB, special_tokens=FIRST, show_progress=False,
                                  initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    tok.train_from_iterator(corpus(folder, limit), trainer)
    trained = tok.get_vocab_size()
    plain = lambda s: AddedToken(s, special=False, normalized=False)
    special = lambda s: AddedToken(s, special=True, normalized=False)
    tok.add_tokens([plain(f"<unused_{i}>") for i in range(trained, BASE_VOCAB)])
    tok.add_special_tokens([special(t) for t in IMAGE_TOKENS])
    n = tok.get_vocab_size()
    tok.add_special_tokens([special(f"<|reserved_special_token_{i}|>") for i in range(VOCAB - 1 - n)])
    tok.add_special_tokens([special("<end_of_utterance>")])
    assert tok.get_vocab_size() == VOCAB, tok.get_vocab_size()
    print(f"tokenizer: {trained} trained entries, {VOCAB} in all")
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tok, bos_token="<|im_start|>", eos_token="<end_of_utterance>", pad_token="<|im_end|>",
        unk_token="<|endoftext|>", padding_side="left", clean_up_tokenization_spaces=False, model_max_length=8192,
        extra_special_tokens=dict(fake_image_token="<fake_token_around_image>", image_token="<image>",
                                  global_image_token="<global-img>", end_of_utterance_token="<end_of_utterance>"))


def make_model(name, tok, seed, tied):
    d = DIMS[name]
    theta = d["text"]["rope_theta"]
    text = {k: v for k, v in d["text"].items() if k != "rope_theta"}
    cfg = transformers.SmolVLMConfig(
        text_config=dict(model_type="llama", vocab_size=VOCAB, rms_norm_eps=1e-5, hidden_act="silu",
                         rope_parameters={"rope_type": "default", "rope_theta": theta}, tie_word_embeddings=tied,
                         bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id,
                         attention_bias=False, mlp_bias=False, **text),
        vision_config=dict(num_channels=3, hidden_act="gelu_pytorch_tanh", layer_norm_eps=1e-6, **d["vision"]),
        image_token_id=tok.convert_tokens_to_ids("<image>"), scale_factor=d["scale_factor"],
        tie_word_embeddings=tied, pad_token_id=tok.pad_token_id, bos_token_id=tok.bos_token_id,
        eos_token_id=tok.eos_token_id)
    with torch.device("meta"):
        model = transformers.SmolVLMForConditionalGeneration(cfg)
    model = model.to_empty(device="cpu").to(torch.bfloat16)
    gen = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for key, p in model.named_parameters():
            if p.ndim == 1:
                p.fill_(1.0 if key.endswith("weight") else 0.0)   # norm scales 1, biases 0
            else:
                p.copy_(torch.empty(p.shape).normal_(0.0, 0.02, generator=gen))
    if tied:
        model.tie_weights()
    model.generation_config = transformers.GenerationConfig(
        bos_token_id=tok.bos_token_id, eos_token_id=tok.eos_token_id, pad_token_id=tok.pad_token_id)
    return model


def make_images(folder, seed):
    """PNG pictures with smooth shapes and some noise: they compress like a photo, not like a flat fill."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(seed)
    for w, h in ((512, 512), (1024, 768), (640, 480)):
        y, x = np.mgrid[0:h, 0:w].astype(np.float32)
        img = np.stack([127 + 90 * np.sin(x / (17 + 9 * c)) * np.cos(y / (23 + 5 * c)) for c in range(3)], -1)
        img += rng.normal(0, 12, img.shape)
        Image.fromarray(img.clip(0, 255).astype(np.uint8)).save(folder / f"{w}x{h}.png")


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    ap.add_argument("--out", required=True, type=Path)
    ap.add_argument("--model", choices=sorted(DIMS), default="smolvlm-256m")
    ap.add_argument("--seed", type=int, default=0)
    ap.add_argument("--untied", action="store_true", help="give lm_head its own weight instead of the embedding's")
    ap.add_argument("--text", type=Path, default=Path(sysconfig.get_paths()["stdlib"]),
                    help="folder whose .py/.txt/.rst files train the tokenizer (default: this Python's library)")
    ap.add_argument("--text-chars", type=int, default=25_000_000, help="stop reading text after this many characters")
    args = ap.parse_args()

    args.out.mkdir(parents=True, exist_ok=True)
    tok = make_tokenizer(args.text, args.text_chars)
    model = make_model(args.model, tok, args.seed, not args.untied)
    vision, scale = DIMS[args.model]["vision"], DIMS[args.model]["scale_factor"]
    side = vision["image_size"]
    image_kw = dict(size={"longest_edge": 4 * side}, max_image_size={"longest_edge": side}, do_image_splitting=True,
                    image_mean=[0.5] * 3, image_std=[0.5] * 3)
    proc = transformers.SmolVLMProcessor(
        transformers.SmolVLMImageProcessor(**image_kw), tok,
        transformers.SmolVLMVideoProcessor(size={"longest_edge": side}, max_image_size={"longest_edge": side}),
        image_seq_len=(side // vision["patch_size"]) ** 2 // scale ** 2, chat_template=CHAT_TEMPLATE)
    model.save_pretrained(args.out)
    proc.save_pretrained(args.out)
    # What the released configs have and a new transformers does not write: the text model's class (llama.cpp's
    # converter picks its text model by it) and rope_theta outside rope_parameters (mistral.rs reads it there).
    config = json.loads((args.out / "config.json").read_text())
    config["torch_dtype"] = "bfloat16"
    config["text_config"].update(architectures=["VLlama3ForCausalLM"], rope_scaling=None,
                                 rope_theta=DIMS[args.model]["text"]["rope_theta"], torch_dtype="bfloat16")
    (args.out / "config.json").write_text(json.dumps(config, indent=2) + "\n")
    # The files of the released checkpoints that a new transformers no longer writes but other engines read.
    (args.out / "preprocessor_config.json").write_text(json.dumps(dict(
        do_convert_rgb=True, do_image_splitting=True, do_normalize=True, do_pad=True, do_rescale=True, do_resize=True,
        image_mean=[0.5] * 3, image_std=[0.5] * 3, image_processor_type="Idefics3ImageProcessor",
        processor_class="Idefics3Processor", max_image_size={"longest_edge": side}, resample=1,
        rescale_factor=1 / 255, size={"longest_edge": 4 * side}), indent=2) + "\n")
    (args.out / "chat_template.json").write_text(json.dumps({"chat_template": CHAT_TEMPLATE}, indent=2) + "\n")
    make_images(args.out / "images", args.seed)

    n = sum(p.numel() for p in model.parameters())
    part = lambda m: sum(p.numel() for p in m.parameters())
    print(f"{args.model}: {n:,} parameters (vision {part(model.model.vision_model):,}, connector "
          f"{part(model.model.connector):,}, text with embedding {part(model.model.text_model):,}) in {args.out}")


if __name__ == "__main__":
    main()
