"""Writes florence2_answers.json: what Florence2Processor of transformers makes of answers, well formed and not.

    venv/bin/python tests/golden/text/florence2_answers.py
"""

import json
from pathlib import Path
from types import SimpleNamespace

from transformers.models.florence2.processing_florence2 import Florence2PostProcessor, Florence2Processor

CONFIG = {
    "ocr": {"AREA_THRESHOLD": 0.0},
    "phrase_grounding": {"banned_grounding_tokens": ["it", "the image"]},
    "pure_text": {}, "description_with_bboxes": {}, "description_with_polygons": {}, "polygons": {}, "bboxes": {},
    "description_with_bboxes_or_polygons": {},
}
SIZES = [(640, 480), (131, 3000)]


def loc(*bins):
    return "".join(f"<loc_{n}>" for n in bins)


FOUR, EIGHT = loc(10, 20, 300, 999), loc(1, 2, 500, 3, 499, 700, 0, 701)
ANSWERS = [
    "</s><s>car" + FOUR + "wheel" + loc(0, 0, 5, 5) + loc(7, 8, 900, 901) + "</s>",
    "a cat on the mat</s>",
    "", "</s>", "<s></s><pad>",
    FOUR, FOUR + loc(1, 2, 3), "car" + loc(1, 2, 3), "car" + loc(1, 2, 3, 4, 5, 6, 7),
    "caf\u00e9 \u4e2d na\u00efve" + FOUR, "  two words \t" + FOUR, "line\nbreak" + FOUR, "\n lead" + FOUR, "trail\n" + FOUR,
    "it" + FOUR + "the image" + FOUR + "temple" + FOUR + FOUR, "a<b" + FOUR, "<od>thing" + FOUR + "</od>",
    "5 < 6" + FOUR, "big" + loc(1000, 5000, 99999, 123456),
    "STOP" + EIGHT + "on\nway" + EIGHT, EIGHT + "x" + EIGHT, "x" + loc(1, 2, 3, 4, 5, 6, 7), "thin" + loc(5, 5, 6, 5, 6, 5, 5, 5),
    loc(1, 2, 3, 4, 5, 6) + "<sep>" + loc(7, 8, 9, 10) + "</s>",
    "roof<poly>" + loc(1, 2, 3, 4, 5, 6, 7) + "<sep>" + loc(11, 12, 13, 14) + "</poly><poly>" + loc(3, 3, 9, 9) + "</poly>",
    "<poly>" + loc(1, 2, 3, 4) + "</poly>", "<poly>" + loc(1, 2, 3, 4), "door<poly>" + loc(1, 2) + "</poly>" + FOUR,
    "old roof" + loc(1, 2, 3, 4, 5, 6) + "<sep>" + loc(7, 8) + "wall" + loc(9, 9, 8, 8),
]
TASKS = ["<OD>", "<DENSE_REGION_CAPTION>", "<REGION_PROPOSAL>", "<OCR_WITH_REGION>", "<CAPTION_TO_PHRASE_GROUNDING>",
         "<REFERRING_EXPRESSION_SEGMENTATION>", "<REGION_TO_SEGMENTATION>", "<OPEN_VOCABULARY_DETECTION>", "<CAPTION>"]


def processor(area):
    config = {**CONFIG, "ocr": {"AREA_THRESHOLD": area}}
    tokenizer = SimpleNamespace(all_special_tokens=[], image_token="<image>", image_token_id=0)
    found = object.__new__(Florence2Processor)
    made = SimpleNamespace(image_seq_length=1)
    try:
        Florence2Processor.__init__(found, made, tokenizer, post_processor_config=config)
    except Exception:  # the base class wants real parts; what answers need is there by then
        pass
    found.post_processor = Florence2PostProcessor(config=config, tokenizer=tokenizer)
    return found


def main():
    rows = []
    for area in (0.0, 0.01):
        of_area = processor(area)
        for text in ANSWERS:
            for task in TASKS if area == 0.0 else ["<OCR_WITH_REGION>"]:
                for size in SIZES:
                    try:
                        found = of_area.post_process_generation(text=text, task=task, image_size=size)[task]
                    except RuntimeError:  # torch.tensor([]).reshape(-1, 2) of an outline without points
                        continue
                    rows.append({"task": task, "area": area, "size": size, "text": text, "found": found})
    lines = ",\n".join(json.dumps(row, ensure_ascii=True, separators=(",", ":")) for row in rows)
    Path(__file__).with_suffix(".json").write_text(f"[\n{lines}\n]\n")


main()
