"""A model's output taken apart as it comes: what it thinks, what it says, and which tools it calls.

Each family writes calls in a form of its own; a reader per form turns them into the same deltas. What only looks like
a call is text.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence

from glassformer.generate.stop import overlap
from glassformer.serve.answers import CallDelta, Delta, PlainReader, Reader
from glassformer.serve.call_bodies import (
    Body,
    DeepSeekBody,
    DsmlBody,
    GemmaBody,
    GlmBody,
    JsonBody,
    MistralBody,
    ValueScanner,
    XmlBody,
)
from glassformer.serve.tools import MARKS, Toolbox, new_id

# What stands around thoughts in the templates that have them.
THOUGHTS = (
    ("<think>", "</think>"),
    ("[THINK]", "[/THINK]"),
    ("<|START_THINKING|>", "<|END_THINKING|>"),
    ("<|channel>thought", "<channel|>"),
)
_BODIES: dict[str, Callable[[Toolbox], Body]] = {
    "hermes": JsonBody,
    "json": JsonBody,
    "glm": GlmBody,
    "coder": XmlBody,
    "deepseek": DeepSeekBody,
    "dsml": DsmlBody,
    "gemma": GemmaBody,
    "gemma4": GemmaBody,
    "mistral": MistralBody,
}
# Tokens around several calls, which say nothing themselves.
_SILENT = ("<｜tool▁calls▁begin｜>", "<｜tool▁calls▁end｜>")


def reader(form: str, box: Toolbox, thoughts: tuple[str, str] | None, thinking: bool) -> Reader:
    """What takes an answer apart.

    Args:
        form: of the calls. box: the tools; none are looked for where it is empty.
        thoughts: what stands around thoughts, or None. thinking: whether the prompt ends inside them.
    """
    if form == "harmony":
        return HarmonyReader()
    inner: Reader = PlainReader()
    if box:
        inner = LlamaReader(box) if form == "llama" else CallReader(form, box)
    return inner if thoughts is None else ThoughtReader(inner, *thoughts, thinking=thinking)


def shows_specials(form: str, box: Toolbox) -> bool:
    """Whether a form's marks are special tokens, which texts usually leave out."""
    return form in ("harmony", "gemma4") or (bool(box) and form in ("llama", "mistral", "deepseek", "dsml", "gemma"))


def split(text: str, marks: Sequence[str]) -> tuple[str, str | None, str]:
    """Text before the first mark, that mark (None for none), and what follows; without one, what may begin a mark is
    what follows."""
    found = [(at, -len(mark), mark) for mark in marks if mark and (at := text.find(mark)) >= 0]
    if found:
        at, _, mark = min(found)
        return text[:at], mark, text[at + len(mark) :]
    hold = max((overlap(text, mark) for mark in marks if mark), default=0)
    return text[: len(text) - hold], None, text[len(text) - hold :]


class ThoughtReader:
    """Thoughts first, then what another reader reads."""

    def __init__(self, inner: Reader, begin: str, end: str, *, thinking: bool) -> None:
        self._inner, self._begin, self._end = inner, begin, end
        self._state = "thinking" if thinking else "start"
        self._held = ""
        self._bare = True  # no thought yet, so that the line break before it is none of it

    def push(self, text: str) -> Delta:
        out = Delta()
        text, self._held = self._held + text, ""
        if self._state == "start":
            bare = text.lstrip()
            if self._begin.startswith(bare) and len(bare) < len(self._begin):
                self._held = text
                return out
            if bare.startswith(self._begin):
                self._state, text = "thinking", bare[len(self._begin) :]
            else:
                self._state = "saying"
        if self._state == "thinking":
            before, mark, text = split(text, [self._end])
            if self._bare:
                before = before.lstrip("\n")
                self._bare = not before
            if mark is None:
                # Line breaks at the end may be the last of the thought.
                kept = before.rstrip("\n")
                out.reasoning, self._held = kept, before[len(kept) :] + text
                self._bare = self._bare and not kept
                return out
            out.reasoning = before.rstrip("\n")
            self._state = "after"
        if self._state == "after":
            text = text.lstrip("\n")
            if not text:
                return out
            self._state = "saying"
        return _joined(out, self._inner.push(text)) if text else out

    def finish(self) -> Delta:
        held, self._held = self._held, ""
        if self._state == "thinking":
            return Delta(reasoning=held)
        said = self._inner.push(held) if held and self._state == "start" else Delta()
        return _joined(said, self._inner.finish())


class CallReader:
    """Text with calls between marks."""

    def __init__(self, form: str, box: Toolbox) -> None:
        self._form, self._box = form, box
        self._begin, self._end = MARKS[form]
        self._body: Body | None = None
        self._held = ""
        self._calls = 0
        self._space = ""  # between text and a call: not said where a call follows

    def push(self, text: str) -> Delta:
        out = Delta()
        text, self._held = self._held + text, ""
        while text:
            if self._body is None:
                before, mark, text = split(text, [self._begin, *_SILENT])
                if mark is None:
                    self._held, text = text, ""
                self._say(out, before, last=mark == self._begin)
                if mark == self._begin:
                    self._body = _BODIES[self._form](self._box)
                continue
            before, mark, text = split(text, [self._end, self._begin] if self._end else [self._begin])
            if mark is None:
                self._held, text = text, ""
            self._take(out, self._body.push(before))
            if mark is not None and self._body.inside_text:  # letters of a text that only look like a mark
                self._take(out, self._body.push(mark))
            elif mark is not None:
                self._close(out)
                if mark == self._begin:
                    self._body = _BODIES[self._form](self._box)
        return out

    def _say(self, out: Delta, text: str, *, last: bool) -> None:
        text = self._space + text
        said = text.rstrip()
        self._space = text[len(said) :]
        if said and (self._calls == 0 or said.strip()):
            out.text += said
        if last:
            self._space = ""

    def _take(self, out: Delta, news: list[tuple[str | None, str]]) -> None:
        for name, arguments in news:
            if name is not None:
                self._calls += 1
            if self._calls > 1 and not self._box.parallel:
                continue
            if name is not None:
                out.calls.append(CallDelta(self._calls - 1, arguments, new_id(self._form), name))
            elif arguments:
                out.calls.append(CallDelta(self._calls - 1, arguments))

    def _close(self, out: Delta) -> None:
        assert self._body is not None
        self._take(out, self._body.finish())
        if not self._body.called:  # no call after all: what was written is text
            out.text += self._begin + self._body.raw + self._end
        self._body, self._space = None, ""

    def finish(self) -> Delta:
        out = Delta()
        held, self._held = self._held, ""
        if self._body is not None:
            self._take(out, self._body.push(held))
            self._body.cut = True
            self._take(out, self._body.finish())
            if not self._body.called:
                out.text += self._begin + self._body.raw
            self._body = None
        elif held or (self._space and not self._calls):
            out.text += self._space + held
        return out


class LlamaReader:
    """Llama 3's form: the whole answer is a call, with or without `<|python_tag|>` before it."""

    _TAG = "<|python_tag|>"

    def __init__(self, box: Toolbox) -> None:
        self._box = box
        self._held = ""
        self._text = False
        self._body: JsonBody | None = None
        self._calls = 0

    def push(self, text: str) -> Delta:
        out = Delta()
        if self._text:
            return Delta(text)
        text, self._held = self._held + text, ""
        if self._body is None:
            bare = text.lstrip()
            if not bare or (self._TAG.startswith(bare) and len(bare) < len(self._TAG)):
                self._held = text
                return out
            if bare.startswith(self._TAG):
                text = bare[len(self._TAG) :].lstrip()
                if not text:
                    self._held = self._TAG
                    return out
            elif not bare.startswith("{"):
                self._text = True
                return Delta(text)
            else:
                text = bare
            self._body = JsonBody(self._box)
        while text:
            if self._body.whole is not None:  # between two calls
                text = text.lstrip("; \n")
                if not text.startswith("{"):
                    return out
                self._body = JsonBody(self._box)
            self._take(out, self._body.push(text))
            if self._body.hopeless:
                self._text = True
                return _joined(out, Delta(self._body.raw))
            text = self._body.whole or ""
        return out

    def _take(self, out: Delta, news: list[tuple[str | None, str]]) -> None:
        for name, arguments in news:
            if name is not None:
                self._calls += 1
                out.calls.append(CallDelta(self._calls - 1, arguments, new_id("llama"), name))
            elif arguments:
                out.calls.append(CallDelta(self._calls - 1, arguments))

    def finish(self) -> Delta:
        out = Delta()
        if self._text:
            return out
        if self._body is None:
            return Delta(self._held.replace(self._TAG, ""))
        self._take(out, self._body.finish())
        if not self._body.called and not self._calls:
            out.text += self._body.raw
        return out


class HarmonyReader:
    """gpt-oss: messages in channels, of which `analysis` is thought, `final` is said, and others go to functions."""

    _ENDS = ("<|end|>", "<|call|>", "<|return|>")
    _TO = re.compile(r"to=functions\.([\w.-]+)")
    _CHANNEL = re.compile(r"<\|channel\|>\s*(\w+)")

    def __init__(self) -> None:
        self._head: str | None = ""  # of a message, or None inside its body
        self._held = ""
        self._where = "final"
        self._calls = 0
        self._arguments = ValueScanner()

    def push(self, text: str) -> Delta:
        out = Delta()
        text, self._held = self._held + text, ""
        while text:
            if self._head is not None:
                before, mark, text = split(text, ["<|message|>"])
                self._head += before
                if mark is None:
                    self._held, text = text, ""
                    # A model that writes no channel just speaks.
                    if self._head and not self._head.lstrip().startswith(("<|", "to=", "assistant")):
                        self._where, text, self._head = "final", self._head + self._held, None
                        self._held = ""
                    continue
                self._begin(out)
                continue
            before, mark, text = split(text, self._ENDS)
            self._say(out, before)
            if mark is None:
                self._held, text = text, ""
            elif self._where == "call" and self._arguments.quoted:
                self._say(out, mark)
            else:
                self._head = ""
        return out

    def _begin(self, out: Delta) -> None:
        head, self._head = self._head or "", None
        to, channel = self._TO.search(head), self._CHANNEL.search(head)
        if to:
            self._where, self._arguments = "call", ValueScanner()
            self._calls += 1
            out.calls.append(CallDelta(self._calls - 1, "", new_id("harmony"), to[1]))
        else:
            self._where = "analysis" if channel and channel[1] == "analysis" else "final"

    def _say(self, out: Delta, text: str) -> None:
        if not text:
            return
        if self._where == "call":
            self._arguments.push(text)
            out.calls.append(CallDelta(self._calls - 1, text))
        elif self._where == "analysis":
            out.reasoning += text
        else:
            out.text += text

    def finish(self) -> Delta:
        out = Delta()
        if self._head is None:
            self._say(out, self._held)
        self._held = ""
        return out


def _joined(first: Delta, then: Delta) -> Delta:
    return Delta(first.text + then.text, first.reasoning + then.reasoning, [*first.calls, *then.calls])
