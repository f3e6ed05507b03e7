"""What every choice shares: shapes, components, and the check that a number is a count."""

from __future__ import annotations

from dataclasses import dataclass

from glassformer.errors import ConfigError

Shape = tuple[int, ...]


@dataclass(frozen=True)
class Component:
    """One parameter of a part.

    Args:
        shape: matrices are (out, in).
        counted: the line of the tally it belongs to, such as "query", "up" or "norms".
        share: the part of it that one token is multiplied with; below 1 for experts that are not chosen.
    """

    shape: Shape
    counted: str
    share: float = 1.0


def above_zero(what: str, **values: float | None) -> None:
    """Raise ConfigError unless every value is above 0, or None."""
    for name, value in values.items():
        if value is not None and not value > 0:
            raise ConfigError(f"{what}.{name} must be above 0; got {value}.")


def positive(what: str, **values: int) -> None:
    """Raise ConfigError unless every value is a whole number of at least 1."""
    for name, value in values.items():
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            raise ConfigError(f"{what}.{name} must be a whole number of at least 1; got {value!r}.")
