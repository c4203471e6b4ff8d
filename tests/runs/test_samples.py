from __future__ import annotations

from smolbench.runs.report.summary import print_summary
from smolbench.runs.samples import FILE_NAME, read_samples, write_samples

SAMPLES = [
    {
        "document": "A: hi [b]\r\nB: hello",
        "reference": "They greet.",
        "before": "B A",
        "after": None,
    }
]


def test_what_was_written_is_read_without_what_is_missing(tmp_path):
    write_samples(tmp_path, SAMPLES)
    (found,) = read_samples(tmp_path)
    assert found == {key: text for key, text in SAMPLES[0].items() if text is not None}


def test_a_file_that_is_missing_or_damaged_has_none(tmp_path):
    assert read_samples(tmp_path) == []
    for content in ("{", "{}", '[1, {"document": 3}]'):
        (tmp_path / FILE_NAME).write_text(content)
        assert [sample for sample in read_samples(tmp_path) if sample] == []


def test_they_stand_behind_a_test_and_only_there(capsys, tmp_path):
    write_samples(tmp_path, SAMPLES)
    results = {"recipe": "samsum_flan-t5-base", "test/rouge1": 0.3522, "val/rouge1": 0.3}
    print_summary(results, tmp_path, splits=("test",))
    shown = capsys.readouterr().out
    for said in ("ROUGE-1", "0.3522", "A: hi [b]", "B: hello", "before training", "They greet."):
        assert said in shown
    assert "after training" not in shown
    print_summary(results, tmp_path, splits=("val",))
    assert "B: hello" not in capsys.readouterr().out


def test_what_was_written_in_another_way_says_so(capsys, tmp_path):
    write_samples(tmp_path, [{**SAMPLES[0], "before_convention": "20 tokens, [4] beams"}])
    print_summary({"recipe": "samsum", "test/rouge1": 0.35}, tmp_path, splits=("test",))
    shown = " ".join(capsys.readouterr().out.split())
    assert "before training (written as: 20 tokens, [4] beams)" in shown
