"""What the openai package gets from a server: client.py BASE_URL KEY PICTURE"""

import base64
import json
import sys
import time

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

likely = client.chat.completions.create(**ask, logprobs=True, top_logprobs=3).choices[0].logprobs.content
assert "".join(token.token for token in likely).strip() == "two", likely
assert all(token.logprob <= 0 and len(token.top_logprobs) == 3 for token in likely), likely

schema = {"type": "object", "properties": {"count": {"type": "integer", "minimum": 0, "maximum": 99}}, "required": ["count"],
          "additionalProperties": False}
form = {"type": "json_schema", "json_schema": {"name": "count", "strict": True, "schema": schema}}
count = client.chat.completions.create(**ask, response_format=form).choices[0].message.content
assert list(json.loads(count)) == ["count"], count
choice = client.chat.completions.create(**ask, extra_body={"guided_choice": ["one", "two"]})
assert choice.choices[0].message.content == "two", choice

rows = [{"custom_id": str(number), "method": "POST", "url": "/v1/chat/completions", "body": ask} for number in range(3)]
lines = "\n".join(json.dumps(row) for row in rows).encode()
file = client.files.create(file=("rows.jsonl", lines), purpose="batch")
assert client.files.retrieve(file.id).bytes == len(lines), file
batch = client.batches.create(input_file_id=file.id, endpoint="/v1/chat/completions", completion_window="24h")
for _ in range(600):
    if (batch := client.batches.retrieve(batch.id)).status == "completed":
        break
    time.sleep(0.1)
assert batch.request_counts.completed == 3, batch
answers = [json.loads(line) for line in client.files.content(batch.output_file_id).text.splitlines()]
assert {row["response"]["body"]["choices"][0]["message"]["content"] for row in answers} == {"two"}, answers
assert [one.id for one in client.batches.list()] == [batch.id] and client.files.delete(file.id).deleted

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
fails(openai.BadRequestError, "model", None, lambda: client.images.generate(model="demo", prompt="x"))
fails(openai.BadRequestError, "top_logprobs", None, lambda: create(**ask, top_logprobs=2))
fails(openai.BadRequestError, "n", None, lambda: create(**ask, n=1000))
fails(openai.NotFoundError, "model", "model_not_found", lambda: create(**ask | {"model": "gpt"}))
fails(openai.BadRequestError, "model", None, lambda: client.embeddings.create(model="demo", input="x"))
stranger = openai.OpenAI(base_url=url, api_key="wrong", max_retries=0)
fails(openai.AuthenticationError, None, "invalid_api_key", lambda: stranger.models.list())
print(f"openai {openai.__version__}: ok")
