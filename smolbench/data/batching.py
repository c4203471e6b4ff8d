"""Batches: length-bucketed, the same on every machine, split over ranks, resumable."""

from __future__ import annotations

import atexit
import functools
import mmap
import multiprocessing
import multiprocessing.synchronize
import os
import signal
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Dataset

from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError

IGNORE_LABEL = -100
"""Label of padding: what ``torch.nn.functional.cross_entropy`` leaves out."""

Indices = npt.NDArray[np.int64]


class Rows(Protocol):
    """What a loader draws from.

    Attributes:
        lengths: Tokens per row [N]; None where all rows are alike, such as cached features.
    """

    lengths: Indices | None

    def __len__(self) -> int:
        """Return the number of rows, N."""
        ...

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        """Return the tensors of the rows of these numbers [B]."""
        ...


class TokenRows:
    """Encoded examples as right-padded batches."""

    def __init__(
        self,
        table: TokenTable,
        labels: npt.NDArray[Any] | None,
        pad_token_id: int,
        length_column: str = "input_ids",
    ) -> None:
        """Take the table's columns, and class labels where the table has none.

        Args:
            table: Encoded examples; must have the rows of tokens ``input_ids``.
            labels: Class of each example [N]; None if there are none or the table has them.
            pad_token_id: Fills ``input_ids``.
            length_column: Rows of tokens whose length decides which examples go together.
        """
        if labels is not None and len(labels) != len(table):
            raise ValueError(f"{len(labels)} labels for {len(table)} encoded examples.")
        if labels is not None and ("labels" in table.ragged or "labels" in table.scalars):
            raise ValueError("Labels were given, but the encoded examples have labels already.")
        self.table = table
        self.labels = None if labels is None else np.asarray(labels, dtype=np.int64)
        self.fill = {"input_ids": pad_token_id, "labels": IGNORE_LABEL}
        self.lengths: Indices | None = table.ragged[length_column].lengths

    def __len__(self) -> int:
        """Return the number of examples, N."""
        return len(self.table)

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        """Pad examples into one batch.

        Args:
            rows: Row numbers [B].

        Returns:
            Every column of the table, rows of tokens as int64 [B, T], ``input_ids`` padded with the
            padding token, ``labels`` with -100, others with 0; ``attention_mask`` int64 [B, T], 1
            on tokens of ``input_ids``; ``labels`` int64 [B] where given; ``index`` int64 [B].
        """
        batch = {
            name: torch.from_numpy(column.padded(rows, self.fill.get(name, 0)))
            for name, column in self.table.ragged.items()
        }
        if "attention_mask" not in batch:
            lengths = self.table.ragged["input_ids"].lengths[rows]
            positions = np.arange(batch["input_ids"].shape[1])
            mask = (positions < lengths[:, None]).astype(np.int64)
            batch["attention_mask"] = torch.from_numpy(mask)
        for name, values in self.table.scalars.items():
            batch[name] = torch.from_numpy(values[rows])
        if self.labels is not None:
            batch["labels"] = torch.from_numpy(self.labels[rows])
        batch["index"] = torch.from_numpy(np.array(rows, dtype=np.int64))
        return batch


def pad_rows(rows: Sequence[Sequence[int]], pad_token_id: int) -> dict[str, torch.Tensor]:
    """A few rows of token ids as a right-padded batch, without a table.

    Args:
        rows: Token ids of ``B`` rows.
        pad_token_id: Fills short rows.

    Returns:
        ``input_ids`` and ``attention_mask``, int64 [B, T].
    """
    ids = [torch.tensor(row, dtype=torch.long) for row in rows]
    return {
        "input_ids": pad_sequence(ids, batch_first=True, padding_value=pad_token_id),
        "attention_mask": pad_sequence([torch.ones_like(row) for row in ids], batch_first=True),
    }


class ArrayRows:
    """Rows of arrays, such as cached features and their labels."""

    lengths: Indices | None = None

    def __init__(self, arrays: Mapping[str, npt.NDArray[Any]]) -> None:
        """Take arrays [N, ...] of one number of rows; memory-mapped ones stay on disk."""
        sizes = {name: len(array) for name, array in arrays.items()}
        if len(set(sizes.values())) != 1:
            raise ValueError(f"Arrays with one number of rows are needed, not {sizes}.")
        self.arrays = dict(arrays)

    def __len__(self) -> int:
        """Return the number of rows, N."""
        return len(next(iter(self.arrays.values())))

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        """Gather rows.

        Args:
            rows: Row numbers [B].

        Returns:
            Every array's rows [B, ...] in its own dtype, and ``index`` int64 [B].
        """
        batch = {name: torch.from_numpy(array[rows]) for name, array in self.arrays.items()}
        batch["index"] = torch.from_numpy(np.array(rows, dtype=np.int64))
        return batch

    def __getstate__(self) -> dict[str, Any]:
        """Pickle whole memory-mapped arrays as the place where they are stored."""
        return {"arrays": {name: _MappedPlace.of(array) for name, array in self.arrays.items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Map such arrays again."""
        self.arrays = {
            name: array.open() if isinstance(array, _MappedPlace) else array
            for name, array in state["arrays"].items()
        }


class JoinedRows:
    """Rows with further columns, such as token ids with a teacher's logits."""

    def __init__(self, rows: Rows, columns: ArrayRows) -> None:
        """Take rows, and as many rows of arrays."""
        if len(rows) != len(columns):
            raise ValueError(f"{len(columns)} rows of further columns for {len(rows)} rows.")
        self.rows = rows
        self.columns = columns
        self.lengths = rows.lengths

    def __len__(self) -> int:
        """Return the number of rows, N."""
        return len(self.rows)

    def batch(self, rows: Indices) -> dict[str, torch.Tensor]:
        """Return the tensors of both for the rows of these numbers [B]."""
        return {**self.columns.batch(rows), **self.rows.batch(rows)}


class _MappedPlace:
    """Where a memory-mapped array is stored: pickling the array would copy its contents."""

    def __init__(self, array: np.memmap[Any, Any]) -> None:
        self.filename = str(array.filename)
        self.dtype = array.dtype
        self.shape = array.shape
        self.offset = array.offset
        self.order: Literal["C", "F"] = "C" if array.flags.c_contiguous else "F"

    @classmethod
    def of(cls, array: npt.NDArray[Any]) -> _MappedPlace | npt.NDArray[Any]:
        # a view of a part has the whole's offset, so only a whole array can be opened again
        if isinstance(array, np.memmap) and isinstance(array.base, mmap.mmap):
            return cls(array)
        return array

    def open(self) -> npt.NDArray[Any]:
        array: npt.NDArray[Any] = np.memmap(
            self.filename,
            dtype=self.dtype,
            mode="r",
            offset=self.offset,
            shape=self.shape,
            order=self.order,
        )
        return array


class Plan(Protocol):
    """Which rows come in which batch.

    Attributes:
        n_rows: Rows that there are.
        batch_size: Rows per batch and rank.
        epoch: The current epoch.
    """

    n_rows: int
    batch_size: int
    epoch: int

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch."""
        ...

    def batches(self) -> list[Indices]:
        """Return this rank's batches of the current epoch, each the row numbers [B]."""
        ...

    def __len__(self) -> int:
        """Return this rank's number of batches per epoch."""
        ...


class BatchPlan:
    """The order of one epoch: a pure function of the seed and the epoch's number.

    Shuffled plans are for training. Rows of like length go together: the shuffled rows are taken in
    megabatches, sorted by length inside each, cut into batches, and the batches shuffled. Every row
    comes once per epoch, every rank gets the same number of batches, sizes differ by one row at
    most, and batches that ranks take at the same step are of like length. Plans that are not
    shuffled are for evaluation: the longest rows first, so that a lack of memory shows at once;
    ranks take whole batches of one plan, so predictions do not depend on the number of ranks; only
    where there are fewer batches than ranks are they made smaller.
    """

    def __init__(
        self,
        lengths_or_count: Indices | int,
        batch_size: int,
        *,
        shuffle: bool,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        megabatch: int = 50,
    ) -> None:
        """Describe the plan; it is computed when first asked for.

        Args:
            lengths_or_count: Tokens per row [N], or N where all rows are alike.
            batch_size: Rows per batch and rank. Where training would be left with a batch of one
                row, a few batches hold more: batch normalisation cannot train on one row.
            shuffle: Whether to shuffle.
            seed: Seed of the order.
            rank: This process's number.
            world_size: Number of processes.
            megabatch: Batches whose rows are sorted together.

        Raises:
            SmolbenchError: If the batch size or seed is out of range, or there are fewer rows than
                processes.
        """
        if batch_size < 1:
            raise SmolbenchError(f"The batch size is {batch_size}; it must be 1 or larger.")
        if seed < 0:
            raise SmolbenchError(f"The seed is {seed}; it must be 0 or larger.")
        self._lengths: Indices | None = None
        if isinstance(lengths_or_count, int):
            self.n_rows = lengths_or_count
        else:
            self._lengths = np.asarray(lengths_or_count)
            self.n_rows = len(self._lengths)
        if self.n_rows < world_size:
            raise SmolbenchError(
                f"There are {self.n_rows} examples, fewer than the {world_size} processes that"
                " share them: use more data (the limits of --data) or fewer devices"
                " (--trainer.devices)."
            )
        self.batch_size = batch_size
        self.shuffle = shuffle
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.megabatch = megabatch
        self.epoch = 0
        self._planned: tuple[int, tuple[list[Indices], list[Indices]]] | None = None

    def set_epoch(self, epoch: int) -> None:
        """Go to an epoch; Lightning calls this at the start of each."""
        self.epoch = epoch

    def batches(self) -> list[Indices]:
        """Return this rank's batches of the current epoch, each the row numbers [B]."""
        return self._plan()[1]

    def of_all_ranks(self) -> list[Indices]:
        """Return all ranks' batches of the current epoch: each one's first, then second."""
        return self._plan()[0]

    def _plan(self) -> tuple[list[Indices], list[Indices]]:
        """All batches of the current epoch, and this rank's."""
        epoch = self.epoch if self.shuffle else 0
        if self._planned is None or self._planned[0] != epoch:
            whole = self._training_batches(epoch) if self.shuffle else self._evaluation_batches()
            self._planned = (epoch, (whole, whole[self.rank :: self.world_size]))
        return self._planned[1]

    def sizes(self) -> list[int]:
        """Return the tokens of each of them, padding included; rows where all rows are alike."""
        if self._lengths is None:
            return [len(batch) for batch in self.batches()]
        return [len(batch) * int(self._lengths[batch].max()) for batch in self.batches()]

    def __len__(self) -> int:
        """Return this rank's number of batches per epoch; in training all ranks have the same."""
        return len(range(self.rank, self._n_batches(), self.world_size))

    def _n_batches(self) -> int:
        """Number of batches of all ranks together."""
        wanted = -(-self.n_rows // self.batch_size)
        if not self.shuffle:
            # a rank without a batch would skip the evaluation that the others wait in
            return max(wanted, self.world_size)
        smallest = 2 if self.batch_size > 1 and self.n_rows >= 2 * self.world_size else 1
        per_rank = -(-wanted // self.world_size)
        return min(per_rank, self.n_rows // smallest // self.world_size) * self.world_size

    def _training_batches(self, epoch: int) -> list[Indices]:
        rng = np.random.default_rng([self.seed, epoch])
        order = rng.permutation(self.n_rows)
        count = self._n_batches()
        ends = self._even_ends(count)
        if self._lengths is None:
            return np.split(order, ends[:-1])
        begin = 0
        for last in range(self.megabatch - 1, count + self.megabatch - 1, self.megabatch):
            end = int(ends[min(last, count - 1)])
            part = order[begin:end]
            order[begin:end] = part[np.argsort(self._lengths[part], kind="stable")]
            begin = end
        batches = np.split(order, ends[:-1])
        # neighbours go to different ranks at one step, so that no rank waits for a longer batch
        steps = rng.permutation(count // self.world_size) * self.world_size
        return [batches[first + rank] for first in steps for rank in range(self.world_size)]

    def _evaluation_batches(self) -> list[Indices]:
        if self._lengths is None:
            order = np.arange(self.n_rows)
        else:
            order = np.argsort(-self._lengths.astype(np.int64), kind="stable")
        count = self._n_batches()
        if count * self.batch_size < self.n_rows + self.batch_size:
            return np.split(order, range(self.batch_size, self.n_rows, self.batch_size))
        return np.split(order, self._even_ends(count)[:-1])

    def _even_ends(self, count: int) -> Indices:
        """Ends of ``count`` batches, the first few with one row more, as numpy.array_split cuts."""
        numbers = np.arange(1, count + 1)
        return numbers * (self.n_rows // count) + np.minimum(numbers, self.n_rows % count)


class BatchLoader:
    """Batches in the plan's order, with a position that a checkpoint can hold.

    Wraps a ``DataLoader`` rather than being one: Lightning would put its own sampler into it for
    several ranks and for ``predict``. Lightning calls ``state_dict``, ``load_state_dict`` and
    ``sampler.set_epoch``.
    """

    def __init__(
        self, rows: Rows, plan: Plan, num_workers: int = 0, pin_memory: bool = False
    ) -> None:
        """Join rows and plan.

        Args:
            rows: What to draw from.
            plan: Which rows, in which order.
            num_workers: Processes that prepare batches; 0 prepares them in this one.
            pin_memory: Whether to put batches where a CUDA device reads faster.
        """
        if plan.n_rows != len(rows):
            raise ValueError(f"A plan of {plan.n_rows} rows was given for {len(rows)} rows.")
        self.rows = rows
        self.plan = plan
        self.num_workers = num_workers
        self.pin_memory = pin_memory
        self._epoch = 0  # of the batches counted
        self._yielded = 0  # batches that the consumer got, not those that workers prepared
        self._resume: tuple[int, int] | None = None

    @property
    def sampler(self) -> Plan:
        """The plan, under the name by which Lightning tells it the epoch."""
        return self.plan

    @property
    def batch_sampler(self) -> None:
        """None; Lightning asks every evaluation loader that has a sampler."""
        return

    def __len__(self) -> int:
        """Return this rank's number of batches per epoch."""
        return len(self.plan)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        """Go through the plan's epoch, or through its rest after ``load_state_dict``.

        Which epoch that is, is decided at the first batch and not here: Lightning makes the first
        iterator, and one that it throws away, before it sets the epoch and loads the position.
        """
        epoch, start = self.plan.epoch, 0
        if self._resume is not None and self._resume[0] == epoch:
            start = self._resume[1]
        self._resume = None
        self._epoch, self._yielded = epoch, start
        inner: DataLoader[Any] = DataLoader(
            _Batches(self.rows),
            batch_size=None,
            sampler=self.plan.batches()[start:],
            num_workers=self.num_workers,
            pin_memory=self.pin_memory,
            # the seed that every iterator draws must not come from the random state of the training
            generator=torch.Generator(),
            worker_init_fn=_OutliveSignals(_main_process_ends()) if self.num_workers else None,
        )
        for batch in inner:
            self._yielded += 1
            yield batch

    def middle(self) -> dict[str, torch.Tensor]:
        """Return the batch in the middle of the plan, without moving the position."""
        batches = self.plan.batches()
        return self.rows.batch(batches[len(batches) // 2])

    def state_dict(self) -> dict[str, int]:
        """Return the position: the epoch, the batches that were consumed of it, and of how many."""
        if self._resume is not None:
            epoch, batches = self._resume
        else:
            epoch, batches = self._epoch, self._yielded
        if batches >= len(self):
            epoch, batches = epoch + 1, 0
        return {"epoch": epoch, "batches": batches, "n_batches": len(self)}

    def load_state_dict(self, state_dict: Mapping[str, int]) -> None:
        """Go to a position; the next iteration over that epoch begins there.

        Raises:
            SmolbenchError: If the position is inside an epoch of another number of batches.
        """
        epoch, batches = state_dict["epoch"], state_dict["batches"]
        if batches and state_dict["n_batches"] != len(self):
            raise SmolbenchError(
                f"The checkpoint was saved after batch {batches} of {state_dict['n_batches']} of an"
                f" epoch, but an epoch has {len(self)} batches now: resume with the batch size,"
                " data and number of devices of the checkpoint."
            )
        self._resume = (epoch, batches)
        self.plan.set_epoch(epoch)


@functools.cache
def _main_process_ends() -> multiprocessing.synchronize.Event:
    """An event that is set when this process comes to its end."""
    event = multiprocessing.get_context().Event()
    # registered after multiprocessing's own, and so run before it waits for the workers
    atexit.register(event.set)
    return event


class _OutliveSignals:
    """Keep a worker going when the whole job is told to stop.

    The main process finishes its step and then ends its workers; one that died first would make
    that step fail. At its end the main process sends SIGTERM once more, which must not be ignored:
    it waits for workers that are still there.
    """

    def __init__(self, main_process_ends: multiprocessing.synchronize.Event) -> None:
        self.main_process_ends = main_process_ends

    def __call__(self, worker: int) -> None:
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        signal.signal(signal.SIGTERM, self._end)

    def _end(self, *_: object) -> None:
        if self.main_process_ends.is_set():
            os._exit(0)


class _Batches(Dataset[dict[str, torch.Tensor]]):
    """Rows as the data set that a DataLoader wants, indexed by a batch's row numbers."""

    def __init__(self, rows: Rows) -> None:
        self.rows = rows

    def __getitem__(self, index: Any) -> dict[str, torch.Tensor]:  # noqa: ANN401
        return self.rows.batch(index)
