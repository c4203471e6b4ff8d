"""Checkpoints that go straight to disk, not through memory."""

from __future__ import annotations

from pathlib import Path
from typing import IO, Any

import torch
from lightning.fabric.plugins import TorchCheckpointIO


class StreamedCheckpointIO(TorchCheckpointIO):
    """Writes a checkpoint tensor by tensor.

    Lightning's own puts the whole file together in memory first (2.6): with AdamW and all weights
    training that is the weights three times over, on top of the training's own. It also writes
    under a temporary name; here that is :class:`RunCheckpoint`'s.
    """

    def save_checkpoint(
        self,
        checkpoint: dict[str, Any],
        path: str | Path,
        storage_options: Any | None = None,  # noqa: ANN401 - as Lightning types it
    ) -> None:
        """Write a checkpoint to a local path.

        Raises:
            OSError: If it cannot be written.
        """
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("wb") as file:
            watched = _Watched(file)
            try:
                torch.save(checkpoint, watched)  # type: ignore[arg-type] # it is only written to
            except RuntimeError as error:  # torch hides what the file has said
                if watched.error is None:
                    raise
                raise watched.error from error


class _Watched:
    """A file that remembers why a write has failed."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: OSError | None = None

    def write(self, data: Any) -> int:  # noqa: ANN401 - bytes, or a view of a tensor's memory
        try:
            return self._file.write(data)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self._file.flush()
