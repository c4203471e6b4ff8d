"""What the options of Lightning's Trainer are read as."""

from __future__ import annotations

from typing import Union, get_args

import pytest
from lightning.pytorch import Trainer

from smolbench.option_parser import OptionParser, tell_counts_from_shares

OPTIONS = ("limit_val_batches", "overfit_batches", "val_check_interval")


@pytest.mark.parametrize("first", [int, float])
def test_one_is_a_batch_and_one_point_nought_is_all(monkeypatch, first):
    """Whichever of the two equal types was made first in this process."""
    (second,) = {int, float} - {first}
    annotations = Trainer.__init__.__annotations__
    for name in OPTIONS:
        rest = [part for part in get_args(annotations[name]) if part not in (int, float)]
        monkeypatch.setitem(annotations, name, Union[(first, second, *rest)])
    before = dict(annotations)
    tell_counts_from_shares()
    assert annotations == before  # types of other order are equal
    parser = OptionParser()
    parser.add_class_arguments(Trainer, "trainer")
    for name in OPTIONS:
        for typed, meant in (("1", 1), ("1.0", 1.0), ("0.5", 0.5), ("20", 20)):
            found = getattr(parser.parse_args([f"--trainer.{name}={typed}"]).trainer, name)
            assert (found, type(found)) == (meant, type(meant)), (name, typed)
