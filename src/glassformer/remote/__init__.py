"""A model on a server of ours, with the verbs of `Model`: `gf.connect("http://127.0.0.1:8000")`.

`wire` sends requests, `edits` writes edits as a request holds them, `trace` is the trace of a text on a server, and
`model` the model. What they give are the same objects that a model in this process gives; they compute nothing.
"""

from glassformer.remote.model import RemoteModel, connect

__all__ = ["RemoteModel", "connect"]
