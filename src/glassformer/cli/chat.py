"""`glassformer chat`: a conversation in the terminal."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.answers import SHOWN, How, Printer, answering, print_answer
from glassformer.cli.common import ModelOption, characters, note, open_model
from glassformer.errors import GlassformerError, TextError, TokenizerError, UsageError, near
from glassformer.system import files

if TYPE_CHECKING:
    from glassformer.lm import Model

Ask = Callable[[str, str], str]  # (prompt, what stands there to be edited) -> a line; EOFError ends
LEAST = 64  # tokens an answer should have room for before old turns are left out

COMMANDS = {
    "/help": "this list",
    "/undo": "take back your last words and the answer to them",
    "/retry": "answer your last words again",
    "/edit": "change your last words and send them again",
    "/system TEXT": "say what the assistant is; without a text, take that away",
    "/show": "each token's probability and the rejected alternatives, on or off",
    "/save FILE": "write the conversation as JSON",
    "/reset": "begin anew",
    "/quit": "leave (Ctrl-D does as well)",
}


@answering(max_tokens=1024, temperature=0.7, top_p=0.95)
def command(
    model: ModelOption = None,
    system: Annotated[str | None, typer.Option("--system", metavar="TEXT", help="What the assistant is.")] = None,
    how: How = How(),
) -> None:
    """Talk with a model in the terminal.

    Ctrl-C stops an answer and keeps what was said; /help lists the commands. Messages may also come through a pipe,
    one a line.
    """
    opened = open_model(model)
    if opened.tokenizer.chat_template is None:
        raise TokenizerError(
            f"{opened.name} has no chat template: it was not trained on conversations. Use glassformer complete."
        )
    options = how.options(opened)
    opened.generate([0], **options).close()  # what cannot be meant is said before anything is typed
    chat = Chat(opened, options, system=system, show=how.show)
    ask, person = asker()
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
        except OSError as error:
            if not person:
                raise
            note(f"glassformer: {error.filename or 'The system says'}: {error.strerror or error}.")


class Chat:
    """A conversation and what can be done with it.

    Attributes:
        messages: what was said, as templates take it.
        draft: words to be edited next.
    """

    def __init__(self, model: Model, options: dict[str, Any], *, system: str | None = None, show: bool = False) -> None:
        self.model, self.options, self.show = model, options, show
        self.messages: list[dict[str, str]] = []
        self.draft = ""
        self._again = 0
        self._system(system or "")

    def take(self, typed: str) -> bool:
        """A line of the person's: words or a command; False to leave.

        Raises:
            UsageError: for a command that there is not, or one that cannot be done now.
        """
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
        self.messages.append({"role": "user", "content": words})
        try:
            self._answer()
        except BaseException:
            self.messages.pop()
            raise

    def _answer(self, seed_step: int = 0) -> None:
        options = dict(self.options)
        if options.get("seed") is not None:
            options["seed"] += seed_step
        tokens = self.model.generate(self._prompt(), alternatives=SHOWN + 1 if self.show else 0, **options)
        printer = Printer(self.show)
        whole = print_answer(tokens, printer)
        printer.end()
        if not whole:
            note("(stopped)")
        note(printer.summary(self.model))
        self.messages.append({"role": "assistant", "content": printer.text})

    def _prompt(self) -> list[int]:
        """The conversation's ids, without its oldest turns where the context has no room for them."""
        context = self.model.config.context
        asked = self.options["max_tokens"] or LEAST
        room = context - min(asked, LEAST, context // 4)
        head = [m for m in self.messages if m["role"] == "system"]
        turns = [m for m in self.messages if m["role"] != "system"]
        left_out = 0
        while True:
            ids = self.model.tokenizer.encode(self.model.tokenizer.render_chat([*head, *turns]), bos=False)
            if len(ids) <= room:
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

    # Commands

    def _help(self, rest: str) -> None:
        width = max(map(len, COMMANDS))
        note("\n".join(f"  {name:<{width}}  {what}" for name, what in COMMANDS.items()))

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


def asker() -> tuple[Ask, bool]:
    """How lines are read, and whether a person types them: with editing and history where that can be had."""
    if hasattr(sys.stdin, "reconfigure"):  # as `complete -` reads; what is no UTF-8 is refused by `characters`
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _piped, False
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
    except ImportError:
        with_lines = "install 'glassformer[chat]' to edit lines and find earlier ones with the arrow keys"
        note(f"({with_lines})")
        return _plain, True
    session: PromptSession[str] = PromptSession(output=create_output(stdout=sys.stderr))
    return lambda prompt, draft: session.prompt(prompt, default=draft), True


def _piped(prompt: str, draft: str) -> str:
    typed = sys.stdin.readline()
    if not typed:
        raise EOFError
    return typed


def _plain(prompt: str, draft: str) -> str:
    if draft:
        note(f"(it was: {draft})")
    print(prompt, end="", file=sys.stderr, flush=True)
    return _piped(prompt, draft)
