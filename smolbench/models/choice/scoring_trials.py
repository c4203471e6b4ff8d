"""By which of its own paths a causal language model is scored, each tried on a twin of it."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from smolbench.models.choice.rows import Packer
from smolbench.models.choice.scoring import (
    HEAD_ROWS,
    last_states,
    next_token_logits,
    token_log_probs,
)
from smolbench.models.kernels.paths import Paths, Ways, run_by
from smolbench.models.kernels.prefix import SharedPrefix, keeps_all_tokens, shared_prefix
from smolbench.models.kernels.products import (
    float32_is_faster,
    onednn_is_exact,
    onednn_is_faster,
    products_are_right,
    use_quick_products,
)
from smolbench.models.kernels.proof import Compute, Trials, pad, proven

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_PREFIX, _CONTEXTS, _ENDINGS = 12, (23, 3, 40), (1, 6, 3)
"""Tokens of what a trial reads: in front of all rows, and of each context and ending behind it."""


def score_by_proven_paths(model: PreTrainedModel, paths: Paths, device: torch.device) -> None:
    """Decide by which paths a causal language model is scored, and prepare it for them.

    Args:
        model: Loaded, with its head; linear layers may be exchanged.
        paths: What the run has decided so far; takes note of what is decided now.
        device: Where the model will run.
    """
    trials = _Trials(model, device)
    decide, on_cpu = paths.decide, device.type == "cpu"
    unmasked = decide("unmasked", trials.unmasked)
    head = decide("head", trials.head)
    plain = Ways(unmasked=unmasked, head=head)
    prefix = decide("prefix", lambda: trials.prefix(plain))
    branches = decide("branches", lambda: trials.branches(plain, prefix=prefix))
    ways = replace(plain, prefix=prefix, branches=branches)
    if on_cpu:
        half, whole = (model.dtype == dtype for dtype in (torch.bfloat16, torch.float32))
        ways = replace(
            ways,
            packed=branches and decide("packed", lambda: trials.packed(ways)),
            slices=head and decide("slices", lambda: trials.slices(plain)),
            products=half and decide("products", _products, faster=float32_is_faster),
            onednn=whole and decide("onednn", _onednn, faster=onednn_is_faster),
        )
        if ways.products:
            use_quick_products(model)
    run_by(model, ways)


def _products() -> bool:
    return proven("Multiplying bfloat16 as float32", products_are_right)


def _onednn() -> bool:
    return proven("Multiplying float32 by oneDNN", onednn_is_exact)


class _Trials(Trials):
    """The paths of scoring, each beside rows that transformers reads whole and one by one."""

    def unmasked(self) -> bool:
        """Rows padded on the right, without a mask."""
        rows = [self.draw(n) for n in (*_CONTEXTS, 1)]

        def own(twin: PreTrainedModel) -> torch.Tensor:
            run_by(twin, Ways(unmasked=True))
            ids, mask = pad(rows)
            states = last_states(twin, {"input_ids": ids, "attention_mask": mask})
            return torch.cat([states[n, : len(row)] for n, row in enumerate(rows)])

        return self._proven(
            "Reading rows padded on the right without an attention mask",
            own,
            lambda twin: torch.cat([_logits(twin, row) for row in rows]),
        )

    def head(self) -> bool:
        """The head behind the last layer's states, at chosen positions."""
        row = self._long_row()

        def own(twin: PreTrainedModel) -> torch.Tensor:
            run_by(twin, Ways(unmasked=True, head=True))
            return next_token_logits(twin, last_states(twin, {"input_ids": row[None]})[0])

        return self._proven("Running the head at scored positions only", own, _plain(row))

    def prefix(self, ways: Ways) -> bool:
        """Keys and values of a beginning in front of rows of different lengths."""
        if not ways.unmasked or not keeps_all_tokens(self.model):
            return False
        front = self.draw(_PREFIX)
        rows = [self.draw(n) for n in _CONTEXTS]
        ids, mask = pad(rows)

        def own(twin: PreTrainedModel) -> torch.Tensor:
            run_by(twin, ways)
            prefix = _prefix(twin, front)
            found = []
            for _ in range(2):  # a pass must leave the beginning as it was
                states = last_states(twin, {"input_ids": ids, "attention_mask": mask}, prefix)
                found += [
                    next_token_logits(twin, states[n, : len(row)]) for n, row in enumerate(rows)
                ]
            return torch.cat(found)

        def plain(twin: PreTrainedModel) -> torch.Tensor:
            whole = [_logits(twin, torch.cat([front, row]))[len(front) :] for row in rows]
            return torch.cat(whole * 2)

        return self._proven("Running the beginning of all rows once", own, plain)

    def branches(self, ways: Ways, *, prefix: bool) -> bool:
        """Continuations of a context in one row, under a mask."""
        config: Any = self.model.config.get_text_config(decoder=True)
        # others add a mask to the scores; and a window knows places in a row, not positions
        fused = config._attn_implementation == "sdpa"
        windowed = getattr(config, "sliding_window", None) is not None
        if not ways.unmasked or not fused or windowed or not keeps_all_tokens(self.model):
            return False
        ways = Ways(unmasked=True, head=ways.head, branches=True)
        return self._proven(
            "Reading the continuations of a context in one row", *self._tree(ways, prefix=prefix)
        )

    def packed(self, ways: Ways) -> bool:
        """The same without padding."""
        tried = Ways(unmasked=True, head=ways.head, branches=True, packed=True)
        return self._proven(
            "Attention row by row in a batch without padding",
            *self._tree(tried, prefix=ways.prefix),
        )

    def slices(self, ways: Ways) -> bool:
        """Log-probabilities of tokens, slice by slice of the vocabulary."""
        row = self._long_row()

        def own(twin: PreTrainedModel) -> torch.Tensor:
            run_by(twin, Ways(unmasked=True, head=True, slices=True))
            states = last_states(twin, {"input_ids": row[None]})[0, :-1]
            return token_log_probs(twin, states, row[1:])

        def plain(twin: PreTrainedModel) -> torch.Tensor:
            logs = _logits(twin, row)[:-1].log_softmax(dim=-1)
            return logs.gather(1, row[1:, None])[:, 0]

        return self._proven("Computing the head's vocabulary in slices", own, plain)

    def _tree(self, ways: Ways, *, prefix: bool) -> tuple[Compute, Compute]:
        """Logits of every ending's tokens in branching rows, and in plain ones.

        Args:
            ways: By which paths.
            prefix: Whether also behind a beginning that is run once.
        """
        front = self.draw(_PREFIX)
        questions = [
            (
                torch.cat([front, self.draw(n)]).cpu().numpy(),
                [self.draw(m).cpu().numpy() for m in _ENDINGS],
            )
            for n in _CONTEXTS
        ]

        def own(twin: PreTrainedModel) -> torch.Tensor:
            run_by(twin, ways)
            found = []
            for length in (0, _PREFIX) if prefix else (0,):
                packer = Packer(10**6, length)
                for context, endings in questions:
                    packer.add_tree(context, endings)
                batch = {k: v.to(self.device) for k, v in packer.tensors(branching=True).items()}
                shared = _prefix(twin, front) if length else None
                states = last_states(twin, batch, shared)
                found.append(next_token_logits(twin, states[batch["row"], batch["place"]]))
            return torch.cat(found)

        def plain(twin: PreTrainedModel) -> torch.Tensor:
            rows = [
                _logits(twin, torch.from_numpy(np.concatenate([context, ending])).to(self.device))[
                    len(context) - 1 : -1
                ]
                for context, endings in questions
                for ending in endings
            ]
            return torch.cat(rows * (2 if prefix else 1))

        return own, plain

    def _long_row(self) -> torch.Tensor:
        """More tokens than the head computes at once, where the model has positions for them."""
        limit = getattr(self.model.config.get_text_config(), "max_position_embeddings", None)
        return self.draw(min(HEAD_ROWS + 8, (limit or HEAD_ROWS + 16) - 8))

    def _proven(self, description: str, own: Compute, plain: Compute) -> bool:
        return proven(description, lambda: self.equal(own, plain))


def _prefix(twin: PreTrainedModel, front: torch.Tensor) -> SharedPrefix:
    body: Any = twin.base_model
    return shared_prefix(body, front.tolist())


def _logits(twin: PreTrainedModel, row: torch.Tensor) -> torch.Tensor:
    """What transformers itself says behind each token of a row, float32, shape ``(T, V)``."""
    network: torch.nn.Module = twin
    logits: torch.Tensor = network(input_ids=row[None], use_cache=False).logits[0]
    return logits.float()


def _plain(row: torch.Tensor) -> Compute:
    return lambda twin: _logits(twin, row)
