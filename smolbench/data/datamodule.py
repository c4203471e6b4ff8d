"""The base of all DataModules: source -> examples -> token cache -> batches.

A DataModule knows its dataset and nothing of any model. How an example becomes token ids is said by
the LightningModule it is used with (its ``encode`` method), or by the ``encode`` argument.
"""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
import numpy.typing as npt
from lightning.pytorch import LightningDataModule, LightningModule

from smolbench import identity
from smolbench.data.batching import BatchLoader, BatchPlan, Plan, Rows, TokenRows
from smolbench.data.columns import column_digest, column_numbers, column_values
from smolbench.data.hub import Source, Split, select
from smolbench.data.kept_rows import KeptRows, Repeats, RowKeys
from smolbench.data.run_rows import OfRun, found_again, unseen_rows
from smolbench.data.token_cache import EncodeFn, TokenTable, encode_to_cache
from smolbench.data.whole_splits import refuse_batch_limits
from smolbench.errors import SmolbenchError
from smolbench.protocols import (
    Encodes,
    MakesRows,
    NamesEncoding,
    OfKind,
    Pads,
    TriesBatches,
    offered,
)
from smolbench.utils.digest import digest, text_digest
from smolbench.utils.files import cache_root
from smolbench.utils.notices import warn
from smolbench.utils.ranks import Ranks, TrainerRanks

# No `if TYPE_CHECKING:` here: jsonargparse runs such blocks of the modules whose classes are
# options, and every start of the command line would wait for what they import.

SplitName = Literal["train", "val", "test", "predict"]
SourceName = Literal["hub", "sample"]


Numbers = npt.NDArray[np.int64]
VAL_FRACTION = 0.1
"""Share of the training rows that is held out for validation, if nothing else is said."""


def require_values(cls: type, *names: str) -> None:
    """Refuse a subclass that has not set what its base class only declares.

    Raises:
        SmolbenchError: Naming what is missing.
    """
    if missing := [name for name in names if not hasattr(cls, name)]:
        raise SmolbenchError(
            f"{cls.__name__} is incomplete, it does not set {', '.join(missing)}: set what is "
            "missing in the class, as its base class says."
        )


@dataclass(frozen=True)
class _Drawn:
    """Which rows a split has: those of ``dataset`` with the numbers ``rows``.

    ``pool`` are those that they were drawn from, ``numbers`` what they are known by.
    """

    dataset: Any
    pool: Numbers
    rows: Numbers
    numbers: Numbers
    limited: bool


class BaseDataModule(LightningDataModule, ABC):
    """What the DataModules of every kind of example share.

    A dataset says in :meth:`load_hub` and :meth:`load_sample` where its rows come from, a kind of
    example what its rows must hold and how they are split; everything else (limits, encoding,
    caching, batching) is done here.

    Args:
        source: ``hub``: the dataset on the Hugging Face Hub; ``sample``: small built-in data of
            the same form, for trying things out with no network.
        revision: Branch, tag or commit of the dataset on the Hub.
        batch_size: Examples per step and device in training. Batches of an epoch differ by at most
            one example, so none is much smaller than the others. ``auto``: the most that fit into
            memory; ``effective_batch_size`` is kept by accumulating gradients.
        effective_batch_size: Examples per optimiser step, over all devices, for ``batch_size``
            ``auto``; 32 if not given.
        eval_batch_size: Examples per step and device in evaluation; ``batch_size`` if not given,
            with ``auto`` 32.
        val_fraction: Share of the training rows that is held out for validation. ``0`` trains on
            all of them: without validation rows of the dataset's own nothing is monitored and the
            last state is the best. Another share than the usual is refused where there are such.
        limit_train: Use at most this many training examples.
        limit_val: Use at most this many validation examples.
        limit_test: Use at most this many test examples.
        limit_mode: ``stratified``: a seeded subset with the shares of the classes, or of what the
            kind of example has instead; ``head``: the first, as lm_eval's ``--limit``.
        split_seed: Seed of the split and of the subsets.
        num_workers: Processes that prepare batches; 0 prepares them in the main process.
        cache_dir: Folder for token ids and frozen features; default ``~/.cache/smolbench``.
        encode: How a batch of examples becomes columns of token ids, where the LightningModule does
            not say. It is called with columns, ``encode({"text": [...]})`` for texts, without the
            labels, and returns ``{"input_ids": [[...], ...], ...}``. With an attribute ``key`` (a
            mapping of plain values that changes whenever its result would) the ids are cached on
            disk; else they are encoded anew in every process.
    """

    kind: ClassVar[str]
    """Kind of example: ``classification``, ``summarization`` or ``multiple_choice``."""
    content: ClassVar[tuple[str, ...]]
    """Columns that make an example what it is; repetitions are counted by the first."""

    def __init__(
        self,
        *,
        source: SourceName = "hub",
        revision: str | None = None,
        batch_size: int | Literal["auto"] = 32,
        effective_batch_size: int | None = None,
        eval_batch_size: int | None = None,
        val_fraction: float = VAL_FRACTION,
        limit_train: int | None = None,
        limit_val: int | None = None,
        limit_test: int | None = None,
        limit_mode: Literal["stratified", "head"] = "stratified",
        split_seed: int = 0,
        num_workers: int = 0,
        cache_dir: str | None = None,
        encode: Callable[[Mapping[str, Sequence[Any]]], Mapping[str, Sequence[Any]]] | None = None,
    ) -> None:
        super().__init__()
        require_values(type(self), "kind", "content")
        for name, value in (
            ("batch_size", None if batch_size == "auto" else batch_size),
            ("effective_batch_size", effective_batch_size),
            ("eval_batch_size", eval_batch_size),
            ("limit_train", limit_train),
            ("limit_val", limit_val),
            ("limit_test", limit_test),
        ):
            if value is not None and value < 1:
                raise SmolbenchError(f"data.{name} must be at least 1, but is {value}.")
        if not 0 <= val_fraction < 1:
            raise SmolbenchError(f"data.val_fraction must be in [0, 1), but is {val_fraction}.")
        if num_workers < 0:
            raise SmolbenchError(f"data.num_workers must not be negative, but is {num_workers}.")
        self.source: SourceName = source
        self.revision = revision
        if effective_batch_size is not None and batch_size != "auto":
            raise SmolbenchError(
                "data.effective_batch_size is for data.batch_size auto; with a batch size of your "
                "own, trainer.accumulate_grad_batches sets it."
            )
        self.batch_size: int | Literal["auto"] = batch_size
        self.effective_batch_size = effective_batch_size or 32
        self.eval_batch_size = eval_batch_size or (32 if batch_size == "auto" else batch_size)
        self._found_batch_size: int | None = None
        self.val_fraction = val_fraction
        self.limits = {"train": limit_train, "val": limit_val, "test": limit_test}
        self.limit_mode: Literal["stratified", "head"] = limit_mode
        self.split_seed = split_seed
        self.num_workers = num_workers
        self.cache_dir = cache_root(cache_dir)
        self._encode = encode
        self._source: Source | None = None
        self._splits: dict[str, Split] = {}
        self._facts: dict[str, Any] = {}
        self._draws: dict[str, _Drawn] = {}
        self._held_out: tuple[Numbers, Numbers] | None = None
        self._keys: dict[int, tuple[Any, RowKeys]] = {}
        self._run: OfRun | None = None
        self._kept: KeptRows | None = None
        self._repeats: Repeats | None = None
        self._temporary: list[Path] = []
        self._unprepared: Exception | None = None
        self.part_of: Callable[[str, BatchPlan], Plan] | None = None
        """Given where a run is only estimated: takes a part of a split's batches."""

    # -- what a dataset says ----------------------------------------------------------------------

    @abstractmethod
    def load_hub(self) -> Source:
        """Rows from the Hub, with splits ``train`` and ``test`` and the columns of the kind."""

    @abstractmethod
    def load_sample(self) -> Source:
        """Built-in rows in the same form."""

    # -- what a kind of example says --------------------------------------------------------------

    @abstractmethod
    def check(self, source: Source) -> None:
        """Refuse rows that cannot be learned from.

        Raises:
            SmolbenchError: Naming the split and the row.
        """

    def check_training_rows(self, source_id: str, labels: Numbers | None) -> None:
        """Refuse a training split, as it is after the limit, that there is nothing to learn from.

        Raises:
            SmolbenchError: Saying why.
        """

    def strata(self, source: Source, split: str) -> Numbers | None:
        """Groups whose shares a limited split keeps, shape ``(N,)``; ``None`` for none."""
        return None

    @abstractmethod
    def hold_out(self, source: Source) -> tuple[Numbers, Numbers]:
        """Divide the split ``train``: numbers of the rows to train and to validate on."""

    # -- examples ---------------------------------------------------------------------------------

    def _loaded(self) -> Source:
        if self._source is None:
            source = self.load_sample() if self.source == "sample" else self.load_hub()
            self.check(source)
            self._describe(source)
            self._source = source
        return self._source

    def _describe(self, source: Source) -> None:
        self._facts = {
            "data/id": source.id,
            "data/revision": source.revision,
            "data/split_seed": self.split_seed,
            **{f"data/limit_{name}": limit for name, limit in self.limits.items()},
            **source.facts,
        }
        if self._run is not None:
            self._run.tell_unknown(source)
            self._facts["data/revision"] = self._run.revision_of(source)

    def split(self, name: SplitName) -> Split:
        """Examples of a split, after the limit; of a run's data its own rows.

        Raises:
            SmolbenchError: If the split is empty, there is nothing to learn from it, or there is
                nothing to predict.
        """
        if name not in self._splits:
            if name == "predict":
                raise SmolbenchError(self._nothing_to_predict())
            drawn = self._drawn(name)
            source_id, rows, dataset = self._loaded().id, drawn.rows, drawn.dataset
            if drawn.limited:
                self._facts[f"data/n_{name}_unlimited"] = len(drawn.pool)
            if not len(rows) and name != "val":
                raise SmolbenchError(f"The {name} split of {source_id} is empty.")
            labels = None
            if "label" in dataset.column_names:
                labels = column_numbers(dataset, "label")[rows]
            if name == "train":
                self.check_training_rows(source_id, labels)
            self._splits[name] = Split(dataset.select(rows), labels)
            self._facts[f"data/n_{name}"] = len(rows)
            if name == "test":
                examples = self._splits[name].examples
                columns = [column_values(examples, column) for column in self.content]
                self._facts["data/test_digest"] = text_digest(
                    "\0".join(map(str, parts))
                    for parts in zip(drawn.numbers, *columns, strict=True)
                )
        return self._splits[name]

    def _drawn(self, name: SplitName) -> _Drawn:
        """Which rows a split has; see :meth:`split`."""
        if name not in self._draws:
            self._draws[name] = self._draw(name)
        return self._draws[name]

    def _draw(self, name: SplitName) -> _Drawn:
        source = self._loaded()
        # a dataset with validation rows of its own is not split
        own = {"train": "train", "val": "validation", "test": "test"}[name]
        own = own if own in source.splits else "train"
        dataset, limit = source.splits[own], self.limits[name]
        pool = numbers = np.arange(len(dataset))
        run = self._run if self._run is not None and not self._run.goes_on else None
        if run is not None and run.kept is not None and name == "test" and run.other_test:
            pool = unseen_rows(dataset, self.content, run.kept)
        elif run is not None and run.kept is not None:
            kept = run.kept
            dataset, numbers = found_again(name, source, self.content, kept)
            source = Source({**source.splits, own: dataset}, source.id, source.revision)
            pool = np.arange(len(dataset))
            if name != "test" or limit == run.limit_test:
                drawn = pool if name != "test" else np.flatnonzero(np.isin(numbers, kept.drawn))
                return _Drawn(dataset, pool, drawn, numbers[drawn], limit is not None)
        elif name != "test" and "validation" not in source.splits:
            if self.val_fraction > 0:
                self._held_out = self._held_out or self.hold_out(source)
                pool = self._held_out[0 if name == "train" else 1]
            elif name == "val":
                pool = pool[:0]
        strata = None
        if limit is not None and limit < len(pool) and self.limit_mode == "stratified":
            strata = self.strata(source, own)
            strata = None if strata is None else strata[pool]
        rows = pool[select(pool, limit, strata, self.limit_mode, self.split_seed)]
        return _Drawn(dataset, pool, rows, numbers[rows], limit is not None)

    # -- what a run is made of -------------------------------------------------------------------

    def of_run(self, run: OfRun) -> None:
        """Read the rows of a run, wherever they stand now; to be called before anything is read.

        Args:
            run: What is known of the run, and whether it goes on.
        """
        self._run = run
        self.revision = run.commit or self.revision

    @property
    def by_rows(self) -> bool:
        """Whether splits are drawn row by row, as by versions whose runs did not keep their rows.

        Data of a user's own is split text by text: equal texts are on one side.
        """
        return self._run is not None and self._run.kept is None

    def row_keys(self, rows: Any, known: RowKeys | None = None) -> RowKeys:  # noqa: ANN401
        """Keys of all rows of a split of the source, found out once.

        Args:
            rows: A ``datasets.Dataset``.
            known: Its keys, where they are known.
        """
        if id(rows) not in self._keys:  # kept with the rows, so that none gets the same id
            self._keys[id(rows)] = rows, known or RowKeys.of(rows, self.content)
        return self._keys[id(rows)][1]

    def kept_rows(self) -> KeptRows | None:
        """The rows that a training is made of; ``None`` before :meth:`setup` for one."""
        return self._kept

    def _keep(self) -> None:
        """Find out which rows a training is made of, and refuse to go on with other ones."""
        if self._kept is not None:
            return
        source, keys, drawn = self._loaded(), {}, {}
        names: tuple[SplitName, ...] = ("train", "val", "test")
        for name in names:
            drawn[name] = self._drawn(name)
            chosen = drawn[name].pool if name == "test" else drawn[name].rows
            few = 2 * len(chosen) < len(drawn[name].dataset)
            keys[name] = (
                RowKeys.of(drawn[name].dataset.select(chosen), self.content)
                if few and id(drawn[name].dataset) not in self._keys
                else self.row_keys(drawn[name].dataset)[chosen]
            )
        n_all = sum(map(len, source.splits.values()))
        kept = KeptRows(**keys, drawn=drawn["test"].rows, n_all=n_all)
        if (run := self._run) is not None:
            if run.kept is not None and run.moved(source, kept, self.content):
                for name in ("train", "val"):
                    dataset, _ = found_again(name, source, self.content, run.kept)
                    rows = np.arange(len(dataset))
                    self._draws[name] = replace(drawn[name], dataset=dataset, rows=rows)
            else:
                run.refuse_other(source, kept, self.content)
            kept = run.kept or kept
        self._kept = kept
        self._facts |= kept.digests
        self._count(kept.repeats, tell=True)

    def _count_repeats(self, *, tell: bool) -> None:
        """Find out what stands more than once where nothing is trained."""
        if self._repeats is not None:
            return
        kept = None if self._run is None else self._run.kept
        if kept is None:
            splits = self._loaded().splits
            parts = [splits[name] for name in ("train", "validation") if name in splits]
            seen = RowKeys.joined(*map(self.row_keys, parts))
            test = self.row_keys(splits["test"])
        else:
            seen, test = kept.seen, kept.test[kept.drawn]
            self._facts |= kept.digests
        if "test" in self._splits:
            scored = RowKeys.of(self._splits["test"].examples, self.content)
            self._facts["data/test_rows"] = scored.digest
            test = scored if kept is not None else test
        self._count(Repeats.among(seen, test), tell=tell)

    def _count(self, repeats: Repeats, *, tell: bool) -> None:
        """Note what stands more than once, and say it."""
        self._repeats = repeats
        self._facts["data/duplicates"] = repeats.duplicates
        self._facts["data/overlap"] = repeats.overlap
        labelled = self.kind == "classification"  # a text may well have several summaries
        if labelled:
            self._facts["data/two_labels"] = repeats.two_labels
        if tell and (line := repeats.said(labelled=labelled)) is not None:
            warn(line)

    def _nothing_to_predict(self) -> str:
        """Why there is no split ``predict``, as a sentence."""
        return f"{type(self).__name__} has nothing to predict: its examples are there to test on."

    # -- token ids --------------------------------------------------------------------------------

    def prepare_data(self) -> None:
        """Download and encode, on one process per node.

        With several processes an error is kept until :meth:`setup`, where all hear of it: here the
        others wait in a barrier of Lightning's, and would go on from it as if nothing had happened.
        """
        stage = self.trainer.state.fn if self.trainer is not None else None
        try:
            self._make_ready(str(stage.value) if stage is not None else "fit")
        except Exception as error:
            if self._ranks.world_size == 1:
                raise
            self._unprepared = error

    def setup(self, stage: str) -> None:
        """Make the stage's splits ready: loaded, limited and encoded.

        Raises:
            SmolbenchError: On all processes, also for what one of them has met.
        """
        with self._ranks.together():
            unprepared, self._unprepared = self._unprepared, None
            if unprepared is not None:
                raise unprepared
            self._make_ready(stage)

    @property
    def _ranks(self) -> Ranks:
        return TrainerRanks(self.trainer) if self.trainer is not None else Ranks()

    def _make_ready(self, stage: str) -> None:
        wanted: dict[str, tuple[SplitName, ...]] = {
            "fit": ("train", "val"),
            "validate": ("val",),
            "test": ("test",),
            "predict": ("predict",),
        }
        if self.trainer is not None and self.part_of is None:
            refuse_batch_limits(stage, vars(self.trainer))
        if stage == "fit":
            self._keep()
        for name in wanted[stage]:
            split = self.split(name)
            if not len(split):
                continue
            encoder = self._encoder_name()
            if split.table is None or split.encoder != encoder:
                split.table, split.encoder = self._encoded(name, split), encoder
        if stage == "test":
            self._count_repeats(tell=True)

    def encoded_by(
        self, name: SplitName, encode: EncodeFn, key: Mapping[str, Any], description: str
    ) -> TokenTable:
        """Token ids of a split by another encoder than the one its batches come from.

        Args:
            name: The split; it must be loaded.
            encode: Turns a batch of examples, as columns, into columns of token ids and numbers.
            key: Everything that ``encode`` depends on, as plain values.
            description: What the progress bar says.
        """
        return self._to_cache(self.split(name), encode, key, description)

    def _encoded(self, name: str, split: Split) -> TokenTable:
        encode, key = self._encoder()
        table = self._to_cache(split, encode, key, f"Encoding {name}")
        # a table in the cache may have been encoded for another network of the same tokenizer
        check = getattr(self.trainer and self.trainer.lightning_module, "check_tokens", None)
        if self._encode is None and callable(check):
            check(table)
        return table

    def _to_cache(
        self, split: Split, encode: EncodeFn, key: Mapping[str, Any] | None, description: str
    ) -> TokenTable:
        # labels are not in the key, so the encoder must not see them
        columns = sorted(set(split.examples.column_names) - {"label"})
        examples = split.examples.select_columns(columns)
        if key is None:
            # an encoder that cannot be named exactly must not be found again by another one
            folder = Path(tempfile.mkdtemp(prefix="smolbench-"))
            self._temporary.append(folder)
            atexit.register(shutil.rmtree, folder, ignore_errors=True)  # used without a Trainer
            name_on_disk = "tokens"
        else:
            folder = self.cache_dir / "tokens"
            content = {column: column_digest(examples, column) for column in columns}
            # what a tokenizer's file means is up to those who read it
            versions = {name: version(name) for name in ("tokenizers", "transformers")}
            name_on_disk = identity.key(
                "cache",
                {
                    "encoder": dict(key),
                    "made_by": versions,
                    "examples": content,
                    "rows": len(split),
                },
            )
        return encode_to_cache(
            folder,
            name_on_disk,
            lambda start, stop: examples[start:stop],
            len(split),
            encode,
            description,
        )

    def _encoder(self) -> tuple[EncodeFn, Mapping[str, Any] | None]:
        """The function that encodes, and its key if its results may be kept."""
        if self._encode is not None:
            return self._encode, getattr(self._encode, "key", None)
        module = self._module()
        if (encodes := offered(module, Encodes)) is None:
            raise SmolbenchError(
                f"{type(module).__name__} does not say how an example becomes token ids: give it a "
                f"method encode(examples), or give {type(self).__name__} the argument encode=."
            )
        if (of_kind := offered(module, OfKind)) is not None and of_kind.kind != self.kind:
            raise SmolbenchError(
                f"{type(module).__name__} learns from {of_kind.kind} examples, but "
                f"{type(self).__name__} has {self.kind} examples."
            )
        named = offered(module, NamesEncoding)
        return encodes.encode, named.encoder_key() if named is not None else None

    def _encoder_name(self) -> object:
        """What token ids are made by, to tell them from another task's."""
        _, key = self._encoder()
        if key is not None:
            return digest(dict(key))
        # one that does not name itself is known by who has it; not held, it may be large
        return self._encode or weakref.ref(self._module())

    def _module(self) -> LightningModule:
        if self.trainer is None:
            raise SmolbenchError(
                f"{type(self).__name__} is not attached to a Trainer yet: pass it to trainer.fit, "
                "or give it the argument encode=."
            )
        return self.trainer.lightning_module

    @property
    def encoded_bytes(self) -> int:
        """What the token ids of the splits so far take on the disk."""
        tables = [split.table for split in self._splits.values()]
        return sum(table.nbytes for table in tables if table is not None)

    # -- batches ----------------------------------------------------------------------------------

    def train_dataloader(self) -> BatchLoader:
        """Batches of the training split, in an order that depends on seed and epoch only."""
        return self._loader("train", None, shuffle=True)

    def val_dataloader(self) -> BatchLoader | list[Any]:
        """Batches of the validation split; none if ``val_fraction`` is 0."""
        if not len(self.split("val")):
            return []
        return self._loader("val", self.eval_batch_size, shuffle=False)

    def test_dataloader(self) -> BatchLoader:
        """Batches of the test split, every example once."""
        return self._loader("test", self.eval_batch_size, shuffle=False)

    def predict_dataloader(self) -> BatchLoader:
        """Batches of the examples that were given to predict."""
        return self._loader("predict", self.eval_batch_size, shuffle=False)

    def _loader(self, name: SplitName, batch_size: int | None, *, shuffle: bool) -> BatchLoader:
        with self._ranks.together():
            self._make_ready({"train": "fit", "val": "validate"}.get(name, name))
            rows = self._rows(name, self._splits[name])
        if batch_size is None:
            batch_size = self._train_batch_size(rows)
        plan = BatchPlan(
            len(rows) if rows.lengths is None else rows.lengths,
            batch_size,
            shuffle=shuffle,
            seed=int(os.environ.get("PL_GLOBAL_SEED", "0")),
            rank=self.trainer.global_rank if self.trainer else 0,
            world_size=self.trainer.world_size if self.trainer else 1,
        )
        chosen = plan if self.part_of is None else self.part_of(name, plan)
        pin = self.trainer is not None and self.trainer.strategy.root_device.type == "cuda"
        return BatchLoader(rows, chosen, num_workers=self.num_workers, pin_memory=pin)

    def _train_batch_size(self, rows: Rows) -> int:
        """Examples per training step; ``auto`` is settled once per run, and then kept."""
        if self.batch_size != "auto":
            return self.batch_size
        module = self._module()
        trainer = module.trainer
        if (tries := offered(module, TriesBatches)) is None:
            raise SmolbenchError(
                f"data.batch_size is 'auto', but {type(module).__name__} cannot try batches: give "
                "a number, or the module a method largest_batch(rows, effective)."
            )
        if trainer.accumulate_grad_batches != 1 and self._found_batch_size is None:
            raise SmolbenchError(
                "data.batch_size 'auto' sets trainer.accumulate_grad_batches itself, which is "
                f"{trainer.accumulate_grad_batches}: leave it at 1 and give "
                "data.effective_batch_size."
            )
        share, rest = divmod(self.effective_batch_size, trainer.world_size)
        if rest or not share:
            raise SmolbenchError(
                f"data.effective_batch_size is {self.effective_batch_size}, which "
                f"{trainer.world_size} devices cannot share evenly: choose a multiple."
            )
        if self._found_batch_size is None:
            self._found_batch_size = tries.largest_batch(rows, share)
        trainer.accumulate_grad_batches = share // self._found_batch_size
        self._facts["data/batch_size"] = self._found_batch_size
        return self._found_batch_size

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run must not find out anew: memory may be scarcer then."""
        return {"batch_size": self._found_batch_size} if self._found_batch_size else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take the batch size of the run that goes on."""
        self._found_batch_size = state_dict["batch_size"]

    def _rows(self, name: str, split: Split) -> Rows:
        assert split.table is not None, "setup has encoded the split"
        module = self.trainer.lightning_module if self.trainer else None
        # a task with a frozen backbone learns from its features instead of from token ids
        if (replaces := offered(module, MakesRows)) is not None:
            if self._encode is not None:
                raise SmolbenchError(
                    f"{type(module).__name__} encodes examples itself: leave out the argument "
                    f"encode= of {type(self).__name__}."
                )
            return replaces.rows(name, split.table, split.labels)
        pads = offered(self._encode if self._encode is not None else module, Pads)
        return TokenRows(split.table, split.labels, pads.pad_token_id if pads is not None else 0)

    # -- the rest ---------------------------------------------------------------------------------

    def teardown(self, stage: str) -> None:
        """Remove token ids that were encoded for this process only."""
        while self._temporary:
            shutil.rmtree(self._temporary.pop(), ignore_errors=True)
            for split in self._splits.values():
                split.table = None

    def facts(self) -> dict[str, Any]:
        """What results say about the data."""
        if self._source is not None:
            self._count_repeats(tell=False)
        return dict(self._facts)
