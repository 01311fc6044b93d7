"""Token ids by the tokenizers library with the tokenizers of published models:

    eval "$(tests/tokenizers.sh)"
    venv/bin/python tests/golden/text/real_tokenizers.py "$OCELLI_TOKENIZERS" > tests/golden/text/real_tokenizers.json

A row has the ids of a text by itself (`plain`), those with the tokenizer's own beginning and end (`ids`, left out where they are the
same), and the text that the plain ones decode to (`text`, left out where it is the text itself). Texts after the written ones are
drawn from many scripts.
"""

import json
import random
import sys
from pathlib import Path

from tokenizers import Tokenizer

TEXTS = [
    "Hello, world! It's 3.14159 o'clock -- isn't it? We'LL see...",
    " leading and trailing  spaces \n\n\n\ttabs\t\t and\r\nlines\r\n ",
    "Die Straße heißt „Übergröße“; naïve façade, Ελλάδα, Привет, мир! Łódź şık",
    "日本語の文章です。漢字とかなとカナが混ざっています。你好，世界！안녕하세요 세계",
    "مرحبا بالعالم ١٢٣ שלום עולם हिन्दी में नमस्ते ภาษาไทยไม่มีช่องว่าง ខ្មែរ",
    "👩‍👩‍👧‍👦 🏳️‍🌈 👍🏽 🇩🇪🇯🇵 ❤️ 😀😃 ☃ ✈️ 1️⃣",
    "e\u0301 vs \u00e9, ﬁ ligature, Å (\u212b), \u200bzero\u200d width\ufeff, nbsp\u00a0here, \u2028 line",
    "fn main() {\n    let x: Vec<u8> = (0..=255).map(|i| i ^ 0xFF).collect();\n    println!(\"{x:?}\");\n}\n",
    "def f(a, *, b=None):\n\treturn [i**2 for i in range(10) if i % 3 == 0]  # comment\n",
    "<div class=\"a b\">&amp; &lt;x&gt; <!-- <image> --></div> SELECT * FROM t WHERE a='b';",
    "1234567890 12 345 6,789.00 1e-7 0x1f 2026-11-29T12:00:00Z $5 50% v1.2.3",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa          " + "=" * 50 + "\n" * 6,
    "<|im_start|>user\nWhat is <think> here?<|im_end|>\n<start_of_turn>model\n<|begin_of_text|><|eot_id|><end_of_turn>",
    "https://example.org/path?q=a%20b&x=[1,2]#frag user@example.org C:\\dir\\file.txt",
    "𝔘𝔫𝔦𝔠𝔬𝔡𝔢 𐍈 𠜎𠜱 \U0001f9ff \x00\x01\x7f end",
    "",
]
SCRIPTS = [(0x20, 0x7e), (0xa0, 0x24f), (0x370, 0x52f), (0x590, 0x6ff), (0x900, 0xdff), (0xe00, 0xeff), (0x2000, 0x27bf),
           (0x3040, 0x30ff), (0x4e00, 0x9fff), (0xac00, 0xd7a3), (0x1f300, 0x1faff)]


def drawn(count):
    rng = random.Random(7)
    for _ in range(count):
        out = []
        for _ in range(rng.randint(1, 8)):
            low, high = rng.choice(SCRIPTS)
            out.append("".join(chr(rng.randint(low, high)) for _ in range(rng.randint(1, 7))))
        yield rng.choice(["", " ", "  ", "\n"]).join(out)


def main():
    texts = TEXTS + list(drawn(12))
    models = {}
    for folder in sorted(path for path in Path(sys.argv[1]).iterdir() if path.is_dir()):
        tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
        tokenizer.no_padding()
        tokenizer.no_truncation()
        rows = []
        for text in texts:
            plain, full = (tokenizer.encode(text, add_special_tokens=special).ids for special in (False, True))
            back = tokenizer.decode(plain, skip_special_tokens=False)
            row = {"plain": plain} | ({"ids": full} if full != plain else {}) | ({"text": back} if back != text else {})
            rows.append(json.dumps(row))
        models[folder.name] = rows
    listed = ",\n".join("  " + json.dumps(text) for text in texts)
    tables = ",\n".join(f'  "{name}": [\n   ' + ",\n   ".join(rows) + "\n  ]" for name, rows in models.items())
    print(f'{{\n "texts": [\n{listed}\n ],\n "models": {{\n{tables}\n }}\n}}')


main()
