from __future__ import annotations

import json

import pytest

from smolbench.cli import main
from tests.helpers.written_runs import MULTIPLE_CHOICE, write_run


@pytest.fixture
def three(folder_here):
    write_run(folder_here / "runs" / "imdb_probe" / "1", started_at="2026-01-01T00:00:00+00:00")
    write_run(
        folder_here / "runs" / "hellaswag_smollm2" / "1",
        MULTIPLE_CHOICE,
        started_at="2026-01-03T00:00:00+00:00",
    )
    write_run(
        folder_here / "runs" / "imdb_probe" / "2",
        started_at="2026-01-02T00:00:00+00:00",
        status="running",
        test__accuracy=...,
        cost__fit_s=...,
        cost__peak_rss_mib=...,
    )
    return folder_here


def test_a_line_per_run_newest_first(three, capsys):
    assert main(["runs"]) == 0
    heading, *lines = capsys.readouterr().out.splitlines()
    assert heading.startswith("run ")
    assert [line.split()[0] for line in lines] == [
        "runs/hellaswag_smollm2/1", "runs/imdb_probe/2", "runs/imdb_probe/1",
    ]  # fmt: skip
    choice, running, probe = lines
    for said in ("acc_norm", "0.4300 ± 0.0050", "10,042", "MultipleChoiceTask/none", " 0.0 "):
        assert said in choice
    assert "running" in running
    assert running.split()[-1] == "-"
    for said in ("finished", "0.8900 ± 0.0020", "900.0", "1,500 rss", "stanfordnlp/imdb"):
        assert said in probe


def test_json_for_scripts(three, capsys):
    assert main(["runs", "--json"]) == 0
    choice, running, probe = json.loads(capsys.readouterr().out)
    assert choice["metric"] == "acc_norm"
    assert (running["status"], running["metric"], running["value"]) == ("running", None, None)
    assert (running["training_s"], running["peak_memory_mib"]) == (None, None)
    assert probe == {
        "run": "runs/imdb_probe/1",
        "recipe": "imdb_probe",
        "started_at": "2026-01-01T00:00:00+00:00",
        "status": "finished",
        "seed": 0,
        "task": "ProbeTask",
        "method": "probe",
        "model": "HuggingFaceTB/SmolLM2-135M",
        "dataset": "stanfordnlp/imdb",
        "test_digest": "aaaaaaaaaaaaaaaa",
        "metric": "accuracy",
        "value": 0.89,
        "stderr": 0.002,
        "n": 25_000,
        "training_s": 900.0,
        "peak_memory_mib": 1500.0,
        "peak_memory_kind": "rss",
    }


@pytest.mark.parametrize("content", ['{"schema": 1, "rec', '{"schema": 2}', '{"recipe": "a"}', ""])
def test_what_cannot_be_read_is_named_and_the_status_says_so(three, capsys, content):
    bad = three / "runs" / "imdb_probe" / "1" / "results.json"
    bad.write_text(content)
    assert main(["runs", "--json"]) == 1
    captured = capsys.readouterr()
    assert len(json.loads(captured.out)) == 2
    assert "runs/imdb_probe/1/results.json" in captured.err
    assert "passed over" in captured.err


def test_another_folder_and_none(three, capsys):
    assert main(["runs", "--runs_dir", "runs/imdb_probe"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 3
    assert main(["runs", "--runs_dir=missing"]) == 2
    assert "There is no folder missing" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--no"], ["--runs_dir"], ["extra"]])
def test_a_wrong_option_is_refused(three, capsys, arguments):
    assert main(["runs", *arguments]) == 2
    assert "smolbench runs: error:" in capsys.readouterr().err
