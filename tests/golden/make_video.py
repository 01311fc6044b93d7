#!/usr/bin/env python3
"""Writes video.json: what transformers makes of lists of frames with the committed checkpoints of families that define video.

    python tests/golden/make_video.py [FAMILY ...]

Frame number k is a picture of images/ whose levels have 40 k added, modulo 256. A row has the number of frames and how many there are a
second, whether a picture comes before the video, the rendered conversation, the ids of the prompt, and the tokens of the
greedy answer; the chat template where the checkpoint's own knows no videos, positions where they have three axes, and every 97th
value of the frames' pixels. The reference does not take pictures and videos together of SmolVLM2, whose pixels it mixes up, and of GLM-4V, whose
tokens it mixes up.
"""
import json
import sys
from pathlib import Path

import numpy as np
import torch
import transformers
from PIL import Image
from transformers.models.smolvlm import processing_smolvlm as smolvlm
from transformers.video_utils import VideoMetadata

HERE = Path(__file__).resolve().parent
PICTURE = "china_131x87.png"
# Frames, frames a second, whether a picture comes first.
CASES = [(1, 1.0, False), (3, 0.02, False), (23, 2.0, False), (2, 0.00001, False), (2, 1.0, True)]
# Of families that take several frames for one picture, or whose videos are long.
FEW = [(2, 4.0, False), (5, 0.4, False), (3, 1.0, True)]
STEP = 97


def template(first, between, image, video, end):
    """A chat template in the manner of the published ones, which unlike the checkpoints' own knows videos."""
    return (
        f"{first}{{% for message in messages %}}{between[0]}{{{{ message['role'] }}}}{between[1]}{{% for part in message['content'] %}}"
        f"{{% if part['type'] == 'image' %}}{image}{{% elif part['type'] == 'video' %}}{video}{{% else %}}{{{{ part['text'] }}}}{{% endif %}}"
        f"{{% endfor %}}{end}{{% endfor %}}"
    )


QWEN = template("", ("<|im_start|>", "\n"), "<|vision_start|><|image_pad|><|vision_end|>", "<|vision_start|><|video_pad|><|vision_end|>",
                "<|im_end|>\n") + "<|im_start|>assistant\n"
GLM = template("[gMASK]<sop>", ("<|", "|>\n"), "<|begin_of_image|><|image|><|end_of_image|>", "<|begin_of_video|><|video|><|end_of_video|>",
               "") + "<|assistant|>\n"
ONEVISION = template("", ("<|im_start|>", " "), "<image>", "<video>", "<|im_end|>") + "<|im_start|>assistant\n"
GEMMA = template("", ("<|turn>", "\n"), "<|image|>", "<|video|>", "<turn|>\n") + "<|turn>model\n"
MINICPM = template("", ("<|im_start|>", "\n"), "<|image_pad|>\n", "<|video_pad|>\n", "<|im_end|>\n") + "<|im_start|>assistant\n"
# Family: its cases, and its template.
FAMILIES = {
    "smolvlm": ([case for case in CASES if not case[2]], smolvlm.DEFAULT_CHAT_TEMPLATE),
    "internvl": (CASES, None),
    "qwen2_vl": (FEW, QWEN),
    "qwen2_5_vl": (FEW, QWEN),
    "qwen3_vl": (FEW, QWEN),
    "qwen3_vl_moe": (FEW[1:2], QWEN),
    "qwen3_5": (FEW[1:], QWEN),
    "qwen3_5_moe": (FEW[1:2], QWEN),
    "glm4v": (FEW[:2], GLM),
    "glm46v": (FEW[:2], GLM),
    "glm_ocr": (FEW[1:2], GLM),
    "llava_onevision": (FEW, ONEVISION),
    "gemma4": (FEW[:2], GEMMA),
    "gemma4_e": (FEW[1:2], GEMMA),
    "minicpmv4_6": (FEW, MINICPM),
}


def run(family, case, template):
    folder = HERE / family
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    (count, fps, pictured) = case
    image = Image.open(HERE / "images" / PICTURE).convert("RGB")
    frames = [np.array(image) + np.uint8(40 * k % 256) for k in range(count)]
    picture = [{"type": "image"}] if pictured else []
    messages = [{"role": "user", "content": [*picture, {"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    text = processor.tokenizer.apply_chat_template(messages, chat_template=template or processor.chat_template, add_generation_prompt=True,
                                                   tokenize=False)
    metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps, frames_indices=list(range(count)))
    video = torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])
    extra = {"images": [image]} if pictured else {}
    inputs = processor(text=[text], videos=[video], video_metadata=[[metadata]], do_sample_frames=False, return_tensors="pt", **extra)
    ids = inputs["input_ids"][0].tolist()
    row = {"family": family, "frames": count, "fps": fps, "picture": pictured, "prompt": text, "input_ids": ids}
    # SmolVLM2's class has its own, but takes it only together with opening the files.
    if template and family != "smolvlm":
        row["template"] = template
    if hasattr(model.model, "get_rope_index"):
        known = ("image_grid_thw", "video_grid_thw", "second_per_grid_ts", "mm_token_type_ids", "attention_mask")
        positions, _ = model.model.get_rope_index(inputs["input_ids"], **{key: inputs[key] for key in known if key in inputs})
        row["positions"] = positions[:, 0].tolist()
        # generate() counts on from the last token, though times of a video may be later.
        row["next"] = positions[:, 0, -1].max().item() + 1
    if family not in ("smolvlm", "internvl"):
        values = inputs["pixel_values_videos"]
        if family == "minicpmv4_6":  # all patches side by side: one after the other
            (channels, side), width = values.shape[1:3], values.shape[3]
            values = values[0].reshape(channels, side, width // side, side).permute(2, 0, 1, 3)
        values = values.flatten()
        row["pixels"] = [len(values), [round(value, 6) for value in values[::STEP].tolist()]]
    row["greedy"] = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist()[len(ids):]
    return row


def main():
    torch.set_grad_enabled(False)
    place = HERE / "video.json"
    rows = json.loads(place.read_text()) if place.exists() else []
    for family in sys.argv[1:] or FAMILIES:
        cases, template = FAMILIES[family]
        rows = [row for row in rows if row["family"] != family] + [run(family, case, template) for case in cases]
        print(family, flush=True)
    order = list(FAMILIES)
    rows.sort(key=lambda row: order.index(row["family"]))
    place.write_text("[\n" + ",\n".join(json.dumps(row) for row in rows) + "\n]\n")


main()
