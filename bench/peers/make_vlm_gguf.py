#!/usr/bin/env python3
"""Write a SmolVLM checkpoint as the two GGUF files of llama.cpp, with its vocabulary: the text model, and the tower with its projector.

    python bench/peers/make_vlm_gguf.py --llama DIR --model DIR --out DIR [--longest-edge 1024] [--type bf16]

--llama is llama.cpp's source, in which its own convert_hf_to_gguf.py does the work (bench/peers/llama.sh unpacks it below
target/peers).  It knows vocabularies by a hash; that of a checkpoint of bench/make_real_size.py is new to it, so this says that it is cut
into words as SmolLM's is.  --longest-edge is what pictures are resized to at most.  Writes text.gguf and mmproj.gguf.  Needs numpy,
safetensors, torch and transformers.
"""
import argparse
import json
import sys
import tempfile
from pathlib import Path


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--llama", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--longest-edge", type=int, default=1024)
    parser.add_argument("--type", default="bf16")
    args = parser.parse_args()
    sys.path[:0] = [str(args.llama), str(args.llama / "gguf-py")]
    import conversion.base as base
    from conversion.llama import LlamaModel
    import convert_hf_to_gguf
    base.TextModel.get_vocab_base_pre = lambda self, tokenizer: "smollm"
    LlamaModel.set_vocab = base.TextModel._set_vocab_gpt2
    args.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        model = Path(folder)
        for file in args.model.iterdir():
            if file.is_file():
                (model / file.name).symlink_to(file.resolve())
        for name in ("preprocessor_config.json", "processor_config.json"):
            if (model / name).is_file():
                settings = json.loads((model / name).read_text())
                settings.get("image_processor", settings)["size"] = {"longest_edge": args.longest_edge}
                (model / name).unlink()
                (model / name).write_text(json.dumps(settings))
        for name, more in (("text", []), ("mmproj", ["--mmproj"])):
            sys.argv = ["convert_hf_to_gguf.py", str(model), "--outfile", str(args.out / f"{name}.gguf"), "--outtype", args.type, *more]
            convert_hf_to_gguf.main()


if __name__ == "__main__":
    main()
