"""Run every benchmark and say at the end which ran, which were skipped and why, and which failed.

python benchmarks/run.py [NAME …] [--save]
"""

from __future__ import annotations

import subprocess
import sys
import time

from common import HERE, SKIPPED

NOT_BENCHMARKS = {"census_models", "census_settings", "common", "run", "schemas", "server_common"}


def main() -> int:
    names = [arg for arg in sys.argv[1:] if not arg.startswith("-")]
    passed_on = [arg for arg in sys.argv[1:] if arg.startswith("-")]
    known = sorted(
        path.stem for path in HERE.glob("*.py") if path.stem not in NOT_BENCHMARKS and not path.stem.startswith("peer_")
    )
    for name in names:
        if name not in known:
            print(f"There is no benchmark {name}; known are {', '.join(known)}.", file=sys.stderr)
            return 2
    outcomes = []
    for name in names or known:
        print(f"\n=== {name} ===", flush=True)
        start = time.monotonic()
        done = subprocess.run([sys.executable, str(HERE / f"{name}.py"), *passed_on], stdout=subprocess.PIPE, text=True)
        print(done.stdout, end="", flush=True)
        lines = done.stdout.strip().splitlines()
        took = f"{time.monotonic() - start:.0f} s"
        if done.returncode == SKIPPED:
            outcomes.append((name, lines[-1] if lines else "skipped"))
        elif done.returncode:
            outcomes.append((name, f"FAILED with code {done.returncode} after {took}"))
        else:
            missed = done.stdout.count("NOT met")
            outcomes.append((name, f"ran in {took}" + (f", {missed} figures not met" if missed else "")))
    print("\n=== all ===")
    width = max(len(name) for name, _ in outcomes)
    for name, outcome in outcomes:
        print(f"{name:<{width}}  {outcome}")
    return any("FAILED" in outcome for _, outcome in outcomes)


if __name__ == "__main__":
    sys.exit(main())
