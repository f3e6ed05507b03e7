"""`glassformer serve`: OpenAI's HTTP API in front of a model."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from glassformer.cli.answers import CacheBitsOption, PrecisionOption
from glassformer.cli.common import LayOption, LensOption, named_dictionaries, named_directions, named_lenses
from glassformer.cli.https import CertificateKeyOption, CertificateOption, certificate
from glassformer.errors import ServerError, UsageError

if TYPE_CHECKING:
    from glassformer.lm import Model

CONTEXT = 4096  # tokens of prompt and answer, unless asked for otherwise
INTERRUPTED = 130


def listed(sources: list[str]) -> dict[str, str]:
    """Names and sources of what is served; a folder that is no model itself stands for the models in it.

    Raises:
        UsageError: a folder without any, or two of one name.
    """
    found: dict[str, str] = {}
    for source in sources:
        folder = Path(source)
        inside = [source]
        if folder.is_dir() and not any((folder / file).exists() for file in _MODEL_FILES):
            inside = sorted(
                str(one)
                for one in folder.iterdir()
                if one.suffix == ".gguf" or (one.is_dir() and any((one / file).exists() for file in _MODEL_FILES))
            )
            if not inside:
                raise UsageError(f"{source} is no model and holds none.")
        for one in inside:
            name = Path(one).name.removesuffix(".gguf") if Path(one).exists() else one
            if name in found:
                raise UsageError(f"Two models are called {name!r}: {found[name]} and {one}.")
            found[name] = one
    return found


def named_adapters(given: list[str]) -> dict[str, str]:
    """Names and folders of adapters, each given as NAME=FOLDER or as its folder alone.

    Raises:
        UsageError: one that is no adapter's folder, or two of one name.
    """
    found: dict[str, str] = {}
    for one in given:
        name, mark, folder = one.partition("=")
        name, folder = (name, folder) if mark else (Path(one).name, one)
        if not (Path(folder) / "adapter_config.json").is_file():
            raise UsageError(f"{folder} is no adapter: a folder with adapter_config.json.")
        if not name or name in found:
            raise UsageError(f"Adapters have names of their own; {one!r} has none, or one that is taken.")
        found[name] = folder
    return found


def stamp(source: str | None) -> tuple[tuple[str, int, int], ...]:
    """What tells whether a source's files have changed; () for what is no file here."""
    path = Path(source or "")
    if source is None or not path.exists():
        return ()
    inside = sorted(one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path]
    told = ((one, one.stat()) for one in inside)
    return tuple((one.name, found.st_mtime_ns, found.st_size) for one, found in told)


# What a folder that is a model, a run or an adapter holds.
_MODEL_FILES = ("config.json", "journal.jsonl", "adapter_config.json", "model.json", "glassformer.json")


def command(
    sources: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[SOURCE]...",
            envvar="GLASSFORMER_MODEL",
            help="Models, runs or adapters, or a folder of them; the first answers when a request names none.",
        ),
    ] = None,
    host: Annotated[str, typer.Option(metavar="ADDRESS", help="The address to listen on.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="The port; 0 takes any that is free.", min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="What the model is called in requests.")] = None,
    precision: PrecisionOption = "exact",
    cache_bits: CacheBitsOption = None,
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
    key_file: Annotated[
        str | None,
        typer.Option(
            "--key-file", metavar="FILE", help="Keys with names, one 'name: key' a line; read when it changes."
        ),
    ] = None,
    memory: Annotated[
        float | None, typer.Option("--memory", metavar="GB", help="What open models may take together.")
    ] = None,
    certfile: CertificateOption = None,
    keyfile: CertificateKeyOption = None,
    open_metrics: Annotated[
        bool, typer.Option("--open-metrics/--no-open-metrics", help="Whether /metrics is answered without a key.")
    ] = False,
    lookup: Annotated[
        bool, typer.Option("--lookup/--no-lookup", help="Guess ahead from repeats in the text; the same answers.")
    ] = False,
    draft: Annotated[
        str | None,
        typer.Option("--draft", metavar="SOURCE", help="Guess ahead with this smaller model; the same answers."),
    ] = None,
    prompt_cache: Annotated[
        float,
        typer.Option(
            "--prompt-cache",
            metavar="GB",
            help="Memory for what earlier prompts left, for others that begin alike; beside the slots.",
            min=0,
        ),
    ] = 0.0,
    prompt_cache_directory: Annotated[
        Path | None,
        typer.Option(
            "--prompt-cache-directory",
            metavar="FOLDER",
            help="Keep it in files too, for servers to come; of --prompt-cache-files GB at most.",
        ),
    ] = None,
    prompt_cache_files: Annotated[
        float, typer.Option("--prompt-cache-files", metavar="GB", help="What those files may take.", min=0)
    ] = 4.0,
    adapter: Annotated[
        list[str] | None,
        typer.Option(
            "--adapter", metavar="NAME=FOLDER", help="An adapter of the first model, asked for as a model by its name."
        ),
    ] = None,
    lens: LensOption = None,
    lay: LayOption = None,
    direction: Annotated[
        list[str] | None,
        typer.Option("--direction", metavar="NAME=FILE", help="A saved direction, which edits steer by, by its name."),
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
    """Serve models over HTTP to programs of many kinds.

    It speaks OpenAI's, Anthropic's and Ollama's APIs, and gives what is inside the models.

    /openapi.json describes every route. Models beside the first are opened when they are first asked for. It listens
    on this machine only unless told otherwise. SIGTERM and Ctrl-C let running requests finish; SIGHUP reads keys,
    certificate and changed models again. Logs are JSON lines on standard error.
    """
    import signal
    from functools import partial

    from glassformer.cli.answers import drafting
    from glassformer.cli.common import note, open_model

    if name is not None and len(sources or ()) > 1:
        raise UsageError("--name is for one model; several are called as they are given.")
    if lookup and draft:
        raise UsageError("--lookup and --draft both guess ahead; give one of them.")
    directions = named_directions(direction)
    adapters, lenses, features = named_adapters(adapter or []), named_lenses(lens), named_dictionaries(lay)
    if memory is not None and memory <= 0:
        raise UsageError("--memory is above 0.")
    if seconds <= 0 or drain < 0:
        raise UsageError("--time-limit is above 0 and --drain-time 0 or more.")
    if api_key is not None and not (api_key.strip() and api_key.isascii()):
        raise UsageError("An API key is at least one character, of ASCII alone; this one is not.")
    try:
        from glassformer.serve.admission import AdmissionQueue
        from glassformer.serve.app import api_app
        from glassformer.serve.models import Models, Served
        from glassformer.serve.running import listening, serve
        from glassformer.serve.security import LOCAL_HOSTS, KeyFile, Policy
        from glassformer.serve.telemetry import Metrics, log_to_stderr
    except ImportError as error:
        if (error.name or "").startswith("glassformer"):
            raise
        raise ServerError("The server needs the extra 'serve': pip install 'glassformer[serve]'.") from None

    tls = certificate(certfile, keyfile)  # said now, not after the model was read
    try:
        listener = listening(host, port)
    except OSError as error:
        raise ServerError(
            f"{host}:{port} cannot be used ({error.strerror}); choose another --port or --host."
        ) from None
    with listener:
        metrics = Metrics()

        smaller = None if draft is None else open_model(draft)

        def served(model: Model, called: str) -> Served:
            capacity = min(context or CONTEXT, model.config.context)
            drafter = None if smaller is None else drafting(model, smaller, slots)
            engine = model.engines.make(
                precision,
                slots=slots,
                capacity=capacity,
                cache_bits=cache_bits,
                prefix_cache=int(prompt_cache * 1e9),
                prefix_folder=prompt_cache_directory,
                prefix_budget=int(prompt_cache_files * 1e9),
            )
            admission = AdmissionQueue(engine, metrics, waiting=queue, seconds=seconds)
            return Served(model, admission, called, max_tokens, lookup, drafter, directions)

        def opened(source: str | None, called: str | None = None) -> Served:
            model = open_model(source)
            return served(model, called or model.name)

        def on_first(folder: str, called: str) -> Served:
            return served(models.default.model.with_adapter(folder, called), called)

        def found(first: str) -> tuple[dict[str, Callable[[], Served]], dict[str, str | None]]:
            """What is there now, by name: what opens each, and where it is."""
            there: dict[str, str | None] = dict(listed(sources or [])) or {first: None}
            if len(there) == 1:
                there = {first: next(iter(there.values()))}
            openers: dict[str, Callable[[], Served]] = {}
            openers |= {one: partial(opened, source, one) for one, source in there.items()}
            if taken := adapters.keys() & openers:
                raise UsageError(f"Both a model and an adapter are called {min(taken)!r}.")
            return openers | {one: partial(on_first, folder, one) for one, folder in adapters.items()}, there

        there = listed(sources or [])
        first = opened(next(iter(there.values()), None), next(iter(there)) if len(there) > 1 else name)
        openers, places = found(first.name)
        budget = None if memory is None else int(memory * 1e9)
        models = Models(first, metrics=metrics, sources=openers, memory=budget, lenses=lenses, dictionaries=features)
        stamps = {one: stamp(place) for one, place in {**places, **adapters}.items()}

        def reload() -> None:
            keys = policy.keys
            if keys is not None:
                keys.read()
            openers, places = found(first.name)
            now = {one: stamp(place) for one, place in {**places, **adapters}.items()}
            stale = {one for one in now if now[one] != stamps.get(one)}
            if models.first in stale:  # its adapters stand on its weights
                stale |= set(adapters)
            stamps.clear()
            stamps.update(now)
            models.reload(openers, stale)

        hosts = LOCAL_HOSTS | {name.lower() for name in host_name or ()}
        if host not in ("0.0.0.0", "::"):
            hosts |= {f"[{host}]" if ":" in host else host.lower()}
        paths = {"/healthz", "/health"} | ({"/metrics"} if open_metrics else set())
        policy = Policy(
            hosts=hosts,
            origins=frozenset(origin or ()),
            key=api_key,
            keys=None if key_file is None else KeyFile(key_file),
            max_body=body,
            open_paths=frozenset(paths),
        )
        local = f"[{host}]" if ":" in host else host
        scheme = "http" if tls is None else "https"
        address = f"{scheme}://{local}:{listener.getsockname()[1]}/v1"

        def ready() -> None:
            engine = models.default.queue.engine
            others = f" and {len(models.names) - 1} more" if len(models.names) > 1 else ""
            note(f"{models.first} ({engine.precision}, {engine.path}){others} is served at {address}")
            if host not in ("127.0.0.1", "::1", "localhost") and not policy.guarded:
                note("glassformer: note: other machines may reach it and no --api-key is asked of them.")

        log_to_stderr()
        got = serve(api_app(models, policy), models, listener, drain=drain, ready=ready, tls=tls, reload=reload)
    if got == signal.SIGINT:
        raise typer.Exit(INTERRUPTED)
