"""GGUF files of every family that llama.cpp has, written by us and loaded by it: logits against ours.

Tiny random models, made by transformers with the features of their family on, without a vocabulary: token numbers go in
and logits come out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ROOT, Worker, arguments, need_peers, report, serve, skip, table

IDS = [(7 * i * i + 3 * i + 5) % 90 + 3 for i in range(24)]
KINDS = ("float32", "bfloat16", "q8_0", "q6_k", "q4_k", "q4_0")
ASKED = 1e-3


def handler() -> Any:
    """The peer: one file at a time, keys and values in float32, all tokens in one batch."""
    import ctypes

    import llama_cpp as c
    import numpy

    lines: list[str] = []
    log = c.llama_log_callback(lambda level, text, data: lines.append(text.decode()) if level >= 3 else None)
    c.llama_log_set(log, ctypes.c_void_p(0))
    c.llama_backend_init()

    def answer(file: str, ids: list[int], to: str) -> dict[str, Any]:
        lines.clear()
        model = c.llama_model_load_from_file(file.encode(), c.llama_model_default_params())
        if not model:
            return {"error": " ".join(line.strip() for line in lines), "version": c.__version__}
        settings = c.llama_context_default_params()
        settings.n_ctx = settings.n_batch = settings.n_ubatch = 64
        settings.type_k = settings.type_v = 0
        settings.flash_attn_type = 0
        settings.n_threads = settings.n_threads_batch = 2
        context = c.llama_init_from_model(model, settings)
        if not context:
            return {"error": " ".join(line.strip() for line in lines), "version": c.__version__}
        vocab = c.llama_vocab_n_tokens(c.llama_model_get_vocab(model))
        batch = c.llama_batch_init(len(ids), 0, 1)
        batch.n_tokens = len(ids)
        for i, token in enumerate(ids):
            batch.token[i], batch.pos[i], batch.logits[i] = token, i, True
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, 0
        code = c.llama_decode(context, batch)
        rows = [numpy.ctypeslib.as_array(c.llama_get_logits_ith(context, i), (vocab,)).copy() for i in range(len(ids))]
        numpy.save(to, numpy.array(rows))
        c.llama_batch_free(batch)
        c.llama_free(context)
        c.llama_model_free(model)
        return {"code": code, "version": c.__version__}

    answer.log = log  # type: ignore[attr-defined]  # llama.cpp keeps no reference to it
    return answer


def models() -> Iterator[tuple[str, Any]]:
    """Every family's name and tiny model."""
    from tests.checkpoint import test_alike
    from tests.checkpoint.gguf_settings import GGUF, settings_of
    from tests.tiny import tiny_hf

    own = {"query_pre_attn_scalar": 16}
    for name, more in {
        "llama": {},
        "qwen2": {},
        "qwen3": {},
        "gemma2": own,
        "gemma3_text": {**own, "layer_types": None, "num_hidden_layers": 7},
        "gpt2": {},
        "gpt_neox": {"hidden_act": "gelu_new"},
    }.items():
        yield name, tiny_hf(name, **more)
    for name in sorted(GGUF):
        usual = test_alike.SETTINGS.get(name, test_alike.SETTINGS.get(test_alike.kind(name), {}))
        test_alike.SETTINGS[f"{name}: here"] = settings_of(name, usual)
        yield name, test_alike.reference(f"{name}: here")


def wide() -> Any:
    """A Llama whose rows are wide enough for blocks of 256, with weights as they are drawn for training."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    sizes = {"hidden_size": 256, "intermediate_size": 512, "num_hidden_layers": 4, "vocab_size": 320}
    torch.manual_seed(0)
    config = AutoConfig.for_model("llama", **sizes, num_attention_heads=4, initializer_range=0.06)
    return AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()


def logits(checkpoint: Any) -> Any:
    """Ours, in float32."""
    import torch

    from glassformer.model import Transformer

    model = Transformer.empty(checkpoint.config).load(checkpoint.tensors, dtype=torch.float32)
    with torch.no_grad():
        return model(torch.tensor([IDS]))[0]


def as_peer_spreads(checkpoint: Any) -> Any:
    """A Gemma 3n as llama.cpp computes it: the deviation of n gates is taken over n − 1, not over n."""
    import torch

    normal = torch.distributions.Normal(0.0, 1.0)
    layers = []
    for layer in checkpoint.config.layers:
        feed = layer.feed_forward
        times = normal.icdf(torch.tensor(feed.sparsity)) * (feed.d_ff / (feed.d_ff - 1)) ** 0.5
        share = float(normal.cdf(times)) if feed.sparsity else 0.0
        layers.append(dataclasses.replace(layer, feed_forward=dataclasses.replace(feed, sparsity=share)))
    config = dataclasses.replace(checkpoint.config, layers=tuple(layers))
    return SimpleNamespace(config=config, tensors=checkpoint.tensors)


@contextlib.contextmanager
def gelu_of_a_table() -> Iterator[None]:
    """Gelus as llama.cpp looks them up: of an argument in float16, in float16, between −10 and 10."""
    from unittest.mock import patch

    import torch
    import torch.nn.functional as F

    exact = F.gelu

    def rounded(x: Any, approximate: str = "none") -> Any:
        found = exact(x.half().float(), approximate=approximate).half().float()
        return torch.where(x.abs() < 10, found, exact(x, approximate=approximate))

    with patch.object(F, "gelu", rounded):
        yield


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference of logits by the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--only", nargs="*", help="families, by the names of the table; all by default")
    options = parser.parse_args()
    need_peers(options, "llama_cpp")
    try:
        import transformers
    except ImportError:
        skip("transformers, which makes the tiny models, is not installed here (make test installs it)")
    import warnings

    import numpy
    import torch

    sys.path.insert(0, str(ROOT))
    transformers.logging.set_verbosity_error()
    transformers.logging.disable_progress_bar()
    warnings.simplefilter("ignore")
    from glassformer.checkpoint import open_checkpoint, write_gguf
    from glassformer.checkpoint.gguf_header import read_gguf_header

    torch.set_num_threads(options.threads)
    rows, packed, version, good, architectures = [], [], "", 0, set()
    with tempfile.TemporaryDirectory() as place, contextlib.ExitStack() as stack:
        folder = Path(place)

        def started() -> Worker:
            return stack.enter_context(Worker(options.peers, __file__, threads=options.threads))

        peer = started()

        def compared(model: Any, name: str, dtype: str) -> tuple[Any, Any, Any, str]:
            """Ours of the folder, the file as we read it, llama.cpp's or what it said, and the file's architecture."""
            nonlocal version, peer
            file, out = folder / "m.gguf", folder / "logits.npy"
            model.save_pretrained(folder / "hf")
            source = open_checkpoint(folder / "hf")
            write_gguf(file, source.config, source.tensors, family=name.partition(":")[0], dtype=dtype)
            read, header = open_checkpoint(file, cache=folder / "cache"), read_gguf_header(file)
            whole = logits(source)
            try:
                answer = peer.ask(file=str(file), ids=IDS, to=str(out))
            except RuntimeError:  # it aborts where its source has an assertion, and the next file gets another one
                answer = {"error": f"llama.cpp left with code {peer.process.wait()}", "version": version}
                peer = started()
            version = answer["version"]
            theirs = answer.get("error") or torch.from_numpy(numpy.load(out))
            for path in (folder / "hf").iterdir():
                path.unlink()
            return whole, read, theirs, header.settings["general.architecture"]

        for name, model in models():
            if options.only is not None and name not in options.only:
                continue
            whole, read, theirs, architecture = compared(model, name, "float32")
            back = f"{distance(logits(read), whole):.1e}"
            if isinstance(theirs, str):
                rows.append((name, architecture, back, theirs.rpartition("error loading model: ")[2][:120], "NOT met"))
                continue
            forms = {name: logits(read)}
            if architecture == "gemma3n":
                with gelu_of_a_table():
                    forms[f"{name}, as it computes"] = logits(as_peer_spreads(read))
            for said, ours in forms.items():
                apart = distance(ours, theirs)
                rows.append((said, architecture, back, f"{apart:.1e}", "met" if apart <= ASKED else "NOT met"))
            if distance(forms[name], theirs) <= ASKED:
                good += 1
                architectures.add(architecture)
        for dtype in () if options.only is not None else KINDS:
            whole, read, theirs, _ = compared(wide(), "llama", dtype)
            ours = logits(read)
            packed.append(
                (
                    dtype,
                    f"{distance(ours, whole):.1e}",
                    f"{distance(ours, theirs):.1e}",
                    f"{distance(whole, theirs):.1e}",
                )
            )
    families = len({name.partition(", ")[0] for name, *_ in rows})
    head = ("family", "architecture", "file read again, from the folder", "llama.cpp, from ours", f"asked ≤ {ASKED:g}")
    blocks = ("blocks", "ours of the file, from the folder", "llama.cpp, from ours", "llama.cpp, from the folder")
    report(
        "gguf_families",
        "Every family's GGUF in llama.cpp",
        table(head, rows) + "\n\nA Llama of 256 dimensions in every kind of blocks:\n\n" + table(blocks, packed),
        options,
        f"{good} of {families} tiny random models, of {len(architectures)} architectures, written as F32 GGUF: "
        f"max|Δ| / max|logit| over {len(IDS)} tokens, our logits from the file against those from the folder, and "
        f"llama-cpp-python {version}'s against ours. Where a family has a gelu, llama.cpp looks it up in a table of "
        "float16, which is the 1e-4 to 9e-4 below. On blocks of 4 to 8 bits llama.cpp rounds activations too, and we "
        "do not; nor does it multiply bfloat16 in float32. In Gemma 3n it takes the deviation of a part's gates over "
        "n − 1 where transformers takes it over n, which shows in parts as narrow as these; its second row is ours "
        "with that deviation and gelus from such a table.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(handler())
    else:
        main()
