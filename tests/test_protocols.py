from __future__ import annotations

from smolbench.protocols import Pads, Predicts, offered
from smolbench.tasks import ProbeTask


class Partial:
    """Somebody's module: of two names that callbacks ask for only one means what they mean."""

    def __init__(self):
        self.predictions = []

    def facts(self):
        return {}


def test_a_list_of_the_same_name_is_no_method():
    assert offered(Partial(), Predicts) is None
    assert offered(None, Predicts) is None


def test_values_count_as_well_as_methods():
    one = Partial()
    assert offered(one, Pads) is None
    one.pad_token_id = 5
    assert offered(one, Pads).pad_token_id == 5


def test_a_task_takes_part_without_a_base_class_of_the_protocol():
    task = ProbeTask(backbone="tiny")
    assert offered(task, Predicts) is task
