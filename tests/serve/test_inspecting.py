"""The glass over HTTP: every view as a route, edits that travel with a request, and both as they are in Python."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import httpx
import openai
import pytest
import torch
from safetensors.numpy import load

from glassformer.interp.circuit_edit import RunCircuit
from glassformer.interp.edits import ablate, steer
from glassformer.serve.inspect_api import ARRAYS
from glassformer.serve.security import Policy
from glassformer.views import VIEWS, Session
from tests.serve.running import NO_END, TEXT, Running, error_of, eventually, post, running

HEAD = {"ablate": {"layer": 1, "head": 0}}
AS_VIEWS_SAY = {"kind": "ablate_head", "layer": 1, "head": 0}
# What each view needs beside a text.
ASKS: dict[str, dict[str, Any]] = {
    "tokens": {},
    "next": {"top": 5},
    "vocab": {"text": None, "ids": [1, 2]},
    "words": {"limit": 3},
    "effects": {"edits": [HEAD]},
    "attention": {"layer": 0, "head": 1},
    "cell": {"layer": 0, "head": 1, "query": 2, "key": 1},
    "reasons": {"layer": 1, "head": 1},
    "thumbnails": {"size": 8},
    "lens": {"top": 2},
    "journey": {},
    "prediction": {"nodes": 7},
    "why": {"words": False},
    "neurons": {},
    "meaning": {"text": None, "word": "mole", "texts": ["a mole", "the mole"]},
    "patch": {"text": None, "clean": "The mole is", "corrupted": "The small is", "what": "attention"},
    "edges": {"text": None, "clean": "The mole is", "corrupted": "A mole is", "exact": "none", "by_position": True},
    "circuit": {"text": None, "pairs": [["The mole is", "A mole is"]], "metric": "kl", "faithfulness": 0.5},
    "compare": {"text": None, "a": {"text": "The mole"}, "b": {"text": "The moles"}},
}


def inspect(server: Running, view: str, **ask: Any) -> httpx.Response:
    body = {"text": TEXT, **ask}
    return post(server, f"/v1/inspect/{view}", json={k: v for k, v in body.items() if v is not None})


def alike(found: Any, want: Any) -> bool:
    """Equal but for float32's rounding: a session that has traced part of a text before sums in another order."""
    if isinstance(want, float):
        return found == pytest.approx(want, rel=1e-4, abs=1e-6)
    if isinstance(want, dict):
        keys = want.keys() - {"base64"}
        return found.keys() - {"base64"} == keys and all(alike(found[key], want[key]) for key in keys)
    if isinstance(want, list):
        return len(found) == len(want) and all(map(alike, found, want))
    return bool(found == want)


@pytest.mark.parametrize("view", sorted(ASKS))
def test_a_view_answers_what_it_answers_in_python(server, model, view):
    answer = inspect(server, view, **ASKS[view])
    assert answer.status_code == 200, answer.text
    told = answer.json()
    assert (told["view"], told["model"], told["precision"]) == (view, "tiny", "float32")
    ask = {k: v for k, v in {"text": TEXT, **ASKS[view]}.items() if v is not None}
    if "edits" in ask:
        ask["edits"] = [AS_VIEWS_SAY]
        assert told["edits"] == [AS_VIEWS_SAY]
    want = json.loads(json.dumps(Session(model).view(view, ask)))
    assert alike(told["data"], want), (told["data"], want)


@pytest.mark.parametrize(
    ("view", "ask", "says"),
    [
        ("edges", {"clean": "The mole", "corrupted": "The mole mole"}, "as many tokens, place for place"),
        ("circuit", {"clean": "a mole", "corrupted": "a mole"}, "The two prompts are the same"),
        ("circuit", {"clean": "a mole of", "corrupted": "A mole of", "faithfulness": 2}, "faithfulness"),
        ("edges", {"clean": "a mole", "corrupted": "a small", "position": 0}, "where nothing differs yet"),
        ("reasons", {"text": TEXT, "layer": 1, "head": 99}, "There is no head 99"),
        ("reasons", {"text": TEXT, "layer": 1, "head": 0, "query": 1, "key": 1, "against": 1}, "from itself"),
        ("prediction", {"text": TEXT, "lay": ["nowhere"]}, "nowhere"),
        ("lens_edit", {"text": TEXT, "layer": 0, "token": " mole", "through": "nowhere"}, "nowhere"),
        (
            "corpus",
            {"kind": "head", "layer": 0, "index": 0, "texts": [TEXT], "matching": "zebra"},
            "no passage with 'zebra'",
        ),
    ],
)
def test_a_question_about_causes_that_cannot_be_answered_is_one_sentence(server, view, ask, says):
    answer = inspect(server, view, **{"text": None, **ask})
    assert answer.status_code in (400, 404, 422), answer.text
    said = error_of(answer)["message"] if isinstance(error_of(answer), dict) else str(error_of(answer))
    assert says in said
    assert "\n" not in said


def test_every_view_is_a_route_with_a_description(server):
    listed = httpx.get(f"{server.url}/v1/inspect", timeout=60).json()["data"]
    assert [one["id"] for one in listed] == list(VIEWS)
    assert all(one["about"] and one["parameters"]["properties"] is not None for one in listed if one["id"] != "runs")
    paths = httpx.get(f"{server.url}/openapi.json", timeout=60).json()["paths"]
    for name in VIEWS:
        told = paths[f"/v1/inspect/{name}"]["post"]
        assert set(told["responses"]["200"]["content"]) == {"application/json", ARRAYS, "text/event-stream"}


def test_arrays_come_as_bytes(server, model):
    body = {"text": TEXT, "layer": 0, "head": 1}
    answer = post(server, "/v1/inspect/attention", json=body, headers={"accept": ARRAYS})
    assert answer.headers["content-type"] == ARRAYS
    arrays = load(answer.content)
    size = int.from_bytes(answer.content[:8], "little")
    told = json.loads(json.loads(answer.content[8 : 8 + size])["__metadata__"]["json"])
    tile = arrays[told["data"]["tile"]["array"]]
    want = model.trace(TEXT).pattern(0, 1)
    assert tile.shape == tuple(want.shape)
    assert abs(tile - want.numpy()).max() < 1e-6


def test_a_long_view_tells_its_progress(server):
    headers = {"accept": "text/event-stream"}
    with httpx.stream("POST", f"{server.url}/v1/inspect/heads", json={}, headers=headers, timeout=120) as answer:
        lines = [line for line in answer.iter_lines() if line and not line.startswith(":")]
    assert lines[0] == "event: progress"
    assert {"steps", "seconds"} == set(json.loads(lines[1].removeprefix("data: ")))
    assert lines[-2] == "event: result"
    assert json.loads(lines[-1].removeprefix("data: "))["data"]["model"] == "tiny"
    with httpx.stream(
        "POST", f"{server.url}/v1/inspect/attention", json={"text": TEXT, "layer": 99}, headers=headers
    ) as wrong:
        last = [line for line in wrong.iter_lines() if line.startswith("data: ")][-1]
    assert "layer" in json.loads(last.removeprefix("data: "))["error"]["message"].lower()


@pytest.mark.parametrize(
    ("view", "ask", "status", "said"),
    [
        ("attention", {}, 400, "layer: Field required"),
        ("attention", {"layer": 99}, 400, "99"),
        ("attention", {"layer": 0, "colour": 1}, 400, "colour"),
        ("lens", {"top": 99}, 400, "top"),
        ("next", {"text": ""}, 400, "empty"),
        ("next", {"model": "other"}, 404, "is not served here"),
        ("next", {"edits": [{"ablate": {"layer": 99, "head": 0}}]}, 400, "99"),
        ("next", {"edits": [{"ablate": {"layer": 1}}]}, 400, "an ablation names a head"),
        ("next", {"edits": [{"kind": "improve"}]}, 400, "edits"),
        ("edges", {"text": None, "clean": "The mole"}, 400, "corrupted: Field required"),
        ("edges", {"text": None, "clean": "The mole", "corrupted": "The mole mole"}, 400, "they need as many tokens"),
        ("edges", {"text": None, "clean": "a", "corrupted": "A", "exact": "some"}, 400, "exact: Input should be"),
        ("edges", {"text": None, "clean": "a", "corrupted": "A", "metric": "kl", "method": "eap"}, 400, "no slope"),
        ("circuit", {"text": None, "clean": "a", "corrupted": "A", "faithfulness": 2}, 400, "faithfulness: Input"),
        (
            "circuit",
            {"text": None, "clean": "a", "corrupted": "A", "edits": [HEAD]},
            400,
            "edits: There is no such field",
        ),
        ("nothing", {}, 404, "/v1/inspect/nothing"),
        ("atention", {}, 404, "Did you mean /v1/inspect/attention"),
    ],
)
def test_views_that_cannot_be_meant(server, view, ask, status, said):
    answer = inspect(server, view, **ask)
    assert answer.status_code == status, answer.text
    assert said in error_of(answer)["message"]


def test_views_need_the_key_and_a_place(model):
    with running(model, policy=Policy(key="k"), slots=1, queue=0) as server:
        assert inspect(server, "next").status_code == 401
        headers = {"authorization": "Bearer k"}
        server.gate.open.clear()
        with httpx.stream(
            "POST", f"{server.url}/v1/completions", json={"prompt": TEXT, "stream": True}, headers=headers
        ):
            eventually(lambda: server.queue.taken == 1)
            full = post(server, "/v1/inspect/next", json={"text": TEXT}, headers=headers)
            assert full.status_code == 429
            server.gate.open.set()


def test_steering_travels_with_a_completion(server, model):
    vector = [0.5 * (-1) ** i for i in range(model.config.d_model)]
    edit = {"steer": {"layer": 1, "vector": vector, "strength": 3}}
    body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0, "logit_bias": NO_END}
    answer = post(server, json={**body, "edits": [edit]}).json()
    steered = model.edited(steer(torch.tensor(vector), layer=1, strength=3.0))
    said = steered.generate(TEXT, max_tokens=8, temperature=0, logit_bias={int(k): v for k, v in NO_END.items()})
    assert answer["choices"][0]["text"] == "".join(t.text for t in said)
    assert answer["choices"][0]["text"] != post(server, json=body).json()["choices"][0]["text"]
    assert answer["edits"] == [{"kind": "steer", "layer": 1, "strength": 3.0}]
    short = post(server, json={**body, "edits": [{"steer": {"layer": 1, "vector": [1.0, 2.0]}}]})
    assert short.status_code == 400
    assert f"needs {model.config.d_model} numbers" in short.text
    text = '{"prompt": "a", "edits": [{"steer": {"layer": 1, "vector": [NaN]}}]}'
    broken = post(server, content=text, headers={"Content-Type": "application/json"})
    assert broken.status_code == 400


def test_a_saved_direction_is_steered_by_with_its_name(model, tmp_path):
    french = model.direction("french", ["Le chat dort", "Il fait beau"], ["The cat sleeps", "It is fine"], 1)
    french.save(tmp_path / "french")
    other = dataclasses.replace(french, weights="others")
    other.save(tmp_path / "other")
    by_name = {"steer": {"direction": "french", "strength": 40}}
    body = {"prompt": TEXT, "max_tokens": 8, "temperature": 0, "logit_bias": NO_END}
    want = [*model.edited(steer(french, strength=40)).generate(TEXT, max_tokens=8, temperature=0, logit_bias={0: -100})]
    with running(model, directions={name: tmp_path / name for name in ("french", "other")}) as server:
        answer = post(server, json={**body, "edits": [by_name]}).json()
        assert answer["choices"][0]["text"] == "".join(token.text for token in want)
        assert answer["choices"][0]["text"] != post(server, json=body).json()["choices"][0]["text"]
        assert answer["edits"] == [{"kind": "steer", "direction": "french", "strength": 40.0}]
        seen = inspect(server, "next", edits=[by_name]).json()["data"]["tokens"][0]["probability"]
        assert seen == pytest.approx(
            model.edited(steer(french, strength=40)).next(TEXT).top(1)[0].probability, abs=1e-6
        )
        for edit, said in (
            ({"direction": "frnch"}, "There is no direction 'frnch'; there are french, other. Did you mean"),
            ({"direction": "other"}, "with other weights"),
            ({"direction": "french", "vector": [1.0]}, "either a vector or the name of a direction"),
            ({}, "either a vector or the name of a direction"),
            ({"vector": [1.0]}, "a vector is added after a layer"),
        ):
            for path in ("/v1/completions", "/v1/inspect/next", "/v1/verbs/trace.pattern"):
                wrong = {"edits": [{"steer": edit}], "prompt": TEXT} if path.endswith("completions") else {"text": TEXT}
                more = {"layer": 0} if path.endswith("pattern") else {}
                answer = post(server, path, json={**wrong, **more, "edits": [{"steer": edit}]})
                assert (answer.status_code, said in error_of(answer)["message"]) == (400, True), answer.text


def test_a_circuit_travels_with_a_completion(server, model):
    edges = [["embed", "m0"], ["m0", "logits"], ["embed", "logits"], ["embed", "a1.h0.q"], ["a1.h0", "logits"]]
    body = {"prompt": TEXT, "max_tokens": 6, "temperature": 0, "logit_bias": NO_END}
    other = "A biopsy of the mole"
    answer = post(server, json={**body, "edits": [{"circuit": {"edges": edges, "counterfactual": other}}]}).json()
    alone = model.edited(RunCircuit(model.transformer, tuple(map(tuple, edges)), tuple(model.encode(other))))
    said = alone.generate(TEXT, max_tokens=6, temperature=0, logit_bias={int(k): v for k, v in NO_END.items()})
    assert answer["choices"][0]["text"] == "".join(t.text for t in said)
    assert answer["edits"] == [{"kind": "circuit", "counterfactual": other}]
    wrong = post(server, json={**body, "edits": [{"circuit": {"edges": [["m9", "logits"]], "counterfactual": other}}]})
    assert wrong.status_code == 400
    assert "Nothing called" in wrong.text


def test_edits_travel_with_a_completion(server, client, model):
    asked: dict[str, Any] = {"model": "tiny", "prompt": TEXT, "max_tokens": 6, "temperature": 0, "logit_bias": NO_END}
    plain = client.completions.create(**asked)
    edits = [{"ablate": {"layer": layer, "head": head}} for layer in (0, 1) for head in (0, 1, 2)]
    taps = [ablate(layer=layer, head=head) for layer in (0, 1) for head in (0, 1, 2)]
    want = "".join(
        p.text for p in model.edited(*taps).generate(TEXT, max_tokens=6, temperature=0, logit_bias={0: -100})
    )
    for stream in (False, True):
        answer = client.completions.create(**asked, stream=stream, extra_body={"edits": edits})
        chunks = list(answer) if stream else [answer]
        assert "".join(c.choices[0].text for c in chunks) == want != plain.choices[0].text
        assert all(c.system_fingerprint.endswith("-edited") and len(c.edits) == 6 for c in chunks)
    assert client.completions.create(**asked).choices[0].text == plain.choices[0].text
    assert not hasattr(plain, "edits")
    said = client.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "a"}], max_tokens=2, extra_body={"edits": edits}
    )
    assert said.system_fingerprint.endswith("-edited")
    with pytest.raises(openai.BadRequestError, match="99"):
        client.completions.create(**asked, extra_body={"edits": [{"ablate": {"layer": 0, "head": 99}}]})


def test_an_edited_prompt_is_scored_edited(server, model):
    body = {"prompt": TEXT, "echo": True, "logprobs": 0, "max_tokens": 0, "edits": [HEAD]}
    found = post(server, "/v1/completions", json=body).json()["choices"][0]["logprobs"]["token_logprobs"]
    ids = model.encode(TEXT)
    logits = model.edited(ablate(layer=1, head=0)).logits(TEXT).log_softmax(-1)
    want = [float(logits[i, token]) for i, token in enumerate(ids[1:])]
    assert found[1:] == pytest.approx(want, abs=1e-4)


def test_who_leaves_an_edited_answer_is_not_computed_for(server):
    body = {"prompt": TEXT, "max_tokens": 1900, "logit_bias": NO_END, "stream": True, "edits": [HEAD]}
    with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as answer:
        next(answer.iter_lines())
    eventually(lambda: server.queue.taken == 0)
    assert post(server, json={"prompt": TEXT, "max_tokens": 1, "edits": [HEAD]}).status_code == 200
