"""What verbs that listen share: the options of a certificate, for HTTPS."""

from __future__ import annotations

from typing import Annotated

import typer

from glassformer.errors import UsageError

CertificateOption = Annotated[
    str | None, typer.Option("--certfile", metavar="FILE", help="A certificate: serve HTTPS.")
]
CertificateKeyOption = Annotated[
    str | None, typer.Option("--keyfile", metavar="FILE", help="The certificate's key, if it is not in its file.")
]


def certificate(certfile: str | None, keyfile: str | None) -> tuple[str, str | None] | None:
    """The files of a certificate and of its key, read once and found to belong together; None where none is asked for.

    Raises:
        UsageError: files that are no such pair, or a key alone.
    """
    if certfile is None:
        if keyfile is not None:
            raise UsageError("--keyfile is the key of a certificate; name that with --certfile.")
        return None
    from glassformer.serve.running import tls_context

    tls_context(certfile, keyfile)
    return certfile, keyfile
