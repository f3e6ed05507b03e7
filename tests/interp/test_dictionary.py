"""Dictionaries of others in both layouts, laid over a layer of a prediction's graph; the tests write the files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from glassformer.errors import CheckpointError, UnsupportedError, UsageError
from glassformer.interp.dictionary import Dictionary, dictionaries
from glassformer.interp.edits import tap
from glassformer.interp.prediction_graph import prediction_graph
from glassformer.interp.trace import Trace
from glassformer.model import Transformer
from tests.interp.test_prediction_graph import IDS, graph, small

FEATURES, WIDTH = 20, 12


def weights(seed: int = 0, **more: Any) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(seed)
    shapes = {"W_enc": (FEATURES, WIDTH), "W_dec": (FEATURES, WIDTH), "b_enc": (FEATURES,), "b_dec": (WIDTH,)}
    return {name: torch.randn(shape, generator=g) for name, shape in shapes.items()} | more


def saelens(folder: Path, tensors: dict[str, torch.Tensor], **told: Any) -> Path:
    """As SAELens saves: the encoder from the stream to features."""
    folder.mkdir(exist_ok=True)
    turned = {name: x.T.contiguous() if name == "W_enc" else x for name, x in tensors.items()}
    save_file(turned, folder / "sae_weights.safetensors")
    told = {"architecture": "transcoder", "metadata": {"hook_name": "blocks.1.hook_mlp_in"}} | told
    told["metadata"] = {"hook_name_out": "blocks.1.hook_mlp_out"} | told["metadata"]
    (folder / "cfg.json").write_text(json.dumps(told), "utf-8")
    return folder


def circuit_tracer(folder: Path, tensors: dict[str, torch.Tensor], layer: int = 1) -> Path:
    folder.mkdir(exist_ok=True)
    save_file(tensors, folder / f"layer_{layer}.safetensors")
    hooks = 'model_kind: transcoder_set\nfeature_input_hook: "hook_resid_mid"\nfeature_output_hook: hook_mlp_out\n'
    (folder / "config.yaml").write_text(hooks, "utf-8")
    return folder


@pytest.mark.parametrize("kind", ["circuit-tracer", "transcoder", "skip", "jump", "sae", "topk"])
def test_features_base_and_error_are_what_the_part_adds(tmp_path: Path, kind: str) -> None:
    t = small()
    skip = 0.3 * torch.randn(WIDTH, WIDTH, generator=torch.Generator().manual_seed(9))
    threshold = torch.rand(FEATURES, generator=torch.Generator().manual_seed(8)) * 2
    given = weights(**{"skip": {"W_skip": skip}, "jump": {"threshold": threshold}}.get(kind, {}))
    auto = {"metadata": {"hook_name": "blocks.1.hook_mlp_out"}}
    path = {
        "circuit-tracer": lambda: circuit_tracer(tmp_path / "x", given),
        "transcoder": lambda: saelens(tmp_path / "x", given),
        "skip": lambda: saelens(tmp_path / "x", given, architecture="skip_transcoder"),
        "jump": lambda: saelens(tmp_path / "x", given, architecture="jumprelu_transcoder"),
        "sae": lambda: saelens(tmp_path / "x", given, architecture="standard", **auto),
        "topk": lambda: saelens(tmp_path / "x", given, architecture="topk", k=3, **auto),
    }[kind]()
    [laid] = dictionaries(path)
    run = Trace(t, IDS)
    added, w = run["blocks.1.mlp.out"], {name: x.double() for name, x in given.items()}
    read = added - w["b_dec"] if kind in ("sae", "topk") else run["blocks.1.resid_mid"]
    pre = read @ w["W_enc"].T + w["b_enc"]
    on = torch.where(pre > w.get("threshold", 0.0), pre, 0.0).clamp(min=0)
    if kind == "topk":
        on = torch.zeros_like(pre).scatter(1, pre.topk(3).indices, pre.topk(3).values).clamp(min=0)
    said = on @ w["W_dec"] + w["b_dec"]
    said = said + read @ w["W_skip"].T if kind == "skip" else said
    found = prediction_graph(run, 3, 7, coverage=1.0, most=10_000, measure=kind in ("skip", "sae"), lay=[laid])
    by_name = {node["name"]: node for node in found.nodes}
    assert not any(name.startswith("m1.n") for name in by_name)
    last = len(IDS) - 1
    for index in range(FEATURES):
        effect = by_name.get(f"m1.f{index}@{last}", {"effect": 0.0})["effect"]
        assert (effect != 0) == bool(on[-1, index] != 0)
    error = by_name[f"m1.error@{last}"]
    torch.testing.assert_close(error["node"].vector, (added - said)[-1])
    strong = int(on[-1].argmax())
    feature = by_name[f"m1.f{strong}@{last}"]
    torch.testing.assert_close(feature["node"].vector, on[-1, strong] * w["W_dec"][strong])
    # the sums hold with the dictionary laid over: all nodes make the score, each node is what it was given
    assert found.value == pytest.approx(graph(t, most=1, measure=False).value, abs=1e-9)
    assert sum(node["direct"] for node in found.nodes) == pytest.approx(found.direct, abs=1e-8)
    assert max(map(abs, found.others)) <= 1e-8
    assert error["bias"] == pytest.approx(error["effect"], abs=1e-9), "nothing goes back through the error"
    for node in (error, feature, by_name[f"m1.base@{last}"]) if error["measured"] is not None else ():
        vector = node["node"].vector
        edit = tap("blocks.1.mlp.out", lambda x, where, v=vector: x - v, positions=last).bind(t.config)
        logits = t(torch.tensor([IDS]), tap=edit)[0, -1]
        assert node["measured"] == pytest.approx(found.value - float(logits[3] - logits[7]), abs=1e-9)
        assert found.turned([node["name"]], 0.0) == pytest.approx(found.value - node["measured"], abs=1e-9)


def test_a_perfect_dictionary_has_no_error() -> None:
    """A basis of what the part adds, each vector both ways: their features say it again."""
    t = small()
    run = Trace(t, IDS)
    whole = run["blocks.0.mlp.out"]
    v = torch.linalg.svd(whole, full_matrices=False).Vh
    both = torch.cat([v, -v])
    laid = Dictionary(0, "mlp.out", both, both, torch.zeros(len(both)), torch.zeros(WIDTH), torch.zeros(()))
    found = prediction_graph(run, 3, 7, coverage=1.0, most=10_000, measure=False, lay=[laid])
    assert all(abs(node["effect"]) < 1e-6 for node in found.nodes if node["kind"] in ("error", "base"))
    assert sum(node["direct"] for node in found.nodes) == pytest.approx(found.direct, abs=1e-6)


def refused(path: Path, error: type[Exception], says: str) -> None:
    with pytest.raises(error, match=says):
        dictionaries(path)


def test_what_is_no_dictionary_here_is_refused(tmp_path: Path) -> None:
    t: Transformer = small()
    folder, plain = tmp_path / "x", weights()
    refused(tmp_path, CheckpointError, "is no dictionary: a folder with cfg.json")
    refused(saelens(folder, plain, architecture="gated"), UnsupportedError, "is a 'gated'; read are standard")
    refused(saelens(folder, plain, normalize_activations="layer_norm"), UnsupportedError, "fold it into the weights")
    refused(saelens(folder, plain, activation_fn="tanh-relu"), UnsupportedError, "activation 'tanh-relu'")
    stream = {"hook_name": "blocks.1.hook_resid_post", "hook_name_out": ""}
    refused(saelens(folder, plain, architecture="standard", metadata=stream), UnsupportedError, "hook_resid_post")
    refused(saelens(folder, plain, architecture="standard"), UnsupportedError, "goes from resid_mid to mlp.out")
    refused(saelens(folder, plain, metadata={"hook_name": "nowhere"}), CheckpointError, "does not say which layer")
    short = {name: x for name, x in plain.items() if name != "b_enc"}
    refused(circuit_tracer(tmp_path / "y", short), CheckpointError, "lacks its b_enc")
    bad = plain | {"b_enc": torch.zeros(3)}
    refused(circuit_tracer(tmp_path / "y", bad), CheckpointError, "do not fit each other")
    (tmp_path / "y" / "layer_1.safetensors").write_bytes(b"no")
    refused(tmp_path / "y", CheckpointError, "no readable dictionary")
    wide = plain | {"W_dec": torch.zeros(20, 7), "W_enc": torch.zeros(20, 7), "b_dec": torch.zeros(7)}
    for tensors, layer, says in ((plain, 5, "layer 5, which has no"), (wide, 1, "of width 7")):
        laid = dictionaries(circuit_tracer(tmp_path / f"z{layer}", tensors, layer))
        with pytest.raises(UsageError, match=says):
            graph(t, lay=laid)
    [one] = dictionaries(circuit_tracer(tmp_path / "w", plain))
    with pytest.raises(UsageError, match="Two dictionaries are of layer 1"):
        graph(t, lay=[one, one])
