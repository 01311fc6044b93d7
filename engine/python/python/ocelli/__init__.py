"""Run vision language models: pictures and text in, answers out.

    >>> import ocelli
    >>> model = ocelli.Model("demo")
    >>> model.generate("How many objects are there?", images=["models/demo/examples/01.png"]).text
    'two'
"""

from __future__ import annotations

import json
import os
import queue
import threading
from dataclasses import dataclass
from typing import Any, Dict, Iterable, Iterator, List, Literal, Mapping, Optional, Sequence, Tuple, Union, overload

import numpy as np

from ._ocelli import Answer, Engine as _Engine, OcelliError, Results as _Results, Stream, __version__

__all__ = ["Answer", "Model", "OcelliError", "Result", "Stream", "__version__"]

#: A path or `data:` address, bytes of a file, a `PIL.Image.Image`, or a uint8 array of height, width and 3 colours
#: (or 4 with transparency, or none for grey).
Picture = Any

#: Fields of a request that are no text or picture.
_SAMPLING = (
    "max_tokens", "temperature", "top_k", "top_p", "min_p", "repetition_penalty", "seed", "stop", "stop_token_ids",
    "ignore_eos",
)
_BESIDE = "ocelli-picture:"


def _pixels(array: np.ndarray, where: str) -> Tuple[int, int, bytes]:
    found = f"{array.dtype} of shape {tuple(array.shape)}"
    if array.dtype != np.uint8 or array.ndim not in (2, 3) or (array.ndim == 3 and array.shape[2] not in (1, 3, 4)):
        raise ValueError(f"{where}: expected uint8 of height, width and 3 colours, found {found}")
    if array.ndim == 2:
        array = array[:, :, None]
    if min(array.shape[:2]) == 0:
        raise ValueError(f"{where}: expected a picture with pixels, found {found}")
    if array.shape[2] == 1:
        array = np.repeat(array, 3, axis=2)
    if array.shape[2] == 4:
        # On white, as pictures in files are.
        alpha = array[:, :, 3:].astype(np.uint32)
        mixed = array[:, :, :3].astype(np.uint32) * alpha + 255 * (255 - alpha)
        array = ((mixed + 127) // 255).astype(np.uint8)
    height, width = array.shape[:2]
    return width, height, np.ascontiguousarray(array).tobytes()


def _picture(picture: Picture, where: str) -> Union[str, bytes, Tuple[int, int, bytes]]:
    """A picture as the engine takes it."""
    if isinstance(picture, (str, bytes)):
        return picture
    if isinstance(picture, (bytearray, memoryview)):
        return bytes(picture)
    if isinstance(picture, os.PathLike):
        return os.fspath(picture)  # type: ignore[return-value]
    if isinstance(picture, np.ndarray):
        return _pixels(picture, where)
    if type(picture).__module__.partition(".")[0] == "PIL" or hasattr(picture, "getbands"):
        from PIL import ImageOps

        picture = ImageOps.exif_transpose(picture)
        transparent = "A" in picture.getbands() or "transparency" in picture.info
        return _pixels(np.asarray(picture.convert("RGBA" if transparent else "RGB")), where)
    kind = type(picture).__name__
    raise ValueError(f"{where}: expected a path, bytes, a PIL picture or a uint8 array, found {kind}")


def _pictures(images: Any, where: str = "images") -> List[Any]:
    if images is None:
        return []
    if isinstance(images, (str, bytes, os.PathLike)) or not isinstance(images, (list, tuple)):
        if isinstance(images, np.ndarray) and images.ndim == 4:
            images = list(images)
        else:
            images = [images]
    return [_picture(image, f"{where}[{number}]") for number, image in enumerate(images)]


def _prompt(prompt: str, pictures: int, system: Optional[str]) -> str:
    if not isinstance(prompt, str):
        raise ValueError(f"prompt: expected a text, found {type(prompt).__name__}")
    places = [{"type": "image_url", "image_url": {"url": f"{_BESIDE}{number}"}} for number in range(pictures)]
    user = {"role": "user", "content": [*places, {"type": "text", "text": prompt}]}
    return json.dumps(([{"role": "system", "content": system}] if system is not None else []) + [user])


def _messages(messages: Sequence[Mapping[str, Any]]) -> Tuple[str, List[Any]]:
    """Messages as JSON, with the pictures that are objects beside them."""
    pictures: List[Any] = []

    def part(value: Any, where: str) -> Any:
        if not isinstance(value, Mapping) or value.get("type") not in ("image", "image_url"):
            return value
        picture = value.get("image", value.get("image_url"))
        if isinstance(picture, Mapping):
            picture = picture.get("url")
        if isinstance(picture, str):
            return {"type": "image_url", "image_url": {"url": picture}}
        pictures.append(_picture(picture, where))
        return {"type": "image_url", "image_url": {"url": f"{_BESIDE}{len(pictures) - 1}"}}

    out = []
    for number, message in enumerate(messages):
        content = message.get("content") if isinstance(message, Mapping) else None
        if isinstance(content, (list, tuple)):
            parts = [part(value, f"messages[{number}].content[{place}]") for place, value in enumerate(content)]
            message = {**message, "content": parts}
        out.append(message)
    try:
        return json.dumps(out), pictures
    except TypeError as error:
        raise ValueError(f"messages: {error}") from None


def _params(given: Mapping[str, Any]) -> str:
    params = {}
    for name, value in given.items():
        if name not in _SAMPLING:
            raise ValueError(f"{name}: no such parameter; there are {', '.join(_SAMPLING)}")
        if value is not None:
            params[name] = [value] if name == "stop" and isinstance(value, str) else value
    try:
        return json.dumps(params)
    except TypeError as error:
        raise ValueError(str(error)) from None


@dataclass
class Result:
    """What became of a row of `Model.batch`."""

    #: Number of the row, from 0 on.
    index: int
    #: The row as it was given.
    row: Mapping[str, Any]
    #: The answer, or None.
    answer: Optional[Answer] = None
    #: Why there is none.
    error: Optional[Exception] = None

    @property
    def text(self) -> Optional[str]:
        """The answer's text."""
        return None if self.answer is None else self.answer.text


class Model:
    """A loaded model.

    `path` is a directory as `save_pretrained` writes it, `OWNER/NAME[@REVISION]` of the Hugging Face hub, or `demo`, the model that is
    inside the package. One model may be used from many threads; they share its scheduler, which answers up to `parallel` requests at
    once.
    """

    def __init__(
        self,
        path: Union[str, "os.PathLike[str]", None] = "demo",
        *,
        backend: str = "auto",
        device: int = 0,
        dtype: str = "auto",
        kv_dtype: str = "auto",
        threads: Optional[int] = None,
        fast_int8: bool = False,
        fast_fp8: bool = False,
        processor: Optional[Mapping[str, Any]] = None,
        template: Optional[Mapping[str, Any]] = None,
        strict: bool = False,
        max_pixels: int = 100_000_000,
        parallel: int = 32,
        kv_tokens: Optional[int] = None,
        cache_dir: Union[str, "os.PathLike[str]", None] = None,
        adapter: Union[str, "os.PathLike[str]", None] = None,
    ) -> None:
        name = None if path is None else os.fspath(path)
        if name == "demo" and not os.path.isdir(name):
            name = None

        def fields(values: Optional[Mapping[str, Any]]) -> List[Tuple[str, str]]:
            items = (values or {}).items()
            return [(key, value if isinstance(value, str) else json.dumps(value)) for key, value in items]

        self.parallel = parallel
        self._engine = _Engine(
            name, backend, device, dtype, kv_dtype, threads, fast_int8, fast_fp8, fields(processor), fields(template), strict,
            max_pixels, parallel, kv_tokens, None if cache_dir is None else os.fspath(cache_dir), None if adapter is None else os.fspath(adapter),
        )

    @property
    def family(self) -> str:
        """Family of the model, such as `smolvlm`."""
        return self._engine.family

    @property
    def gives_answers(self) -> bool:
        """Whether it answers; models such as CLIP and SigLIP only embed."""
        return self._engine.gives_answers

    def __repr__(self) -> str:
        backend, device, threads, dtype = self._engine.place
        return f"<ocelli.Model {self.family} on {backend} ({device}, {threads} threads, {dtype})>"

    @overload
    def generate(self, prompt: str, images: Any = ..., *, stream: Literal[True], **params: Any) -> Stream: ...
    @overload
    def generate(self, prompt: str, images: Any = ..., *, stream: Literal[False] = ..., **params: Any) -> Answer: ...

    def generate(
        self,
        prompt: str,
        images: Any = None,
        *,
        system: Optional[str] = None,
        max_tokens: int = 512,
        temperature: float = 0.0,
        seed: int = 0,
        stop: Union[str, Sequence[str], None] = None,
        stream: bool = False,
        **params: Any,
    ) -> Union[Answer, Stream]:
        """Answers a prompt about pictures; with `stream` gives its text piece by piece.

        `params` are `top_k`, `top_p`, `min_p`, `repetition_penalty`, `stop_token_ids` and `ignore_eos`, with the meaning and the defaults
        of the command's.
        """
        pictures = _pictures(images)
        params.update(max_tokens=max_tokens, temperature=temperature, seed=seed, stop=stop)
        return self._ask(_prompt(prompt, len(pictures), system), pictures, params, stream)

    @overload
    def chat(self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[True], **params: Any) -> Stream: ...
    @overload
    def chat(self, messages: Sequence[Mapping[str, Any]], *, stream: Literal[False] = ..., **params: Any) -> Answer: ...

    def chat(self, messages: Sequence[Mapping[str, Any]], *, stream: bool = False, **params: Any) -> Union[Answer, Stream]:
        """Answers messages in OpenAI's layout. A part `{"type": "image", "image": PICTURE}` takes any kind of picture."""
        text, pictures = _messages(messages)
        return self._ask(text, pictures, params, stream)

    def _ask(self, messages: str, pictures: List[Any], params: Mapping[str, Any], stream: bool) -> Union[Answer, Stream]:
        answering = self._engine.stream(messages, pictures, _params(params))
        return answering if stream else answering.result()

    def batch(
        self,
        rows: Iterable[Mapping[str, Any]],
        *,
        prompt: Optional[str] = None,
        system: Optional[str] = None,
        ordered: bool = False,
        workers: Optional[int] = None,
        **params: Any,
    ) -> Iterator[Result]:
        """Answers many rows, many at once; gives each result as it comes, or in the order of the rows.

        A row has `image` or `images`, and `prompt` or `messages`; what it has beside them is left alone. Rows are taken from the iterable
        as there is room for them. A row that cannot be answered has an `error` and ends nothing. `workers` threads read pictures.
        """
        text_params = _params(params)
        workers = workers or min(4, os.cpu_count() or 1)
        most = self.parallel + 2 * workers
        return self._batch(rows, prompt, system, ordered, workers, most, text_params)

    def _batch(
        self,
        rows: Iterable[Mapping[str, Any]],
        prompt: Optional[str],
        system: Optional[str],
        ordered: bool,
        workers: int,
        most: int,
        params: str,
    ) -> Iterator[Result]:
        results = _Results()
        work: "queue.SimpleQueue[Optional[Tuple[int, Mapping[str, Any]]]]" = queue.SimpleQueue()

        def submit(number: int, row: Mapping[str, Any]) -> None:
            if row.get("messages") is not None:
                messages, pictures = _messages(row["messages"])
            else:
                images = row.get("images")
                pictures = _pictures(row.get("image") if images is None else images)
                asked = row.get("prompt", prompt)
                if asked is None:
                    raise ValueError("no prompt: the row has neither `prompt` nor `messages`")
                messages = _prompt(asked, len(pictures), system)
            self._engine.submit(results, number, messages, pictures, params)

        def run() -> None:
            while (item := work.get()) is not None:
                try:
                    submit(*item)
                except Exception as error:
                    results.lose(item[0], error)

        threads = [threading.Thread(target=run, name="ocelli-read", daemon=True) for _ in range(workers)]
        for thread in threads:
            thread.start()
        running: Dict[int, Mapping[str, Any]] = {}
        done: Dict[int, Result] = {}
        coming = enumerate(rows)
        more, following = True, 0
        try:
            while True:
                # Results that wait for their turn count too, so that memory is bounded.
                while more and len(running) + len(done) < most:
                    item = next(coming, None)
                    if item is None:
                        more = False
                        break
                    running[item[0]] = item[1]
                    work.put(item)
                if not running:
                    return
                number, came = results.next()
                row = running.pop(number)
                failed = isinstance(came, Exception)
                result = Result(number, row, None if failed else came, came if failed else None)
                if not ordered:
                    yield result
                    continue
                done[number] = result
                while following in done:
                    result = done.pop(following)
                    following += 1
                    yield result
        finally:
            for _ in threads:
                work.put(None)
            results.cancel()

    def embed(self, images: Any = None, texts: Optional[Sequence[str]] = None) -> np.ndarray:
        """Unit vectors of pictures or of texts, float32 with a row for each.

        Of a model that gives answers, those of pictures are pooled features of its tower, and there are none of texts: see
        `vector_kind`.
        """
        if (images is None) == (texts is None):
            raise ValueError("embed: expected images or texts, and not both")
        if texts is not None:
            if isinstance(texts, str):
                texts = [texts]
            values, d, _ = self._engine.embed_texts(list(texts))
        else:
            values, d, _ = self._engine.embed_images(_pictures(images))
        return np.frombuffer(values, dtype=np.float32).reshape(-1, d).copy()

    @property
    def vector_kind(self) -> str:
        """What `embed` gives: `dual encoder`, or `pooled tower features` of a model that gives answers."""
        return "pooled tower features" if self.gives_answers else "dual encoder"
