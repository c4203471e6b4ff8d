"""What the parts of a run ask of each other; each protocol may be met or left out.

A DataModule asks a LightningModule how examples become batches, a callback asks module, data and
other callbacks what they have to say. None of them needs a base class of smolbench for it: whatever
has the methods takes part, see :func:`offered`.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar, cast

if TYPE_CHECKING:  # no class here is an option; the data modules import this file
    import numpy as np
    import torch

    from smolbench.data.batching import Rows
    from smolbench.data.kept_rows import KeptRows
    from smolbench.data.token_cache import TokenTable

Part = TypeVar("Part")


def offered(one: object, part: Callable[..., Part]) -> Part | None:
    """An object as what it takes part as; ``None`` if it lacks something of the protocol.

    Unlike ``isinstance`` with a protocol it wants methods to be callable: a module of somebody
    else's may well have a list ``predictions`` or a tensor ``samples``.

    Args:
        one: A LightningModule, DataModule, callback or anything else.
        part: A protocol of this file.
    """
    methods = [n for n, own in vars(part).items() if callable(own) and not n.startswith("_")]
    values = inspect.get_annotations(part)
    if not all(callable(getattr(one, name, None)) for name in methods):
        return None
    return cast("Part", one) if all(hasattr(one, name) for name in values) else None


# -- what a DataModule asks of a LightningModule -----------------------------------------------


class Encodes(Protocol):
    """Says how an example becomes token ids; without it the DataModule is given ``encode=``."""

    def encode(self, examples: Mapping[str, Sequence[Any]]) -> Mapping[str, Sequence[Any]]:
        """A batch of examples, as columns, to columns of token ids and numbers."""


class NamesEncoding(Protocol):
    """Names its encoding exactly, so that token ids are kept from run to run."""

    def encoder_key(self) -> Mapping[str, Any] | None:
        """Everything that ``encode`` depends on, as plain JSON; ``None`` keeps nothing."""


class OfKind(Protocol):
    """Learns from one kind of example."""

    kind: str
    """``classification``, ``summarization`` or ``multiple_choice``."""


class Pads(Protocol):
    """Has a token that fills short rows; 0 is taken without it."""

    pad_token_id: int


class MakesRows(Protocol):
    """Learns from something else than token ids, such as features of a frozen network."""

    def rows(self, split: str, table: TokenTable, labels: np.ndarray | None) -> Rows:
        """Rows of a split, from its token ids and labels ``(N,)``."""


class TriesBatches(Protocol):
    """Finds out how much fits into memory, for ``batch_size`` ``auto``."""

    def largest_batch(self, rows: Rows, effective: int) -> int:
        """The most examples per step that fit, a divisor of ``effective``."""


# -- what a task asks of a DataModule ----------------------------------------------------------


class NamesLabels(Protocol):
    """Names the classes that its labels are numbers of."""

    label_names: Sequence[str] | None


class ComparesBy(Protocol):
    """Says by which metric classifiers of its texts are compared."""

    chosen_label: str | None
    """The positive class, if it was chosen; known before any data is read."""
    positive_label: str | None
    """The class that precision, recall and F1 are of; ``None`` leaves them out."""
    ranked_by: str
    """``accuracy``, ``f1`` of the positive class, or ``f1_macro``."""


# -- what a callback asks of module, data and other callbacks ----------------------------------


class HasFacts(Protocol):
    """Has something to say in ``results.json``."""

    def facts(self) -> Mapping[str, Any]:
        """Flat, with plain values."""


class KeepsRows(Protocol):
    """Knows which rows a training is made of, for ``rows.npz``."""

    def kept_rows(self) -> KeptRows | None:
        """Those of training, validation and test, by their content; ``None`` if not known."""


class NamesLogged(Protocol):
    """Knows what it has logged in which stage, whatever the names are."""

    logged_names: dict[str, set[str]]
    """By ``train`` (of a step), ``train_epoch``, ``val`` and ``test``, and for ``no_logger``."""


class Predicts(Protocol):
    """Has columns for ``predictions.parquet``."""

    def predictions(self) -> Mapping[str, Any] | None:
        """One value per row of the test split each; ``None`` if nothing was tested."""


class ShowsSamples(Protocol):
    """Has texts for ``samples.json``."""

    def samples(self) -> list[dict[str, str | None]] | None:
        """See :mod:`smolbench.runs.samples`."""


class Answers(Protocol):
    """Takes texts one by one, so that their latency can be measured."""

    def start_answering(self) -> Callable[[Sequence[str]], torch.Tensor]:
        """Load what is needed; texts, ``B`` of them, to a tensor on the host."""


class HasTexts(Protocol):
    """Has texts that can be asked for."""

    def texts(self, name: Any) -> Sequence[str]:  # noqa: ANN401 - a DataModule's own names
        """Texts of a split, such as ``test``."""


class StepsOnFeatures(Protocol):
    """May train on outputs of a frozen network, whose throughput is not the network's."""

    steps_on_cached_features: bool


@dataclass(frozen=True)
class ReadAhead:
    """What a frozen network has read of a split before the split's batches come.

    Attributes:
        samples: Rows.
        tokens: Real tokens in them.
        seconds: What the network took, warm, when it read them: a cache may have kept its outputs.
    """

    samples: int
    tokens: int
    seconds: float


class ReadsAhead(Protocol):
    """Says what its steps on cached features leave out."""

    def read_ahead(self, split: str) -> ReadAhead | None:
        """Of ``train``, ``val`` or ``test``; ``None`` if no network has read it."""


class WarmsUp(Protocol):
    """Can run its network once before a clock starts."""

    def warm_up(self, batch: Any) -> None:  # noqa: ANN401 - a LightningModule's own
        """Run the network on a batch of the split as a test does, keeping nothing of it."""


class HasMiddle(Protocol):
    """A loader that can give a batch without being iterated over."""

    def middle(self) -> Any:  # noqa: ANN401 - a loader's own
        """The batch in the middle of this rank's."""


class Monitored(Protocol):
    """Watches a metric, or has one that says which state is the best."""

    monitor: Any
    """Of a callback the metric's name, of a LightningModule that and ``min`` or ``max``."""


class Validates(Protocol):
    """Knows what its validations measure before one has run."""

    def validated(self) -> Sequence[str]:
        """Names of metrics, without ``val/``; not every validation need log all of them."""
