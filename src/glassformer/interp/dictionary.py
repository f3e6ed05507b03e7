"""Dictionaries of features that others trained on a model's feed-forward parts: read from files, and taken apart by.

A transcoder reads the stream before a feed-forward part and says what the part adds; a sparse autoencoder reads what it
adds and says it again. Either way what the part adds is a sum of features, a base (the decoder's bias, and a
transcoder's skip) and an *error*, all that the dictionary misses. Layouts read: SAELens' folder (cfg.json and
sae_weights.safetensors) and circuit-tracer's layer_N.safetensors with config.yaml beside them. Knows files and tensors,
no texts.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from glassformer.errors import CheckpointError, UnsupportedError, UsageError
from glassformer.interp.edge_parts import split_feed
from glassformer.model.config import Config
from glassformer.model.parts.block import Block
from glassformer.model.sites import View
from glassformer.system import files

STREAM, ADDED = "resid_mid", "mlp.out"
# Names that the two layouts have for what is read and what is said.
_HOOKS = {"hook_resid_mid": STREAM, "hook_mlp_in": STREAM, "hook_mlp_out": ADDED}
_CROSSING = ("transcoder", "skip_transcoder", "jumprelu_transcoder", "jumprelu_skip_transcoder")
_KINDS = ("standard", "jumprelu", "topk", *_CROSSING)
_LAYER = re.compile(r"layer_(\d+)\.safetensors")


@dataclass(frozen=True)
class Dictionary:
    """Features of one layer's feed-forward part.

    Attributes:
        layer: which; reads: "resid_mid", the stream before the part, or "mlp.out", what it adds.
        encoder, decoder: (feature, d_model); encoder_bias: (feature); decoder_bias: (d_model).
        threshold: a feature is on above it (0 where none is given); most: only so many are on at once, or None.
        skip: (d_model, d_model), what is read added to what is said, or None.
        centred: whether the decoder's bias is taken from what is read first.
    """

    layer: int
    reads: str
    encoder: Float[Tensor, "feature d_model"]
    decoder: Float[Tensor, "feature d_model"]
    encoder_bias: Float[Tensor, " feature"]
    decoder_bias: Float[Tensor, " d_model"]
    threshold: Tensor
    most: int | None = None
    skip: Float[Tensor, "d_model d_model"] | None = None
    centred: bool = False

    def check(self, config: Config) -> None:
        """Raise UsageError where it is no dictionary of this design."""
        if self.layer >= config.n_layers or config.layers[self.layer].feed_forward is None:
            raise UsageError(f"A dictionary is of layer {self.layer}, which has no feed-forward part in this model.")
        if self.decoder.shape[1] != config.d_model:
            raise UsageError(
                f"The dictionary of layer {self.layer} is of width {self.decoder.shape[1]}, this model's is "
                f"{config.d_model}; it is of another model."
            )

    def encode(self, x: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch feature"]:
        """How strongly each feature is on."""
        x = x - self.decoder_bias.to(x) if self.centred else x
        pre = x @ self.encoder.to(x).T + self.encoder_bias.to(x)
        on = (pre > self.threshold.to(x)) & (pre > 0)
        if self.most is not None:
            least = pre.topk(min(self.most, pre.shape[-1]), dim=-1).values[..., -1:]
            on = on & (pre >= least)
        return torch.where(on, pre, torch.zeros_like(pre))

    def split(
        self, block: Block, stream: Float[Tensor, "row query d_model"], view: View | None = None
    ) -> tuple[
        Float[Tensor, "row query feature"], Float[Tensor, "row query d_model"], Float[Tensor, "row query d_model"]
    ]:
        """Features, base and error of what the part adds, given the stream that it reads: features times the decoder,
        base and error are together what it adds, and nothing goes back through the error."""
        whole = split_feed(block, stream[None], view).sum(0)
        read = stream if self.reads == STREAM else whole
        on = self.encode(read)
        base = self.decoder_bias.to(read).expand_as(read)
        base = base if self.skip is None else base + read @ self.skip.to(read).T
        return on, base, (whole - on @ self.decoder.to(on) - base).detach()


def dictionaries(path: str | Path) -> list[Dictionary]:
    """The dictionaries in a folder of SAELens', a file layer_N.safetensors of circuit-tracer's, or a folder of those.

    Raises:
        CheckpointError: it is none of these, or broken.
        UnsupportedError: it is of a kind or a place that cannot be laid over a feed-forward part.
    """
    path = Path(path)
    if (path / "cfg.json").is_file():
        return [_saelens(path)]
    listed = sorted(path.glob("layer_*.safetensors")) if path.is_dir() else [path]
    listed = [one for one in listed if _LAYER.fullmatch(one.name)]
    if not listed:
        raise CheckpointError(
            f"{path} is no dictionary: a folder with cfg.json and sae_weights.safetensors, or layer_N.safetensors."
        )
    return [_circuit_tracer(one) for one in listed]


def _tensors(file: Path) -> dict[str, Tensor]:
    try:
        return load_file(file)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{file} is no readable dictionary ({files.reason(error)}).") from None


def _site(file: Path, hook: str) -> str:
    leaf = hook.rpartition(".")[2]
    if leaf not in _HOOKS:
        raise UnsupportedError(
            f"The dictionary in {file} is of {hook!r}; laid over a feed-forward part is one of {', '.join(_HOOKS)}."
        )
    return _HOOKS[leaf]


def _saelens(folder: Path) -> Dictionary:
    file = folder / "cfg.json"
    try:
        told = json.loads(file.read_text("utf-8"))
        about: dict[str, Any] = {**told.get("metadata", {}), **told}
        kind, hook = about.get("architecture", "standard"), str(about["hook_name"])
        layer = int(re.findall(r"blocks\.(\d+)\.", hook)[0])
    except (OSError, ValueError, KeyError, IndexError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{file} does not say which layer's features it describes ({error}).") from None
    if kind not in _KINDS:
        raise UnsupportedError(f"The dictionary in {folder} is a {kind!r}; read are {', '.join(_KINDS)}.")
    plain = (
        ("normalize_activations", "none"),
        ("reshape_activations", "none"),
        ("rescale_acts_by_decoder_norm", False),
    )
    for key, value in plain:
        if about.get(key) not in (None, value):
            raise UnsupportedError(
                f"The dictionary in {folder} has {key} {about[key]!r}; fold it into the weights first."
            )
    function = str(about.get("activation_fn", about.get("activation_fn_str", "relu")))
    if function not in ("relu", "topk"):
        raise UnsupportedError(f"The dictionary in {folder} has the activation {function!r}; read are relu and topk.")
    crosses = kind in _CROSSING
    said = _site(file, str(about.get("hook_name_out") or hook))
    reads = _site(file, hook)
    if said != ADDED or crosses is (reads == ADDED):
        raise UnsupportedError(f"The dictionary in {folder} goes from {reads} to {said}, not to what a part adds.")
    most = None
    if kind == "topk" or function == "topk":
        most = int(about.get("k") or (about.get("activation_fn_kwargs") or {}).get("k") or 0)
    centred = bool(about.get("apply_b_dec_to_input", not crosses))
    found = _tensors(folder / "sae_weights.safetensors")
    return _made(folder, layer, reads, found, turned=True, most=most, centred=centred)


def _circuit_tracer(file: Path) -> Dictionary:
    named = _LAYER.fullmatch(file.name)
    assert named is not None
    beside, hooks = file.with_name("config.yaml"), {}
    if beside.is_file():
        lines = beside.read_text("utf-8").splitlines()
        hooks = {key.strip(): value.strip(" \"'") for key, _, value in (line.partition(":") for line in lines)}
    reads = _site(file, hooks.get("feature_input_hook", "hook_resid_mid"))
    if _site(file, hooks.get("feature_output_hook", "hook_mlp_out")) != ADDED:
        raise UnsupportedError(f"The dictionary in {file} does not say what a feed-forward part adds.")
    return _made(file, int(named[1]), reads, _tensors(file), turned=False)


def _made(path: Path, layer: int, reads: str, found: dict[str, Tensor], turned: bool, **more: Any) -> Dictionary:
    try:
        encoder = found["W_enc"].T.contiguous() if turned else found["W_enc"]
        threshold = found.get("threshold", found.get("activation_function.threshold", torch.zeros(())))
        made = Dictionary(
            layer,
            reads,
            encoder,
            found["W_dec"],
            found["b_enc"],
            found["b_dec"],
            threshold,
            skip=found.get("W_skip"),
            **more,
        )
    except KeyError as error:
        raise CheckpointError(f"The dictionary in {path} lacks its {error.args[0]}.") from None
    features, width = made.decoder.shape if made.decoder.ndim == 2 else (0, 0)
    shapes = [tuple(x.shape) for x in (made.encoder, made.encoder_bias, made.decoder_bias)]
    if shapes != [(features, width), (features,), (width,)]:
        raise CheckpointError(f"The tensors of the dictionary in {path} do not fit each other: {shapes}.")
    return made
