"""What the tests of the views share."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np

TEXT = "The American shrew mole is a small"


def numbers(packed: dict[str, Any]) -> np.ndarray:
    """The array that a view packed."""
    return np.frombuffer(base64.b64decode(packed["base64"]), packed["dtype"]).reshape(packed["shape"])
