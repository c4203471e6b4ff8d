"""Where rows come from: the Hugging Face Hub and its cache; subsets and splits of rows."""

from __future__ import annotations

import errno
import json
import logging
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal
from urllib.parse import quote

import numpy as np
import numpy.typing as npt

from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.utils.files import write_atomically
from smolbench.utils.notices import warn

if TYPE_CHECKING:
    import datasets

RETRY_WAITS_S = (1.0, 4.0, 16.0)
"""Seconds to wait before each further attempt at a download that failed for the moment."""

REACH_TIMEOUT_S = 10.0
"""Seconds after which the hub counts as unreachable."""

PARQUET_BRANCH = "refs/convert/parquet"
"""Where the hub keeps a copy without code of a dataset that is a script, which no one runs now."""

COMMIT = re.compile(r"[0-9a-f]{40}")

log = logging.getLogger("smolbench")

_CACHED_ONLY: ContextVar[bool] = ContextVar("cached_only", default=False)


@contextmanager
def cached_only() -> Iterator[None]:
    """Let :func:`load_hub` take what is in the cache, and neither ask the hub nor download."""
    before = _CACHED_ONLY.set(True)
    try:
        yield
    finally:
        _CACHED_ONLY.reset(before)


@dataclass(frozen=True)
class Source:
    """Rows of a dataset.

    Attributes:
        splits: The splits that were asked for.
        id: Name of the dataset.
        revision: Commit on the hub, 40 hexadecimal digits; None if the dataset has none.
        facts: What else the results are to say about the rows, such as how many were dropped.
    """

    splits: dict[str, datasets.Dataset]
    id: str
    revision: str | None
    facts: dict[str, Any] = field(default_factory=dict)


@dataclass
class Split:
    """One split as the task sees it.

    Attributes:
        examples: Columns of the example's kind, such as ``text`` and ``label``.
        labels: Classes, int64, shape ``(N,)``; ``None`` where there are none.
        table: Token ids; ``None`` before the split is encoded.
        encoder: What they were made by.
    """

    examples: datasets.Dataset
    labels: npt.NDArray[np.int64] | None
    table: TokenTable | None = None
    encoder: object = None

    def __len__(self) -> int:
        return len(self.examples)


def load_hub(
    dataset_id: str,
    *,
    config: str | None = None,
    revision: str | None = None,
    splits: Sequence[str],
    cache_dir: Path | None = None,
) -> Source:
    """Load a dataset from the hub, or from the cache of an earlier download.

    With the commit in the cache nothing is downloaded; with a commit as ``revision`` the hub is not
    even asked. Where the hub cannot be reached, the cached commit is used: that of ``revision``, or
    with a branch, a tag or none, the one where it was last seen.

    Args:
        dataset_id: Name on the hub, such as ``"stanfordnlp/imdb"``.
        config: Configuration of the dataset; None for its default one.
        revision: Branch, tag or commit; None for the main branch.
        splits: The splits needed.
        cache_dir: Where ``datasets`` keeps what it downloaded; None for its own choice.

    Raises:
        SmolbenchError: If the dataset, revision, configuration or a split does not exist, or the
            dataset is neither in the cache nor can be downloaded.
    """
    pinned = revision if revision is not None and COMMIT.fullmatch(revision) else None
    if pinned is not None:
        found = _from_cache(dataset_id, config or "default", pinned, cache_dir)
        if found is not None:
            return _source(dataset_id, *found, splits)
    commit, problem, advice = _resolve(dataset_id, revision, cache_dir)
    if commit is not None:
        # an unnamed configuration that is not called so may be another one than the hub's default
        found = _from_cache(dataset_id, config or "default", commit, cache_dir)
        if found is None:
            found = _download(dataset_id, config, commit, cache_dir)
        return _source(dataset_id, *found, splits)
    seen = pinned or _last_seen(dataset_id, revision, cache_dir)
    found = _from_cache(dataset_id, config, seen, cache_dir) if seen else None
    found = found or _from_files(dataset_id, config, revision, cache_dir)
    known = found is not None
    if found is None and pinned is None:
        found = _from_cache(dataset_id, config, None, cache_dir)
    if found is None:
        raise SmolbenchError(problem + advice)
    if known or len(_cached_commits(dataset_id, cache_dir)) == 1:
        log.warning("%s Using the cached revision %s.", problem, found[1])
    else:
        warn(
            "%s Using the revision %s, the newest in the cache: at which commit %s was last is not "
            "known.",
            problem,
            found[1],
            revision or "the main branch",
        )
    return _source(dataset_id, *found, splits)


def select(
    dataset: Sequence[Any] | datasets.Dataset,
    n: int | None,
    labels: npt.NDArray[Any] | None,
    mode: Literal["stratified", "head"],
    seed: int,
) -> npt.NDArray[np.int64]:
    """Choose a subset of rows.

    Args:
        dataset: What to choose from; only its length matters.
        n: Rows wanted; None, or more than there are, for all.
        labels: Class of each row [N]; None for a subset without regard to classes.
        mode: ``"stratified"`` draws at random and keeps the classes' shares; ``"head"`` takes the
            first rows, as lm_eval's ``--limit``.
        seed: Seed of the draw.

    Returns:
        Row numbers in increasing order.

    Raises:
        SmolbenchError: If ``n`` is below 1.
    """
    size = len(dataset)
    if n is not None and n < 1:
        raise SmolbenchError(f"A limit of {n} examples was given; it must be 1 or larger, or null.")
    if n is None or n >= size:
        return np.arange(size)
    if mode == "head":
        return np.arange(n)
    order = np.random.default_rng(seed).permutation(size)
    if labels is None:
        return np.sort(order[:n])
    # shares by largest remainder; scikit-learn refuses a class with one row and n below the classes
    _, classes, counts = np.unique(labels, return_inverse=True, return_counts=True)
    exact = counts * n / size
    quota = np.floor(exact).astype(np.int64)
    quota[np.argsort(quota - exact, kind="stable")[: n - quota.sum()]] += 1
    chosen = [order[classes[order] == label][:share] for label, share in enumerate(quota)]
    return np.sort(np.concatenate(chosen))


def stratified_split(
    labels: npt.NDArray[Any], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split rows in two, keeping the classes' shares, with scikit-learn's ``train_test_split``.

    Args:
        labels: Class of each row [N].
        fraction: Share of the rows for validation, between 0 and 1.
        seed: Seed of the draw.

    Returns:
        Row numbers for training and for validation, each in increasing order.

    Raises:
        SmolbenchError: If there are too few rows of a class, or the share is out of range.
    """
    from sklearn.model_selection import train_test_split

    try:
        train, validation = train_test_split(
            np.arange(len(labels)), test_size=float(fraction), stratify=labels, random_state=seed
        )
    except ValueError as error:
        raise SmolbenchError(
            f"A validation share of {fraction} cannot be split off {len(labels)} rows with the same"
            f" share of every class: {error} Choose another share or more rows."
        ) from error
    return np.sort(train), np.sort(validation)


def first_of_equal(texts: npt.NDArray[Any]) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Where each text stands first, in the order of the rows, and which of these each row has.

    Args:
        texts: Anything that is equal where texts are [N].
    """
    _, first, which = np.unique(texts, return_index=True, return_inverse=True)
    places = np.sort(first)
    return places, np.searchsorted(places, first[which])


def text_split(
    texts: npt.NDArray[Any], labels: npt.NDArray[Any], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """As :func:`stratified_split`, but of texts: all rows of one are on the same side.

    Where no text stands twice, it is the same split.

    Args:
        texts: Anything that is equal where texts are [N].
        labels: Class of each row [N]; of several rows of a text that of the first counts.
        fraction: Share of the texts for validation, between 0 and 1.
        seed: Seed of the draw.
    """
    places, which = first_of_equal(texts)
    _, held_out = stratified_split(labels[places], fraction, seed)
    side = np.zeros(len(places), bool)
    side[held_out] = True
    return np.flatnonzero(~side[which]), np.flatnonzero(side[which])


def grouped_split(
    groups: npt.NDArray[Any], fraction: float, seed: int
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Split rows in two, no group on both sides, with scikit-learn's ``GroupShuffleSplit``.

    Args:
        groups: Group of each row [N].
        fraction: Share of the groups for validation, between 0 and 1.
        seed: Seed of the draw.

    Returns:
        Row numbers for training and for validation, each in increasing order.

    Raises:
        SmolbenchError: If there are too few groups.
    """
    from sklearn.model_selection import GroupShuffleSplit

    splitter = GroupShuffleSplit(n_splits=1, test_size=float(fraction), random_state=seed)
    try:
        ((train, validation),) = splitter.split(groups, groups=groups)
    except ValueError as error:
        raise SmolbenchError(
            f"A share of {fraction} cannot be held out of {len(groups)} rows of"
            f" {len(np.unique(groups))} texts or sources, each of which stays whole, because none"
            " would be left to train on: choose another share, or add rows."
        ) from error
    return np.sort(train), np.sort(validation)


def hold_out_test(
    rows: datasets.Dataset, labels: npt.NDArray[Any], fraction: float, seed: int
) -> dict[str, datasets.Dataset]:
    """Splits ``train`` and ``test`` of rows without a test split; see :func:`stratified_split`."""
    rest, held_out = stratified_split(labels, fraction, seed)
    return {"train": rows.select(rest), "test": rows.select(held_out)}


Loaded = tuple["datasets.DatasetDict", str]
"""A dataset and its commit."""


def _source(
    dataset_id: str, found: datasets.DatasetDict, commit: str, splits: Sequence[str]
) -> Source:
    """Keep the splits wanted."""
    missing = [name for name in splits if name not in found]
    if missing:
        raise SmolbenchError(
            f"The dataset {dataset_id} has no split {', '.join(map(repr, missing))}; it has"
            f" {', '.join(map(repr, found))}."
        )
    return Source({name: found[name] for name in splits}, dataset_id, commit)


def _resolve(
    dataset_id: str, revision: str | None, cache_dir: Path | None
) -> tuple[str | None, str, str]:
    """Ask the hub for the commit; without one, return a sentence that says why, and advice.

    Where the main branch is a script, the commit is that of its parquet copy.
    Under :func:`cached_only` nobody is asked.

    ``datasets`` would ask too, but takes 23 s of retries to find out that there is no network.
    """
    if _CACHED_ONLY.get():
        return None, f"The dataset {dataset_id} is not in the cache.", ""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        OfflineModeIsEnabled,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    name = dataset_id if revision is None else f"{dataset_id} at revision {revision}"
    option = f" --revision {revision}" if revision else ""
    advice = (
        " It is not in the cache either: run once with network, or fetch it there with"
        f" `hf download --repo-type dataset {dataset_id}{option}`, and set HF_HOME to the folder"
        " that holds it."
    )
    for wait in (*RETRY_WAITS_S, None):
        try:
            info = HfApi().dataset_info(dataset_id, revision=revision, timeout=REACH_TIMEOUT_S)
        except OfflineModeIsEnabled:
            problem = f"The hub was not asked for the dataset {name}: HF_HUB_OFFLINE is set."
            return None, problem, advice
        except GatedRepoError:
            problem = (
                f"The dataset {dataset_id} needs its owner's permission: ask for it on"
                f" https://huggingface.co/datasets/{dataset_id} and log in with `hf auth login`."
            )
            return None, problem, ""
        except RevisionNotFoundError:
            problem = (
                f"The dataset {dataset_id} has no revision {revision!r} on the hub: name a branch,"
                " a tag or a commit with `--data.revision`."
            )
            return None, problem, ""
        except (RepositoryNotFoundError, HFValidationError):
            problem = (
                f"There is no dataset {dataset_id!r} on the hub, or it is private: check the name,"
                " or log in with `hf auth login`."
            )
            return None, problem, ""
        except HfHubHTTPError as error:
            status = _status(error)
            if wait is not None and _temporary(error):
                log.warning("The hub answered %s; trying again in %.0f s.", status, wait)
                time.sleep(wait)
                continue
            return None, f"The hub answered {status} when asked for the dataset {name}.", advice
        except Exception as error:  # no network: the classes differ between HTTP libraries
            problem = f"The hub cannot be reached for the dataset {name} ({_brief(error)})."
            return None, problem, advice
        script = f"{dataset_id.split('/')[-1]}.py"
        files = [file.rfilename for file in getattr(info, "siblings", None) or ()]
        if revision is None and script in files:
            return _resolve(dataset_id, PARQUET_BRANCH, cache_dir)
        if info.sha is not None:
            _remember(dataset_id, revision or "main", info.sha, cache_dir)
        return info.sha, "", ""
    raise AssertionError("unreachable")


def _cached_at(dataset_id: str, cache_dir: Path | None) -> Path:
    """Where ``datasets`` keeps what it has prepared of a dataset."""
    import datasets
    from datasets.naming import camelcase_to_snakecase

    *namespace, name = dataset_id.split("/")
    folder = "___".join([*namespace, camelcase_to_snakecase(name)])
    return Path(cache_dir or datasets.config.HF_DATASETS_CACHE).expanduser() / folder


def _cached_commits(dataset_id: str, cache_dir: Path | None) -> set[str]:
    entries = _cached_at(dataset_id, cache_dir).glob("*/*/*/dataset_info.json")
    return {file.parent.name for file in entries if COMMIT.fullmatch(file.parent.name)}


def _last_seen_file(dataset_id: str, revision: str, cache_dir: Path | None) -> Path:
    return _cached_at(dataset_id, cache_dir) / "last_seen" / quote(revision, safe="")


def _remember(dataset_id: str, revision: str, commit: str, cache_dir: Path | None) -> None:
    """Note at which commit a branch or tag was, for when the hub cannot be asked.

    ``datasets`` keeps commits only, and the folder written last may be that of an older one.
    """
    path = _last_seen_file(dataset_id, revision, cache_dir)
    try:
        if not path.is_file() or path.read_text(encoding="utf-8") != commit:
            write_atomically(path, commit)
    except OSError as error:
        log.warning("%s cannot be written (%s): offline, another commit may be taken.", path, error)


def _last_seen(dataset_id: str, revision: str | None, cache_dir: Path | None) -> str | None:
    """The commit at which a branch or tag was seen last; ``None`` if it never was."""
    # where the main branch is a script, its parquet copy stands for it
    for name in (PARQUET_BRANCH, "main") if revision is None else (revision,):
        path = _last_seen_file(dataset_id, name, cache_dir)
        with suppress(OSError, ValueError):
            if COMMIT.fullmatch(found := path.read_text(encoding="utf-8").strip()):
                return found
    return None


def _from_cache(
    dataset_id: str, config: str | None, commit: str | None, cache_dir: Path | None
) -> Loaded | None:
    """Load what an earlier run prepared: one commit, or the newest.

    ``load_dataset`` without network takes the newest commit even when asked for another one.
    """
    import datasets
    from datasets.packaged_modules.cache.cache import Cache

    name = dataset_id.split("/")[-1]
    root = _cached_at(dataset_id, cache_dir)
    entries = []
    for info_file in root.glob(f"{config or '*'}/*/{commit or '*'}/dataset_info.json"):
        entry = info_file.parent
        # other names hold parts of the dataset: a choice of files is in the folder's name
        try:
            configured = json.loads(info_file.read_text(encoding="utf-8"))["config_name"]
        except (OSError, ValueError, KeyError):
            continue
        if COMMIT.fullmatch(entry.name) and configured == entry.parts[-3]:
            entries.append(entry)
    if not entries:
        return None
    newest = max(entries, key=lambda entry: entry.stat().st_mtime)
    same = [entry for entry in entries if entry.name == newest.name]
    if len(same) > 1:  # several configurations: only the hub knows which is the default
        same = [entry for entry in same if entry.parts[-3] == "default"]
    if not same:
        return None
    config_name, version, commit = same[0].parts[-3:]
    builder = Cache(
        cache_dir=str(cache_dir) if cache_dir else None,
        dataset_name=name,
        repo_id=dataset_id,
        config_name=config_name,
        version=version,
        hash=commit,
    )
    try:
        loaded = builder.as_dataset()
    except Exception as error:
        log.warning("The cached dataset %s cannot be read (%s).", same[0], _brief(error))
        return None
    if not isinstance(loaded, datasets.DatasetDict):
        return None
    return loaded, commit


def _from_files(
    dataset_id: str, config: str | None, revision: str | None, cache_dir: Path | None
) -> Loaded | None:
    """Load what ``hf download`` fetched; ``datasets`` does not find that without network."""
    import datasets
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            dataset_id, repo_type="dataset", revision=revision, local_files_only=True
        )
        loaded = datasets.load_dataset(
            folder, name=config, cache_dir=str(cache_dir) if cache_dir else None
        )
    except Exception as error:
        log.debug("%s is not in the hub's file cache: %s", dataset_id, _brief(error))
        return None
    if not isinstance(loaded, datasets.DatasetDict):
        return None
    return loaded, Path(folder).name


def _download(dataset_id: str, config: str | None, commit: str, cache_dir: Path | None) -> Loaded:
    """Download and prepare a dataset; failures that may pass are tried again.

    ``huggingface_hub`` goes on with a download that was cut, but gives up at once on a 503.
    """
    import datasets

    for wait in (*RETRY_WAITS_S, None):
        try:
            loaded = datasets.load_dataset(
                dataset_id,
                name=config,
                revision=commit,
                cache_dir=str(cache_dir) if cache_dir else None,
            )
        except Exception as error:
            if wait is not None and _temporary(error):
                log.warning(
                    "Downloading %s failed (%s); trying again in %.0f s.",
                    dataset_id,
                    _brief(error),
                    wait,
                )
                time.sleep(wait)
                continue
            raise SmolbenchError(_download_problem(dataset_id, error)) from error
        if not isinstance(loaded, datasets.DatasetDict):
            raise SmolbenchError(f"The dataset {dataset_id} has no splits; it cannot be used.")
        _check_commit(dataset_id, loaded, commit)
        return loaded, commit
    raise AssertionError("unreachable")


def _check_commit(dataset_id: str, loaded: datasets.DatasetDict, commit: str) -> None:
    """Refuse an older commit, which ``load_dataset`` silently takes where a download fails."""
    files = [Path(file["filename"]) for split in loaded.values() for file in split.cache_files]
    stored = {part for file in files for part in file.parts if COMMIT.fullmatch(part)}
    if stored and commit not in stored:
        raise SmolbenchError(
            f"The dataset {dataset_id} was asked for at revision {commit}, but only"
            f" {', '.join(sorted(stored))} could be loaded: try again, or ask for that revision"
            " with `--data.revision`."
        )


def _download_problem(dataset_id: str, error: BaseException) -> str:
    """Sentence for a download that failed for good."""
    if _temporary(error):
        return (
            f"The dataset {dataset_id} could not be downloaded ({_brief(error)}), after"
            f" {len(RETRY_WAITS_S) + 1} attempts: try again later; what arrived is kept."
        )
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return (
            f"No space is left for the dataset {dataset_id} ({_brief(error)}): free some, or set"
            " HF_HOME to a folder with more."
        )
    if isinstance(error, OSError) and error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return (
            f"The dataset {dataset_id} cannot be stored ({_brief(error)}): set HF_HOME to a folder"
            " that is writable."
        )
    return f"The dataset {dataset_id} could not be loaded: {_brief(error)}."


def _temporary(error: BaseException | None) -> bool:
    """Whether a failure, or one that it came from, is of the network and may pass."""
    while error is not None:
        status = _status(error)
        if status is not None:
            return status in (408, 429) or status >= 500
        library = type(error).__module__.split(".")[0]
        if library in ("httpx", "httpx2", "httpcore", "httpcore2", "requests", "urllib3"):
            return True
        if isinstance(error, ConnectionError | TimeoutError):
            return True
        error = error.__cause__ or error.__context__
    return False


def _status(error: BaseException) -> int | None:
    """HTTP status of the answer that an error is about."""
    status = getattr(getattr(error, "response", None), "status_code", None)
    return status if isinstance(status, int) else None


def _brief(error: BaseException) -> str:
    """First line of an error, without its full stop."""
    lines = str(error).strip().splitlines()
    return (lines[0] if lines else type(error).__name__).rstrip(".")
