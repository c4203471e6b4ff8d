"""The largest batch that fits: tried on the longest rows, kept by a resumed run."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningModule

from smolbench.cli import main
from smolbench.data.batching import ArrayRows
from smolbench.errors import SmolbenchError
from smolbench.tasks import batch_size
from smolbench.tasks.batch_size import largest_batch
from tests.helpers.command import FEW, ONE_EPOCH, results, weights

WIDTH = 64


class Wide(LightningModule):
    """A step's memory grows with the batch: every row makes 4 MiB of activations."""

    def __init__(self) -> None:
        super().__init__()
        self.norm = torch.nn.BatchNorm1d(WIDTH)
        self.layer = torch.nn.Linear(WIDTH, 1 << 20, bias=False)
        self._trainer = SimpleNamespace(
            num_devices=1,
            precision_plugin=SimpleNamespace(forward_context=torch.enable_grad),
            strategy=None,
        )

    def checked_loss(self, batch: dict[str, torch.Tensor]) -> torch.Tensor:
        return torch.nn.functional.dropout(self.layer(self.norm(batch["x"]))).square().mean()


@pytest.fixture
def rows():
    return ArrayRows({"x": np.random.default_rng(0).normal(size=(64, WIDTH)).astype("float32")})


def test_the_trial_leaves_everything_as_it_was(rows):
    task = Wide()
    before = {name: value.clone() for name, value in task.state_dict().items()}
    random = torch.get_rng_state()
    assert largest_batch(task, rows, 4) == 4
    assert all(torch.equal(value, before[name]) for name, value in task.state_dict().items())
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for p in task.parameters())


def test_a_limit_is_kept(rows):
    # weights' gradient and two moments: 3 x 256 MiB; then at least 8 MiB per row
    found = largest_batch(Wide(), rows, 32, limit_mib=1100)
    assert 2 <= found < 32


@pytest.fixture
def costs(monkeypatch):
    """Replace the trial by a rule, and say which sizes were tried."""

    def install(rule):
        tried = []

        def trial(task, batch):
            tried.append(len(batch["index"]))
            return rule(len(batch["index"]))

        monkeypatch.setattr(batch_size, "_trial_mib", trial)
        return tried

    return install


def test_only_divisors_are_tried_and_nothing_that_cannot_fit(rows, costs):
    tried = costs(lambda size: 100 + 10 * size)
    assert largest_batch(Wide(), rows, 24, limit_mib=250) == 12
    assert tried == [2, 3, 4, 6, 8, 12]  # 24 would need 340 of the 225 MiB


def test_an_allocator_that_refuses_ends_the_search(rows, costs):
    def rule(size):
        if size > 4:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return 1.0

    costs(rule)
    assert largest_batch(Wide(), rows, 16) == 4


def test_other_errors_are_not_taken_for_a_lack_of_memory(rows, costs):
    def rule(size):
        raise RuntimeError("shapes do not fit")

    costs(rule)
    with pytest.raises(RuntimeError, match="shapes"):
        largest_batch(Wide(), rows, 16)


def test_what_never_fits_is_a_sentence(rows, costs):
    costs(lambda size: 1000.0)
    with pytest.raises(SmolbenchError, match="does not fit into the 100 MiB"):
        largest_batch(Wide(), rows, 16, limit_mib=100)


def test_the_longest_rows_are_tried(costs, monkeypatch):
    seen = []
    monkeypatch.setattr(
        batch_size, "_trial_mib", lambda _, b: seen.append(b["index"].tolist()) or 1.0
    )
    rows = ArrayRows({"x": np.zeros((6, WIDTH), "float32")})
    rows.lengths = np.array([3, 9, 1, 8, 2, 7])
    assert largest_batch(Wide(), rows, 3, limit_mib=100) == 3
    assert seen == [[1, 3, 5]]


def test_a_containers_limit_counts(tmp_path, monkeypatch):
    monkeypatch.setattr(batch_size, "CGROUPS", tmp_path)
    assert batch_size._free_of_group() == float("inf")
    (tmp_path / "memory.max").write_text("3000\n")
    (tmp_path / "memory.current").write_text("1000\n")
    assert batch_size._free_of_group() == 2000
    (tmp_path / "memory.max").write_text("max\n")
    assert batch_size._free_of_group() == float("inf")


AUTO = ["--data.batch_size=auto", "--data.effective_batch_size=16"]


def test_auto_trains_as_the_same_batches_given_by_hand(folder_here, costs):
    costs(lambda size: float(size))
    limit = ["--model.dropout=0", "--model.head=linear", ONE_EPOCH]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(batch_size, "_free_mib", lambda *_: 5 / 0.9)
        assert main(["fit", *FEW, *AUTO, *limit, "--run_dir=auto"]) == 0
    by_hand = ["--data.batch_size=4", "--trainer.accumulate_grad_batches=4"]
    assert main(["fit", *FEW, *by_hand, *limit, "--run_dir=hand"]) == 0
    for name, value in weights(Path("hand")).items():
        assert torch.equal(value, weights(Path("auto"))[name])
    assert results(Path("auto"))["data/batch_size"] == 4
    # another machine has more memory, and the run goes on as it began
    more = "--trainer.max_epochs=2"
    assert (
        main(["fit", *FEW, *AUTO, *limit, more, "--run_dir=auto", "--ckpt_path=last", "--extend"])
        == 0
    )
    assert results(Path("auto"))["data/batch_size"] == 4


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data.effective_batch_size=16"], "is for data.batch_size auto"),
        ([*AUTO, "--trainer.accumulate_grad_batches=2"], "leave it at 1"),
        (["--data.batch_size=auto", "--data.effective_batch_size=0"], "at least 1"),
        (["--data.batch_size=many"], "batch_size"),
    ],
)
def test_contradictions_are_sentences(folder_here, capsys, options, said):
    assert main(["fit", *FEW, ONE_EPOCH, *options]) == 2
    error = capsys.readouterr().err
    assert said in error
    assert "Traceback" not in error


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2 GiB"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        MemoryError(),
    ],
)
def test_out_of_memory_names_the_batch(folder_here, capsys, monkeypatch, error):
    from smolbench.tasks import ProbeTask

    def fail(self, batch, batch_idx):
        raise error

    monkeypatch.setattr(ProbeTask, "training_step", fail)
    assert main(["fit", *FEW, ONE_EPOCH]) == 2
    said = capsys.readouterr().err
    assert "Out of memory with a training batch of 32 rows: try a smaller data.batch_size" in said
    assert "Traceback" not in said
