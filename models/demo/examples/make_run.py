"""Draws run.svg, the picture of a demo run in the README, from 01.png and examples.json: python make_run.py"""

import base64
import html
import json
from pathlib import Path

here = Path(__file__).parent
example = next(e for e in json.loads((here / "examples.json").read_text()) if e["image"] == "01.png")
asked = ["How many objects are there?", "Describe the picture.", "Is the ring below the cross?"]
answers = {pair["question"]: pair["answer"] for pair in example["pairs"]}
picture = base64.b64encode((here / "01.png").read_bytes()).decode()

lines = []
for question in asked:
    lines.append(("$", f'ocelli run --image models/demo/examples/01.png "{question}"'))
    lines.append(("", answers[question]))
height = 60 + 26 * len(lines)
height = max(height, 240)
rows = []
for i, (prompt, text) in enumerate(lines):
    y = 62 + 26 * i
    colour = "#8ab4f8" if prompt else "#e8eaed"
    mark = '<tspan fill="#81c995">$ </tspan>' if prompt else ""
    rows.append(f'<text x="236" y="{y}" fill="{colour}">{mark}{html.escape(text)}</text>')
body = "\n".join(rows)
(here / "run.svg").write_text(
    f'<svg xmlns="http://www.w3.org/2000/svg" width="980" height="{height}" viewBox="0 0 980 {height}">\n'
    f'<rect width="980" height="{height}" rx="10" fill="#202124"/>\n'
    f'<image href="data:image/png;base64,{picture}" x="20" y="24" width="192" height="192"/>\n'
    f'<g font-family="ui-monospace, Menlo, Consolas, monospace" font-size="15">\n{body}\n</g>\n</svg>\n'
)
