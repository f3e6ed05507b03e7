"""How a model wants its answers to be drawn: its generation_config.json, or what a GGUF header says instead.

`Generation` keeps every setting that the file holds, so that none is lost in a conversion, and names those that our
sampler applies. Which ids end an answer is the tokenizer's (`Tokenizer.stop_ids`): the files agree on those alone.
It draws nothing itself.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from glassformer.errors import TokenizerError

# transformers' name -> (our sampler's name, what may be said, how that is put in words).
_APPLIED: Mapping[str, tuple[str, Any, str]] = {
    "temperature": ("temperature", lambda v: v >= 0, "at least 0"),
    "top_k": ("top_k", lambda v: v >= -1 and v == int(v), "a whole number"),
    "top_p": ("top_p", lambda v: 0 <= v <= 1, "between 0 and 1"),
    "min_p": ("min_p", lambda v: 0 <= v <= 1, "between 0 and 1"),
    "repetition_penalty": ("repetition_penalty", lambda v: v > 0, "above 0"),
}
# The same in a GGUF header, where llama.cpp reads them.
_IN_GGUF: Mapping[str, str] = {
    "temperature": "general.sampling.temp",
    "top_k": "general.sampling.top_k",
    "top_p": "general.sampling.top_p",
    "min_p": "general.sampling.min_p",
    "repetition_penalty": "general.sampling.penalty_repeat",
}
# Settings of transformers that change which tokens come out, with the values at which they change nothing.
_NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    "num_beams": (1,),
    "num_beam_groups": (1,),
    "typical_p": (1, 0),
    "top_h": (),
    "epsilon_cutoff": (0,),
    "eta_cutoff": (0,),
    "diversity_penalty": (0,),
    "encoder_repetition_penalty": (1,),
    "no_repeat_ngram_size": (0,),
    "encoder_no_repeat_ngram_size": (0,),
    "length_penalty": (1,),
    "exponential_decay_length_penalty": (),
    "penalty_alpha": (0,),
    "guidance_scale": (1,),
    "min_length": (0,),
    "min_new_tokens": (0,),
    "bad_words_ids": ([],),
    "force_words_ids": ([],),
    "suppress_tokens": ([],),
    "begin_suppress_tokens": ([],),
    "sequence_bias": ({},),
    "constraints": ([],),
    "forced_bos_token_id": (),
    "forced_eos_token_id": (),
    "forced_decoder_ids": ([],),
    "watermarking_config": (),
    "dola_layers": (),
    "max_time": (),
}


@dataclass(frozen=True)
class Generation:
    """What a checkpoint says of drawing an answer.

    Args:
        settings: as generation_config.json has them, with transformers' names; empty where it says nothing.
        where: the file, for messages.

    Raises:
        TokenizerError: a setting that the sampler would apply is no number, or out of its range.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    where: str = "generation_config.json"

    def __post_init__(self) -> None:
        for name, (_, fits, words) in _APPLIED.items():
            self._number(name, fits, words)
        stops = self.settings.get("stop_strings")
        if stops is not None and not (stops if isinstance(stops, str) else _texts(stops)):
            raise TokenizerError(
                f"{self.where} sets stop_strings to {stops!r}; it must be a text or a list of them, none empty. "
                "Correct it or take it out."
            )
        self._number("max_new_tokens", lambda v: v >= 1 and v == int(v), "a whole number of at least 1")

    @property
    def sampling(self) -> dict[str, float | int]:
        """The checkpoint's own defaults by the names of `generate.sampling.Sampling`; only those that it says.

        `do_sample: false`, where it is written out, is a temperature of 0, as in transformers. What transformers
        assumes where the file is silent (no sampling; `top_k` of 50 once there is) is not taken from it.
        """
        found: dict[str, float | int] = {}
        for name, (ours, _, _) in _APPLIED.items():
            value = self.settings.get(name)
            if value is None:
                continue
            if name == "top_k":
                found[ours] = max(int(value), 0)
            elif name == "top_p":
                found[ours] = float(value) or 1.0
            else:
                found[ours] = float(value)
        if self.settings.get("do_sample") is False:
            found["temperature"] = 0.0
        return found

    @property
    def max_tokens(self) -> int | None:
        """The longest answer that the checkpoint asks for, in tokens."""
        value = self.settings.get("max_new_tokens")
        return None if value is None else int(value)

    @property
    def stop(self) -> tuple[str, ...]:
        """Texts that end an answer and are not part of it."""
        value = self.settings.get("stop_strings")
        return (value,) if isinstance(value, str) else tuple(value or ())

    @property
    def unused(self) -> tuple[str, ...]:
        """Settings that would change an answer and that our sampler does not have; they are kept, not applied."""
        return tuple(
            name
            for name, neutral in _NEUTRAL.items()
            if (value := self.settings.get(name)) is not None and value not in neutral and value is not False
        )

    def gguf_fields(self) -> dict[str, float | int]:
        """The `general.sampling.*` settings of a GGUF file: what llama.cpp takes where its user says nothing."""
        return {_IN_GGUF[name]: value for name, value in self.sampling.items()}

    def _number(self, name: str, fits: Any, words: str) -> None:
        value = self.settings.get(name)
        if value is None:
            return
        number = isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        if not number or not fits(value):
            raise TokenizerError(
                f"{self.where} sets {name} to {value!r}; it must be {words}. Correct it or take it out."
            )


def _texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(one, str) and one for one in value)


def from_gguf(fields: Mapping[str, Any]) -> Generation:
    """What a GGUF header says in `general.sampling.*`, in transformers' names."""
    settings = {name: fields[key] for name, key in _IN_GGUF.items() if fields.get(key) is not None}
    if settings:  # llama.cpp always draws, unless the temperature is 0, which transformers says in another way
        settings["do_sample"] = settings.get("temperature") != 0
        if not settings["do_sample"]:
            del settings["temperature"]
    return Generation(settings, "The GGUF file's header")
