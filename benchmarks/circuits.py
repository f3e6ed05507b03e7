"""How well edges are ranked on the tasks that SmolLM2 can do: EAP, EAP-IG, RelP, random orders, and estimates with
exact values in place of the unreliable and the strongest.

All methods see the same prompts. For each task: the area CMD between the faithfulness of the best edges and 1, how
alike the best sets of redrawn prompts are, and how estimates go with what was measured, with and without the flag.
"""

from __future__ import annotations

import dataclasses
import json
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from common import arguments, report, table, verdict

# The best sets that are compared under bootstrap hold so many of all edges.
SHARE = 0.005
# Correlations with exact values are over so many prompts.
MEASURED_ON = 5
METHODS = ("EAP", "EAP-IG", "RelP", "ours")
REDRAWN = ("EAP", "EAP-IG", "ours")


def task(model: Any, name: str, prompts: int, run: int, measured: int) -> dict[str, Any]:
    """Everything that the tables hold of one task."""
    import torch

    from glassformer.errors import GlassformerError
    from glassformer.interp.circuit_search import Runs, curve, greedy, jaccard
    from glassformer.interp.edge_estimates import Estimates
    from glassformer.interp.edge_exact import Exact
    from glassformer.interp.edges import edges
    from glassformer.interp.tasks import examples, solved

    start = time.process_time()
    try:
        rows = examples(name, model.encode, prompts)
        pairs = [(model.trace(row["clean"]), model.trace(row["corrupted"])) for row in rows]
        right = solved(name, rows, pairs)
    except GlassformerError as error:
        return {"task": name, "refused": str(error)}
    rows, pairs = [rows[i] for i in right], [pairs[i] for i in right]
    named = {"answer": [row["answer"] for row in rows], "wrong": [row["wrong"] for row in rows]}
    ours = edges(pairs, **named)
    nothing = torch.full_like(ours.exact, torch.nan)
    first = {key: getattr(ours, key)[:run] for key in ("pairs", "first", "curvature")}
    relp = torch.stack([Estimates(pair).by("relp", 1).flatten() for pair in first["pairs"]])
    found = {
        "EAP": dataclasses.replace(ours, estimate=ours.first, exact=nothing),
        "EAP-IG": dataclasses.replace(ours, exact=nothing),
        "RelP": dataclasses.replace(ours, **first, estimate=relp, exact=nothing[:run]),
        "ours": ours,
    }
    graph, runs = ours.graph, Runs(ours.pairs[:run])
    g = torch.Generator().manual_seed(0)
    size = int(SHARE * graph.total)

    def mean(seen: Any) -> Callable[[Any], Any]:
        return lambda weights: weights @ seen.estimate

    # The others rank by the mean over prompts, as they were published.
    ranked = {method: mean(seen) for method, seen in found.items()} | {"ours": ours.strengths()}
    orders = {
        method: greedy(graph, ranked[method](torch.full((len(seen.pairs),), 1 / len(seen.pairs)).double()))
        for method, seen in found.items()
    }
    orders["random"] = greedy(graph, torch.rand(graph.total, generator=g))
    out: dict[str, Any] = {
        "task": name,
        "prompts": len(right),
        "accuracy": len(right) / prompts,
        "unreliable": float((~ours.reliable).double().mean()),
        "measured": ours.replaced,
        "tried": ours.tried,
        "cmd": {method: curve(runs, graph.total, order).cmd for method, order in orders.items()},
        "jaccard": {method: jaccard(graph, len(right), size, ranked[method]) for method in REDRAWN},
        "r": {},
    }
    strongest = ours.order()[:measured]
    drawn = torch.randperm(graph.total, generator=g)[:measured]
    for kind, chosen in (("strongest", strongest.sort().values), ("random", drawn.sort().values)):
        exact = ours.exact[:MEASURED_ON, chosen]
        for row, pair in zip(exact, ours.pairs, strict=False):
            row[row.isnan()] = Exact(pair)(chosen[row.isnan()])
        for method in ("EAP", "EAP-IG", "RelP"):
            both = torch.stack([found[method].estimate[:MEASURED_ON].mean(0)[chosen], exact.mean(0)])
            trusted = found[method].reliable[chosen]
            out["r"][f"{method}, {kind}"] = {
                "all": float(torch.corrcoef(both)[0, 1]),
                "reliable": float(torch.corrcoef(both[:, trusted])[0, 1]),
                "share": float(trusted.double().mean()),
            }
    return out | {"seconds": time.process_time() - start}


def show(found: list[dict[str, Any]], options: Any) -> None:
    """The tables, from what all tasks gave."""
    from glassformer.interp import edges
    from glassformer.interp.tasks import TASKS

    done = [row for row in found if "refused" not in row]
    kinds = [*METHODS, "random"]

    def mean(key: str, method: str) -> float:
        return statistics.mean(row[key][method] for row in done)

    rows: list[tuple[str, ...]] = [
        (
            row["task"],
            f"{row['prompts']} ({row['accuracy']:.0%})",
            f"{row['measured']:.1%} ({row['tried']:.1%})",
            *(f"{row['cmd'][method]:.3f}" for method in kinds),
            *(f"{row['jaccard'][method]:.2f}" for method in REDRAWN),
        )
        for row in done
    ]
    means = [*(f"{mean('cmd', method):.3f}" for method in kinds), *(f"{mean('jaccard', m):.2f}" for m in REDRAWN)]
    rows.append(("mean", "", "", *means))
    head = (
        "task",
        "prompts (right)",
        "measured (tried)",
        *(f"CMD {m}" for m in kinds),
        *(f"Jaccard {m}" for m in REDRAWN),
    )
    others = min(mean("cmd", method) for method in ("EAP", "EAP-IG", "random"))
    alike = max(mean("jaccard", method) for method in ("EAP", "EAP-IG"))
    verdicts = [
        ("mean CMD of ours", verdict(mean("cmd", "ours"), most=0.03)),
        ("below EAP's, EAP-IG's and random's", verdict(mean("cmd", "ours"), most=round(others, 4))),
        ("Jaccard above EAP's and EAP-IG's", verdict(mean("jaccard", "ours"), least=round(alike, 3))),
        ("Jaccard", verdict(mean("jaccard", "ours"), least=0.8)),
    ]
    names = list(done[0]["r"])
    correlations = [
        (
            name,
            *(f"{statistics.mean(row['r'][name][key] for row in done):.3f}" for key in ("all", "reliable", "share")),
        )
        for name in names
    ]
    refused = "".join(f" {row['refused']}" for row in found if "refused" in row)
    report(
        "circuits",
        "Circuits: how edges are ranked, by task",
        "\n\n".join(
            (
                table(head, rows),
                table(("asked", "figure"), verdicts),
                table(("estimates", "r with exact values", "r of the reliable", "share reliable"), correlations),
            )
        ),
        options,
        "SmolLM2-135M in float32; prompts from the task table that the model gets right. CMD is the mean distance"
        " from 1 of the faithfulness of the best 0.1 to 100 % of the edges, the others as in the corrupted prompt"
        f" (0 is best). Jaccard is the overlap of the best {SHARE:.1%} of the edges between 100 draws of the "
        "prompts with repetition. Ours ranks by the mean over prompts of the sizes of EAP-IG, averaged with those of "
        f"exact values for the 300 strongest, on {edges.MEASURED_ON} prompts, and the unreliable, on {edges.TRIED} or, "
        f"where they come near the strongest there, on {edges.MEASURED_ON}; the column says for which share. The "
        f"others rank by their mean. CMD and RelP are of the first {options.run} prompts, correlations of the first "
        f"{MEASURED_ON}, over {options.measured} edges, means of the tasks. {len(found)} of {len(TASKS)} tasks were "
        "tried, "
        f"on up to {options.prompts} prompts each.{refused}",
    )


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--prompts", type=int, default=100, help="prompts of each task")
    parser.add_argument("--run", type=int, default=10, help="prompts on which sets of edges are run")
    parser.add_argument("--measured", type=int, default=300, help="edges of each kind for the correlations")
    parser.add_argument("--tasks", nargs="*", help="some of the tasks; all without")
    parser.add_argument("--keep", type=Path, help="a file of what was found, from which a run goes on")
    options = parser.parse_args()
    import torch

    import glassformer as gf
    from glassformer.interp.tasks import TASKS

    torch.set_num_threads(options.threads)
    model = gf.load("smollm2", device="cpu", dtype="float32")
    kept = options.keep
    found: list[dict[str, Any]] = json.loads(kept.read_text()) if kept is not None and kept.exists() else []
    wanted = list(TASKS) if options.tasks is None else options.tasks
    found = [row for row in found if row["task"] in wanted]
    for name in wanted:
        if name not in {row["task"] for row in found}:
            found.append(task(model, name, options.prompts, options.run, options.measured))
            print(json.dumps(found[-1]), file=sys.stderr, flush=True)
            if kept is not None:
                kept.write_text(json.dumps(found))
    show(found, options)


if __name__ == "__main__":
    main()
