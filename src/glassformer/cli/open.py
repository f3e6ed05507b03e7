"""`glassformer open`: the page, in the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.cli.common import LayOption, LensOption, named_dictionaries, named_lenses
from glassformer.cli.https import CertificateKeyOption, CertificateOption, certificate
from glassformer.errors import FileError, ServerError, UsageError

if TYPE_CHECKING:
    import socket

LOCAL = "127.0.0.1"
LEAST = 16  # letters of a key where other machines can try


def command(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", envvar="GLASSFORMER_MODEL", help="A model or a training run."),
    ] = None,
    port: Annotated[
        int | None,
        typer.Option(
            help="Port; 0 takes any that is free. By default the one used last, if it is free.", min=0, max=65535
        ),
    ] = None,
    browser: Annotated[bool, typer.Option("--browser/--no-browser", help="Open the browser.")] = True,
    text: Annotated[str | None, typer.Option(help="The text to begin with.")] = None,
    host: Annotated[
        str,
        typer.Option(metavar="ADDRESS", help="The address to listen on; 0.0.0.0 lets other machines in, with the key."),
    ] = LOCAL,
    key: Annotated[
        str | None,
        typer.Option(
            "--key",
            envvar="GLASSFORMER_PAGE_KEY",
            show_envvar=True,
            help="The key in the page's address; by default one that nobody can guess.",
        ),
    ] = None,
    lens: LensOption = None,
    lay: LayOption = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option("--host-name", metavar="NAME", help="A name that other machines call it by; * for any."),
    ] = None,
    certfile: CertificateOption = None,
    keyfile: CertificateKeyOption = None,
) -> None:
    """Open the app in the browser.

    Whoever is to see it needs the address that is printed: it holds a key. Other machines reach it with --host.
    """
    import logging
    import socket
    import threading
    import webbrowser
    from urllib.parse import quote

    try:
        import uvicorn

        from glassformer.serve.app import page_app
    except ImportError:
        raise ServerError("The page needs the extra 'serve': pip install 'glassformer[serve]'.") from None
    from glassformer.cli.common import open_model
    from glassformer.loading import load
    from glassformer.serve.running import listening
    from glassformer.serve.security import ADDRESSES, LOCAL_HOSTS, Policy, new_token
    from glassformer.views import Session

    alone = host in (LOCAL, "::1", "localhost")
    if key is not None and not (key.isascii() and key.isalnum() and len(key) >= (1 if alone else LEAST)):
        raise UsageError(f"The page's key is letters and digits, at least {LEAST} of them where others can reach it.")
    tls = certificate(certfile, keyfile)  # said now, not after the model was read
    lenses, features = named_lenses(lens), named_dictionaries(lay)
    model = open_model(source)
    runs = Path("runs")
    if (Path(model.source) / "journal.jsonl").is_file():
        runs = Path(model.source).parent
    session = Session(model, open_model=lambda name: load(name), runs=str(runs), lenses=lenses, dictionaries=features)
    try:
        listener = _listener(listening, host, port)
    except OSError as error:
        raise ServerError(
            f"{host}, port {port} cannot be used ({error.strerror}); choose another --host or --port, or --port 0."
        ) from None
    with listener:
        number = listener.getsockname()[1]
        # A page that is open goes on after the server was ended and started again: its key is the port's.
        token = key or kept_token(number, new_token)
        fragment = f"#text={quote(text)}" if text else ""
        anywhere = host in ("0.0.0.0", "::")
        hosts = LOCAL_HOSTS | {name.lower() for name in host_name or ()}
        hosts |= {ADDRESSES, socket.gethostname().lower()} if anywhere else {_written(host).lower()}
        scheme = "http" if tls is None else "https"

        def address(name: str) -> str:
            return f"{scheme}://{name}:{number}/?token={token}{fragment}"

        here = address(LOCAL if anywhere else _written(host))
        policy = Policy(hosts=hosts, token=token, secure=tls is not None)
        app = page_app(session, policy, load=lambda name, progress: load(name, progress=progress))
        typer.echo(f"{model.name} is open at\n\n  {here}\n", err=True)
        if anywhere:
            name = host_name[0] if host_name and host_name[0] != "*" else socket.gethostname()
            theirs = "\n  ".join(address(one) for one in (name, outward()) if one)
            typer.echo(f"and for other machines at\n\n  {theirs}\n", err=True)
        typer.echo("The address lets whoever opens it in; Ctrl-C ends it.", err=True)
        if not alone and tls is None:
            typer.echo(
                "glassformer: note: what is asked and the key travel unencrypted; --certfile serves HTTPS.", err=True
            )
        if browser:
            threading.Timer(0.3, webbrowser.open, [here]).start()
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        config = uvicorn.Config(
            app,
            log_level="warning",
            access_log=False,
            timeout_graceful_shutdown=2,
            ssl_certfile=certfile,
            ssl_keyfile=keyfile,
        )
        uvicorn.Server(config).run(sockets=[listener])


def _folder() -> Path:
    from glassformer.system.folders import cache_directory

    return cache_directory() / "page"


def outward() -> str | None:
    """This machine's address in numbers, as others reach it; None without a network."""
    import socket

    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            probe.connect(("192.0.2.1", 9))  # an address of documents, to which nothing is sent
            return str(probe.getsockname()[0])
    except OSError:
        return None


def _written(host: str) -> str:
    """An address as it stands in another."""
    return f"[{host}]" if ":" in host else host


def _listener(listening: Callable[[str, int], socket.socket], host: str, port: int | None) -> socket.socket:
    """A listener at the port asked for; at none in particular, where the page was last if that is free."""
    if port is not None:
        return listening(host, port)
    try:
        last = int((_folder() / "port").read_text("ascii"))
        return listening(host, last)
    except (OSError, ValueError, OverflowError):
        return listening(host, 0)


def kept_token(port: int, new: Callable[[], str]) -> str:
    """The token of the page at a port: the one it had before, readable by this user alone, or a new one."""
    from glassformer.system import files

    folder = _folder()
    path = folder / f"token-{port}"
    try:
        held = path.read_text("ascii").strip()
        if len(held) >= 32 and held.isascii() and not path.stat().st_mode & 0o077:
            token = held
        else:
            token = new()
    except (OSError, UnicodeDecodeError):
        token = new()
    try:
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        with files.atomic(path) as draft:
            draft.chmod(0o600)
            draft.write_text(token, "ascii")
        files.write_text(folder / "port", str(port))
    except (OSError, FileError):
        return token  # a folder that cannot be written only means a new token next time
    return token
