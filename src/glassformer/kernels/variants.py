"""The processors that libraries are built for, and how each is compiled.

A wheel carries every library once per variant of its architecture; which one is loaded follows from what the
processor says it can do. It imports nothing of ours and only the standard library: the build of the package runs it
before anything is installed.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

CSRC = Path(__file__).with_name("csrc")
BUILT = Path(__file__).with_name("built")
"""Where a wheel keeps its libraries; an editable checkout has none."""
MANIFEST = "manifest.json"
COMPILERS = ("c++", "g++", "clang++")
BASE = ("-std=c++17", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-math-errno", "-Wno-psabi", "-w")
# Hot loops are written with vector types: for training -O3 gains 4 % and takes a quarter longer to compile, and short
# runs wait for that. For inference it gains 4 % of decode, and 13 % with 8 sequences.
OPTIMISE = {"infer": "-O3", "ops": "-O3", "train": "-O2"}
LINK = ("-pthread",)
# The first that compiles is taken: some compilers for ARM know -mcpu only, and a very old one neither.
NATIVE = (("-march=native",), ("-mcpu=native",), ())
DRIVERS: dict[str, tuple[str, ...]] = {"infer": (), "ops": (), "train": (), "train-bf16": ("-DGLASSFORMER_BF16",)}
"""The libraries of a wheel: name, or name-precision, and their flags."""


@dataclass(frozen=True)
class Variant:
    """One kind of processor.

    Attributes:
        name: part of the file's name.
        flags: the compiler's flags.
        needs: what the processor must say it has, by Linux's names for it.
    """

    name: str
    flags: tuple[str, ...]
    needs: frozenset[str]


_V3 = frozenset(["avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe"])
_V4 = _V3 | frozenset(["avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl", "avx512_vnni"])
_BF16 = _V4 | {"avx512_bf16"}
_V4_FLAGS = ("-march=x86-64-v4", "-mavx512vnni", "-mprefer-vector-width=512")
VARIANTS: dict[str, tuple[Variant, ...]] = {
    "x86_64": (  # the best first
        Variant(
            "x86-64-v4-amx",
            (*_V4_FLAGS, "-mavx512bf16", "-mamx-tile", "-mamx-int8", "-mamx-bf16"),
            _BF16 | {"amx_tile", "amx_int8", "amx_bf16"},
        ),
        Variant("x86-64-v4-bf16", (*_V4_FLAGS, "-mavx512bf16"), _BF16),
        Variant("x86-64-v4", _V4_FLAGS, _V4),
        Variant("x86-64-v3", ("-march=x86-64-v3",), _V3),
    ),
    "aarch64": (Variant("armv8", ("-march=armv8-a",), frozenset()),),
}


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


def architecture() -> str:
    """This machine's, by one name each: x86_64, aarch64, …"""
    name = platform.machine().lower()
    return {"amd64": "x86_64", "arm64": "aarch64"}.get(name, name)


def features() -> frozenset[str]:
    """The instruction sets that the processor says it has, by Linux's names; empty where nobody says."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
            line = next((line for line in file if line.startswith(("flags", "Features"))), "")
    except OSError:
        return frozenset()
    return frozenset(line.partition(":")[2].split())


def sources_digest() -> str:
    """A hash of every C++ source: what a built library must have been built from."""
    digest = hashlib.sha256()
    for path in sorted(CSRC.iterdir()):
        if path.suffix in (".cpp", ".h"):
            digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()


def platform_name() -> str:
    """System and architecture that a built library is for."""
    return f"{sys.platform}-{architecture()}"


def base_flags(driver: str) -> tuple[str, ...]:
    """The flags of one driver for any processor."""
    return (*BASE, OPTIMISE[driver])


def file_name(driver: str, variant: Variant) -> str:
    """A built library's."""
    return f"{driver}.{variant.name}.so"


def built(driver: str, folder: Path | None = None) -> Path | None:
    """The wheel's library for this processor; None where there is none, or it is of other sources."""
    folder = BUILT if folder is None else folder
    try:
        manifest = json.loads((folder / MANIFEST).read_text("utf-8"))
    except (OSError, ValueError):
        return None
    if manifest.get("sources") != sources_digest() or manifest.get("platform") != platform_name():
        return None
    there = features()
    for variant in VARIANTS.get(architecture(), ()):
        path = folder / file_name(driver, variant)
        if variant.needs <= there and path.exists():
            return path
    return None


def commands(driver: str, variant: Variant, compiler: list[str], target: Path) -> list[str]:
    """The compiler's command line for one library of a wheel."""
    source = CSRC / f"{driver.partition('-')[0]}.cpp"
    flags = [*base_flags(driver.partition("-")[0]), f"-I{CSRC}", *variant.flags, *DRIVERS[driver]]
    return [*compiler, *flags, str(source), "-o", str(target), *LINK]


def build(folder: Path, only: frozenset[str] | None = None) -> list[str]:
    """Compile every library of a wheel for this architecture into `folder`, with the manifest that `built` reads.

    Args:
        only: names of variants, for a build that is to be quick; all of them by default.

    Returns:
        What could not be built, in sentences; the folder is empty when that is everything.
    """
    compiler, asked = find_compiler(), VARIANTS.get(architecture(), ())
    wanted = [variant for variant in asked if only is None or variant.name in only]
    if compiler is None:
        return [f"There is no C++ compiler ({', '.join(COMPILERS)}); the wheel is built without compiled libraries."]
    if not wanted:
        return [f"Nothing is compiled ahead for {platform_name()}; libraries are compiled at first use."]
    folder.mkdir(parents=True, exist_ok=True)
    jobs = [(driver, variant) for variant in wanted for driver in DRIVERS]

    def compile_one(job: tuple[str, Variant]) -> str | None:
        driver, variant = job
        target = folder / file_name(driver, variant)
        done = subprocess.run(commands(driver, variant, compiler, target), capture_output=True, text=True)
        if done.returncode == 0:
            return None
        said = next((line for line in done.stderr.splitlines() if "error" in line), done.stderr.strip()[-200:])
        return f"{driver} for {variant.name} could not be compiled and is left out: {said}"

    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        notes = [note for note in pool.map(compile_one, jobs) if note]
    if len(notes) == len(jobs):
        shutil.rmtree(folder)
        return notes
    manifest = {"sources": sources_digest(), "platform": platform_name()}
    (folder / MANIFEST).write_text(json.dumps(manifest) + "\n", "utf-8")
    return notes
