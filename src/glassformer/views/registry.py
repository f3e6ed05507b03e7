"""The views by name: which request each takes, and what it answers.

Every number here is computed by the model that the request names. The names and fields are public:
the page, the notebook and the report read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glassformer.views import compare, inside, learning, next, options

View = Callable[..., dict[str, Any]]

VIEWS: dict[str, tuple[Any, View]] = {
    "tokens": (options.Ask, next.tokens),
    "next": (options.NextAsk, next.next_token),
    "vocab": (options.VocabAsk, next.vocab),
    "words": (options.WordsAsk, next.words),
    "effects": (options.EffectsAsk, next.effects),
    "compare": (options.CompareAsk, compare.compare),
    "patch": (options.PatchAsk, compare.patch),
    "thumbnails": (options.ThumbnailsAsk, inside.thumbnails),
    "attention": (options.AttentionAsk, inside.attention),
    "cell": (options.CellAsk, inside.cell),
    "lens": (options.LensAsk, inside.lens),
    "journey": (options.JourneyAsk, inside.journey),
    "why": (options.WhyAsk, inside.why),
    "heads": (options.HeadsAsk, inside.heads),
    "neurons": (options.NeuronsAsk, inside.neurons),
    "meaning": (options.MeaningAsk, inside.meaning),
    "size": (options.SizeAsk, learning.size),
    "runs": (options.RunsAsk, learning.runs),
    "run": (options.RunAsk, learning.run),
    "run_step": (options.RunStepAsk, learning.run_step),
    "models": (options.ModelsAsk, learning.models),
}
