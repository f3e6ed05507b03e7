"""How long `import glassformer`, `glassformer --help` and `glassformer count gpt3` take in a fresh process."""

from __future__ import annotations

import statistics
import subprocess
import sys

from common import alternate, arguments, environment, report, seconds, spread, table, verdict

ASKED = 0.3  # seconds


def main() -> None:
    options = arguments(__doc__, rounds=15).parse_args()
    commands = {
        "python, nothing imported": ["-c", "pass"],
        "import glassformer": ["-c", "import glassformer"],
        "glassformer --help": ["-m", "glassformer", "--help"],
        "glassformer count gpt3": ["-m", "glassformer", "count", "gpt3"],
        "import torch": ["-c", "import torch"],
        "import transformers": ["-c", "import transformers, transformers.models.llama.modeling_llama"],
    }

    def runner(args: list[str]):
        def run() -> float:
            return seconds(
                lambda: subprocess.run(
                    [sys.executable, *args], check=True, stdout=subprocess.DEVNULL, env=environment(options.threads)
                )
            )

        return run

    times = alternate(options.rounds, **{name: runner(args) for name, args in commands.items()})
    rows = []
    for name, taken in times.items():
        ours = "glassformer" in name
        rows.append((name, spread(taken), verdict(statistics.median(taken), most=ASKED) if ours else ""))
    report(
        "imports",
        "Start-up without a model",
        table(("fresh process", "seconds, median (range)", "asked"), rows),
        options,
        "Wall time of a whole process, its own start included.",
    )


if __name__ == "__main__":
    main()
