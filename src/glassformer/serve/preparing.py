"""From what is asked to what the engine is asked."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, TypeVar

from starlette.concurrency import run_in_threadpool
from starlette.requests import Request as Http

from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint
from glassformer.generate.drafting import NgramLookup
from glassformer.generate.request import Request as Asked
from glassformer.serve.edits import edited
from glassformer.serve.exchange import PreparedRequest
from glassformer.serve.models import Served
from glassformer.serve.openai_requests import ChatAsk, Message, Streamed
from glassformer.serve.problems import Refusal
from glassformer.serve.prompting import rendered
from glassformer.serve.readers import THOUGHTS, reader, shows_specials
from glassformer.serve.tool_grammars import tool_constraint
from glassformer.serve.tools import Toolbox, form_of, history, introduced

_QUICK = 4096  # bytes of a request that is prepared at once
Made = TypeVar("Made")
Given = TypeVar("Given", bound=Streamed)


async def prepared(http: Http, make: Callable[[Served, Given], Made], served: Served, ask: Given) -> Made:
    """`make(served, ask)`: at once for a short request without a form, tools or edits, as handing it to a thread and
    back takes longer than making it while the engine computes; in a thread otherwise.
    """
    length = http.headers.get("content-length", "")
    plain = not (ask.edits or getattr(ask, "tools", None)) and ask.constraint() is None
    if plain and length.isdigit() and int(length) <= _QUICK:
        return make(served, ask)
    return await run_in_threadpool(make, served, ask)


def requests(
    served: Served,
    ask: Streamed,
    ids: list[int],
    most: int | None,
    logprobs: int | None,
    constraint: Constraint | None = None,
    usual: int = -1,
) -> list[Asked]:
    """The engine's requests for the answers to one prompt; an answer ends where the context does.

    Args:
        most: tokens of an answer; -1 for all that fit, None where nothing is said: what the model's files say, else
            `usual`.
        constraint: what the answers are held to; what is asked for by default.

    Raises:
        Refusal: more tokens than this server gives. UsageError: whatever the engine cannot do.
    """
    limit, files = served.most_tokens, served.model.generation
    if limit is not None and (most or 0) > limit:
        where = "max_completion_tokens" if getattr(ask, "max_completion_tokens", None) else "max_tokens"
        said = f"{where}: {most} were asked for and this server gives at most {limit} tokens an answer."
        raise Refusal(400, said, param=where).renamed(ask._names)
    model = edited(served, ask.edits)
    if most is None:
        most = files.max_tokens or usual
    most = min(limit or served.capacity, served.capacity - len(ids), most if most > 0 else served.capacity)
    made = []
    for number in range(ask.n or 1):
        one = Asked(
            tuple(ids),
            most,
            ask.sampling(number, files.sampling),
            tuple(ask.stop) or files.stop,
            logprobs=logprobs,
            constraint=constraint or ask.constraint(),
            drafter=NgramLookup() if served.lookup else served.drafter if model.bound_tap() is None else None,
            priority=ask.priority or 0,
            tap=model.bound_tap(),
        )
        served.queue.engine.limits.check(one)
        made.append(one)
    return made


@dataclass(frozen=True)
class ChatText:
    """A conversation as a model reads it.

    Attributes:
        text: the prompt. form: of the calls of tools. thoughts: what stands around thoughts, or None.
        thinking: whether the prompt ends inside them.
    """

    text: str
    form: str
    thoughts: tuple[str, str] | None
    thinking: bool


def chat_text(served: Served, ask: ChatAsk) -> ChatText:
    """A conversation by the model's own template.

    Raises:
        TokenizerError: no chat template, or a broken one. TextError: messages that it refuses.
        Refusal: history whose calls do not fit.
    """
    tokenizer = served.model.tokenizer
    template = tokenizer.chat_template or ""
    box, form = ask.toolbox, form_of(template)
    try:
        messages = history([conversation(one) for one in ask.messages], form)
    except Refusal as error:
        raise error.renamed(ask._names) from None
    variables = dict(ask.chat_template_kwargs or {})
    if ask.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", ask.reasoning_effort)
        for name in ("enable_thinking", "thinking"):
            variables.setdefault(name, ask.reasoning_effort != "none")
    if box and form == "json":
        messages = introduced(messages, box)
    elif box:
        variables["tools"] = [tool.to_dict() for tool in box.tools]
    text = rendered(
        tokenizer,
        messages,
        go_on=bool(ask.continue_final_message),
        answer=ask.add_generation_prompt is not False,
        variables=variables,
    )
    thoughts = next((pair for pair in THOUGHTS if pair[1] in template), None)
    return ChatText(text, form, thoughts, thoughts is not None and text.rstrip().endswith(thoughts[0]))


def prepared_chat(served: Served, ask: ChatAsk) -> PreparedRequest:
    """A conversation ready for the engine.

    Raises:
        What `chat_text` raises; ContextLengthError: one that is too long. UsageError: what the engine cannot do.
    """
    told, box = chat_text(served, ask), ask.toolbox
    ids = served.ids(told.text, bos=False)
    most = ask.max_completion_tokens or ask.max_tokens
    top = (ask.top_logprobs or 0) if ask.logprobs else None
    held, thoughts = ask.constraint(), told.thoughts
    if held is not None:
        thoughts = None  # the whole answer has the form, and nothing is thought before it
    tokenizer = served.model.tokenizer
    template = tokenizer.chat_template or ""

    def asked_with(box: Toolbox) -> list[Asked]:
        calls = held or tool_constraint(told.form, box, template, tokenizer, thoughts, told.thinking)
        return requests(served, ask, ids, most, top, calls)

    try:
        asked = asked_with(box)
    except UsageError:
        asked_with(Toolbox())  # what is wrong without tools is none of theirs
        for tool in box.callable:
            try:
                asked_with(replace(box, tools=(tool,)))
            except UsageError as error:
                raise UsageError(f"The tool {tool.name!r} cannot be offered: {error}") from None
        raise
    made = partial(reader, told.form, box, thoughts, told.thinking)
    return PreparedRequest([ids], asked, reader=made, specials=shows_specials(told.form, box), edits=ask.edits)


def conversation(message: Message) -> dict[str, Any]:
    """A message as templates take it."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    told: dict[str, Any] = {"role": role, "content": message.content}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if message.tool_calls:
        told["tool_calls"] = [call.model_dump() for call in message.tool_calls]
    if (thought := message.reasoning_content or message.reasoning) is not None:
        told["reasoning_content"] = thought
    return told
