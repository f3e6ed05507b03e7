"""From what is asked to what the engine is asked."""

from __future__ import annotations

from typing import Any

from glassformer.errors import UsageError
from glassformer.generate.request import Request as Asked
from glassformer.serve.fields import Sampled
from glassformer.serve.models import Served
from glassformer.serve.openai_requests import ChatAsk, Message
from glassformer.serve.prompting import rendered


def requests(served: Served, ask: Sampled, ids: list[int], most: int | None, logprobs: int | None) -> list[Asked]:
    """The engine's requests for the answers to one prompt; an answer ends where the context does.

    Raises:
        UsageError: more tokens than this server gives; whatever the engine cannot do.
    """
    limit = served.most_tokens
    if limit is not None and (most or 0) > limit:
        raise UsageError(f"max_tokens is {most} and this server gives at most {limit} tokens an answer.")
    most = min(most or limit or served.room, served.room - len(ids))
    made = []
    for number in range(ask.n or 1):
        one = Asked(
            tuple(ids),
            most,
            ask.sampling(number, served.model.generation.sampling),
            tuple(ask.stop),
            logprobs=logprobs,
        )
        served.queue.engine.check(one)
        made.append(one)
    return made


def chat_prompt(served: Served, ask: ChatAsk) -> list[int]:
    """The prompt of a conversation, by the model's own template."""
    variables = dict(ask.chat_template_kwargs or {})
    if ask.reasoning_effort is not None:
        variables.setdefault("reasoning_effort", ask.reasoning_effort)
    text = rendered(
        served.model.tokenizer,
        [conversation(one) for one in ask.messages],
        go_on=bool(ask.continue_final_message),
        answer=ask.add_generation_prompt is not False,
        variables=variables,
    )
    return served.ids(text, bos=False)


def conversation(message: Message) -> dict[str, Any]:
    """A message as templates take it."""
    role = {"developer": "system", "function": "tool"}.get(message.role, message.role)
    told: dict[str, Any] = {"role": role, "content": message.content}
    if message.name is not None:
        told["name"] = message.name
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    if (thought := message.reasoning_content or message.reasoning) is not None:
        told["reasoning_content"] = thought
    return told
