"""A design as plain data: whatever stands there is read, or refused in one sentence."""

from __future__ import annotations

import contextlib
import copy
from collections.abc import Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from glassformer.errors import ConfigError
from glassformer.model.config import Config
from tests.strategies import stacks


def places(data: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """The path of everything inside some plain data."""
    for key, value in data.items() if isinstance(data, dict) else enumerate(data) if isinstance(data, list) else ():
        yield (*path, key)
        yield from places(value, (*path, key))


@given(stacks(), st.data())
@settings(max_examples=60)
def test_anything_anywhere_is_read_or_refused_in_a_sentence(config: Config, data: st.DataObject) -> None:
    plain = config.to_dict()
    assert Config.from_dict(copy.deepcopy(plain)) == config
    for _ in range(20):
        *above, last = data.draw(st.sampled_from(list(places(plain))))
        spoilt: Any = copy.deepcopy(plain)
        at = spoilt
        for key in above:
            at = at[key]
        at[last] = data.draw(st.sampled_from([3.0, "x", [], {}, None, -1, True, [1, "a"], {"kind": "x"}]))
        with contextlib.suppress(ConfigError):
            Config.from_dict(spoilt)
