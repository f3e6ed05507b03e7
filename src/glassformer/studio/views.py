"""The views by name: which request each takes, and what it answers.

Every number here is computed by the model that the request names. The names and fields are public:
the page, the notebook and the report read them.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from glassformer.studio import comparing, learning, looking, predicting, requests

View = Callable[..., dict[str, Any]]

VIEWS: dict[str, tuple[Any, View]] = {
    "tokens": (requests.Ask, predicting.tokens),
    "next": (requests.NextAsk, predicting.next_token),
    "vocab": (requests.VocabAsk, predicting.vocab),
    "words": (requests.WordsAsk, predicting.words),
    "effects": (requests.EffectsAsk, predicting.effects),
    "compare": (requests.CompareAsk, comparing.compare),
    "patch": (requests.PatchAsk, comparing.patch),
    "thumbnails": (requests.ThumbnailsAsk, looking.thumbnails),
    "attention": (requests.AttentionAsk, looking.attention),
    "cell": (requests.CellAsk, looking.cell),
    "lens": (requests.LensAsk, looking.lens),
    "journey": (requests.JourneyAsk, looking.journey),
    "why": (requests.WhyAsk, looking.why),
    "heads": (requests.HeadsAsk, looking.heads),
    "neurons": (requests.NeuronsAsk, looking.neurons),
    "meaning": (requests.MeaningAsk, looking.meaning),
    "size": (requests.SizeAsk, learning.size),
    "runs": (requests.RunsAsk, learning.runs),
    "run": (requests.RunAsk, learning.run),
    "run_step": (requests.RunStepAsk, learning.run_step),
    "models": (requests.ModelsAsk, learning.models),
}
