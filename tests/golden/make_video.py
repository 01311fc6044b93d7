#!/usr/bin/env python3
"""Writes video.json: what transformers makes of lists of frames with the committed checkpoints of families that define video.

    python tests/golden/make_video.py

Frame number k is a picture of images/ whose levels have 40 k added, modulo 256. A row has the number of frames and how many there are a
second, whether a picture comes before the video, the rendered conversation, the ids of the prompt, and the tokens of the
greedy answer. The reference does not take pictures and videos of SmolVLM2 together: it mixes their pixels up.
"""
import json
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


def run(family, case):
    folder = HERE / family
    processor = transformers.AutoProcessor.from_pretrained(folder)
    model = transformers.AutoModelForImageTextToText.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()
    (count, fps, pictured) = case
    image = Image.open(HERE / "images" / PICTURE).convert("RGB")
    frames = [np.array(image) + np.uint8(40 * k % 256) for k in range(count)]
    picture = [{"type": "image"}] if pictured else []
    messages = [{"role": "user", "content": [*picture, {"type": "video"}, {"type": "text", "text": "What happens?"}]}]
    # The class does so too, but only together with opening the files.
    template = smolvlm.DEFAULT_CHAT_TEMPLATE if family == "smolvlm" else processor.chat_template
    text = processor.tokenizer.apply_chat_template(messages, chat_template=template, add_generation_prompt=True, tokenize=False)
    metadata = VideoMetadata(total_num_frames=count, fps=fps, duration=count / fps, frames_indices=list(range(count)))
    video = torch.stack([torch.from_numpy(frame).permute(2, 0, 1) for frame in frames])
    extra = {"images": [image]} if pictured else {}
    inputs = processor(text=[text], videos=[video], video_metadata=[[metadata]], do_sample_frames=False, return_tensors="pt", **extra)
    ids = inputs["input_ids"][0].tolist()
    greedy = model.generate(**inputs, max_new_tokens=12, do_sample=False)[0].tolist()[len(ids):]
    return {"family": family, "frames": count, "fps": fps, "picture": pictured, "prompt": text, "input_ids": ids,
            "greedy": greedy}


def main():
    torch.set_grad_enabled(False)
    cases = [(family, case) for family in ("smolvlm", "internvl") for case in CASES if not (family == "smolvlm" and case[2])]
    rows = [json.dumps(run(family, case)) for family, case in cases]
    (HERE / "video.json").write_text("[\n" + ",\n".join(rows) + "\n]\n")


main()
