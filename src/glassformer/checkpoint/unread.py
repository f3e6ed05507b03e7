"""Settings of a config.json that no family reads: known to be without effect, said to be nothing, or refused by name.

A setting that is not read may change what the model computes, and a wrong answer looks like a right one. So every key
is read, listed here (or in the family's own list) as one that changes no logit, or neutral (null, false, empty), which
is noted once; any other is refused. `--ignore-key NAME` reads the config as if the key were not there, and the model is
marked as so opened.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from fnmatch import fnmatchcase
from typing import Any

from glassformer.checkpoint.attributes import Attributes
from glassformer.errors import UnsupportedError, UsageError, near

# transformers' base settings: bookkeeping, ids, heads for other tasks, dropout, and defaults of generation (which
# generation_config.json has since; the tokenizer reads what is needed of them).
_BASE = frozenset(
    {
        "_attn_implementation", "_attn_implementation_autoset", "_attn_implementation_internal", "_commit_hash",
        "_experts_implementation", "_name_or_path", "_output_attentions", "architectures", "attn_implementation",
        "auto_map", "begin_suppress_tokens", "bos_token_id", "cache_implementation", "chunk_size_feed_forward",
        "cross_attention_hidden_size", "decoder_start_token_id", "dtype", "eos_token_id", "finetuning_task",
        "forced_bos_token_id", "forced_eos_token_id", "gradient_checkpointing", "id2label", "initializer_range",
        "is_decoder", "keys_to_ignore_at_inference", "label2id", "model_type", "num_labels", "output_attentions",
        "output_hidden_states", "output_past", "pad_token_id", "prefix", "problem_type", "return_dict", "sep_token_id",
        "suppress_tokens", "task_specific_params", "tf_legacy_loss", "tie_encoder_decoder", "tokenizer_class",
        "torch_dtype", "torchscript", "transformers_version", "unk_token_id", "use_bfloat16", "use_cache",
        "use_return_dict", "vocab_size",
        # of training and of the other heads
        "attention_dropout", "attn_pdrop", "classifier_bias", "classifier_dropout", "classifier_dropout_prob",
        "embd_pdrop", "hidden_dropout", "hidden_dropout_prob", "initializer_factor", "layerdrop", "output_dropout",
        "resid_pdrop", "residual_dropout", "activation_dropout", "attention_probs_dropout_prob", "attn_dropout",
        "aux_loss_alpha", "dropout", "embd_dropout", "embedding_dropout", "ffn_dropout", "output_router_logits",
        "router_aux_loss_coef", "router_jitter_noise", "router_z_loss_coef", "seq_aux",
        "summary_activation", "summary_first_dropout", "summary_proj_to_labels",
        "embed_dropout", "emb_pdrop", "resid_dropout", "init_std",
        "summary_type", "summary_use_proj", "pretraining_tp",
        # of generation
        "bad_words_ids", "diversity_penalty", "do_sample", "early_stopping", "encoder_no_repeat_ngram_size",
        "exponential_decay_length_penalty", "length_penalty", "max_length", "max_new_tokens", "min_length",
        "no_repeat_ngram_size", "num_beam_groups", "num_beams", "num_return_sequences", "output_scores",
        "remove_invalid_values", "repetition_penalty", "return_dict_in_generate", "temperature", "top_k", "top_p",
        "typical_p",
    }
)  # fmt: skip
# Marks that exporters and trainers leave.
_MARKS = frozenset(
    {
        "_flash_attn_2_enabled", "_unsloth_version", "base_model_name", "is_llama_config", "max_sequence_length",
        "model_max_length", "model_name", "original_architectures", "source_dtype", "tokenizer_padding_side",
        "transformers.js_config", "unsloth_fixed", "unsloth_version", "use_flash_attention", "use_flash_attention_2",
        "use_flash_attn", "_flash_attn_implementation",
    }
)  # fmt: skip
NO_EFFECT = _BASE | _MARKS
# What a model of text, pictures and sound says beside its `text_config`: of its other parts, or for all of them alike.
_BESIDE_TEXT = frozenset({"is_encoder_decoder", "text_config", "tie_word_embeddings"})
_OTHER_SENSES = re.compile(
    r"(vision|audio|image|video|mm|boi|eoi|boa|eoa)_.*|.*_(vision|audio|image|video)_.*|.*_(image|audio|video)"
)
# Read only under another setting, or by parts of a model that have no text: by family.
_OF_FAMILY: Mapping[str, frozenset[str]] = {
    "llama": frozenset({"head_dim", "sliding_window"}),
    "mistral": frozenset({"head_dim"}),
    "qwen2": frozenset({"max_window_layers", "sliding_window", "use_mrope", "use_sliding_window"}),
    "qwen3": frozenset({"max_window_layers", "sliding_window", "use_sliding_window"}),
    "gpt2": frozenset({"n_ctx", "reorder_and_upcast_attn"}),
}
# One subject in two spellings: whichever a family read, the other is without effect.
_SPELLINGS = (
    {"rope_theta", "rope_scaling", "rope_parameters", "rotary_emb_base", "rope_local_base_freq"},
    {"rotary_pct", "partial_rotary_factor"},
    {"hidden_act", "hidden_activation"},
    {"layer_types", "sliding_window_pattern", "_sliding_window_pattern", "max_window_layers"},
)
LAYER_KINDS = frozenset(
    {"full_attention", "sliding_attention", "chunked_attention", "indexed_attention", "linear_attention"}
)
_NEUTRAL: tuple[object, ...] = (None, False, "", [], {})
_everywhere: frozenset[str] = frozenset()


class UnreadSettingWarning(UserWarning):
    """A config.json has settings that are left out: not known and saying nothing, or left out on request; by name."""


def ignore_everywhere(names: Iterable[str]) -> None:
    """From now on, every config is read as if these keys were not there."""
    global _everywhere
    _everywhere = frozenset(names)


def without(settings: Mapping[str, Any], names: Collection[str], where: str) -> tuple[dict[str, Any], tuple[str, ...]]:
    """The settings as if some keys were not there, and which of those were.

    A name may be dotted: `rope_parameters.factor`. Those of `ignore_everywhere` may be absent, `names` may not.

    Raises:
        UsageError: one of `names` is not in the settings.
    """
    found, gone = dict(settings), []
    for name in sorted({*names, *_everywhere}):
        *outer, last = name.split(".")
        inner = found
        for step in outer:
            held = inner.get(step)
            if not isinstance(held, dict):
                inner = {}
                break
            inner[step] = inner = dict(held)
        if last in inner:
            del inner[last]
            gone.append(name)
        elif name in names:
            raise UsageError(f"{where} has no key {name} to ignore.{near(name, found)}")
        else:
            warnings.warn(f"{where} has no key {name} to ignore.", UnreadSettingWarning, stacklevel=3)
    if gone:
        warnings.warn(
            f"{where} is read as if it did not set {', '.join(gone)}; what the model answers may be wrong.",
            UnreadSettingWarning,
            stacklevel=3,
        )
    return found, tuple(gone)


def refuse_unread(attributes: Attributes, family: str, no_effect: Collection[str] = ()) -> None:
    """Refuses settings that were not read and are not known to be without effect; call it once all were read.

    Warns:
        UnreadSettingWarning: of such settings that are null, false or empty.

    Raises:
        UnsupportedError: naming one, its value, and the option that opens the model all the same.
    """
    known = NO_EFFECT | _OF_FAMILY.get(family, frozenset()) | frozenset(no_effect)
    own, *inner = attributes.family()
    # Objects inside are read in several goes and, layer kind by layer kind, with the same names.
    asked = {True: set(own.asked), False: {name for one in inner for name in one.asked} | LAYER_KINDS}
    for names in asked.values():
        names.update(name for group in _SPELLINGS if group & names for name in group)

    def unread(values: Mapping[str, Any], path: str, outermost: bool) -> Iterator[tuple[str, object]]:
        names = LAYER_KINDS if LAYER_KINDS & values.keys() else asked[outermost]
        for name, value in values.items():
            spelled = f"{path}.{name}".lstrip(".")
            if name in names or (not outermost and name.isdecimal()):
                if isinstance(value, dict):
                    yield from unread(value, spelled, False)
            elif name not in known:
                yield spelled, value

    _refuse(attributes.where, unread(own.values, own.path, True))


def refuse_beside_text(outer: Attributes) -> None:
    """`refuse_unread` for what a model of several senses sets beside the settings of its text part."""
    known = NO_EFFECT | _BESIDE_TEXT | outer.asked
    unread = ((n, v) for n, v in outer.values.items() if n not in known and not _OTHER_SENSES.fullmatch(n))
    _refuse(outer.where, unread)


def refuse_unlisted(settings: Mapping[str, Any], where: str, path: str, known: Collection[str]) -> None:
    """`refuse_unread` for an object, and the objects inside it, by the patterns of all dotted names that may be there.

    Args:
        path: the object's own name, for the option that is printed.
        known: `group.*.bits` is each such name; a name that stands here is known with whatever is inside.
    """

    def unread(values: Mapping[str, Any], before: str) -> Iterator[tuple[str, object]]:
        for name, value in values.items():
            dotted = f"{before}.{name}".lstrip(".")
            if any(fnmatchcase(dotted, pattern) for pattern in known):
                continue
            if isinstance(value, dict) and value:
                yield from unread(value, dotted)
            else:
                yield f"{path}.{dotted}", value

    _refuse(where, unread(settings, ""))


def _refuse(where: str, unread: Iterable[tuple[str, object]]) -> None:
    """Refuses the first of these settings, by dotted name, that says something; notes the others."""
    silent: list[str] = []
    for spelled, value in unread:
        if not any(value is neutral or (value == neutral and type(value) is type(neutral)) for neutral in _NEUTRAL):
            *_, name = spelled.split(".")
            raise UnsupportedError(
                f"{where} sets {name} to {value!r}, which Glassformer does not read and which may change what "
                f"the model computes. To open it as if that were not there: --ignore-key {spelled}"
            )
        silent.append(spelled)
    if silent:
        warnings.warn(
            f"{where} has settings that are not known and that say nothing ({', '.join(silent)}); they are left out.",
            UnreadSettingWarning,
            stacklevel=2,
        )
