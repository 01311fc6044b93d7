"""`ocelli.Model` beside the command: the same answers, vectors and words."""

import json
import os
import signal
import threading
import time

import numpy as np
import ocelli
import pytest
from conftest import EXAMPLES, GOLDEN, ROOT
from PIL import Image

DESCRIBE = "Describe the picture."
COUNT = "How many objects are there?"


def example(number):
    return EXAMPLES / f"{number:02}.png"


def test_answers_are_those_of_the_command(model, asked):
    for number in (1, 2, 3):
        for prompt in (DESCRIBE, COUNT):
            expected = asked(prompt, example(number))
            answer = model.generate(prompt, images=[example(number)])
            assert (answer.text, answer.token_ids) == (expected["text"], expected["token_ids"])
            assert (answer.prompt_tokens, answer.finish_reason) == (expected["prompt_tokens"], expected["finish_reason"])
            assert str(answer) == answer.text and answer.text in repr(answer)


def test_parameters_mean_what_they_mean_there(model, asked):
    # Each about a picture of its own: a prompt that was read before may round its last bits otherwise, which drawing at random shows.
    for number, flags, params in [
        (4, "--temperature 3 --seed 7 --max-tokens 40 --ignore-eos", dict(temperature=3, seed=7, max_tokens=40, ignore_eos=True)),
        (5, "--temperature 1.5 --top-p 0.9 --top-k 50 --max-tokens 9", dict(temperature=1.5, top_p=0.9, top_k=50, max_tokens=9)),
    ]:
        expected = asked(DESCRIBE, example(number), more=flags.split())
        answer = model.generate(DESCRIBE, images=example(number), **params)
        assert (answer.token_ids, answer.finish_reason) == (expected["token_ids"], expected["finish_reason"])
    other = [model.generate(DESCRIBE, images=example(1), temperature=3, max_tokens=40, seed=seed).text for seed in (7, 8)]
    assert other[0] != other[1]
    whole = model.generate(DESCRIBE, images=example(1)).text
    word = whole.split()[2]
    for stop in (word, [word], ("never", word)):
        cut = model.generate(DESCRIBE, images=example(1), stop=stop)
        assert (cut.text, cut.finish_reason) == (whole[: whole.index(word)], "stop")
    system = asked(DESCRIBE, example(1), more=["--system", "You are brief."])
    assert model.generate(DESCRIBE, images=example(1), system="You are brief.").token_ids == system["token_ids"]


def test_all_kinds_of_pictures(model):
    path = example(1)
    expected = model.generate(DESCRIBE, images=[path]).token_ids
    picture = Image.open(path)
    array = np.asarray(picture.convert("RGB"))
    wide = np.zeros((array.shape[0], array.shape[1] * 2, 3), np.uint8)
    wide[:, ::2] = array
    opaque = np.dstack([array, np.full(array.shape[:2], 255, np.uint8)])
    kinds = [str(path), path, path.read_bytes(), bytearray(path.read_bytes()), picture, array, wide[:, ::2], opaque]
    for given in kinds:
        assert model.generate(DESCRIBE, images=[given]).token_ids == expected, type(given)
    assert model.generate(DESCRIBE, images=picture).token_ids == expected
    # Two pictures, and none.
    two = model.generate(COUNT, images=[path, array]).prompt_tokens
    one, none = (model.generate(COUNT, images=images).prompt_tokens for images in ([path], None))
    assert two - one == one - none > 0
    # Transparency is on white, as it is in files.
    clear = Image.new("RGBA", (32, 32), (255, 0, 0, 0))
    white = Image.new("RGB", (32, 32), (255, 255, 255))
    assert model.generate(DESCRIBE, images=[clear]).token_ids == model.generate(DESCRIBE, images=[white]).token_ids
    gray = np.full((32, 32), 90, np.uint8)
    same = np.full((32, 32, 3), 90, np.uint8)
    assert model.generate(DESCRIBE, images=[gray]).token_ids == model.generate(DESCRIBE, images=[same]).token_ids


def test_pieces_come_as_they_are_made(model):
    whole = model.generate(DESCRIBE, images=[example(1)])
    stream = model.generate(DESCRIBE, images=[example(1)], stream=True)
    assert stream.answer is None
    pieces = list(stream)
    assert len(pieces) > 3 and "".join(pieces) == whole.text == stream.answer.text
    assert stream.result().token_ids == whole.token_ids and list(stream) == []
    # What nobody waits for is ended, and the model goes on.
    dropped = model.generate(DESCRIBE, images=[example(1)], stream=True, ignore_eos=True)
    next(dropped)
    del dropped
    cancelled = model.generate(DESCRIBE, images=[example(1)], stream=True, ignore_eos=True)
    cancelled.cancel()
    assert cancelled.result().finish_reason in ("cancelled", "length")
    assert model.generate(DESCRIBE, images=[example(1)]).text == whole.text


def test_chats(model, asked, command, tmp_path):
    path = example(2)
    messages = [
        {"role": "user", "content": [{"type": "image_url", "image_url": {"url": str(path)}}, {"type": "text", "text": COUNT}]},
        {"role": "assistant", "content": "two"},
        {"role": "user", "content": DESCRIBE},
    ]
    file = tmp_path / "chat.json"
    file.write_text(json.dumps(messages))
    expected = json.loads(command("run", "--json", "--backend", "cpu", "--messages", file).stdout)
    assert model.chat(messages).token_ids == expected["token_ids"]
    for picture in (Image.open(path), np.asarray(Image.open(path).convert("RGB")), path, path.read_bytes()):
        messages[0]["content"][0] = {"type": "image", "image": picture}
        assert model.chat(messages).token_ids == expected["token_ids"]
    assert "".join(model.chat(messages, stream=True)) == expected["text"]


def test_many_rows(model):
    rows = [{"image": example(1 + number % 6), "prompt": (DESCRIBE, COUNT)[number % 2], "name": number} for number in range(40)]
    expected = [model.generate(row["prompt"], images=[row["image"]]).token_ids for row in rows]
    results = list(model.batch(rows, ordered=True))
    assert [result.index for result in results] == list(range(40))
    assert [result.answer.token_ids for result in results] == expected
    assert all(result.row["name"] == result.index and result.error is None for result in results)
    free = {result.index: result.answer.token_ids for result in model.batch(iter(rows))}
    assert [free[number] for number in range(40)] == expected
    # A row that is wrong ends nothing.
    rows[3] = {"image": "no/such/file.png", "prompt": "x"}
    rows[5] = {"image": example(1)}
    rows[7] = {"image": np.zeros((2, 2), np.float32), "prompt": "x"}
    results = list(model.batch(rows, ordered=True))
    wrong = {result.index: result.error for result in results if result.answer is None}
    assert sorted(wrong) == [3, 5, 7]
    assert isinstance(wrong[3], ocelli.OcelliError) and "no/such/file.png" in str(wrong[3])
    assert isinstance(wrong[5], ValueError) and isinstance(wrong[7], ValueError)
    assert results[3].text is None and results[4].answer.token_ids == expected[4]
    # The prompt of all, messages, parameters; rows are not taken before there is room.
    taken = []

    def endless():
        for number in range(10**9):
            taken.append(number)
            yield {"images": [example(1)]}

    coming = model.batch(endless(), prompt=COUNT, max_tokens=1, workers=1)
    first = [next(coming) for _ in range(5)]
    coming.close()
    assert all(len(result.answer.token_ids) == 1 for result in first)
    assert len(taken) <= model.parallel + 2 + 5
    said = [{"messages": [{"role": "user", "content": COUNT}]}]
    assert next(model.batch(said)).answer.token_ids == model.chat(said[0]["messages"]).token_ids


def test_the_demo_evaluation_row_by_row(model, command, tmp_path):
    lines = (ROOT / "models/demo/eval/eval.jsonl").read_text().splitlines()[:60]
    rows = [json.loads(line) for line in lines]
    for row in rows:
        row["image"] = str(ROOT / "models/demo/eval" / row["image"])
    prompt = next(name for name in ("question", "prompt") if name in rows[0])
    source, out = tmp_path / "rows.jsonl", tmp_path / "out.jsonl"
    source.write_text("".join(json.dumps({**row, "id": str(number)}) + "\n" for number, row in enumerate(rows)))
    command("batch", source, "--out", out, "--prompt-column", prompt, "--ordered", "--backend", "cpu", "-q")
    expected = [json.loads(line)["text"] for line in out.read_text().splitlines()]
    got = [result.text for result in model.batch(({"image": row["image"], "prompt": row[prompt]} for row in rows), ordered=True)]
    assert got == expected and len(got) == 60


def test_vectors(model, command):
    siglip, photo = GOLDEN / "siglip", GOLDEN / "images/flower_c107-0-533-427_64x64.png"

    def lines(*args):
        return [json.loads(line) for line in command("embed", "--backend", "cpu", *args).stdout.splitlines()]

    dual = ocelli.Model(siglip, backend="cpu")
    assert (dual.gives_answers, dual.vector_kind, dual.family) == (False, "dual encoder", "siglip")
    texts = ["a photo of a flower", "two cats"]
    expected = lines("--model", siglip, photo, "--text", texts[0], "--text", texts[1])
    got = dual.embed(images=[photo])
    assert got.dtype == np.float32 and got.shape == (1, len(expected[0]["vector"]))
    assert got[0].tolist() == np.float32(expected[0]["vector"]).tolist()
    vectors = dual.embed(texts=texts)
    assert vectors.tolist() == [np.float32(line["vector"]).tolist() for line in expected[1:]]
    assert dual.embed(texts=texts[0]).tolist() == vectors[:1].tolist()
    assert abs(np.linalg.norm(vectors, axis=1) - 1).max() < 1e-5
    with pytest.raises(ocelli.OcelliError, match="gives vectors"):
        dual.generate("x")
    # A model that gives answers has vectors of pictures alone.
    expected = lines("--model", ROOT / "models/demo/model", example(1))
    assert model.vector_kind == expected[0]["kind"].replace("_", " ") + " features" == "pooled tower features"
    assert model.embed(images=example(1))[0].tolist() == np.float32(expected[0]["vector"]).tolist()
    many = model.embed(images=np.stack([np.full((40, 40, 3), level, np.uint8) for level in range(20)]))
    assert many.shape[0] == 20
    with pytest.raises(ocelli.OcelliError, match="pooled tower features"):
        model.embed(texts=["x"])
    for wrong in ({}, {"images": [], "texts": []}):
        with pytest.raises(ValueError, match="images or texts"):
            model.embed(**wrong)


def test_errors_have_the_words_of_the_command(model, command, tmp_path):
    bad = tmp_path / "bad.png"
    bad.write_text("no picture")

    def said(done):
        lines = done.stderr.splitlines()
        hint = next((line[6:] for line in lines if line.startswith("hint: ")), None)
        return next(line[7:] for line in lines if line.startswith("error: ")), hint

    for image in (bad, tmp_path / "absent.png"):
        text, _ = said(command("run", "--backend", "cpu", "--image", image, "x", code=1))
        with pytest.raises(ocelli.OcelliError) as raised:
            model.generate("x", images=[image])
        assert str(raised.value) == text
    text, _ = said(command("run", "--model", "./no-such-model", "x", code=1))
    with pytest.raises(ocelli.OcelliError) as raised:
        ocelli.Model("./no-such-model")
    assert str(raised.value) == text
    with pytest.raises(ValueError, match="temperature: expected"):
        model.generate("x", temperature=-1)
    with pytest.raises(ocelli.OcelliError, match="expected at most"):
        model.generate("word " * 100_000)
    for call, text in [
        (lambda: ocelli.Model("demo", backend="tpu"), "backend: expected auto, cpu, wgpu or cuda, found `tpu`"),
        (lambda: ocelli.Model("demo", dtype="f8"), "dtype: expected"),
        (lambda: ocelli.Model("demo", parallel=0), "parallel: expected 1 or more"),
        (lambda: model.generate("x", images=[3]), r"images\[0\]: expected a path"),
        (lambda: model.generate("x", images=[np.zeros((2, 2, 2), np.uint8)]), r"images\[0\]: expected uint8"),
        (lambda: model.generate("x", images=[np.zeros((0, 2, 3), np.uint8)]), r"images\[0\]: expected a picture"),
        (lambda: model.generate(3), "prompt: expected a text"),
        (lambda: model.generate("x", frobnicate=1), "frobnicate: no such parameter"),
        (lambda: model.generate("x", max_tokens="many"), "invalid type"),
        (lambda: model.chat([]), "at least one message"),
        (lambda: model.chat([{"role": "user", "content": [{"type": "image", "image": 3}]}]), r"messages\[0\].content\[0\]"),
    ]:
        with pytest.raises(ValueError, match=text):
            call()
    assert issubclass(ocelli.OcelliError, Exception) and model.generate(COUNT, images=[example(1)]).text == "two"


def test_others_run_while_the_engine_works(model):
    """The lock is released: a thread that counts goes on meanwhile."""
    counted, done = [0], threading.Event()

    def count():
        while not done.is_set():
            counted[0] += 1
            time.sleep(0.0005)

    thread = threading.Thread(target=count)
    thread.start()
    before = counted[0]
    model.generate(DESCRIBE, images=[example(1)], ignore_eos=True, max_tokens=100)
    during = counted[0] - before
    done.set()
    thread.join()
    assert during > 5
    # Many threads ask one model.
    texts, threads = {}, []
    for number in range(1, 7):
        ask = lambda number=number: texts.update({number: model.generate(DESCRIBE, images=[example(number)]).text})
        threads.append(threading.Thread(target=ask))
        threads[-1].start()
    for thread in threads:
        thread.join()
    assert texts == {number: model.generate(DESCRIBE, images=[example(number)]).text for number in range(1, 7)}


def test_ctrl_c_ends_a_wait(model):
    rows = ({"image": example(1), "prompt": DESCRIBE} for _ in range(10**9))
    timer = threading.Timer(0.5, lambda: os.kill(os.getpid(), signal.SIGINT))
    timer.start()
    begun = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        for _ in model.batch(rows, ignore_eos=True):
            pass
    assert time.monotonic() - begun < 20
    assert model.generate(COUNT, images=[example(1)]).text == "two"


def test_types_are_shipped():
    folder = os.path.dirname(ocelli.__file__)
    assert {"py.typed", "_ocelli.pyi", "__init__.py", "ray.py"} <= set(os.listdir(folder))
    # Every name of the stubs is there, and the other way round.
    import ast

    from ocelli import _ocelli

    stubs = ast.parse(open(os.path.join(folder, "_ocelli.pyi")).read())
    for kind in (node for node in stubs.body if isinstance(node, ast.ClassDef)):
        there = {name for name in vars(getattr(_ocelli, kind.name)) if not name.startswith("_")}
        said = {node.name for node in kind.body if isinstance(node, ast.FunctionDef) and not node.name.startswith("_")}
        assert there == said or kind.name == "OcelliError", kind.name


def test_adapters_are_those_of_the_command(command):
    folder, adapter = GOLDEN / "train" / "smolvlm", GOLDEN / "train" / "lora"
    asked = ("run", "--model", folder, "--max-tokens", "12", "--ignore-eos", "--json", "Hello")
    plain, expected = (json.loads(command(*asked, *more).stdout)["token_ids"] for more in ((), ("--adapter", adapter)))
    found = ocelli.Model(folder, adapter=adapter).generate("Hello", max_tokens=12, ignore_eos=True)
    assert found.token_ids == expected != plain
    with pytest.raises(ocelli.OcelliError, match="adapter_config.json"):
        ocelli.Model(folder, adapter=folder)
