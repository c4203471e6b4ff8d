"""Batches: every row once, like lengths together, equal ranks, and a position that can be saved."""

from __future__ import annotations

import itertools
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch

from smolbench.data.batching import ArrayRows, BatchLoader, BatchPlan, JoinedRows, TokenRows
from smolbench.data.token_cache import encode_to_cache
from smolbench.errors import SmolbenchError
from tests.helpers.processes import Process

LENGTHS = np.random.default_rng(0).integers(1, 100, size=103)


def plans(rows, batch_size, world_size=1, **options):
    options = {"shuffle": True, "seed": 3} | options
    return [
        BatchPlan(rows, batch_size, rank=rank, world_size=world_size, **options)
        for rank in range(world_size)
    ]


def listed(batches):
    return [batch.tolist() for batch in batches]


@pytest.mark.parametrize("world_size", [1, 2, 3, 4])
@pytest.mark.parametrize("batch_size", [1, 2, 3, 8, 200])
@pytest.mark.parametrize("n_rows", [4, 5, 9, 17, 103])
@pytest.mark.parametrize("with_lengths", [True, False])
def test_training_has_every_row_once_and_equal_ranks(n_rows, batch_size, world_size, with_lengths):
    ranks = plans(LENGTHS[:n_rows] if with_lengths else n_rows, batch_size, world_size)
    batches = [plan.batches() for plan in ranks]
    sizes = [len(batch) for batch in itertools.chain(*batches)]

    assert sorted(np.concatenate(list(itertools.chain(*batches)))) == list(range(n_rows))
    assert {len(plan) for plan in ranks} == {len(own) for own in batches} == {len(batches[0])}
    assert max(sizes) - min(sizes) <= 1
    if batch_size > 1 and n_rows >= 2 * world_size:
        assert min(sizes) > 1
    if n_rows >= 2 * batch_size * world_size and batch_size > 2:
        assert max(sizes) <= batch_size


def test_order_depends_on_seed_and_epoch_only():
    (plan,) = plans(LENGTHS, 8)
    first = listed(plan.batches())
    plan.set_epoch(1)
    second = listed(plan.batches())
    plan.set_epoch(0)

    assert second != first
    assert listed(plan.batches()) == first
    assert listed(plans(LENGTHS, 8, seed=4)[0].batches()) != first
    assert plan.batches() is plan.batches()


def test_like_lengths_go_together_in_shuffled_batches():
    lengths = np.random.default_rng(1).integers(1, 500, size=2000)

    def padding(plan):
        width = [lengths[batch].max() * len(batch) for batch in plan.batches()]
        return 1 - lengths.sum() / sum(width)

    bucketed = BatchPlan(lengths, 20, shuffle=True, seed=0)
    plain = BatchPlan(2000, 20, shuffle=True, seed=0)
    sorted_whole = BatchPlan(lengths, 20, shuffle=True, seed=0, megabatch=100)
    longest = [lengths[batch].max() for batch in sorted_whole.batches()]

    assert padding(bucketed) < 0.05 < 0.4 < padding(plain)
    assert longest != sorted(longest)


def test_megabatch_bounds_how_far_rows_are_sorted():
    ordered = np.arange(400)
    one = BatchPlan(ordered, 10, shuffle=True, seed=0, megabatch=1)

    spread = [np.ptp(batch) for batch in one.batches()]

    assert min(spread) > 100


def test_a_megabatch_is_of_as_many_batches_as_it_says():
    """The rows of so many batches, in the order of the epoch, are sorted among themselves."""
    lengths = np.random.default_rng(1).permutation(70)
    plan = BatchPlan(lengths, 10, shuffle=True, seed=5, megabatch=3)
    order = np.random.default_rng([5, 0]).permutation(70)
    windows = [set(order[begin : begin + 30].tolist()) for begin in (0, 30, 60)]
    for batch in plan.batches():
        rows = set(batch.tolist())
        (window,) = [window for window in windows if rows <= window]
        ranks = sorted(lengths[list(window)]).index(lengths[list(rows)].min())
        assert ranks % 10 == 0
        assert np.ptp(np.searchsorted(sorted(lengths[list(window)]), lengths[list(rows)])) == 9


def test_sizes_count_padding():
    (plan,) = plans(np.array([5, 3, 2, 9, 4]), 2, shuffle=False)
    assert listed(plan.batches()) == [[3, 0], [4, 1], [2]]
    assert plan.sizes() == [18, 8, 2]
    (alike,) = plans(5, 2, shuffle=False)
    assert alike.sizes() == [2, 2, 1]


def test_ranks_get_like_lengths_at_the_same_step():
    lengths = np.arange(4000)
    first, second = (plan.batches() for plan in plans(lengths, 10, 2, megabatch=400))

    gaps = [abs(lengths[a].max() - lengths[b].max()) for a, b in zip(first, second, strict=True)]

    assert max(gaps) == 10


@pytest.mark.parametrize("n_rows", [4, 5, 9, 103])
@pytest.mark.parametrize("batch_size", [1, 3, 8, 200])
def test_evaluation_has_every_row_once_and_no_rank_without(n_rows, batch_size):
    for world_size in (1, 2, 4):
        batches = [
            plan.batches()
            for plan in plans(LENGTHS[:n_rows], batch_size, world_size, shuffle=False)
        ]
        rows = np.concatenate(list(itertools.chain(*batches)))
        assert sorted(rows) == list(range(n_rows))
        assert all(batches)
        assert max(len(batch) for batch in itertools.chain(*batches)) <= batch_size


def test_evaluation_batches_do_not_depend_on_the_number_of_ranks():
    (alone,) = plans(LENGTHS, 8, shuffle=False)
    first, second = plans(LENGTHS, 8, 2, shuffle=False)

    assert listed(first.batches()) == listed(alone.batches())[0::2]
    assert listed(second.batches()) == listed(alone.batches())[1::2]
    assert (len(first), len(second)) == (7, 6)


def test_evaluation_starts_with_the_longest_and_ignores_the_epoch():
    (plan,) = plans(LENGTHS, 8, shuffle=False)
    lengths = LENGTHS[np.concatenate(plan.batches())]
    before = listed(plan.batches())
    plan.set_epoch(5)

    assert lengths.tolist() == sorted(LENGTHS.tolist(), reverse=True)
    assert listed(plan.batches()) == before
    assert listed(BatchPlan(5, 2, shuffle=False, seed=0).batches()) == [[0, 1], [2, 3], [4]]


@pytest.mark.parametrize("shuffle", [True, False])
def test_plan_refuses_what_cannot_be_shared(shuffle):
    with pytest.raises(SmolbenchError, match="3 examples"):
        BatchPlan(3, 8, shuffle=shuffle, seed=0, world_size=4)
    with pytest.raises(SmolbenchError, match="batch size"):
        BatchPlan(3, 0, shuffle=shuffle, seed=0)
    with pytest.raises(SmolbenchError, match="seed"):
        BatchPlan(3, 1, shuffle=shuffle, seed=-1)


def token_table(folder, with_labels=False):
    def encode(batch):
        rows = batch["row"]
        columns = {
            "input_ids": [[row + 1] * (row % 3 + 1) for row in rows],
            "type_ids": [[1] * (row % 3 + 1) for row in rows],
            "score": [row / 4 for row in rows],
        }
        return columns | ({"labels": [[row] * (row % 2) for row in rows]} if with_labels else {})

    return encode_to_cache(folder, "key", lambda a, b: {"row": range(a, b)}, 10, encode, "Encoding")


def test_token_rows_are_padded_with_a_mask(tmp_path):
    rows = TokenRows(token_table(tmp_path), np.arange(10) % 2, pad_token_id=99)

    batch = rows.batch(np.array([4, 2]))

    assert {name: value.tolist() for name, value in batch.items()} == {
        "input_ids": [[5, 5, 99], [3, 3, 3]],
        "attention_mask": [[1, 1, 0], [1, 1, 1]],
        "type_ids": [[1, 1, 0], [1, 1, 1]],
        "score": [1.0, 0.5],
        "labels": [0, 0],
        "index": [4, 2],
    }
    integers = {value.dtype for name, value in batch.items() if name != "score"}
    assert integers == {torch.int64}
    assert batch["score"].dtype == torch.float32
    assert rows.lengths.tolist() == [row % 3 + 1 for row in range(10)]


def test_token_labels_are_padded_with_what_the_loss_ignores(tmp_path):
    table = token_table(tmp_path, with_labels=True)
    rows = TokenRows(table, None, pad_token_id=0, length_column="labels")

    assert rows.batch(np.array([3, 4]))["labels"].tolist() == [[3], [-100]]
    assert rows.lengths.tolist() == [0, 1] * 5
    with pytest.raises(ValueError, match="labels already"):
        TokenRows(table, np.zeros(10), pad_token_id=0)
    with pytest.raises(ValueError, match="9 labels"):
        TokenRows(table, np.zeros(9), pad_token_id=0)


def test_joined_rows_have_the_columns_of_both_and_pickle_as_a_path(tmp_path):
    logits = np.lib.format.open_memmap(
        tmp_path / "logits.npy", mode="w+", dtype=np.float32, shape=(50_000, 2)
    )
    logits[:] = np.arange(100_000).reshape(-1, 2)
    rows = JoinedRows(ArrayRows({"x": np.arange(50_000)}), ArrayRows({"logits": logits}))
    pickled = pickle.dumps(JoinedRows(rows.columns, rows.columns))
    assert len(pickled) < 2000
    for joined in (rows, pickle.loads(pickle.dumps(rows))):
        batch = joined.batch(np.array([7, 3]))
        assert len(joined) == 50_000
        assert joined.lengths is None
        assert batch["index"].tolist() == batch["x"].tolist() == [7, 3]
        assert batch["logits"].tolist() == [[14, 15], [6, 7]]
    with pytest.raises(ValueError, match="2 rows of further columns for 3 rows"):
        JoinedRows(ArrayRows({"x": np.zeros(3)}), ArrayRows({"y": np.zeros(2)}))


def test_array_rows_gather_and_pickle_as_a_path(tmp_path):
    path = tmp_path / "features"
    stored = np.memmap(path, dtype=np.float16, mode="w+", shape=(1000, 50))
    stored[:] = np.arange(1000)[:, None]
    stored.flush()
    mapped = np.memmap(path, dtype=np.float16, mode="r", shape=(1000, 50))
    rows = ArrayRows({"features": mapped, "labels": np.arange(1000)})

    raw = pickle.dumps(rows)
    batch = pickle.loads(raw).batch(np.array([7, 3]))

    assert len(raw) < 10_000  # the features are 100,000 bytes
    assert batch["features"].dtype == torch.float16
    assert batch["features"][:, 0].tolist() == [7, 3]
    assert batch["labels"].tolist() == batch["index"].tolist() == [7, 3]

    part = pickle.loads(pickle.dumps(ArrayRows({"features": mapped[500:]})))
    assert part.batch(np.array([0]))["features"][0, 0] == 500
    with pytest.raises(ValueError, match="one number of rows"):
        ArrayRows({"a": np.zeros(2), "b": np.zeros(3)})


def loader(num_workers=0, n_rows=103, **options):
    rows = ArrayRows({"x": np.ones((n_rows, 2), dtype=np.float32)})
    options = {"shuffle": True, "seed": 0} | options
    return BatchLoader(rows, BatchPlan(n_rows, 8, **options), num_workers)


def drawn(batches):
    return [batch["index"].tolist() for batch in batches]


def test_the_middle_batch_moves_nothing():
    batches = loader(shuffle=False)
    left = iter(batches)
    next(left)
    before = batches.state_dict()
    assert batches.middle()["index"].tolist() == list(range(48, 56))  # the seventh of 13
    assert batches.state_dict() == before


@pytest.mark.parametrize("num_workers", [0, 2])
def test_position_counts_what_was_consumed(num_workers):
    whole = drawn(loader())
    interrupted = loader(num_workers)
    batches = iter(interrupted)
    begun = drawn(itertools.islice(batches, 4))
    state = interrupted.state_dict()

    resumed = loader(num_workers)
    resumed.load_state_dict(state)

    assert state == {"epoch": 0, "batches": 4, "n_batches": 13}
    assert resumed.state_dict() == state
    assert begun + drawn(resumed) == whole
    assert resumed.state_dict() == {"epoch": 1, "batches": 0, "n_batches": 13}
    assert drawn(resumed) == whole  # the position holds for one iteration only


def test_position_is_for_its_epoch_only():
    resumed = loader()
    resumed.load_state_dict({"epoch": 2, "batches": 4, "n_batches": 13})
    assert resumed.plan.epoch == 2

    resumed.sampler.set_epoch(3)

    assert len(drawn(resumed)) == 13
    assert resumed.state_dict() == {"epoch": 4, "batches": 0, "n_batches": 13}


def test_epoch_is_looked_up_at_the_first_batch():
    early = loader()
    batches = iter(early)
    early.sampler.set_epoch(1)
    early.load_state_dict({"epoch": 1, "batches": 2, "n_batches": 13})
    expected = loader()
    expected.sampler.set_epoch(1)

    assert drawn(batches) == drawn(expected)[2:]


def test_evaluation_starts_over_after_being_left():
    evaluation = loader(shuffle=False)
    first = drawn(itertools.islice(evaluation, 2))
    assert drawn(evaluation)[:2] == first
    assert len(evaluation) == 13


def test_position_in_an_epoch_of_another_length_is_refused():
    with pytest.raises(SmolbenchError, match="batch 4 of 20"):
        loader().load_state_dict({"epoch": 0, "batches": 4, "n_batches": 20})
    loader().load_state_dict({"epoch": 1, "batches": 0, "n_batches": 20})
    with pytest.raises(ValueError, match="5 rows"):
        BatchLoader(ArrayRows({"x": np.zeros(4)}), BatchPlan(5, 2, shuffle=True, seed=0))


@pytest.mark.parametrize("num_workers", [0, 2])
def test_global_random_state_is_left_alone(num_workers):
    before = torch.get_rng_state()
    drawn(loader(num_workers, n_rows=20))
    assert torch.equal(torch.get_rng_state(), before)


class Recorder(pl.LightningModule):
    """Notes which rows it was given."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.seen = []

    def training_step(self, batch, _batch_idx):
        self.seen.append(batch["index"].tolist())
        return self.layer(batch["x"]).mean()

    def validation_step(self, batch, _batch_idx):
        self.log("loss", self.layer(batch["x"]).mean())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), 0.1)


class Saver(pl.Callback):
    """Saves a checkpoint in one hook, with the number of batches trained on so far."""

    def __init__(self, folder, hook):
        self.saved = []

        def save(trainer, module, *_args):
            if not trainer.sanity_checking:
                path = folder / f"{len(self.saved)}.ckpt"
                trainer.save_checkpoint(path)
                self.saved.append((len(module.seen), path))

        setattr(self, hook, save)


def fit(num_workers=0, callbacks=(), ckpt_path=None, **options):
    module = Recorder()
    trainer = pl.Trainer(
        **{"max_epochs": 3, "num_sanity_val_steps": 1} | options,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        module,
        loader(num_workers, n_rows=37),
        loader(n_rows=10, shuffle=False),
        ckpt_path=ckpt_path,
    )
    return module.seen


@pytest.mark.parametrize(
    ("hook", "num_workers", "options"),
    [
        ("on_train_batch_end", 0, {}),
        ("on_train_batch_end", 0, {"limit_train_batches": 0.5}),
        ("on_train_batch_end", 0, {"reload_dataloaders_every_n_epochs": 1}),
        ("on_train_batch_end", 0, {"accumulate_grad_batches": 2}),
        ("on_validation_end", 0, {"val_check_interval": 2}),
        ("on_validation_end", 2, {}),
        ("on_train_epoch_end", 2, {}),
        ("on_train_epoch_end", 0, {"limit_train_batches": 0.5}),
    ],
)
def test_lightning_resumes_at_the_same_batch(tmp_path, hook, num_workers, options):
    saver = Saver(tmp_path, hook)
    whole = fit(num_workers, [saver], **options)
    assert len({tuple(batch) for batch in whole}) == len(whole)

    for done, path in saver.saved[:: len(saver.saved) // 5 or 1]:
        assert fit(num_workers, ckpt_path=path, **options) == whole[done:], path


def test_lightning_resumes_mid_epoch_with_workers(tmp_path):
    saver = Saver(tmp_path, "on_train_batch_end")
    whole = fit(2, [saver], max_epochs=2)

    done, path = saver.saved[2]

    assert done == 3
    assert fit(2, ckpt_path=path, max_epochs=2) == whole[3:]


def test_lightning_can_overfit_and_dry_run():
    assert len(fit(overfit_batches=2)) == 6
    assert len(fit(fast_dev_run=True)) == 1


@pytest.mark.parametrize("ending", ["", "raise RuntimeError('on purpose')"])
def test_a_process_ends_although_its_loader_is_still_in_use(ending):
    program = f"""
import sys
import numpy as np
from smolbench.data.batching import ArrayRows, BatchLoader, BatchPlan
plan = BatchPlan(100, 10, shuffle=True, seed=0)
batches = iter(BatchLoader(ArrayRows({{"x": np.zeros(100)}}), plan, num_workers=1))
next(batches)
sys.modules["something that lives until the very end"] = batches
{ending}
"""
    done = Process("-c", program).result()
    assert done.returncode == (1 if ending else 0), done.stderr
    assert ("on purpose" in done.stderr) == bool(ending)
