"""Named views of models as plain data: what the page, the notebook and the report all draw.

A `Studio` holds models and recent traces; `studio.view("attention", {...})` answers with JSON-able
data. It knows no HTTP, no HTML and no pixels.
"""

from glassformer.views.session import Cancelled, Studio

__all__ = ["Cancelled", "Studio"]
