"""Stored states as JSON that carry a checksum of themselves, so that one that was damaged or altered is not believed.

This module knows no state's meaning; who saves one names its format.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from glassformer.errors import GlassformerError
from glassformer.system import files


def sealed(content: Mapping[str, Any]) -> dict[str, Any]:
    """The content with its checksum, `sha256`."""
    return {**content, "sha256": checksum(content)}


def checksum(content: Mapping[str, Any]) -> str:
    """The SHA-256 of a JSON object, whatever the order of its keys; its own `sha256` does not count."""
    plain = json.loads(json.dumps({key: value for key, value in content.items() if key != "sha256"}))
    return files.sha256_of(json.dumps(plain, sort_keys=True, separators=(",", ":")))


def write(
    path: str | Path, content: Mapping[str, Any], *, indent: int | None = 2, raises: type[GlassformerError]
) -> None:
    """Write a state whole or not at all, with its checksum. Raises `raises`."""
    files.write_json(path, sealed(content), indent=indent, raises=raises)


def read(path: str | Path, form: str, what: str, *, raises: type[GlassformerError]) -> dict[str, Any]:
    """A state that `write` wrote; one without a checksum is taken as it is.

    Args:
        form: what its `format` must be.
        what: it is, for messages.

    Raises:
        raises: it is none, of another format, or not as it was saved.
    """
    try:
        told = json.loads(Path(path).read_text("utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise raises(f"{path} is no readable {what} ({files.reason(error)}).") from None
    if not isinstance(told, dict) or told.get("format") != form:
        raise raises(f"{path} is not of the format {form}.")
    if "sha256" in told and told["sha256"] != checksum(told):
        raise raises(
            f"{path} does not match the checksum it was saved with. If you changed it yourself, take its sha256 out."
        )
    return told
