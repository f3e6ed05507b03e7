"""AWQ: 4 bits, a scale and a zero per group of inputs and output (arXiv:2306.00978; AutoAWQ's "gemm" layout).

`NAME.qweight` (input, packed output), `NAME.qzeros` (group, packed output), `NAME.scales` (group, output). A word holds
eight neighbouring outputs, in the order 0 2 4 6 1 3 5 7 from its lowest bits. A weight is (q − z) · scale.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from glassformer.checkpoint.quantised.method import Fetch, Found, Packed, fit, only, unpacked, words_of
from glassformer.checkpoint.tensorfile import Entry

if TYPE_CHECKING:
    from torch import Tensor

# Of eight neighbouring outputs, at which place in the word each lies.
_PLACES = (0, 4, 1, 5, 2, 6, 3, 7)


# Names that a quantization_config may hold: read here, or of how the numbers were found and are multiplied.
KNOWN = frozenset(
    {
        "backend", "bits", "desc_act", "do_fuse", "exllama_config", "format", "fuse_max_seq_len", "group_size",
        "lm_head", "modules_to_fuse", "pack_dtype", "q_group_size", "sym", "version", "w_bit", "zero_point",
        "act_group_aware", "batch_size", "block_name_to_quantize", "cache_block_outputs", "damp_percent", "dataset",
        "max_input_length", "meta", "model_seqlen", "module_name_preceding_first_block",
        "modules_in_block_to_quantize", "pad_token_id", "tokenizer", "true_sequential",
    }
)  # fmt: skip


def method(settings: Mapping[str, Any], where: str) -> Awq:
    """The method for a quantization_config."""
    only(settings, where, "bits", 4)
    only(settings, where, "w_bit", 4)
    only(settings, where, "version", "gemm", "GEMM")
    only(settings, where, "format", "gemm", "GEMM")
    return Awq()


class Awq:
    """Groups of 4-bit numbers, eight to a word."""

    def find(self, stored: Mapping[str, Entry], where: str) -> Found:
        """See `Method.find`."""
        found: dict[str, Packed] = {}
        for stem, entry, zeros, scales in words_of(stored, where):
            inputs, outputs = entry.shape[0], entry.shape[1] * 8
            sound = len(scales.shape) == 2 and scales.shape[1] == outputs and scales.shape[0] > 0
            fit(sound and inputs % scales.shape[0] == 0, where, stem + "scales", scales.shape)
            fit(zeros.shape == (scales.shape[0], entry.shape[1]), where, stem + "qzeros", zeros.shape)
            found[stem + "weight"] = Packed(
                (outputs, inputs), (stem + "qweight", stem + "qzeros", stem + "scales"), _values(stem)
            )
        return Found(found)


def _values(stem: str) -> Any:
    def values(fetch: Fetch) -> Tensor:
        scales = fetch(stem + "scales").float()
        weight, zeros = _outputs(fetch(stem + "qweight")), _outputs(fetch(stem + "qzeros"))
        size = len(weight) // len(scales)
        each = [x.repeat_interleave(size, 0) for x in (zeros, scales)]
        return ((weight - each[0]).float() * each[1]).T

    return values


def _outputs(words: Tensor) -> Tensor:
    """The numbers of every row in the order of the outputs."""
    codes = unpacked(words, 4, words.shape[1] * 8).reshape(len(words), -1, 8)
    return codes[:, :, list(_PLACES)].flatten(1)
