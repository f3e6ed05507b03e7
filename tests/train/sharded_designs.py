"""What the contract test runs in two processes: drawn designs, each sharded over both.

sharded_designs.py RANK STORE EXAMPLES      both draw the same designs, compare the same sums, and fail together
"""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

from glassformer.model import Config, Transformer
from glassformer.train.processes import Processes
from glassformer.train.recipe import Recipe
from glassformer.train.sharded_stepper import ShardedStepper
from glassformer.train.torch_stepper import TorchStepper
from tests.interp.helpers import randomised
from tests.strategies import stacks
from tests.train.test_contract import batch_of, same, truth


def check(config: Config, seed: int, ranks: Processes) -> None:
    """The summed loss and every gradient, of two rows in each process, are the whole model's of all four, and a step
    leads to the same weights."""
    recipe = Recipe().with_settings({"balance": 0.0, "eps": 1e-2})
    x, y = batch_of(config, seed, 4, 12)
    loss, expected = truth(randomised(Transformer(config), seed).double(), x, y)
    sharded = ShardedStepper(randomised(Transformer(config), seed), recipe, torch.float64, ranks)
    sharded.zero()
    mine = slice(2 * ranks.rank, 2 * ranks.rank + 2)
    found = ranks.sum(float(sharded.accumulate(x[mine], y[mine], 1.0)))
    assert abs(found - loss) <= 1e-5 * abs(loss), (found, loss)
    same(sharded.whole_grads(), expected, 2e-5)
    whole = TorchStepper(randomised(Transformer(config), seed), recipe, torch.float64)
    whole.zero()
    whole.accumulate(x, y, 1.0)
    assert abs(sharded.finish() - whole.finish()) <= 1e-4 * whole.finish()
    for stepper in (sharded, whole):
        stepper.step(1.0, 0.9)
    for name, weight in whole.whole().items():
        assert (sharded.named[name].full_tensor() - weight).abs().max() <= 1e-4, name


def main() -> None:
    rank, store, examples = int(sys.argv[1]), sys.argv[2], int(sys.argv[3])
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    ranks = Processes(rank, 2)

    @settings(
        max_examples=examples,
        derandomize=True,  # the same in both
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(stacks(max_layers=2), st.integers(0, 99))
    def every(config: Config, seed: int) -> None:
        check(config, seed, ranks)

    every()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
