"""`glassformer eval`: loss, perplexity and bits per byte of a model on a text."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from glassformer.cli.common import JsonOption, print_json

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from glassformer.data.corpus import Corpus
    from glassformer.data.shards import Shards
    from glassformer.tokenizer.tokenizer import Tokenizer

LONGEST = 1024  # tokens of context when none is asked for: long ones cost more than they change the figure


def command(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", help="A path, a catalogue name, or a model on the hub.")
    ] = None,
    data: Annotated[
        list[str] | None, typer.Option("--data", "-d", help="Files, folders, globs, hf:NAME, or - for standard input.")
    ] = None,
    context: Annotated[
        int | None, typer.Option("--context", "-c", metavar="N", help="Tokens read at once; at most 1,024 by default.")
    ] = None,
    stride: Annotated[
        int | None, typer.Option("--stride", metavar="N", help="New tokens per window; half the context by default.")
    ] = None,
    tail: Annotated[
        float | None,
        typer.Option("--tail", metavar="FRACTION", help="Only the last fraction of the data, as training holds out."),
    ] = None,
    batch: Annotated[
        int | None,
        typer.Option("--batch", metavar="N", help="Windows per forward; chosen by the model's size by default."),
    ] = None,
    text_field: Annotated[
        str | None, typer.Option("--text-field", metavar="NAME", help="The field or column that holds the text.")
    ] = None,
    dtype: Annotated[
        str, typer.Option("--dtype", help="float32, bfloat16, float16; auto is float32 on a CPU.")
    ] = "auto",
    as_json: JsonOption = False,
) -> None:
    """Measure loss, perplexity and bits per byte on a text.

    Windows of --context tokens move on by --stride; every token is predicted once, from at least context minus
    stride tokens before it. The first token has nothing before it and is not counted, nor are the
    begin- and end-of-text tokens between documents. Documents and conversations are read apart: none sees another,
    and of each the first token has nothing before it either. Loss is in nats per token of this model's tokenizer;
    bits per byte divides by the UTF-8 bytes of the same text, so models with other tokenizers can be compared.
    In conversations only the answers count.
    """
    from glassformer.errors import UsageError

    if not data:
        raise UsageError("glassformer eval needs a text to measure on; name it with --data FILE (- reads a pipe).")
    if batch is not None and batch < 1:
        raise UsageError(f"--batch must be at least 1; got {batch}.")
    if tail is not None and not 0 < tail < 1:
        raise UsageError(f"--tail is a fraction between 0 and 1; got {tail:g}.")
    result = evaluate(source, list(data), context, stride, tail, batch, dtype, text_field)
    if as_json:
        print_json(result)
    else:
        _show(result)


def evaluate(
    source: str | None,
    data: list[str],
    context: int | None = None,
    stride: int | None = None,
    tail: float | None = None,
    batch: int | None = None,
    dtype: str = "auto",
    text_field: str | None = None,
) -> dict[str, Any]:
    """What `--json` prints."""
    from glassformer.cli.common import note, open_model
    from glassformer.cli.passages import progress
    from glassformer.data.corpus import build_corpus
    from glassformer.data.sources import Findings, expand
    from glassformer.errors import DataError

    expand(data, Findings())  # a mistyped name is told before anything is opened or fetched
    from glassformer.predict.score import score

    model = open_model(source, dtype=dtype)
    corpus = build_corpus(data, model.tokenizer, fraction=tail or 0.0, text_field=text_field)
    for sentence in corpus.findings.sentences():
        note(sentence)
    shards = corpus.train if tail is None else corpus.held_out
    if context is None:
        context = min(model.config.context, LONGEST)
    tally = _Tally(corpus, shards, model.tokenizer)
    with progress() as bar:
        found = score(
            model.scorer(context),
            tally,
            context,
            stride,
            counted=tally.counted,
            documents=tally.documents,
            bos=model.tokenizer.bos_id if model.tokenizer.adds_bos else None,
            batch=batch,
            progress=bar,
        )
    if not found.tokens:
        raise DataError("Of this data no token counts: nothing comes after the first.")
    return {
        "model": model.name,
        "precision": model.precision,
        "loss": found.loss,
        "perplexity": found.perplexity,
        "bits_per_byte": found.bits_per_byte(tally.text_bytes),
        "nats": found.nats,
        "tokens": found.tokens,
        "bytes": tally.text_bytes,
        "context": found.context,
        "stride": found.stride,
        "documents": corpus.findings.documents,
        "data_hash": corpus.hash,
        "problems": corpus.findings.problems,
    }


class _Tally:
    """The tokens to score, which of them count, and the bytes of text that those stand for."""

    def __init__(self, corpus: Corpus, shards: Shards, tokenizer: Tokenizer) -> None:
        import numpy as np

        self.text_bytes = 0
        self._shards = shards
        self._masked = shards.masked
        edges = shards.documents
        special = {tokenizer.eos_id} - {None}
        before = len(tokenizer.encode("", True)) if tokenizer.adds_bos else 0
        inserted = [int(e) - 1 for e in edges[1:] if int(shards.slice(int(e) - 1, 1)[0]) in special]
        starts = edges[:-1] if shards.start == 0 else edges[1:-1]  # a tail begins inside a document
        inserted += [int(e) + k for e in starts for k in range(before)]
        put = set(inserted)
        ends = [int(e) - (not shards.masked and int(e) - 1 in put) for e in edges[1:]]
        self.documents = [(int(low), high) for low, high in zip(edges[:-1], ends, strict=True) if high > low]
        self._inserted = np.array(sorted(inserted), dtype=np.int64)
        self._lengths = np.array([len(tokenizer.token_bytes(i)) for i in range(tokenizer.vocab_size)])
        self._lengths[list(tokenizer.special_ids)] = 0  # they stand for no text

    def __len__(self) -> int:
        return len(self._shards)

    def slice(self, start: int, n: int) -> NDArray[np.integer]:
        return self._shards.slice(start, n)

    def counted(self, start: int, n: int) -> NDArray[np.bool_]:
        import numpy as np

        keep = self._shards.mask_slice(start, n).copy()
        if not self._masked:  # conversations are marked by their masks
            low, high = np.searchsorted(self._inserted, [start, start + n])
            keep[self._inserted[low:high] - start] = False
        self.text_bytes += int(self._lengths[self._shards.slice(start, n)[keep]].sum())
        return keep


def _show(result: dict[str, Any]) -> None:
    print(f"{result['model']} ({result['precision']}): {result['tokens']:,} tokens, {result['bytes']:,} bytes")
    print(f"loss           {result['loss']:.4f} nats a token")
    print(f"perplexity     {result['perplexity']:.4f}")
    print(f"bits per byte  {result['bits_per_byte']:.4f}")
    print(f"read in windows of {result['context']:,} tokens that move on by {result['stride']:,}")
