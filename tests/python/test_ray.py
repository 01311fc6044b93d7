"""Ocelli on Ray: two actors on this machine."""

import json
import socket
import urllib.error
import urllib.request

import numpy as np
import pytest
from conftest import EXAMPLES, GOLDEN

ray = pytest.importorskip("ray")

import ocelli  # noqa: E402
import ocelli.ray  # noqa: E402

DESCRIBE = "Describe the picture."
ARGS = {"backend": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def cluster():
    ray.init(num_cpus=4, include_dashboard=False, configure_logging=True, logging_level="ERROR", object_store_memory=100_000_000)
    yield
    ray.shutdown()


def paths(count):
    return [str(EXAMPLES / f"{1 + number % 6:02}.png") for number in range(count)]


def test_map_batches_with_two_actors(cluster, model):
    rows = [{"image": path, "number": number} for number, path in enumerate(paths(24))]
    rows[5]["image"] = "no/such/file.png"
    data = ray.data.from_items(rows, override_num_blocks=6)
    made = {"prompt": DESCRIBE, "model_args": ARGS}
    done = data.map_batches(ocelli.ray.Generate, fn_constructor_kwargs=made, batch_size=4, concurrency=2)
    got = sorted(done.take_all(), key=lambda row: row["number"])
    expected = {path: model.generate(DESCRIBE, images=[path]) for path in paths(6)}
    assert len(got) == 24
    for row in got:
        if row["number"] == 5:
            assert row["text"] == "" and "no/such/file.png" in row["error"]
            continue
        answer = expected[row["image"]]
        assert (row["text"], row["tokens"], row["finish_reason"], row["error"]) == (answer.text, len(answer.token_ids), "stop", "")


def test_pictures_of_ray_and_vectors(cluster, model):
    data = ray.data.read_images([str(EXAMPLES / f"{number:02}.png") for number in (1, 2)], include_paths=True, mode="RGB")
    done = data.map_batches(ocelli.ray.Generate, fn_constructor_kwargs={"prompt": DESCRIBE, "model_args": ARGS}, concurrency=1)
    for row in done.take_all():
        assert row["text"] == model.generate(DESCRIBE, images=[row["path"]]).text
    texts = ray.data.from_items([{"text": text} for text in ("a flower", "a cat")])
    given = {"model": str(GOLDEN / "siglip"), "image_column": None, "text_column": "text", "model_args": ARGS}
    done = texts.map_batches(ocelli.ray.Embed, fn_constructor_kwargs=given, concurrency=1)
    vectors = {row["text"]: row["vector"] for row in done.take_all()}
    dual = ocelli.Model(GOLDEN / "siglip", backend="cpu", threads=1)
    for text, vector in vectors.items():
        assert np.array_equal(np.float32(vector), dual.embed(texts=[text])[0])
    with pytest.raises(ValueError, match="image_column or text_column"):
        ocelli.ray.Embed(text_column="text")


def test_a_deployment(cluster, model):
    from ray import serve

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    serve.start(http_options={"host": "127.0.0.1", "port": port})
    try:
        application = ocelli.ray.deployment("demo", model_args=ARGS, num_replicas=2, ray_actor_options={"num_cpus": 0.5})
        serve.run(application, route_prefix="/chat")

        def ask(body, code=200):
            data = json.dumps(body).encode()
            request = urllib.request.Request(f"http://127.0.0.1:{port}/chat", data, {"content-type": "application/json"})
            try:
                with urllib.request.urlopen(request, timeout=60) as response:
                    found, text = response.status, response.read()
            except urllib.error.HTTPError as error:
                found, text = error.code, error.read()
            assert found == code, text
            return json.loads(text)

        for path in paths(4):
            content = [{"type": "image_url", "image_url": {"url": path}}, {"type": "text", "text": DESCRIBE}]
            messages = [{"role": "user", "content": content}]
            value = ask({"model": "demo", "messages": messages, "temperature": 0})
            expected = model.chat(messages)
            assert value["choices"][0]["message"]["content"] == expected.text
            assert value["usage"]["completion_tokens"] == len(expected.token_ids)
        assert "temperature" in ask({"messages": messages, "temperature": -1}, 400)["error"]["message"]
        assert "messages" in ask({"messages": "x"}, 400)["error"]["message"]
        assert "frobnicate" in ask({"messages": messages, "frobnicate": 1}, 400)["error"]["message"]
    finally:
        serve.shutdown()
