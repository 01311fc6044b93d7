"""What the openai package gets from a server: client.py BASE_URL KEY PICTURE"""

import base64
import sys

import openai

url, key, picture = sys.argv[1:]
client = openai.OpenAI(base_url=url, api_key=key, max_retries=0)
address = "data:image/png;base64," + base64.b64encode(open(picture, "rb").read()).decode()
messages = [
    {
        "role": "user",
        "content": [
            {"type": "image_url", "image_url": {"url": address, "detail": "high"}},
            {"type": "text", "text": "How many objects are there?"},
        ],
    }
]
ask = {"model": "demo", "messages": messages, "temperature": 0}

model = client.models.list().data[0]
assert model.id == "demo", model
assert client.models.retrieve("demo").id == "demo"

answer = client.chat.completions.create(**ask, max_completion_tokens=20, user="me")
assert answer.choices[0].message.content == "two", answer
assert answer.choices[0].finish_reason == "stop" and answer.usage.total_tokens > 36, answer

parts = list(client.chat.completions.create(**ask, stream=True, stream_options={"include_usage": True}))
assert "".join(part.choices[0].delta.content or "" for part in parts if part.choices) == "two", parts
assert parts[-1].usage == answer.usage, parts[-1]

with client.chat.completions.stream(**ask) as stream:
    kinds = [event.type for event in stream]
    assert stream.get_final_completion().choices[0].message.content == "two"
assert "content.delta" in kinds and "content.done" in kinds, kinds

several = client.chat.completions.create(**ask | {"temperature": 1.5}, n=3, seed=3, stop=["."], max_tokens=8)
assert [choice.index for choice in several.choices] == [0, 1, 2], several

text = client.completions.create(model="demo", prompt=["How", "What"], max_tokens=3, temperature=0)
assert len(text.choices) == 2, text


def fails(kind, param, code, work):
    try:
        work()
    except kind as error:
        assert error.param == param and error.code == code, (error.param, error.code, error)
    else:
        raise AssertionError(f"expected {kind}")


create = client.chat.completions.create
fails(openai.BadRequestError, "logprobs", "unsupported_parameter", lambda: create(**ask, logprobs=True))
fails(openai.BadRequestError, "n", None, lambda: create(**ask, n=1000))
fails(openai.NotFoundError, "model", "model_not_found", lambda: create(**ask | {"model": "gpt"}))
fails(openai.BadRequestError, "model", None, lambda: client.embeddings.create(model="demo", input="x"))
stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
fails(openai.AuthenticationError, None, "invalid_api_key", lambda: stranger.models.list())
print(f"openai {openai.__version__}: ok")
