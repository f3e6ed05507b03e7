"""Models from the hub, through its own client: the user's cache, token and endpoint are honoured.

Only configurations, tokenizers, safetensors and GGUF files are asked for, never a pickled one. What was fetched once
is used again without asking. It refuses to know what a source string means (``sources.py``).
"""

from __future__ import annotations

import contextlib
import fnmatch
import glob
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from glassformer.errors import GlassformerError, SourceError, UnsafeFileError, near
from glassformer.fetch import download, gguf_parts
from glassformer.fetch.gguf_parts import parts_of
from glassformer.system.folders import cache_folder
from glassformer.system.progress import Progress

TIMEOUT = 5.0  # seconds for the hub's first answer
_BESIDE = ("*.json", "*.jinja", "*.model", "merges.txt", "vocab.txt")  # what belongs to a model besides its weights


ADAPTER = ("adapter_config.json", "adapter_model.safetensors")  # of PEFT


class Snapshot(NamedTuple):
    """What was fetched: its folder or GGUF file, and the commit it is of."""

    path: Path
    commit: str


def offline() -> bool:
    """Whether the user forbids asking the hub (``HF_HUB_OFFLINE``)."""
    return os.environ.get("HF_HUB_OFFLINE", "").upper() in ("1", "ON", "YES", "TRUE")


def endpoint() -> str:
    """The address of the hub: ``HF_ENDPOINT``, else the client's own."""
    from huggingface_hub import constants

    return (os.environ.get("HF_ENDPOINT") or constants.ENDPOINT).rstrip("/")


def fetch(repo: str, revision: str, file: str | None, progress: Progress) -> Snapshot:
    """The model of ``repo`` at ``revision``, or only its ``file``. Raises ``SourceError`` in a few words, without a
    full stop: the caller says what was wanted and where else it looked."""
    from huggingface_hub import HfApi, snapshot_download

    if offline():
        raise SourceError("HF_HUB_OFFLINE forbids asking it")
    with _translated(repo, revision):
        # Asked first, once and with a short time-out: the client's own downloads try for half a minute.
        api = HfApi(endpoint=endpoint())
        info = api.model_info(repo, revision=revision, timeout=TIMEOUT, files_metadata=True)
        sizes = {sibling.rfilename: sibling.size for sibling in info.siblings or []}
        wanted = parts_of(file) if file is not None else choose(repo, list(sizes))
        if missing := [name for name in wanted if name not in sizes]:
            ggufs = [name for name in sizes if name.endswith(".gguf")]
            raise SourceError(f"{repo} holds no {missing[0]}.{near(missing[0], ggufs)}".rstrip("."))
        known = [sizes[name] for name in wanted]
        total = sum(size for size in known if size is not None) if None not in known else None
        what = f"fetching {repo}" + (f"/{file}" if file else "")
        lock = cache_folder("models") / f"hub--{repo.replace('/', '--')}"
        with download.locked(lock, repo, progress), download.writing(_cache(), repo):
            large = [sibling for sibling in info.siblings or [] if sibling.rfilename in wanted]
            done = _large_files(repo, str(info.sha), large, lambda bytes_, *_: progress(bytes_, total, what))
            folder = snapshot_download(
                repo,
                revision=revision,
                allow_patterns=[glob.escape(name) for name in wanted],
                etag_timeout=TIMEOUT,
                endpoint=endpoint(),
                cache_dir=_cache(),
                max_workers=2,
                tqdm_class=_reporter(progress, done, total, what),
            )
    ggufs = [name for name in wanted if name.endswith(".gguf")]
    return Snapshot(Path(folder, ggufs[0]) if ggufs else Path(folder), info.sha or Path(folder).name)


def _large_files(repo: str, commit: str, siblings: list[Any], progress: Progress) -> int:
    """Put the files whose SHA-256 the hub states among the blobs of its cache, where its client then finds them; the
    bytes of them that were fetched. Done here because the client begins a killed download anew and verifies only sizes.
    """
    import httpx2
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url
    from huggingface_hub.utils import build_hf_headers

    blobs = _cache() / constants.REPO_ID_SEPARATOR.join(["models", *repo.split("/")]) / "blobs"
    blobs.mkdir(parents=True, exist_ok=True)
    done = 0
    with httpx2.Client(headers=build_hf_headers(), timeout=download.TIMEOUT, follow_redirects=True) as client:
        for sibling in siblings:
            sha256, size = getattr(sibling.lfs, "sha256", None), getattr(sibling.lfs, "size", None)
            if not sha256 or not size or (blobs / sha256).exists():
                continue

            def report(bytes_: int, total: int | None, what: str, before: int = done) -> None:
                progress(before + bytes_, total, what)

            url = hf_hub_url(repo, sibling.rfilename, revision=commit, endpoint=endpoint())
            if not done:
                get_hf_file_metadata(url, timeout=TIMEOUT, endpoint=endpoint())  # its errors say what a refusal means
            download.fetch(
                url,
                blobs / sha256,
                what=sibling.rfilename,
                sha256=sha256,
                size=size,
                progress=report,
                client=client,
            )
            done += size
    return done


def cached(repo: str, revision: str, file: str | None) -> Snapshot | None:
    """What the hub's cache on this machine holds of it, whoever put it there; None when that is not a whole model."""
    from huggingface_hub import constants

    repository = _cache() / constants.REPO_ID_SEPARATOR.join(["models", *repo.split("/")])
    commit = revision
    with contextlib.suppress(OSError):
        commit = (repository / "refs" / revision).read_text(encoding="utf-8").strip()
    folder = repository / "snapshots" / commit
    if file is not None:
        first = folder / parts_of(file)[0]
        return Snapshot(first, commit) if gguf_parts.whole(first) else None
    if whole(folder):
        return Snapshot(folder, commit)
    held = sorted(str(path.relative_to(folder)) for path in folder.rglob("*.gguf"))
    ggufs = gguf_parts.wholes(held) if not (folder / "config.json").exists() else []
    return Snapshot(folder / ggufs[0], commit) if len(ggufs) == 1 and gguf_parts.whole(folder / ggufs[0]) else None


def whole(folder: Path) -> bool:
    """Whether a folder holds a configuration, a tokenizer, and every weights file that it names; or an adapter."""
    if (folder / ADAPTER[0]).is_file() and not (folder / "config.json").is_file():
        return (folder / ADAPTER[1]).is_file()
    described = (folder / "config.json").is_file() or (folder / "glassformer.json").is_file()
    if not described or not any(folder.glob("tokenizer*")):
        return False
    index = folder / "model.safetensors.index.json"
    if not index.is_file():
        return any(path.is_file() for path in folder.glob("*.safetensors"))
    import json

    try:
        shards = set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())
        return all((folder / shard).is_file() for shard in shards)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def choose(repo: str, files: list[str]) -> list[str]:
    """Which of a repository's files make the model: its safetensors in one form, what belongs to them, or its GGUF.

    Raises:
        UnsafeFileError: when its weights are only there in a form that runs code.
        SourceError: when it holds no weights, or several GGUF files and none was named.
    """
    top = [name for name in files if "/" not in name]
    beside = [name for name in top if any(fnmatch.fnmatch(name, pattern) for pattern in _BESIDE)]
    weights = [name for name in top if name.endswith(".safetensors")]
    if "model.safetensors.index.json" in top:
        weights = [name for name in weights if fnmatch.fnmatch(name, "model-*-of-*.safetensors")]
    elif "model.safetensors" in top:
        weights = ["model.safetensors"]
    if weights and ("config.json" in top or "glassformer.json" in top):
        return sorted(beside) + sorted(weights)
    if set(ADAPTER) <= set(top):
        return sorted({*beside, *ADAPTER})
    held = sorted(name for name in files if name.endswith(".gguf") and not _no_language_model(name))
    ggufs = gguf_parts.wholes(held)
    if len(ggufs) == 1:
        return parts_of(ggufs[0])
    if ggufs:
        some = ", ".join(ggufs[:6]) + (f" and {len(ggufs) - 6} more" if len(ggufs) > 6 else "")
        raise SourceError(f"{repo} holds {len(ggufs)} GGUF files ({some}); name one, such as {repo}/{ggufs[0]}")
    if any(name.endswith((".bin", ".pt", ".pth", ".ckpt", ".pkl")) for name in files):
        raise UnsafeFileError(
            f"{repo} keeps its weights only as pickled PyTorch files, which run code when they are read, so they are"
            " refused; convert them to safetensors first, for instance with transformers: "
            f'AutoModelForCausalLM.from_pretrained("{repo}").save_pretrained(DIRECTORY, safe_serialization=True), or'
            " look for a revision that has them."
        )
    raise SourceError(f"{repo} holds no language model that can be read (config.json with *.safetensors, or a .gguf)")


def _no_language_model(file: str) -> bool:
    """Whether a GGUF file is an image projector or calibration data that lies beside a model."""
    return file.rpartition("/")[2].startswith(("mmproj", "imatrix"))


def _cache() -> Path:
    from huggingface_hub import constants

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    try:
        cache.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise SourceError(f"its cache {cache} cannot be written ({error.strerror or error})") from None
    return cache


@contextlib.contextmanager
def _translated(repo: str, revision: str) -> Iterator[None]:
    """The client's many exceptions as ``SourceError``; its log lines silenced, for the sentence says it all."""
    from huggingface_hub import errors

    logger = logging.getLogger("huggingface_hub")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    at = endpoint()
    try:
        yield
    except GlassformerError:
        raise
    except errors.GatedRepoError:
        raise SourceError(
            f"{at} asks you to accept {repo}'s terms on its page first, and to log in here with `hf auth login`"
        ) from None
    except errors.RevisionNotFoundError:
        raise SourceError(f"{at} has {repo}, but no revision {revision} of it") from None
    except errors.RepositoryNotFoundError:
        raise SourceError(f"{at} has no {repo}, or it is private and needs `hf auth login`") from None
    except errors.HFValidationError:
        raise SourceError(f"{repo} is not a name a model can have there") from None
    except Exception as error:
        # Which HTTP library raises depends on the client's version, and the client wraps what it raised in its own.
        cause: BaseException = error
        while not _of_network(cause) and cause.__cause__ is not None:
            cause = cause.__cause__
        if not _of_network(cause) and not isinstance(error, (OSError, RuntimeError, ValueError)):
            raise  # a bug
        if (status := getattr(getattr(cause, "response", None), "status_code", None)) is not None:
            raise SourceError(f"{at} answered {status}") from None
        if "Timeout" in type(cause).__name__:
            raise SourceError(f"{at} did not answer in time") from None
        raise SourceError(f"{at} cannot be reached, or broke off ({download.reason(cause)})") from None
    finally:
        logger.setLevel(level)


def _of_network(error: BaseException) -> bool:
    """Whether an exception is of an HTTP library, or the client's own for an answer that is an error."""
    if type(error).__name__ == "HfHubHTTPError":
        return True
    return type(error).__module__.partition(".")[0] in ("httpx2", "httpx", "requests", "urllib3", "httpcore")


def _reporter(progress: Progress, before: int, total: int | None, what: str) -> Any:
    """A class like tqdm's that reports bytes to ``progress``, on top of those fetched ``before``, and draws nothing."""
    from huggingface_hub.utils import tqdm

    counts: dict[int, int] = {}

    class Reporter(tqdm):
        def __init__(self, *args: object, **options: object) -> None:
            options.pop("name", None)
            self._counts_bytes = options.get("unit") == "B"
            super().__init__(*args, **options | {"file": _Nowhere(), "disable": False})

        def update(self, n: float | None = 1) -> bool | None:
            if self._counts_bytes and n:
                # Bytes received and bytes written are counted apart; the further of the two is how far we are.
                counts[id(self)] = counts.get(id(self), 0) + int(n)
                done = before + max(counts.values())
                progress(done if total is None else min(done, total), total, what)
            return super().update(n)

    return Reporter


class _Nowhere:
    """A text file that swallows what is written."""

    encoding = "utf-8"

    def write(self, text: str) -> int:
        return len(text)

    def flush(self) -> None: ...

    def isatty(self) -> bool:
        return False


def delete(path: Path) -> None:
    """Remove a snapshot's folder, or one file of it, from the hub's cache, with the blobs that nothing else there uses.
    What lies elsewhere is left alone."""
    from huggingface_hub import scan_cache_dir

    cache = _cache().resolve()
    if not path.parent.resolve().is_relative_to(cache):
        return
    if not path.is_dir():
        for part in gguf_parts.paths_of(path):
            blob = part.resolve()
            part.unlink(missing_ok=True)
            if blob.is_relative_to(cache):
                blob.unlink(missing_ok=True)
        return
    found = scan_cache_dir(cache)
    commits = [
        revision.commit_hash
        for repo in found.repos
        for revision in repo.revisions
        if revision.snapshot_path.resolve() == path.resolve()
    ]
    found.delete_revisions(*commits).execute()
