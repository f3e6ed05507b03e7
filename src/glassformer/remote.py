"""A model on a server of ours, with the verbs of `Model`: `gf.connect("http://127.0.0.1:8000")`.

It sends requests and turns answers into the same things that a model in this process gives: tokens with their
probabilities, and views as plain data with arrays. It computes nothing and needs no torch.
"""

from __future__ import annotations

import base64
import copy
import json
import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from glassformer.errors import ContextLengthError, GlassformerError, ServerError, SourceError, TextError, UsageError

# Views of names, files, designs, runs and the embedding, which no edit changes.
_UNREAD = frozenset(["vocab", "models", "runs", "run", "film", "influence", "size", "cloud", "sum", "sums"])
_KINDS: dict[int, type[GlassformerError]] = {400: UsageError, 404: SourceError}


def connect(url: str, *, model: str | None = None, key: str | None = None, timeout: float = 600.0) -> RemoteModel:
    """A model that a server serves.

    Args:
        url: of the server, with or without /v1.
        model: its name there; the server's first by default.
        key: the server's key, if it asks for one.
        timeout: seconds that an answer may take.

    Raises:
        ServerError: no server there, or a key that it does not take. SourceError: a model that it does not serve.
    """
    made = RemoteModel(url.rstrip("/").removesuffix("/v1"), model, key, timeout)
    cards = made._ask("GET", "/v1/models")["data"]
    made.name = model or cards[0]["id"]
    if model is not None:
        made._ask("GET", f"/v1/models/{model}")
    return made


class RemoteToken(str):
    """A token of an answer as it came over the wire: the text that became certain with it, which may be "".

    Attributes:
        text: the same. token: the token's own text; "" at the end, which comes by itself, and then no more is known.
        probability, logprob: by the model's own distribution. alternatives: the likeliest tokens there and theirs.
        finish: "stop" or "length" on the last one, else None.
    """

    def __new__(cls, text: str, *_: Any) -> RemoteToken:
        return super().__new__(cls, text)

    def __init__(
        self, text: str, token: str, logprob: float | None, top: Mapping[str, float], finish: str | None
    ) -> None:
        self.text, self.token, self.finish = text, token, finish
        self.logprob = logprob
        self.probability = None if logprob is None else math.exp(logprob)
        self.alternatives = {one: math.exp(value) for one, value in top.items()}


class RemoteNext(list[dict[str, Any]]):
    """The likeliest next tokens, likeliest first: `id`, `token`, `probability` and more of each.

    Attributes:
        probabilities: (vocab) of every token. entropy: in nats.
    """

    def __init__(self, model: RemoteModel, found: Mapping[str, Any]) -> None:
        import numpy as np

        super().__init__(found["tokens"])
        odds = np.exp(found["logits"].astype("float64") - found["logits"].max())
        self._model, self.entropy, self.probabilities = model, found["entropy"], odds / odds.sum()

    def top(self, k: int = 10) -> list[dict[str, Any]]:
        """The `k` likeliest of those listed."""
        return self[:k]

    def probability(self, which: int | str) -> float:
        """The probability that one token comes next, by its id or its exact text.

        Raises:
            TextError: a text that is no single token.
        """
        ids = [which] if isinstance(which, int) else self._model.encode(which, False)
        if len(ids) != 1:
            raise TextError(f"{which!r} is {len(ids)} tokens, and only one comes next.")
        return float(self.probabilities[ids[0]])


class RemoteModel:
    """A model on a server.

    Attributes:
        url: of the server. name: of the model there. edits: that travel with every request.
    """

    def __init__(self, url: str, model: str | None, key: str | None, timeout: float) -> None:
        self.url, self.name, self.edits = url, model or "", ()  # type: str, str, tuple[Mapping[str, Any], ...]
        self._key, self._timeout = key, timeout
        self._views: dict[str, Any] | None = None

    def __repr__(self) -> str:
        edits = f", {len(self.edits)} edits" if self.edits else ""
        return f"<glassformer.RemoteModel {self.name} at {self.url}{edits}>"

    def edited(self, *edits: Mapping[str, Any]) -> RemoteModel:
        """This model with edits such as `{"ablate": {"layer": 3, "head": 1}}` in every request."""
        view = copy.copy(self)
        view.edits = (*self.edits, *edits)
        return view

    # Text

    def encode(self, text: str, bos: bool | None = None) -> list[int]:
        """Token ids of a text."""
        asked = {"model": self.name, "prompt": text, "add_special_tokens": bos is not False}
        found: list[int] = self._ask("POST", "/tokenize", asked)["tokens"]
        return found

    def decode(self, ids: Sequence[int]) -> str:
        """The text of token ids."""
        return str(self._ask("POST", "/detokenize", {"model": self.name, "tokens": list(ids)})["prompt"])

    def generate(
        self, text: str | Sequence[int], *, max_tokens: int | None = 256, alternatives: int = 0, **options: Any
    ) -> Generator[RemoteToken]:
        """Continue a text, token by token; further options are the server's (`temperature`, `seed`, `stop`, …)."""
        prompt = text if isinstance(text, str) else list(text)
        most = -1 if max_tokens is None else max_tokens
        for chunk in self._stream(
            "/v1/completions", {"prompt": prompt, "max_tokens": most, "logprobs": alternatives, **options}
        ):
            for choice in chunk["choices"]:
                told = choice["logprobs"] or {"tokens": [], "token_logprobs": [], "top_logprobs": []}
                rows = zip(told["tokens"], told["token_logprobs"], told["top_logprobs"], strict=True)
                yield from _tokens(choice["text"], list(rows), choice["finish_reason"])

    def chat(
        self, messages: Sequence[Mapping[str, Any]], *, alternatives: int = 0, **options: Any
    ) -> Generator[RemoteToken]:
        """The assistant's answer to a conversation, token by token."""
        asked = {"messages": list(messages), "logprobs": True, "top_logprobs": alternatives, **options}
        for chunk in self._stream("/v1/chat/completions", asked):
            for choice in chunk["choices"]:
                told = (choice["logprobs"] or {}).get("content") or []
                rows = [(r["token"], r["logprob"], {t["token"]: t["logprob"] for t in r["top_logprobs"]}) for r in told]
                yield from _tokens(choice["delta"].get("content") or "", rows, choice["finish_reason"])

    # What is inside

    def view(self, view: str, text: str | None = None, **ask: Any) -> dict[str, Any]:
        """A view's data, its arrays as NumPy's; `views()` lists them with their parameters."""
        body: Mapping[str, Any] = ask if text is None else {"text": text, **ask}
        fields = self._fields(view)
        if "model" in fields:
            body = {"model": self.name or None, **body}
        if view == "compare":
            mine = {"model": self.name or None, "edits": list(self.edits)}
            sides = {side: {**mine, **body[side]} for side in ("a", "b") if isinstance(body.get(side), Mapping)}
            body = {**body, **sides}
        elif view == "python":  # lines about another view, which have to make the edits too
            body = {"name": body.get("name"), "arguments": self._edited(body.get("name"), body.get("arguments") or {})}
        else:
            body = self._edited(view, body)
        found: dict[str, Any] = _arrays(self._ask("POST", f"/v1/inspect/{view}", body)["data"])
        return found

    def _edited(self, view: Any, body: Mapping[str, Any]) -> Mapping[str, Any]:
        """What a view is asked, with this model's edits.

        Raises:
            UsageError: a view that cannot read the model under them.
        """
        if self.edits and "edits" in self._fields(view):
            return {**body, "edits": [*self.edits, *body.get("edits", [])]}
        if self.edits and view not in _UNREAD:
            raise UsageError(f"The view {view!r} reads the model without edits, and this one has {len(self.edits)}.")
        return body

    def _fields(self, view: str) -> Mapping[str, Any]:
        """The parameters that a view takes; none where there is no such view."""
        if self._views is None:
            self._views = {one["id"]: one["parameters"].get("properties", {}) for one in self.views()}
        found: Mapping[str, Any] = self._views.get(view, {})
        return found

    def views(self) -> list[dict[str, Any]]:
        """The views that the server computes."""
        found: list[dict[str, Any]] = self._ask("GET", "/v1/inspect")["data"]
        return found

    def next(self, text: str, top: int = 10) -> RemoteNext:
        """The likeliest next tokens, each with its probability, and every other's on request."""
        return RemoteNext(self, self.view("next", text, top=top))

    def why(self, text: str, token: int | str | None = None, **ask: Any) -> dict[str, Any]:
        """The account of a prediction, with its residual."""
        return self.view("why", text, token=token, **ask)

    def attention(self, text: str, layer: int, head: int | None = None, **ask: Any) -> Any:
        """(query, key) one head's pattern, or the mean of a layer's heads."""
        return self.view("attention", text, layer=layer, head=head, **ask)["tile"]

    def lens(self, text: str, top: int = 3, **ask: Any) -> dict[str, Any]:
        """What each layer would say at each token."""
        return self.view("lens", text, top=top, **ask)

    def heads(self) -> dict[str, Any]:
        """What every attention head does."""
        return self.view("heads")

    def meaning(self, word: str, texts: Sequence[str]) -> dict[str, Any]:
        """One word's vector in several texts, layer by layer."""
        return self.view("meaning", word=word, texts=list(texts))

    # The wire

    def _headers(self) -> dict[str, str]:
        return {} if self._key is None else {"authorization": f"Bearer {self._key}"}

    def _ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        import httpx2

        try:
            answer = httpx2.request(method, self.url + path, json=body, headers=self._headers(), timeout=self._timeout)
        except httpx2.HTTPError as error:
            raise ServerError(_unanswered(self.url, error)) from None
        if answer.status_code >= 400:
            raise _error(answer.status_code, answer.text)
        return answer.json()

    def _stream(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        import httpx2

        sent = {"model": self.name, **body, "stream": True}
        if self.edits:
            sent["edits"] = list(self.edits)
        try:
            with httpx2.stream(
                "POST", self.url + path, json=sent, headers=self._headers(), timeout=self._timeout
            ) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _error(answer.status_code, answer.text)
                for line in answer.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    told = json.loads(line.removeprefix("data: "))
                    if "error" in told:
                        raise ServerError(told["error"]["message"])
                    yield told
        except httpx2.HTTPError as error:
            raise ServerError(_unanswered(self.url, error)) from None


def _unanswered(url: str, error: Exception) -> str:
    told = f"{url} does not answer ({error})."
    return f"{told} Name its certificate in SSL_CERT_FILE." if "CERTIFICATE_VERIFY_FAILED" in str(error) else told


def _tokens(text: str, rows: Sequence[tuple[Any, ...]], finish: str | None) -> Generator[RemoteToken]:
    """The tokens of one event; its text became certain with the last of them."""
    for at, (token, logprob, top) in enumerate(rows, 1):
        last = at == len(rows)
        yield RemoteToken(text if last else "", token, logprob, top or {}, finish if last else None)
    if not rows and (text or finish):  # what was held back, or the end
        yield RemoteToken(text, "", None, {}, finish)


def _error(status: int, text: str) -> GlassformerError:
    try:
        told = json.loads(text)["error"]
        message, code = told["message"], told["code"]
    except (ValueError, KeyError, TypeError):
        message, code = f"The server answered with status {status}.", None
    if code == "context_length_exceeded":
        return ContextLengthError(message)
    return _KINDS.get(status, ServerError)(message)


def _arrays(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {"shape", "dtype", "base64"}:
            import numpy as np

            return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"])
        return {key: _arrays(item) for key, item in value.items()}
    return [_arrays(item) for item in value] if isinstance(value, list) else value


__all__ = ["RemoteModel", "connect"]
