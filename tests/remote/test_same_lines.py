"""The same lines against a model in this process and against one on a server give the same objects and values."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import glassformer as gf
from glassformer.errors import (
    ContextLengthError,
    GlassformerError,
    ShapeError,
    SiteError,
    TextError,
    UnsupportedError,
    UsageError,
)
from glassformer.generate.constraints import Constraint
from glassformer.interp.edge_graph import Graph
from glassformer.interp.edge_pair import Pair
from glassformer.interp.elsewhere import Elsewhere
from glassformer.interp.trace import Trace
from glassformer.lm import Model
from glassformer.remote import RemoteModel
from tests.serve.running import TEXT, Running, running, tiny_model, with_experts

CLEAN, CORRUPTED = "The mole is", "A mole is"
PAIRS = [(CLEAN, CORRUPTED)]
FRENCH, ENGLISH = ["Le chat dort", "Il fait beau"], ["The cat sleeps", "It is fine"]
LONG = "The mole digs for worms in the garden and the shrew mole sleeps under it. " * 8
QUICK: dict[str, Any] = {"metric": "kl", "exact": "none"}
NOT_END: dict[str, Any] = {"max_tokens": 5, "temperature": 0, "logit_bias": {0: -100}}


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return tiny_model(tmp_path_factory.mktemp("lines"))


@pytest.fixture(scope="module")
def server(model: Model) -> Iterator[Running]:
    with running(model) as made:
        yield made


@pytest.fixture(scope="module")
def remote(server: Running) -> RemoteModel:
    return gf.connect(server.url)


@pytest.fixture(scope="module")
def sparse(model: Model) -> Iterator[tuple[Model, RemoteModel]]:
    there = with_experts(model)
    with running(there) as made:
        yield there, gf.connect(made.url)


def _seen(model: Any) -> list[tuple[Any, ...]]:
    """What a verb tells of its progress: each stage and how much there is of it."""
    told: list[tuple[Any, ...]] = []
    model.heads(length=8, shuffles=1, progress=lambda done, total, what: told.append((total, what)))
    return sorted(set(told))


# Of a model. Each line is run twice.
OF_MODEL: dict[str, Callable[[Any], Any]] = {
    "encode": lambda m: (m.encode(TEXT), m.encode(TEXT, bos=True)),
    "decode": lambda m: m.decode(m.encode(TEXT)),
    "ids": lambda m: m.ids(TEXT),
    "config": lambda m: m.config,
    "precision": lambda m: m.precision,
    "bytes": lambda m: m.bytes,
    "adapters": lambda m: m.adapters,
    "generation": lambda m: m.generation.sampling,
    "tokenizer": lambda m: (m.tokenizer.vocab_size, m.tokenizer.render_chat([{"role": "user", "content": "Hello"}])),
    "next": lambda m: (m.next(TEXT).top(5), m.next(TEXT).entropy, m.next(TEXT).probability("a"), m.next(TEXT).text),
    "next, warmer": lambda m: m.next(TEXT).temperature(2.0).top(3),
    "next, words": lambda m: [m.next(TEXT).words(3, max_expansions=8).to_json(), m.next(TEXT).temperature(2).words(2)],
    "logits": lambda m: m.logits(TEXT),
    "neighbours": lambda m: m.neighbours("mole", k=3),
    "generate": lambda m: [*m.generate(TEXT, alternatives=3, **NOT_END)],
    "generate, stopped": lambda m: [*m.generate(TEXT, stop=[5, 7], seed=3, max_tokens=30)],
    "generate, held": lambda m: [*m.generate(TEXT, constraint=Constraint.choice(["a mole", "a shrew"]), seed=1)],
    "chat": lambda m: [*m.chat([{"role": "user", "content": "Hello"}], **NOT_END)],
    "heads": lambda m: m.heads(length=8, shuffles=1).to_dict(),
    "heads, of a text": lambda m: m.heads(TEXT, length=8, shuffles=1),
    "heads, progress": _seen,
    "meaning": lambda m: m.meaning("mole", ["a mole", "the mole"]),
    "patch": lambda m: m.patch(PAIRS, "attention"),
    "direction": lambda m: m.direction("french", FRENCH, ENGLISH, 1),
    "readout": lambda m: m.readout(LONG, "tuned", steps=2, window=16, tokens=64, rows=4),
    "circuit": lambda m: m.circuit(PAIRS, 0.5, **QUICK),
    "circuit, told": lambda m: m.circuit(PAIRS, 0.5, **QUICK).to_dict(5),
    "edited": lambda m: m.edited(gf.ablate(layer=[0, 1], head=[0, 2])).next(TEXT).top(3),
    "edited, parts": lambda m: m.edited(gf.ablate(layer=-1), gf.ablate(layer=0, neuron=[1, 2], positions=1)).logits(
        TEXT
    ),
    "edited, knockout": lambda m: m.edited(gf.knockout(keys=[1], queries=slice(2, 4), layer=1)).logits(TEXT),
    "edited, read": lambda m: m.edited(gf.ablate(layer=1, head=0, keys=[1], positions=[3])).logits(TEXT),
    "edited, steered": lambda m: m.edited(gf.steer(m.direction("french", FRENCH, ENGLISH, 1), strength=2)).logits(TEXT),
    "edited, circuit": lambda m: m.edited(gf.circuit(m.circuit(PAIRS, 0.5, **QUICK))).logits(CLEAN),
    "moved": lambda m: m.edited(gf.ablate(layer=0)).moved(TEXT),
    "trace": lambda m: (m.trace(TEXT).ids, m.trace(TEXT).tokens, len(m.trace(TEXT)), m.trace([TEXT, CLEAN]).batched),
}
# Of a trace.
OF_TRACE: dict[str, Callable[[Any], Any]] = {
    "site": lambda t: (t["blocks.1.resid_post"], t["hook_embed"]),
    "at": lambda t: [t.at("blocks.1.resid_post", p) for p in (-1, slice(1, 3), [0, 2], [])],
    "tensor": lambda t: t.tensor("blocks.0.attn.z"),
    "mean": lambda t: t.mean("blocks.0.mlp.out"),
    "cost": lambda t: t.cost("blocks.0.attn.pattern").bytes,
    "pattern": lambda t: (t.pattern(0), t.pattern(1, 2), t.pattern(1, 0, -1), t.pattern(0, 1, slice(1, 3), slice(2))),
    "scores": lambda t: t.scores(1, 0),
    "head_outputs": lambda t: t.head_outputs(0, 1, slice(1, 3)),
    "contributions": lambda t: t.contributions(1, 0),
    "weighted": lambda t: t.weighted(0, 1),
    "cell": lambda t: t.cell(1, 0, 3, 1),
    "reasons": lambda t: (t.reasons(1, 0, 3), t.reasons(1, 0, 3).to_dict(), t.reasons(1, 0, 3).sentence()),
    "logits": lambda t: (t.logits(), t.logits([0, 1])),
    "top": lambda t: t.top(k=3),
    "lens": lambda t: (t.lens(2), t.lens(1, positions=slice(1, 3), follow=5).to_dict()),
    "lens_edit": lambda t: (t.lens_edit(1, 5), t.lens_edit(1, 5, 7).to_dict()),
    "why": lambda t: (t.why(5, words=2), t.why(5, words=0).to_dict(), t.why(words=0).ranked_parts("head")[:3]),
    "graph": lambda t: (t.graph(most=8), t.graph(most=8, measure=False).to_dict()),
    "neurons": lambda t: t.neurons(k=4),
    "heads": lambda t: t.heads(length=8, shuffles=1),
    "gradient": lambda t: t.gradient("blocks.1.resid_post"),
    "gradients": lambda t: t.gradients(["embed", "blocks.0.mlp.out"], 5, against=7),
    "words": lambda t: (t.words, t.by_word(torch.arange(len(t)).float())),
    "token_id": lambda t: (t.token_id("a"), t.token_text(5), t.head(-1, 0), t.position(-1), t.attention_head(0, 1)),
    "layer": lambda t: t.layer(-1),
    "grown": lambda t: t.grown([*t.ids, 5]).logits(),
    "row": lambda t: t.row(0).ids,
    "length": lambda t: (t.length, t.precision, t.batched, t.model),
}  # fmt: skip


def same(here: Any, there: Any, at: str = "") -> None:
    """Equal values of equal types; numbers within float32's rounding."""
    if isinstance(here, Trace):
        assert isinstance(there, Trace)
        assert here.ids == there.ids
        return
    if isinstance(there, Elsewhere):  # only what computes beside the weights
        assert callable(here) or hasattr(here, "scaled") or here is None, at
        return
    if isinstance(here, Tensor):
        assert here.dtype == there.dtype, at
        assert here.shape == there.shape, at
        assert torch.allclose(here, there, rtol=1e-3, atol=1e-5, equal_nan=True), at
        return
    assert type(here) is type(there), (at, type(here), type(there))
    if isinstance(here, float):
        assert here == pytest.approx(there, rel=1e-3, abs=1e-5, nan_ok=True), at
    elif isinstance(here, dict):
        assert list(here) == list(there), at
        for key, value in here.items():
            same(value, there[key], f"{at}.{key}")
    elif isinstance(here, Pair):
        for name in ("clean", "corrupted", "first", "at", "answer", "wrong", "unit", "span"):
            same(getattr(here, name), getattr(there, name), f"{at}.{name}")
    elif isinstance(here, Graph):
        assert here.senders == there.senders
    elif dataclasses.is_dataclass(here):
        for field in dataclasses.fields(here):
            same(getattr(here, field.name), getattr(there, field.name), f"{at}.{field.name}")
    elif not isinstance(here, str) and hasattr(here, "__len__") and hasattr(here, "__getitem__"):
        assert len(here) == len(there), at
        for number, (one, other) in enumerate(zip(here, there, strict=True)):
            same(one, other, f"{at}[{number}]")
    else:
        assert here == there, at


@pytest.mark.parametrize("line", OF_MODEL)
def test_a_model_s_lines(line, model, remote):
    same(OF_MODEL[line](model), OF_MODEL[line](remote))


@pytest.mark.parametrize("line", OF_TRACE)
def test_a_trace_s_lines(line, model, remote):
    same(OF_TRACE[line](model.trace(TEXT)), OF_TRACE[line](remote.trace(TEXT)))


@pytest.mark.parametrize("line", ["pattern", "logits", "why", "lens", "site"])
def test_a_trace_s_lines_under_edits(line, model, remote):
    off = gf.ablate(layer=0, head=1)
    here, there = (OF_TRACE[line](m.edited(off).trace(TEXT)) for m in (model, remote))
    same(here, there)
    with pytest.raises(AssertionError):
        same(OF_TRACE[line](model.trace(TEXT)), there)


def test_a_trace_of_several(model, remote):
    for trace in (here := model.trace([TEXT, CLEAN])), (there := remote.trace([TEXT, CLEAN])):
        assert trace.batched
    same(here["blocks.1.resid_post"], there["blocks.1.resid_post"])
    same(here.row(1).logits(), there.row(1).logits())
    assert here.tokens == there.tokens
    for trace in (here, there):
        with pytest.raises(ShapeError, match="there is no 2"):
            trace.row(2)
        with pytest.raises(UsageError, match="holds 2 texts"):
            trace.why()


def test_edges_of_two_traces(model, remote):
    here, there = (m.trace(CLEAN).edges("kl", corrupted=m.trace(CORRUPTED), exact="none") for m in (model, remote))
    same(here, there)
    same(here.to_dict(5), there.to_dict(5))
    assert here.adds_up == pytest.approx(there.adds_up, rel=1e-3)


def test_experts(sparse):
    here, there = sparse
    same(here.trace(TEXT).experts(0), there.trace(TEXT).experts(0))
    off = gf.ablate(layer=0, expert=[0, 1])
    same(here.edited(off).logits(TEXT), there.edited(off).logits(TEXT))


def test_what_was_saved_is_of_the_same_model_there(model, remote, sparse, tmp_path: Path):
    model.direction("french", FRENCH, ENGLISH, 1).save(tmp_path / "french")
    remote.direction("french", FRENCH, ENGLISH, 1).save(tmp_path / "again")
    for name in ("french", "again"):
        same(model.load_direction(tmp_path / name), remote.load_direction(tmp_path / name))
    gf.circuit(remote.circuit(PAIRS, 0.5, **QUICK)).save(tmp_path / "circuit.json")
    here, there = (m.edited(m.load_circuit(tmp_path / "circuit.json")).logits(CLEAN) for m in (model, remote))
    same(here, there)
    options = {"steps": 1, "window": 16, "tokens": 64, "rows": 4}
    remote.readout(LONG, **options).save(tmp_path / "lens.safetensors")
    same(model.load_readout(tmp_path / "lens.safetensors"), remote.load_readout(tmp_path / "lens.safetensors"))
    with pytest.raises(GlassformerError, match="other weights"):
        sparse[1].load_direction(tmp_path / "french")


WRONG: dict[str, tuple[Callable[[Any], Any], type[GlassformerError]]] = {
    "no text": (lambda m: m.next(""), TextError),
    "no list": (lambda m: m.trace([]), TextError),
    "too long": (lambda m: m.next([5] * 3000), ContextLengthError),
    "no layer": (lambda m: m.trace(TEXT).pattern(99), SiteError),
    "no site": (lambda m: m.trace(TEXT)["blocks.0.attn.patern"], SiteError),
    "no position": (lambda m: m.trace(TEXT).at("embed", 99), ShapeError),
    "no token": (lambda m: m.trace(TEXT).why("two words"), TextError),
    "no head to ablate": (lambda m: m.edited(gf.ablate(layer=0, head=99)), SiteError),
    "no gradient": (lambda m: m.trace(TEXT).gradients([]), UsageError),
    "no channels": (lambda m: m.trace(TEXT).channel_pattern(0, 0), UnsupportedError),
    "no edits": (lambda m: m.moved(), UsageError),
    "no setting": (lambda m: [*m.generate(TEXT, temperature=-1)], UsageError),
    "no answer": (lambda m: [*m.generate(TEXT, max_tokens=0)], UsageError),
    "no room": (lambda m: [*m.generate([5] * 3000)], ContextLengthError),
    "edges under edits": (lambda m: m.edited(gf.ablate(layer=0)).circuit(PAIRS), UsageError),
}


@pytest.mark.parametrize("line", WRONG)
def test_what_goes_wrong_is_the_same_error(line, model, remote):
    run, kind = WRONG[line]
    said = []
    for each in (model, remote):
        with pytest.raises(GlassformerError) as error:
            run(each)
        assert type(error.value) is kind
        said.append(str(error.value))
    if line != "no room":  # the server's own limit is said there
        assert said[0] == said[1]


NOT_HERE: dict[str, Callable[[Any], Any]] = {
    "adapted": lambda m: m.adapted(),
    "with_adapter": lambda m: m.with_adapter("folder"),
    "view": lambda m: m.view(TEXT),
    "bound_tap": lambda m: m.bound_tap(),
    "engines": lambda m: m.engines,
    "reader": lambda m: m.reader(8),
    "scorer": lambda m: m.scorer(8),
    "source": lambda m: m.source,
    "metadata": lambda m: m.metadata,
    "transformer": lambda m: m.transformer.embed,
    "trace.view": lambda m: m.trace(TEXT).view(),
    "trace.attention": lambda m: m.trace(TEXT).attention(),
    "trace.save": lambda m: m.trace(TEXT).save("folder"),
    "trace.forward": lambda m: m.trace(TEXT).forward.recorded,
    "trace.transformer": lambda m: m.trace(TEXT).transformer.blocks,
    "precision": lambda m: m.generate(TEXT, precision="fast"),
    "a function": lambda m: m.edited(gf.tap("embed", lambda x, where: x)),
    "another run": lambda m: m.edited(gf.ablate(layer=0, method="mean", reference=torch.zeros(1, 1, 16))),
    "a lens": lambda m: m.trace(TEXT).lens(through=object()),
    "a graph's node": lambda m: m.trace(TEXT).graph(most=4, measure=False).turned([0], 0.0),
}


@pytest.mark.parametrize("line", NOT_HERE)
def test_what_stays_in_one_process_says_so_in_a_sentence(line, remote):
    with pytest.raises(UsageError, match=r"^[^\n]+\.$"):
        NOT_HERE[line](remote)


INSIDE = {"taps", "name", "load_circuit", "load_direction", "load_readout"}  # tested above
# Tested above by others' lines, and what makes a trace of a forward.
OF_ONE_TRACE = {"config", "channel_pattern", "edges", "experts", "of_forward", "load", "tokens", "by_word"}
OF_ONE_TRACE |= {"attention_head", "head", "position", "token_text"}


def test_only_names_that_a_model_has_are_spoken_of(remote):
    assert remote.ignored == ()
    assert not hasattr(remote, "engine")


def test_every_public_name_is_tried_or_refused():
    lines = {line.partition(",")[0] for line in OF_MODEL}
    refused = {line.partition(".")[2] or line for line in NOT_HERE}
    public = {name for name, _ in inspect.getmembers(Model) if not name.startswith("_")}
    assert public <= lines | refused | INSIDE, public - lines - refused - INSIDE
    public = {name for name, _ in inspect.getmembers(Trace) if not name.startswith("_")}
    assert public <= OF_TRACE.keys() | refused | OF_ONE_TRACE, public - OF_TRACE.keys() - refused - OF_ONE_TRACE
    for method in (
        "next",
        "logits",
        "neighbours",
        "trace",
        "heads",
        "meaning",
        "patch",
        "direction",
        "circuit",
        "moved",
    ):
        here, there = (inspect.signature(getattr(kind, method)).parameters for kind in (Model, RemoteModel))
        assert {name: p.default for name, p in here.items()} == {name: p.default for name, p in there.items()}, method
