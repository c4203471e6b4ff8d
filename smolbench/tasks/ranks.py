"""The job's other processes, as the frozen cache wants to see them."""

from __future__ import annotations

from lightning.pytorch import Trainer


class TrainerRanks:
    """Ranks of a Lightning trainer's strategy."""

    def __init__(self, trainer: Trainer) -> None:
        self._strategy = trainer.strategy
        self.rank = trainer.global_rank
        self.world_size = trainer.world_size

    def barrier(self) -> None:
        """Wait until all ranks are here."""
        self._strategy.barrier()

    def agree(self, value: bool) -> bool:
        """Rank 0's value, on every rank."""
        return bool(self._strategy.broadcast(value))
