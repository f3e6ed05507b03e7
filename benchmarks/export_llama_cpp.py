"""GGUF files that we export, loaded by llama.cpp: the same tokens and the same logits."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from common import Worker, arguments, need_peers, report, serve, smollm2, table, verdict

PROMPT = (
    "The capital of France is Paris. Naïve café 12345, don't!\n\n  def mole(x):\n\treturn x ** 2\n"
    "Light travels through glass more slowly than through air, which is why a lens bends it."
)


def handler() -> Any:
    """The peer: loads one file at a time, in llama.cpp, with keys and values in float32."""
    import llama_cpp
    import numpy

    def answer(file: str, text: str, to: str) -> dict[str, Any]:
        model = llama_cpp.Llama(
            file, n_ctx=256, logits_all=True, verbose=False, n_threads=2, n_threads_batch=2, type_k=0, type_v=0
        )
        ids = model.tokenize(text.encode(), add_bos=False)
        model.eval(ids)
        numpy.save(to, numpy.array(model.scores[: len(ids)], dtype=numpy.float32))
        model.close()
        return {"ids": ids, "version": llama_cpp.__version__}

    return answer


def random_model(folder: Path) -> None:
    """A model of the default recipes' shape (Qwen3's) with random weights and SmolLM2's tokenizer, native layout."""
    import torch

    from glassformer.checkpoint import open_checkpoint, write_native
    from glassformer.model import Attention, FeedForward, Norm, Transformer, uniform
    from glassformer.tokenizer.tokenizer import Tokenizer

    place = open_checkpoint(smollm2()).tokenizer_source
    assert place[0] == "gguf"
    tokenizer = Tokenizer.from_gguf(place[1])
    config = uniform(
        vocab_size=tokenizer.vocab_size,
        d_model=192,
        n_layers=4,
        context=256,
        mixer=Attention(n_heads=6, n_kv_heads=2, d_head=64, qk_norm="head"),
        feed_forward=FeedForward(512),
        norm=Norm(eps=1e-6),
        tied=True,
    )
    torch.manual_seed(0)
    model = Transformer(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(4) if parameter.dim() > 1 else parameter.add_(torch.randn_like(parameter) * 0.2)
    write_native(folder, config, dict(model.named_parameters()), tokenizer=tokenizer)


def distance(ours: Any, theirs: Any) -> float:
    """The largest difference of logits by the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


def export(source: str | Path, file: Path, dtype: str) -> int:
    """A GGUF of a model; its bytes."""
    file.unlink(missing_ok=True)
    command = [sys.executable, "-m", "glassformer", "export", str(source), str(file), "--to", "gguf", "--dtype", dtype]
    done = subprocess.run([*command, "--json"], check=True, capture_output=True, text=True)
    return int(json.loads(done.stdout)["bytes"])


def main() -> None:
    parser = arguments(__doc__)
    options = parser.parse_args()
    need_peers(options, "llama_cpp")
    import numpy
    import torch

    import glassformer as gf

    torch.set_num_threads(options.threads)
    rows = []
    with (
        tempfile.TemporaryDirectory() as place,
        Worker(options.peers, __file__, threads=options.threads) as peer,
    ):
        folder = Path(place)
        random_model(folder / "random")
        version = ""
        for name, source in (("SmolLM2-135M", str(smollm2())), ("Qwen3-shaped, random", str(folder / "random"))):
            for dtype in ("f32", "f16"):
                file, out = folder / f"model-{dtype}.gguf", folder / "logits.npy"
                size = export(source, file, dtype)
                answer = peer.ask(file=str(file), text=PROMPT, to=str(out))
                version = answer["version"]
                model = gf.load(source if dtype == "f32" else file, device="cpu", dtype="float32")
                ids = model.encode(PROMPT, bos=False)
                theirs = torch.from_numpy(numpy.load(out))
                ours = model.logits(ids).float()[:, : theirs.shape[1]]
                apart, alone = distance(ours, theirs), ""
                if dtype == "f16":  # the same numbers as F32, in the same library
                    same, wide = folder / "same.gguf", folder / "wide.npy"
                    export(file, same, "f32")
                    peer.ask(file=str(same), text=PROMPT, to=str(wide))
                    whole = torch.from_numpy(numpy.load(wide))
                    alone = f"{distance(theirs, whole):.1e}; ours {distance(ours, whole):.1e}"
                agree = int((ours.argmax(-1) == theirs.argmax(-1)).sum())
                rows.append(
                    (
                        f"{name}, {dtype}",
                        f"{size / 1e6:.0f} MB",
                        "equal" if ids == answer["ids"] else "NOT met: tokens differ",
                        f"{agree} of {len(ids)}",
                        f"{apart:.1e}",
                        alone,
                        verdict(apart, most=1e-3),
                    )
                )
    report(
        "export_llama_cpp",
        "Export to llama.cpp",
        table(
            (
                "exported",
                "size",
                "tokens",
                "same best",
                "max|Δ| / max|logit|",
                "from its own F32 of F16's numbers",
                "asked",
            ),
            rows,
        ),
        options,
        f"Logits at every position of one text, ours in float32 against llama-cpp-python {version}: F32 files against "
        "the model that was exported, F16 files against what we read from the same file. The column before the last: "
        "how far llama.cpp's answer from the F16 file lies from its own answer when the file's own numbers are written "
        "as F32, and how far ours does: its products with F16 weights are what differs, not the file.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(handler())
    else:
        main()
