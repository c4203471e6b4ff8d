"""What a causal language model would write next, behind a beginning that all prompts share."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from smolbench.models.choice.scoring import last_states, next_token_logits, token_log_probs
from smolbench.models.kernels.paths import ways_of
from smolbench.models.kernels.prefix import SharedPrefix, shared_prefix

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_NO_OPINION = 1e-3
"""By how much, in nats, the class that stands for `unknown` is ahead of the others."""


class Prompted:
    """A language model behind one beginning of a prompt, which is run once.

    Args:
        model: From :func:`~smolbench.models.pretrained.language_model.load_language_model`.
        shared_ids: Token ids of the beginning that all prompts share; may be empty.
    """

    def __init__(self, model: PreTrainedModel, shared_ids: Sequence[int]) -> None:
        self.model = model
        body: Any = model.base_model
        share = bool(len(shared_ids)) and ways_of(model).prefix
        self._prefix: SharedPrefix | None = shared_prefix(body, shared_ids) if share else None
        # a network that cannot share the beginning must read it in every row
        in_front = shared_ids if self._prefix is None else []
        self._in_front = torch.tensor(list(in_front), dtype=torch.long, device=model.device)

    @torch.inference_mode()
    def next_token(self, input_ids: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Log-probabilities of the token that follows each row, float32, shape ``(B, V)``.

        Args:
            input_ids: Right-padded rows without the shared beginning, shape ``(B, T)``.
            lengths: Real tokens per row, shape ``(B,)``.
        """
        rows = torch.cat([self._in_front.expand(len(input_ids), -1), input_ids], dim=1)
        lengths = lengths + len(self._in_front)
        return self._next(self._states(rows, lengths), lengths)

    @torch.inference_mode()
    def continuations(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, answers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """Log-probability of each answer as a whole behind each row, float32, shape ``(B, C)``.

        Args:
            input_ids: Right-padded rows without the shared beginning, shape ``(B, T)``.
            lengths: Real tokens per row, shape ``(B,)``.
            answers: Token ids of ``C`` answers, each with one token at least.
        """
        if all(len(answer) == 1 for answer in answers):
            first = self.next_token(input_ids, lengths)
            return first[:, [answer[0] for answer in answers]]
        if ways_of(self.model).branches:
            return self._branching(input_ids, lengths, answers)
        each = [self._branching(input_ids, lengths, [answer]) for answer in answers]
        return torch.cat(each, dim=1)

    def _branching(
        self, input_ids: torch.Tensor, lengths: torch.Tensor, answers: Sequence[Sequence[int]]
    ) -> torch.Tensor:
        """All answers as branches of one row each; a single one just stands behind it."""
        device, count = input_ids.device, len(input_ids)
        rows = torch.cat([self._in_front.expand(count, -1), input_ids], dim=1)
        lengths = lengths + len(self._in_front)
        # every answer's tokens but the last, which nothing is predicted from
        inner, depth, number = (
            torch.tensor(
                [
                    (token, place, n)
                    for n, answer in enumerate(answers, start=1)
                    for place, token in enumerate(answer[:-1])
                ],
                dtype=torch.long,
                device=device,
            )
            .view(-1, 3)
            .T
        )
        # behind a row's last token stands padding, and the answers take its place
        rows = torch.nn.functional.pad(rows, (0, len(inner)))
        places = lengths[:, None] + torch.arange(len(inner), device=device)
        rows = rows.scatter(1, places, inner.expand(count, -1))
        if len(answers) > 1:
            # padding must not stand where the model has no positions
            positions = torch.arange(rows.shape[1], device=device)
            positions = torch.minimum(positions, lengths[:, None] - 1)
            positions = positions.scatter(1, places, lengths[:, None] + depth)
            branch = torch.zeros_like(rows).scatter(1, places, number.expand(count, -1))
            states = self._states(rows, lengths + len(inner), positions, branch)
        else:
            states = self._states(rows, lengths + len(inner))
        first = self._next(states, lengths)
        scores = first[:, [answer[0] for answer in answers]]
        start = 0
        for n, answer in enumerate(answers):
            for token in answer[1:]:
                at = states[torch.arange(count, device=device), places[:, start]]
                wanted = torch.full((count,), token, device=device)
                scores[:, n] += token_log_probs(self.model, at, wanted)
                start += 1
        return scores

    def _states(
        self,
        rows: torch.Tensor,
        lengths: torch.Tensor,
        positions: torch.Tensor | None = None,
        branch: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """Output of the last layer behind the shared beginning, shape ``(B, T, D)``."""
        real = torch.arange(rows.shape[1], device=rows.device) < lengths[:, None]
        batch = {"input_ids": rows, "attention_mask": real}
        before = 0 if self._prefix is None else self._prefix.length
        if positions is None and before and ways_of(self.model).branches:
            positions = torch.arange(rows.shape[1], device=rows.device).expand(len(rows), -1)
            branch = torch.zeros_like(rows)
        if positions is not None and branch is not None:
            batch |= {"position_ids": positions + before, "branch": branch}
        return last_states(self.model, batch, self._prefix)

    def _next(self, states: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        last = states[torch.arange(len(states), device=states.device), lengths - 1]
        return next_token_logits(self.model, last).log_softmax(dim=-1)


def first_answer(
    log_probs: torch.Tensor, token_classes: torch.Tensor, k: int, default: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """The class of the first of the ``k`` likeliest tokens that stands for one.

    Zwicker, Abbaszadeh, Popper, "Lightweight Sentiment Analysis" (2024), section 2.2.

    Args:
        log_probs: Of the next token, shape ``(B, V)``.
        token_classes: Class that each token stands for, -1 for none, shape ``(V,)``.
        k: How many tokens are looked through.
        default: The class of a row where none of them stands for a class.

    Returns:
        Scores, shape ``(B, C)``: for each class the log-probability of its likeliest token among
        the ``k``, or a hair less than the least of the ``k`` where it has none; and which rows have
        no answer at all, bool, shape ``(B,)``. There ``default`` has that least one itself.
    """
    values, tokens = log_probs.topk(min(k, log_probs.shape[1]), dim=1)
    classes = token_classes[tokens]
    floor = values[:, -1:] - _NO_OPINION
    count = int(token_classes.max()) + 1
    scores = torch.cat(
        [torch.where(classes == n, values, floor).amax(dim=1, keepdim=True) for n in range(count)],
        dim=1,
    )
    unknown = (classes < 0).all(dim=1)
    scores[unknown, default] += _NO_OPINION
    return scores, unknown
