"""The native library: compiled once with the system's C++ compiler, kept in the user's cache, loaded with ctypes.

The sources lie in ``native/`` and are part of the package. The compiled file's name is a hash of the sources,
the compiler, its flags and the processor, so a changed one of them compiles anew and an unchanged one starts at
once. Where there is no compiler, everything above works through torch and `unavailable()` says what is slower.

It knows the library's functions and structures; it does not know models or precisions.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shlex
import shutil
import subprocess
import tempfile
import threading
from pathlib import Path

from glassformer.checkpoint.store import cache_directory
from glassformer.errors import GlassformerError

SOURCE = Path(__file__).with_name("native")
COMPILERS = ("c++", "g++", "clang++")
_BASE = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi", "-w")
# The first that compiles is taken: some compilers for ARM know -mcpu only, and a very old one neither.
_TUNINGS = (("-march=native",), ("-mcpu=native",), ())
_LINK = ("-pthread",)
_TIMEOUT = 120.0


class NativeUnavailableError(GlassformerError):
    """The native library cannot be had here; the message says why and what is slower."""


class Matrix(ctypes.Structure):
    """One packed weight matrix (rows = outputs, cols = inputs) and its bias."""

    _fields_ = [
        ("format", ctypes.c_int32),
        ("rows", ctypes.c_int32),
        ("cols", ctypes.c_int32),
        ("exact", ctypes.c_int32),
        ("data", ctypes.c_void_p),
        ("bias", ctypes.c_void_p),
    ]


class NormWeights(ctypes.Structure):
    """A norm's scale and bias; a null scale means there is no such norm."""

    _fields_ = [("weight", ctypes.c_void_p), ("bias", ctypes.c_void_p)]


class Layer(ctypes.Structure):
    """One block's weights, its window (0 for none) and which rotary table it uses."""

    _fields_ = [
        *((name, Matrix) for name in ("q", "k", "v", "o", "gate", "up", "down")),
        *((name, NormWeights) for name in ("ln1", "ln2", "ln1_post", "ln2_post", "q_norm", "k_norm")),
        ("window", ctypes.c_int32),
        ("table", ctypes.c_int32),
    ]


class Parts(ctypes.Structure):
    """What is outside the blocks; cosines and sines are (table, capacity, pair)."""

    _fields_ = [
        *((name, Matrix) for name in ("embed", "unembed", "pos_embed")),
        ("final_norm", NormWeights),
        ("cosines", ctypes.c_void_p),
        ("sines", ctypes.c_void_p),
    ]


class Shape(ctypes.Structure):
    """Sizes and numbers of a design; a 0 soft cap or embedding scale means none."""

    _fields_ = [
        *((name, ctypes.c_int32) for name in ("vocab", "d_model", "n_layers", "n_heads", "n_kv_heads", "d_head")),
        *((name, ctypes.c_int32) for name in ("d_ff", "rotary", "activation", "layer_norm", "parallel", "slots")),
        *((name, ctypes.c_int32) for name in ("capacity", "brain_cache", "rows")),
        *((name, ctypes.c_float) for name in ("eps", "score_scale", "score_softcap", "logit_softcap")),
        ("embedding_scale", ctypes.c_float),
    ]


_INT, _POINTER, _SIZE = ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t
_SIGNATURES: dict[str, tuple[type | None, list[type]]] = {
    "gf_instructions": (ctypes.c_char_p, []),
    "gf_allocate": (_POINTER, [_SIZE]),
    "gf_free": (None, [_POINTER]),
    "gf_matrix_bytes": (_SIZE, [_INT, _INT, _INT]),
    "gf_pack": (None, [_INT, _INT, _INT, _POINTER, _POINTER, _INT]),
    "gf_unpack": (None, [_POINTER, _INT, _POINTER]),
    "gf_multiply": (_INT, [_POINTER, _POINTER, _INT, _POINTER]),
    "gf_read": (ctypes.c_double, [_POINTER, _SIZE, _INT]),
    "gf_create": (_POINTER, [_POINTER, _POINTER, _POINTER]),
    "gf_destroy": (None, [_POINTER]),
    "gf_forward": (_INT, [_POINTER, _INT, _POINTER, _POINTER, _POINTER, _INT, _POINTER, _POINTER, _INT]),
    "gf_copy": (None, [_POINTER, _INT, _INT, _INT]),
}

_lock = threading.Lock()
_loaded: dict[tuple[str, ...], ctypes.CDLL] = {}
_failed: dict[tuple[str, ...], NativeUnavailableError] = {}


def library(*extra: str) -> ctypes.CDLL:
    """The loaded library, compiled first where the cache has none (a few seconds, once).

    Args:
        extra: further compiler flags, such as ``-DGLASSFORMER_PORTABLE``.

    Raises:
        NativeUnavailableError: no compiler, or it failed; asked again, the same answer at once.
    """
    with _lock:
        if extra in _failed:
            raise _failed[extra]
        if extra not in _loaded:
            try:
                _loaded[extra] = _load(_compiled(extra))
            except NativeUnavailableError as error:
                _failed[extra] = error
                raise
        return _loaded[extra]


def compiled() -> bool:
    """Whether the library is loaded, in the cache, or known not to come: asking for it takes no time."""
    if () in _loaded or () in _failed:
        return True
    compiler = find_compiler()
    return compiler is None or _place(compiler, ()).exists()


def unavailable() -> str | None:
    """Why there is no native library here, in a sentence; None when there is one."""
    try:
        library()
    except NativeUnavailableError as error:
        return str(error)
    return None


def instructions(lib: ctypes.CDLL) -> str:
    """Which instruction set the kernels were compiled for, in words."""
    return lib.gf_instructions().decode()


def find_compiler() -> list[str] | None:
    """The C++ compiler's command: what CXX names, else the first of c++, g++, clang++ on the path."""
    named = os.environ.get("CXX")
    if named is not None:
        command = shlex.split(named)
        return command if command and shutil.which(command[0]) else None
    for name in COMPILERS:
        path = shutil.which(name)
        if path:
            return [path]
    return None


def _missing() -> str:
    named = os.environ.get("CXX")
    there = f"CXX names {named!r}, which is not there" if named else "no C++ compiler (c++, g++, clang++) was found"
    return (
        f"The fast engine is not available because {there}; text is generated through torch in float32 instead,"
        " several times slower. Install g++ or clang++ (Debian: apt install g++) to get it."
    )


def _compiled(extra: tuple[str, ...]) -> Path:
    compiler = find_compiler()
    if compiler is None:
        raise NativeUnavailableError(_missing())
    place: Path | None = _place(compiler, extra)
    assert place is not None
    try:
        place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        if place.exists():
            return place
    except OSError:
        place = None  # a cache that cannot be written: compile for this process alone
    return _compile(compiler, extra, place)


def _place(compiler: list[str], extra: tuple[str, ...]) -> Path:
    return cache_directory() / "native" / f"forward-{_key(compiler, extra)}.so"


def _compile(compiler: list[str], extra: tuple[str, ...], place: Path | None) -> Path:
    error = ""
    folder = Path(tempfile.mkdtemp(prefix="glassformer-")) if place is None else place.parent
    handle, name = tempfile.mkstemp(suffix=".so", prefix=".compiling-", dir=folder)
    os.close(handle)
    try:
        for tuning in _TUNINGS:
            command = [*compiler, *_BASE, *tuning, *extra, str(SOURCE / "forward.cpp"), "-o", name, *_LINK]
            try:
                done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
            except (OSError, subprocess.TimeoutExpired) as failure:
                error = str(failure)
                break
            if done.returncode == 0:
                target = Path(name).with_name("forward.so") if place is None else place
                os.replace(name, target)  # atomic: whoever else compiled it wrote the same
                return target
            error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
    finally:
        with contextlib.suppress(OSError):
            os.unlink(name)
    raise NativeUnavailableError(
        f"The fast engine is not available because {compiler[0]} could not compile it ({error}); text is generated"
        " through torch in float32 instead, several times slower."
    )


def _load(path: Path) -> ctypes.CDLL:
    try:
        lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in _SIGNATURES.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, arguments
    except (OSError, AttributeError) as error:
        with contextlib.suppress(OSError):
            path.unlink()  # damaged: the next start compiles it again
        raise NativeUnavailableError(
            f"The fast engine is not available because its compiled library {path} cannot be loaded ({error}); text is"
            " generated through torch in float32 instead, several times slower."
        ) from None
    return lib


def _key(compiler: list[str], extra: tuple[str, ...]) -> str:
    digest = hashlib.sha256()
    for path in sorted(SOURCE.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.read_bytes())
    try:
        version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_TIMEOUT).stdout
    except (OSError, subprocess.TimeoutExpired):
        version = b""
    digest.update(version)
    digest.update(repr((compiler, _BASE, _TUNINGS, extra, _LINK, _processor())).encode())
    return digest.hexdigest()[:24]


def _processor() -> str:
    """What -march=native depends on."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = {line.strip() for line in file if line.startswith(wanted)}
        return platform.machine() + "".join(sorted(lines))
    return platform.machine() + platform.processor() + platform.platform()
