from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest

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
    yield load("harness")
    for name in {"harness", "probe_vs_trainer", "memory_curve", "startup"} - before:
        sys.modules.pop(name, None)


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
    assert harness._mib(2048, "Linux") == 2
    assert harness._mib(2 * 1024**2, "Darwin") == 2


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
    facts = {"best_ckpt_mb": 1.0, "last_ckpt_mb": 2.0}
    rounds = {
        probe.FIRST: [measured(harness, 10.0, 50.0, **facts)],
        probe.SECOND: [measured(harness, 2.0, 40.0)],
        probe.PEER: [measured(harness, 30.0, 100.0, train_s=20.0)],
    }
    whole = [finding.value for finding in probe.compared(rounds, 1.0)]
    assert whole[:3] == ["3.0x (one round)", "15.0x (one round)", "0.50x (one round)"]
    fewer = probe.compared(rounds, 5.0)  # 10 s of start, 5 times 20 s
    assert [f.value for f in fewer[:2]] == ["11.0x (one round)", "55.0x (one round)"]
    assert all("extrapolated" in finding.what for finding in fewer[:2])
    assert [f.value for f in fewer[3:]] == ["1.00 MB (one round)", "2.00 MB (one round)"]


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
