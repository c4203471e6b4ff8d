"""A trained head on a frozen network as a folder with its own small loader."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn

from smolbench.errors import SmolbenchError
from smolbench.models.encoding.template import SLOT
from smolbench.models.export.check import DTypeName, Expected, check_export
from smolbench.models.export.exported import HERE, Exported
from smolbench.models.frozen.features import FrozenFeatures
from smolbench.models.pretrained.backbone import Backbone
from smolbench.models.pretrained.heads import HeadName

LOADER = Path(__file__).with_name("probe_loader.py")
_USAGE = f"""\
import sys

folder = "{HERE}"
sys.path.insert(0, folder)  # probe.py lies there
from probe import Probe

probe = Probe.load(folder)
for scores in probe(["Two hours I will never get back.", "A gem."]):
    print(max(scores, key=scores.get), scores)
"""


def write_probe(
    frozen: FrozenFeatures,
    head: nn.Module,
    kind: HeadName,
    labels: Sequence[str],
    expect: Callable[[], Expected],
    folder: Path,
) -> Exported:
    """Write a head, how texts are read for it, and a script that runs it without smolbench.

    Args:
        frozen: What turns texts into features.
        head: Features ``(B, D)`` to logits ``(B, C)``, trained.
        kind: What it consists of.
        labels: Names of the ``C`` classes.
        expect: Says what the run's path says; it asks a :class:`Probe`.
        folder: An existing folder.

    Raises:
        SmolbenchError: If the script says something else than the run's own model.
    """
    from safetensors.torch import save_file  # lazy: import cost

    backbone, encoder = frozen.backbone, frozen.encoder
    if backbone.adapter is not None:
        raise SmolbenchError(
            f"This head reads {backbone.given}, an adapter merged into {backbone.name}, and an "
            "export of a head names its network and does not hold it: merge the adapter by peft's "
            "merge_and_unload, save that model, and train the head on it."
        )
    rounded = backbone.dtype(torch.device("cpu")) == torch.bfloat16
    dtype: DTypeName = "bfloat16" if rounded else "float32"
    expected = expect()
    head = head.cpu().eval()
    name, revision = backbone.origin
    anchor = frozen.anchor if frozen.pooling == "anchor" else None
    ends = bool(encoder.suffix_ids or encoder.tail_ids)
    settings = {
        "backbone": name,
        "revision": revision,
        "dtype": dtype,
        "layer": backbone.layer,
        "pooling": frozen.pooling,
        "anchor": anchor,
        "anchor_offset": None if anchor is None else encoder.anchor_offset(anchor),
        "template": encoder.template,
        "head_ids": encoder.head_ids,
        "tail_ids": encoder.tail_ids,
        "shared": len(encoder.shared_ids),
        "empty_id": None if ends else encoder.end_of_text(),
        "max_length": encoder.max_length,
        "truncation_side": encoder.truncation_side,
        "head": kind,
        "labels": list(labels),
        "alone": frozen.facts(torch.device("cpu")).padding == "seen",
    }
    weights = {name: value.contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / "probe.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "probe.json").write_text(text + "\n", encoding="utf-8")
    (folder / "probe.py").write_text(LOADER.read_text(encoding="utf-8"), encoding="utf-8")
    encoder.tokenizer.save_pretrained(folder)
    return Exported(
        framework="smolbench",
        what="a classification head on the features of a frozen network, which is not part of it "
        "and is loaded beside it",
        usage=_USAGE,
        reads=_reading(backbone, frozen, anchor),
        limits=[
            "It is no model of transformers: `probe.py`, a script of its own, loads it. Read it "
            "before you run it.",
            f"The network must be the one it was trained on, in {dtype}: with other "
            "weights or another number format its features differ.",
        ],
        check=check_export(expected, folder, _load, dtype),
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def _load(folder: Path, dtype: torch.dtype) -> Any:  # noqa: ANN401 - importing it is slow
    from smolbench.models.export.probe_loader import Probe  # lazy: imports transformers

    return Probe.load(folder, dtype=str(dtype).removeprefix("torch."))


def _reading(backbone: Backbone, frozen: FrozenFeatures, anchor: str | None) -> list[str]:
    encoder = frozen.encoder
    place = f"the word {anchor!r} of the template" if anchor else frozen.pooling
    layer = "the last layer" if backbone.layer == -1 else f"layer {backbone.layer}"
    end = "end" if encoder.truncation_side == "right" else "beginning"
    prompt = (
        "The text as it is, with no prompt around it."
        if encoder.template == SLOT
        else f"The text is put into a template, where `{SLOT}` stands: `{encoder.template!r}`; "
        "`probe.py` does so by itself."
    )
    return [
        prompt,
        f"At most {encoder.max_length:,} tokens are read, template included; a longer text loses "
        f"its {end}.",
        f"The head gets one vector per text: {layer} of the network, pooling: {place}.",
    ]
