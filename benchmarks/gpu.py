"""One GPU in at most eight minutes: answers, training, traces and resuming, beside the peers that are there.

Random weights in published shapes, nothing beside the clone: a bare machine with torch and transformers is enough, with
the few small packages that `make gpu-packages` puts into a folder to be copied along. A peer that is missing is named
as skipped. `--tiny` runs the same with tiny shapes on any machine, which is how it is
known to work before a GPU is there.

    python benchmarks/gpu.py --out DIR            # writes DIR/gpu.md and DIR/gpu.json
    python benchmarks/gpu.py --tiny --out DIR     # minutes of a processor
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from common import ROOT, table

sys.path.insert(0, str(ROOT / "src"))
sys.path.append(str(ROOT / ".gpu-packages"))  # behind what the machine has

LIMIT = 8 * 60.0  # seconds; what would begin later is named as left out

Row = tuple[str, str, str]


@dataclasses.dataclass(frozen=True)
class Shape:
    """A Llama-like model."""

    width: int
    layers: int
    heads: int
    kv_heads: int
    d_ff: int
    vocab: int
    context: int


@dataclasses.dataclass(frozen=True)
class Scale:
    """How large everything is."""

    answering: Shape
    prompt: int
    answers: int
    tokens: int
    training: dict[str, dict[str, int]]
    batch: int
    traced: int
    rounds: int


FULL = Scale(
    Shape(2048, 16, 32, 8, 8192, 128_256, 8192),
    prompt=2048,
    answers=32,
    tokens=64,
    training={
        "124 M": {"n_layer": 12, "n_head": 12, "n_embd": 768, "block_size": 1024, "vocab_size": 50_304},
        "350 M": {"n_layer": 24, "n_head": 16, "n_embd": 1024, "block_size": 1024, "vocab_size": 50_304},
    },
    batch=16,
    traced=2048,
    rounds=5,
)
TINY = Scale(
    Shape(32, 2, 4, 2, 64, 300, 128),
    prompt=24,
    answers=3,
    tokens=4,
    training={"tiny": {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 32, "vocab_size": 64}},
    batch=2,
    traced=24,
    rounds=1,
)


class Skipped(Exception):
    """What is compared with is not on this machine."""


class Bench:
    """The measurements, with what they share.

    Args:
        scale: how large everything is.
        device: where it runs.
        nanogpt: a checkout of nanoGPT, or None.
    """

    def __init__(self, scale: Scale, device: str, nanogpt: Path | None) -> None:
        import torch

        self.torch, self.scale, self.nanogpt = torch, scale, nanogpt
        self.device = torch.device(device)
        self.dtype = torch.bfloat16 if self.device.type == "cuda" else torch.float32

    def seconds(self, work: Callable[[], Any], rounds: int | None = None) -> float:
        """Median seconds of a call, the device's work included; one call before does not count."""
        times = []
        for _ in range(1 + (rounds or self.scale.rounds)):
            self._wait()
            start = time.perf_counter()
            work()
            self._wait()
            times.append(time.perf_counter() - start)
        return statistics.median(times[1:])

    def _wait(self) -> None:
        if self.device.type == "cuda":
            self.torch.cuda.synchronize()

    def peak(self) -> float:
        """FLOP/s of one large product in the precision of the models, measured here."""
        n = 8192 if self.device.type == "cuda" else 256
        x = self.torch.randn(n, n, device=self.device, dtype=self.dtype)
        return 2 * n**3 / self.seconds(lambda: x @ x)

    def machine(self) -> Iterator[Row]:
        """What this machine reaches now."""
        yield "product, large and square", f"{self.peak() / 1e12:.3g} TFLOP/s", str(self.dtype)
        size = 1 << (30 if self.device.type == "cuda" else 24)
        x = self.torch.zeros(size, dtype=self.torch.uint8, device=self.device)
        yield "copy", f"{2 * size / self.seconds(lambda: x.clone()) / 1e9:.3g} GB/s", "read and written"

    # Answers

    def ours(self) -> Any:
        """Our model of the answering shape, random."""
        from glassformer.model import Transformer
        from glassformer.model.choices import Attention, FeedForward, Rotary
        from glassformer.model.config import uniform

        s = self.scale.answering
        mixer = Attention(s.heads, s.kv_heads, s.width // s.heads, rotary=Rotary(500_000.0))
        config = uniform(s.vocab, s.width, s.layers, s.context, mixer, FeedForward(s.d_ff))
        model = Transformer.empty(config).to_empty(device=self.device).to(self.dtype).requires_grad_(False)
        model.initialise(self.torch.Generator(self.device).manual_seed(0))
        return model

    def theirs(self) -> Any:
        """transformers' model of the same shape."""
        try:
            from transformers import LlamaConfig, LlamaForCausalLM
        except ImportError:
            raise Skipped("transformers is not installed") from None
        s = self.scale.answering
        config = LlamaConfig(
            vocab_size=s.vocab,
            hidden_size=s.width,
            intermediate_size=s.d_ff,
            num_hidden_layers=s.layers,
            num_attention_heads=s.heads,
            num_key_value_heads=s.kv_heads,
            max_position_embeddings=s.context,
            tie_word_embeddings=True,
        )
        with self.torch.device(self.device):
            return LlamaForCausalLM(config).to(self.dtype).eval()

    def reading(self) -> Iterator[Row]:
        """A long prompt, by ours, by transformers and by its compiled form."""
        torch, n = self.torch, self.scale.prompt
        ids = torch.randint(0, self.scale.answering.vocab, (1, n), device=self.device)
        model = self.ours()
        with torch.inference_mode():
            mine = self.seconds(lambda: model(ids, last=True))
        yield f"prompt of {n:,}: ours", f"{n / mine:,.0f} tokens/s", ""
        del model
        peer = self.theirs()
        forms = {"transformers": peer}
        if self.device.type == "cuda":
            forms["transformers, compiled"] = torch.compile(peer)
        for name, form in forms.items():
            with torch.inference_mode():
                taken = self.seconds(lambda form=form: form(ids, logits_to_keep=1))
            yield f"prompt of {n:,}: {name}", f"{n / taken:,.0f} tokens/s", f"ours {taken / mine:.2f} ×"

    def writing(self) -> Iterator[Row]:
        """Greedy answers, alone and many at once, through our engine and through transformers' generate."""
        torch, scale = self.torch, self.scale
        from glassformer.generate.engine import Engine
        from glassformer.generate.request import Request

        generator = torch.Generator().manual_seed(1)
        prompts = torch.randint(0, scale.answering.vocab, (scale.answers, 16), generator=generator).tolist()
        model, mine = self.ours(), {}
        with Engine(model, slots=scale.answers, capacity=16 + scale.tokens, use_native=False) as engine:
            for count in (1, scale.answers):

                def answer(count: int = count) -> None:
                    asked = [engine.submit(Request(tuple(p), max_tokens=scale.tokens)) for p in prompts[:count]]
                    for handle in asked:
                        for _ in handle:
                            pass

                mine[count] = count * scale.tokens / self.seconds(answer, rounds=2)
                yield f"{count} answers at once: ours, engine included", f"{mine[count]:,.0f} tokens/s", ""
        del model
        peer = self.theirs()
        for count in (1, scale.answers):
            ids = torch.tensor(prompts[:count], device=self.device)

            def generate(ids: Any = ids) -> None:
                peer.generate(
                    ids, attention_mask=torch.ones_like(ids), do_sample=False, pad_token_id=0,
                    min_new_tokens=scale.tokens, max_new_tokens=scale.tokens,
                )  # fmt: skip

            speed = count * scale.tokens / self.seconds(generate, rounds=2)
            yield (
                f"{count} answers at once: transformers",
                f"{speed:,.0f} tokens/s",
                f"ours {mine[count] / speed:.2f} ×",
            )

    # Training

    def training(self) -> Iterator[Row]:
        """Steps of GPT-2's shapes, and the share of the measured peak that their products reach."""
        torch, scale = self.torch, self.scale
        from glassformer.count import count
        from glassformer.model import Transformer
        from glassformer.train import compiling
        from glassformer.train.recipe import Recipe
        from glassformer.train.torch_stepper import TorchStepper, initialise

        peak = self.peak()
        for name, shape in scale.training.items():
            settings = {
                "design": "gpt2", "layers": shape["n_layer"], "heads": shape["n_head"], "width": shape["n_embd"],
                "context": shape["block_size"], "kind": "adamw",
            }  # fmt: skip
            recipe = Recipe().with_settings(settings)
            config = recipe.config(shape["vocab_size"])
            model = Transformer.empty(config).to_empty(device=self.device)
            initialise(model, 1)
            run_block = compiling.choose(recipe, model, self.device, lambda text: None, sharded=False, before=None)
            stepper = TorchStepper(model, recipe, self.dtype, None, run_block)
            tokens = torch.randint(0, shape["vocab_size"], (scale.batch, shape["block_size"] + 1), device=self.device)
            x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()

            def step(stepper: Any = stepper, x: Any = x, y: Any = y) -> None:
                stepper.zero()
                stepper.accumulate(x, y, 1.0 / x.numel())
                stepper.finish()
                stepper.step(1.0, 0.95)

            taken = self.seconds(step)
            flops = count(config).training_flops * x.numel() / taken
            yield (
                f"step at {name}: ours",
                f"{x.numel() / taken:,.0f} tokens/s",
                f"{flops / peak:.0%} of the product's rate",
            )
            del stepper, model
            try:
                theirs = self.nanogpt_step(shape, x, y)
            except Skipped as missing:
                yield f"step at {name}: nanoGPT", "skipped", str(missing)
                continue
            yield f"step at {name}: nanoGPT", f"{x.numel() / theirs:,.0f} tokens/s", f"ours {theirs / taken:.2f} ×"

    def nanogpt_step(self, shape: dict[str, int], x: Any, y: Any) -> float:
        """Seconds of nanoGPT's step in its best form."""
        if self.nanogpt is None:
            raise Skipped("no checkout was named with --nanogpt")
        torch, kind = self.torch, self.device.type
        sys.path.insert(0, str(self.nanogpt))
        from model import GPT, GPTConfig  # nanoGPT's

        model = GPT(GPTConfig(**shape, dropout=0.0, bias=True)).to(self.device)
        optimizer = model.configure_optimizers(0.1, 6e-4, (0.9, 0.95), kind)
        compiled = torch.compile(model) if kind == "cuda" else model

        def step() -> None:
            with torch.autocast(kind, torch.bfloat16):
                _, loss = compiled(x, y)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        return self.seconds(step)

    def sharding(self) -> Iterator[Row]:
        """FSDP2 on one rank takes the steps that unsharded training takes."""
        torch = self.torch
        import torch.distributed as dist

        from glassformer.model import Transformer
        from glassformer.train.processes import Processes
        from glassformer.train.recipe import Recipe
        from glassformer.train.sharded_stepper import ShardedStepper
        from glassformer.train.torch_stepper import TorchStepper, initialise

        recipe = Recipe().with_settings({"layers": 2, "width": 64, "heads": 2, "context": 32, "kind": "adamw"})
        tokens = torch.randint(0, 64, (4, 33), device=self.device, generator=None)
        x, y = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
        losses: dict[str, list[float]] = {}
        with tempfile.TemporaryDirectory() as folder:
            backend = "cpu:gloo,cuda:nccl" if self.device.type == "cuda" else "gloo"
            dist.init_process_group(backend, init_method=f"file://{folder}/meet", rank=0, world_size=1)
            try:
                for name in ("whole", "sharded"):
                    model = Transformer.empty(recipe.config(64)).to_empty(device=self.device)
                    initialise(model, 1)
                    if name == "whole":
                        stepper: Any = TorchStepper(model, recipe, torch.float32)
                    else:
                        stepper = ShardedStepper(model, recipe, torch.float32, Processes(0, 1, self.device))
                    for _ in range(5):
                        stepper.zero()
                        losses.setdefault(name, []).append(float(stepper.accumulate(x, y, 1 / x.numel())) / x.numel())
                        stepper.finish()
                        stepper.step(1.0, 0.95)
            finally:
                dist.destroy_process_group()
        apart = max(abs(a - b) for a, b in zip(losses["whole"], losses["sharded"], strict=True))
        yield (
            "FSDP2 on one rank",
            f"{apart:.1e}",
            f"largest difference of 5 losses; the last is {losses['whole'][-1]:.4f}",
        )

    def resuming(self) -> Iterator[Row]:
        """A deterministic run that is taken up again at half its length ends with the same bits."""
        from safetensors.torch import load_file

        from glassformer.train import train
        from glassformer.train.recipe import Recipe

        with tempfile.TemporaryDirectory() as folder:
            text = Path(folder) / "text.txt"
            text.write_text("".join(f"line {i} of {i * i % 97} and {i * 7 % 31}\n" for i in range(3000)))
            settings = {
                "data": (str(text),), "tokenizer": "byte", "layers": 2, "width": 64, "heads": 2, "context": 64,
                "batch": 8, "steps": 20, "save_every": 10, "deterministic": True, "device": str(self.device),
            }  # fmt: skip
            recipe = Recipe(name="resumed").with_settings(settings)
            first = train(recipe, out=Path(folder) / "straight", quiet=True).path
            kept = {name: x.clone() for name, x in load_file(first / "model.safetensors").items()}
            train(out=first, step=10, quiet=True)
            again = load_file(first / "model.safetensors")
        same = all(self.torch.equal(kept[name], again[name]) for name in kept)
        yield "resumed at half, deterministic", "equal to the bit" if same else "NOT equal", f"{len(kept)} tensors"

    # Looking inside

    def tracing(self) -> Iterator[Row]:
        """A trace beside the plain forward, and beside TransformerLens's."""
        from glassformer.interp.trace import Trace

        torch, n = self.torch, self.scale.traced
        model = self.ours()
        ids = torch.randint(0, self.scale.answering.vocab, (n,)).tolist()
        with torch.inference_mode():
            plain = self.seconds(lambda: model(torch.tensor([ids], device=self.device), last=True))
        taken = self.seconds(lambda: Trace(model, ids))
        yield f"trace of {n:,}", f"{taken * 1e3:,.1f} ms", f"{taken / plain:.2f} × the plain forward"
        del model
        try:
            from transformer_lens.model_bridge import TransformerBridge
        except ImportError:
            raise Skipped("transformer_lens is not installed") from None
        with tempfile.TemporaryDirectory() as folder:
            bridge = TransformerBridge.boot_transformers(
                "random", hf_model=self.theirs(), tokenizer=_words(folder), device=str(self.device)
            )
        with torch.inference_mode():
            theirs = self.seconds(lambda: bridge.run_with_cache(torch.tensor([ids], device=self.device)))
        yield f"run_with_cache of {n:,}", f"{theirs * 1e3:,.1f} ms", f"ours {theirs / taken:.2f} ×"


def _words(folder: str) -> Any:
    """A tokenizer of two words that lies in a folder, from where TransformerLens loads it once more."""
    import tokenizers
    from transformers import PreTrainedTokenizerFast

    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"<s>": 0, "word": 1}, unk_token="word"))
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="<s>").save_pretrained(folder)
    return PreTrainedTokenizerFast.from_pretrained(folder)


SECTIONS = ("machine", "reading", "writing", "training", "tracing", "sharding", "resuming")


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--tiny", action="store_true", help="tiny shapes, on a processor too")
    parser.add_argument("--out", type=Path, default=Path(os.environ.get("OUT", ".")), help="where the tables are put")
    parser.add_argument("--nanogpt", type=Path, help="a work tree of github.com/karpathy/nanoGPT")
    parser.add_argument("--only", default=",".join(SECTIONS), help="sections, by comma")
    options = parser.parse_args()
    import torch

    if not torch.cuda.is_available() and not options.tiny:
        print("skipped: no GPU is at hand; --tiny runs the same in a tiny form on a processor")
        return 77
    device = "cuda" if torch.cuda.is_available() else "cpu"
    card = torch.cuda.get_device_name() if device == "cuda" else "a processor"
    bench = Bench(TINY if options.tiny else FULL, device, options.nanogpt)
    began, found, failed = time.monotonic(), {}, False
    for name in options.only.split(","):
        rows = found[name] = []
        if time.monotonic() - began > LIMIT:
            rows.append((name, "left out", "the eight minutes are over"))
            continue
        try:
            for row in getattr(bench, name)():
                rows.append(row)
                print(" | ".join(row), flush=True)
        except Skipped as missing:
            rows.append((name, "skipped", str(missing)))
        except Exception as error:
            failed = True
            rows.append((name, "FAILED", f"{type(error).__name__}: {str(error).splitlines()[0][:200]}"))
        if rows and rows[-1][1] in ("skipped", "FAILED"):
            print(" | ".join(rows[-1]), flush=True)
        with contextlib.suppress(AttributeError):
            torch._dynamo.reset()
        if device == "cuda":
            torch.cuda.empty_cache()
    took = time.monotonic() - began
    head = f"{card}, torch {torch.__version__}, {time.strftime('%Y-%m-%d')}, {took:.0f} s"
    body = table(("what", "measured", ""), [row for rows in found.values() for row in rows])
    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "gpu.md").write_text(f"{head}\n\n{body}\n", "utf-8")
    (options.out / "gpu.json").write_text(json.dumps({"on": head, "rows": found}, indent=1), "utf-8")
    print(f"\n{head}\n\n{body}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
