"""Fixtures for the whole suite."""

from __future__ import annotations

import os

# One thread each unless asked otherwise: tests share the processor, and threads that wait for each other lose it.
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
from hypothesis import HealthCheck, settings

from tests import shapes

# The shapes in signatures are checked here and cost nothing elsewhere.
shapes.install()

# Machines differ in speed; what a test examines is not how fast it is. In CI the drawn examples are the same in every
# run, so that a red run is about the change; everywhere else each run draws its own and so looks further.
settings.register_profile(
    "glassformer",
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
    derandomize=bool(os.environ.get("CI")),
)
settings.load_profile("glassformer")

os.environ.setdefault("HF_HUB_DISABLE_TELEMETRY", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session", autouse=True)
def _threads() -> None:
    """As many threads as OMP_NUM_THREADS says, and two at most: sums come out the same on every machine."""
    import torch

    torch.set_num_threads(min(2, torch.get_num_threads()))


@pytest.fixture(scope="session")
def smollm2():
    """The catalogue's SmolLM2-135M in float32, loaded once; the first run fetches it."""
    import glassformer

    return glassformer.load("smollm2", device="cpu", dtype="float32")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A browser that did not answer in time is asked once more, and the run names the test; a wrong answer is not."""
    once_more = pytest.mark.flaky(reruns=1, only_rerun=["playwright.*TimeoutError", "^TimeoutError"])
    for item in items:
        if item.get_closest_marker("browser"):
            item.add_marker(once_more)
