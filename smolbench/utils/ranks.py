"""The processes of a job, and how an error of one of them ends all."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Any

import torch.distributed

from smolbench.errors import SmolbenchError

if TYPE_CHECKING:
    from lightning.pytorch import Trainer

_TOLD = "_told_to_all_ranks"


class Ranks:
    """One process alone; a subclass that overrides :meth:`gather` connects several.

    Errors travel with whatever the ranks exchange next. A rank that fails inside :meth:`together`
    need not be at the same point as the others for that: they hear of it where they meet it next.
    """

    rank = 0
    local_rank = 0
    """Number of the process on its machine."""
    world_size = 1
    node = 0
    nodes = 1

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - anything that can be pickled
        """Every rank's value, in their order, on every rank; waits until all are here."""
        return [value]

    def barrier(self) -> None:
        """Wait until all ranks are here.

        Raises:
            SmolbenchError: If one of them has failed.
        """
        self.agree(value=True)

    def agree(self, value: bool) -> bool:
        """Rank 0's value, on every rank.

        Raises:
            SmolbenchError: If one of them has failed.
        """
        return self._exchange(None, value)

    @contextmanager
    def together(self) -> Generator[None, None, None]:
        """A part of the job that all ranks go through, or none: they wait for each other behind it.

        Inside it, ranks may meet only through these methods. May be nested.

        Raises:
            SmolbenchError: On ranks that are well, with the sentence of the first one that is not.
                The failed one's own error goes on as it is.
        """
        try:
            yield
        except Exception as error:
            if not getattr(error, _TOLD, False):
                setattr(error, _TOLD, True)
                # where the others are gone already, this rank's own error still says more
                with suppress(SmolbenchError, RuntimeError):
                    self._exchange(self._sentence(error), value=False)
            raise
        self.barrier()

    def _exchange(self, failure: str | None, value: bool) -> bool:
        everybody = self.gather((failure, value))
        for other, _ in everybody:
            if other is not None:
                error = SmolbenchError(other)
                setattr(error, _TOLD, True)
                raise error
        return bool(everybody[0][1])

    def _sentence(self, error: Exception) -> str:
        if isinstance(error, SmolbenchError):
            return str(error)
        said = " ".join(f"{type(error).__name__}: {error}".split())
        return f"Process {self.rank} of this job has failed ({said})."


class TrainerRanks(Ranks):
    """The processes of a Lightning trainer."""

    def __init__(self, trainer: Trainer) -> None:
        self.rank = trainer.global_rank
        self.local_rank = trainer.local_rank
        self.world_size = trainer.world_size
        self.node = trainer.node_rank
        self.nodes = trainer.num_nodes

    def gather(self, value: Any) -> list[Any]:  # noqa: ANN401 - anything that can be pickled
        """See the base class; before the trainer has connected its processes, each is alone."""
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return [value]
        everybody: list[Any] = [None] * self.world_size
        torch.distributed.all_gather_object(everybody, value)
        return everybody
