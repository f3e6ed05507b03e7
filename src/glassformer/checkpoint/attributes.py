"""Named settings of a foreign config, read with their types checked.

Every getter says which file is wrong, which setting, and what it holds; none guesses.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Final

from glassformer.errors import CheckpointError, UnsupportedError


class _Required:
    pass


REQUIRED: Final = _Required()
_TOO_LARGE = 2**53  # beyond it a float no longer holds every whole number
_MOST_LAYERS = 10_000


class Attributes:
    """A mapping of settings and the name of the file they came from.

    Each getter takes a default for an absent setting (`REQUIRED` for none). A null counts as absent,
    unless ``null=True``: then it is returned as None, for settings where null has a meaning of its own.
    """

    def __init__(self, values: Mapping[str, Any], where: str, prefix: str = "", path: str = ""):
        self.values = values
        self.where = where
        self.prefix = prefix
        self.path = path
        self.asked: set[str] = set()  # names that were looked at, whether they were there or not
        self._inner: list[Attributes] = []

    def family(self) -> list[Attributes]:
        """These settings and all that were read inside them."""
        return [self, *(each for inner in self._inner for each in inner.family())]

    def dotted(self, name: str) -> str:
        """A setting's name with those of the objects that it stands in."""
        return f"{self.path}.{name}".lstrip(".")

    def __contains__(self, name: str) -> bool:
        self.asked.add(self.prefix + name)
        return self.values.get(self.prefix + name) is not None

    def integer(self, name: str, default: object = REQUIRED, *, null: bool = False) -> Any:
        """A whole number."""
        return self._get(name, default, null, "a whole number", _is_integer)

    def layers(self, name: str, default: object = REQUIRED) -> int:
        """A number of layers: bounded, because lists as long are made of it before any tensor is looked at."""
        value: int = self._get(name, default, False, f"from 1 to {_MOST_LAYERS:,}", _is_depth)
        return value

    def number(self, name: str, default: object = REQUIRED, *, null: bool = False) -> Any:
        """A number, as a float."""
        value = self._get(name, default, null, "a number", _is_number)
        return float(value) if isinstance(value, int) and not isinstance(value, bool) else value

    def flag(self, name: str, default: object = REQUIRED) -> bool:
        """A truth value."""
        value: bool = self._get(name, default, False, "true or false", lambda v: isinstance(v, bool))
        return value

    def text(self, name: str, default: object = REQUIRED) -> str:
        """A text."""
        value: str = self._get(name, default, False, "a text", lambda v: isinstance(v, str))
        return value

    def table(self, name: str) -> dict[str, Any]:
        """An object, empty where there is none."""
        value: dict[str, Any] = self._get(name, {}, False, "an object", lambda v: isinstance(v, dict))
        return value

    def by_layer(self, name: str) -> dict[int, dict[str, Any]]:
        """An object of objects by layer number, however many zeros the numbers begin with."""
        held = self.table(name)
        if not all(key.isdecimal() and isinstance(value, dict) for key, value in held.items()):
            raise CheckpointError(f"{self.where} sets {self.prefix}{name} to something else than objects by layer.")
        return {int(key): value for key, value in held.items()}

    def sequence(self, name: str) -> list[Any] | None:
        """A list, or None where there is none."""
        value: list[Any] | None = self._get(name, None, False, "a list", lambda v: isinstance(v, list))
        return value

    def share(self, whole: str, total: int, parts: str, count: int) -> int:
        """One of ``count`` equal parts of ``total``.

        Raises:
            CheckpointError: there are none, or they are not equal.
        """
        if count < 1 or total < 1 or total % count:
            raise CheckpointError(
                f"{self.where} sets {self.prefix}{whole} to {total} and {self.prefix}{parts} to {count}; "
                "the first must be a multiple of the second."
            )
        return total // count

    def inside(self, values: Mapping[str, Any], name: str) -> Attributes:
        """The same checks for an object held inside this one."""
        inner = Attributes(values, f"{self.where}, {name}", path=self.dotted(name))
        self._inner.append(inner)
        return inner

    def only(self, name: str, *accepted: object, why: str = "", wrong: bool = False) -> None:
        """Refuses every value but the accepted ones, as `unsupported` says it; absent and null pass."""
        self.asked.add(self.prefix + name)
        value = self.values.get(self.prefix + name)
        if value is not None and value not in accepted:
            raise self.unsupported(name, value, why, wrong=wrong)

    def unsupported(self, name: str, value: object, why: str = "", *, wrong: bool = False) -> UnsupportedError:
        """The refusal of a setting, with the option that reads the config without it.

        Args:
            why: what stands in the way, where it is more than that no design has a place for it.
            wrong: the model would certainly answer wrongly without the setting, so no option is named.
        """
        why = why or "which Glassformer cannot express; it refuses rather than give wrong answers."
        despite = f" To open it as if that were not there: --ignore-key {self.dotted(name)}"
        return UnsupportedError(
            f"{self.where} sets {self.prefix}{name} to {value!r}, {why}{'' if self.prefix or wrong else despite}"
        )

    def _get(self, name: str, default: Any, null: bool, kind: str, fits: Any) -> Any:
        full = self.prefix + name
        self.asked.add(full)
        if null and full in self.values and self.values[full] is None:
            return None
        value = self.values.get(full)
        if value is None:
            if default is REQUIRED:
                raise CheckpointError(f"{self.where} lacks {full!r}; the file is incomplete or not a model's config.")
            return default
        if not fits(value):
            raise CheckpointError(f"{self.where} sets {full} to {value!r}; it must be {kind}.")
        return value


def _is_integer(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) < _TOO_LARGE


def _is_depth(value: Any) -> bool:
    return _is_integer(value) and 1 <= value <= _MOST_LAYERS


def _is_number(value: object) -> bool:
    return _is_integer(value) or (isinstance(value, float) and math.isfinite(value))
