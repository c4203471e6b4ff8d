"""The rows that a run was made of, known by their content wherever they stand in a file.

A row is known by keys of 64 bits: of its text, and of text and label (or whatever else belongs to
the text). White space around a text counts for neither; a third key, in which it does, says whether
a tokenizer would see the same. Of rows that stand several times the first copy is the first, the
second the second: as many are found again as there were.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from smolbench.data.columns import column_numbers, column_values
from smolbench.errors import SmolbenchError
from smolbench.utils.digest import LENGTH
from smolbench.utils.files import rename_when_on_disk

if TYPE_CHECKING:
    from datasets import Dataset

Keys = npt.NDArray[np.uint64]
Numbers = npt.NDArray[np.int64]
FILE_NAME = "rows.npz"
_FORMAT = 1


def among(keys: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Which keys stand among others, bool, of the shape of ``keys``.

    By sorting: numpy 2.0's table of numbers overflows for keys of 64 bits that lie close together.
    """
    return np.isin(keys, known, kind="sort")


@dataclass(frozen=True)
class RowKeys:
    """Rows in their order.

    Attributes:
        texts: Keys of the texts alone, shape ``(N,)``.
        rows: Keys of text and label, shape ``(N,)``.
        exact: The same with white space around texts, shape ``(N,)``; ``None`` in runs of earlier
            versions.
    """

    texts: Keys
    rows: Keys
    exact: Keys | None = None

    def __len__(self) -> int:
        return len(self.texts)

    def __getitem__(self, chosen: npt.NDArray[Any]) -> RowKeys:
        exact = None if self.exact is None else self.exact[chosen]
        return RowKeys(self.texts[chosen], self.rows[chosen], exact)

    @classmethod
    def of(cls, examples: Dataset, content: Sequence[str]) -> RowKeys:
        """Keys of examples.

        Args:
            examples: Rows with the columns of ``content``, and ``label`` where there are any.
            content: Columns that make an example what it is; the first holds the text.
        """
        columns = (map(str, column_values(examples, column)) for column in content)
        parts, exact = map(list, zip(*map(_both_keys, columns), strict=True))
        if "label" in examples.column_names:
            numbers, places = np.unique(column_numbers(examples, "label"), return_inverse=True)
            names = getattr(examples.features["label"], "names", None)
            called = [names[number] if names else str(number) for number in numbers]
            labels = text_keys(called)[places]
            parts.append(labels)
            exact.append(labels)
        return cls(parts[0], _mixed(*parts), _mixed(*exact))

    @classmethod
    def joined(cls, *parts: RowKeys) -> RowKeys:
        """Rows behind each other."""
        exact = [part.exact for part in parts if part.exact is not None]
        return cls(
            np.concatenate([part.texts for part in parts]),
            np.concatenate([part.rows for part in parts]),
            np.concatenate(exact) if len(exact) == len(parts) else None,
        )

    @property
    def digest(self) -> str:
        """Digest of the rows and their order."""
        return _digest(self.rows)

    def places_in(self, others: RowKeys) -> Numbers:
        """Where each row stands among others, shape ``(N,)``; -1 where it does not.

        If there is one with the same white space around its text, it is that one.
        """
        if self.exact is None or others.exact is None:
            return _found(self.rows, others.rows)
        places = _found(self.exact, others.exact)
        left = np.flatnonzero(places < 0)
        free = np.ones(len(others), bool)
        free[places[places >= 0]] = False
        numbers = np.flatnonzero(free)
        at = _found(self.rows[left], others.rows[numbers])
        places[left[at >= 0]] = numbers[at[at >= 0]]
        return places

    def n_respaced(self, others: RowKeys, places: Numbers) -> int:
        """How many rows have other white space around their texts where they stand now.

        Args:
            others: The rows as they are now.
            places: Where each row stands among them, from :meth:`places_in`.
        """
        if self.exact is None or others.exact is None:
            return 0
        found = places >= 0
        return int((self.exact[found] != others.exact[places[found]]).sum())


@dataclass(frozen=True)
class Repeats:
    """What stands more than once.

    Attributes:
        duplicates: Training rows whose text an earlier one has.
        overlap: Test rows whose text stands among the training rows.
        two_labels: Texts of training rows that have more than one label.
        n_seen: Training rows, those of validation among them.
        n_test: Test rows.
    """

    duplicates: int
    overlap: int
    two_labels: int
    n_seen: int
    n_test: int

    @classmethod
    def among(cls, seen: RowKeys, test: RowKeys) -> Repeats:
        """Count them.

        Args:
            seen: Rows to train and to validate on.
            test: Rows to test on.
        """
        order = np.argsort(seen.texts)  # once: of millions each takes its time
        texts, rows = seen.texts[order], seen.rows[order]
        again = texts[1:] == texts[:-1]
        other_label = texts[1:][again & (rows[1:] != rows[:-1])]
        at = np.minimum(np.searchsorted(texts, test.texts), max(len(texts) - 1, 0))
        overlap = int((texts[at] == test.texts).sum()) if len(texts) else 0
        two_labels = len(np.unique(other_label))
        return cls(int(again.sum()), overlap, two_labels, len(seen), len(test))

    def said(self, *, labelled: bool) -> str | None:
        """In one line what has to be known of a score; ``None`` if nothing stands twice.

        Args:
            labelled: Whether what belongs to a text is its class, of which there should be one.
        """
        parts = []
        if self.overlap:
            parts.append(
                f"{self.overlap:,} of {self.n_test:,} test rows have a text that also stands in "
                "the training rows"
            )
        if self.duplicates:
            parts.append(
                f"{self.duplicates:,} of {self.n_seen:,} training rows are duplicates of an "
                "earlier text"
            )
        if self.two_labels and labelled:
            parts.append(f"{self.two_labels:,} training texts stand there with several labels")
        return "; ".join(parts) + "." if parts else None


@dataclass(frozen=True)
class KeptRows:
    """The rows of a run.

    Attributes:
        train: Those it is trained on, in their order.
        val: Those it is validated on.
        test: All that its test rows are drawn from.
        drawn: Which of these it is tested on, shape ``(N,)``.
        n_all: Rows that the data had in all.
    """

    train: RowKeys
    val: RowKeys
    test: RowKeys
    drawn: Numbers
    n_all: int

    @property
    def seen(self) -> RowKeys:
        """The rows that training and validation have seen."""
        return RowKeys.joined(self.train, self.val)

    @property
    def repeats(self) -> Repeats:
        """What stands more than once among them."""
        return Repeats.among(self.seen, self.test[self.drawn])

    @property
    def digests(self) -> dict[str, str]:
        """Digests of the rows of each split and their order, by the keys of results."""
        return {
            "data/train_rows": self.train.digest,
            "data/val_rows": self.val.digest,
            "data/test_rows": self.test[self.drawn].digest,
        }

    @property
    def digest(self) -> str:
        """Digest of all that the file says."""
        return _digest(*self._arrays().values())

    def _arrays(self) -> dict[str, npt.NDArray[Any]]:
        keys = {"train": self.train, "val": self.val, "test": self.test}
        exact = {n: part.exact for n, part in keys.items() if part.exact is not None}
        return {
            "format": np.array([_FORMAT], np.int64),
            **{f"{name}_texts": part.texts for name, part in keys.items()},
            **{f"{name}_rows": part.rows for name, part in keys.items()},
            **{f"{name}_exact": column for name, column in exact.items()},
            "drawn": self.drawn,
            "n_all": np.array([self.n_all], np.int64),
        }

    def write(self, folder: Path) -> None:
        """Write the file into a run's folder."""
        temporary = folder / f"{FILE_NAME}.partial"
        save: Any = np.savez  # typed as if an option of it might be meant
        with temporary.open("wb") as file:
            save(file, **self._arrays())
        rename_when_on_disk(temporary, folder / FILE_NAME)


def read_kept_rows(folder: Path) -> KeptRows | None:
    """Read the file in a run's folder; ``None`` where there is none.

    Raises:
        SmolbenchError: If it is damaged.
    """
    path = folder / FILE_NAME
    try:
        with np.load(path, allow_pickle=False) as found:
            arrays = {name: found[name] for name in found.files}
        train, val, test = (
            RowKeys(arrays[f"{name}_texts"], arrays[f"{name}_rows"], arrays.get(f"{name}_exact"))
            for name in ("train", "val", "test")
        )
        if int(arrays["format"][0]) != _FORMAT:
            raise ValueError("another format")
        return KeptRows(train, val, test, arrays["drawn"], int(arrays["n_all"][0]))
    except FileNotFoundError:
        return None
    except Exception as error:  # a damaged archive fails in many ways
        raise SmolbenchError(
            f"{path}, which says what the run was trained on, is damaged or of another version of "
            f"smolbench ({' '.join(str(error).split())}): put it back, or train anew."
        ) from error


def text_keys(texts: Iterable[str]) -> Keys:
    """A key of 64 bits per text, shape ``(N,)``; white space around it does not count.

    Two of ten million texts share one by chance with a probability of 3 in a million.
    """
    return _both_keys(texts)[0]


def _both_keys(texts: Iterable[str]) -> tuple[Keys, Keys]:
    """Keys of texts without white space around them, and with it, each of shape ``(N,)``."""
    bare, exact = bytearray(), bytearray()
    for text in texts:
        stripped = text.strip()
        key = _hashed(stripped)
        bare += key
        exact += key if len(stripped) == len(text) else _hashed(text)
    return tuple(np.frombuffer(raw, "<u8").astype(np.uint64) for raw in (bare, exact))  # type: ignore[return-value]


def _hashed(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), digest_size=8).digest()


def _found(rows: Keys, others: Keys) -> Numbers:
    """Where each key stands among others, each copy at another place; -1 where it does not."""
    wanted, there = _copies_apart(rows), _copies_apart(others)
    if not len(there):
        return np.full(len(wanted), -1)
    order = np.argsort(there)
    at = order[np.minimum(np.searchsorted(there, wanted, sorter=order), len(there) - 1)]
    return np.where(there[at] == wanted, at, -1)


def _mixed(*parts: Keys) -> Keys:
    """One key for several of the same row; their order counts."""
    mixed = np.zeros(len(parts[0]), np.uint64)
    for part in parts:
        mixed = (mixed ^ (mixed >> np.uint64(29))) * np.uint64(0xBF58476D1CE4E5B9) ^ part
    return mixed


def _copies_apart(keys: Keys) -> Keys:
    """Keys in which the second copy of a row is another than the first, and so on."""
    order = np.argsort(keys, kind="stable")
    ordered = keys[order]
    begins = np.ones(len(keys), bool)
    begins[1:] = ordered[1:] != ordered[:-1]
    starts = np.flatnonzero(begins)
    copies = np.empty(len(keys), np.uint64)
    copies[order] = np.arange(len(keys)) - np.repeat(starts, np.diff([*starts, len(keys)]))
    return _mixed(keys, copies)


def _digest(*arrays: npt.NDArray[Any]) -> str:
    state = hashlib.sha256()
    for array in arrays:
        state.update(len(array).to_bytes(8, "little"))
        state.update(np.ascontiguousarray(array, array.dtype.newbyteorder("<")).tobytes())
    return state.hexdigest()[:LENGTH]
