"""What the tests of several processes run: a run, its first gradients kept, perhaps one process killed.

worker.py RECIPE.json OUT GRADIENTS [--resume] [--kill RANK STEP]      under torchrun
worker.py --launch      runs a job for each line of JSON, in processes forked off this one, which imported everything
"""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import tempfile
import time
import traceback
from pathlib import Path
from typing import IO, Any

import torch
from safetensors.torch import save_file

from glassformer.cli.app import main
from glassformer.cli.probes import standard
from glassformer.train import run as runs
from glassformer.train.loop import Run
from glassformer.train.recipe import Recipe


def go() -> None:
    recipe = Recipe.from_dict(json.loads(Path(sys.argv[1]).read_text()))
    out, kept = sys.argv[2], sys.argv[3]
    plain = Run._one_step

    def one_step(self: Run) -> tuple[float, float, int]:
        if self.step == 0 and kept != "-":
            step = self.stepper.step

            def first(rate: float, momentum: float) -> None:
                stepper = self.stepper
                grads = stepper.whole_grads() if stepper.sharded else stepper.weights.named_grads()
                if self.processes.rank == 0:
                    save_file({name: grad.clone().contiguous() for name, grad in grads.items()}, kept)
                step(rate, momentum)

            self.stepper.step = first
            result = plain(self)
            self.stepper.step = step
            return result
        if "--kill" in sys.argv:
            rank, step_number = map(int, sys.argv[sys.argv.index("--kill") + 1 :][:2])
            if self.processes.rank == rank and self.step == step_number:
                os.kill(os.getpid(), signal.SIGKILL)
        return plain(self)

    Run._one_step = one_step  # type: ignore[method-assign]
    torch.set_num_threads(1)
    resume = "--resume" in sys.argv
    import glassformer.cli.train as verb

    def command() -> None:
        result = runs.train(None if resume else recipe, None, out, resume, (standard(),), True, {})
        if int(os.environ["RANK"]) == 0:
            verb._say(result)

    from glassformer.cli import app

    app.load_verb = lambda name: __import__("typer").main.get_command(_one(command))  # type: ignore[assignment]
    main(["train"])


def _one(function: object) -> object:
    import typer

    single = typer.Typer(add_completion=False)
    single.command()(function)  # type: ignore[type-var]
    return single


def launch() -> None:
    """For each line on standard input, a job's world, arguments and environment: its exit status and what it said.

    Its processes are told who they are as torchrun tells them, and start in a moment, as nothing is imported anew.
    """
    # What a run imports when it needs it; none of it starts a thread.
    import glassformer.cli.train
    import glassformer.kernels.ops
    import glassformer.train.sharded_stepper
    import glassformer.train.torch_stepper  # noqa: F401

    for line in sys.stdin:
        print(json.dumps(together(**json.loads(line))), flush=True)


def together(world: int, arguments: list[str], environment: dict[str, str]) -> dict[str, Any]:
    """One job in so many processes; when one fails, the others have twenty seconds to notice it by themselves."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    told = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": str(world)}
    with tempfile.TemporaryFile() as said:
        left, failed, end = set[int](), 0, float("inf")
        for rank in range(world):
            child = os.fork()
            if child == 0:
                be(arguments, environment | told | {"RANK": str(rank), "LOCAL_RANK": str(rank)}, said)
            left.add(child)
        while left:
            child, status = os.waitpid(-1, os.WNOHANG)
            left.discard(child)
            if child and status:
                failed, end = failed or status, min(end, time.monotonic() + 20)
            if time.monotonic() > end:
                for other in left:
                    os.kill(other, signal.SIGKILL)
            if not child:
                time.sleep(0.02)
        said.seek(0)
        return {"status": failed, "said": said.read().decode(errors="replace")}


def be(arguments: list[str], environment: dict[str, str], said: IO[bytes]) -> None:
    """Do one process's part of a job, and end."""
    status = 1
    try:
        os.dup2(said.fileno(), 1), os.dup2(said.fileno(), 2)
        os.environ.clear()
        os.environ.update(environment)
        sys.argv = ["worker.py", *arguments]
        go()
        status = 0
    except SystemExit as left:
        status = left.code if isinstance(left.code, int) else int(left.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush(), sys.stderr.flush()
        os._exit(status)


if __name__ == "__main__":
    launch() if sys.argv[1:] == ["--launch"] else go()
