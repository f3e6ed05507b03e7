"""This machine and how it is set up: threads, precision, memory, builds.

Everything that can change the last bit of a result is named here, so that a checkpoint can record it and a resumed
run can say what differs. What the system tells in files (`/proc`, `/sys/fs/cgroup`) is read here and nowhere else. It
knows nothing of models, and imports torch only where it is asked about it.
"""

from __future__ import annotations

import ctypes
import functools
import gc
import os
import platform
import sys
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from glassformer.errors import UsageError

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _M_MMAP_MAX = -1, -3, -4


def keep_freed_memory() -> bool:
    """Let the C library keep what large temporaries free, instead of asking the system for fresh pages each time.

    Fresh pages are zeroed and faulted in one by one, which costs more than many operations on them. True where it
    could be set (glibc).
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        libc = ctypes.CDLL(None)
        libc.gnu_get_libc_version  # noqa: B018  another C library has no such function
        # in this order: without mappings, everything comes from the heap, which is trimmed only above 4 GiB
        return bool(libc.mallopt(_M_MMAP_MAX, 0)) and bool(libc.mallopt(_M_TRIM_THRESHOLD, 2**31 - 1))
    except (OSError, AttributeError):
        return False


def give_back_freed_memory() -> None:
    """Return to the system what the C library keeps of freed memory, where it can (glibc); for once, not in a loop."""
    with suppress(OSError, AttributeError):
        ctypes.CDLL(None).malloc_trim(0)


@contextmanager
def quiet_collector() -> Iterator[None]:
    """Python's cycle collector off inside: it walks every object that a step makes and frees nothing."""
    enabled = gc.isenabled()
    gc.collect()
    gc.freeze()
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        if enabled:
            gc.enable()


def pick_device(wanted: str) -> torch.device:
    """The device asked for; "auto" is the first GPU there is, else the processor.

    Raises:
        UsageError: when there is no such device here.
    """
    import torch

    if wanted == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(wanted)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise UsageError(f"device {wanted!r} cannot be used here: {str(error).splitlines()[0]}") from None
    return device


def pick_precision(wanted: str, device: torch.device) -> torch.dtype:
    """What the model computes with; "auto" is bfloat16 where the device multiplies it natively."""
    import torch

    if wanted == "fp32" or (wanted == "auto" and not fast_bf16(device)):
        return torch.float32
    return torch.bfloat16


def fast_bf16(device: torch.device) -> bool:
    """Whether bfloat16 products are native here."""
    import torch

    if device.type == "cuda":
        return torch.cuda.is_bf16_supported()
    probes = ("_is_avx512_bf16_supported", "_is_amx_tile_supported")
    return device.type == "cpu" and any(getattr(torch.cpu, probe, lambda: False)() for probe in probes)


def free_memory(device: torch.device) -> int:
    """Bytes that can still be used on a device, within the limits of a container."""
    if device.type == "cuda":
        import torch

        return int(torch.cuda.mem_get_info(device)[0])
    free = available_memory()
    # where the system does not say: half of what is built in
    return free if free is not None else os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2


def available_memory() -> int | None:
    """Bytes of main memory that can still be had without swapping, within the limits of a container; None where the
    system does not say."""
    free = _system_memory()
    if free is None:
        return None
    with suppress(OSError, ValueError):
        root = Path("/sys/fs/cgroup")
        limit = (root / "memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int((root / "memory.current").read_text()))
    return max(free, 0)


def _system_memory() -> int | None:
    with suppress(OSError, ValueError, IndexError):
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    with suppress(ImportError):
        import psutil  # type: ignore[import-untyped]

        return int(psutil.virtual_memory().available)
    with suppress(AttributeError, ValueError, OSError):
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return None


@functools.cache
def processor_facts() -> dict[str, str]:
    """What the system says of the first processor: `model name`, `flags`, `vendor_id`, …; empty where it says nothing.

    On ARM the keys are `Features`, `CPU part`, ….
    """
    facts: dict[str, str] = {}
    with suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            name, colon, value = line.partition(":")
            if not colon and facts:
                break  # an empty line ends the first processor
            facts[name.strip()] = value.strip()
    return facts


def processor_flags() -> frozenset[str]:
    """The instruction sets the processor has, by the system's names: `avx2`, `amx_bf16`, `asimd`, …."""
    facts = processor_facts()
    return frozenset((facts.get("flags") or facts.get("Features") or "").split())


def processor_name() -> str:
    """The processor's model, for people."""
    return processor_facts().get("model name") or platform.processor() or "unknown"


def processor_identity() -> str:
    """What code compiled for this very processor depends on: its model and the instructions it says it has."""
    facts = processor_facts()
    known = [f"{name}: {facts[name]}" for name in ("CPU part", "Features", "flags", "model name") if name in facts]
    return platform.machine() + ("".join(known) or platform.processor() + platform.platform())


def cores() -> int:
    """Processor cores that this process may use (a container may allow fewer than the machine has)."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def be_deterministic() -> None:
    """Only kernels that give the same bits every time."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    torch.use_deterministic_algorithms(True)


def builds(device: torch.device) -> dict[str, Any]:
    """What must be the same for the same bits: library builds, processor, device, threads."""
    import torch

    facts: dict[str, Any] = {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "machine": platform.machine(),
        "processor": processor_name(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "threads": torch.get_num_threads(),
        "device": str(device.type),
    }
    if device.type == "cuda":
        facts["device_name"] = torch.cuda.get_device_name(device)
        facts["cuda"] = torch.version.cuda
    return facts


@contextmanager
def one_thread() -> Iterator[None]:
    """One processor thread for small work, which others would only slow down by waiting for each other."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def set_threads(wanted: int) -> int:
    """Use this many processor threads, or what the environment and the cores say."""
    import torch

    if wanted:
        torch.set_num_threads(wanted)
    elif "OMP_NUM_THREADS" not in os.environ:
        # in a container torch may count cores that this process cannot use
        torch.set_num_threads(min(torch.get_num_threads(), cores()))
    return torch.get_num_threads()
