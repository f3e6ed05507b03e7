"""Constrained answers: several hundred schemas of our own making, every one followed; on every runner, with drafts."""

from __future__ import annotations

import datetime
import json
import random
import re
from pathlib import Path
from typing import Any

import jsonschema
import pytest
import torch

import glassformer
from glassformer.errors import UsageError
from glassformer.generate.constraints import Constraint, Grammars
from glassformer.generate.drafting import NgramLookup
from glassformer.generate.engine import Engine
from glassformer.generate.request import Request
from glassformer.generate.settings import Sampling
from tests.tiny import tiny_directory

PERSON = {
    "type": "object",
    "properties": {"name": {"type": "string", "maxLength": 6}, "old": {"type": "boolean"}},
    "required": ["name", "old"],
    "additionalProperties": False,
}


@pytest.fixture(scope="module")
def directory(tmp_path_factory: pytest.TempPathFactory) -> Path:
    where = tiny_directory(tmp_path_factory.mktemp("constraints") / "tiny")
    config = json.loads((where / "config.json").read_text())
    (where / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 1024}))
    return where


@pytest.fixture(scope="module")
def model(directory: Path) -> glassformer.Model:
    return glassformer.load(directory)


@pytest.fixture(scope="module", params=["torch", "float32", "bfloat16", "int8", "int4"])
def engine(request, model):
    native = request.param != "torch"
    precision = request.param if native else "exact"
    with Engine(model.transformer, model.tokenizer, precision=precision, slots=8, use_native=native) as made:
        assert made.wait(120)
        yield made


def ask(constraint: Constraint, seed: int | None = 0, most: int = 900, **options: Any) -> Request:
    sampling = Sampling(temperature=0.0 if seed is None else 1.0, seed=seed)
    return Request((5, 9, 3), most, sampling, constraint=constraint, **options)


def whole(events: Any) -> tuple[str, str]:
    """An answer's text and how it ended."""
    listed = list(events)
    return "".join(event.text for event in listed), listed[-1].finish


def schema(chance: random.Random, depth: int = 0) -> dict[str, Any]:
    """A schema whose every answer is short."""
    kinds = ["integer", "number", "boolean", "null", "string", "enum", "const", "format", "pattern"]
    kind = chance.choice(kinds if depth > 1 else [*kinds, "object", "object", "array", "anyOf", "ref", "nullable"])
    low = chance.randint(-20, 20)
    if kind in ("integer", "number"):
        return {"type": kind, "minimum": low, "maximum": low + chance.randint(0, 50)} | (
            {"multipleOf": 5, "minimum": -50, "maximum": 50} if chance.random() < 0.2 and kind == "integer" else {}
        )
    if kind in ("boolean", "null"):
        return {"type": kind}
    if kind == "string":
        return {"type": "string", "minLength": (least := chance.randint(0, 3)), "maxLength": least + 3}
    if kind == "enum":
        return {"enum": chance.sample(["red", "grün", 1, 2.5, None, True, 'a "b"', "\\", ["x"], {"k": 1}], 3)}
    if kind == "const":
        return {"const": chance.choice(["only", 7, [1, 2], {"a": None}])}
    if kind == "format":
        return {"type": "string", "format": chance.choice(["date", "time", "date-time", "ipv4", "uuid"])}
    if kind == "pattern":
        return {"type": "string", "pattern": chance.choice([r"^[A-Z]{2}\d{2}$", r"^(yes|no)$", r"^\w{1,4}$"])}
    if kind == "array":
        least = chance.randint(0, 2)
        return {"type": "array", "items": schema(chance, depth + 1), "minItems": least, "maxItems": least + 2}
    if kind == "anyOf":
        return {"anyOf": [schema(chance, depth + 1) for _ in range(chance.randint(2, 3))]}
    if kind == "nullable":
        return {"type": ["boolean", "null"]}
    if kind == "ref":
        return {
            "$defs": {"node": schema(chance, 2)},
            "type": "object",
            "properties": {"here": {"$ref": "#/$defs/node"}, "there": {"$ref": "#/$defs/node"}},
            "required": ["here"],
            "additionalProperties": False,
        } if depth == 0 else {"type": "boolean"}  # fmt: skip
    names = chance.sample(["a", "b c", "ü", '"', "long_name", "x-y"], chance.randint(1, 4))
    return {
        "type": "object",
        "properties": {name: schema(chance, depth + 1) for name in names},
        "required": chance.sample(names, chance.randint(0, len(names))),
        "additionalProperties": False,
    }


FORMATS = jsonschema.FormatChecker(["ipv4", "uuid"])
_TIME = r"([01]\d|2[0-3]):[0-5]\d:([0-5]\d|60)(\.\d+)?([Zz]|[+-]([01]\d|2[0-3]):[0-5]\d)"


@FORMATS.checks("time")
def is_time(text: Any) -> bool:
    """RFC 3339's, where a letter may be small and a minute may have a leap second."""
    return not isinstance(text, str) or re.fullmatch(_TIME, text) is not None


@FORMATS.checks("date", raises=ValueError)
def is_date(text: Any) -> bool:
    return not isinstance(text, str) or (len(text) == 10 and bool(datetime.date.fromisoformat(text)))


@FORMATS.checks("date-time", raises=ValueError)
def is_date_time(text: Any) -> bool:
    return not isinstance(text, str) or (is_date(text[:10]) and text[10] in "Tt" and is_time(text[11:]))


@pytest.mark.slow
def test_three_hundred_schemas_and_no_invalid_answer(model):
    """By jsonschema, which shares nothing with what made the answers; a model of random weights is as wild as any."""
    chance = random.Random(11)
    schemas = [schema(chance) for _ in range(300)]
    ended = 0
    with Engine(model.transformer, model.tokenizer, slots=8) as engine:
        handles = [engine.submit(ask(Constraint.schema(one), seed)) for seed, one in enumerate(schemas)]
        for one, handle in zip(schemas, handles, strict=True):
            text, finish = whole(handle)
            if finish == "stop":
                ended += 1
                jsonschema.validate(json.loads(text), one, format_checker=FORMATS)
    assert ended >= 295  # the few others fill the context with a number's digits


def test_every_kind_of_constraint_on_every_runner_greedy_and_drawn(engine):
    for seed in (None, 1, 2):
        assert whole(engine.generate(ask(Constraint.choice(["yes", "no", 'may"be\\']), seed)))[0] in (
            "yes", "no", 'may"be\\',
        )  # fmt: skip
        text, finish = whole(engine.generate(ask(Constraint.regex(r"[A-Z][a-z]{1,5} \d{4}"), seed)))
        assert finish == "stop"
        assert re.fullmatch(r"[A-Z][a-z]{1,5} \d{4}", text)
        for grammar in ('root ::= ("red" | "green") [0-9]{3}', 'start: ("red" | "green") NUM\nNUM: /[0-9]{3}/'):
            assert re.fullmatch(r"(red|green)\d{3}", whole(engine.generate(ask(Constraint.grammar(grammar), seed)))[0])
        person = json.loads(whole(engine.generate(ask(Constraint.schema(PERSON), seed)))[0])
        jsonschema.validate(person, PERSON)


def test_a_batch_of_constrained_and_free_answers_is_as_each_alone(engine):
    asked = [ask(Constraint.schema(PERSON), seed, 60) for seed in range(5)]
    asked += [Request((5, 9, 3), 20, Sampling(seed=seed), stop_ids=frozenset()) for seed in range(5)]
    alone = [whole(engine.generate(one)) for one in asked]
    together = [whole(handle) for handle in [engine.submit(one) for one in asked]]
    if engine.precision == "bfloat16":  # many rows are rounded more than few (decision 0010): a draw may differ
        for text, finish in together[:5]:
            assert finish == "length" or jsonschema.validate(json.loads(text), PERSON) is None
    else:
        assert together == alone


def test_drafts_change_nothing_of_a_constrained_answer(engine):
    class Wild:
        def draft(self, ids, most, sampling, generator):
            return torch.randint(320, (most,)).tolist()

    for seed in (None, 3, 4):
        plain = whole(engine.generate(ask(Constraint.schema(PERSON), seed, 80)))
        for drafter in (NgramLookup(2, 1), Wild()):
            assert whole(engine.generate(ask(Constraint.schema(PERSON), seed, 80, drafter=drafter))) == plain


def test_each_token_says_what_the_constraint_took_and_what_the_model_would_have_said(engine, model):
    constraint = Constraint.choice(["yes", "no"])
    first = next(iter(engine.generate(ask(constraint, None, logprobs=3))))
    allowed = Grammars(model.tokenizer, model.config.vocab_size).matcher(constraint).allowed()
    free = next(iter(engine.generate(Request((5, 9, 3), 1, logprobs=320, stop_ids=frozenset()))))
    kept = sum(torch.tensor([one.logprob for one in free.top if allowed[one.id]]).double().exp().tolist())
    assert first.removed == pytest.approx(1 - kept, abs=1e-5)
    assert first.unconstrained is not None
    assert (first.unconstrained.id, first.unconstrained.logprob) == (free.id, pytest.approx(free.logprob.logprob))
    assert {model.tokenizer.token_bytes(i)[:1] for i in allowed.nonzero()[:, 0].tolist()} == {b"y", b"n"}
    assert free.removed is None


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Constraint.schema("{"), "The JSON schema is not JSON (Expecting property name"),
        (lambda: Constraint.schema(False), "The JSON schema is false, which no answer can follow."),
        (lambda: Constraint.schema("3"), "A JSON schema is an object or true; this one is int."),
        (lambda: Constraint.choice([]), "A choice is between at least one text, and none of them is empty."),
        (lambda: Constraint.choice(["a", ""]), "A choice is between at least one text, and none of them is empty."),
        (lambda: Constraint.regex(""), "The regular expression is empty; give one, or leave it out."),
        (lambda: Constraint.grammar("a" * 1_000_001), "The grammar has 1,000,001 characters; at most 1,000,000"),
        (lambda: Constraint.schema({"type": "strin"}), "this JSON schema: Invalid type: strin."),
        (lambda: Constraint.schema({"not": {}}), 'this JSON schema: Unimplemented keys: ["not"].'),
        (lambda: Constraint.schema({"type": "array", "uniqueItems": True}), 'Unimplemented keys: ["uniqueItems"].'),
        (lambda: Constraint.schema({"$ref": "#/nope"}), "Pointer '/nope' does not exist."),
        (lambda: Constraint.schema({"enum": []}), "Unsatisfiable schema: anyOf is empty."),
        (lambda: Constraint.regex("[a-z"), "this regular expression: "),
        (lambda: Constraint.regex(r"(?=a)b"), "look-around"),
        (lambda: Constraint.grammar('start: "a" b'), 'this grammar: at 1(8): unknown name: "b"'),
        (lambda: Constraint.grammar('start: start "a"'), "this grammar: "),
        (lambda: Constraint.grammar('root ::= "a'), "this grammar: "),
    ],
)
def test_what_cannot_be_honoured_is_refused_by_name(model, make, message):
    grammars = Grammars(model.tokenizer, model.config.vocab_size)
    with pytest.raises(UsageError) as caught:
        grammars.matcher(make())
    assert message in str(caught.value)


def test_a_refused_constraint_is_refused_before_anything_is_computed(engine):
    with pytest.raises(UsageError, match="An answer cannot be held to this JSON schema: Unimplemented keys"):
        engine.submit(ask(Constraint.schema({"not": {}})))
    with pytest.raises(UsageError, match="A constraint needs a tokenizer"):
        Engine(engine.transformer, use_native=False).submit(ask(Constraint.json()))


def test_max_tokens_cuts_and_says_so(engine):
    text, finish = whole(engine.generate(ask(Constraint.schema(PERSON), 1, 3)))
    assert finish == "length"
    with pytest.raises(ValueError):
        json.loads(text)


def test_in_python_and_without_the_package(model, monkeypatch):
    tokens = list(model.generate("The mole", constraint=Constraint.choice(["yes"]), temperature=0, alternatives=2))
    assert "".join(token.text for token in tokens) == "yes"
    assert all(token.removed is not None and token.unconstrained is not None for token in tokens)
    assert {"removed", "unconstrained"} <= set(tokens[0].to_dict())
    monkeypatch.setitem(__import__("sys").modules, "llguidance", None)
    with pytest.raises(UsageError, match="needs the package llguidance; install it with: pip install 'glassformer"):
        Grammars(model.tokenizer, model.config.vocab_size)
