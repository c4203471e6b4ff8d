"""A trained head on a frozen network as a folder with its own small loader."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from smolbench.models.backbone import Backbone
from smolbench.models.export.exported import HERE, SAMPLES, Exported, check_equal
from smolbench.models.features import FrozenFeatures
from smolbench.models.heads import HeadName
from smolbench.models.template import SLOT

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
    frozen: FrozenFeatures, head: nn.Module, kind: HeadName, labels: Sequence[str], folder: Path
) -> Exported:
    """Write a head, how texts are read for it, and a script that runs it without smolbench.

    Args:
        frozen: What turns texts into features.
        head: Features ``(B, D)`` to logits ``(B, C)``, trained.
        kind: What it consists of.
        labels: Names of the ``C`` classes.
        folder: An existing folder.

    Raises:
        SmolbenchError: If the script says something else than the run's own model.
    """
    from safetensors.torch import save_file  # lazy: import cost

    backbone, encoder = frozen.backbone, frozen.encoder
    device = torch.device("cpu")
    head = head.to(device).eval()
    exact = copy.copy(backbone)
    exact.dtype_name = "float32"  # in bfloat16 the order of sums would show
    read = FrozenFeatures(exact, encoder, pooling=frozen.pooling, anchor=frozen.anchor)
    with torch.inference_mode():
        features = read.start_reading(device)(encoder.encode(SAMPLES))
        expected = head(features).float()
    name, revision = backbone.origin
    anchor = frozen.anchor if frozen.pooling == "anchor" else None
    suffix = [*encoder.suffix_ids, *encoder.tail_ids]
    settings = {
        "backbone": name,
        "revision": revision,
        "dtype": str(backbone.dtype(device)).removeprefix("torch."),
        "layer": backbone.layer,
        "pooling": frozen.pooling,
        "anchor": anchor,
        "anchor_offset": None if anchor is None else encoder.anchor_offset(anchor),
        "template": encoder.template,
        "space": encoder.space,
        "prefix_ids": encoder.shared_ids,
        "suffix_ids": suffix,
        "empty_id": None if suffix else encoder.end_of_text(),
        "text_tokens": encoder.text_budget,
        "max_length": encoder.max_length,
        "truncation_side": encoder.truncation_side,
        "head": kind,
        "labels": list(labels),
    }
    weights = {name: value.contiguous() for name, value in head.state_dict().items()}
    save_file(weights, folder / "probe.safetensors", metadata={"format": "pt"})
    text = json.dumps(settings, indent=2, ensure_ascii=False)
    (folder / "probe.json").write_text(text + "\n", encoding="utf-8")
    (folder / "probe.py").write_text(LOADER.read_text(encoding="utf-8"), encoding="utf-8")
    encoder.tokenizer.save_pretrained(folder)
    check_equal(expected, folder, _loaded_logits)
    return Exported(
        framework="smolbench",
        what="a classification head on the features of a frozen network, which is not part of it "
        "and is loaded beside it",
        usage=_USAGE,
        reads=_reading(backbone, frozen, anchor),
        limits=[
            "It is no model of transformers: `probe.py`, a script of its own, loads it. Read it "
            "before you run it.",
            f"The network must be the one it was trained on, in {settings['dtype']}: with other "
            "weights or another number format its features differ.",
        ],
        base=backbone.origin,
        base_is_local=backbone.is_local,
    )


def _loaded_logits(folder: Path) -> torch.Tensor:
    from smolbench.models.export.probe_loader import Probe  # lazy: imports transformers

    return Probe.load(folder, dtype="float32").logits(SAMPLES)


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
