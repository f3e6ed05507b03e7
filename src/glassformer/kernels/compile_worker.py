"""The process that compiles one library: alone under a lock, whole or not at all.

It reads its job as JSON from standard input and says on standard output what a compiler that failed has said. Whoever
began it may be gone by then. Several of them for one library take turns, and all but the first find it done.
"""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import time
from pathlib import Path

from glassformer.errors import GlassformerError
from glassformer.system.files import publish, remove, sweep, temporary
from glassformer.system.locks import locked

_STALE = 3600.0  # seconds after which a temporary file as earlier versions named them is nobody's


def build(target: Path, tries: list[list[str]], link: list[str]) -> str | None:
    """Compile a library by the first command that can; None when it is there, else what the last command said.

    Args:
        target: the finished file.
        tries: command lines that end where the output's name follows.
        link: what follows that name.

    Raises:
        FileError: the folder cannot be written.
        OSError: the same, later.
    """
    with locked(target):
        if target.exists():
            return None
        sweep(target.parent)
        for stray in target.parent.glob(".compiling-*.so"):
            with contextlib.suppress(OSError):
                if time.time() - stray.stat().st_mtime > _STALE:
                    stray.unlink()
        folder = temporary(target)
        folder.mkdir()
        try:  # the compiler's own temporary files go where they are swept
            draft, env, said = folder / "lib.so", os.environ | {"TMPDIR": str(folder)}, ""
            for command in tries:
                try:
                    done = subprocess.run(
                        [*command, str(draft), *link], capture_output=True, text=True, errors="replace", env=env
                    )
                except OSError as error:
                    return str(error)
                if done.returncode == 0 and draft.exists():
                    publish(draft, target)
                    return None
                said = done.stderr.strip() or f"exit status {done.returncode}"
            return said
        finally:
            remove(folder)


def main() -> int:
    """Do the job on standard input; the exit status is 0 when the library is there."""
    job = json.load(sys.stdin)
    try:
        said = build(Path(job["target"]), job["tries"], job["link"])
    except (GlassformerError, OSError) as error:
        said = str(error)
    if said is not None:
        with contextlib.suppress(OSError):  # nobody may be listening any more
            print(said, flush=True)
    return int(said is not None)


if __name__ == "__main__":
    sys.exit(main())
