"""The processes that train together: who this one is, and the few things they tell each other.

Under `torchrun` the process group is PyTorch's own (gloo on processors, nccl on NVIDIA GPUs); alone, every call
returns at once. It knows no model.
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.distributed as dist
from torch import Tensor

from glassformer.errors import TrainError

WAIT_MINUTES = 10
"""How long a process waits for the others before it gives up; `GLASSFORMER_WAIT_MINUTES` overrides it."""

_SILENCE = re.compile(r"gloo|nccl|connection|timed out|timeout|peer|socket|broken pipe", re.IGNORECASE)
"""What backends say when another process does not answer."""


@dataclass(frozen=True)
class Processes:
    """This process among `world`.

    Attributes:
        rank: its number, from 0.
        world: how many there are.
        device: where its small messages are summed.
    """

    rank: int = 0
    world: int = 1
    device: torch.device | str = "cpu"

    def sum(self, value: float) -> float:
        """The sum of every process's value."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        self.reduce(box)
        return float(box)

    def max(self, value: float) -> float:
        """The largest of every process's values."""
        if self.world == 1:
            return value
        box = torch.tensor([value], dtype=torch.float64, device=self.device)
        dist.all_reduce(box, op=dist.ReduceOp.MAX)
        return float(box)

    def any(self, flag: bool) -> bool:
        """Whether any process says yes."""
        return flag if self.world == 1 else self.sum(float(flag)) > 0

    def reduce(self, tensor: Tensor) -> None:
        """Sum a tensor over all processes, in place.

        Raises:
            TrainError: when another process is gone.
        """
        with self.listening():
            dist.all_reduce(tensor)

    @contextmanager
    def listening(self) -> Iterator[None]:
        """Collectives inside that fail because another process is gone say so.

        Raises:
            TrainError: in their place.
        """
        try:
            yield
        except RuntimeError as error:
            if self.world > 1 and _SILENCE.search(str(error)):
                raise TrainError(lost(error)) from error
            raise

    def wait_for(self, path: Path) -> None:
        """Until the first process has written a file; the launcher ends this one if that one fails."""
        while not path.exists():
            time.sleep(0.2)

    def wait(self) -> None:
        """Until every process is here."""
        if self.world > 1:
            with self.listening():
                dist.barrier()


def lost(error: BaseException) -> str:
    """What to say when a collective fails."""
    # the backend begins with its source's line and ends with advice
    reason = re.sub(r"^\[/[^\]]*\] ", "", str(error).splitlines()[0]).split(". ")[0]
    return (
        f"Another process of this run is gone or does not answer ({reason}); start all of them "
        "again with --resume to go on from the last complete checkpoint."
    )


def join(device: str) -> tuple[Processes, torch.device]:
    """Join the processes that `torchrun` started; alone when it did not.

    Returns:
        Who this process is, and the device it computes on.
    """
    from glassformer.system.hardware import pick_device

    world = int(os.environ.get("WORLD_SIZE", "1"))
    if world == 1 or "RANK" not in os.environ:
        return Processes(), pick_device(device)
    import datetime

    local = int(os.environ.get("LOCAL_RANK", "0"))
    picked = pick_device(device)
    if picked.type == "cuda":
        picked = torch.device("cuda", local % torch.cuda.device_count())
        torch.cuda.set_device(picked)
    if not dist.is_initialized():
        minutes = float(os.environ.get("GLASSFORMER_WAIT_MINUTES", WAIT_MINUTES))
        dist.init_process_group(
            "cpu:gloo,cuda:nccl" if picked.type == "cuda" else "gloo", timeout=datetime.timedelta(minutes=minutes)
        )
    return Processes(dist.get_rank(), dist.get_world_size(), picked), picked


def leave() -> None:
    """Take leave of the process group, if there is one."""
    if dist.is_available() and dist.is_initialized():
        with suppress(RuntimeError):
            dist.destroy_process_group()
