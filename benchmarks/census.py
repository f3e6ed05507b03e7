"""How many decoder-only architectures of `transformers` does Glassformer load, and compute as they do?

    python census.py [--out OUT.json] [--only llama,gemma2] [--no-variants] [--timeout 120] [--keep DIR] [--save]

For every model type in transformers' table of causal language models a tiny random model is built with the
architecture's own features switched on, saved as safetensors with a small byte-level tokenizer, loaded again with
transformers (the reference: eager attention, float32, no cache) and with `glassformer.load`, and the logits of 12
and of 60 tokens are compared. One forked process per model, each with its own time limit. `timm`, without which
transformers does not build Gemma 3n's wrapper, lies beside the peers' environment (make peers), which also
has TransformerLens's list.

Outcomes: OK, WRONG (loaded, and the logits differ), REFUSED (one sentence that names what stands in the way),
CRASH (any other exception, a signal, or a time-out in Glassformer), SKIPPED (no tiny reference could be built; what
Glassformer says of the config alone is then noted), EXCLUDED (not a decoder-only language model).
"""

from __future__ import annotations

import collections
import copy
import json
import multiprocessing
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
import warnings
from pathlib import Path

from census_models import LONG, SHORT, TOLERANCE, build, difference, rows
from census_settings import EXCLUDED, VARIANTS
from common import arguments, report
from common import table as markdown

for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
    os.environ.setdefault(name, "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
warnings.filterwarnings("ignore")


def examine(model_type, extra, keep):
    import torch

    torch.set_num_threads(1)
    directory = Path(keep) if keep else Path(tempfile.mkdtemp(prefix="census-"))
    directory.mkdir(parents=True, exist_ok=True)
    found = {}
    try:
        try:
            settings, reference, count, notes = build(model_type, dict(extra), directory)
            found |= {"settings": settings, "parameters": count, "notes": notes,
                      "largest": round(float(reference[1].abs().max()), 3)}  # fmt: skip
        except BaseException as error:
            found |= {"outcome": "SKIPPED", "reason": f"{type(error).__name__}: {error}"[:900]}
            found["trace"] = traceback.format_exc()[-1500:]
            if not (directory / "config.json").exists():
                (directory / "config.json").write_text(json.dumps({"model_type": model_type}))
            found["says"] = glassformer_says(directory)[1]
            return found
        outcome, said, model = glassformer_says(directory, load=True)
        found |= {"outcome": outcome, "reason": said}
        if model is None:
            return found
        try:
            ours = [model.logits(ids).float().reshape(len(ids), -1) for ids in rows()]
        except BaseException as error:
            found |= {"outcome": "CRASH", "reason": f"logits: {type(error).__name__}: {error}"[:900]}
            found["trace"] = traceback.format_exc()[-1500:]
            if type(error).__module__ == "glassformer.errors":
                found["outcome"] = "REFUSED"
            return found
        off = [difference(a, b) for a, b in zip(ours, reference, strict=True)]
        found |= {"outcome": "OK" if max(off) <= TOLERANCE else "WRONG", "difference": off, "reason": ""}
        if found["outcome"] == "WRONG":
            found["reason"] = f"12 tokens {off[0]:.1e}, 60 tokens {off[1]:.1e}"
        return found
    finally:
        if not keep:
            shutil.rmtree(directory, ignore_errors=True)


def glassformer_says(directory, load=False):
    """(outcome, what it said, model or None)"""
    import glassformer as gf
    from glassformer.errors import GlassformerError

    try:
        model = gf.load(directory, device="cpu", dtype="float32")
        return "LOADED", "", model
    except GlassformerError as error:
        return "REFUSED", f"{type(error).__name__}: {str(error).replace(str(directory), 'DIR')}", None
    except BaseException as error:
        return "CRASH", f"{type(error).__name__}: {error}"[:900] + "\n" + traceback.format_exc()[-1200:], None


def child(queue, model_type, extra, keep):
    os.setpgid(0, 0)
    sys.stdout.flush()
    with open(os.devnull, "w") as nothing:
        os.dup2(nothing.fileno(), 1)
        os.dup2(nothing.fileno(), 2)
    queue.put(examine(model_type, extra, keep))


def guarded(context, model_type, extra, timeout, keep):
    queue = context.SimpleQueue()
    process = context.Process(target=child, args=(queue, model_type, extra, keep))
    start = time.monotonic()
    process.start()
    while process.is_alive() and queue.empty() and time.monotonic() - start < timeout:
        time.sleep(0.02)
    found = queue.get() if not queue.empty() else None
    if found is None:
        late = process.is_alive()
        if late:
            os.kill(process.pid, signal.SIGKILL)
        process.join()
        what = f"not done after {timeout} s" if late else f"the process ended with {process.exitcode}"
        found = {"outcome": "SKIPPED" if late else "CRASH", "reason": what}
    process.join()
    return {**found, "seconds": round(time.monotonic() - start, 1)}


def table(results):
    order = ["OK", "WRONG", "CRASH", "REFUSED", "SKIPPED", "EXCLUDED"]
    for group, what in (("arch", "Architectures"), ("variant", "Variants")):
        mine = [r for r in results if r["group"] == group]
        if not mine:
            continue
        counts = collections.Counter(r["outcome"] for r in mine)
        print(f"\n{what}: " + ", ".join(f"{counts[o]} {o}" for o in order if counts[o]) + f" of {len(mine)}")
        for r in sorted(mine, key=lambda r: (order.index(r["outcome"]), r["name"])):
            said = " ".join(str(r.get("reason", "")).split())
            if "difference" in r and r["outcome"] == "OK":
                said = f"max {max(r['difference']):.1e}"
            if r.get("says"):
                said += f" || on the config alone: {r['says']}"
            print(f"  {r['outcome']:8} {r['name']:48} {said[:230]}")


def images_of(peers):
    """Makes the `timm` that lies beside the peers importable here; its kernels for images, which no text needs, may be
    built for another torch than ours: then they are named, and none of them can be called."""
    import importlib.util

    import torch

    sys.path.append(str(Path(peers).parent.parent / "images"))
    found = importlib.util.find_spec("torchvision")
    if found is None or importlib.util.find_spec("timm") is None:
        return
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
        text = Path(found.origin).with_name("_meta_registrations.py").read_text("utf-8")
        library = torch.library.Library("torchvision", "DEF")
        for name in {a or b for a, b in re.findall(r'register_meta\("(\w+)"\)|torchvision::(\w+)', text)}:
            library.define(f"{name}(Tensor x) -> Tensor")
        images_of.library = library  # which takes its names away when it goes


def bridged(peers):
    """The classes that TransformerLens's bridge reads; None where the peers do not have it."""
    code = "from transformer_lens.tools.model_registry import HF_SUPPORTED_ARCHITECTURES as h; print(*sorted(h))"
    try:
        done = subprocess.run([peers, "-c", code], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return set(done.stdout.split())


def kept(results, options, version, classes):
    """The result as a section of docs/benchmarks.md."""
    order = ["OK", "REFUSED", "WRONG", "CRASH", "SKIPPED"]
    rows, listed = [], []
    for group, what in (("arch", "types of model"), ("variant", "variants of ten families")):
        counts = collections.Counter(r["outcome"] for r in results if r["group"] == group)
        rows.append((what, sum(counts[o] for o in order), *(counts[o] for o in order)))
    types = [r for r in results if r["group"] == "arch" and r["outcome"] != "EXCLUDED"]
    for r in results:
        if r["outcome"] not in ("OK", "EXCLUDED"):
            said = str(r.get("reason", "")).partition(": ")[2].replace("DIR/config.json", "config.json")
            listed.append((r["name"], r["outcome"], " ".join(said.split())[:400]))
    theirs = bridged(options.peers)
    beside = ""
    if theirs is not None:
        both = sum(classes.get(r["model_type"]) in theirs for r in types)
        beside = f" TransformerLens's bridge lists the classes of {both} of these types."
    report(
        "census",
        "Which types of model open",
        markdown(("", "in all", *order), rows)
        + "\n\nWhat is not OK:\n\n"
        + markdown(("", "outcome", "it says"), listed),
        options,
        f"Every decoder-only type that transformers {version} lists: a tiny random model with its features switched "
        f"on, logits of {SHORT} and of {LONG} tokens compared, max|Δ| ≤ {TOLERANCE:g} · max|logit|.{beside}",
    )


def main():
    parser = arguments(__doc__)
    parser.add_argument("--out", help="write everything that was found into this JSON file")
    parser.add_argument("--only", default="")
    parser.add_argument("--no-variants", action="store_true")
    parser.add_argument("--timeout", type=float, default=120)
    parser.add_argument("--keep", help="keep the tiny models under this folder")
    options = parser.parse_args()
    images_of(options.peers)  # before transformers looks what there is
    import torch
    import transformers
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    import glassformer
    import glassformer.loading
    import glassformer.tokenizer.tokenizer

    torch.set_num_threads(1)
    examine("llama", {}, None)  # what every child would import is imported once, here
    context = multiprocessing.get_context("fork")
    only = set(filter(None, options.only.split(",")))
    work = [("arch", t, t, {}) for t in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES]
    if not options.no_variants:
        work += [("variant", f"{t}: {name}", t, extra) for t, name, extra in VARIANTS]
    results = []
    for group, name, model_type, extra in work:
        if only and model_type not in only:
            continue
        if model_type in EXCLUDED and not only:
            result = {"outcome": "EXCLUDED", "reason": "not a decoder-only language model"}
        else:
            keep = str(Path(options.keep) / re.sub(r"\W+", "-", name)) if options.keep else None
            result = guarded(context, model_type, copy.deepcopy(extra), options.timeout, keep)
        results.append({"group": group, "name": name, "model_type": model_type, **result})
        said = " ".join(str(result.get("reason", "")).split())[:110]
        took = result.get("seconds", 0)
        print(f"{len(results):3} {result['outcome']:8} {name:44} {took:5} s  {said}", file=sys.stderr, flush=True)
        if options.out:
            versions = {one.__name__: one.__version__ for one in (transformers, torch, glassformer)}
            found = {**versions, "tolerance": TOLERANCE, "results": results}
            Path(options.out).write_text(json.dumps(found, indent=1, default=str))
    table(results)
    kept(results, options, transformers.__version__, MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


if __name__ == "__main__":
    main()
