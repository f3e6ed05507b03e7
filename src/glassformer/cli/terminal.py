"""A person's terminal: text that breaks between words, lines that are typed, and keys that wait during an answer.

It knows characters and the terminal; it does not know models or conversations.
"""

from __future__ import annotations

import contextlib
import shutil
import sys
import textwrap
from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from prompt_toolkit.key_binding import KeyBindings

Ask = Callable[[str, str], str]  # (prompt, what stands there to be edited) -> the text typed; EOFError ends
# A text of so many tokens is read in a moment; longer ones show how far they are.
_READ_AT_ONCE = 512


def width() -> int:
    """Columns of the terminal."""
    return max(20, shutil.get_terminal_size().columns)


class Wrapper:
    """Breaks a text that comes bit by bit between its words, where a line of the terminal ends.

    Args:
        columns: of a line.
    """

    def __init__(self, columns: int) -> None:
        self._columns, self._at = columns, 0
        self._gap = self._word = ""

    def push(self, text: str) -> str:
        """What can be written now: all but the last word, which may go on."""
        out = ""
        for char in text:
            if char == "\n":
                out += self._flush() + "\n"
                self._gap, self._at = "", 0
            elif char.isspace():
                out += self._flush()
                self._gap += char
            else:
                self._word += char
                if len(self._word) >= self._columns:  # no word, or one of a script that puts no spaces
                    out += self._flush()
        return out

    def finish(self) -> str:
        """What was held back."""
        return self._flush()

    def _flush(self) -> str:
        from rich.cells import cell_len

        if not self._word:
            return ""
        gap, word = self._gap, self._word
        self._gap = self._word = ""
        size = cell_len(gap + word)
        if self._at and self._at + size > self._columns:
            self._at = cell_len(word)
            return "\n" + word
        self._at += size
        return gap + word


def hanging(line: str, columns: int, indent: int) -> str:
    """A line broken between words at so many columns, its further lines indented."""
    if len(line) <= columns:
        return line
    head, rest = line[:indent], line[indent:]
    width = max(columns - indent, 20)
    lines = textwrap.wrap(rest, width, break_long_words=False, break_on_hyphens=False, drop_whitespace=True)
    return ("\n" + " " * indent).join([head + (lines[0] if lines else ""), *lines[1:]])


class ReadingProgress:
    """How much of a long text is read, on one line of standard error that goes when the answer begins."""

    def __init__(self) -> None:
        self._shown = self._closed = False

    def __call__(self, done: int, total: int) -> None:
        """`done` of `total` tokens are read."""
        if self._closed or total < _READ_AT_ONCE or not sys.stderr.isatty():
            return
        if done < total:
            self._shown = True
            print(f"\rreading {total:,} tokens: {done / total:.0%} ", end="", file=sys.stderr, flush=True)
        else:
            self.clear()

    def close(self) -> None:
        """The answer is over: nothing that still arrives is shown."""
        self._closed = True
        self.clear()

    def clear(self) -> None:
        """Take the line away."""
        if self._shown:
            self._shown = False
            print("\r\x1b[K", end="", file=sys.stderr, flush=True)


@contextlib.contextmanager
def quiet_keys() -> Iterator[None]:
    """Keys that are typed inside are not echoed into what is written; they wait for the next prompt."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, AttributeError, TypeError):
        yield
        return
    except Exception as error:  # termios.error, which is no OSError
        if type(error).__module__ != "termios":
            raise
        yield
        return
    quiet = list(before)
    quiet[3] &= ~termios.ECHO
    termios.tcsetattr(sys.stdin, termios.TCSANOW, quiet)
    try:
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSANOW, before)


def asker(note: Callable[[str], None]) -> tuple[Ask, bool]:
    """How lines are read, and whether a person types them: with editing and history where that can be had."""
    if hasattr(sys.stdin, "reconfigure"):  # as `complete -` reads; what is no UTF-8 is refused by `characters`
        sys.stdin.reconfigure(encoding="utf-8", errors="surrogateescape")
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return _piped, False
    try:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.output import create_output
    except ImportError:
        note("(install 'glassformer[chat]' to edit lines and find earlier ones with the arrow keys)")
        return lambda prompt, draft: _plain(prompt, draft, note), True
    session: PromptSession[str] = PromptSession(output=create_output(stdout=sys.stderr), key_bindings=_keys())
    return lambda prompt, draft: session.prompt(prompt, default=draft), True


def _keys() -> KeyBindings:
    """Alt-Enter begins a new line; Enter sends."""
    from prompt_toolkit.key_binding import KeyBindings

    keys = KeyBindings()

    @keys.add("escape", "enter")
    def _(event: Any) -> None:
        event.current_buffer.insert_text("\n")

    return keys


def _piped(prompt: str, draft: str) -> str:
    typed = sys.stdin.readline()
    if not typed:
        raise EOFError
    return typed


def _plain(prompt: str, draft: str, note: Callable[[str], None]) -> str:
    if draft:
        note(f"(it was: {draft})")
    print(prompt, end="", file=sys.stderr, flush=True)
    return _piped(prompt, draft)
