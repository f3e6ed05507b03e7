"""`glassformer chat`: a conversation in the terminal."""

from __future__ import annotations

import os
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.answers import (
    SHOWN,
    CircuitOption,
    How,
    Printer,
    SteerOption,
    answering,
    print_answer,
    steered,
)
from glassformer.cli.chat_tools import Tools
from glassformer.cli.common import ModelOption, characters, note, open_model
from glassformer.cli.terminal import asker, hanging, width
from glassformer.errors import GlassformerError, TextError, TokenizerError, UsageError, near
from glassformer.system import files

if TYPE_CHECKING:
    from collections.abc import Callable

    from glassformer.lm import Model

IMAGES = (".png", ".jpg", ".jpeg", ".gif", ".webp", ".bmp", ".tif", ".tiff", ".heic", ".svg")
ROUNDS = 8  # answers in a row that may call tools
AT_ONCE = 300  # parts of a reason that are measured before anything is shown
OTHERS = 8  # words that each word is replaced by
LEAST = 64  # tokens an answer should have room for before old turns are left out

COMMANDS = {
    "/help": "this list",
    "/undo": "take back your last words and the answer to them",
    "/retry": "answer your last words again",
    "/edit": "change your last words and send them again",
    "/system TEXT": "say what the assistant is; without a text, take that away",
    "/model SOURCE": "go on with another model; without one, say which it is",
    "/schema FILE": "answers are JSON that follows the schema in it; without a file, they are free again",
    "/why N": "why the model said the N-th token of its last answer; the first without a number",
    "/show": "each token's probability and the rejected alternatives, on or off",
    "/save FILE": "write the conversation as JSON",
    "/reset": "begin anew",
    "/quit": "leave (Ctrl-D does as well)",
}


@answering(max_tokens=1024, temperature=0.7, top_p=0.95)
def command(
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the assistant is.")] = None,
    tools: Annotated[
        Path | None, typer.Option("--tools", metavar="FILE", help="A Python file whose functions the model may call.")
    ] = None,
    how: How = How(),
    steer: SteerOption = None,
    circuit: CircuitOption = None,
) -> None:
    """Talk with a model in the terminal.

    Ctrl-C stops an answer and keeps what was said; Alt-Enter begins a new line; /help lists the commands. Messages may
    also come through a pipe, one a line.
    """
    box = None if tools is None else Tools(tools)
    opened, options = _opened(model, how)
    opened = steered(opened, steer, circuit)

    def reopen(name: str) -> tuple[Model, dict[str, Any]]:
        other, settings = _opened(name, how)
        return steered(other, steer, circuit), settings

    chat = Chat(opened, options, system=system, show=how.show, tools=box, reopen=reopen)
    ask, person = asker(note)
    if person:
        note(f"{opened.name}, {how.precision}. /help lists the commands; Ctrl-D leaves.")
    while True:
        try:
            typed = ask("> ", chat.draft)
        except EOFError:
            return
        except KeyboardInterrupt:  # the line that was being typed is dropped
            print(file=sys.stderr)
            continue
        chat.draft = ""
        if not typed.strip():
            continue
        try:
            if not chat.take(characters(typed.strip())):
                return
        except GlassformerError as error:
            if not person:
                raise
            note(f"glassformer: {error}")
        except KeyboardInterrupt:  # a command that takes long, as /why
            note("(stopped)")
        except OSError as error:
            if not person:
                raise
            note(f"glassformer: {error.filename or 'The system says'}: {error.strerror or error}.")


def _opened(source: str | None, how: How) -> tuple[Model, dict[str, Any]]:
    """A model that talks, and how it answers.

    Raises:
        TokenizerError: a model without a chat template. UsageError: options that cannot be meant.
    """
    opened = open_model(source)
    if opened.tokenizer.chat_template is None:
        raise TokenizerError(
            f"{opened.name} has no chat template: it was not trained on conversations. Use glassformer complete."
        )
    options = how.options(opened)
    opened.generate([0], **options).close()  # what cannot be meant is said before anything is typed
    return opened, options


class Chat:
    """A conversation and what can be done with it.

    Args:
        options: of `Model.generate`. system: what the assistant is. show: whether each token is shown.
        tools: that the model may call.
        reopen: gives another model by its source, with its options.

    Attributes:
        messages: what was said, as templates take it.
        draft: words to be edited next.
    """

    def __init__(
        self,
        model: Model,
        options: dict[str, Any],
        *,
        system: str | None = None,
        show: bool = False,
        tools: Tools | None = None,
        reopen: Callable[[str], tuple[Model, dict[str, Any]]] | None = None,
    ) -> None:
        self.model, self.options, self.show = model, options, show
        self.tools, self._reopen = tools, reopen
        self.messages: list[dict[str, Any]] = [{"role": "system", "content": system}] if system else []
        self.draft = ""
        self._again = 0
        self._last: tuple[list[int], list[int]] | None = None  # ids of the prompt and the answer

    def take(self, typed: str) -> bool:
        """A line of the person's: words or a command; False to leave.

        Raises:
            UsageError: for a command that there is not, or one that cannot be done now.
        """
        if (image := _image(typed)) is not None:
            raise TextError(f"{self.model.name} reads text only; {image} is an image, so nothing was sent.")
        if not typed.startswith("/"):
            self.say(typed)
            return True
        name, _, rest = typed.partition(" ")
        known = {line.partition(" ")[0] for line in COMMANDS}
        if name not in known:
            raise UsageError(f"There is no command {name}; /help lists them.{near(name, known)}")
        if name == "/quit":
            return False
        getattr(self, "_" + name[1:])(rest.strip())
        return True

    def say(self, words: str) -> None:
        """Put words to the model and write its answer; what cannot be answered is not kept."""
        before = len(self.messages)
        self.messages.append({"role": "user", "content": words})
        try:
            self._answer()
        except BaseException:
            del self.messages[before:]
            raise

    def _answer(self, seed_step: int = 0) -> None:
        options = dict(self.options)
        if options.get("seed") is not None:
            options["seed"] += seed_step
        if self.tools is not None and "constraint" not in options:
            options["constraint"] = self.tools.constraint(self.model.tokenizer)
        for _ in range(ROUNDS):
            printer, ids = Printer(self.show), self._prompt()
            alternatives = SHOWN + 1 if self.show else 0
            tokens = self.model.generate(ids, alternatives=alternatives, progress=printer.reading, **options)
            whole = print_answer(tokens, printer)
            printer.end()
            if not whole:
                note("(stopped)")
            note(printer.summary(self.model))
            self._last = (ids, [token.id for token in printer.tokens])
            if self.tools is None:
                self.messages.append({"role": "assistant", "content": printer.text})
                return
            said, calls = self.tools.calls(self.model.tokenizer, self._last[1])
            told = {"role": "assistant", "content": said if calls else printer.text}
            self.messages.append(told | ({"tool_calls": calls} if calls else {}))
            if not (calls and whole):
                return
            for call in calls:
                result = self.tools.call(call)
                note(f"({call['function']['name']} {call['function']['arguments']} gave {result[:200]})")
                self.messages.append({"role": "tool", "tool_call_id": call["id"], "content": result})
        note(f"({ROUNDS} answers in a row called tools; say something to go on)")

    def _prompt(self) -> list[int]:
        """The conversation's ids, without its oldest turns where the context has no room for them."""
        context = self.model.config.context
        asked = self.options["max_tokens"] or LEAST
        left = context - min(asked, LEAST, context // 4)
        head = [m for m in self.messages if m["role"] == "system"]
        turns = [m for m in self.messages if m["role"] != "system"]
        left_out = 0
        while True:
            ids = self.model.tokenizer.encode(self._rendered([*head, *turns]), bos=False)
            if len(ids) <= left:
                break
            if len(turns) < 3:
                raise TextError(
                    f"The message is {len(ids)} tokens long and {self.model.name} reads at most {context}, the answer "
                    "included; shorten it."
                )
            turns, left_out = turns[2:], left_out + 1
        if left_out:
            note(f"(the context of {context} tokens is full: the first {left_out} of the turns are not read any more)")
        return ids

    def _rendered(self, messages: list[dict[str, Any]]) -> str:
        tokenizer = self.model.tokenizer
        return tokenizer.render_chat(messages) if self.tools is None else self.tools.render(tokenizer, messages)

    # Commands

    def _model(self, rest: str) -> None:
        if not rest:
            note(f"({self.model.name})")
            return
        if self._reopen is None:
            raise UsageError("This conversation keeps to its model.")
        kept = {key: self.options[key] for key in ("constraint",) if key in self.options}
        self.model, self.options = self._reopen(rest)
        self.options |= kept
        self._last = None
        note(f"({self.model.name} goes on with the conversation)")

    def _schema(self, rest: str) -> None:
        from glassformer.cli.answers import constraint

        if not rest:
            self.options.pop("constraint", None)
            note("(answers are free)")
            return
        form = constraint(Path(rest).expanduser(), None, None, None)
        self.model.generate([0], **(self.options | {"constraint": form})).close()  # refused now, not later
        self.options["constraint"] = form
        note(f"(answers follow {rest})")

    def _why(self, rest: str) -> None:
        from glassformer.cli.common import progress_console
        from glassformer.cli.why import show, show_words
        from glassformer.interp.tables import why_view

        if self._last is None or not self._last[1]:
            raise UsageError("Nothing was answered yet, so there is nothing to give reasons for.")
        prompt, answer = self._last
        number = int(rest) if rest.isdecimal() else 1 if not rest else 0
        if not 1 <= number <= len(answer):
            raise UsageError(f"/why takes a token of the last answer, 1 to {len(answer)}; {rest!r} is none.")
        trace, token = self.model.trace([*prompt, *answer[: number - 1]]), answer[number - 1]
        show(why_view(trace.why(token, parts=AT_ONCE, words=0), 10))
        note(f"(the reasons of {self.model.tokenizer.token_text(token)!r}, token {number} of {len(answer)})")
        with progress_console().status("measuring words") as status:

            def progress(done: int, total: int | None, what: str) -> None:
                status.update(f"{what}, {done} of {total}; Ctrl-C stops it")

            found = trace.why(token, parts=0, alternatives=OTHERS, progress=progress)
        show_words(why_view(found))

    def _help(self, rest: str) -> None:
        name_width = max(map(len, COMMANDS))
        lines = (f"  {name:<{name_width}}  {what}" for name, what in COMMANDS.items())
        note("\n".join(hanging(line, width(), name_width + 4) for line in lines))

    def _undo(self, rest: str) -> None:
        self._back()
        note("(taken back)")

    def _retry(self, rest: str) -> None:
        words = self._back()
        self._again += 1
        self.messages.append({"role": "user", "content": words})
        self._answer(self._again)

    def _edit(self, rest: str) -> None:
        if rest:
            self._back()
            self.say(rest)
        else:
            self.draft = self._back()

    def _system(self, text: str) -> None:
        self.messages = [m for m in self.messages if m["role"] != "system"]
        if text:
            self.messages.insert(0, {"role": "system", "content": text})
        note("(the assistant is told so from now on)" if text else "(the assistant is told nothing)")

    def _show(self, rest: str) -> None:
        self.show = not self.show
        note(f"(tokens are {'shown' if self.show else 'not shown'})")

    def _save(self, rest: str) -> None:
        if not rest:
            raise UsageError("/save needs a file's name, such as /save talk.json.")
        told = {"model": self.model.name, "messages": self.messages}
        files.write_json(Path(rest).expanduser(), told)
        note(f"(written to {rest})")

    def _reset(self, rest: str) -> None:
        self.messages = [m for m in self.messages if m["role"] == "system"]
        note("(begun anew)")

    def _back(self) -> str:
        """Take the last turn away; the person's words in it."""
        for at in range(len(self.messages) - 1, -1, -1):
            if self.messages[at]["role"] == "user":
                words = self.messages[at]["content"]
                del self.messages[at:]
                return words
        raise UsageError("Nothing was said yet.")


def _image(typed: str) -> str | None:
    """The image that a message is, or names by a file that is there; None for words.

    A file is named as it is written, quoted, with its spaces escaped as terminals drop it, or as Markdown shows it.
    """
    shown = re.findall(r"!\[[^\]]*\]\(<?([^)>\"]+)", typed)
    if any(name.startswith("data:image/") for name in (typed, *shown)):
        return "what was pasted"
    quoted = [name for _, name in re.findall(r"(?<!\S)(['\"])(.+?)\1", typed)]
    escaped = [re.sub(r"\\(.)", r"\1", name) for name in re.findall(r"(?:\\.|\S)+", typed)]
    for word in (*shown, *quoted, *typed.split(), *escaped):
        name = word.strip(" '\"")
        if name.lower().endswith(IMAGES) and ("://" in name or os.path.isfile(os.path.expanduser(name))):
            return name
    return None
