"""A probe: a small head trained on the features of a frozen, pretrained network.

This file needs torch, transformers and safetensors, and nothing else::

    python probe.py "Two hours I will never get back." "A gem."

or, from Python::

    from probe import Probe
    probe = Probe.load("path/of/this/folder", device="cpu")
    probe(["A gem."])  # [{"neg": 0.02, "pos": 0.98}]

``probe.json`` says how a text is read: it is put into ``template``, the whole of which is tokenised
as one text, between ``head_ids`` and ``tail_ids``; a text that makes a row longer than
``max_length`` tokens loses one end. The network then runs over the row, and ``pooling`` says which
vector of its ``layer`` the head gets.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import nn
from transformers import AutoModel, AutoTokenizer


class Probe:
    """A frozen network and its head; see :meth:`load`.

    Args:
        settings: Contents of ``probe.json``.
        tokenizer: The network's tokenizer.
        backbone: The network.
        head: Features ``(B, D)`` to logits ``(B, C)``.
    """

    def __init__(
        self,
        settings: dict[str, Any],
        tokenizer: Any,  # noqa: ANN401 - transformers has many classes of them
        backbone: nn.Module,
        head: nn.Module,
    ) -> None:
        self.settings = settings
        self.tokenizer = tokenizer
        self.backbone = backbone.eval()
        self.head = head.eval()
        self.device = next(backbone.parameters()).device

    @classmethod
    def load(
        cls,
        folder: str | Path = Path(__file__).parent,
        device: str | torch.device = "cpu",
        dtype: str | None = None,
    ) -> Probe:
        """Load a probe and the network it belongs to (from the Hub, if it is not cached).

        Args:
            folder: Where this file came from.
            device: Where to run.
            dtype: Number format of the network, such as ``float32``; the one that the head was
                trained with if not given.
        """
        folder = Path(folder)
        settings = json.loads((folder / "probe.json").read_text(encoding="utf-8"))
        backbone = AutoModel.from_pretrained(
            settings["backbone"],
            revision=settings["revision"],
            dtype=getattr(torch, dtype or settings["dtype"]),
        )
        if backbone.config.is_encoder_decoder:
            backbone = backbone.get_encoder()
        backbone.config.use_cache = False
        weights = load_file(folder / "probe.safetensors")
        head = _head(weights, settings["head"])
        head.load_state_dict(weights)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        return cls(settings, tokenizer, backbone.to(device), head.to(device))

    def __call__(self, texts: Sequence[str]) -> list[dict[str, float]]:
        """Probability of each class, for each text."""
        rows = self.logits(texts).softmax(dim=1).tolist()
        return [dict(zip(self.settings["labels"], row, strict=True)) for row in rows]

    @torch.inference_mode()
    def logits(self, texts: Sequence[str]) -> torch.Tensor:
        """Logits of texts, float32, shape ``(B, C)``."""
        logits: torch.Tensor = self.head(self.features(texts))
        return logits

    @torch.inference_mode()
    def features(self, texts: Sequence[str]) -> torch.Tensor:
        """What the head gets of texts, float32, shape ``(B, D)``."""
        if self.settings.get("alone") and len(texts) > 1:  # the network sees padding, mask or not
            return torch.cat([self.features([text]) for text in texts])
        ids, mask, starts, text_lengths = self._rows(texts)
        layer = self.settings["layer"]
        output = self.backbone(input_ids=ids, attention_mask=mask, output_hidden_states=layer != -1)
        states = output.last_hidden_state if layer == -1 else output.hidden_states[layer]
        return self._pool(states.float(), mask.sum(dim=1), starts, text_lengths)

    def _rows(
        self, texts: Sequence[str]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
        """Right-padded rows ``(B, T)``, their mask, and start and length of each text ``(B,)``."""
        known = self.settings
        prefix, suffix = known["template"].split("{text}")
        seam = len(prefix.rstrip(" "))  # a space is the beginning of the word behind it
        rows, starts, text_lengths = [], [], []
        for text in texts:
            found = self.tokenizer(
                prefix + text + suffix,
                add_special_tokens=False,
                return_offsets_mapping=True,
                verbose=False,
            )
            ids, stop = found["input_ids"], len(prefix) + len(text)
            spans = list(enumerate(found["offset_mapping"]))
            # a token of both the template and the text is the template's
            begin = next((n for n, (start, _) in spans if start >= seam), len(ids))
            end = next((n for n, (_, last) in spans if n >= begin and last > stop), len(ids))
            own = ids[begin:end]
            front, behind = known["head_ids"] + ids[:begin], ids[end:] + known["tail_ids"]
            room = known["max_length"] - len(front) - len(behind)
            if len(own) > room:
                left = known["truncation_side"] == "left"
                own = own[len(own) - room :] if left else own[:room]
            row = front + own + behind
            if len(row) == known["shared"] and known["empty_id"] is not None:
                row = [*row, known["empty_id"]]  # a text without tokens has one after all
            rows.append(torch.tensor(row))
            starts.append(len(front))
            text_lengths.append(len(own))
        lengths = torch.tensor([len(row) for row in rows])
        padded = nn.utils.rnn.pad_sequence(rows, batch_first=True)
        mask = (torch.arange(padded.shape[1]) < lengths[:, None]).long()
        there = padded.to(self.device), mask.to(self.device)
        return *there, torch.tensor(starts), torch.tensor(text_lengths)

    def _pool(
        self,
        states: torch.Tensor,
        lengths: torch.Tensor,
        starts: torch.Tensor,
        text_lengths: torch.Tensor,
    ) -> torch.Tensor:
        """One vector ``(B, D)`` of each row's states ``(B, T, D)``."""
        pooling, starts = self.settings["pooling"], starts.to(states.device)
        text_lengths = text_lengths.to(states.device)
        rows = torch.arange(len(states), device=states.device)
        if pooling == "first":
            return states[:, 0]
        if pooling == "last":
            return states[rows, lengths - 1]
        if pooling == "anchor":  # a word of the template, counted from the row's end
            return states[rows, lengths - self.settings["anchor_offset"]]
        starts = torch.minimum(starts, lengths - 1)
        stop = torch.where(text_lengths > 0, starts + text_lengths, lengths)[:, None]
        places = torch.arange(states.shape[1], device=states.device)
        inside = ((places >= starts[:, None]) & (places < stop))[:, :, None]
        if pooling == "mean":
            return states.masked_fill(~inside, 0).sum(dim=1) / inside.sum(dim=1)
        return states.masked_fill(~inside, float("-inf")).amax(dim=1)


def _head(weights: dict[str, torch.Tensor], kind: str) -> nn.Module:
    if kind == "linear":
        classes, width = weights["weight"].shape
        return nn.Linear(width, classes)
    hidden, width = weights["1.weight"].shape
    classes = len(weights["4.weight"])
    return nn.Sequential(
        nn.BatchNorm1d(width),
        nn.Linear(width, hidden),
        nn.GELU(),
        nn.Dropout(0.0),  # the head no longer trains
        nn.Linear(hidden, classes),
    )


if __name__ == "__main__":
    if len(sys.argv) == 1:
        sys.exit('Give texts to label: python probe.py "A gem."')
    for text, scores in zip(sys.argv[1:], Probe.load()(sys.argv[1:]), strict=True):
        label = max(scores, key=scores.__getitem__)
        print(f"{label}\t{scores[label]:.4f}\t{text}")
