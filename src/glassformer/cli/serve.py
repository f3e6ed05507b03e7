"""`glassformer serve`: OpenAI's HTTP API in front of a model."""

from __future__ import annotations

from typing import Annotated

import typer

from glassformer.errors import ServerError, UsageError

CONTEXT = 4096  # tokens of prompt and answer, unless asked for otherwise
INTERRUPTED = 130


def command(
    source: Annotated[
        str | None, typer.Argument(metavar="[SOURCE]", envvar="GLASSFORMER_MODEL", help="A model or a training run.")
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What the model is called in requests.")] = None,
    precision: Annotated[
        str,
        typer.Option(
            metavar="P", help="exact (float32), fast (the file's own blocks, else int8), bfloat16, int8, int4."
        ),
    ] = "exact",
    context: Annotated[
        int | None,
        typer.Option(metavar="N", help="Tokens of prompt and answer; 4,096 or the model's, if fewer.", min=2),
    ] = None,
    slots: Annotated[int, typer.Option(metavar="N", help="Answers computed at once.", min=1, max=512)] = 16,
    queue: Annotated[
        int, typer.Option(metavar="N", help="Answers that may wait; more are refused with 429.", min=0, max=100_000)
    ] = 64,
    max_tokens: Annotated[
        int | None, typer.Option("--max-tokens", metavar="N", help="Tokens of one answer at most.", min=1)
    ] = None,
    seconds: Annotated[float, typer.Option("--time-limit", metavar="S", help="Seconds a request may take.")] = 600.0,
    drain: Annotated[
        float, typer.Option("--drain-time", metavar="S", help="Seconds that running requests have after SIGTERM.")
    ] = 60.0,
    body: Annotated[int, typer.Option("--max-body", metavar="BYTES", help="Bytes a request may carry.", min=1)] = 4
    * 2**20,
    api_key: Annotated[
        str | None,
        typer.Option(
            "--api-key",
            envvar="GLASSFORMER_API_KEY",
            show_envvar=True,
            help="What clients must send; better in the environment than on the command line.",
        ),
    ] = None,
    host_name: Annotated[
        list[str] | None,
        typer.Option("--host-name", metavar="NAME", help="A name it is called by besides localhost; * for any."),
    ] = None,
    origin: Annotated[
        list[str] | None,
        typer.Option(
            "--allow-origin", metavar="ORIGIN", help="A page's origin that may call it, as https://a.example."
        ),
    ] = None,
) -> None:
    """Serve an OpenAI-compatible HTTP API.

    /v1/models, /v1/completions and /v1/chat/completions, /openapi.json, /metrics and /healthz. It listens on this
    machine only unless told otherwise. SIGTERM and Ctrl-C let running requests finish. Logs are JSON lines on
    standard error.
    """
    import signal

    from glassformer.cli.common import note, open_model

    if seconds <= 0 or drain < 0:
        raise UsageError("--time-limit is above 0 and --drain-time 0 or more.")
    if api_key is not None and not (api_key.strip() and api_key.isascii()):
        raise UsageError("An API key is at least one character, of ASCII alone; this one is not.")
    try:
        from glassformer.serve.admission import AdmissionQueue
        from glassformer.serve.app import api_app
        from glassformer.serve.models import Models, Served
        from glassformer.serve.running import listening, serve
        from glassformer.serve.security import LOCAL_HOSTS, Policy
        from glassformer.serve.telemetry import log_to_stderr
    except ImportError as error:
        if (error.name or "").startswith("glassformer"):
            raise
        raise ServerError("The server needs the extra 'serve': pip install 'glassformer[serve]'.") from None

    try:
        listener = listening(host, port)
    except OSError as error:
        raise ServerError(
            f"{host}:{port} cannot be used ({error.strerror}); choose another --port or --host."
        ) from None
    with listener:
        model = open_model(source)
        room = min(context or CONTEXT, model.config.context)
        engine = model.engines.make(precision, slots=slots, capacity=room)
        admission = AdmissionQueue(engine, waiting=queue, seconds=seconds)
        models = Models(Served(model, admission, name or model.name, max_tokens))
        hosts = LOCAL_HOSTS | {name.lower() for name in host_name or ()}
        if host not in ("0.0.0.0", "::"):
            hosts |= {f"[{host}]" if ":" in host else host.lower()}
        policy = Policy(hosts=hosts, origins=frozenset(origin or ()), key=api_key, max_body=body)
        local = f"[{host}]" if ":" in host else host
        address = f"http://{local}:{listener.getsockname()[1]}/v1"

        def ready() -> None:
            note(f"{models.default.name} ({engine.precision}, {engine.path}) is served at {address}")
            if host not in ("127.0.0.1", "::1", "localhost") and api_key is None:
                note("glassformer: note: other machines may reach it and no --api-key is asked of them.")

        log_to_stderr()
        got = serve(api_app(models, policy), models, listener, drain=drain, ready=ready)
    if got == signal.SIGINT:
        raise typer.Exit(INTERRUPTED)
