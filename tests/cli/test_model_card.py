from __future__ import annotations

import dataclasses

import pytest
import yaml

from smolbench.cli.model_card import Origin, _usage, model_card
from smolbench.models.export.check import Check
from smolbench.models.export.exported import HERE, Exported
from smolbench.runs.record import find_folders, read_records
from tests.helpers.written_runs import SUMMARIES, write_run

CHECK = Check(
    n=41,
    examples="texts, from the 1,000 of the run's test split",
    unit="probabilities",
    run_dtype="bfloat16",
    export_dtype="float32",
    difference=0.0123,
    allowed=0.034,
    labels_differ=2,
)
EXPORTED = Exported(
    framework="transformers",
    what="a classifier",
    usage='load("FOLDER")',
    reads=["It reads."],
    limits=["It has a limit."],
    check=CHECK,
    pipeline="text-classification",
    base=("HuggingFaceTB/SmolLM2-135M", "abc123"),
)
SETTINGS = {
    "seed_everything": 3,
    "trainer": {"max_epochs": 2, "accelerator": "auto"},
    "model": {
        "class_path": "x.Y",
        "init_args": {"lr": 0.1, "template": "a\n{text}", "anchor": None},
    },
    "data": {"class_path": "x.Z", "init_args": {"batch_size": 4, "cache_dir": "/secret"}},
}


def card(folder, exported=EXPORTED, name="me/model", scored=True, **changes):
    write_run(folder / "run", **changes)
    record = read_records(find_folders([folder]))[0][0]
    return model_card(
        name, exported, Origin(record, SETTINGS, ["neg", "p|s"], "best.ckpt", scored, "9")
    )


def metadata(text):
    return yaml.safe_load(text.split("---\n")[1])


def test_what_the_hub_reads(tmp_path):
    found = metadata(card(tmp_path))
    assert found["library_name"] == "transformers"
    assert found["base_model"] == "HuggingFaceTB/SmolLM2-135M"
    assert found["base_model_relation"] == "finetune"
    assert found["datasets"] == ["stanfordnlp/imdb"]
    result = found["model-index"][0]["results"][0]
    assert {"type": "accuracy", "value": 0.89} in result["metrics"]
    assert result["task"] == {"type": "text-classification"}


def test_what_people_read(tmp_path):
    text = card(tmp_path, data__overlap=7, data__limit_test=100)
    assert "# model\n" in text
    assert 'load("me/model")' in text
    assert "| accuracy | 0.8900 | 0.0020 |" in text
    assert "| training | 100 | s |" in text
    assert "| 1 | p\\|s |" in text
    assert "| model.lr | 0.1 |" in text
    assert "'a\\\\n{text}'" in text
    assert "anchor" not in text
    assert "/secret" not in text
    assert "| its revision | abc123 |" in text
    assert "7 test texts also stand in the training set" in text
    assert "a part of the test set: 100 examples" in text
    assert "It has a limit." in text
    assert "on 41 texts, from the 1,000 of the run's test split." in text
    assert "The probabilities differ by 0.012 at most; allowed were 0.034 (4 times what" in text
    assert "They choose differently for 2 of the 41." in text


@pytest.mark.parametrize(
    ("used", "there", "said"),
    [(100, 500, True), (100, 100, False), (80, 80, False), (80, None, False), (100, None, True)],
)
def test_a_limit_above_what_there_is_cuts_nothing(tmp_path, used, there, said):
    known = {"data__n_train": used, "data__limit_train": 100}
    known |= {} if there is None else {"data__n_train_unlimited": there}
    assert ("on a part of the dataset: 100 examples" in card(tmp_path, **known)) is said


def test_what_loads_from_disk_only_is_fetched_from_the_hub_first():
    usage = f'folder = "{HERE}"\nload(folder)'
    probe = dataclasses.replace(EXPORTED, framework="smolbench", usage=usage)
    pushed = _usage("me/probe", probe, on_the_hub=True)
    assert 'folder = snapshot_download("me/probe")' in pushed
    assert pushed.startswith("from huggingface_hub import snapshot_download")
    assert 'folder = "probe"' in _usage("probe", probe, on_the_hub=False)


def test_scores_of_another_checkpoint_are_not_claimed(tmp_path):
    text = card(tmp_path, scored=False)
    assert "0.89" not in text
    assert "was not scored" in text
    assert "model-index" not in metadata(text)


@pytest.mark.parametrize(
    ("tokenizer", "arguments"),
    [("unicode", {"args": {"tokenizer": "unicode"}}), ("rouge_score", {})],
)
def test_rouge_says_which_words_it_counts(tmp_path, tokenizer, arguments):
    found = {"rouge__tokenizer": tokenizer, "test__n_without_tokens": 4}
    text = card(tmp_path, base=SUMMARIES, **found)
    assert f"the words of the tokenizer `{tokenizer}`" in text
    assert "sees no word in 4 of the references" in text
    metrics = metadata(text)["model-index"][0]["results"][0]["metrics"]
    assert {"type": "rouge1", "value": 0.36, **arguments} in metrics


@pytest.mark.parametrize("validated", [True, False])
def test_a_run_that_was_not_tested_says_so(tmp_path, validated):
    changes = {"val__accuracy": 0.77} if validated else {}
    gone = {
        "test__accuracy": ...,
        "test__accuracy_stderr": ...,
        "test__f1_macro": ...,
        "test__n": ...,
    }
    text = card(tmp_path, **gone, **changes)
    assert "not scored on the test split" in text
    assert ("| accuracy | 0.7700 |" in text) == validated
    assert "model-index" not in metadata(text)


def test_a_base_model_of_this_machine_is_no_metadata(tmp_path):
    local = Exported(
        framework="peft",
        what="adapters",
        usage="",
        reads=[],
        limits=[],
        check=CHECK,
        base=("/home/me/model", None),
        base_is_local=True,
    )
    found = metadata(card(tmp_path, local, data__id="my.csv"))
    assert "base_model" not in found
    assert "datasets" not in found
