from __future__ import annotations

import errno
import gc
import json
import logging
import multiprocessing
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from smolbench.callbacks.memory import MemoryMonitor, peaks_within, resident_mib
from smolbench.errors import SmolbenchError
from smolbench.models.frozen import cache as frozen_cache
from smolbench.models.frozen import entry as output_files
from smolbench.models.frozen.cache import cached_outputs, plan_blocks
from smolbench.models.frozen.entry import Entry, peak_costs
from smolbench.utils.notices import begin
from smolbench.utils.ranks import Ranks
from tests.helpers.processes import Process

LENGTHS = np.array([3, 9, 1, 4, 4, 7, 2, 0, 5, 6, 30])
WIDTH = 4


def truth(rows):
    """Outputs that depend on the row and, as on real hardware, in the last bits on its batch."""
    rows = np.asarray(rows)
    outputs = np.stack([np.sin(rows + 1.0 + k) for k in range(WIDTH)], axis=1)
    return (outputs + 1e-6 * rows.sum()).astype(np.float32)


class Network:
    """Counts how often it is loaded and what it computes; dies at a given block."""

    def __init__(self, die_at=None, error=None, seconds=0.0):
        self.loaded = 0
        self.blocks = []
        self.die_at = die_at
        self.error = error or RuntimeError("killed")
        self.seconds = seconds
        self.wait_for = None

    def start(self):
        self.loaded += 1
        return self.compute

    def compute(self, rows):
        if len(self.blocks) == self.die_at:
            raise self.error
        time.sleep(self.seconds)
        deadline = time.monotonic() + 10
        while self.wait_for and not self.wait_for.exists() and time.monotonic() < deadline:
            time.sleep(0.005)
        self.blocks.append(rows.tolist())
        return truth(rows)


def run(folder, network, key="key", width=WIDTH, **options):
    def start():
        compute = network.start()
        return lambda rows: {key: compute(rows)}

    options = {"widths": {key: width}, "blocks": plan_blocks(LENGTHS, 12), **options}
    options = {"device": torch.device("cpu"), **options}
    return cached_outputs(Path(folder), key, start_compute=start, description="test", **options)


@pytest.fixture
def undisturbed(tmp_path_factory):
    return np.array(run(tmp_path_factory.mktemp("undisturbed"), Network()).outputs)


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "cache"


# -- blocks ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("tokens", [1, 5, 12, 10_000])
def test_every_row_stands_in_one_block_that_is_not_too_large(tokens):
    blocks = plan_blocks(LENGTHS, tokens)
    assert sorted(np.concatenate(blocks).tolist()) == list(range(len(LENGTHS)))
    for block in blocks:
        assert len(block) == 1 or len(block) * LENGTHS[block].max() <= tokens
    longest = [LENGTHS[block].max() for block in blocks]
    assert longest == sorted(longest, reverse=True)


def test_blocks_depend_on_the_lengths_only():
    first, second = plan_blocks(LENGTHS, 12), plan_blocks(LENGTHS.copy(), 12)
    assert all(np.array_equal(a, b) for a, b in zip(first, second, strict=True))


# -- the normal way -------------------------------------------------------------------------------


def test_outputs_are_computed_once_and_read_afterwards(folder):
    first, second = Network(), Network()
    made = run(folder, first)
    for block in plan_blocks(LENGTHS, 12):
        assert np.array_equal(made.outputs[block], truth(block))
    assert made.outputs.dtype == np.float32
    assert made.outputs.shape == (len(LENGTHS), WIDTH)
    found = run(folder, second)
    assert (made.reused, found.reused) == (False, True)
    assert (first.loaded, second.loaded) == (1, 0)
    assert np.array_equal(made.outputs, found.outputs)
    assert found.seconds == made.seconds > 0


def test_outputs_cannot_be_written_to(folder):
    outputs = run(folder, Network()).outputs
    with pytest.raises(ValueError, match="read-only"):
        outputs[0] = 0


def test_another_key_is_another_entry(folder):
    run(folder, Network())
    other = Network()
    run(folder, other, key="other")
    assert other.loaded == 1


# -- killed in the middle -------------------------------------------------------------------------


@pytest.mark.parametrize("die_at", [0, 1, 3])
@pytest.mark.parametrize("error", [RuntimeError("killed"), KeyboardInterrupt()])
def test_a_pass_that_died_goes_on_with_the_same_bits(folder, undisturbed, die_at, error, caplog):
    caplog.set_level(logging.INFO, "smolbench")
    dying, rest = Network(die_at, error), Network()
    with pytest.raises(type(error)):
        run(folder, dying)
    found = run(folder, rest)
    assert np.array_equal(found.outputs, undisturbed)
    assert dying.blocks + rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert not found.reused
    assert ("going on" in caplog.text) == (die_at > 0)


def test_a_pass_that_died_twice_goes_on(folder, undisturbed):
    networks = [Network(1), Network(2), Network()]
    for network in networks[:2]:
        with pytest.raises(RuntimeError):
            run(folder, network)
    assert np.array_equal(run(folder, networks[2]).outputs, undisturbed)
    computed = [block for network in networks for block in network.blocks]
    assert computed == [b.tolist() for b in plan_blocks(LENGTHS, 12)]


def test_the_lock_is_free_after_an_error_that_somebody_keeps(folder, undisturbed):
    kept = None
    try:
        run(folder, Network(2))
    except RuntimeError as error:
        kept = error  # with its traceback and so with every local variable
    outputs = []
    again = threading.Thread(
        target=lambda: outputs.append(run(folder, Network()).outputs), daemon=True
    )
    again.start()
    again.join(timeout=10)
    assert outputs, "the second attempt waits for the first one's lock"
    assert np.array_equal(outputs[0], undisturbed)
    assert kept is not None


KILLED = """
import os, sys
sys.path.insert(0, {tests!r})
from test_cache import Network, run

network = Network()
compute = network.compute

def die(rows):
    if len(network.blocks) == 2:
        os._exit(9)
    return compute(rows)

network.compute = die
run(sys.argv[1], network)
"""


def test_a_killed_process_is_gone_on_with(folder, undisturbed):
    code = KILLED.format(tests=str(Path(__file__).parent))
    done = Process("-c", code, str(folder)).result()
    assert done.returncode == 9, done.stderr
    rest = Network()
    assert np.array_equal(run(folder, rest).outputs, undisturbed)
    assert rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)][2:]


@pytest.mark.parametrize("name", ["outputs.f32", "seconds.f32"])
def test_a_half_made_file_is_made_anew_with_all_that_it_stood_for(folder, undisturbed, name):
    with pytest.raises(RuntimeError):
        run(folder, Network(3))
    file = folder / "key" / name
    file.write_bytes(file.read_bytes()[:5])
    rest = Network()
    assert np.array_equal(run(folder, rest).outputs, undisturbed)
    assert len(rest.blocks) == len(plan_blocks(LENGTHS, 12))


def test_seconds_add_up_over_attempts(folder):
    with pytest.raises(RuntimeError):
        run(folder, Network(2, seconds=0.05))
    made = run(folder, Network(seconds=0.01))
    blocks = len(plan_blocks(LENGTHS, 12))
    assert made.seconds >= 2 * 0.05 + (blocks - 2) * 0.01
    assert made.seconds < 5
    assert run(folder, Network()).seconds == made.seconds


# -- damaged --------------------------------------------------------------------------------------


def spoil_value(entry):
    raw = bytearray((entry / "outputs.f32").read_bytes())
    raw[7] ^= 1
    (entry / "outputs.f32").write_bytes(raw)


@pytest.mark.parametrize(
    "spoil",
    [
        spoil_value,
        lambda entry: (entry / "outputs.f32").write_bytes(b""),
        lambda entry: (entry / "outputs.f32").write_bytes(
            (entry / "outputs.f32").read_bytes()[:-4]
        ),
        lambda entry: (entry / "outputs.f32").unlink(),
        lambda entry: (entry / "meta.json").write_text(""),
        lambda entry: (entry / "meta.json").write_text("[]"),
        lambda entry: (entry / "meta.json").write_text("{}"),
        lambda entry: (entry / "meta.json").write_bytes(b"\xff\xfe"),
    ],
)
def test_a_damaged_entry_is_computed_again(folder, undisturbed, spoil, caplog):
    run(folder, Network())
    gc.collect()  # no mapping is left open
    spoil(folder / "key")
    again = Network()
    found = run(folder, again)
    assert np.array_equal(found.outputs, undisturbed)
    assert len(again.blocks) == len(plan_blocks(LENGTHS, 12))
    assert not found.reused
    assert "damaged" in caplog.text


def test_an_entry_of_another_shape_is_computed_again(folder, caplog):
    run(folder, Network())
    again = Network()
    again.compute = lambda rows: truth(rows)[:, :2]
    assert run(folder, again, width=2).outputs.shape == (len(LENGTHS), 2)
    assert "damaged" in caplog.text


def test_marks_may_be_lost_once_an_entry_is_complete(folder):
    run(folder, Network())
    (folder / "key" / "seconds.f32").unlink()
    assert run(folder, Network()).reused


# -- several processes ----------------------------------------------------------------------------


def in_process(folder, gate, results):
    network = Network(seconds=0.02)
    gate.wait()
    found = run(folder, network)
    results.put((network.loaded, found.reused, found.outputs.tobytes()))


@pytest.mark.parametrize("damaged", [False, True])
def test_of_several_processes_one_computes(folder, undisturbed, damaged):
    if damaged:
        run(folder, Network())
        spoil_value(folder / "key")
    context = multiprocessing.get_context("fork")
    gate, results = context.Barrier(3), context.Queue()
    processes = [context.Process(target=in_process, args=(folder, gate, results)) for _ in range(3)]
    for process in processes:
        process.start()
    found = [results.get(timeout=60) for _ in processes]
    for process in processes:
        process.join()
    assert sorted(loaded for loaded, _, _ in found) == [0, 0, 1]
    assert sorted(reused for _, reused, _ in found) == [False, True, True]
    assert {raw for _, _, raw in found} == {undisturbed.tobytes()}


def test_waiting_says_so(folder, caplog):
    started, go_on = threading.Event(), threading.Event()
    slow = Network()

    def compute(rows):
        started.set()
        go_on.wait(10)
        return truth(rows)

    slow.compute = compute
    first = threading.Thread(target=run, args=(folder, slow))
    first.start()
    started.wait(10)
    second = threading.Thread(target=run, args=(folder, Network()))
    second.start()
    deadline = time.monotonic() + 10
    while "waiting" not in caplog.text and time.monotonic() < deadline:
        time.sleep(0.01)
    go_on.set()
    first.join(10)
    second.join(10)
    assert "Another process is computing" in caplog.text


class Threads(Ranks):
    """Ranks of a job as threads."""

    def __init__(self, rank, world_size, shared, nodes=1):
        per_node = world_size // nodes
        self.rank, self.local_rank, self.node = rank, rank % per_node, rank // per_node
        self.world_size, self.nodes = world_size, nodes
        self._shared = shared
        self._shared.setdefault("values", [None] * world_size)

    def gather(self, value):
        self._shared["values"][self.rank] = value
        self._shared["barrier"].wait(10)
        everybody = list(self._shared["values"])
        self._shared["barrier"].wait(10)
        return everybody


def on_ranks(folder, networks, run=run, nodes=1):
    """Run a pass on as many ranks as there are networks; what came out of each, or its error."""
    world_size = len(networks)
    shared = {"barrier": threading.Barrier(len(networks))}
    found = [None] * len(networks)

    def work(rank):
        try:
            ranks = Threads(rank, world_size, shared, nodes)
            found[rank] = run(folder, networks[rank], ranks=ranks)
        except Exception as error:
            found[rank] = error

    threads = [
        threading.Thread(target=work, args=(rank,), name=f"rank {rank}", daemon=True)
        for rank in range(len(networks))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    return found


def test_ranks_share_the_blocks(folder, undisturbed):
    networks = [Network() for _ in range(3)]
    found = on_ranks(folder, networks)
    blocks = [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert [network.blocks for network in networks] == [blocks[0::3], blocks[1::3], blocks[2::3]]
    assert all(np.array_equal(one.outputs, undisturbed) for one in found)
    assert not any(one.reused for one in found)


def test_nodes_write_to_files_of_their_own(folder, undisturbed):
    wrote = {}

    class Watched(Network):
        def start(self):
            compute = super().start()

            def watched(rows):
                wrote.setdefault(threading.current_thread().name, set()).update(
                    path.name for path in folder.glob("*/outputs*")
                )
                return compute(rows)

            return watched

    networks = [Watched() for _ in range(4)]
    found = on_ranks(folder, networks, nodes=2)
    blocks = [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert [network.blocks for network in networks] == [blocks[n::4] for n in range(4)]
    assert wrote["rank 3"] == {"outputs.f32", "outputs.node1.f32"}
    assert all(np.array_equal(one.outputs, undisturbed) for one in found)
    assert not list(folder.glob("*/*.node*")), "what was added to the entry is not kept twice"


def test_what_a_node_had_done_is_kept_for_one_process(folder, undisturbed):
    others = [Network(), Network()]

    class DiesLast(Network):
        def compute(self, rows):
            deadline = time.monotonic() + 10
            while not all(network.blocks for network in others) and time.monotonic() < deadline:
                time.sleep(0.005)
            raise self.error

    on_ranks(folder, [DiesLast(), *others], nodes=3)
    assert len(list(folder.glob("*/outputs.node*.f32"))) == 2
    rest = Network()
    assert np.array_equal(run(folder, rest).outputs, undisturbed)
    assert not list(folder.glob("*/*.node*"))
    assert len(rest.blocks) < len(plan_blocks(LENGTHS, 12))


DIED = "The backbone cannot be loaded."


def refuse(*_):
    raise SmolbenchError(DIED)


@pytest.mark.parametrize("failing", [0, 1, 2])
@pytest.mark.parametrize("at", ["start", "compute"])
def test_an_error_of_one_rank_ends_all_with_its_sentence(folder, undisturbed, failing, at):
    networks = [Network() for _ in range(3)]
    for network in networks:
        network.wait_for = folder / "key" / "failed"
    networks[failing].wait_for = None
    setattr(networks[failing], at, refuse)
    found = on_ranks(folder, networks)
    assert [str(error) for error in found] == [DIED] * 3
    assert {type(error) for error in found} == {SmolbenchError}
    others = [network for rank, network in enumerate(networks) if rank != failing]
    assert all(len(network.blocks) <= 1 for network in others), "they go on for nothing"
    again = on_ranks(folder, [Network() for _ in range(3)])
    assert all(np.array_equal(one.outputs, undisturbed) for one in again)


def test_an_error_of_an_unexpected_kind_keeps_its_traceback_where_it_came_up(folder):
    found = on_ranks(folder, [Network(), Network(0, RuntimeError("dead\nkernel")), Network()])
    assert isinstance(found[1], RuntimeError)
    for other in (found[0], found[2]):
        assert isinstance(other, SmolbenchError)
        assert str(other) == "Process 1 of this job has failed (RuntimeError: dead kernel)."


def test_ranks_that_have_nothing_to_compute_hear_of_errors(folder):
    run(folder, Network())
    gc.collect()  # no mapping is left open
    (folder / "key" / "meta.json").unlink()
    marks = np.memmap(folder / "key" / "seconds.f32", dtype=np.float32, mode="r+").reshape(-1, 2)
    marks[2::3] = 0
    marks.flush()
    networks = [Network(), Network(), Network(0, SmolbenchError(DIED))]
    found = on_ranks(folder, networks)
    assert [str(error) for error in found] == [DIED] * 3
    assert [network.loaded for network in networks] == [0, 0, 1]


@pytest.mark.parametrize(
    ("where", "part"),
    [
        (frozen_cache, "locked"),
        (Entry, "discard_damaged"),
        (Entry, "allocate"),
        (Entry, "seal"),
        (output_files, "write_atomically"),
    ],
)
def test_an_error_of_the_first_rank_alone_ends_all(folder, undisturbed, monkeypatch, where, part):
    with monkeypatch.context() as patch:
        patch.setattr(where, part, refuse)
        found = on_ranks(folder, [Network() for _ in range(3)])
    assert [str(error) for error in found] == [DIED] * 3
    again = on_ranks(folder, [Network() for _ in range(3)])
    assert all(np.array_equal(one.outputs, undisturbed) for one in again)


@pytest.mark.parametrize("complete", [False, True])
def test_a_rank_that_does_not_see_the_disk_ends_all(folder, monkeypatch, complete):
    if complete:
        run(folder, Network())
    open_shared = Entry.open_shared

    def blind(*args):
        if threading.current_thread().name == "rank 2":
            refuse()
        return open_shared(*args)

    monkeypatch.setattr(Entry, "open_shared", blind)
    found = on_ranks(folder, [Network() for _ in range(3)])
    assert [str(error) for error in found] == [DIED] * 3


def test_blocks_of_ranks_that_died_are_kept_for_one_process(folder, undisturbed):
    class Alone(Ranks):  # rank 1 of 2, whose rank 0 has made the files
        rank, world_size = 1, 2

        def gather(self, value):
            return [(None, False), value]

    with pytest.raises(RuntimeError):
        run(folder, Network(0))
    blocks = plan_blocks(LENGTHS, 12)
    with pytest.raises(SmolbenchError, match="on a disk that all ranks share"):
        run(folder, Network(), ranks=Alone())
    rest = Network()
    assert np.array_equal(run(folder, rest).outputs, undisturbed)
    assert rest.blocks == [b.tolist() for b in blocks[0::2]]


# -- several entries from one pass ----------------------------------------------------------------

WIDTHS = {"a": WIDTH, "b": 2, "c": 1}


def run_together(folder, network, key="a", widths=WIDTHS, **options):
    def start():
        compute = network.start()
        return lambda rows: parts(compute(rows))

    return cached_outputs(
        Path(folder),
        key,
        widths=widths,
        blocks=plan_blocks(LENGTHS, 12),
        start_compute=start,
        description="test",
        device=torch.device("cpu"),
        **options,
    )


def parts(outputs):
    """What stands in each entry: so many of the columns."""
    return {name: outputs[:, :width] for name, width in WIDTHS.items()}


@pytest.fixture
def saved_often(monkeypatch):
    monkeypatch.setattr(frozen_cache, "_PAUSE_S", 0.0)


def holds_all(folder, undisturbed):
    """Whether each entry is found under its own key, as if it had been computed alone."""
    found = {name: run(folder, None, name, width) for name, width in WIDTHS.items()}
    return all(
        one.reused and np.array_equal(one.outputs, parts(undisturbed)[name])
        for name, one in found.items()
    )


def test_entries_of_one_pass_are_those_of_passes_of_their_own(folder, undisturbed):
    network = Network(seconds=0.01)
    made = run_together(folder, network)
    assert not made.reused
    assert network.loaded == 1
    assert network.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert np.array_equal(made.outputs, undisturbed)
    assert holds_all(folder, undisturbed)
    again = run_together(folder, Network(), "b")
    assert again.reused
    assert again.seconds == pytest.approx(made.seconds)  # of the whole pass, not a share


def test_entries_of_one_pass_are_written_before_too_much_is_held(folder, undisturbed, monkeypatch):
    monkeypatch.setattr(frozen_cache, "_HELD_BYTES", 100)
    saves = []
    save = frozen_cache._save

    def spy(entries, blocks, computed, *rest):
        each = (outputs.values() for outputs, _ in computed.values())
        saves.append([sum(part.nbytes for part in parts) for parts in each])
        return save(entries, blocks, computed, *rest)

    monkeypatch.setattr(frozen_cache, "_save", spy)
    run_together(folder, Network())
    assert 1 < len(saves) < len(plan_blocks(LENGTHS, 12))
    assert all(sum(held[:-1]) < 100 for held in saves)
    assert sum(map(sum, saves)) == len(LENGTHS) * sum(WIDTHS.values()) * 4
    assert holds_all(folder, undisturbed)


@pytest.mark.parametrize("die_at", [0, 1, 3])
def test_a_pass_over_several_entries_goes_on(folder, undisturbed, die_at, saved_often):
    dying, rest = Network(die_at), Network()
    with pytest.raises(RuntimeError):
        run_together(folder, dying)
    made = run_together(folder, rest)
    assert not made.reused
    assert dying.blocks + rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert holds_all(folder, undisturbed)


def test_a_process_killed_between_two_entries_is_gone_on_with(folder, undisturbed, saved_often):
    with pytest.raises(RuntimeError):
        run_together(folder, Network(2))
    marks = np.memmap(folder / "b" / "seconds.f32", dtype=np.float32, mode="r+").reshape(-1, 2)
    marks[1] = 0  # as if killed before this entry's mark
    marks.flush()
    rest = Network()
    run_together(folder, rest)
    assert rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)][1:]
    assert holds_all(folder, undisturbed)


def test_one_entry_alone_goes_on_where_a_pass_over_several_died(folder, undisturbed, saved_often):
    with pytest.raises(RuntimeError):
        run_together(folder, Network(2))
    rest = Network()
    assert np.array_equal(run(folder, rest, "a").outputs, undisturbed)
    assert rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)][2:]


def test_complete_entries_are_left_as_they_are(folder, undisturbed):
    alone = run(folder, Network(), "a")
    before = (folder / "a" / "outputs.f32").stat().st_mtime_ns
    found = run_together(folder, Network(seconds=0.01))
    assert found.reused
    assert found.seconds == alone.seconds
    assert (folder / "a" / "outputs.f32").stat().st_mtime_ns == before
    assert holds_all(folder, undisturbed)


def test_a_damaged_entry_among_several_is_computed_again_when_asked_for(folder, undisturbed):
    run_together(folder, Network())
    gc.collect()
    spoil_value(folder / "a")
    assert run_together(folder, None, "b").reused  # its own checksum is right
    assert not run_together(folder, Network(), "a").reused
    assert holds_all(folder, undisturbed)


def test_ranks_share_the_blocks_of_several_entries(folder, undisturbed):
    networks = [Network() for _ in range(2)]
    found = on_ranks(folder, networks, run_together)
    blocks = [b.tolist() for b in plan_blocks(LENGTHS, 12)]
    assert [network.blocks for network in networks] == [blocks[0::2], blocks[1::2]]
    assert all(np.array_equal(one.outputs, undisturbed) for one in found)
    assert holds_all(folder, undisturbed)


def test_nodes_fill_several_entries(folder, undisturbed):
    on_ranks(folder, [Network() for _ in range(4)], run_together, nodes=4)
    assert holds_all(folder, undisturbed)
    assert not list(folder.glob("*/*.node*"))


def test_an_error_of_one_rank_ends_a_pass_over_several_entries(folder, undisturbed):
    well, failing = networks = [Network(), Network()]
    well.wait_for = folder / "a" / "failed"
    computing = threading.Event()
    compute = well.compute

    def computes(rows):
        computing.set()
        return compute(rows)

    def fails(rows):
        computing.wait(10)
        refuse()

    well.compute, failing.compute = computes, fails
    found = on_ranks(folder, networks, run_together)
    assert [str(error) for error in found] == [DIED] * 2
    assert len(well.blocks) == 1, "it goes on for nothing"
    rest = Network()
    assert np.array_equal(run_together(folder, rest).outputs, undisturbed)
    # what the rank that is well has computed is kept
    assert rest.blocks == [b.tolist() for b in plan_blocks(LENGTHS, 12)][1:]
    assert holds_all(folder, undisturbed)


def test_two_jobs_with_entries_in_common_do_not_wait_for_each_other_forever(folder, undisturbed):
    backwards = dict(reversed(WIDTHS.items()))
    networks = [Network(seconds=0.01), Network(seconds=0.01)]
    threads = [
        threading.Thread(target=run_together, args=(folder, network, "a", widths), daemon=True)
        for network, widths in zip(networks, (WIDTHS, backwards), strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20)
    assert not any(thread.is_alive() for thread in threads)
    assert sorted(network.loaded for network in networks) == [0, 1]
    assert holds_all(folder, undisturbed)


def test_several_entries_say_their_size_and_are_refused_when_the_disk_is_too_small(
    folder, undisturbed, monkeypatch, caplog
):
    caplog.set_level(logging.INFO, "smolbench")
    needed = len(LENGTHS) * sum(WIDTHS.values()) * 4
    network = Network()
    with monkeypatch.context() as patch:
        usage = shutil.disk_usage(folder.parent)._replace(free=needed - 1)
        patch.setattr(shutil, "disk_usage", lambda _: usage)
        with pytest.raises(SmolbenchError, match=r"3 sets of outputs need .*--data\.cache_dir"):
            run_together(folder, network)
        assert network.loaded == 0
        assert not list(folder.rglob("*.f32"))
        patch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=needed))
        run_together(folder, network)
    assert "3 sets of outputs take 3.08e-07 GB" in caplog.text
    assert holds_all(folder, undisturbed)


# -- a disk that does not play along --------------------------------------------------------------


def test_a_full_disk_is_a_sentence_and_its_rest_is_repaired(folder, undisturbed, monkeypatch):
    def full(path, size):
        path.write_bytes(b"\0" * (size // 2))
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    network = Network()
    with monkeypatch.context() as patch:
        patch.setattr(output_files, "_write_zeros", full)
        with pytest.raises(SmolbenchError, match=r"No space is left.*--data\.cache_dir"):
            run(folder, network)
    assert network.loaded == 0
    assert np.array_equal(run(folder, Network()).outputs, undisturbed)


def test_a_full_disk_at_the_very_end_is_a_sentence(folder, undisturbed, monkeypatch):
    write = output_files.write_atomically

    def full(path, text):
        if path.name == "meta.json":
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        write(path, text)

    with monkeypatch.context() as patch:
        patch.setattr(output_files, "write_atomically", full)
        with pytest.raises(SmolbenchError, match="No space left"):
            run(folder, Network())
    rest = Network()
    assert np.array_equal(run(folder, rest).outputs, undisturbed)
    assert rest.loaded == 0, "all blocks were there"


def test_a_folder_that_cannot_be_made_is_a_sentence(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(SmolbenchError, match="cannot be written"):
        run(tmp_path / "file", Network())


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may do anything")
def test_a_read_only_folder_is_a_sentence(folder):
    folder.mkdir()
    folder.chmod(0o500)
    try:
        with pytest.raises(SmolbenchError, match="Permission denied"):
            run(folder, Network())
    finally:
        folder.chmod(0o700)


def test_a_read_only_folder_is_a_sentence_also_for_root(folder, monkeypatch):
    def refused(self, *args, **kwargs):
        raise PermissionError(errno.EACCES, "Permission denied", str(self))

    monkeypatch.setattr(Path, "mkdir", refused)
    with pytest.raises(SmolbenchError, match="Permission denied"):
        run(folder, Network())


def test_a_complete_entry_is_read_from_a_read_only_folder(folder, monkeypatch):
    run(folder, Network())
    monkeypatch.setattr(frozen_cache, "locked", lambda *_: pytest.fail("it was locked"))
    assert run(folder, Network()).reused


def test_an_error_of_the_network_is_not_blamed_on_the_cache(folder):
    with pytest.raises(FileNotFoundError):
        run(folder, Network(1, FileNotFoundError(errno.ENOENT, "a file of the network")))


# -- memory ---------------------------------------------------------------------------------------


class Hungry(Network):
    """Takes 200 MiB for the first block, the longest rows, and gives them back."""

    def compute(self, rows):
        if not self.blocks:
            np.ones(200 << 17).sum()
        return super().compute(rows)


def test_a_pass_says_its_peak_memory_also_when_it_is_reused_or_was_interrupted(folder):
    before = resident_mib()
    filled = run(folder, Hungry())
    assert filled.peaks_mib["rss"] > before + 150
    assert run(folder, Network()).peaks_mib == filled.peaks_mib
    with pytest.raises(RuntimeError, match="killed"):
        run(folder, Hungry(die_at=2), key="other")
    assert run(folder, Network(), key="other").peaks_mib["rss"] > before + 150
    costs = peak_costs([filled, run(folder, Network())], "fit")
    assert costs == {f"cost/peak_rss_mib{end}": filled.peaks_mib["rss"] for end in ("", "_fit")}


def test_a_stage_loses_nothing_where_a_part_of_it_is_measured():
    monitor = MemoryMonitor()
    trainer = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    monitor.setup(trainer, None, "fit")
    before = resident_mib()
    np.ones(200 << 17).sum()
    with peaks_within(torch.device("cpu")) as peaks:
        assert peaks()["rss"] < before + 100
        np.ones(100 << 17).sum()
        assert before + 50 < peaks()["rss"] < before + 150
    monitor.on_exception(trainer, None, RuntimeError())
    assert monitor.facts()["cost/peak_rss_mib_fit"] > before + 150


def test_an_entry_of_a_version_that_did_not_measure_says_so(folder, caplog):
    run(folder, Network())
    meta = folder / "key" / "meta.json"
    known = json.loads(meta.read_text())
    del known["peaks_mib"]
    meta.write_text(json.dumps(known))
    begin()
    assert run(folder, Network()).peaks_mib == {}
    assert "did not measure its memory" in caplog.text
