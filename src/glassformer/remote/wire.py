"""Requests to a server, and its errors as this process would raise them. Needs no torch."""

from __future__ import annotations

import base64
import functools
import json
import ssl
from collections.abc import Callable, Generator, Mapping, Sequence
from typing import Any

from glassformer import errors
from glassformer.errors import ContextLengthError, GlassformerError, ServerError, SourceError, UsageError

ARRAYS = "application/vnd.safetensors"
_KINDS: dict[int, type[GlassformerError]] = {400: UsageError, 404: SourceError}
Progress = Callable[[int, int | None, str], None]


class Wire:
    """The way to one server.

    Args:
        url: of it. key: it asks for, if any. timeout: seconds that an answer may take.
    """

    def __init__(self, url: str, key: str | None, timeout: float) -> None:
        self.url, self._timeout = url, timeout
        self._headers = {} if key is None else {"authorization": f"Bearer {key}"}

    @functools.cached_property
    def _certificates(self) -> ssl.SSLContext:
        """What a server of https is held to; reading it takes longer than many an answer."""
        import httpx2

        return httpx2.create_ssl_context()

    def ask(self, method: str, path: str, body: Mapping[str, Any] | None = None) -> Any:
        """A JSON answer.

        Raises:
            ServerError: none comes, or the key is not taken. What the server's sentence is an error of.
        """
        return json.loads(self._sent(method, path, body, "application/json"))

    def file(self, path: str, body: Mapping[str, Any], progress: Progress | None = None) -> bytes:
        """An answer in binary form; with `progress` it tells meanwhile how far it is."""
        if progress is None:
            return self._sent("POST", path, body, ARRAYS)
        for told in self.events(path, body):
            if "safetensors" in told:
                return base64.b64decode(told["safetensors"])
            if "done" in told:
                progress(told["done"], told["total"], told["what"])
        raise ServerError(f"{self.url} ended its answer without a result.")

    def _sent(self, method: str, path: str, body: Mapping[str, Any] | None, accept: str) -> bytes:
        import httpx2

        headers = {**self._headers, "accept": accept}
        try:
            answer = httpx2.request(
                method, self.url + path, json=body, headers=headers, timeout=self._timeout, verify=self._certificates
            )
        except httpx2.HTTPError as error:
            raise ServerError(self._unanswered(error)) from None
        if answer.status_code >= 400:
            raise _error(answer)
        return bytes(answer.content)

    def events(self, path: str, body: Mapping[str, Any]) -> Generator[dict[str, Any]]:
        """The data of a stream's events, as they come; closing the generator hangs up."""
        import httpx2

        headers = {**self._headers, "accept": "text/event-stream"}
        try:
            with httpx2.stream(
                "POST", self.url + path, json=body, headers=headers, timeout=self._timeout, verify=self._certificates
            ) as answer:
                if answer.status_code >= 400:
                    answer.read()
                    raise _error(answer)
                for line in answer.iter_lines():
                    if not line.startswith("data: ") or line == "data: [DONE]":
                        continue
                    told = json.loads(line.removeprefix("data: "))
                    if "error" in told:
                        raise _of(400 if told["error"]["type"] == "invalid_request_error" else 500, told["error"], None)
                    yield told
        except httpx2.HTTPError as error:
            raise ServerError(self._unanswered(error)) from None

    def _unanswered(self, error: Exception) -> str:
        told = f"{self.url} does not answer ({error})."
        cause: BaseException | None = error
        while cause is not None and not isinstance(cause, ssl.SSLCertVerificationError):
            cause = cause.__cause__ or cause.__context__
        return told if cause is None else f"{told} Name its certificate in SSL_CERT_FILE."


def _error(answer: Any) -> GlassformerError:
    status = answer.status_code
    try:
        told = json.loads(answer.text)["error"]
        return _of(status, {"message": told["message"], "code": told["code"]}, answer.headers.get("x-error-class"))
    except (ValueError, KeyError, TypeError):
        return _of(status, {"message": f"The server answered with status {status}."}, None)


def _of(status: int, told: Mapping[str, Any], named: str | None) -> GlassformerError:
    """The error that a model in this process would have raised."""
    kind = getattr(errors, named or "", None)
    if not (isinstance(kind, type) and issubclass(kind, GlassformerError)):
        long = told.get("code") == "context_length_exceeded"
        kind = ContextLengthError if long else _KINDS.get(status, ServerError)
    return kind(str(told["message"]))


def plain(value: Any) -> Any:
    """An argument as a request holds it.

    Raises:
        UsageError: for what stays in one process.
    """
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    if isinstance(value, slice):
        return {"start": value.start, "stop": value.stop, "step": value.step}
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, (Sequence, set, frozenset)):
        return [plain(item) for item in value]
    if (ids := getattr(value, "ids", None)) is not None and isinstance(ids, list):  # a trace
        return ids
    if callable(getattr(value, "tolist", None)):
        return value.tolist()
    what = getattr(value, "__name__", type(value).__name__)
    raise UsageError(f"{what} cannot be sent to a server; load the model here for that, or name what the server has.")


def arrays(value: object) -> Any:
    """A view's data with its arrays as NumPy's."""
    if isinstance(value, dict):
        if set(value) == {"shape", "dtype", "base64"}:
            import numpy as np

            return np.frombuffer(base64.b64decode(value["base64"]), value["dtype"]).reshape(value["shape"])
        return {key: arrays(item) for key, item in value.items()}
    return [arrays(item) for item in value] if isinstance(value, list) else value
