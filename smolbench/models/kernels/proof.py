"""Comparisons of a path of one's own with the library's plain one."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smolbench.models.kernels.twin import as_loaded, twin_of

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger("smolbench")

TOLERANCE = 1e-4
"""Largest difference in float32, of numbers of the order of 1, else of the largest one."""
HALF_FACTOR = 1.5
"""How much larger than the library's own the error of a 16-bit result may be."""


Compute = Callable[["PreTrainedModel"], torch.Tensor]
_LOWEST = 3
"""First token id that is no padding in any usual vocabulary."""


def same(own: torch.Tensor, plain: torch.Tensor) -> bool:
    """Whether two float32 results are equal up to rounding."""
    if own.shape != plain.shape or not bool(own.isfinite().all()):
        return False
    scale = max(1.0, float(plain.abs().max()))
    return float((own - plain).abs().max()) <= TOLERANCE * scale


def as_exact(own: torch.Tensor, plain: torch.Tensor, exact: torch.Tensor) -> bool:
    """Whether a result in 16 bits is as near to the float32 one as the library's own in 16 bits."""
    if own.shape != exact.shape or not bool(own.isfinite().all()):
        return False
    ours, theirs = ((found.float() - exact).square().mean().sqrt() for found in (own, plain))
    least = TOLERANCE * max(1.0, float(exact.abs().max()))
    return float(ours) <= HALF_FACTOR * float(theirs) + least


class Trials:
    """Comparisons of paths with plain rows, on twins of a model that are made when first needed.

    Args:
        model: A loaded model of transformers.
        device: Where it will run.
    """

    def __init__(self, model: PreTrainedModel, device: torch.device) -> None:
        self.model = model
        self.device = device
        self._draws = 0

    @torch.no_grad()
    def equal(self, own: Compute, plain: Compute) -> bool:
        """Whether a path gives what the library gives, on the twins.

        Args:
            own: A network to what the path makes of it, a tensor of any shape.
            plain: A network to what it should be.
        """
        exact = plain(self.exact).float()
        if not same(own(self.exact).float(), exact):
            return False
        rounded = self.rounded
        return rounded is None or as_exact(own(rounded), plain(rounded), exact)

    @cached_property
    def exact(self) -> PreTrainedModel:
        """A small network of the model's architecture, in float32."""
        twin: Any = twin_of(self.model)
        twin.config.use_cache = False
        return twin.to(self.device)  # type: ignore[no-any-return]

    @cached_property
    def rounded(self) -> PreTrainedModel | None:
        """The same in the model's own 16 bits; nothing if it has 32."""
        if self.model.dtype not in {torch.bfloat16, torch.float16}:
            return None
        twin: Any = as_loaded(self.exact, self.model)
        return twin.to(self.device)  # type: ignore[no-any-return]

    def draw(self, length: int) -> torch.Tensor:
        """Random token ids, other ones at every call, shape ``(length,)``; none is padding."""
        self._draws += 1
        vocabulary = self.exact.config.get_text_config().vocab_size
        ids = np.random.default_rng(self._draws).integers(_LOWEST, vocabulary, length)
        return torch.from_numpy(ids).to(self.device)


def pad(rows: list[torch.Tensor]) -> tuple[torch.Tensor, torch.Tensor]:
    """Rows of ids ``(t,)``, padded on the right: ``input_ids``, ``attention_mask`` ``(B, T)``."""
    ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    return ids, (ids > 0).long()


def proven(description: str, trial: Callable[[], bool]) -> bool:
    """Try a path; where it differs or fails, say in one line that the library's own is taken.

    Args:
        description: What the path is, as a sentence's subject.
        trial: Whether it is right; what it raises says no, too.
    """
    try:
        if trial():
            return True
        reason = "its results differ"
    except Exception as error:  # whatever a library raises whose ways have changed
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:200]
    log.warning("%s is not used here, but transformers' own way (%s).", description, reason)
    return False
