"""What stands between a call's marks, form by form, as pieces of (name, arguments).

A body gives its function's name once, and the JSON text of the arguments in pieces.
"""

from __future__ import annotations

import json
import re
from typing import Any

from glassformer.serve.tools import Toolbox
from glassformer.serve.unquoted import bare_text, resolved

News = list[tuple[str | None, str]]
_NAME = re.compile(r'"name"\s*:\s*"((?:[^"\\]|\\.)*)"')
_ARGUMENTS = re.compile(r'"(?:arguments|parameters)"\s*:\s*(?=[\[{"\d\-tfn])')
_END = re.compile(r'\s*(?:,\s*"id"\s*:\s*"[^"]*"\s*)?\}')  # what may follow the arguments
_PATIENCE = 400  # characters in which a call must have named its function


class ValueScanner:
    """Finds where a JSON value ends, character by character."""

    def __init__(self) -> None:
        self._depth, self._quoted, self._escaped, self._begun = 0, False, False, False
        self.done = False

    @property
    def quoted(self) -> bool:
        """Whether it stands inside a text."""
        return self._quoted

    def push(self, text: str) -> int:
        """How many characters of `text` belong to the value."""
        for at, letter in enumerate(text):
            if self._quoted:
                if self._escaped:
                    self._escaped = False
                elif letter == "\\":
                    self._escaped = True
                elif letter == '"':
                    self._quoted = False
                    if self._depth == 0:
                        self.done = True
                        return at + 1
            elif letter == '"':
                self._quoted = self._begun = True
            elif letter in "{[":
                self._depth += 1
                self._begun = True
            elif letter in "}]":
                if self._depth == 0:
                    self.done = True
                    return at
                self._depth -= 1
                if self._depth == 0:
                    self.done = True
                    return at + 1
            elif self._depth == 0 and self._begun and letter in ", \n":
                self.done = True
                return at
            elif not letter.isspace():
                self._begun = True
        return len(text)


class Body:
    """One call between its marks.

    Attributes:
        raw: all of it. called: whether a function was named. hopeless: whether it will never be.
        cut: whether the output ended before the mark that ends the call.
    """

    def __init__(self, box: Toolbox) -> None:
        self.box = box
        self.raw = ""
        self.called = self.cut = False

    @property
    def hopeless(self) -> bool:
        """Whether so much came without a function's name that none will."""
        return not self.called and len(self.raw) > _PATIENCE

    @property
    def inside_text(self) -> bool:
        """Whether a text of the arguments has begun and not ended, so that no mark ends the call."""
        return False

    def push(self, text: str) -> News:
        self.raw += text
        return []

    def finish(self) -> News:
        return []

    def _call(self, name: str, arguments: dict[str, Any]) -> News:
        self.called = True
        return [(name, json.dumps(arguments, ensure_ascii=False))]

    def _typed(self, name: str, key: str, value: str) -> Any:
        """An argument that is written without quotes: text where the schema says so, else JSON if it is any."""
        tool = self.box.get(name)
        root = {} if tool is None else tool.parameters
        if bare_text(resolved(root, root).get("properties", {}).get(key, {}), root):
            return value
        try:
            return json.loads(value)
        except ValueError:
            return value


class JsonBody(Body):
    """`{"name": ..., "arguments": {...}}`: arguments come in pieces once the name is known.

    Attributes:
        whole: what follows the arguments and the object's end, once it has ended; else None.
    """

    def __init__(self, box: Toolbox) -> None:
        super().__init__(box)
        self._scanner: ValueScanner | None = None
        self._told = 0
        self.whole: str | None = None

    @property
    def inside_text(self) -> bool:
        return self._scanner is not None and self._scanner.quoted

    def push(self, text: str) -> News:
        self.raw += text
        out: News = []
        if self._scanner is None:
            name, arguments = _NAME.search(self.raw), _ARGUMENTS.search(self.raw)
            if not (name and arguments and name.start() < arguments.start()):
                return out
            self.called, self._scanner, self._told = True, ValueScanner(), arguments.end()
            out.append((json.loads(f'"{name[1]}"'), ""))
        if not self._scanner.done:
            new = self.raw[self._told :]
            size = self._scanner.push(new)
            if size:
                out.append((None, new[:size]))
            self._told += size
        if self._scanner.done and self.whole is None:
            ended = _END.match(self.raw, self._told)
            if ended is not None:
                self.whole = self.raw[ended.end() :]
        return out

    def finish(self) -> News:
        if self._scanner is not None:
            return []
        try:
            found = json.loads(self.raw)
        except ValueError:
            return []
        if not (isinstance(found, dict) and isinstance(found.get("name"), str)):
            return []
        arguments = found.get("arguments", found.get("parameters", {}))
        return self._call(found["name"], arguments if isinstance(arguments, dict) else {})


class MistralBody(Body):
    """`[{"name": ..., "arguments": ...}, ...]`, or `name[ARGS]{...}`."""

    def __init__(self, box: Toolbox) -> None:
        super().__init__(box)
        self._listed: bool | None = None
        self._inner: JsonBody | None = None
        self._scanner: ValueScanner | None = None
        self._rest = ""

    @property
    def inside_text(self) -> bool:
        return (
            self._inner.inside_text if self._inner is not None else self._scanner is not None and self._scanner.quoted
        )

    def push(self, text: str) -> News:
        self.raw += text
        text, self._rest = self._rest + text, ""
        out: News = []
        while text:
            if self._listed is None:
                bare = text.lstrip()
                if not bare:
                    self._rest = text
                    break
                self._listed = bare.startswith(("[", "{"))
                text = bare
            if self._listed:
                text = self._list(out, text)
            else:
                text = self._named(out, text)
        return out

    def _list(self, out: News, text: str) -> str:
        if self._inner is None:
            text = text.lstrip("[], \n")
            if not text:
                return ""
            self._inner = JsonBody(self.box)
        out += self._inner.push(text)
        self.called = self.called or self._inner.called
        if self._inner.whole is None:
            return ""
        rest, self._inner = self._inner.whole, None
        return rest

    def _named(self, out: News, text: str) -> str:
        if self._scanner is None:
            name, mark, rest = text.partition("[ARGS]")
            if not mark:
                self._rest = text
                return ""
            self._scanner, self.called = ValueScanner(), True
            out.append((re.sub(r"\[CALL_ID\].*", "", name).strip(), ""))
            text = rest
        if not self._scanner.done:
            size = self._scanner.push(text)
            out.append((None, text[:size]))
        return ""

    def finish(self) -> News:
        return [] if self._inner is None else self._inner.finish()


class DeepSeekBody(Body):
    """`name<｜tool▁sep｜>{...}`, or `function<｜tool▁sep｜>name` and the arguments in a fence."""

    def __init__(self, box: Toolbox) -> None:
        super().__init__(box)
        self._scanner: ValueScanner | None = None
        self._rest = ""

    @property
    def inside_text(self) -> bool:
        return self._scanner is not None and self._scanner.quoted

    def push(self, text: str) -> News:
        self.raw += text
        text, self._rest = self._rest + text, ""
        out: News = []
        if self._scanner is None:
            head, mark, rest = text.partition("<｜tool▁sep｜>")
            start = rest.find("{")
            if not mark or start < 0:
                self._rest = text
                return out
            name = rest[:start].partition("\n")[0].strip() if head.strip() == "function" else head.strip()
            self._scanner, self.called = ValueScanner(), True
            out.append((name, ""))
            text = rest[start:]
        if not self._scanner.done:
            size = self._scanner.push(text)
            if size:
                out.append((None, text[:size]))
        return out


class GlmBody(Body):
    """A name, and `<arg_key>` before `<arg_value>`."""

    _PAIR = re.compile(r"<arg_key>(.*?)</arg_key>\s*<arg_value>(.*?)</arg_value>", re.S)

    def finish(self) -> News:
        name = self.raw.partition("<arg_key>")[0].strip()
        if self.cut or not name or "\n" in name or name.startswith("{"):  # half of it may name half a function
            return []
        pairs = self._PAIR.findall(self.raw)
        return self._call(name, {key.strip(): self._typed(name, key.strip(), value) for key, value in pairs})


class XmlBody(Body):
    """`<function=name>` with `<parameter=key>` in it."""

    _FUNCTION = re.compile(r"<function=([^>\n]+)>")
    _PARAMETER = re.compile(r"<parameter=([^>\n]+)>\n?(.*?)\n?</parameter>", re.S)

    def finish(self) -> News:
        named = self._FUNCTION.search(self.raw)
        if named is None or "</function>" not in self.raw:  # cut off: some of its arguments are not there
            return []
        name = named[1].strip()
        pairs = self._PARAMETER.findall(self.raw)
        return self._call(name, {key.strip(): self._typed(name, key.strip(), value) for key, value in pairs})


class DsmlBody(Body):
    """Calls as `<｜DSML｜invoke name="...">`, with `<｜DSML｜parameter name="..." string="true|false">` in each."""

    _INVOKE = re.compile(r'<｜DSML｜invoke name="([^"]+)">(.*?)</｜DSML｜invoke>', re.S)
    _PARAMETER = re.compile(r'<｜DSML｜parameter name="([^"]+)" string="(true|false)">(.*?)</｜DSML｜parameter>', re.S)

    def finish(self) -> News:
        out: News = []
        for name, inner in self._INVOKE.findall(self.raw):
            pairs = self._PARAMETER.findall(inner)
            out += self._call(name, {k: v if text == "true" else self._typed(name, k, v) for k, text, v in pairs})
        return out


class GemmaBody(Body):
    """`call:name{key:value,...}` with texts between `<escape>` or `<|"|>` marks."""

    _CALL = re.compile(r"\s*call:([\w.-]+)\s*(\{.*\})\s*", re.S)
    _KEY = re.compile(r"([{,]\s*)([^\s{}\[\],:\"\x00](?:[^{}\[\],:\"\x00]*[^\s{}\[\],:\"\x00])?)\s*:")
    _QUOTED = re.compile(r"<escape>(.*?)<escape>|<\|\"\|>(.*?)<\|\"\|>", re.S)

    def finish(self) -> News:
        found = self._CALL.fullmatch(self.raw)
        if found is None:
            return []
        texts: list[str] = []

        def keep(quoted: re.Match[str]) -> str:
            texts.append(json.dumps(quoted[1] if quoted[1] is not None else quoted[2], ensure_ascii=False))
            return f"\x00{len(texts) - 1}\x00"

        bare = self._QUOTED.sub(keep, found[2])
        bare = self._KEY.sub(r'\1"\2":', bare)
        whole = re.sub(r"\x00(\d+)\x00", lambda m: texts[int(m[1])], bare)
        try:
            arguments = json.loads(whole)
        except ValueError:
            return []
        return self._call(found[1], arguments)
