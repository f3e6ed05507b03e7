"""One head, neuron, expert or direction over the user's own texts: where it acts, where not, and what it does there.

Texts are read a piece at a time and forgotten; what is kept is a fixed number of passages and of positions drawn evenly
from all that were read, so memory does not grow with the corpus. A survey can be stopped after any passage and goes on
from a file to the same result. Knows texts as bytes and tokens, and one part of the model.
"""

from __future__ import annotations

import codecs
import functools
import heapq
import json
import random
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import CheckpointError, SiteError, TextError, UsageError
from glassformer.interp.direction import Direction
from glassformer.interp.edit_ops import Apply
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.head_outputs import head_outputs
from glassformer.interp.run_from import finish
from glassformer.interp.select import Places, Selection
from glassformer.interp.trace import Trace
from glassformer.interp.vocabulary import Vocabulary
from glassformer.model import Transformer
from glassformer.model.choices import Experts
from glassformer.model.sites import Where
from glassformer.system import files, locks, sealed
from glassformer.system.progress import Progress

FORMAT = "glassformer.survey/1"
# Positions that the deciles are made of.
KEPT = 4000
# Bytes of a line that are read at once, and tokens shown around a place.
PIECE, AROUND = 1 << 16, 12


@dataclass(frozen=True)
class Part:
    """What is followed: kind "head", "neuron", "expert" or "direction", in a layer.

    How strongly it acts at a position: a head by the length of what it adds to the stream, a neuron by its output, an
    expert by its weight, a direction by the stream's coordinate along it.
    """

    kind: str
    layer: int
    index: int = 0
    direction: Direction | None = None

    def check(self, transformer: Transformer) -> None:
        """Raise SiteError or UsageError where the model has no such part."""
        config = transformer.config
        if not 0 <= self.layer < config.n_layers:
            raise SiteError(f"There is no layer {self.layer}: the model has {config.n_layers}.")
        if self.kind == "direction":
            assert self.direction is not None
            self.direction.check(config)
            return
        feed = config.layers[self.layer].feed_forward
        if self.kind == "head":
            count = config.attention(self.layer).n_heads
        elif self.kind == "expert":
            count = feed.n_experts if isinstance(feed, Experts) else 0
        else:
            count = 0 if feed is None else feed.neurons
        if not 0 <= self.index < count:
            raise SiteError(f"There is no {self.kind} {self.index} in layer {self.layer}: it has {count}.")

    def acts(self, traced: Trace) -> Float[Tensor, " query"]:
        """How strongly it acts at each position."""
        prefix = f"blocks.{self.layer}."
        if self.kind == "head":
            return head_outputs(traced, self.layer, self.index, None).norm(dim=-1)
        if self.kind == "neuron":
            return traced.forward.get(f"{prefix}mlp.post")[0, :, self.index]
        if self.kind == "expert":
            return traced.forward.get(f"{prefix}mlp.weights")[0, :, self.index]
        assert self.direction is not None
        vector = torch.nn.functional.normalize(self.direction.vector.double(), dim=0)
        return traced.forward.get(f"{prefix}resid_post")[0].double() @ vector

    def away(self) -> Apply:
        """The edit that takes it away: zero, or the stream without its coordinate along a direction."""
        if self.direction is not None:
            unit = torch.nn.functional.normalize(self.direction.vector.double(), dim=0)

            def project(x: Tensor, where: Where) -> Tensor:
                return (x.double() - (x.double() @ unit)[..., None] * unit).to(x)

            return Apply((), self.layer, ("resid_post",), Selection(), project)
        site = {"head": "attn.z", "neuron": "mlp.post", "expert": "mlp.weights"}[self.kind]
        heads = Places.of(self.index if self.kind == "head" else None, "heads")
        units = Places.of(None if self.kind == "head" else self.index, "units")
        return Apply((), self.layer, (site,), Selection(heads=heads, units=units), lambda x, where: torch.zeros_like(x))

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON."""
        if self.direction is not None:
            return {"kind": self.kind, "layer": self.layer, "name": self.direction.name}
        return {"kind": self.kind, "layer": self.layer, "index": self.index}


def pieces(
    texts: Sequence[Path], encode: Callable[[str], list[int]], longest: int, begin: Sequence[int] = (0, 0, 0)
) -> Iterator[tuple[list[int], tuple[int, int, int]]]:
    """Passages of at most `longest` tokens, lines kept together where that can be, with where the next one begins: its
    file, the byte at which a line of it begins, and how many of that line's tokens are behind.

    Raises:
        TextError: for a file that is not UTF-8 text.
    """
    for number in range(begin[0], len(texts)):
        at, behind = (begin[1], begin[2]) if number == begin[0] else (0, 0)
        kept: list[int] = []
        with texts[number].open("rb") as file:
            if at == 0 and file.read(3) == codecs.BOM_UTF8:
                at = 3
            file.seek(at)
            while raw := file.readline(PIECE):
                try:
                    line, used = codecs.utf_8_decode(raw, "strict", len(raw) < PIECE or raw.endswith(b"\n"))
                except UnicodeDecodeError as error:
                    bad = at + error.start
                    raise TextError(f"{texts[number]} is not UTF-8 text (its byte {bad} cannot be decoded).") from None
                file.seek(at + used)
                ids = encode(line)[behind:]
                while ids:
                    if kept and len(kept) + len(ids) > longest:
                        yield kept, (number, at, behind)
                        kept = []
                    kept += ids[:longest]
                    behind += len(ids[:longest])
                    ids = ids[longest:]
                at, behind = at + used, 0
        if kept:
            yield kept, (number + 1, 0, 0)


class Survey:
    """A part of a model over texts.

    Args:
        top: passages kept. seed: of which positions the deciles are made.
    """

    def __init__(
        self, transformer: Transformer, vocabulary: Vocabulary, part: Part, *, top: int = 10, seed: int = 0
    ) -> None:
        part.check(transformer)
        if top < 1:
            raise UsageError(f"A survey keeps 1 passage or more; {top} is not.")
        self.transformer, self.vocabulary, self.part, self.top = transformer, vocabulary, part, top
        self.random = random.Random(seed)
        self.positions = self.texts = 0
        self.begin: tuple[int, int, int] = (0, 0, 0)
        self.best: list[tuple[float, int, int, str, str, str]] = []  # size, −text, −position, before, token, after
        self.asked: dict[str, Any] = {}  # which passages of the texts
        self.drawn: list[tuple[float, float, float, int]] = []  # strength, loss, loss without it, token

    @torch.no_grad()
    def read(self, ids: list[int]) -> None:
        """Take a passage in."""
        traced = Trace(self.transformer, ids, vocabulary=self.vocabulary)
        strength = self.part.acts(traced).double().cpu()
        logits = traced.forward.get("logits")[0]
        other = self._without(traced)
        target = torch.tensor(ids[1:], device=logits.device)
        losses = [torch.nn.functional.cross_entropy(x[:-1].float(), target, reduction="none") for x in (logits, other)]
        texts = traced.tokens
        for at in strength.abs().topk(min(self.top, len(ids))).indices.tolist():
            before, after = "".join(texts[max(0, at - AROUND) : at]), "".join(texts[at + 1 : at + 1 + AROUND])
            self.best.append((float(strength[at]), -self.texts, -at, before, texts[at], after))
        self.best = heapq.nlargest(self.top, self.best, key=lambda one: (abs(one[0]), one[1], one[2]))
        for at, (loss, without) in enumerate(zip(*(x.tolist() for x in losses), strict=True)):
            row = (float(strength[at]), loss, without, ids[at])
            self.positions += 1
            if len(self.drawn) < KEPT:
                self.drawn.append(row)
            elif (place := self.random.randrange(self.positions)) < KEPT:
                self.drawn[place] = row
        self.texts += 1

    def _without(self, traced: Trace) -> Float[Tensor, "query vocab"]:
        """Scores of the passage without the part: the rest of the forward, from its layer on."""
        forward, away = traced.forward, self.part.away().bind(self.transformer.config)
        first, where = self.part.layer, Where(forward.positions, None, 0)
        x = self.transformer.stream(
            forward.entering(first),
            forward.positions,
            layers=range(first, self.transformer.config.n_layers),
            tap=away,
            shared=dict(forward.shared(first)),
            inputs=forward.inputs(slice(0, forward.length), 1),
        )
        return self.transformer.unembed_hidden(finish(self.transformer, x, where))[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain data for JSON.

        Raises:
            TextError: when nothing was read.
        """
        if not self.drawn:
            raise TextError("No passage of the texts was read, so there is nothing to say of it.")
        rows = sorted(self.drawn)
        deciles = []
        for number in range(10):
            part = rows[len(rows) * number // 10 : len(rows) * (number + 1) // 10]
            if not part:
                continue
            n = len(part)
            common = Counter(token for *_, token in part).most_common(5)
            deciles.append(
                {
                    "decile": number + 1,
                    "from": part[0][0],
                    "to": part[-1][0],
                    "loss": sum(row[1] for row in part) / n,
                    "loss_without": sum(row[2] for row in part) / n,
                    "tokens": [{"token": self.vocabulary.token_text(t), "share": c / n} for t, c in common],
                }
            )
        return {
            **self.part.to_dict(),
            "texts": self.texts,
            "positions": self.positions,
            "drawn": len(rows),
            "deciles": deciles,
            "passages": [
                {"strength": s, "text": -t, "position": -p, "before": b, "token": w, "after": a}
                for s, t, p, b, w, a in self.best
            ],
        }

    def save(self, path: str | Path, texts: Sequence[Path]) -> None:
        """Write how far it is, whole or not at all.

        Raises:
            CheckpointError: it cannot be written.
        """
        told = {**self._described(texts), "asked": self.asked, **self.state()}
        sealed.write(path, told, raises=CheckpointError)

    def load(self, path: str | Path, texts: Sequence[Path]) -> None:
        """Go on from what `save` wrote.

        Raises:
            CheckpointError: it is none, is broken, or is of another model, part or texts.
        """
        told = sealed.read(path, FORMAT, "survey", raises=CheckpointError)
        mine = json.loads(json.dumps(self._described(texts)))
        for key, what in (("weights", "model"), ("part", "part"), ("files", "texts"), ("top", "number of passages")):
            if told.get(key) != mine[key]:
                raise CheckpointError(f"The survey in {path} is of another {what}; name another file, or begin anew.")
        try:
            self.restore(told)
            self.asked = dict(told["asked"])
        except (KeyError, TypeError, ValueError):
            raise CheckpointError(f"The survey in {path} lacks what was read so far.") from None

    def state(self) -> dict[str, Any]:
        """How far it is, as plain data that `restore` takes."""
        version, state, gauss = self.random.getstate()
        return {
            "begin": list(self.begin),
            "read": [self.texts, self.positions],
            "best": [list(row) for row in self.best],
            "drawn": [list(row) for row in self.drawn],
            "random": [version, list(state), gauss],
        }

    def restore(self, told: Mapping[str, Any]) -> None:
        """Go on from a state.

        Raises:
            KeyError, TypeError, ValueError: it is none.
        """
        version, state, gauss = told["random"]
        self.random.setstate((version, tuple(state), gauss))
        first, second, third = (int(x) for x in told["begin"])
        self.begin = first, second, third
        self.texts, self.positions = (int(x) for x in told["read"])
        self.best = [(float(s), int(t), int(p), str(b), str(w), str(a)) for s, t, p, b, w, a in told["best"]]
        self.drawn = [(float(s), float(x), float(y), int(t)) for s, x, y, t in told["drawn"]]

    def _described(self, texts: Sequence[Path]) -> dict[str, Any]:
        named = [[str(file.resolve()), _content(file, file.stat().st_size, file.stat().st_mtime_ns)] for file in texts]
        part = self.part.to_dict()
        return {
            "format": FORMAT,
            "weights": fingerprint(self.transformer),
            "part": part,
            "files": named,
            "top": self.top,
        }


def survey(
    found: Survey,
    texts: Sequence[Path],
    encode: Callable[[str], list[int]],
    lead: Sequence[int] = (),
    *,
    longest: int = 512,
    matching: str | None = None,
    keep: str | Path | None = None,
    every: int = 20,
    progress: Progress | None = None,
) -> Survey:
    """Read texts, from where the survey stands on.

    Args:
        encode: tokens of a piece of text, nothing put before it; lead: what is put before each passage.
        matching: only passages that hold this are read.
        keep: a file that says how far it is, written after `every` passages and at the end; read first where it is.

    Raises:
        TextError: for a file that is not UTF-8 text, or texts without a passage to read.
        UsageError: another process is reading into `keep`.
    """
    asked = {"matching": matching, "longest": longest, "lead": list(lead)}
    told = f"Another process is reading texts into {keep}; wait for it, or name another file."
    with nullcontext() if keep is None else locks.locked(keep, taken=lambda: UsageError(told)):
        if keep is not None and Path(keep).exists():
            found.load(keep, texts)
            if found.asked != asked:
                raise CheckpointError(
                    f"The survey in {keep} is of other passages of these texts; name another file, or begin anew."
                )
        found.asked = asked
        longest = min(longest, found.transformer.config.context) - len(lead)
        sizes = [file.stat().st_size for file in texts]
        for number, (ids, after) in enumerate(pieces(texts, encode, longest, found.begin)):
            spelt = "" if matching is None else "".join(found.vocabulary.token_text(i) for i in ids)
            if len(ids) + len(lead) > 1 and (matching is None or matching in spelt):
                found.read([*lead, *ids])
            found.begin = after
            if keep is not None and (number + 1) % every == 0:
                found.save(keep, texts)
            if progress is not None:
                progress(sum(sizes[: after[0]]) + after[1], sum(sizes), "reading")
        if keep is not None:
            found.save(keep, texts)
    if not found.texts:
        named = ", ".join(map(str, texts))
        said = f"with {matching!r} in it" if matching is not None else "of two tokens or more"
        raise TextError(f"There is no passage {said} in {named}.")
    return found


@functools.lru_cache(maxsize=64)
def _content(file: Path, size: int, changed: int) -> str:
    """A checksum of a text, until it is another."""
    return files.sha256(file)
