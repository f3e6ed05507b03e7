"""What OpenAI's clients may ask, checked: completions and chat completions.

It knows the request's shape; it does not know models, and nothing here is computed.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, ClassVar, Literal

from pydantic import BeforeValidator, Field, PrivateAttr, model_validator

from glassformer.serve.constraining import Constrained
from glassformer.serve.edits import Edits
from glassformer.serve.fields import MOST_CHOICES, MOST_PROMPTS, MOST_TOP, NULL, TEXT, Ask, Most, Sampled, nullable
from glassformer.serve.tools import Tool, Toolbox


def _prompts(value: object) -> list[str | list[int]]:
    """A prompt is a text, several, token ids, or several lists of them."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, list) or not value:
        raise ValueError("a prompt is a text, token ids, or a list of either, and not empty")
    if all(_is_id(one) for one in value):
        return [value]
    if len(value) > MOST_PROMPTS:
        raise ValueError(f"one request takes at most {MOST_PROMPTS} prompts; this one has {len(value)}")
    for one in value:
        if not (isinstance(one, str) or (isinstance(one, list) and one and all(_is_id(i) for i in one))):
            raise ValueError("each prompt of a list is a text or a list of token ids, and not empty")
    return value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 2**31


def _content(value: object) -> Any:
    """A message's content is a text, or parts of which each is one."""
    if value is None:
        return ""
    if not isinstance(value, list):
        return value
    texts = []
    for part in value:
        kind = part.get("type") if isinstance(part, Mapping) else None
        text = part.get(kind) if kind in ("text", "refusal") else None
        if not isinstance(text, str):
            raise ValueError('content parts must be {"type": "text", "text": "..."}; this model reads text only')
        texts.append(text)
    return "".join(texts)


_NO_ARGUMENTS: dict[str, Any] = {"type": "object", "properties": {}}
_IDS: dict[str, Any] = {"type": "array", "items": {"type": "integer", "minimum": 0}, "minItems": 1}
_PART: dict[str, Any] = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": TEXT},
    "required": ["type", "text"],
}


def _many(item: Mapping[str, Any], most: int) -> dict[str, Any]:
    return {"type": "array", "items": item, "minItems": 1, "maxItems": most}


Prompts = Annotated[
    list[str | list[int]],
    BeforeValidator(_prompts),
    nullable(TEXT, _many(TEXT, MOST_PROMPTS), _IDS, _many(_IDS, MOST_PROMPTS)),
]
Content = Annotated[str, BeforeValidator(_content), nullable(TEXT, _many(_PART, 1000), NULL)]


class StreamOptions(Ask):
    """How an answer is streamed."""

    include_usage: bool | None = None
    continuous_usage_stats: Literal[False] | None = None
    IGNORED: ClassVar[frozenset[str]] = frozenset({"include_obfuscation"})


class Streamed(Constrained):
    """An answer that may come in pieces."""

    stream: bool | None = None
    stream_options: StreamOptions | None = None
    edits: Edits = Field(default=[])
    _names: Mapping[str, str] = PrivateAttr(default_factory=dict)  # the client's own, where it was translated

    @model_validator(mode="after")
    def _streams(self) -> Streamed:
        if self.stream_options is not None and not self.stream:
            raise ValueError("stream_options are for stream: true")
        return self

    @property
    def counted(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool(self.stream_options and self.stream_options.include_usage)


class CompletionAsk(Streamed):
    """`POST /v1/completions`."""

    prompt: Prompts
    max_tokens: Annotated[int, Field(ge=-1, le=2**31 - 1)] | None = Field(
        default=None, description="16 by default; 0 with echo; -1 for as many as fit."
    )
    logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    echo: bool | None = None
    best_of: int | None = Field(default=None, ge=1, le=MOST_CHOICES, description="Only the value of n is taken.")

    @model_validator(mode="after")
    def _agrees(self) -> CompletionAsk:
        if self.best_of is not None and self.best_of != (self.n or 1):
            raise ValueError("best_of other than n is not supported by this server")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens of 0 makes sense only with echo; ask for at least 1")
        if len(self.prompt) * (self.n or 1) > MOST_PROMPTS:
            raise ValueError(
                f"one request gives at most {MOST_PROMPTS} answers; {len(self.prompt)} prompts × n {self.n} are more"
            )
        return self


class FunctionAsk(Ask):
    """A function that may be called."""

    name: str = Field(pattern=r"^[A-Za-z0-9_.\-]{1,64}$")
    description: str | None = Field(default=None, max_length=100_000)
    parameters: dict[str, Any] | None = Field(default=None, description="JSON schema of its arguments.")
    strict: bool | None = Field(default=None, description="Arguments hold to their schema either way.")


class ToolAsk(Ask):
    """A tool that may be called."""

    type: Literal["function"]
    function: FunctionAsk


class NamedFunction(Ask):
    """A function by its name."""

    name: str = Field(max_length=200)


class NamedTool(Ask):
    """The tool that must be called."""

    type: Literal["function"]
    function: NamedFunction


class CalledFunction(Ask):
    """What was called."""

    name: str = Field(max_length=200)
    arguments: str = Field(description="Text of a JSON object.")


class CallAsk(Ask):
    """A call that an assistant made."""

    id: str | None = Field(default=None, max_length=200)
    type: Literal["function"] = "function"
    function: CalledFunction
    IGNORED: ClassVar[frozenset[str]] = frozenset({"index"})


class Message(Ask):
    """One message of a conversation."""

    role: Literal["system", "developer", "user", "assistant", "tool", "function"]
    content: Content = ""
    name: str | None = Field(default=None, max_length=200)
    tool_call_id: str | None = Field(default=None, max_length=200)
    tool_calls: list[CallAsk] | None = Field(default=None, max_length=200)
    reasoning_content: str | None = Field(default=None, description="What an assistant thought before it answered.")
    reasoning: str | None = Field(default=None, description="The same, as others spell it.")
    IGNORED: ClassVar[frozenset[str]] = frozenset({"refusal", "annotations", "cache_control", "id", "object", "parsed"})
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        "audio": (),
        "function_call": (),
        "prefix": (False,),
        "reasoning_details": ([],),
    }


class ChatAsk(Streamed):
    """`POST /v1/chat/completions`."""

    messages: list[Message] = Field(min_length=1, max_length=4000)
    max_tokens: Most = None
    max_completion_tokens: Most = Field(default=None, description="Comes before max_tokens.")
    logprobs: bool | None = None
    top_logprobs: int | None = Field(default=None, ge=0, le=MOST_TOP)
    reasoning_effort: str | None = Field(default=None, max_length=20, description="Handed to the chat template.")
    chat_template_kwargs: dict[str, Any] | None = Field(default=None, description="Names for the chat template.")
    add_generation_prompt: bool | None = None
    continue_final_message: bool | None = Field(
        default=None, description="Go on with the last message instead of answering it."
    )
    tools: list[ToolAsk] | None = Field(default=None, max_length=200)
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = Field(default=None, description="false for at most one call an answer.")
    NEUTRAL: ClassVar[Mapping[str, tuple[object, ...]]] = {
        **Sampled.NEUTRAL,
        "echo": (False,),
    }

    @model_validator(mode="after")
    def _together(self) -> ChatAsk:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs needs logprobs: true")
        if self.continue_final_message and self.add_generation_prompt:
            raise ValueError("continue_final_message and add_generation_prompt exclude each other")
        names = [tool.function.name for tool in self.tools or ()]
        if len(set(names)) < len(names):
            raise ValueError("two tools have the same name")
        if isinstance(self.tool_choice, NamedTool) and self.tool_choice.function.name not in names:
            raise ValueError(f"tool_choice names {self.tool_choice.function.name!r}, which is none of the tools")
        if self.toolbox.forced and self.constraint() is not None:
            raise ValueError("an answer that must call a tool cannot have another form too")
        if self.tool_choice == "required" and not names:
            raise ValueError("tool_choice asks for a call and there are no tools")
        return self

    @property
    def toolbox(self) -> Toolbox:
        """The tools and how they may be used."""
        tools = tuple(
            Tool(one.function.name, one.function.description or "", one.function.parameters or _NO_ARGUMENTS)
            for one in self.tools or ()
        )
        named = isinstance(self.tool_choice, NamedTool)
        choice = self.tool_choice.function.name if isinstance(self.tool_choice, NamedTool) else self.tool_choice
        # A tool that is named is called once, as OpenAI has it.
        return Toolbox(tools, choice or "auto", named, not named and self.parallel_tool_calls is not False)
