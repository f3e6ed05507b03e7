"""`glassformer heads`, `neurons`, `meaning` and `patch` as a person and a program meet them."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

import glassformer
from tests.cli.running import answer, held, kept, run
from tests.tiny import VOCAB, tiny_directory, tiny_tokenizer

TEXT = "The mole and the American mole"
CLEAN, CORRUPTED = "One mole of carbon", "One mole of biopsy"
ASKED = {
    "heads": ("heads", TEXT),
    "neurons": ("neurons", TEXT),
    "look": ("look", TEXT, "--layer", "-1", "--head", 1),
    "meaning": ("meaning", "mole", "The mole", "One mole of", "a small mole"),
    "patch": ("patch", "a mole of", "A mole of", "--answer", " mole", "--wrong", " of"),
}


@pytest.fixture(scope="module")
def sparse(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny OLMoE with the tiny tokenizer."""
    from transformers import AutoConfig, AutoModelForCausalLM

    at, sizes = tmp_path_factory.mktemp("sparse"), {"hidden_size": 32, "intermediate_size": 24, "num_hidden_layers": 2}
    config = AutoConfig.for_model(
        "olmoe",
        vocab_size=VOCAB,
        num_attention_heads=4,
        num_key_value_heads=2,
        num_experts=6,
        num_experts_per_tok=2,
        pad_token_id=0,
        **sizes,
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(at)
    tiny_tokenizer().save_pretrained(at)
    return at


@pytest.fixture
def book(tmp_path: Path) -> Path:
    file = tmp_path / "book.txt"
    file.write_text("The mole is a small mole.\n\nOne mole of carbon dioxide.\n" * 20, "utf-8")
    return file


@pytest.fixture(autouse=True)
def _wide(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "140")


def test_heads(capsys, model):
    found = answer(capsys, "heads", TEXT, "-m", model, "--seed", 3, "-k", 2)
    mine = glassformer.load(model).heads(TEXT, seed=3)
    assert found["scores"]["induction"] == pytest.approx(mine.scores["induction"].numpy(), abs=1e-6)
    assert set(found["definitions"]) == set(found["scores"]) == set(found["ranked"])
    assert {len(rows) for rows in found["ranked"].values()} == {2}
    assert found["tokens"] == len(glassformer.load(model).encode(TEXT))
    assert [len(row) for row in found["names"]] == [4, 4, 4]
    code, out, _ = run(capsys, "heads", "-m", model, "--sort", "induction", "--length", 9, "-k", 3)
    assert code == 0
    assert "induction: on a random sequence repeated: mean attention to what followed" in out
    assert "9 random tokens twice, seed 0, 3 shuffles" in out
    assert "duplicate:" not in out.split("\n\n")[1]
    same = answer(capsys, "heads", TEXT, "-m", model, "--sort", "text-same")
    assert list(same["ranked"]) == ["text same"]


def test_a_head_s_circuits(capsys, model):
    found = answer(capsys, "heads", "-m", model, "--circuit", 0, 2, "--token", " mole", "--offset", 3, "-k", 4)
    from glassformer.interp.circuits import output_value, query_key

    opened = glassformer.load(model)
    token = opened.encode(" mole")[0]
    looks = query_key(opened.transformer, 0, 2, token, 3)
    assert [t["id"] for t in found["looks_for"]] == looks.topk(4).indices.tolist()
    written = output_value(opened.transformer, 0, 2, token)
    assert [t["id"] for t in found["lowers"]] == (-written).topk(4).indices.tolist()
    assert found["rank"] == int((written > written[token]).sum())
    code, out, _ = run(capsys, "heads", "-m", model, "--circuit", -1, 0, "--token", " mole")
    assert code == 0
    assert "Layer 2, head 0, at “␣mole”" in out
    assert re.search(r"raises “␣mole” itself \d+(st|nd|rd|th) most", out)


def test_why_a_head_looks_there(capsys, model):
    found = answer(capsys, *ASKED["look"], "-m", model, "-k", 3)
    mine = glassformer.load(model).trace(TEXT).reasons(-1, 1, -1)
    assert found == {"model": found["model"], **json.loads(json.dumps(mine.to_dict(3)))}
    assert found["key"] == int(glassformer.load(model).trace(TEXT).pattern(-1, 1, -1).argmax())
    code, out, _ = run(capsys, *ASKED["look"], "-m", model, "--query", 4, "--key", 2, "--against", 1, "-k", 2)
    assert code == 0
    assert " above that of " in out.replace("\n", " ")
    assert out.count("product") == 3
    code, out, _ = run(capsys, *ASKED["look"], "-m", model, "--query", 1, "--key", 3)
    assert code == 0
    assert "hidden by the mask" in out
    code, _, err = run(capsys, *ASKED["look"], "-m", model, "-k", 0)
    assert code == 2
    assert "--top is 1 or more" in err


@pytest.mark.parametrize("kind", ["tuned", "relevance"])
def test_a_lens_is_fitted_saved_and_read_through(capsys, model, book, tmp_path, kind):
    opened = glassformer.load(model)
    ids = opened.encode(book.read_text("utf-8"))
    options = ("--kind", kind, "--window", 16, "--tokens", 160, "--steps", 2, "--samples", 2)
    found = answer(capsys, "readout", book, "-m", model, "-o", tmp_path / "fitted", *options)
    mine = opened.readout(ids, kind, window=16, tokens=160, steps=2)
    assert found["kl"] == pytest.approx(mine.facts["kl"], rel=1e-4, abs=1e-6)
    assert [row["lens"] for row in found["agreement"]] == ["plain", kind] * (opened.config.n_layers - 1)
    lens = answer(capsys, "lens", TEXT, "-m", model, "--through", tmp_path / "fitted", "-k", 2)
    rows = opened.trace(TEXT).lens(2, positions=-1, through=opened.load_readout(tmp_path / "fitted"))
    assert [row["place"] for row in lens["rows"]] == rows.places
    assert lens["rows"][0]["cells"][0]["top"][0]["id"] == int(rows.ids[0, 0, 0])
    code, out, _ = run(capsys, "readout", book, "-m", model, "-o", tmp_path / "fitted", *options)
    assert code == 0
    assert f"KL {kind}" in out
    code, _, err = run(capsys, "readout", book, "-m", model, "-o", tmp_path / "no", "--tokens", 20, "--window", 16)
    assert code == 2
    assert "three windows of 16 tokens" in err
    assert not (tmp_path / "no").exists()
    code, _, err = run(capsys, "lens", TEXT, "-m", model, "--through", book)
    assert code == 1
    assert "no readable readout" in err


def test_a_token_is_put_in_and_swapped_along_a_lens(capsys, model, book, tmp_path):
    opened = glassformer.load(model)
    fitted = opened.readout(book.read_text("utf-8"), "relevance", window=16, tokens=96)
    fitted.save(tmp_path / "lens")
    options = ("-m", model, "--through", tmp_path / "lens")
    for given, tokens, strength in (
        (("--put", " mole", "--strength", 2), (" mole",), 2.0),
        (("--swap", " mole", " shrew", "-p", 3), (" mole", " shrew"), 0.5),
    ):
        found = answer(capsys, "lens", TEXT, *options, "--layer", 0, *given)["edit"]
        position = 3 if len(tokens) > 1 else -1
        mine = opened.trace(TEXT).lens_edit(0, *tokens, through=fitted, position=position, strength=strength)
        told = mine.to_dict(5)
        for row, own in zip(found["tokens"] + found["top"], told["tokens"] + told["top"], strict=True):
            assert row["id"] == own["id"]
            for side in ("claimed", "measured"):
                assert row[side] == pytest.approx(own[side], rel=1e-4)
        assert found["correlation"] == pytest.approx(told["correlation"], abs=1e-4)
    code, out, _ = run(capsys, "lens", TEXT, "-m", model, "--layer", 0, "--swap", " mole", " shrew")
    assert code == 0
    assert "the plain lens" in out
    assert "claimed and measured changes correlate at" in out
    rows = answer(capsys, "lens", TEXT, *options, "--agree")["agreement"]
    assert [row["lens"] for row in rows] == ["plain", "relevance"] * (opened.config.n_layers - 1)
    code, out, _ = run(capsys, "lens", TEXT, *options, "--agree")
    assert code == 0
    assert "relevance agrees" in out
    for given, says in (
        (("--put", " mole"), "--put and --swap move the stream after a --layer; give both or neither."),
        (("--agree", "--layer", 0), "give both or neither"),
        (("--put", " mole", "--layer", 0, "--agree"), "Give one of --put, --swap and --agree."),
        (("--put", " mole", "--layer", 0, "--all"), "at one position"),
    ):
        code, _, err = run(capsys, "lens", TEXT, "-m", model, *given)
        assert code == 2
        assert says in " ".join(err.split())


def test_experts(capsys, model, sparse, tmp_path):
    found = answer(capsys, "experts", TEXT, "-m", sparse, "--layer", -1, "-p", 2, "--words", 3)
    mine = glassformer.load(sparse).trace(TEXT).experts(-1, position=2, words=3)
    assert found["weights"] == pytest.approx(mine.weights.numpy(), abs=1e-6)
    assert [one["expert"] for one in found["experts"]] == [one["expert"] for one in mine.experts]
    assert found["layer"] == 1
    assert found["apart"] < 1e-5
    code, out, _ = run(capsys, "experts", TEXT, "-m", sparse)
    assert code == 0
    assert "Layer 0: 2 of 6 experts a token" in out
    assert len(re.findall(r"\d: 0\.\d{3}", out)) == 2 * len(found["tokens"])
    code, _, err = run(capsys, "experts", TEXT, "-m", sparse, "--png", tmp_path / "experts.png")
    assert code == 0, err
    assert (tmp_path / "experts.png").stat().st_size > 1000
    code, _, err = run(capsys, "experts", TEXT, "-m", model)
    assert (code, err.strip()) == (
        1,
        "glassformer: No layer of this model has experts; its feed-forward parts serve every token.",
    )


def test_neurons(capsys, model, book):
    found = answer(capsys, "neurons", TEXT, "-m", model, "-k", 3, "--words", 2)
    mine = glassformer.load(model).trace(TEXT).neurons(k=3, words=2)
    assert found["neurons"] == json.loads(json.dumps(mine.neurons))
    assert found["value"] == pytest.approx(mine.value)
    searched = answer(capsys, "neurons", "-m", model, "--neuron", 1, 7, "--texts", book, "-k", 4)
    assert searched["neuron"]["index"] == 7
    sizes = [abs(p["activation"]) for p in searched["passages"]["found"]]
    assert sizes == sorted(sizes, reverse=True)
    assert len(sizes) == 4
    code, out, _ = run(capsys, "neurons", TEXT, "-m", model, "--against", " of", "--texts", book)
    assert code == 0
    assert "logit difference" in out
    assert "puts out most in your texts" in out
    assert re.search(r"\[.+\]", out)
    code, out, _ = run(capsys, "neurons", "-m", model, "--neuron", -1, 0)
    assert code == 0
    assert "Layer 2, neuron 0" in out


def test_meaning(capsys, model, book):
    texts = ("The mole", "One mole of", "a small mole")
    found = answer(capsys, "meaning", "mole", *texts, "-m", model)
    mine = glassformer.load(model).meaning("mole", texts)
    assert found["similarity"] == pytest.approx(mine.similarity.numpy(), abs=1e-9)
    assert found["mean"][0] == pytest.approx(1)
    code, out, _ = run(capsys, "meaning", "MOLE", *texts, "-m", model, "--texts", book)
    assert code == 0
    assert "embedding" in out
    assert "1~2" in out
    assert "Nearest to text 3 after layer 2, in your texts" in out
    near = answer(capsys, "meaning", "mole", "The mole", "-m", model, "--texts", book, "--layer", 0, "-k", 2)
    assert len(near["nearest"][0]["contexts"]) == 2
    assert "similarity" not in near
    apart = run(capsys, "meaning", "the", "the mole", "The mole", "-m", model)[1]
    assert "not the same tokens in all texts" in apart


def test_patch(capsys, model):
    found = answer(capsys, *ASKED["patch"], "-m", model, "--what", "all")
    assert [r["what"] for r in found["results"]] == ["stream", "attention", "feed_forward", "heads"]
    opened = glassformer.load(model)
    mine = opened.patch([("a mole of", "A mole of")], "feed_forward", answer=" mole", wrong=" of")
    assert found["results"][2]["measured"][0] == pytest.approx(mine.measured[0].numpy(), abs=1e-6)
    assert found["results"][2]["correlation"] == pytest.approx(mine.correlation)
    code, out, _ = run(capsys, *ASKED["patch"], "-m", model, "-k", 2)
    assert code == 0
    assert "stream: percent of the clean answer that each layer's position brings back" in out
    assert "Attribution's correlation" in out
    assert "'␣mole' against '␣of'" in out
    code, out, _ = run(capsys, *ASKED["patch"], "-m", model, "--what", "feed-forward", "--no-attribution")
    assert code == 0
    assert "Attribution" not in out


def test_patch_over_a_file_of_pairs(capsys, model, tmp_path):
    file = tmp_path / "pairs.jsonl"
    file.write_text(
        '{"clean": "a mole of", "corrupted": "A mole of", "answer": " mole", "wrong": " of"}\n\n'
        '{"clean": "1 mole of", "corrupted": "2 mole of", "answer": " of"}\n',
        "utf-8",
    )
    found = answer(capsys, "patch", "-m", model, "--pairs", file, "--wrong", " American")
    assert [p["wrong"] for p in found["results"][0]["pairs"]] == [" of", " American"]
    assert len(found["results"][0]["measured"]) == 2
    code, out, _ = run(capsys, "patch", "-m", model, "--pairs", file, "--wrong", " American", "--what", "heads")
    assert code == 0
    assert "mean of 2 pairs" in out
    for line, message in (
        ("{", "line 1, is not JSON"),
        ("[1]", 'needs an object with "clean" and "corrupted"'),
        ('{"clean": "a", "corrupted": 3}', "'corrupted' is not one of the texts"),
        ('{"clean": "a", "corrupted": "b", "anser": "c"}', "'anser' is not one of the texts"),
        ("", "holds no pairs"),
    ):
        file.write_text(line, "utf-8")
        code, out, err = run(capsys, "patch", "-m", model, "--pairs", file)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1


@pytest.mark.parametrize("verb", sorted(ASKED.keys() - {"look"}))
def test_pictures_and_pages(capsys, model, tmp_path, verb):
    picture, page = tmp_path / "a.png", tmp_path / "a.html"
    args = [a if a != TEXT else TEXT + " $x$ </script> 鼹" for a in ASKED[verb]]
    code, out, err = run(capsys, *args, "-m", model, "--png", picture, "--html", page)
    assert (code, out) == (0, ""), err
    assert picture.read_bytes().startswith(b"\x89PNG")
    data = held(page)
    rooms = {"heads": "attention", "neurons": "why", "meaning": "meaning", "patch": "compare"}
    assert data["rooms"] == [rooms[verb]]
    if verb == "patch":
        mine = answer(capsys, *args, "-m", model)["results"][0]
        assert kept(data, "patch", what="stream")["restored"] == [
            pytest.approx(row, rel=1e-4, abs=1e-6) for row in mine["restored"]
        ]
        assert data["state"]["what"] == "patch"
    elif verb == "meaning":
        assert data["state"]["contexts"] == list(args[2:])
    elif verb == "neurons":
        assert [n["index"] for n in kept(data, "neurons")["neurons"]] == [
            n["index"] for n in answer(capsys, *args, "-m", model)["neurons"]
        ]
    else:
        assert kept(data, "heads")["scores"].keys() == answer(capsys, *args, "-m", model)["scores"].keys()


def test_a_page_of_heads_without_a_text_says_what_it_shows_them_on(capsys, model, tmp_path):
    code, _, err = run(capsys, "heads", "-m", model, "--html", tmp_path / "heads.html")
    assert code == 0
    assert "seven blue window" in err
    assert held(tmp_path / "heads.html")["state"]["sort"] == "role"


@pytest.mark.parametrize("verb", sorted(ASKED))
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox", "gemma2"])
def test_other_families(capsys, tmp_path, verb, family):
    found = answer(capsys, *ASKED[verb], "-m", tiny_directory(tmp_path, family))
    assert found["precision"] == "float32"
    code, out, err = run(capsys, *ASKED[verb], "-m", tmp_path)
    assert (code, err) == (0, "")
    assert out


@pytest.mark.parametrize(
    ("args", "code", "message"),
    [
        (("heads", "--sort", "sink"), 2, "There is no score 'sink' here; there are previous, first, duplicate"),
        (("heads", "--sort", "text same"), 2, "It needs a text."),
        (("heads", "--circuit", 0, 1), 2, "--circuit needs a token"),
        (("heads", "--token", " mole"), 2, "--token belongs to --circuit"),
        (("heads", "--circuit", 0, 9, "--token", " mole"), 1, "There is no head 9: layer 0 has 4 heads"),
        (("heads", "--circuit", 0, 1, "--token", " moles"), 1, "is not one token here but"),
        (("heads", "--circuit", 0, 1, "--token", " mole", "--offset", -2), 1, "counts backwards"),
        (("heads", "--circuit", 0, 1, "--token", " mole", TEXT), 2, "leave the text"),
        (("heads", "--length", 1), 2, "needs at least 2 tokens"),
        (("heads", "--top", 0), 2, "--top is 1 or more; 0 is not."),
        (("heads", ""), 1, "The text is empty"),
        (("neurons",), 2, "Give a text whose prediction to explain, or a neuron"),
        (("neurons", TEXT, "--neuron", 0, 1), 2, "either a text or --neuron"),
        (("neurons", "--neuron", 0, 48), 1, "There is no neuron 48: layer 0 has 48, 0 to 47."),
        (("neurons", "--neuron", 3, 1), 1, "There is no layer 3: the model has 3, 0 to 2."),
        (("neurons", "--neuron", 0, 1, "--texts", "nowhere.txt"), 1, "nowhere.txt"),
        (("neurons", TEXT, "--token", " moles"), 1, "is not one token here but"),
        (("neurons", TEXT, "-p", 99), 1, "there is no position 99"),
        (("meaning", "mole", "The mole"), 2, "give at least two, or one and --texts FILE"),
        (
            ("meaning", "mole", "The mole", "The bank"),
            1,
            "The word 'mole' is not in “The bank”; its words are The, bank",
        ),
        (("meaning", " ", "The mole", "The bank"), 1, "The word '' is not in"),
        (("meaning", "mole", "The mole", "A mole", "--occurrence", 4), 1, "there is no occurrence 4"),
        (("meaning", "mole", "The mole", "A mole", "--layer", 4), 1, "There is no layer 4"),
        (("patch", "The mole"), 2, "Give two prompts, a clean and a corrupted one"),
        (("patch", "The mole", "The mole"), 2, "The two prompts are the same"),
        (("patch", "The mole", "The mole mole"), 1, "they need as many tokens, place for place"),
        (("patch", "The mole", "A mole", "--what", "head"), 2, "'head' is none of them. Did you mean heads?"),
        (("patch", "The mole", "A mole", "--pairs", "x.jsonl"), 2, "either two prompts or --pairs"),
        (("patch", "--pairs", "nowhere.jsonl"), 1, "nowhere.jsonl"),
        (("patch", "a mole", "A mole", "--answer", " of", "--wrong", " of"), 2, "explained against itself"),
        (("patch", "a mole", "A mole", "--what", "all", "--png", "x.png"), 2, "A picture is of one kind of place"),
    ],
)
def test_what_is_asked_wrongly_is_one_sentence(capsys, model, args, code, message):
    got, out, err = run(capsys, *args, "-m", model)
    assert (got, out) == (code, "")
    assert message in err
    assert err.count("\n") == 1


def test_texts_that_are_none(capsys, model, tmp_path):
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9")
    (tmp_path / "empty.txt").write_bytes(b" \n")
    for name, message in (("latin.txt", "is not UTF-8 text (its byte 3"), ("empty.txt", "There is no text in")):
        code, out, err = run(capsys, "neurons", "--neuron", 0, 1, "--texts", tmp_path / name, "-m", model)
        assert (code, out) == (1, "")
        assert message in err
        assert err.count("\n") == 1


def test_texts_are_read_whole_in_pieces_that_fit(model, tmp_path):
    from glassformer.cli.passages import traces_of

    opened = glassformer.load(model)
    text = "The mole is small.\n" * 30 + "mole " * 200 + "\nthe end"
    (tmp_path / "a.txt").write_text(text, "utf-8")
    found = list(traces_of(opened, [tmp_path / "a.txt"]))
    assert max(map(len, found)) <= opened.config.context
    assert "".join("".join(trace.tokens) for trace in found) == text


def test_a_head_over_texts(capsys, model, tmp_path):
    notes, state = tmp_path / "notes.txt", tmp_path / "state.json"
    notes.write_text("The American shrew mole\nOne mole of a biopsy\n" * 20, "utf-8")
    told = answer(capsys, "corpus", notes, "-m", model, "--head", -1, 2, "-k", 3, "--keep", state)
    assert (told["kind"], told["layer"], told["index"]) == ("head", 2, 2)
    assert len(told["passages"]) == 3
    assert len(told["deciles"]) == 10
    assert answer(capsys, "corpus", notes, "-m", model, "--head", -1, 2, "-k", 3, "--keep", state) == told
    code, out, _ = run(capsys, "corpus", notes, "-m", model, "--neuron", 0, 3, "-k", 2)
    assert code == 0
    assert "neuron 3 of layer 0 at" in out
    for args, code, said in (
        ((notes,), 2, "Name one part"),
        ((notes, "--head", 0, 1, "--neuron", 0, 1), 2, "Name one part"),
        ((tmp_path / "no.txt", "--head", 0, 1), 1, "There is no file"),
        ((notes, "--head", 0, 1, "--matching", "zebra"), 1, "no passage with 'zebra' in it"),
        ((notes, "--head", 0, 2, "--keep", state), 1, "is of another part"),
        ((notes, "--head", 7, 2), 1, "There is no layer 7"),
    ):
        got, _, err = run(capsys, "corpus", *args, "-m", model, "-k", 3)
        assert got == code, err
        assert said in err
