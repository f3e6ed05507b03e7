"""`glassformer count` on the terminal and for programs."""

from __future__ import annotations

import json

import pytest

from glassformer.count import DESIGNS
from tests.cli import running


def run(capsys: pytest.CaptureFixture[str], *args: object) -> tuple[int, str, str]:
    return running.run(capsys, "count", *args)


def test_gpt3_shows_both_tallies(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    code, out, err = run(capsys, "gpt3")
    assert (code, err) == (0, "")
    for number in (
        "1,572,864",
        "6,291,456",
        "57,982,058,496",
        "115,964,116,992",
        "617,558,016",
        "175,181,291,520",
        "174,604,259,328",
    ):
        assert number in out
    assert "matrices only" in out
    assert "as built" in out


@pytest.mark.parametrize("columns", ["80", "120"])
@pytest.mark.parametrize("name", DESIGNS)
def test_no_number_is_cut(capsys, monkeypatch, name, columns):
    monkeypatch.setenv("COLUMNS", columns)
    _, out, _ = run(capsys, name)
    assert "…" not in out
    assert max(map(len, out.splitlines())) <= int(columns)


def test_json_fields(capsys):
    code, out, _ = run(capsys, "gpt3", "--json", "--context", "1024")
    data = json.loads(out)
    assert code == 0
    assert set(data) == {
        "name",
        "config",
        "context",
        "parameters",
        "tallies",
        "flops_per_token",
        "bytes",
        "active_parameters",
    }
    assert data["context"] == 1024
    assert [tally["total"] for tally in data["tallies"]] == [175_181_291_520, 174_604_259_328]
    assert data["parameters"] == data["tallies"][-1]
    assert set(data["parameters"]) == {
        "label",
        "total",
        "components",
        "attention",
        "feed_forward",
        "per_layer",
        "per_head",
    }
    assert set(data["flops_per_token"]) == {"inference", "training", "formulas"}
    assert set(data["bytes"]) == {"weights", "cache_per_token", "cache", "state", "gradients", "optimizer"}


def test_impossible_contexts_are_usage_errors(capsys):
    assert run(capsys, "gpt2", "--context", "4096")[0] == 2
    code, out, err = run(capsys, "gpt3", "--context", "0")
    assert (code, out) == (2, "")
    assert err == "glassformer: A context has at least 1 token; 0 was asked for.\n"


def test_a_checkpoint_is_counted_without_its_weights(tmp_path, capsys):
    shape = {"num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2, "hidden_size": 16}
    design = {"model_type": "llama", "intermediate_size": 40, "vocab_size": 100, "max_position_embeddings": 64}
    settings = {**design, **shape, "rms_norm_eps": 1e-5, "hidden_act": "silu", "tie_word_embeddings": True}
    (tmp_path / "config.json").write_text(json.dumps(settings))
    code, out, _ = run(capsys, str(tmp_path), "--json")
    matrices = 2 * 16 * 16 + 2 * 8 * 16 + 3 * 40 * 16
    assert code == 0
    assert json.loads(out)["parameters"]["total"] == 2 * (matrices + 2 * 16) + 100 * 16 + 16


def test_an_unknown_name_lists_designs_and_models(capsys):
    code, out, err = run(capsys, "gpt4")
    assert (code, out) == (1, "")
    assert err.startswith("glassformer: gpt4 is no known design (gpt2, ")
    assert "As a model: There is no model called gpt4." in err
    assert err.count("\n") == 1


def test_a_path_that_is_not_there(capsys):
    code, _, err = run(capsys, "./nowhere")
    assert code == 1
    assert err.startswith("glassformer: There is nothing at ./nowhere")


@pytest.mark.smollm2
def test_the_catalogue_s_model_holds_what_is_counted(smollm2, capsys):
    data = json.loads(run(capsys, "smollm2", "--json")[1])
    assert data["parameters"]["total"] == sum(p.numel() for p in smollm2.transformer.parameters())
    assert data["parameters"] == json.loads(run(capsys, smollm2.source, "--json")[1])["parameters"]
