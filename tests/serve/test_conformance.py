"""Whatever is drawn from what a schema's grammar allows follows the schema; the benchmark does so with a model too."""

from __future__ import annotations

import importlib.util
import json
import random
import sys
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint, Grammars
from tests.serve.test_calls_held import Bytes, drawn

SCHEMAS = Path(__file__).parents[2] / "benchmarks" / "schemas.py"


def _schemas() -> Any:
    spec = importlib.util.spec_from_file_location("benchmark_schemas", SCHEMAS)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


SCHEMA = _schemas()


def test_what_is_drawn_follows_its_schema():
    tokenizer, generator = Bytes(()), random.Random(1)
    grammars = Grammars(tokenizer, 257)  # type: ignore[arg-type]
    maker, held, ended = SCHEMA.Maker(2), 0, 0
    for _ in range(60):
        schema = maker.schema()
        try:
            constraint = Constraint.schema(schema)
            grammars.matcher(constraint)
        except UsageError:
            continue
        held += 1
        for _ in range(2):
            ids = drawn(tokenizer, grammars.matcher(constraint), generator, 400)
            if ids is not None:
                ended += 1
                jsonschema.validate(json.loads(tokenizer.decode(ids)), schema)
    assert held >= 45
    assert ended >= 60


@pytest.mark.parametrize("keyword", sorted(SCHEMA.REFUSED))
def test_what_cannot_be_held_to_is_refused_by_its_name(keyword):
    with pytest.raises(UsageError, match=keyword):
        Grammars(Bytes(()), 257).matcher(Constraint.schema(SCHEMA.REFUSED[keyword]))  # type: ignore[arg-type]
