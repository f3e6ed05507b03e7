"""`glassformer open`: the page, in the browser."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.errors import FileError, ServerError

if TYPE_CHECKING:
    import socket


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
) -> None:
    """Open the app in the browser."""
    import logging
    import threading
    import webbrowser
    from urllib.parse import quote

    try:
        import uvicorn

        from glassformer.serve.app import page_app
    except ImportError:
        raise ServerError("The page needs the extra 'serve': pip install 'glassformer[serve]'.") from None
    from glassformer.cli.common import open_model
    from glassformer.lm import load
    from glassformer.serve.running import listening
    from glassformer.serve.security import Policy, new_token
    from glassformer.views import Session

    model = open_model(source)
    runs = Path("runs")
    if (Path(model.source) / "journal.jsonl").is_file():
        runs = Path(model.source).parent
    session = Session(model, open_model=lambda name: load(name), runs=str(runs))
    try:
        listener = _listener(listening, port)
    except OSError as error:
        raise ServerError(
            f"Port {port} cannot be used ({error.strerror}); choose another with --port, or --port 0."
        ) from None
    with listener:
        number = listener.getsockname()[1]
        # A page that is open goes on after the server was ended and started again: its key is the port's.
        token = kept_token(number, new_token)
        fragment = f"#text={quote(text)}" if text else ""
        address = f"http://127.0.0.1:{number}/?token={token}{fragment}"
        app = page_app(session, Policy(token=token), load=lambda name, progress: load(name, progress=progress))
        typer.echo(
            f"{model.name} is open at\n\n  {address}\n\nThe address lets this browser in; Ctrl-C ends it.", err=True
        )
        if browser:
            threading.Timer(0.3, webbrowser.open, [address]).start()
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])


def _folder() -> Path:
    from glassformer.system.folders import cache_directory

    return cache_directory() / "page"


def _listener(listening: Callable[[str, int], socket.socket], port: int | None) -> socket.socket:
    """A listener at the port asked for; at none in particular, where the page was last if that is free."""
    if port is not None:
        return listening("127.0.0.1", port)
    try:
        last = int((_folder() / "port").read_text("ascii"))
        return listening("127.0.0.1", last)
    except (OSError, ValueError, OverflowError):
        return listening("127.0.0.1", 0)


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
