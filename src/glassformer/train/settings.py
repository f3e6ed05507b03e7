"""Settings of a recipe: read from text, and refused where they cannot be meant.

It says by a setting's name what its value may be; the settings themselves are declared in `recipe.py`.
"""

from __future__ import annotations

import dataclasses
import json
import math
from collections.abc import Collection
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError, near
from glassformer.train import designs

if TYPE_CHECKING:
    from glassformer.train.recipe import Recipe


@dataclass(frozen=True)
class Setting:
    """What is known of one setting of a recipe.

    Attributes:
        help: one sentence for people.
        choices: its values, of a text.
        least, most, above, below: the range of a number; None where it has no such end.
    """

    help: str
    choices: Collection[str] = ()
    least: float | None = None
    most: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def range(self) -> str:
        """What it may be, in words; empty where its type says all."""
        if self.choices:
            return f"one of {', '.join(self.choices)}"
        ends = {"at least": self.least, "above": self.above, "at most": self.most, "below": self.below}
        return " and ".join(f"{words} {end}" for words, end in ends.items() if end is not None)

    def check(self, name: str, value: Any) -> None:
        """Refuse a value that is none of these.

        Raises:
            UsageError: by the setting's name.
        """
        if self.choices:
            if value not in self.choices:
                raise UsageError(f"{name} is {self.range}; got {value!r}." + near(value, self.choices))
            return
        low = (self.least is not None and value < self.least) or (self.above is not None and value <= self.above)
        high = (self.most is not None and value > self.most) or (self.below is not None and value >= self.below)
        if not low and not high:
            return
        if (self.least, self.most) == (0, 1):
            raise UsageError(f"{name} is a share between 0 and 1; got {value}.")
        if self.most is not None:  # the other end is far away
            raise UsageError(
                f"{name} must be {f'at least {self.least}' if low else f'at most {self.most}'}; got {value}."
            )
        raise UsageError(f"{name} must be {self.range}; got {value}.")


def setting(default: Any, help: str, **known: Any) -> Any:
    """A field of a recipe's section: its default, what it is, and the rest of `Setting`."""
    return field(default=default, metadata={"setting": Setting(help, **known)})


def pair(text: str) -> tuple[str, str]:
    """Key and value of "key=value".

    Raises:
        UsageError: it is not written so.
    """
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise UsageError(f"A setting is written key=value, as in steps=200; got {text!r}.")
    return key.strip(), value.strip()


def coerce(kind: object, value: object, key: str) -> Any:
    """`value` as the setting's type; text (from the command line) is read, anything else must already fit."""
    if kind is bool:
        if isinstance(value, str) and value.lower() in ("true", "false", "yes", "no", "on", "off"):
            return value.lower() in ("true", "yes", "on")
        if isinstance(value, bool):
            return value
        raise UsageError(f"{key} is true or false; got {value!r}.")
    if kind in (int, float):
        try:
            if isinstance(value, bool):
                raise ValueError
            text = str(value).replace("_", "")
            if kind is int and text.lstrip("+-").isdecimal():
                return int(text)  # not by way of a float, which would round large ones
            number = float(text)
            if not math.isfinite(number) or (kind is int and number != int(number)):
                raise ValueError
            return int(number) if kind is int else number
        except ValueError:
            raise UsageError(f"{key} is a {'whole ' if kind is int else ''}number; got {value!r}.") from None
    if kind is str:
        if isinstance(value, str):
            return value
        raise UsageError(f"{key} is text; got {value!r}.")
    if isinstance(value, str) and "stages" not in key:
        return tuple(part for part in value.split(",") if part)
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except json.JSONDecodeError:
            raise UsageError(f"{key} is a list such as [[0.3, 64], [0.6, 128]]; got {value!r}.") from None
    if not isinstance(value, (list, tuple)):
        raise UsageError(f"{key} is a list; got {value!r}.")
    if "stages" not in key:
        return tuple(coerce(str, item, key) for item in value)
    stages = []
    for item in value:
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise UsageError(f"{key} is a list such as [[0.3, 64], [0.6, 128]]; got {value!r}.")
        stages.append((coerce(float, item[0], key), coerce(int, item[1], key)))
    return tuple(stages)


def check(r: Recipe) -> None:
    """Refuse values that cannot be meant, by name, before anything is built.

    Raises:
        UsageError: naming the setting, what it may be, and what it is.
    """
    for section in (r.model, r.data, r.optimizer, r.schedule, r.loop, r.adapter):
        for one in dataclasses.fields(section):
            one.metadata["setting"].check(one.name, getattr(section, one.name))
    if not r.model.head_dims and r.model.width % r.model.heads:
        raise UsageError(
            f"width {r.model.width} does not divide into {r.model.heads} heads; set head_dims or change one."
        )
    if r.model.design not in designs.SPARSE and (r.model.experts or r.model.active):
        raise UsageError(
            f"experts and active are for designs with experts ({', '.join(designs.SPARSE)}); design is "
            f"{r.model.design}."
        )
    if r.model.active and r.model.active > (r.model.experts or designs.EXPERTS):
        raise UsageError(f"active is {r.model.active} of {r.model.experts or designs.EXPERTS} experts; take fewer.")
    if idle := designs.idle(r.model.design, r.sizes(256)):
        raise UsageError(f"The design {r.model.design} has no place for {' and '.join(idle)}; leave them at 0.")
    if r.model.design in designs.SPARSE and r.loop.shard == "full" and r.optimizer.kind == "muon":
        raise UsageError("Sharded weights of experts are trained by AdamW: set kind=adamw, or shard=none.")
    if r.adapter.adapter == "none" and (r.adapter.base != "float" or r.adapter.targets):
        raise UsageError("base and targets are for an adapter that is trained alone; set adapter=lora or adapter=dora.")
    if r.adapter.adapter != "none":
        if not r.model.start:
            raise UsageError(f"adapter={r.adapter.adapter} needs start=SOURCE: the model that it is an adapter for.")
        if r.loop.shard == "full":
            raise UsageError("An adapter is small: every process holds it; set shard=none.")
        if r.loop.native == "on":
            raise UsageError("The native step trains whole models; set native=auto for an adapter.")
    if r.data.noise and r.data.chat:
        raise UsageError("noise is for plain text, not for conversations (chat=true).")
    if r.optimizer.dropout and r.loop.shard == "full":
        raise UsageError("dropout needs shard=none: sharded weights are trained without it.")
    if r.schedule.warmup > r.schedule.steps:
        raise UsageError(f"warmup of {r.schedule.warmup} steps is longer than the run of {r.schedule.steps}.")
    for key in ("batch_stages", "length_stages"):
        last = 0.0
        for share, value in getattr(r.schedule, key):
            if not last < share <= 1 or value < 1:
                raise UsageError(f"{key} needs rising shares up to 1 and values of at least 1.")
            if key == "length_stages" and value > r.model.context:
                raise UsageError(f"length_stages asks for {value} tokens a row; context is {r.model.context}.")
            last = share
    r.config(256)  # the design contradicts itself here or nowhere
