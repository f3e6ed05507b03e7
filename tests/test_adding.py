"""What adding a thing costs: a sampler setting, a view, a verb that looks inside and a recipe setting, really added.

Each is put into a copy of the source by the changes below, which are all there are; then every face is asked for it.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from tests.tiny import tiny_directory

ROOT = Path(__file__).parents[1]

# file -> (text that stands there, what is written after it), or a whole new file
SETTING = {
    "generate/settings.py": [
        (
            '        flags=("--min-p",), metavar="P", in_files=True,\n    )  # fmt: skip\n',
            '    top_a: float = _setting(0.0, "Only tokens at least A times the square of the likeliest as likely.",\n'
            '        low=0, high=1, flags=("--top-a",), metavar="A")  # fmt: skip\n',
        ),
        (
            "return self.top_k == 0 and self.top_p == 1 and self.min_p == 0 and self.typical_p == 1",
            " and not self.top_a",
        ),
    ],
    "generate/sampling.py": [
        (
            "        within = probabilities[:last]\n",
            "        last = max(1, int((within >= sampling.top_a * within[0] ** 2).sum()))\n",
        )
    ],
}
VIEW = {
    "views/lengths.py": '''"""How long the stream is."""

from typing import Any

from glassformer.views.asks import Ask
from glassformer.views.registry import Check, view


class LengthsAsk(Ask):
    """A text."""


@view("lengths", LengthsAsk, room="depth", report=lambda draft: draft.kept("lengths"), python="model.trace({text!r})")
def lengths(session: Any, ask: Any, check: Check) -> dict[str, Any]:
    """The length of every position's vector before the first layer."""
    return {"lengths": session.trace(ask)["embed"].norm(dim=-1).tolist()}
''',
    "views/__init__.py": [("    learning,\n", "    lengths,\n")],
}
VERB = {
    "cli/norms.py": '''"""`glassformer norms`: how long the stream is."""

from typing import Annotated

import typer

from glassformer.cli.common import TextArgument
from glassformer.cli.looking import Look, Seen, looking


@looking(drawn=False)
def command(look: Look, text: TextArgument, layer: Annotated[int, typer.Option("--layer")] = 0) -> Seen:
    """Say how long the stream is after a layer."""
    norms = look.open().trace(text, look.bos)[f"blocks.{layer}.resid_post"].norm(dim=-1).tolist()
    return Seen({"norms": norms}, lambda: print(f"{norms[-1]:.3f} long"))
''',
    "cli/app.py": [
        (
            "VERBS: dict[str, Verb] = {\n",
            '    "norms": Verb("glassformer.cli.norms:command", "Show how long the stream is."),\n',
        )
    ],
}
RECIPE = {
    "train/recipe.py": [
        (
            '    final: float = setting(0.0, "What is left of the rate at the end, as a share.", least=0, most=1)\n',
            '    bend: float = setting(1.0, "The power that the falling rate is raised to.", above=0)\n',
        )
    ],
    "train/schedule.py": [
        (
            "        return 1.0\n",
            "    if spec.bend != 1:\n"
            "        return spec.final + (1.0 - spec.final) * (max(0, left) / falling) ** spec.bend\n",
        )
    ],
}
FACES = {
    "setting": """
import torch
from make_docs import sampling as page
from glassformer.cli.app import load_verb
from glassformer.generate.sampling import probabilities
from glassformer.generate.settings import Sampling
from glassformer.serve.fields import Sampled
p = probabilities(torch.tensor([0.5, 0.3, 0.2]).log(), Sampling(top_a=1.0))
assert torch.allclose(p, torch.tensor([0.625, 0.375, 0.0]).double(), atol=1e-6), p  # at least 0.25: 0.5 and 0.3
assert "| `top_a` |" in page()
described = Sampled.model_json_schema()["properties"]["top_a"]
assert {"type": "number", "minimum": 0, "maximum": 1} in [described, *described.get("anyOf", [])], described
for verb in ("complete", "chat"):
    assert any("--top-a" in one.opts for one in load_verb(verb).params), verb
""",
    "view": """
import glassformer as gf
from fastapi import APIRouter
from make_docs import views as page
from glassformer.serve import inspect_api
from glassformer.views import VIEWS, Session
model = gf.load(MODEL)
found = Session(model).view("lengths", {"text": "The shrew mole"})
want = model.trace("The shrew mole")["embed"].norm(dim=-1)
assert torch.allclose(torch.tensor(found["lengths"]), want), found
assert "## `lengths`" in page()
class Models:
    def on_close(self, done): pass
api = APIRouter()
inspect_api.add(api, Models())
assert "/v1/inspect/lengths" in [route.path for route in api.routes]
""",
    "verb": """
import contextlib, io, json
from glassformer.cli.app import main
said = io.StringIO()
with contextlib.redirect_stdout(said), contextlib.suppress(SystemExit):
    main(["norms", "The shrew mole", "-m", MODEL, "--layer", "1", "--json", "--dtype", "float64"])
want = gf.load(MODEL, dtype="float64").trace("The shrew mole")["blocks.1.resid_post"].norm(dim=-1)
assert torch.allclose(torch.tensor(json.loads(said.getvalue())["norms"]).double(), want), said.getvalue()
""",
    "recipe": """
from make_docs import recipes as page
from glassformer.errors import UsageError
from glassformer.train import schedule
from glassformer.train.recipe import Recipe
bent = Recipe().with_settings(["bend=2", "steps=10", "decay=1"])
assert schedule.rate(5, bent.schedule) == 0.25
assert Recipe.from_dict(bent.to_dict()) == bent
assert "| `bend` | `1.0` | above 0 |" in page()
try:
    bent.with_settings(["bend=0"])
except UsageError as error:
    assert str(error) == "bend must be above 0; got 0.0."
else:
    raise AssertionError("0 was taken")
""",
}


def written(source: Path, changes: dict) -> int:
    """Apply changes to a copy of the source; how many files they touch."""
    for name, change in changes.items():
        path = source / "glassformer" / name
        if isinstance(change, str):
            assert not path.exists()
            path.write_text(change, "utf-8")
            continue
        text = path.read_text("utf-8")
        for there, after in change:
            assert text.count(there) == 1, (name, there)
            text = text.replace(there, there + after)
        path.write_text(text, "utf-8")
    return len(changes)


def test_one_of_each_is_added_in_few_files(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("__pycache__", "web"))
    shutil.copytree(ROOT / "scripts", tmp_path / "scripts")
    shutil.copytree(ROOT / "docs", tmp_path / "docs", ignore=shutil.ignore_patterns("images", "decisions"))
    counts = [written(tmp_path / "src", changes) for changes in (SETTING, VIEW, VERB, RECIPE)]
    assert counts == [2, 2, 2, 2]  # and a view's picture is one more, in web/js/views
    model = tiny_directory(tmp_path / "model")
    program = f"MODEL = {str(model)!r}\n" + "".join(FACES.values())
    paths = os.pathsep.join([str(tmp_path / "src"), str(tmp_path / "scripts")])
    done = subprocess.run(
        [sys.executable, "-c", program], env=os.environ | {"PYTHONPATH": paths}, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
