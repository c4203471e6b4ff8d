"""What a prompted model says of each class where there is no text, taken off its scores."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch

from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.prompting.next_token import Prompted

Calibration = Literal["none", "contextual", "pmi"]
CALIBRATIONS: tuple[Calibration, ...] = ("contextual", "pmi")
"""Those that take something off."""
CONTENT_FREE = ("N/A", "", "[MASK]")
"""Texts without content, over which contextual calibration takes the mean (Zhao et al., 2021)."""

Rows = Sequence[Sequence[int]]


class Calibrator:
    """Takes off a label word's log-probability what it has without a text.

    ``contextual`` takes the one behind the template with texts without content (Zhao et al., 2021),
    ``pmi`` the one behind the template's end alone (Holtzman et al., 2021).

    Args:
        prompted: The model behind the examples of each of ``S`` seeds.
        encoder: The template behind the first seed's examples; rows serve all seeds.
        answers: Token ids of the label words.
    """

    def __init__(
        self, prompted: Sequence[Prompted], encoder: TemplateEncoder, answers: Rows
    ) -> None:
        self._answers = answers
        empty: list[Any] = list(encoder.encode(CONTENT_FREE)["input_ids"])
        # the template's end alone, whatever examples stand in front of it
        alone = Prompted(prompted[0].model, encoder.head_ids)
        end = encoder.suffix_ids or [encoder.end_of_text()]
        self.offsets: dict[Calibration, torch.Tensor] = {
            "contextual": torch.stack([self._mean_behind(behind, empty) for behind in prompted]),
            "pmi": self._mean_behind(alone, [end]).expand(len(prompted), -1),
        }
        """Log-probability of each label word where there is no text, shape ``(S, C)``, by kind."""

    def __call__(self, scores: torch.Tensor, seed: int, kind: Calibration) -> torch.Tensor:
        """Scores without what the words have anyway.

        Args:
            scores: Log-probabilities of the label words behind texts, shape ``(B, C)``, on the CPU.
            seed: Number of the seed, counted from 0.
            kind: What is taken off; nothing for ``none``.
        """
        if kind == "none":
            return scores
        return scores.log_softmax(dim=1) - self.offsets[kind][seed]

    def _mean_behind(self, prompted: Prompted, rows: Rows) -> torch.Tensor:
        """Logarithm of the label words' mean probability behind rows, shape ``(C,)``."""
        scores = torch.stack([self._words_behind(prompted, row) for row in rows])
        # each row's probabilities are normalised over the label words
        return scores.log_softmax(dim=1).logsumexp(dim=0) - math.log(len(rows))

    def _words_behind(self, prompted: Prompted, row: Sequence[int]) -> torch.Tensor:
        device = prompted.model.device
        ids = torch.tensor([row], device=device)
        lengths = torch.tensor([len(row)], device=device)
        return prompted.continuations(ids, lengths, self._answers)[0].cpu()
