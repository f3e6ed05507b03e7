"""What went wrong with a request: one exception, and how each API says it.

A `Refusal` carries what every API needs (status, sentence, code, field); `payload` writes it in the shape of the API
that a path belongs to. Codes come from the class of an error, never from its wording.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from fastapi.responses import JSONResponse

from glassformer.errors import (
    ContextLengthError,
    GlassformerError,
    MemoryLimitError,
    ServerError,
    SourceError,
)

FAILED = "The server failed on this request and goes on; its log says more."
KIND = "x-error-class"
"""The header that says which of Glassformer's errors it was, for `gf.connect` to raise again."""
_LONGEST = 2000  # characters of a message: a request's own words may be in it


class Refusal(Exception):
    """A request that is answered with an error.

    Args:
        status: of HTTP.
        message: the sentence for people.
        code: for programs, where there is one.
        param: the field that is wrong.
        retry: seconds after which another try makes sense.
        headers: more of them.
    """

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        retry: int | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.status, self.code, self.param, self.retry = status, code, param and sayable(param), retry
        self.message = sayable(message)
        self.headers = dict(headers or {}) | ({} if retry is None else {"retry-after": str(retry)})

    def renamed(self, names: Mapping[str, str]) -> Refusal:
        """The same of a request that was translated: the field is called what its client calls it."""
        if self.param is not None:
            mine, self.param = self.param, own_name(names, self.param)
            if self.message.startswith(mine):
                self.message = self.param + self.message.removeprefix(mine)
        return self


def own_name(names: Mapping[str, str], path: str) -> str:
    """A field's path as the client wrote it, by the longest beginning of it that has another name there."""
    parts = path.split(".")
    for end in range(len(parts), 0, -1):
        if (name := names.get(".".join(parts[:end]))) is not None:
            return ".".join([name, *parts[end:]])
    return path


def refusal(error: BaseException) -> Refusal:
    """What an error means for whoever asked."""
    if isinstance(error, Refusal):
        return error
    if not isinstance(error, GlassformerError):
        return Refusal(500, FAILED)
    status, code, param = 400, None, None  # a request that cannot be meant, whatever of it
    if isinstance(error, ContextLengthError):
        code = "context_length_exceeded"
    elif isinstance(error, SourceError):
        status, code, param = 404, "model_not_found", "model"
    elif isinstance(error, MemoryLimitError):
        status, code = 413, "too_large"
    elif isinstance(error, ServerError):
        status = 503
    return Refusal(status, str(error), code=code, param=param, headers={KIND: type(error).__name__})


def payload(found: Refusal, path: str) -> dict[str, Any]:
    """An error in the shape of the API that a path belongs to."""
    if path.startswith("/v1/messages"):
        return anthropic(found)
    if path.startswith("/api/"):
        return {"error": found.message}
    return openai(found)


def openai(found: Refusal, path: str = "") -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    kinds = {401: "authentication_error", 429: "rate_limit_error"}
    kind = kinds.get(found.status, "invalid_request_error" if found.status < 500 else "server_error")
    return {"error": {"message": found.message, "type": kind, "param": found.param, "code": found.code}}


_ANTHROPIC = {
    401: "authentication_error",
    403: "permission_error",
    404: "not_found_error",
    413: "request_too_large",
    429: "rate_limit_error",
    503: "overloaded_error",
}


def anthropic(found: Refusal) -> dict[str, Any]:
    """An error as Anthropic's clients read it."""
    kind = _ANTHROPIC.get(found.status, "invalid_request_error" if found.status < 500 else "api_error")
    return {"type": "error", "error": {"type": kind, "message": found.message}}


def problem(error: BaseException, path: str, say: Callable[[Refusal, str], dict[str, Any]] = payload) -> JSONResponse:
    """An error as the answer to a request for a path."""
    found = refusal(error)
    return JSONResponse(say(found, path), found.status, headers=found.headers)


def sayable(text: str) -> str:
    """What a request held may be repeated in an answer: shortened, and without halves of characters."""
    return text[:_LONGEST].encode("utf-8", "replace").decode("utf-8")
