from __future__ import annotations

import importlib
import importlib.util
import json
import sys
from pathlib import Path

import pytest

from tests.helpers.tiny import tiny_backbone

FOLDER = Path(__file__).parents[2] / "benchmarks"


def load(name):
    """Benchmarks are scripts, no package: they find each other because they stand side by side."""
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module  # dataclasses look it up
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def harness():
    before = set(sys.modules)
    sys.path.insert(0, str(FOLDER))
    yield importlib.import_module("harness")
    sys.path.remove(str(FOLDER))
    ours = {"harness", *(path.stem for path in FOLDER.glob("*.py"))}
    for name in set(sys.modules) - before:
        if name.partition(".")[0] in ours:
            del sys.modules[name]


def measured(harness, seconds=1.0, mib=1.0, **facts):
    return harness.Measured(seconds, seconds, mib, facts)


# -- arithmetic -----------------------------------------------------------------------------------


def test_ratios_are_taken_within_a_round(harness):
    # the machine was ten times slower in the second round
    found = harness.ratio([12.0, 100.0, 11.0], [1.0, 10.0, 1.0])
    assert (found.median, found.low, found.high, found.n) == (11.0, 10.0, 12.0, 3)


def test_differences_are_taken_within_a_round(harness):
    found = harness.difference([5.0, 50.5], [4.5, 50.0])
    assert (found.median, found.low, found.high) == (0.5, 0.5, 0.5)


@pytest.mark.parametrize(("above", "below"), [([], []), ([1.0], [1.0, 2.0]), ([1.0], [0.0])])
def test_what_cannot_be_compared_is_refused(harness, above, below):
    with pytest.raises(ValueError, match=r"compared|not defined"):
        harness.ratio(above, below)


def test_a_target_is_reached_only_if_no_round_misses_it(harness):
    def verdicts(*values):
        spread = harness.Spread.of(values)
        return harness.at_least("", spread, 2).verdict, harness.at_most("", spread, 2).verdict

    assert verdicts(2, 3, 4) == ("reached", "missed")
    assert verdicts(1, 3, 4) == ("reached by the median only", "missed")
    assert verdicts(1, 1.5, 2) == ("missed", "reached")
    assert verdicts(1, 1.5, 3) == ("missed", "reached by the median only")


def test_a_spread_is_shown_where_there_is_one(harness):
    assert harness.Spread.of([3, 1, 2000]).shown(1, "x") == "3.0x (1.0 to 2,000.0)"
    assert harness.Spread.of([3]).shown(0, " s") == "3 s (one round)"


def test_memory_is_counted_in_the_system_s_unit(harness):
    running = importlib.import_module("harness.running")
    assert running._mib(2048, "Linux") == 2
    assert running._mib(2 * 1024**2, "Darwin") == 2


# -- running --------------------------------------------------------------------------------------


def test_sides_take_turns_and_change_places(harness):
    order = []

    def side(name):
        def run(number):
            order.append((number, name))
            return {name: measured(harness), f"{name} again": measured(harness)}

        return run

    found = harness.alternate({"a": side("a"), "b": side("b")}, 3)
    assert order == [(0, "a"), (0, "b"), (1, "b"), (1, "a"), (2, "a"), (2, "b")]
    assert {name: len(all_) for name, all_ in found.items()} == {
        "a": 3,
        "a again": 3,
        "b": 3,
        "b again": 3,
    }


def test_a_process_is_measured_from_outside(harness, tmp_path):
    report = tmp_path / "report.json"
    code = "import os, pathlib, sys; x = b'x' * (300 << 20)\n"
    code += "pathlib.Path(sys.argv[1]).write_text('{\"word\": \"' + os.environ['WORD'] + '\"}')"
    found = harness.measure([sys.executable, "-c", code, report], {"WORD": "said"}, report)
    assert found.facts == {"word": "said"}
    assert found.peak_rss_mib > 300
    assert found.cpu_seconds > 0
    assert found.seconds > 0


def test_a_side_that_fails_says_why(harness):
    with pytest.raises(harness.BenchmarkError, match=r"status 3:\nno luck"):
        harness.measure([sys.executable, "-c", "import sys; print('no luck'); sys.exit(3)"])


def test_a_hub_that_cannot_be_reached_is_a_sentence(harness, monkeypatch, capsys):
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")  # nothing listens to "discard"
    with pytest.raises(SystemExit) as end, harness.readable_errors():
        harness.require_hub()
    assert end.value.code == 2
    said = capsys.readouterr().err
    assert "cannot be reached" in said
    assert said.count("\n") == 1


def test_a_peer_that_is_not_installed_is_a_sentence(harness):
    harness.require_packages("torch")
    with pytest.raises(harness.BenchmarkError, match=r"no-such-peer must be .*\[bench\]"):
        harness.require_packages("torch", "no-such-peer")


# -- writing --------------------------------------------------------------------------------------


def test_results_hold_every_measurement_and_what_it_was_run_on(harness, tmp_path):
    rounds = {"one": [measured(harness, 2.0, 100.0, n=1), measured(harness, 4.0, 200.0, n=2)]}
    path = harness.write_results(
        "toy",
        title="A toy",
        setting={"model": "a|b"},
        findings=[harness.at_least("speed", harness.Spread.of([3.0, 5.0]), 3.5)],
        rounds=rounds,
        where=harness.machine(),
        notes=["A note."],
        folder=tmp_path / "results",
    )
    record = json.loads(path.with_suffix(".json").read_text())
    assert [one["seconds"] for one in record["rounds"]["one"]] == [2.0, 4.0]
    assert [one["facts"]["n"] for one in record["rounds"]["one"]] == [1, 2]
    assert record["machine"]["cores"] >= 1
    assert {"python", "torch"} <= set(record["versions"])
    assert record["commit"]
    text = path.read_text()
    assert "| speed | 4.0x (3.0 to 5.0) | at least 3.5x | reached by the median only |" in text
    assert "| one | 3.00 (2.00 to 4.00) | 3.00 (2.00 to 4.00) | 150 (100 to 200) | 2 |" in text
    assert r"| model | a\|b |" in text
    assert "- A note." in text


# -- the benchmarks' own arithmetic ---------------------------------------------------------------


def test_fewer_epochs_of_the_peer_multiply_its_training_only(harness):
    probe = load("probe_vs_trainer")
    facts = {"best_ckpt_mb": 1.0, "last_ckpt_mb": 2.0, "cost/cache_s": 4.0}
    rounds = {
        probe.FIRST: [measured(harness, 10.0, 50.0, **facts)],
        probe.SECOND: [measured(harness, 2.0, 40.0)],
        probe.PEER: [measured(harness, 30.0, 100.0, train_s=20.0, epoch_s=10.0)],
        probe.GROUPED: [measured(harness, 20.0, 100.0, train_s=10.0, epoch_s=5.0)],
    }

    def found(factor):
        return {
            f.what: f.value.removesuffix(" (one round)") for f in probe.compared(rounds, factor)
        }

    first, second = (
        "over the first run of smolbench",
        "over a second run with another head",
    )
    whole = found(1.0)
    assert whole[f"total time, Trainer {first}"] == "3.0x"
    assert whole[f"total time, Trainer {second}"] == "15.0x"
    assert whole[f"total time, {probe.GROUPED}, over the first run"] == "2.00x"
    assert whole["one epoch of the Trainer over the one pass"] == "2.50x"
    assert whole[f"one epoch of the {probe.GROUPED} over the one pass"] == "1.25x"
    assert whole["peak memory, first run of smolbench over Trainer"] == "0.50x"
    fewer = found(5.0)  # 10 s of start, 5 times 20 s
    assert fewer[f"total time, Trainer (extrapolated) {first}"] == "11.0x"
    assert fewer[f"total time, Trainer (extrapolated) {second}"] == "55.0x"
    assert fewer[f"total time, {probe.GROUPED} (extrapolated), over the first run"] == "6.00x"
    assert fewer["one epoch of the Trainer over the one pass"] == "2.50x"
    assert (fewer["best.ckpt"], fewer["last.ckpt"]) == ("1.00 MB", "2.00 MB")


@pytest.mark.parametrize(
    ("summary", "said"),
    [(["", 1, True], "100% of the summaries are empty"), (["and", 64, False], "100% are cut off")],
)
def test_summaries_that_prove_nothing_are_not_compared(harness, summary, said):
    script = load("summarization")
    side = [measured(harness, 1.0, 1.0, summaries=[summary] * 3, dialogues_per_s=1.0)]
    (only,) = script.written({script.OURS: side, script.PEER: side}, "float32")
    assert said in only.value
    assert not only.verdict


def test_summaries_are_compared_token_by_token(harness):
    script = load("summarization")
    ours, theirs = [["a", 2, True], ["b", 2, True]], [["a", 2, True], ["b", 3, True]]
    rounds = {
        script.OURS: [measured(harness, 1.0, 1.0, summaries=ours, dialogues_per_s=3.0)],
        script.PEER: [measured(harness, 1.0, 1.0, summaries=theirs, dialogues_per_s=2.0)],
    }
    speed, different, _ = script.written(rounds, "float32")
    assert (speed.value, speed.verdict) == ("1.50x (one round)", "reached")
    assert (different.value, different.verdict) == ("0.500 (one round)", "missed")


def test_growth_is_per_row(harness):
    curve = load("memory_curve")

    def at(seconds, mib):
        return [
            measured(
                harness, 1.0, mib, read_s=seconds / 2, encode_s=seconds / 4, batch_s=seconds / 4
            )
        ]

    rounds = {
        "10 rows, first start": at(1.0, 100.0),
        "10 rows, second start": at(0.5, 100.0),
        "100 rows, first start": at(20.0, 150.0),
        "100 rows, second start": at(1.0, 300.0),
    }
    found = {finding.what: finding for finding in curve.compared([10, 100], rounds)}
    assert found["first start: peak memory of 100 rows over 10"].verdict == "reached"
    assert found["second start: peak memory of 100 rows over 10"].verdict == "missed"
    assert found["first start: time per row of 100 rows over 10"].value == "2.00x (one round)"
    second = found["100 rows: reading and encoding, first start over second"]
    assert second.value == "20.0x (one round)"


def test_generated_texts_are_the_same_again(harness, tmp_path):
    curve = load("memory_curve")
    for name in ("a.csv", "b.csv"):
        curve.write_texts(tmp_path / name, 50)
    first = (tmp_path / "a.csv").read_text()
    assert first == (tmp_path / "b.csv").read_text()
    assert len(set(first.splitlines())) == 51


def test_tokens_per_second_are_compared_with_each_order_of_rows(harness):
    tuning = load("fine_tune_vs_trainer")

    def at(tokens, mib, padding):
        return [measured(harness, 1.0, mib, tokens_per_s=tokens, padding_share=padding)]

    rounds = {
        tuning.OURS: at(140.0, 90.0, 0.02),
        tuning.DEFAULT: at(100.0, 100.0, 0.3),
        tuning.GROUPED: at(141.0, 80.0, 0.03),
    }
    found = {finding.what: finding for finding in tuning.compared(rounds)}
    speed = "real tokens per second, smolbench over "
    assert found[speed + tuning.DEFAULT].value == "1.40x (one round)"
    assert found[speed + tuning.DEFAULT].verdict == "reached"
    assert found[speed + tuning.GROUPED].verdict == "missed"
    memory = "peak memory, smolbench over "
    assert found[memory + tuning.DEFAULT].verdict == "reached"
    assert found[memory + tuning.GROUPED].verdict == "missed"
    assert found["share of padding, Trainer"].value == "30.0%"


def test_what_a_method_saves_is_held_against_what_it_does_not_keep(harness):
    memory = load("peft_memory")

    def at(mib, gradients, optimiser, allocated=None, best=None, last=None):
        facts = {"gradients": gradients, "optimiser": optimiser, "peak_allocated_mib": allocated}
        return [measured(harness, 1.0, mib, **facts, best_ckpt_mb=best, last_ckpt_mb=last)]

    rounds = {
        "m, full": at(1000.0, 100.0, 200.0),
        "m, lora": at(690.0, 1.0, 2.0, best=2.0, last=7.0),
        "m, bitfit": at(790.0, 1.0, 2.0),
    }
    found = {finding.what: finding for finding in memory.compared(rounds, ["m"])}
    saved = "peak memory below full fine-tuning's by"
    assert found[f"m, lora: {saved}"].value == "310 MiB (one round)"
    assert found[f"m, lora: {saved}"].target.endswith("297 MiB")
    assert found[f"m, lora: {saved}"].verdict == "reached"
    assert found[f"m, bitfit: {saved}"].verdict == "missed"
    assert found["m, lora: best.ckpt"].verdict == "reached"
    assert found["m, lora: last.ckpt"].verdict == "missed"
    # where an allocator counts, the process's own memory says nothing
    assert memory.peak(at(1000.0, 0.0, 0.0, allocated=7.0)[0]) == 7.0


def test_a_methods_memory_is_what_its_tensors_hold(harness, tmp_path):
    memory = load("peft_memory")
    job = {
        "model": tiny_backbone("llama"),
        "method": "lora",
        "batch_size": 2,
        "length": 8,
        "dtype": "float32",
        "accelerator": "cpu",
    }
    found = memory.work(tmp_path, job)
    trained = found["trained"] * 4 / 2**20
    assert found["gradients"] == pytest.approx(trained)
    # two moments, and a step count of 4 bytes for each tensor
    assert 2 * trained < found["optimiser"] < 2 * trained + 0.001
    assert found["weights"] > 10 * trained
    assert found["activations"] > 0
    assert found["best_ckpt_mb"] < found["last_ckpt_mb"]
    more = memory.work(tmp_path, {**job, "length": 16})
    assert 1.5 < more["activations"] / found["activations"] < 2.5
    assert memory.work(tmp_path, {**job, "method": "bitfit"})["method"] == "bitfit_added"


def test_the_teacher_in_the_loop_is_held_against_both_runs(harness):
    distillation = load("distillation")
    rounds = {}
    for method, (loop, first, second) in {"full": (30, 20, 15), "lora": (30, 25, 10)}.items():
        rounds[f"{distillation.IN_THE_LOOP}, {method}"] = [measured(harness, loop, 200.0)]
        rounds[f"{distillation.FIRST}, {method}"] = [measured(harness, first, 100.0)]
        rounds[f"{distillation.SECOND}, {method}"] = [measured(harness, second, 90.0)]
    found = distillation.compared(rounds)
    assert [(f.value, f.verdict) for f in found] == [
        ("1.50x (one round)", "reached"),
        ("2.00x (one round)", "reached"),
        ("0.50x (one round)", ""),
        ("1.20x (one round)", "missed"),
        ("3.00x (one round)", "reached"),
        ("0.50x (one round)", ""),
    ]
    assert distillation.at_most_gap(2e-3, 50).verdict == "missed"
    assert distillation.at_most_gap(9e-4, 50).verdict == "reached"


def test_losses_are_read_step_by_step(harness, tmp_path):
    distillation = load("distillation")
    path = tmp_path / "metrics.csv"
    path.write_text("step,train/loss,val/loss\n1,0.5,\n2,0.25,\n2,,0.7\n")
    assert distillation.losses(path) == [0.5, 0.25]
