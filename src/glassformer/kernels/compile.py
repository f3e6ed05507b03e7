"""Libraries of our own C++: compiled once with the system's compiler, kept in the user's cache, loaded with ctypes.

The sources are part of the package. The compiled file's name is a hash of the sources, the compiler, its flags and the
processor, so a changed one of them compiles anew and an unchanged one starts at once. Where there is no compiler, what
stands above works through torch and says what is slower.

It knows no model and none of the functions compiled: a `Library` brings both.
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
from collections.abc import Mapping, Sequence
from pathlib import Path

from glassformer.errors import GlassformerError
from glassformer.system.folders import cache_directory

CSRC = Path(__file__).with_name("csrc")
COMPILERS = ("c++", "g++", "clang++")
_BASE = ("-std=c++17", "-O3", "-fPIC", "-shared", "-fno-math-errno", "-Wno-psabi", "-w")
# The first that compiles is taken: some compilers for ARM know -mcpu only, and a very old one neither.
_TUNINGS = (("-march=native",), ("-mcpu=native",), ())
_LINK = ("-pthread",)
_TIMEOUT = 120.0

Signature = tuple[type | None, Sequence[type]]


class NativeUnavailableError(GlassformerError):
    """A native library cannot be had here; the message says why and what is slower."""


class Library:
    """One library: its sources, its functions, and what a user is told where it cannot be had.

    Args:
        source: the file to compile; everything beside it and in ``include/`` counts into its identity.
        signatures: each function's result and arguments, as ctypes has them.
        subject: what is missing without it ("The fast engine").
        instead: what happens then ("text is generated through torch in float32 instead, several times slower").
    """

    def __init__(self, source: Path, signatures: Mapping[str, Signature], *, subject: str, instead: str) -> None:
        self.source = source
        self.signatures = signatures
        self.subject, self.instead = subject, instead
        self._lock = threading.Lock()
        self._loaded: dict[tuple[str, ...], ctypes.CDLL] = {}
        self._failed: dict[tuple[str, ...], NativeUnavailableError] = {}

    def get(self, *extra: str) -> ctypes.CDLL:
        """The loaded library, compiled first where the cache has none (a few seconds, once).

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
                    self._loaded[extra] = self._load(self._compiled(extra))
                except NativeUnavailableError as error:
                    self._failed[extra] = error
                    raise
            return self._loaded[extra]

    def compiled(self) -> bool:
        """Whether it is loaded, in the cache, or known not to come: asking for it takes no time."""
        if () in self._loaded or () in self._failed:
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
        return cache_directory() / "native" / f"{self.source.stem}-{self._key(compiler, extra)}.so"

    def _missing(self) -> str:
        named = os.environ.get("CXX")
        there = f"CXX names {named!r}, which is not there" if named else f"no C++ compiler ({_listed()}) was found"
        return (
            f"{self.subject} is not available because {there}; {self.instead}."
            " Install g++ or clang++ (Debian: apt install g++) to get it."
        )

    def _compiled(self, extra: tuple[str, ...]) -> Path:
        compiler = find_compiler()
        if compiler is None:
            raise NativeUnavailableError(self._missing())
        place: Path | None = self.place(compiler, extra)
        assert place is not None
        try:
            place.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
            if place.exists():
                return place
        except OSError:
            place = None  # a cache that cannot be written: compile for this process alone
        return self._compile(compiler, extra, place)

    def _compile(self, compiler: list[str], extra: tuple[str, ...], place: Path | None) -> Path:
        error = ""
        folder = Path(tempfile.mkdtemp(prefix="glassformer-")) if place is None else place.parent
        handle, name = tempfile.mkstemp(suffix=".so", prefix=".compiling-", dir=folder)
        os.close(handle)
        base = [*compiler, *_BASE, f"-I{CSRC}"]
        try:
            for tuning in _TUNINGS:
                command = [*base, *tuning, *extra, str(self.source), "-o", name, *_LINK]
                try:
                    done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=_TIMEOUT)
                except (OSError, subprocess.TimeoutExpired) as failure:
                    error = str(failure)
                    break
                if done.returncode == 0:
                    target = Path(name).with_name(f"{self.source.stem}.so") if place is None else place
                    os.replace(name, target)  # atomic: whoever else compiled it wrote the same
                    return target
                error = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[:200])
        finally:
            with contextlib.suppress(OSError):
                os.unlink(name)
        raise NativeUnavailableError(
            f"{self.subject} is not available because {compiler[0]} could not compile it ({error}); {self.instead}."
        )

    def _load(self, path: Path) -> ctypes.CDLL:
        try:
            lib = ctypes.CDLL(str(path))
            for name, (result, arguments) in self.signatures.items():
                function = getattr(lib, name)
                function.restype, function.argtypes = result, list(arguments)
        except (OSError, AttributeError) as error:
            with contextlib.suppress(OSError):
                path.unlink()  # damaged: the next start compiles it again
            raise NativeUnavailableError(
                f"{self.subject} is not available because its compiled library {path} cannot be loaded ({error});"
                f" {self.instead}."
            ) from None
        return lib

    def _key(self, compiler: list[str], extra: tuple[str, ...]) -> str:
        digest = hashlib.sha256()
        for folder in {self.source.parent, CSRC}:
            for path in sorted(folder.iterdir()):
                if path.suffix in (".cpp", ".h"):
                    digest.update(path.read_bytes())
        try:
            version = subprocess.run([*compiler, "--version"], capture_output=True, timeout=_TIMEOUT).stdout
        except (OSError, subprocess.TimeoutExpired):
            version = b""
        digest.update(version)
        digest.update(repr((compiler, _BASE, _TUNINGS, extra, _LINK, processor())).encode())
        return digest.hexdigest()[:24]


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


def processor() -> str:
    """What -march=native depends on: the processor's model and the instructions it says it has."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        wanted = ("model name", "flags", "Features", "CPU part")
        lines = {line.strip() for line in file if line.startswith(wanted)}
        return platform.machine() + "".join(sorted(lines))
    return platform.machine() + platform.processor() + platform.platform()


def _listed() -> str:
    return ", ".join(COMPILERS)
