"""Features of a frozen backbone: one vector per text, computed once and kept on disk."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeVar

import numpy as np
import torch

from smolbench import identity
from smolbench.data.token_cache import TokenTable
from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.frozen.cache import (
    ComputeBlock,
    cached_outputs,
    plan_blocks,
    tokens_at_once,
)
from smolbench.models.frozen.entry import CachedOutputs, peak_costs
from smolbench.models.frozen.rehearsal import PassRehearsal
from smolbench.models.kernels.paths import Ways, forward_environment
from smolbench.models.kernels.prefix import shared_prefix
from smolbench.models.pretrained.backbone import Backbone, Facts, layer_outputs, shares_prefix
from smolbench.protocols import ReadAhead
from smolbench.utils.ranks import Ranks

Pooling = Literal["anchor", "first", "last", "mean", "max"]
Layers = Literal["one", "all"]
_Place = tuple[int, Pooling]
"""A layer and where in it the vector of a row is taken."""
_Read = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], dict[str, torch.Tensor]]
"""Right-padded ids ``(B, T)``, their lengths, where their texts start in them and these texts'
lengths ``(B,)`` -> features by key, float32 ``(B, D)``, on the network's device."""


_T = TypeVar("_T")


class _PathLostError(SmolbenchError):
    """A path that an earlier process has found right is not, and nothing was computed by it."""

    def __init__(self) -> None:
        super().__init__(
            "The installed transformers runs this network in another way than before, though its "
            "version is the same: repeat the command."
        )


@dataclass(frozen=True)
class _Pass:
    """What the pass over one split has read.

    Attributes:
        cached: The features, and what they took.
        tokens: Real tokens, without what all rows share.
        planned: Real tokens as they stand in the blocks.
        padded: The blocks' size in tokens, padding included.
    """

    cached: CachedOutputs
    tokens: int
    planned: int
    padded: int


class FrozenFeatures:
    """Turns tables of token ids into features that are computed once and kept on disk.

    Args:
        backbone: The frozen network, with the layer to take.
        encoder: What made the token ids; it knows the beginning that all rows share.
        pooling: Where the vector of a row is taken, see :func:`pool`.
        anchor: The word of the template for the pooling ``anchor``.
        pass_tokens: Most tokens, padding included, that the network reads at once; if not given,
            what suits the device.
        layers: ``all`` for a pass that keeps the features of every layer and pooling, each where
            a pass over this layer and pooling alone would have put them: ``anchor`` if the word is
            given, ``first`` if it says anything, ``last``, ``mean`` and ``max``.
    """

    def __init__(
        self,
        backbone: Backbone,
        encoder: TemplateEncoder,
        *,
        pooling: Pooling,
        anchor: str | None = None,
        pass_tokens: int | None = None,
        layers: Layers = "one",
    ) -> None:
        self.backbone = backbone
        self.encoder = encoder
        self.pooling: Pooling = pooling
        self.anchor = anchor
        self.pass_tokens = pass_tokens
        self.layers: Layers = layers
        self._facts: Facts | None = None
        self._ways: Ways | None = None
        self._passes: dict[str, _Pass] = {}

    def facts(self, device: torch.device) -> Facts:
        """Width, direction and size of the backbone.

        Raises:
            SmolbenchError: If the layer does not exist, or all texts would get the same features.
        """
        if self._facts is None:
            facts = self.backbone.facts(device)
            if self.pooling == "first" and self._first_is_blind(facts):
                raise SmolbenchError(
                    "model.pooling 'first' takes the first token of the row, and a causal backbone "
                    "has seen nothing but the template's beginning there: every text would get the "
                    "same features. Use another pooling, or a template that starts with {text}."
                )
            self._facts = facts
        return self._facts

    def ways(self, device: torch.device) -> Ways:
        """By which paths the network is run; all ranks ask for it before any of them runs it."""
        if self._ways is None:
            facts, decide = self.facts(device), self.backbone.paths.decide
            unmasked = decide("unmasked", lambda: facts.causal)
            shares = bool(self.encoder.shared_ids) and unmasked
            prefix = shares and decide("prefix", lambda: facts.prefix)
            self._ways = Ways(unmasked=unmasked, prefix=prefix)
        return self._ways

    def _first_is_blind(self, facts: Facts) -> bool:
        return facts.causal and self.encoder.begins_alike

    def of_split(
        self,
        split: str,
        table: TokenTable,
        *,
        device: torch.device,
        cache_dir: Path,
        ranks: Ranks | None = None,
        once: bool = False,
        rehearsal: PassRehearsal | None = None,
    ) -> np.ndarray:
        """Features of a split's texts, from the cache or computed now.

        Args:
            split: Name of the split, for the progress bar and :meth:`costs`.
            table: The texts as the encoder gave them: ``input_ids``, ``text_length`` and, where
                the template stands in front of texts, ``text_start``.
            device: Where the network runs.
            cache_dir: Root of the caches.
            ranks: The job's other processes, which share the pass; none if not given.
            once: Whether no later run will ask for these texts; other layers are not kept then.
            rehearsal: Given where the run is only estimated: a part is read, and nothing kept.

        Returns:
            Memory-mapped float32, shape ``(N, D)``.
        """

        def of_these() -> np.ndarray:
            return self._of_split(split, table, device, cache_dir, ranks, once, rehearsal)

        return self._by_other_paths(device, of_these)

    def _of_split(
        self,
        split: str,
        table: TokenTable,
        device: torch.device,
        cache_dir: Path,
        ranks: Ranks | None,
        once: bool,
        rehearsal: PassRehearsal | None,
    ) -> np.ndarray:
        facts, ways = self.facts(device), self.ways(device)
        tokens = table.ragged["input_ids"]
        own_prefix = [] if ways.prefix else self.encoder.shared_ids
        lengths = tokens.lengths + len(own_prefix)
        blocks = plan_blocks(lengths, self._tokens_at_once(device))
        asked: _Place = (self.backbone.layer, self.pooling)
        wanted = [asked] if self.layers == "one" or once else self._places(facts)
        places = {self._key(table, place, device): place for place in wanted}
        description = f"{self.backbone.given} reads {split}"

        def start() -> ComputeBlock:
            compute = self.start_pass(table, device, places)
            # the network's seconds are counted from a warm start, as in a test of any other task
            compute(blocks[len(blocks) // 2])
            return compute

        cached = cached_outputs(
            cache_dir / "features",
            self._key(table, asked, device),
            widths={key: facts.widths[layer] for key, (layer, _) in places.items()},
            blocks=blocks,
            start_compute=start,
            description=description,
            device=device,
            ranks=ranks,
            part=None if rehearsal is None else rehearsal.begin(description, split, lengths),
        )
        self._passes[split] = _Pass(
            cached=cached,
            tokens=int(tokens.lengths.sum()),
            planned=int(lengths.sum()),
            padded=sum(len(block) * int(lengths[block].max()) for block in blocks),
        )
        return cached.outputs

    def _by_other_paths(self, device: torch.device, work: Callable[[], _T]) -> _T:
        """Do something with the network; once more by other paths if those known proved wrong."""
        try:
            return work()
        except _PathLostError:
            self._ways = self._facts = None
            self.ways(device)
            return work()

    def _tokens_at_once(self, device: torch.device) -> int:
        return self.pass_tokens or tokens_at_once(device)

    def _places(self, facts: Facts) -> list[_Place]:
        """Every layer with every pooling that this encoder and backbone allow."""
        poolings: list[Pooling] = ["last", "mean", "max"]
        if not self._first_is_blind(facts):
            poolings.append("first")
        if self.anchor is not None:
            poolings.append("anchor")
        return [(layer, pooling) for layer in facts.widths for pooling in poolings]

    def _key(self, table: TokenTable, place: _Place, device: torch.device) -> str:
        """Name of the cache's entry for a table's features at one place."""
        layer, pooling = place
        ways = self.ways(device)
        return identity.key(
            "cache",
            {
                "features": 3,
                "tokens": table.key,
                **self.backbone.identity,
                "forward": forward_environment(),
                "device": device.type,
                "unmasked": ways.unmasked,
                "prefix": ways.prefix,
                "dtype": str(self.backbone.dtype(device)),
                "layer": layer,
                "pooling": pooling,
                "anchor": self.anchor if pooling == "anchor" else None,
                "pass_tokens": self._tokens_at_once(device),
            },
        )

    def start_pass(
        self, table: TokenTable, device: torch.device, places: Mapping[str, _Place]
    ) -> ComputeBlock:
        """Load the backbone.

        Args:
            table: The texts as the encoder gave them.
            device: Where the network runs.
            places: Which features to compute, by their key.

        Returns:
            What computes the features of a block: row numbers ``(b,)`` to float32 ``(b, D)`` for
            each key.
        """
        tokens, text_lengths = table.ragged["input_ids"], table.scalars["text_length"]
        starts = table.scalars.get("text_start", np.zeros_like(text_lengths))
        read = self._loaded(device, places)

        def compute(rows: np.ndarray) -> dict[str, np.ndarray]:
            features = read(
                torch.from_numpy(tokens.padded(rows, fill=0)),
                torch.from_numpy(tokens.lengths[rows]),
                torch.from_numpy(starts[rows]),
                torch.from_numpy(text_lengths[rows]),
            )
            return {key: values.cpu().numpy() for key, values in features.items()}

        return compute

    def start_reading(
        self, device: torch.device
    ) -> Callable[[Mapping[str, Sequence[Any]]], torch.Tensor]:
        """Load the backbone for texts whose features are not kept.

        Returns:
            What computes the features of texts as the encoder gave them: its columns to float32
            ``(B, D)`` on the device.
        """
        place: _Place = (self.backbone.layer, self.pooling)
        read = self._by_other_paths(device, lambda: self._loaded(device, {"": place}))

        def features(encoded: Mapping[str, Sequence[Any]]) -> torch.Tensor:
            rows = [torch.tensor(row) for row in encoded["input_ids"]]
            ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            lengths = torch.tensor([len(row) for row in rows])
            text_lengths = torch.tensor(encoded["text_length"])
            starts = torch.tensor(encoded.get("text_start", [0] * len(rows)))
            return read(ids, lengths, starts, text_lengths)[""]

        return features

    def _loaded(self, device: torch.device, places: Mapping[str, _Place]) -> _Read:
        """Load the backbone; returns what runs it on rows without their shared beginning."""
        ways = self.ways(device)
        model = self.backbone.load(device)
        shared_ids = self.encoder.shared_ids
        if ways.prefix and not self.backbone.tried_here:
            if not shares_prefix(model, device):
                self.backbone.forget_facts(device)
                raise _PathLostError
            self.backbone.tried_here = True
        prefix = shared_prefix(model, shared_ids) if ways.prefix else None
        # a network that cannot share the beginning must read it in every row
        in_front = torch.tensor(shared_ids if prefix is None else [], dtype=torch.long)
        offset = self.encoder.anchor_offset(self.anchor) if self.anchor is not None else 0
        layers = {layer for layer, _ in places.values()}
        # where padding is seen behind a mask, too, only rows of one length stand side by side
        alike = self.facts(device).padding == "seen"

        def read(
            ids: torch.Tensor,
            lengths: torch.Tensor,
            starts: torch.Tensor,
            text_lengths: torch.Tensor,
        ) -> dict[str, torch.Tensor]:
            if alike and len(known := sorted(set(lengths.tolist()))) > 1:
                groups = [(lengths == length).nonzero().flatten() for length in known]
                parts = [
                    read(ids[rows, :length], lengths[rows], starts[rows], text_lengths[rows])
                    for rows, length in zip(groups, known, strict=True)
                ]
                order = torch.cat(groups).argsort()
                return {key: torch.cat([p[key] for p in parts])[order] for key in places}
            first = len(in_front)
            ids = torch.cat([in_front.expand(len(ids), -1), ids], dim=1)
            mask = torch.arange(ids.shape[1]) < (lengths + first)[:, None]
            with torch.inference_mode():
                states = layer_outputs(
                    model,
                    layers,
                    ids.to(device),
                    # causal rows never look at their padding, which stands on the right
                    None if ways.unmasked else mask.long().to(device),
                    prefix,
                )
                spans = (lengths + first, starts + first, text_lengths)
                return {
                    key: pool(states[layer], pooling, *spans, offset)
                    for key, (layer, pooling) in places.items()
                }

        return read

    def reader(
        self, table: TokenTable, device: torch.device
    ) -> Callable[[np.ndarray], dict[str, torch.Tensor]]:
        """Load the backbone to compute features that are not kept.

        Returns:
            What computes them: row numbers ``(b,)`` to ``features``, float32, ``(b, D)``.
        """
        place: _Place = (self.backbone.layer, self.pooling)
        compute = self.start_pass(table, device, {"features": place})
        return lambda rows: {
            name: torch.from_numpy(values).to(device) for name, values in compute(rows).items()
        }

    def costs(self) -> dict[str, Any]:
        """What the passes over the splits so far have cost, under the keys of ``results.json``."""
        costs: dict[str, Any] = {}
        if "train" in self._passes:  # `validate` alone must not pass its cost off as the training's
            fitted = [self._passes[name] for name in ("train", "val") if name in self._passes]
            seconds = sum(done.cached.seconds for done in fitted)
            costs["cost/cache_s"] = seconds
            costs["cost/cache_reused"] = all(done.cached.reused for done in fitted)
            samples = sum(len(done.cached.outputs) for done in fitted)
            costs["cost/cache_samples_per_s"] = samples / seconds
            costs["cost/cache_tokens_per_s"] = sum(done.tokens for done in fitted) / seconds
            padded = sum(done.padded for done in fitted)
            costs["cost/padding_share"] = 1 - sum(done.planned for done in fitted) / padded
            costs |= peak_costs([done.cached for done in fitted], "fit")
        if "test" in self._passes:
            tested = self._passes["test"].cached
            costs["cost/test_cache_s"] = tested.seconds
            of_both = peak_costs([tested], "test")
            costs |= {key: max(mib, costs.get(key, 0.0)) for key, mib in of_both.items()}
        return costs

    def read_ahead(self, split: str) -> ReadAhead | None:
        """What the network has read of a split before its batches come; ``None`` if nothing."""
        done = self._passes.get(split)
        if done is None:
            return None
        return ReadAhead(len(done.cached.outputs), done.tokens, done.cached.network_s)


def pool(
    states: torch.Tensor,
    pooling: Pooling,
    lengths: torch.Tensor,
    starts: torch.Tensor,
    text_lengths: torch.Tensor,
    anchor_offset: int,
) -> torch.Tensor:
    """One vector per row.

    Args:
        states: Hidden states of right-padded rows, shape ``(B, T, D)``.
        pooling: Where the vector is taken.
        lengths: Real tokens per row, shape ``(B,)``.
        starts: Where the text starts in each row, shape ``(B,)``.
        text_lengths: Tokens of the text itself, shape ``(B,)``; a text without tokens is pooled
            over what follows it, or over the row's last token.
        anchor_offset: Place of the anchor, in tokens from the row's end.

    Returns:
        Features, float32, shape ``(B, D)``.
    """
    device = states.device
    lengths, starts = lengths.to(device), starts.to(device)
    text_lengths = text_lengths.to(device)
    rows = torch.arange(len(states), device=device)
    if pooling == "first":
        return states[:, 0].float().clone()  # a view would keep all of the states in memory
    if pooling == "last":
        return states[rows, lengths - 1].float()
    if pooling == "anchor":
        return states[rows, lengths - anchor_offset].float()
    starts = torch.minimum(starts, lengths - 1)
    stop = torch.where(text_lengths > 0, starts + text_lengths, lengths)[:, None]
    places = torch.arange(states.shape[1], device=device)
    inside = ((places >= starts[:, None]) & (places < stop))[:, :, None]
    if pooling == "mean":
        total = states.float().masked_fill(~inside, 0).sum(dim=1)
        return total / inside.sum(dim=1)
    return states.float().masked_fill(~inside, float("-inf")).amax(dim=1)
