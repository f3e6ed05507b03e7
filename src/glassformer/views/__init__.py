"""Named views of models as plain data: what the page, the notebook, the report and the HTTP API show.

A `Session` holds models and recent traces; `session.view("attention", {...})` answers with JSON-able data, and
`VIEWS` lists every view with its parameters. It knows no HTTP and no pixels.
"""

# Importing a file declares its views.
from glassformer.views import (  # noqa: F401
    attention,
    compare,
    corpus,
    depth,
    directions,
    edges,
    experts,
    facts,
    finding,
    graph,
    learning,
    meaning,
    models,
    next,
    prediction,
    python_lines,
    stage,
    vectors,
    why,
)
from glassformer.views.registry import VIEWS, View
from glassformer.views.session import Cancelled, Session

__all__ = ["VIEWS", "Cancelled", "Session", "View"]
