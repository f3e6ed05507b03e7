"""`glassformer open`: the page, in the browser."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from glassformer.errors import ServerError


def command(
    source: Annotated[
        str | None,
        typer.Argument(metavar="[SOURCE]", envvar="GLASSFORMER_MODEL", help="A model or a training run."),
    ] = None,
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.", min=0, max=65535)] = 0,
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
        listener = listening("127.0.0.1", port)
    except OSError as error:
        raise ServerError(
            f"Port {port} cannot be used ({error.strerror}); choose another with --port, or --port 0."
        ) from None
    with listener:
        token = new_token()
        fragment = f"#text={quote(text)}" if text else ""
        address = f"http://127.0.0.1:{listener.getsockname()[1]}/?token={token}{fragment}"
        app = page_app(session, Policy(token=token), load=lambda name, progress: load(name, progress=progress))
        typer.echo(
            f"{model.name} is open at\n\n  {address}\n\nThe address lets this browser in; Ctrl-C ends it.", err=True
        )
        if browser:
            threading.Timer(0.3, webbrowser.open, [address]).start()
        logging.getLogger("uvicorn").setLevel(logging.WARNING)
        config = uvicorn.Config(app, log_level="warning", access_log=False, timeout_graceful_shutdown=2)
        uvicorn.Server(config).run(sockets=[listener])
