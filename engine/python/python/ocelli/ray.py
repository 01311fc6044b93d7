"""Ocelli on many machines, by Ray: classes for `map_batches` of Ray Data, and a deployment of Ray Serve.

    >>> import ray, ocelli.ray
    >>> rows = ray.data.read_images("photos", include_paths=True)
    >>> captions = rows.map_batches(ocelli.ray.Generate, fn_constructor_kwargs={"prompt": "Describe this picture."}, concurrency=2)
    >>> captions.write_parquet("captions")

Each actor has an engine of its own. Needs `pip install ocelli[ray]`.
"""

from __future__ import annotations

import asyncio
import time
import uuid
from typing import Any, Dict, List, Mapping, Optional

import numpy as np

from . import Answer, Model, OcelliError

__all__ = ["Embed", "Generate", "deployment"]


def _rows(batch: Mapping[str, Any]) -> int:
    return len(next(iter(batch.values()))) if batch else 0


def _column(batch: Mapping[str, Any], name: str) -> Any:
    if name not in batch:
        raise ValueError(f"{name}: no such column; there are {', '.join(batch)}")
    return batch[name]


def _plain(value: Any) -> Any:
    """A value of a column as Python has it: numpy's texts and bytes are none of theirs."""
    if isinstance(value, np.str_):
        return str(value)
    if isinstance(value, np.bytes_):
        return bytes(value)
    return value


class Generate:
    """Answers each row of a batch: for `Dataset.map_batches`, with batches as NumPy has them.

    The batch comes back with the columns `text`, `finish_reason`, `tokens` and `error`; a row that cannot be answered has an empty `text`
    and its `error`. `params` are those of `Model.generate`, `model_args` those of `Model`.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        prompt: Optional[str] = None,
        system: Optional[str] = None,
        image_column: Optional[str] = "image",
        prompt_column: str = "prompt",
        params: Optional[Mapping[str, Any]] = None,
        model_args: Optional[Mapping[str, Any]] = None,
    ) -> None:
        self._model = Model(model, **dict(model_args or {}))
        self._prompt, self._system = prompt, system
        self._image_column, self._prompt_column = image_column, prompt_column
        self._params = dict(params or {})

    def __call__(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        count = _rows(batch)
        images = None if self._image_column is None else _column(batch, self._image_column)
        prompts = None if self._prompt is not None else _column(batch, self._prompt_column)
        rows = []
        for number in range(count):
            row: Dict[str, Any] = {"prompt": self._prompt if prompts is None else _plain(prompts[number])}
            if images is not None:
                row["images"] = [_plain(images[number])]
            rows.append(row)
        text, reason, error = ([""] * count for _ in range(3))
        tokens = [0] * count
        for result in self._model.batch(rows, system=self._system, **self._params):
            if result.answer is None:
                error[result.index] = str(result.error)
                continue
            answer = result.answer
            text[result.index], reason[result.index] = answer.text, answer.finish_reason
            tokens[result.index] = len(answer.token_ids)
        made = {"text": text, "finish_reason": reason, "tokens": tokens, "error": error}
        return {**batch, **{name: np.array(values) for name, values in made.items()}}


class Embed:
    """Gives each row's picture, or its text, a vector: for `Dataset.map_batches`. The batch comes back with a column `vector`.

    A picture that cannot be read ends the batch; Ray's `max_errored_blocks` says what becomes of that.
    """

    def __init__(
        self,
        model: str = "demo",
        *,
        image_column: Optional[str] = "image",
        text_column: Optional[str] = None,
        model_args: Optional[Mapping[str, Any]] = None,
    ) -> None:
        if (image_column is None) == (text_column is None):
            raise ValueError("expected image_column or text_column, and not both")
        self._model = Model(model, **dict(model_args or {}))
        self._image_column, self._text_column = image_column, text_column

    def __call__(self, batch: Dict[str, Any]) -> Dict[str, Any]:
        if self._text_column is not None:
            texts = [str(text) for text in _column(batch, self._text_column)]
            return {**batch, "vector": self._model.embed(texts=texts)}
        images: List[Any] = [_plain(image) for image in _column(batch, self._image_column or "")]
        return {**batch, "vector": self._model.embed(images=images)}


def deployment(model: str = "demo", *, model_args: Optional[Mapping[str, Any]] = None, **options: Any) -> Any:
    """An application for `serve.run`: chat completions in OpenAI's shape, as POST.

    `options` are those of `serve.deployment`, such as `num_replicas` or `ray_actor_options`; each replica has an engine of its own. Fields
    beside `messages` and `model` are parameters of `Model.chat`; answers come whole.
    """
    from ray import serve
    from starlette.requests import Request
    from starlette.responses import JSONResponse

    def refused(message: str, status: int, kind: str) -> JSONResponse:
        error = {"message": message, "type": kind, "param": None, "code": None}
        return JSONResponse({"error": error}, status_code=status)

    @serve.deployment(**options)
    class Chat:
        def __init__(self, model: str, model_args: Mapping[str, Any]) -> None:
            self._model = Model(model, **model_args)
            self._name = model

        async def __call__(self, request: Request) -> JSONResponse:
            try:
                body = await request.json()
            except ValueError as error:
                return refused(f"the body is not JSON: {error}", 400, "invalid_request_error")
            if not isinstance(body, dict) or not isinstance(body.get("messages"), list):
                return refused("messages: expected a list", 400, "invalid_request_error")
            body.pop("model", None)
            if body.pop("stream", False):
                return refused("stream: answers come whole here", 400, "invalid_request_error")
            if "max_completion_tokens" in body:
                body["max_tokens"] = body.pop("max_completion_tokens")
            try:
                answer = await self.answer(body.pop("messages"), **body)
            except ValueError as error:
                return refused(str(error), 400, "invalid_request_error")
            except OcelliError as error:
                return refused(str(error), 400, "invalid_request_error")
            return JSONResponse(self._shape(answer))

        async def answer(self, messages: List[Mapping[str, Any]], **params: Any) -> Answer:
            return await asyncio.to_thread(self._model.chat, messages, **params)

        def _shape(self, answer: Answer) -> Dict[str, Any]:
            message = {"role": "assistant", "content": answer.text}
            if answer.reasoning is not None:
                message["reasoning_content"] = answer.reasoning
            prompt, completion = answer.prompt_tokens, len(answer.token_ids)
            return {
                "id": f"chatcmpl-{uuid.uuid4().hex}", "object": "chat.completion", "created": int(time.time()), "model": self._name,
                "choices": [{"index": 0, "message": message, "finish_reason": answer.finish_reason, "logprobs": None}],
                "usage": {"prompt_tokens": prompt, "completion_tokens": completion, "total_tokens": prompt + completion},
            }

    return Chat.bind(model, dict(model_args or {}))
