"""Libraries of our own C++: brought by the package, or compiled once and kept; loaded with ctypes.

An installed wheel has every library built for several processors (`variants`). A checkout compiles at first use: in a
process of its own that holds a lock and outlives the command that began it, so that a second command waits for the
first one's result and none ever finds a half of it. The compiled file's name is a hash of the sources, the compiler,
its flags and the processor, so a changed one of them compiles anew and an unchanged one starts at once. Where there is
neither a library nor a compiler, what stands above works through torch and says what is slower.

It knows no model and none of the functions compiled: a `Library` brings both.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import hashlib
import json
import os
import subprocess
import sys
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from glassformer.errors import GlassformerError
from glassformer.kernels import variants
from glassformer.kernels.variants import COMPILERS, CSRC, LINK, NATIVE, find_compiler
from glassformer.system import files
from glassformer.system.folders import cache_directory
from glassformer.system.hardware import processor_identity

__all__ = ["CSRC", "Library", "NativeUnavailableError", "Signature", "find_compiler"]

_WORKER = "glassformer.kernels.compile_worker"

Signature = tuple[type | None, Sequence[type]]


class NativeUnavailableError(GlassformerError):
    """A native library cannot be had here; the message says why and what is slower."""


class Library:
    """One library: its sources, its functions, and what a user is told where it cannot be had.

    Args:
        driver: the file in ``csrc/`` to compile, without ``.cpp``; every source counts into its identity.
        signatures: each function's result and arguments, as ctypes has them.
        structures: what Python and C++ hand each other, in the order of the library's ``gf_sizes``; their sizes are
            compared when it is loaded.
        subject: what is missing without it ("The fast engine").
        instead: what happens then ("text is generated through torch in float32 instead, several times slower").
    """

    def __init__(
        self,
        driver: str,
        signatures: Mapping[str, Signature],
        structures: Sequence[type[ctypes.Structure]] = (),
        *,
        subject: str,
        instead: str,
    ) -> None:
        self.driver = driver
        self.signatures, self.structures = signatures, structures
        self.subject, self.instead = subject, instead
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, ...], ctypes.CDLL] = {}
        self._failed: dict[tuple[str, ...], NativeUnavailableError] = {}

    @property
    def source(self) -> Path:
        """The file that is compiled."""
        return CSRC / f"{self.driver}.cpp"

    def get(self, *extra: str) -> ctypes.CDLL:
        """The loaded library, compiled first where neither the package nor the cache has it (a few seconds, once).

        Args:
            extra: further compiler flags, such as ``-DGLASSFORMER_PORTABLE``.

        Raises:
            NativeUnavailableError: no compiler, or it failed; asked again, the same answer at once.
        """
        with self._lock:
            if extra in self._failed:
                raise self._failed[extra]
            if extra not in self._loaded:
                try:
                    self._loaded[extra] = self._get(extra)
                except NativeUnavailableError as error:
                    self._failed[extra] = error
                    raise
            return self._loaded[extra]

    def compiled(self) -> bool:
        """Whether it is loaded, in the package or the cache, or known not to come: asking for it takes no time."""
        if () in self._loaded or () in self._failed or self._built(()) is not None:
            return True
        compiler = find_compiler()
        return compiler is None or self.place(compiler).exists()

    def unavailable(self) -> str | None:
        """Why there is no such library here, in a sentence; None when there is one."""
        try:
            self.get()
        except NativeUnavailableError as error:
            return str(error)
        return None

    def forget(self) -> None:
        """Ask the system anew next time; for tests."""
        self._loaded.clear()
        self._failed.clear()

    def place(self, compiler: list[str], extra: tuple[str, ...] = ()) -> Path:
        """Where the compiled file lies, or will."""
        return cache_directory() / "native" / f"{self.driver}-{self._key(compiler, extra)}.so"

    def _get(self, extra: tuple[str, ...]) -> ctypes.CDLL:
        if (path := self._built(extra)) is not None:
            try:
                return self._load(path)
            except (OSError, AttributeError):
                pass  # damaged, or for a system with older libraries: compile
        compiler = find_compiler()
        if compiler is None:
            raise NativeUnavailableError(self._missing())
        place = self.place(compiler, extra)
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        except OSError:  # a cache that cannot be written: for this process alone
            with files.scratch() as folder:
                return self._compiled(compiler, extra, folder / place.name)
        return self._compiled(compiler, extra, place)

    def _built(self, extra: tuple[str, ...]) -> Path | None:
        names = [name for name, flags in variants.DRIVERS.items() if flags == extra]
        name = next((name for name in names if name.partition("-")[0] == self.driver), None)
        return None if name is None else variants.built(name)

    def _compiled(self, compiler: list[str], extra: tuple[str, ...], place: Path) -> ctypes.CDLL:
        there = place.exists()
        if not there:
            self._compile(compiler, extra, place)
        try:
            return self._load(place)
        except (OSError, AttributeError) as error:
            failure = error
        with contextlib.suppress(OSError):
            place.unlink()
        if there:  # damaged in the cache: once more
            return self._compiled(compiler, extra, place)
        raise NativeUnavailableError(
            f"{self.subject} is not available because its compiled library {place} cannot be loaded ({failure});"
            f" {self.instead}."
        )

    def _compile(self, compiler: list[str], extra: tuple[str, ...], place: Path) -> None:
        """Have another process compile, and wait for it as long as it takes.

        That process is of a session of its own: whoever interrupts or ends this one does not end it, and the next
        command finds what it has made.
        """
        base = [*compiler, *variants.base_flags(self.driver), f"-I{CSRC}"]
        tries = [[*base, *tuning, *extra, str(self.source), "-o"] for tuning in NATIVE]
        package = str(Path(__file__).parents[2])
        path = os.pathsep.join(filter(None, [package, os.environ.get("PYTHONPATH")]))
        job = json.dumps({"target": str(place), "tries": tries, "link": LINK})
        try:
            worker = subprocess.Popen(
                [sys.executable, "-m", _WORKER],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env=os.environ | {"PYTHONPATH": path},
                start_new_session=True,
                text=True,
                errors="replace",
            )
            said, _ = worker.communicate(job)
        except OSError as error:
            said = str(error)
        else:
            if worker.returncode == 0:
                return
        error_line = next((line for line in said.splitlines() if "error" in line.lower()), said.strip()[-200:])
        raise NativeUnavailableError(
            f"{self.subject} is not available because {compiler[0]} could not compile it ({error_line});"
            f" {self.instead}."
        )

    def _load(self, path: Path) -> ctypes.CDLL:
        lib = ctypes.CDLL(str(path))
        for name, (result, arguments) in self.signatures.items():
            function = getattr(lib, name)
            function.restype, function.argtypes = result, list(arguments)
        sizes = (ctypes.c_int32 * 64)()
        found = list(sizes[: lib.gf_sizes(sizes, len(sizes))])
        wanted = [ctypes.sizeof(structure) for structure in self.structures]
        if found != wanted:
            raise OSError(f"its structures have {found} bytes, where {wanted} are handed over")
        return lib

    def _missing(self) -> str:
        named = os.environ.get("CXX")
        there = f"CXX names {named!r}, which is not there" if named else f"no C++ compiler ({_listed()}) was found"
        return (
            f"{self.subject} is not available because {there}; {self.instead}."
            " Install g++ or clang++ (Debian: apt install g++) to get it."
        )

    def _key(self, compiler: list[str], extra: tuple[str, ...]) -> str:
        flags = (compiler, variants.base_flags(self.driver), NATIVE, extra, LINK, processor_identity())
        digest = hashlib.sha256(variants.sources_digest().encode())
        digest.update(_version(tuple(compiler)))
        digest.update(repr(flags).encode())
        return digest.hexdigest()[:24]


@functools.cache
def _version(compiler: tuple[str, ...]) -> bytes:
    try:
        return subprocess.run([*compiler, "--version"], capture_output=True).stdout
    except OSError:
        return b""


def _listed() -> str:
    return ", ".join(COMPILERS)
