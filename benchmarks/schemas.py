"""JSON schemas of our own making, drawn by a seed: every keyword that answers are held to, joined at random.

A few ask for what no answer is held to (`REFUSED`), which has to be refused by its name.
"""

from __future__ import annotations

import random
from typing import Any

REFUSED: dict[str, Any] = {
    "uniqueItems": {"type": "array", "items": {"type": "integer"}, "uniqueItems": True},
    "not": {"not": {"type": "string"}},
    "if": {"if": {"type": "string"}, "then": {"minLength": 2}},
    "contains": {"type": "array", "contains": {"type": "integer"}},
    "propertyNames": {"type": "object", "propertyNames": {"pattern": "^a"}},
    "dependentRequired": {"type": "object", "dependentRequired": {"a": ["b"]}},
}
_NAMES = ["name", "age", "größe", "a b", "x-y", "7", "$id2", "日本", 'q"uote', "back\\slash", "city", "tags"]
_TEXTS = ["red", "green", "", "é", 'say "hi"', "line\nbreak", "tab\there", "\\", "null", "1", "🦔", "a" * 40]
_PATTERNS = [
    "^[A-Z]{2,5}$",
    "^[0-9]{3}-[0-9]{4}$",
    "^(yes|no)$",
    "[a-f]+[0-9]$",
    "^x",
    "^[^\\s]{1,8}$",
    "^\\d+(\\.\\d{2})?$",
]
_FORMATS = ["date", "time", "date-time", "uuid", "ipv4", "ipv6", "email"]


class Maker:
    """Draws schemas.

    Args:
        seed: the same seed draws the same schemas.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._defs: dict[str, Any] = {}

    def schema(self) -> dict[str, Any]:
        """One schema."""
        draw, self._defs = self._random, {}
        if draw.random() < 0.04:
            return dict(draw.choice(list(REFUSED.values())))
        made = self._object(3) if draw.random() < 0.6 else self._any(3)
        return {**made, "$defs": self._defs} if self._defs else made

    def _any(self, depth: int) -> dict[str, Any]:
        flat = [self._string, self._number, self._integer, self._plain, self._enum, self._const]
        deep = [
            self._object,
            self._object,
            self._array,
            self._array,
            self._union,
            self._joined,
            self._named,
            self._types,
        ]
        kind = self._random.choice(flat + deep if depth > 0 else flat)
        return kind(depth - 1)

    def _string(self, depth: int) -> dict[str, Any]:
        draw = self._random
        made: dict[str, Any] = {"type": "string"}
        way = draw.randrange(5)
        if way == 0:
            made["pattern"] = draw.choice(_PATTERNS)
        elif way == 1:
            made["format"] = draw.choice(_FORMATS)
        else:
            if draw.random() < 0.4:
                made["minLength"] = draw.randrange(4)
            made["maxLength"] = made.get("minLength", 0) + draw.randrange(1, 20)
        return made

    def _number(self, depth: int) -> dict[str, Any]:
        draw = self._random
        made: dict[str, Any] = {"type": "number"}
        low = round(draw.uniform(-100, 100), draw.randrange(3))
        if draw.random() < 0.5:
            made[draw.choice(["minimum", "exclusiveMinimum"])] = low
        if draw.random() < 0.5:
            made[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.choice([1, 2.5, 10, 1000])
        return made

    def _integer(self, depth: int) -> dict[str, Any]:
        draw = self._random
        made: dict[str, Any] = {"type": "integer"}
        low = draw.randint(-1000, 1000)
        if draw.random() < 0.6:
            made[draw.choice(["minimum", "exclusiveMinimum"])] = low
        if draw.random() < 0.6:
            made[draw.choice(["maximum", "exclusiveMaximum"])] = low + draw.randint(9, 5000)
        if draw.random() < 0.2:
            made["multipleOf"] = draw.choice([2, 3, 5])
        return made

    def _plain(self, depth: int) -> dict[str, Any]:
        return {"type": self._random.choice(["boolean", "null"])}

    def _enum(self, depth: int) -> dict[str, Any]:
        draw = self._random
        values: list[Any] = draw.sample(_TEXTS, draw.randint(1, 4))
        if draw.random() < 0.4:
            values += draw.sample([0, -7, 2.5, True, None, [1, "a"], {"k": 1}], draw.randint(1, 3))
        return {"enum": values}

    def _const(self, depth: int) -> dict[str, Any]:
        return {"const": self._random.choice([*_TEXTS, 3, False, None, ["x"], {"a": {"b": 1}}])}

    def _object(self, depth: int) -> dict[str, Any]:
        draw = self._random
        names = draw.sample(_NAMES, draw.randint(0, 5))
        made: dict[str, Any] = {"type": "object", "properties": {name: self._any(depth) for name in names}}
        if names:
            made["required"] = draw.sample(names, draw.randint(0, len(names)))
        way = draw.randrange(4)
        if way == 0:
            made["additionalProperties"] = False
        elif way == 1:
            made["additionalProperties"] = self._any(min(depth, 0))
        if draw.random() < 0.1:
            made["description"], made["title"] = "What it is.", "It"
        if draw.random() < 0.08:
            made["patternProperties"] = {"^n_": {"type": "integer"}}
        return made

    def _array(self, depth: int) -> dict[str, Any]:
        draw = self._random
        made: dict[str, Any] = {"type": "array"}
        if draw.random() < 0.15:
            made["prefixItems"] = [self._any(depth) for _ in range(draw.randint(1, 3))]
            made["items"] = False if draw.random() < 0.5 else self._any(min(depth, 0))
            made["minItems"] = made["maxItems"] = len(made["prefixItems"])
            return made
        made["items"] = self._any(depth)
        if draw.random() < 0.5:
            made["minItems"] = draw.randrange(3)
        made["maxItems"] = made.get("minItems", 0) + draw.randint(1, 3)
        return made

    def _union(self, depth: int) -> dict[str, Any]:
        return {"anyOf": [self._any(depth) for _ in range(self._random.randint(2, 3))]}

    def _joined(self, depth: int) -> dict[str, Any]:
        one, other = self._random.sample(_NAMES, 2)
        parts = [
            {"type": "object", "properties": {name: self._any(depth)}, "required": [name]} for name in (one, other)
        ]
        return {"allOf": parts}

    def _named(self, depth: int) -> dict[str, Any]:
        name = f"d{len(self._defs)}"
        self._defs[name] = {}  # its place: what is drawn for it may be named too
        if self._random.random() < 0.3:
            again = {"anyOf": [{"$ref": f"#/$defs/{name}"}, {"type": "null"}]}
            value = {"type": "integer", "minimum": 0, "maximum": 9}
            self._defs[name] = {
                "type": "object", "properties": {"v": value, "next": again}, "required": ["v", "next"],
                "additionalProperties": False,
            }  # fmt: skip
        else:
            self._defs[name] = self._any(depth)
        return {"$ref": f"#/$defs/{name}"}

    def _types(self, depth: int) -> dict[str, Any]:
        kinds = self._random.sample(["string", "integer", "boolean", "null"], 2)
        made: dict[str, Any] = {"type": kinds}
        if "string" in kinds:
            made["maxLength"] = 8
        if "integer" in kinds:
            made |= {"minimum": 0, "maximum": 99}
        return made
