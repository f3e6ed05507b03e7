"""Quantised weights as the packages that write them write them, read by us: their floats against ours, bit for bit.

Every matrix of a tiny Llama is quantised and packed by a package's own code (GPTQ by gptqmodel, AWQ by AutoAWQ,
bitsandbytes and FP8 and MXFP4 by transformers, compressed-tensors by itself) and dequantised by the same package; we
open the folder that it wrote. The peers' environment is one of its own: benchmarks/peers-quantised.txt.
"""

from __future__ import annotations

import contextlib
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from common import ROOT, Worker, arguments, need_peers, report, serve, skip, table

# What is tried: the package, what it is called in the table, and how the worker is told.
CASES: list[tuple[str, str, dict[str, Any]]] = [
    *(
        ("gptqmodel", f"GPTQ, {bits} bits{', inputs reordered' if order else ''}{', layout 2' if two else ''}",
         {"bits": bits, "order": order, "two": two})
        for bits, order, two in ((4, False, False), (4, True, False), (4, False, True), (8, True, False),
                                 (3, False, False), (3, False, True), (2, False, False))
    ),
    ("awq", "AWQ, 4 bits", {}),
    ("bitsandbytes", "int8", {"load_in_8bit": True}),
    ("bitsandbytes", "nf4", {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}),
    ("bitsandbytes", "nf4, scales quantised",
     {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True}),
    ("bitsandbytes", "fp4", {"load_in_4bit": True, "bnb_4bit_quant_type": "fp4"}),
    *(
        ("compressed_tensors", f"{kind}, {what}", {"format": kind, "weights": weights})
        for kind, what, weights in (
            ("pack-quantized", "4 bits, groups", {"num_bits": 4, "strategy": "group", "group_size": 32}),
            ("pack-quantized", "4 bits, groups, zeros",
             {"num_bits": 4, "strategy": "group", "group_size": 32, "symmetric": False}),
            ("pack-quantized", "8 bits, rows", {"num_bits": 8, "strategy": "channel"}),
            ("pack-quantized", "3 bits, groups", {"num_bits": 3, "strategy": "group", "group_size": 32}),
            ("pack-quantized", "6 bits, rows, zeros", {"num_bits": 6, "strategy": "channel", "symmetric": False}),
            ("int-quantized", "8 bits, rows", {"num_bits": 8, "strategy": "channel"}),
            ("float-quantized", "rows", {"num_bits": 8, "type": "float", "strategy": "channel"}),
            ("float-quantized", "tensor", {"num_bits": 8, "type": "float", "strategy": "tensor"}),
            ("float-quantized", "blocks",
             {"num_bits": 8, "type": "float", "strategy": "block", "block_structure": [32, 32]}),
            ("nvfp4-pack-quantized", "groups",
             {"num_bits": 4, "type": "float", "strategy": "tensor_group", "group_size": 16,
              "scale_dtype": "torch.float8_e4m3fn"}),
            ("mxfp4-pack-quantized", "groups",
             {"num_bits": 4, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
            ("mxfp8-quantized", "groups",
             {"num_bits": 8, "type": "float", "strategy": "group", "group_size": 32, "scale_dtype": "torch.uint8"}),
        )
    ),
    ("transformers", "FP8, blocks", {"method": "fp8", "scale_fmt": None}),
    ("transformers", "FP8, blocks, scales of powers of two", {"method": "fp8", "scale_fmt": "ue8m0"}),
    ("transformers", "MXFP4 (gpt-oss)", {"method": "mxfp4"}),
]  # fmt: skip
GROUP = 32


def tiny(folder: Path, **more: Any) -> Any:
    """A tiny Llama whose matrices every package can pack, written as floats."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    torch.manual_seed(1)
    sizes = {"hidden_size": 128, "intermediate_size": 192, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    config = AutoConfig.for_model("llama", **sizes, **heads, **more)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32).eval()
    model.save_pretrained(folder)
    return model


def matrices(model: Any) -> dict[str, Any]:
    """The linear parts of a model's layers, by name."""
    import torch

    found = model.named_modules()
    return {name: one for name, one in found if isinstance(one, torch.nn.Linear) and ".layers." in name}


def write(folder: Path, tensors: dict[str, Any], settings: dict[str, Any], floats: dict[str, Any], to: Path) -> None:
    """Puts quantised tensors where the float ones of a folder lay, and the package's floats in another folder."""
    from safetensors.torch import load_file, save_file

    usual = load_file(folder / "model.safetensors")
    config = json.loads((folder / "config.json").read_text())
    to.mkdir()
    (to / "config.json").write_text(json.dumps(config))
    save_file({**usual, **{name: x.contiguous() for name, x in floats.items()}}, to / "model.safetensors")
    kept = {name: x for name, x in usual.items() if name not in floats}
    save_file({**kept, **{name: x.contiguous() for name, x in tensors.items()}}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({**config, "quantization_config": settings}))


def ranges(weight: Any, bits: int) -> tuple[Any, Any]:
    """Scales in float16 and zeros of every group of a row's inputs, from the least and greatest: (output, group)."""
    groups = weight.reshape(len(weight), -1, GROUP)
    low, high = groups.amin(-1).clamp(max=0), groups.amax(-1).clamp(min=0)
    scales = ((high - low) / ((1 << bits) - 1)).half().float()
    return scales, (-low / scales).round().clamp(0, (1 << bits) - 1)


def gptqmodel(folder: Path, to: Path, bits: int, order: bool, two: bool) -> None:
    import torch
    from gptqmodel.nn_modules.qlinear.torch import TorchLinear
    from gptqmodel.utils.model import convert_gptq_v2_to_v1_format_module

    tensors, floats = {}, {}
    for name, linear in matrices(tiny(folder)).items():
        outputs, inputs = linear.weight.shape
        packed = TorchLinear(bits, GROUP, False, order, inputs, outputs)
        group = torch.arange(inputs) // GROUP
        if order:
            group = group[torch.randperm(inputs, generator=torch.Generator().manual_seed(2))]
        linear.weight.data = linear.weight.data[:, group.argsort().argsort()] if order else linear.weight.data
        scales, zeros = ranges(linear.weight.data, bits)
        packed.pack_original(linear, scales, zeros.int(), group.int())
        packed.eval()
        floats[f"{name}.weight"] = packed.dequantize_weight().T.float()
        if not two:
            convert_gptq_v2_to_v1_format_module(packed, SimpleNamespace(bits=bits, pack_dtype=torch.int32))
        for part in ("qweight", "qzeros", "scales", "g_idx"):
            tensors[f"{name}.{part}"] = getattr(packed, part)
    layout = {"checkpoint_format": "gptq_v2" if two else "gptq"}
    write(folder, tensors, {"quant_method": "gptq", "bits": bits, "group_size": GROUP, **layout}, floats, to)


def awq(folder: Path, to: Path) -> None:
    from awq.modules.linear.gemm import WQLinear_GEMM
    from awq.utils.packing_utils import dequantize_gemm

    tensors, floats = {}, {}
    for name, linear in matrices(tiny(folder)).items():
        scales, zeros = ranges(linear.weight.data, 4)
        packed = WQLinear_GEMM.from_linear(linear, 4, GROUP, scales=scales.T.contiguous(), zeros=zeros.T.contiguous())
        floats[f"{name}.weight"] = dequantize_gemm(packed.qweight, packed.qzeros, packed.scales, 4, GROUP).T.float()
        for part in ("qweight", "qzeros", "scales"):
            tensors[f"{name}.{part}"] = getattr(packed, part)
    settings = {"quant_method": "awq", "bits": 4, "group_size": GROUP, "version": "gemm", "zero_point": True}
    write(folder, tensors, settings, floats, to)


def bitsandbytes(folder: Path, to: Path, **how: Any) -> None:
    import torch
    from bitsandbytes.functional import dequantize_4bit, int8_vectorwise_dequant
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    tiny(to)
    config = BitsAndBytesConfig(**how)
    model = AutoModelForCausalLM.from_pretrained(
        to, quantization_config=config, device_map="cpu", dtype=torch.float32
    )  # fmt: skip
    floats = {}
    for name, linear in matrices(model).items():
        weight = linear.weight
        state = getattr(weight, "quant_state", None)
        data = weight.data
        whole = int8_vectorwise_dequant(data, weight.SCB) if state is None else dequantize_4bit(data, state)
        floats[f"{name}.weight"] = whole.float()
    model.save_pretrained(folder)
    from safetensors.torch import load_file, save_file

    save_file({**load_file(to / "model.safetensors"), **floats}, to / "model.safetensors")


def compressed_tensors(folder: Path, to: Path, weights: dict[str, Any], **settings: Any) -> None:
    import torch
    from compressed_tensors.compressors import BaseCompressor
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    from compressed_tensors.quantization.utils import calculate_qparams

    args = QuantizationArgs(**weights)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    compressor = BaseCompressor.get_value_from_registry(settings["format"])
    tensors, floats = {}, {}
    for name, linear in matrices(tiny(folder)).items():
        weight = linear.weight.data.bfloat16()
        state = {"weight": weight}
        axes = spans(weight, weights)
        whole = None
        if settings["format"].startswith("nvfp4"):
            whole = (torch.tensor([448.0 * 6.0]) / weight.abs().amax().float()).reshape(1)
            state["weight_global_scale"] = whole
        least, most = axes.amin((1, 3)), axes.amax((1, 3))
        if weights["strategy"] == "tensor":
            least, most = least.reshape(1), most.reshape(1)
        scale, zero = calculate_qparams(least, most, args, **({"global_scale": whole} if whole is not None else {}))
        state |= {"weight_scale": scale, "weight_zero_point": zero}
        packed = compressor.compress(state, scheme)
        floats[f"{name}.weight"] = compressor.decompress(packed, scheme)["weight"].float()
        tensors |= {f"{name}.{part}": x for part, x in packed.items()}
    group = {"targets": ["Linear"], "weights": json.loads(args.model_dump_json())}
    more = {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    write(folder, tensors, {"quant_method": "compressed-tensors", **settings, **more}, floats, to)


def spans(weight: Any, weights: dict[str, Any]) -> Any:
    """A matrix as what shares a scale: (block of rows, row in it, block of columns, column in it)."""
    rows, columns = weight.shape
    sizes = {"tensor": (rows, columns), "channel": (1, columns), "block": tuple(weights.get("block_structure") or ())}
    down, across = sizes.get(weights["strategy"], (1, weights.get("group_size")))
    return weight.reshape(rows // down, down, columns // across, across)


def transformers(folder: Path, to: Path, method: str, scale_fmt: str | None = None) -> None:
    import torch

    if method == "mxfp4":
        return _gpt_oss(folder, to)
    from transformers.integrations.finegrained_fp8 import Fp8Dequantize, Fp8Quantize

    settings = {"quant_method": "fp8", "weight_block_size": [32, 64], "scale_fmt": scale_fmt}
    quantizer = SimpleNamespace(quantization_config=SimpleNamespace(**settings))
    tensors, floats = {}, {}
    for name, linear in matrices(tiny(folder)).items():
        stored = Fp8Quantize(quantizer).convert({f"{name}.weight": linear.weight.data})
        tensors |= stored
        scale = stored[f"{name}.weight_scale_inv"]
        whole = Fp8Dequantize(quantizer)._dequantize_one(stored[f"{name}.weight"], scale, torch.float32)
        floats[f"{name}.weight"] = whole
    write(folder, tensors, settings, floats, to)
    return None


def _gpt_oss(folder: Path, to: Path) -> None:
    """Random blocks in gpt-oss's layout, which transformers opens and writes again as floats."""
    import torch
    from safetensors.torch import load_file, save_file
    from transformers import AutoConfig, AutoModelForCausalLM, Mxfp4Config

    sizes = {"hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "vocab_size": 96}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 32}
    experts = {"num_local_experts": 4, "num_experts_per_tok": 2}
    torch.manual_seed(1)
    config = AutoConfig.for_model("gpt_oss", **sizes, **heads, **experts)
    AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16).save_pretrained(folder)
    stored = load_file(folder / "model.safetensors")
    for name in [name for name in stored if name.endswith(("gate_up_proj", "down_proj"))]:
        e, inputs, outputs = stored.pop(name).shape
        stored[f"{name}_blocks"] = torch.randint(0, 256, (e, outputs, inputs // 32, 16), dtype=torch.uint8)
        stored[f"{name}_scales"] = torch.randint(118, 126, (e, outputs, inputs // 32), dtype=torch.uint8)
    save_file(stored, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["quantization_config"] = {"quant_method": "mxfp4"}
    (folder / "config.json").write_text(json.dumps(settings))
    opened = AutoModelForCausalLM.from_pretrained(
        folder, quantization_config=Mxfp4Config(dequantize=True), dtype=torch.bfloat16
    )
    del settings["quantization_config"]
    to.mkdir()
    (to / "config.json").write_text(json.dumps(settings))
    save_file({name: x.contiguous() for name, x in opened.state_dict().items()}, to / "model.safetensors")


def handler() -> Callable[..., Any]:
    """The peer: quantises, writes two folders, and says its version."""
    import importlib.metadata
    import warnings

    warnings.simplefilter("ignore")
    packages = {"awq": "autoawq", "compressed_tensors": "compressed-tensors"}

    def answer(package: str, folder: str, to: str, how: dict[str, Any]) -> dict[str, Any]:
        try:
            with contextlib.redirect_stdout(sys.stderr):
                globals()[package](Path(folder), Path(to), **how)
            return {"version": importlib.metadata.version(packages.get(package, package))}
        except Exception as error:
            import traceback

            traceback.print_exc()
            return {"error": f"{type(error).__name__}: {error}"[:160]}

    return answer


def apart(folder: Path, to: Path) -> tuple[int, int, float]:
    """Numbers that were compared, those that differ when ours are rounded to theirs, and the largest difference.

    Theirs stand in float32 after the product in the type of their own, float16 or bfloat16 for some: ours are rounded
    to whichever of the three holds every number of theirs.
    """
    import torch

    from glassformer.checkpoint import open_checkpoint

    ours, theirs = open_checkpoint(folder).tensors, open_checkpoint(to).tensors
    count, differ, most = 0, 0, 0.0
    for name in theirs:
        wanted, mine = theirs[name].float(), ours[name].float()
        holds = [kind for kind in (torch.bfloat16, torch.float16) if torch.equal(wanted.to(kind).float(), wanted)]
        rounded = mine.to(holds[0]).float() if holds else mine
        count += wanted.numel()
        differ += int((rounded != wanted).sum())
        most = max(most, float((rounded - wanted).abs().max() / wanted.abs().max()))
    return count, differ, most


def main() -> None:
    parser = arguments(__doc__)
    parser.set_defaults(peers=str(ROOT / ".venv-quantised/bin/python"))
    parser.add_argument("--only", help="cases whose package or name holds this")
    options = parser.parse_args()
    need_peers(options, "transformers")
    try:
        import torch
    except ImportError:
        skip("torch is not installed here")
    from glassformer.errors import GlassformerError

    torch.set_num_threads(options.threads)
    rows = []
    with Worker(options.peers, __file__, threads=options.threads) as peer:
        for package, name, how in CASES:
            if options.only and options.only not in f"{package} {name}":
                continue
            with tempfile.TemporaryDirectory() as place:
                folder, to = Path(place) / "quantised", Path(place) / "floats"
                folder.mkdir()
                answer = peer.ask(package=package, folder=str(folder), to=str(to), how=how)
                if "error" in answer:
                    rows.append((package, name, "–", answer["error"], "skipped"))
                    continue
                try:
                    count, differ, most = apart(folder, to)
                except GlassformerError as error:
                    said = str(error).replace(str(folder), "the folder")[:160]
                    rows.append((f"{package} {answer['version']}", name, "–", said, "refused"))
                    continue
            met = "met" if differ == 0 else "NOT met"
            rows.append((f"{package} {answer['version']}", name, f"{count:,}", f"{differ:,} ({most:.0e})", met))
    head = ("written by", "how", "numbers", "that differ (largest)", "asked: none")
    report(
        "quantised",
        "Quantised weights as their packages read them",
        table(head, rows),
        options,
        "Each package packed the matrices of a tiny random model and read them again as floats; ours of the same "
        "files, rounded to the type that the package multiplied in, beside those, number by number.",
    )


if __name__ == "__main__":
    if sys.argv[1:2] == ["--worker"]:
        serve(handler())
    else:
        main()
