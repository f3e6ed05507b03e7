"""GPTQ: 2 to 8 bits, a scale and a zero per group of inputs and output (arXiv:2210.17323; AutoGPTQ's layout).

`NAME.qweight` (packed input, output), `NAME.qzeros` (group, packed output), `NAME.scales` (group, output) and, where
inputs were reordered, `NAME.g_idx` (input). A weight is (q − z) · scale of its input's group. Layout "gptq" stores
every zero less 1; "gptq_v2" stores them as they are.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.quantised.method import Fetch, Found, Packed, fit, only, unpacked, words_of
from glassformer.checkpoint.tensorfile import Entry

if TYPE_CHECKING:
    from torch import Tensor


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "act_group_aware", "backend", "batch_size", "bits", "block_name_to_quantize", "cache_block_outputs",
        "checkpoint_format", "damp_auto_increment", "damp_percent", "dataset", "desc_act", "disable_exllama",
        "dynamic", "exllama_config", "format", "group_size", "lm_head", "max_input_length", "meta",
        "model_file_base_name", "model_name_or_path", "model_seqlen", "module_name_preceding_first_block",
        "modules_in_block_to_quantize", "pack_dtype", "pad_token_id", "quantizer", "static_groups", "sym",
        "tokenizer", "true_sequential", "use_cuda_fp16", "use_exllama",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> Gptq:
    """The method for a quantization_config."""
    only(settings, where, "bits", 2, 3, 4, 8)
    only(settings, where, "checkpoint_format", "gptq", "gptq_v2")
    only(settings, where, "format", "gptq", "gptq_v2")
    only(settings, where, "pack_dtype", "int32")
    only(settings, where, "dynamic", {}, False)
    layout = settings.get("checkpoint_format") or settings.get("format")
    return Gptq(int(settings.get("bits") or 4), layout != "gptq_v2")


@dataclass(frozen=True)
class Gptq:
    """Groups of `bits`-bit numbers; `less_one` says that zeros are stored less 1."""

    bits: int
    less_one: bool

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for stem, entry, zeros, scales in words_of(stored, where):
            inputs, outputs = entry.shape[0] * 32 // self.bits, entry.shape[1]
            fit(len(scales.shape) == 2 and scales.shape[1] == outputs, where, stem + "scales", scales.shape)
            groups = scales.shape[0]
            packed = -(-outputs * self.bits // 32)
            fit(zeros.shape == (groups, packed) and zeros.dtype == "I32", where, stem + "qzeros", zeros.shape)
            members = [stem + "qweight", stem + "qzeros", stem + "scales"]
            order = stored.get(stem + "g_idx")
            if order is not None:
                fit(order.shape == (inputs,), where, stem + "g_idx", order.shape)
                members.append(stem + "g_idx")
            else:
                fit(groups > 0 and inputs % groups == 0, where, stem + "scales", scales.shape)
            found[stem + "weight"] = Packed((outputs, inputs), tuple(members), self._values(stem, order is not None))
        return Found(found)

    def _values(self, stem: str, ordered: bool) -> Any:
        def values(fetch: Fetch) -> Tensor:
            import torch

            scales = fetch(stem + "scales").float()
            outputs, packed = scales.shape[1], fetch(stem + "qweight")
            inputs = packed.shape[0] * 32 // self.bits
            weight = unpacked(packed.T, self.bits, inputs)  # (output, input)
            zeros = unpacked(fetch(stem + "qzeros"), self.bits, outputs)
            if self.less_one:
                zeros = (zeros + 1) & ((1 << self.bits) - 1)
            group = fetch(stem + "g_idx").long() if ordered else torch.arange(inputs) // (inputs // len(scales))
            return (weight - zeros[group].T).float() * scales[group].T

        return values
