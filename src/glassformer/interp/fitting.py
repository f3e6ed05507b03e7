"""Fitting readouts to a text: tuned maps by least squares and then by divergence, the others by backward passes.

Tuned (arXiv:2303.08112): per layer the affine map whose reading diverges least from the model's own prediction. It
starts as the ridge regression from the layer's stream to the last (arXiv:2303.09435), is then trained, and of the
plain, the linear and the trained map the one that diverges least on windows set apart for that choice is kept.
Jacobian (arXiv:2607.15495): the mean over positions of the summed derivative of the last stream, here and at all later
positions, by the layer's. Relevance (the R-lens): the same of what RelP's rules (`edge_relevance`) send back in place
of the derivative. Of a stream in copies: of what they come to at the end, by all of them after the layer. All are
measured on held-out windows. First positions are left out: as attention sinks their streams are unlike all others.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from glassformer.errors import UsageError, near
from glassformer.interp import memory
from glassformer.interp.edge_relevance import of_stream
from glassformer.interp.fingerprint import fingerprint
from glassformer.interp.readout import KINDS, Readout, divergence, read
from glassformer.interp.taps import Bound, Compose, Record
from glassformer.model import Transformer
from glassformer.model.sites import Where
from glassformer.system.progress import Progress, quiet

# Tokens read at once through the unembedding, and in each step of training.
_CHUNK, _BATCH = 64, 32
# Tokens by which layers are measured, and by which one of the maps is chosen, at most.
_MEASURED, _JUDGED = 256, 128
# Ridge term, as a share of the mean variance of a dimension.
_RIDGE = 0.01


def fit(
    transformer: Transformer,
    ids: Sequence[int],
    kind: str = "tuned",
    *,
    window: int = 128,
    tokens: int = 4096,
    steps: int = 20,
    rows: int = 16,
    seed: int = 0,
    model: str = "",
    progress: Progress | None = None,
) -> Readout:
    """Fit a readout to the tokens of a text.

    `facts` are the numbers of tokens fitted to and held out, and per layer the mean divergence on the held-out ones of
    the plain lens (`plain`) and of this one (`kl`), and for tuned maps which was `kept`.

    Args:
        window: tokens read at once; one window in five (at least one) is held out.
        tokens: at most so many of the text are used; for the others than "tuned", a tenth of them is enough.
        steps: of training each tuned map; 0 for the regression alone.
        rows: derivatives taken at once, where they are.
        seed: of the split and the training.
        progress: called with (done, total, what).

    Raises:
        UsageError: an unknown kind, or too little text.
    """
    if kind not in KINDS:
        raise UsageError(
            f"A readout is {', '.join(KINDS[:-1])} or {KINDS[-1]}; {kind!r} is none of them.{near(kind, KINDS)}"
        )
    if steps < 0 or rows < 1 or window < 4:
        raise UsageError("Fitting takes no negative steps, at least one row, and windows of at least 4 tokens.")
    window = min(window, transformer.config.context)
    whole = torch.tensor(list(ids[: max(tokens, 0)]), dtype=torch.long)
    windows = whole[: len(whole) // window * window].view(-1, window)
    if len(windows) < 3:
        raise UsageError(f"Fitting needs three windows of {window} tokens; the text has {len(whole)} tokens.")
    order = torch.randperm(len(windows), generator=torch.Generator().manual_seed(seed))
    held = max(1, len(windows) // 5)
    known, apart = windows[order[held:]], windows[order[:held]]
    say = progress or quiet
    if kind == "tuned":
        matrices, biases, kept = _tuned(transformer, known, steps, seed, say)
    else:
        matrices, biases, kept = *_jacobian(transformer, known, rows, kind == "relevance", say), None
    found = Readout(kind, matrices, biases, model, fingerprint(transformer), {})
    plain, kl = _measure(transformer, apart, found)
    facts: dict[str, Any] = {"tokens": known.numel(), "held_out": apart.numel(), "window": window, "seed": seed}
    facts |= {"plain": plain, "kl": kl} | ({"kept": kept, "steps": steps} if kept is not None else {})
    return Readout(kind, matrices, biases, model, found.weights, facts)


def _first(window: int) -> int:
    """The first position that counts."""
    return min(16, window // 4)


@torch.no_grad()
def streams(transformer: Transformer, windows: Tensor) -> Float[Tensor, "layer row d_stream"]:
    """What each layer leaves at the positions that count, window after window."""
    c = transformer.config
    names = [f"blocks.{i}.resid_post" for i in range(c.n_layers)]
    rows = len(windows) * (windows.shape[1] - _first(windows.shape[1]))
    memory.numbers("The streams to fit to", (c.n_layers, rows, c.d_stream), 4).require("fit to fewer tokens")
    out = torch.empty(c.n_layers, rows, c.d_stream, dtype=transformer.embed.weight.dtype)
    each = rows // len(windows)
    for i, one in enumerate(windows):
        record = Record(*names)
        transformer.hidden(one[None].to(transformer.device), tap=record.bind(c))
        for layer, name in enumerate(names):
            out[layer, i * each : (i + 1) * each] = record.tensor(name)[0, -each:].cpu()
    return out


@torch.no_grad()
def gathered(transformer: Transformer, x: Float[Tensor, "layer row d_stream"]) -> Float[Tensor, "layer row d_model"]:
    """What the copies of streams come to."""
    return torch.stack([transformer.gathered(one.to(transformer.device)).cpu() for one in x])


def _measure(transformer: Transformer, windows: Tensor, found: Readout) -> tuple[list[float], list[float]]:
    """Mean divergence per layer of the plain lens and of a readout."""
    x = _some(streams(transformer, windows), _MEASURED)
    plain = gathered(transformer, x)
    through = [found.of(transformer, i, one.to(transformer.device)) for i, one in enumerate(x)]
    kls = _kl(transformer, plain[-1], [*plain, *through])
    return kls[: len(x)], kls[len(x) :]


def _some(x: Float[Tensor, "layer row d"], most: int) -> Float[Tensor, "layer row d"]:
    """At most so many of the rows, spread evenly."""
    return x[:, :: -(-x.shape[1] // most)]


@torch.no_grad()
def _kl(transformer: Transformer, last: Float[Tensor, "row d_model"], students: Sequence[Tensor]) -> list[float]:
    """Mean divergence of each of several streams, read as the last, from the last."""
    device, totals = transformer.device, [0.0] * len(students)
    for a in range(0, len(last), _CHUNK):
        teacher = read(transformer, last[a : a + _CHUNK].to(device))
        for i, x in enumerate(students):
            student = read(transformer, x[a : a + _CHUNK].to(device))
            totals[i] += float(divergence(teacher, student).sum())
    return [total / len(last) for total in totals]


def _tuned(
    transformer: Transformer, windows: Tensor, steps: int, seed: int, say: Progress
) -> tuple[Tensor, Tensor, list[str]]:
    x = gathered(transformer, streams(transformer, windows))
    each = x.shape[1] // len(windows)
    apart = each * max(1, len(windows) // 8)
    judge, train = _some(x[:, :apart], _JUDGED), x[:, apart:]
    layers, d = x.shape[0], x.shape[2]
    eye, zero = torch.eye(d, dtype=x.dtype), torch.zeros(d, dtype=x.dtype)
    matrices, biases = eye.repeat(layers, 1, 1), zero.repeat(layers, 1)
    kept = ["plain"] * layers
    for layer in range(layers - 1):
        say(layer, layers - 1, "tuning layers")
        linear = _regression(train[layer], train[-1])
        tried = {"plain": (eye, zero), "linear": linear}
        if steps:
            tried["tuned"] = _trained(transformer, train[layer], train[-1], linear, steps, seed + layer)
        judged = _kl(transformer, judge[-1], [judge[layer] @ m.T + b for m, b in tried.values()])
        divergences = dict(zip(tried, judged, strict=True))
        best = min(divergences, key=lambda name: divergences[name])
        kept[layer] = best
        matrices[layer], biases[layer] = tried[best]
    return matrices, biases, kept


def _regression(x: Float[Tensor, "row d_model"], last: Float[Tensor, "row d_model"]) -> tuple[Tensor, Tensor]:
    """Ridge regression of what is still missing, drawn to the plain lens; rows weigh alike once normed."""
    a, b = x.double(), (last - x).double()
    weight = 1 / last.double().square().mean(-1, keepdim=True).clamp(min=1e-12)
    weight = weight / weight.sum()
    mean_a, mean_b = (weight * a).sum(0), (weight * b).sum(0)
    a, b = a - mean_a, b - mean_b
    gram = a.T @ (weight * a)
    gram.diagonal().add_(_RIDGE * float(gram.diagonal().mean()) + 1e-12)
    slope = torch.linalg.solve(gram, a.T @ (weight * b)).T
    matrix = torch.eye(a.shape[1], dtype=torch.float64) + slope
    return matrix.to(x.dtype), (mean_b - slope @ mean_a).to(x.dtype)


def _trained(
    transformer: Transformer, x: Tensor, last: Tensor, start: tuple[Tensor, Tensor], steps: int, seed: int
) -> tuple[Tensor, Tensor]:
    """The map after some steps of Adam on the divergence, from `start`."""
    device, generator = transformer.device, torch.Generator().manual_seed(seed)
    size = x.square().mean().sqrt().clamp(min=1e-12)
    step = torch.zeros_like(start[0], device=device, requires_grad=True)
    bias = start[1].to(device).clone().requires_grad_()
    matrix = start[0].to(device)
    optimizer = torch.optim.Adam([{"params": [step], "lr": 1e-3}, {"params": [bias], "lr": 1e-3 * float(size)}])
    for i in range(steps):
        for group, rate in zip(optimizer.param_groups, (1e-3, 1e-3 * float(size)), strict=True):
            group["lr"] = rate * (1 - i / steps)
        chosen = torch.randint(0, len(x), (min(_BATCH, len(x)),), generator=generator)
        here, there = x[chosen].to(device), last[chosen].to(device)
        with torch.no_grad():
            teacher = read(transformer, there)
        with torch.enable_grad():
            y = here @ (matrix + step / x.shape[1] ** 0.5).T + bias
            loss = divergence(teacher, read(transformer, y)).mean()
            step.grad, bias.grad = torch.autograd.grad(loss, [step, bias])
        optimizer.step()
    return (matrix + step.detach() / x.shape[1] ** 0.5).cpu(), bias.detach().cpu()


def _jacobian(
    transformer: Transformer, windows: Tensor, rows: int, relevance: bool, say: Progress
) -> tuple[Tensor, Tensor]:
    """Exact derivatives (or what RelP's rules send back) of every window, `rows` of them a backward pass."""
    c, device, dtype = transformer.config, transformer.device, transformer.embed.weight.dtype
    names = [f"blocks.{i}.resid_post" for i in range(c.n_layers)]
    first = _first(windows.shape[1])
    rows = min(rows, c.d_model)
    total = torch.zeros(c.n_layers, c.d_model, c.d_stream, dtype=torch.float64)
    passes = -(-c.d_model // rows)
    for number, one in enumerate(windows):
        with torch.enable_grad():
            positions = torch.arange(len(one), device=device).expand(rows, -1)
            record = Record(*names)
            tap = Compose(record, Bound(of_stream(c) if relevance else [])).bind(c)
            tokens = one.to(device).expand(rows, -1)
            x = transformer.embedded(tokens, Where(positions, None, 0)).detach().requires_grad_()
            last = transformer.stream(x, positions, tap=tap, inputs=transformer.inputs(tokens))
            last = transformer.gathered(last, held=relevance)
            places = [record.tensor(name) for name in names]
            for k in range(passes):
                say(number * passes + k, len(windows) * passes, "derivatives")
                dims = torch.arange(k * rows, min((k + 1) * rows, c.d_model))
                cotangent = torch.zeros(rows, len(one), c.d_model, dtype=dtype, device=device)
                cotangent[torch.arange(len(dims)), first:, dims] = 1.0
                grads = torch.autograd.grad(last, places, cotangent, retain_graph=k + 1 < passes)
                for layer, g in enumerate(grads):
                    total[layer, dims] += g[: len(dims), first:].double().mean(1).cpu()
    return (total / len(windows)).to(dtype), torch.zeros(c.n_layers, c.d_model, dtype=dtype)
