"""GGUF files: a design from the settings, and weights that are dequantised when something first asks for them.

A GGUF means what llama.cpp computes from it. The dequantised copy is a native-layout safetensors
file named after the content of the GGUF; opening it again reads neither the GGUF's tensors nor the
`gguf` package. A model whose copy is larger than the cache is dequantised operation by operation instead.
`raw_blocks` gives the stored blocks as they are, for engines that compute with them.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import shutil
import struct
import threading
import warnings
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from glassformer.checkpoint.attributes import Attributes
from glassformer.checkpoint.families import Family, GgufLayout, by_architecture
from glassformer.checkpoint.families.family import sound
from glassformer.checkpoint.families.settings import FACTORS, LONG, SHORT, named_factors, rotary_of, with_scaling
from glassformer.checkpoint.gguf_header import GgufHeader, Stored, is_split, read_gguf_header
from glassformer.checkpoint.keys import Shape, native_shapes
from glassformer.checkpoint.native import LazyTensors
from glassformer.checkpoint.tables import Table, take_rows
from glassformer.checkpoint.tensorfile import SIZES, TensorFile, read_header, write_tensors
from glassformer.errors import CheckpointError, UnsupportedError
from glassformer.fetch.gguf_parts import paths_of, stem
from glassformer.model.config import Config, RopeScaling

if TYPE_CHECKING:
    import numpy as np
    from torch import Tensor

Dtype = Literal["float32", "float16", "bfloat16"]

_STORED: Mapping[str, str] = {"float32": "F32", "float16": "F16", "bfloat16": "BF16"}
_COPY_VERSION = "1"  # of what the cached copies hold; a new number makes the old ones unused
_SAMPLES, _SAMPLE, _HEAD = 64, 4096, 1 << 20
_NAMES = ("general.architecture", "general.name")
_IGNORED = (r"^rope_(freqs|factors_short|factors_long)\.weight$",)


@dataclass(frozen=True)
class Gguf:
    """A GGUF file understood: header, family, design, and the table of its tensors."""

    header: GgufHeader
    family: Family
    layout: GgufLayout
    config: Config
    table: Table
    numbers: Mapping[str, float]  # what settings hold in the place of tensors, by the names that the table has for it

    @property
    def metadata(self) -> dict[str, Any]:
        """The settings, without the long arrays of the tokenizer."""
        return {name: value for name, value in self.header.settings.items() if not isinstance(value, list)}


def tokenizer_fields(path: Path) -> dict[str, Any]:
    """The settings a tokenizer is built from: ``tokenizer.*``, ``general.sampling.*``, the architecture and
    the name; raises as `read_gguf`."""
    settings = read_gguf_header(path).settings
    return {k: v for k, v in settings.items() if k.startswith(("tokenizer.", "general.sampling.")) or k in _NAMES}


def read_gguf(path: Path) -> Gguf:
    """Understands a GGUF from its header alone: nothing is dequantised and torch is not imported.

    Raises:
        CheckpointError: it is broken or its tensors do not fit its settings.
        UnsupportedError: an architecture, a setting or a tensor type that Glassformer cannot express.
    """
    header = read_gguf_header(path)
    architecture = header.settings.get("general.architecture")
    family = by_architecture(architecture, str(path), header.settings)
    layout = family.gguf
    assert layout is not None
    attributes = Attributes(_uniform(header, layout.by_layer), str(path), f"{architecture}.")
    config = sound(lambda: _with_factors(layout.read(attributes, header.shapes), header), str(path))
    table, numbers = layout.table(config, header.shapes), _numbers(header, layout, config)
    further = header.settings.get(f"{architecture}.nextn_predict_layers", 0)
    beyond = range(config.n_layers, config.n_layers + (further if isinstance(further, int) else 0))
    found = {**header.shapes, **{name: table.places[name].shape for name in numbers}}
    table.check(found, (*_IGNORED, *layout.ignored, *(rf"^blk\.{i}\." for i in beyond)), str(path))
    return Gguf(header, family, layout, config, table, numbers)


def _numbers(header: GgufHeader, layout: GgufLayout, config: Config) -> dict[str, float]:
    """What settings hold layer by layer in the place of tensors; one number stands for all layers."""
    found = {}
    for row in layout.rows:
        said = header.settings.get(row.setting)
        values = said if isinstance(said, list) else [said] * config.n_layers
        for i, value in enumerate(values[: config.n_layers] if row.setting else ()):
            if isinstance(value, float):
                found[row.theirs.replace("{i}", str(i))] = value
    return found


def _uniform(header: GgufHeader, by_layer: tuple[str, ...]) -> dict[str, Any]:
    """The settings, with counts that are given layer by layer, and are the same in all, as one number."""
    settings = dict(header.settings)
    for name, value in settings.items():
        if isinstance(value, list) and name.endswith((".head_count", ".head_count_kv", ".feed_forward_length")):
            if not value or any(one != value[0] for one in value):
                if value and name.partition(".")[2] in by_layer:
                    continue
                raise UnsupportedError(f"{header.path} sets {name} layer by layer; Glassformer's layers are all alike.")
            settings[name] = value[0]
    return settings


def _with_factors(config: Config, header: GgufHeader) -> Config:
    """Adds the divisors of a ``rope_freqs`` tensor, which is how GGUF stores Llama 3's scaling."""
    there = [name for name in (FACTORS, SHORT, LONG) if name in header.tensors]
    if not there:
        return config
    scaling = _long(header, config) if SHORT in there or LONG in there else None
    if scaling is None:
        scaling = named_factors(config, _factors(header, FACTORS))
    if scaling is None:
        return config
    if rotary_of(config, window=False).scaling is not None:
        raise UnsupportedError(
            f"{header.path} holds {there[0]} and sets rope.scaling.type too; Glassformer expresses one of them."
        )
    return with_scaling(config, scaling)


def _factors(header: GgufHeader, name: str) -> tuple[float, ...]:
    """The divisors that a tensor holds."""
    stored = header.tensors.get(name)
    if stored is None:
        raise CheckpointError(f"{header.path} lacks {name}, which goes with {SHORT} and {LONG}; it is incomplete.")
    if stored.kind != "F32":
        raise UnsupportedError(f"{header.path} stores {name} as {stored.kind} instead of F32.")
    with stored.path.open("rb") as file:
        file.seek(stored.start)
        data = file.read(stored.end - stored.start)
    factors = struct.unpack(f"<{len(data) // 4}f", data)
    if not all(0 < factor < math.inf for factor in factors):
        raise CheckpointError(f"{header.path} holds rotary divisors in {name} that are not positive numbers.")
    return factors


def _long(header: GgufHeader, config: Config) -> RopeScaling:
    """Divisors for short and for long texts (Phi-3)."""
    attributes = Attributes(header.settings, str(header.path), f"{header.settings.get('general.architecture')}.")
    original = attributes.integer("rope.scaling.original_context_length")
    return RopeScaling(
        "longrope",
        factor=config.context / original if original > 0 else 1.0,
        original_context=original,
        attention_factor=attributes.number("rope.scaling.attn_factor", 1.0),
        factors=_factors(header, SHORT),
        long_factors=_factors(header, LONG),
    )


@dataclass(frozen=True)
class Copy:
    """A GGUF's tensors dequantised, and what it says of itself.

    Args:
        at_hand: whether the tensors lie dequantised in the cache; else they are when the first is asked for.
    """

    tensors: Mapping[str, Tensor]
    config: Config
    family: str
    metadata: dict[str, Any]
    at_hand: bool = True


# Block types that need no trial before they are dequantised.
_KNOWN = frozenset({"F32", "F16", "BF16", "Q4_0", "Q4_1", "Q5_0", "Q5_1", "Q8_0", "Q4_K", "Q5_K", "Q6_K"})


def opened(
    path: Path, cache: Path | None = None, dtype: Dtype = "float32", progress: Callable[[int, int], None] | None = None
) -> Copy:
    """A GGUF with its tensors: mapped from the copy in the cache, or dequantised when the first is asked for.

    Then the whole copy is made, where it fits into the cache; else each tensor is dequantised whenever an operation
    reads it, and of experts only those that are read. Arguments as for `dequantised`.

    Raises:
        CheckpointError: the GGUF is broken.
        UnsupportedError: the GGUF holds something Glassformer cannot express.
    """
    if (copy := _opened(_copy_path(path, cache, dtype))) is not None:
        return copy
    gguf = read_gguf(path)
    for kind, stored in {stored.kind: stored for stored in gguf.header.tensors.values()}.items():
        if kind not in _KNOWN:
            with stored.path.open("rb") as file:
                file.seek(stored.start)
                _values(file.read(stored.row_bytes), kind)
    made: list[Mapping[str, Tensor]] = []
    lock = threading.Lock()

    def fetch(key: str) -> Tensor:
        with lock:
            if not made:
                needed, free = copy_bytes(gguf.config, dtype), _free(cache)
                if needed <= free:
                    made.append(dequantised(path, cache, dtype, progress).tensors)
                else:
                    warnings.warn(
                        f"{path.name} in {dtype} takes {needed / 1e9:.1f} GB and the cache has room for "
                        f"{free / 1e9:.1f}; its weights are dequantised anew wherever they are read, which is slow. "
                        "GLASSFORMER_CACHE and GLASSFORMER_CACHE_LIMIT give it more room.",
                        stacklevel=2,
                    )
                    made.append(_apart(gguf, dtype))
        return made[0][key]

    return Copy(LazyTensors(native_shapes(gguf.config), fetch), gguf.config, gguf.family.name, gguf.metadata, False)


def copy_bytes(config: Config, dtype: Dtype = "float32") -> int:
    """What all of a design's parameters take in this type."""
    return sum(math.prod(shape) for shape in native_shapes(config).values()) * SIZES[_STORED[dtype]]


def _free(cache: Path | None) -> int:
    """Bytes that one more copy may take: the cache's limit, and what is free where it lies."""
    from glassformer.fetch import store

    folder = store.dequantised_directory() if cache is None else cache
    while not folder.exists():
        folder = folder.parent
    return min(store.cache_limit(), shutil.disk_usage(folder).free)


def _apart(gguf: Gguf, dtype: Dtype) -> Mapping[str, Tensor]:
    """Tensors that are dequantised when operations read them, and kept by nobody."""
    import torch

    from glassformer.checkpoint.stored_tensor import StoredTensor

    blocks, kind = Blocks(gguf), {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[dtype]

    def fetch(key: str) -> Tensor:
        raw = blocks[key]
        return StoredTensor(raw.shape, raw.rows, kind) if len(raw.shape) > 1 else blocks.tensor(key).to(kind)

    return LazyTensors(blocks, fetch)


def dequantised(
    path: Path, cache: Path | None = None, dtype: Dtype = "float32", progress: Callable[[int, int], None] | None = None
) -> Copy:
    """The dequantised copy of a GGUF, made when the cache has none.

    The copy's name is a digest of the file's size, time of change, first mebibyte and 64 pages spread
    over the rest, so that finding it takes about a millisecond. Two processes that ask at once make it once.

    Args:
        cache: folder of the copies; None for the user's cache.
        progress: called with (bytes written, bytes in all) while the copy is made.
    Raises:
        CheckpointError: the GGUF is broken, or the cache cannot be written.
        UnsupportedError: the GGUF holds something Glassformer cannot express.
    """
    from glassformer.fetch import store

    own, target = cache is None, _copy_path(path, cache, dtype)
    copy, cache = _opened(target), target.parent
    if copy is None:
        import filelock

        try:
            cache.mkdir(parents=True, exist_ok=True)
            with filelock.FileLock(target.with_suffix(".lock")):
                copy = _opened(target)
                if copy is None:
                    _make(path, target, dtype, progress)
                    copy = _opened(target)
        except OSError as error:
            raise CheckpointError(
                f"The dequantised copy of {path} cannot be written to {cache} ({error.strerror or error}); "
                "set GLASSFORMER_CACHE to a folder that can be written."
            ) from None
        if copy is None:
            raise CheckpointError(f"The dequantised copy {target} cannot be read back; delete it and try again.")
        if own:
            store.enforce_limit()
    return copy


def _copy_path(path: Path, cache: Path | None, dtype: Dtype) -> Path:
    """Where a GGUF's copy lies, or would; it counts as used from now on."""
    from glassformer.fetch import store

    if dtype not in _STORED:
        raise UnsupportedError(f"A GGUF can be dequantised to {', '.join(_STORED)}; not to {dtype!r}.")
    folder = store.dequantised_directory() if cache is None else cache
    target = folder / f"{stem(path)[:80]}-{identity(path)}-{dtype}.safetensors"
    store.note_use(target)
    return target


def identity(path: Path) -> str:
    """A digest that changes when a large file (or one of its parts) does, without reading all of it.

    Raises:
        CheckpointError: the file cannot be read.
    """
    digests = [_digest(part) for part in (paths_of(path) if is_split(path) else [path])]
    return digests[0] if len(digests) == 1 else hashlib.sha256(" ".join(digests).encode()).hexdigest()[:24]


def _digest(path: Path) -> str:
    try:
        with path.open("rb") as file:
            status = os.fstat(file.fileno())
            digest = hashlib.sha256(f"{_COPY_VERSION} {status.st_size} {status.st_mtime_ns}".encode())
            digest.update(file.read(_HEAD))
            for i in range(_SAMPLES if status.st_size > _HEAD else 0):
                file.seek(_HEAD + (status.st_size - _HEAD - _SAMPLE) * i // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE))
    except OSError as error:
        raise CheckpointError(f"{path} cannot be read ({error.strerror or error}).") from None
    return digest.hexdigest()[:24]


def _opened(target: Path) -> Copy | None:
    """The copy, or None when there is none that is whole: then it is made again."""
    if not target.exists():
        return None
    try:
        header = read_header(target)
        note = json.loads(header.metadata["glassformer"])
        config = Config.from_dict(note["config"])
        if {name: entry.shape for name, entry in header.tensors.items()} != native_shapes(config):
            return None
        return Copy(
            LazyTensors(header.tensors, TensorFile(header).__getitem__), config, note["family"], note["metadata"]
        )
    except (CheckpointError, KeyError, ValueError):
        return None


def _make(path: Path, target: Path, dtype: Dtype, progress: Callable[[int, int], None] | None) -> None:
    gguf = read_gguf(path)
    shapes = native_shapes(gguf.config)
    total = copy_bytes(gguf.config, dtype)
    note = {"config": gguf.config.to_dict(), "family": gguf.family.name, "metadata": gguf.metadata}
    done = 0

    def step(written: int) -> None:
        nonlocal done
        done += written
        if progress is not None:
            progress(done, total)

    blocks = Blocks(gguf)
    write_tensors(target, shapes, blocks.tensor, _STORED[dtype], {"glassformer": json.dumps(note)}, step)


@dataclass(frozen=True)
class RawTensor:
    """One parameter as the file stores it.

    Args:
        kind: its ggml type, such as "Q4_1", "Q8_0" or "F32".
        shape: of the parameter: (out, in), (experts, out, in), or (n,).
        data: bytes (uint8), one row per row of the parameter; ``(1, bytes)`` for a vector.
            A mapping of the file where rows lie as ours do; queries and keys of "llama" are copied into our order.
    """

    kind: str
    shape: Shape
    data: np.ndarray

    def values(self) -> np.ndarray:
        """The parameter in float32."""
        return _values(self.data, self.kind).reshape(self.shape)

    def rows(self, which: np.ndarray | int | None) -> np.ndarray:
        """The parameter in float32, or only these of its first axis: one (without that axis), or several."""
        if which is None:
            return self.values()
        each = self.data.reshape((self.shape[0], -1))[which]
        return _values(each, self.kind).reshape((*each.shape[:-1], *self.shape[1:]))


def raw_blocks(path: str | Path) -> Mapping[str, RawTensor]:
    """Every parameter of a GGUF by native key, in the file's own blocks, mapped and made when asked for.

    Raises:
        CheckpointError: the GGUF is broken.
        UnsupportedError: it holds something Glassformer cannot express.
    """
    return Blocks(read_gguf(Path(path)))


class Blocks(Mapping[str, RawTensor]):
    """`raw_blocks` of a GGUF already understood."""

    def __init__(self, gguf: Gguf):
        import numpy as np

        self._gguf = gguf
        files = {stored.path for stored in gguf.header.tensors.values()}
        # Copy on write: never written, but torch warns of arrays that could not be.
        self._data = {path: np.memmap(path, mode="c", dtype=np.uint8) for path in files}
        self._homes = gguf.table.homes
        self._shapes = native_shapes(gguf.config)

    def __getitem__(self, key: str) -> RawTensor:
        import numpy as np

        place, part = self._homes[key]
        config, shape = self._gguf.config, self._shapes[key]
        if len(shape) < 2 or not place.plain:  # vectors are small, and what is laid out anew is not the stored blocks
            values = np.ascontiguousarray(self._gguf.table.ours(key, self._stored)).reshape((-1, *(shape or (1,))[-1:]))
            return RawTensor("F32", shape, values.view("uint8"))
        stored = self._gguf.header.tensors[place.theirs]
        rows = take_rows(place, part, self._bytes(stored).reshape((-1, stored.row_bytes)), config)
        return RawTensor(stored.kind, shape, rows)

    def __iter__(self) -> Iterator[str]:
        return iter(self._homes)

    def __len__(self) -> int:
        return len(self._homes)

    def tensor(self, key: str) -> Tensor:
        """One parameter, dequantised."""
        import torch

        return torch.from_numpy(self[key].values())

    def _bytes(self, stored: Stored) -> np.ndarray:
        return self._data[stored.path][stored.start : stored.end]

    def _stored(self, name: str) -> np.ndarray:
        """One tensor of theirs in float32."""
        import numpy as np

        if (number := self._gguf.numbers.get(name)) is not None:
            return np.full(self._gguf.table.places[name].shape, number, dtype=np.float32)
        stored = self._gguf.header.tensors[name]
        return _values(self._bytes(stored).reshape((-1, stored.row_bytes)), stored.kind).reshape(stored.shape)


def _values(data: np.ndarray | bytes, kind: str) -> np.ndarray:
    """Blocks of any type the `gguf` package can dequantise, in float32."""
    import numpy as np

    if isinstance(data, bytes):
        data = np.frombuffer(data, np.uint8)
    plain = {"F32": "<f4", "F16": "<f2", "F64": "<f8"}
    if kind in plain:
        return np.ascontiguousarray(data).view(plain[kind]).astype(np.float32)
    from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, dequantize

    # That package works on sixteen rows at a time. Blocks know nothing of rows, so longer ones save most of its loop.
    width = GGML_QUANT_SIZES[GGMLQuantizationType[kind]][1]
    blocks = np.ascontiguousarray(data).reshape((-1, width))
    try:
        values: np.ndarray = dequantize(
            blocks.reshape((-1, width * math.gcd(len(blocks), 1024))), GGMLQuantizationType[kind]
        )
    except NotImplementedError:
        raise UnsupportedError(
            f"Tensors of ggml type {kind} cannot be dequantised; use another quantisation."
        ) from None
    return values.reshape(-1).astype(np.float32, copy=False)
