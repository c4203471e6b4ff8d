"""Sources: the hub and its cache, with and without network; subsets and splits."""

from __future__ import annotations

import errno
import logging
import os
import types

import datasets
import huggingface_hub
import numpy as np
import pytest
from datasets.arrow_writer import ArrowWriter
from huggingface_hub.errors import (
    HfHubHTTPError,
    OfflineModeIsEnabled,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from smolbench.data import hub as sources
from smolbench.data.hub import load_hub, select, stratified_split
from smolbench.errors import SmolbenchError
from smolbench.utils.notices import gathered

OLD, NEW, OTHER = "a" * 40, "b" * 40, "c" * 40
TOY = "org/toy"


def prepare(cache_dir, commit, texts, config="default"):
    """Write what ``datasets`` keeps after a first download."""
    entry = cache_dir / "org___toy" / config / "0.0.0" / commit
    entry.mkdir(parents=True)
    splits = datasets.SplitDict(dataset_name="toy")
    for split in ("train", "test"):
        with ArrowWriter(path=str(entry / f"toy-{split}.arrow")) as writer:
            for text in texts:
                writer.write({"text": f"{split} {text}"})
            writer.finalize()
        splits.add(datasets.SplitInfo(split, num_examples=len(texts), dataset_name="toy"))
    datasets.DatasetInfo(
        features=datasets.Features({"text": datasets.Value("string")}),
        dataset_name="toy",
        config_name=config,
        version="0.0.0",
        splits=splits,
    ).write_to_directory(str(entry))


def http_error(status, kind=HfHubHTTPError):
    response = types.SimpleNamespace(status_code=status, headers={}, request=None)
    error = kind.__new__(kind)
    Exception.__init__(error, f"answer {status}\nmore")
    error.response = response
    return error


class Hub:
    """The hub as ``load_hub`` sees it: answers are commits or errors, one per question."""

    def __init__(self, monkeypatch, cache_dir):
        self.cache_dir = cache_dir
        self.info = [NEW]
        self.load = []
        self.asked = []
        self.waits = []
        hub = self

        def dataset_info(_api, dataset_id, **_options):
            hub.asked.append(("info", dataset_id))
            return types.SimpleNamespace(sha=hub.answer(hub.info))

        def load_dataset(path, **options):
            hub.asked.append(("load", options.get("revision")))
            texts = hub.answer(hub.load)
            prepare(hub.cache_dir, options["revision"], texts)
            return sources._from_cache(path, None, options["revision"], hub.cache_dir)[0]

        def snapshot_download(_id, **_options):
            raise FileNotFoundError("not there")

        monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
        monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot_download)
        monkeypatch.setattr(datasets, "load_dataset", load_dataset)
        monkeypatch.setattr(sources.time, "sleep", self.waits.append)

    def answer(self, answers):
        answer = answers.pop(0) if len(answers) > 1 else answers[0]
        if isinstance(answer, Exception):
            raise answer
        return answer


@pytest.fixture
def hub(monkeypatch, tmp_path):
    return Hub(monkeypatch, tmp_path)


def load(hub, **options):
    return load_hub(TOY, cache_dir=hub.cache_dir, **{"splits": ["train"]} | options)


def test_of_a_script_the_parquet_copy_is_read(hub, monkeypatch):
    asked = []

    def dataset_info(_api, _id, *, revision, **_options):
        asked.append(revision)
        main = types.SimpleNamespace(rfilename=f"{TOY.split('/')[-1]}.py")
        if revision == "refs/convert/parquet":
            return types.SimpleNamespace(sha=NEW, siblings=[])
        return types.SimpleNamespace(sha=OLD, siblings=[main])

    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    hub.load = [["one", "two"]]
    assert load(hub).revision == NEW
    assert asked == [None, "refs/convert/parquet"]
    # who names a revision gets that one
    assert load(hub, revision="main").revision == OLD


def test_first_run_downloads_and_the_second_does_not(hub):
    hub.load = [["one", "two"]]
    first = load(hub)
    second = load(hub)

    assert first.splits["train"]["text"][:] == ["train one", "train two"]
    assert list(first.splits) == ["train"]
    assert (first.id, first.revision) == (second.id, second.revision) == (TOY, NEW)
    assert second.splits["train"]["text"][:] == first.splits["train"]["text"][:]
    assert hub.asked == [("info", TOY), ("load", NEW), ("info", TOY)]


def test_a_commit_in_the_cache_needs_no_hub(hub):
    prepare(hub.cache_dir, OLD, ["old"])
    prepare(hub.cache_dir, NEW, ["new"])

    source = load(hub, revision=OLD)

    assert source.splits["train"]["text"][:] == ["train old"]
    assert source.revision == OLD
    assert hub.asked == []


@pytest.mark.parametrize("revision", [None, "main"])
@pytest.mark.parametrize(
    "failure", [OfflineModeIsEnabled("off"), ConnectionError("refused"), http_error(404)]
)
def test_without_the_hub_the_cache_is_used_and_said(hub, caplog, revision, failure):
    prepare(hub.cache_dir, OLD, ["old"])
    hub.info = [failure]

    with caplog.at_level(logging.WARNING, logger="smolbench"):
        source = load(hub, revision=revision)

    assert source.revision == OLD
    assert OLD in caplog.text


def test_without_the_hub_a_branch_is_where_it_was_last_seen(hub, caplog):
    """Whatever was loaded since, in a folder that is newer."""
    hub.load, hub.info = [["one"]], [NEW]
    assert load(hub).revision == NEW
    prepare(hub.cache_dir, OLD, ["old"])
    os.utime(next(hub.cache_dir.glob(f"*/*/*/{OLD}")), (2e9, 2e9))
    hub.info = [ConnectionError("refused")]
    for revision in (None, "main"):
        assert load(hub, revision=revision).revision == NEW
    assert gathered([], "fit") == []
    hub.info = [OLD]
    assert load(hub, revision="main").revision == OLD
    hub.info = [ConnectionError("refused")]
    assert load(hub).revision == OLD
    # of another branch nobody knows where it was: the newest in the cache, with a word
    assert load(hub, revision="a/b").revision == OLD
    assert "at which commit a/b was last is not known" in gathered([], "fit")[0]


def test_another_commit_is_not_taken_for_the_one_asked_for(hub):
    prepare(hub.cache_dir, OLD, ["old"])
    hub.info = [ConnectionError("refused")]

    with pytest.raises(SmolbenchError, match=f"cannot be reached.*{OTHER}"):
        load(hub, revision=OTHER)


def test_without_hub_and_cache_the_error_says_what_to_fetch(hub):
    hub.info = [ConnectionError("refused\nmore")]
    with pytest.raises(SmolbenchError, match="cannot be reached") as raised:
        load(hub)
    assert f"hf download --repo-type dataset {TOY}" in str(raised.value)
    assert "HF_HOME" in str(raised.value)
    assert "\n" not in str(raised.value)

    hub.info = [OfflineModeIsEnabled("off")]
    with pytest.raises(SmolbenchError, match="HF_HUB_OFFLINE"):
        load(hub)


def test_files_fetched_by_hand_are_used_without_network(monkeypatch, tmp_path):
    snapshot = tmp_path / "snapshots" / NEW
    snapshot.mkdir(parents=True)
    datasets.Dataset.from_dict({"text": ["by hand"]}).to_parquet(snapshot / "train.parquet")
    monkeypatch.setattr(
        huggingface_hub.HfApi, "dataset_info", lambda *_a, **_k: (_ for _ in ()).throw(OSError())
    )
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_a, **_k: str(snapshot))

    source = load_hub(TOY, splits=["train"], cache_dir=tmp_path / "cache")

    assert source.splits["train"]["text"][:] == ["by hand"]
    assert source.revision == NEW


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (http_error(401, RepositoryNotFoundError), "no dataset 'org/toy'"),
        (http_error(404, RevisionNotFoundError), "no revision 'v9'"),
    ],
)
def test_what_does_not_exist_is_said(hub, failure, message):
    hub.info = [failure]
    with pytest.raises(SmolbenchError, match=message):
        load(hub, revision="v9")


def test_missing_split_is_said_with_those_that_exist(hub):
    prepare(hub.cache_dir, NEW, ["one"])
    with pytest.raises(SmolbenchError, match=r"no split 'validation'.*'train', 'test'"):
        load(hub, splits=["train", "validation"])


def test_an_unnamed_configuration_is_not_guessed_while_the_hub_answers(hub):
    prepare(hub.cache_dir, NEW, ["other"], config="other")
    hub.load = [["right"]]

    assert load(hub).splits["train"]["text"][:] == ["train right"]
    assert load(hub, config="other").splits["train"]["text"][:] == ["train other"]


def test_answers_that_may_change_are_asked_again(hub):
    hub.info = [http_error(503), NEW]
    generating = RuntimeError("while preparing")
    generating.__cause__ = ConnectionError("cut")
    hub.load = [http_error(503), generating, ["one"]]

    assert load(hub).revision == NEW
    assert hub.waits == [1.0, 1.0, 4.0]


def test_download_that_fails_for_good_is_a_sentence(hub):
    hub.load = [http_error(503)]
    with pytest.raises(SmolbenchError, match="after 4 attempts"):
        load(hub)
    assert len(hub.waits) == 3

    hub.load = [OSError(errno.ENOSPC, "full")]
    with pytest.raises(SmolbenchError, match=r"No space.*HF_HOME"):
        load(hub)
    hub.load = [PermissionError(errno.EACCES, "denied")]
    with pytest.raises(SmolbenchError, match="cannot be stored"):
        load(hub)
    hub.load = [ValueError("BuilderConfig 'x' not found")]
    with pytest.raises(SmolbenchError, match="BuilderConfig 'x' not found"):
        load(hub)
    assert len(hub.waits) == 3  # nothing of these gets better by waiting


def test_an_older_commit_from_a_failed_download_is_refused(hub, monkeypatch):
    prepare(hub.cache_dir, OLD, ["old"])
    older = sources._from_cache(TOY, None, OLD, hub.cache_dir)[0]
    monkeypatch.setattr(datasets, "load_dataset", lambda *_args, **_options: older)

    with pytest.raises(SmolbenchError, match=OLD):
        load(hub)


def test_damaged_cache_is_downloaded_again_or_said(hub, caplog):
    prepare(hub.cache_dir, NEW, ["one"])
    for path in hub.cache_dir.rglob("*.arrow"):
        path.write_bytes(b"damaged")
    hub.info = [ConnectionError("refused")]

    with caplog.at_level(logging.WARNING, logger="smolbench"), pytest.raises(SmolbenchError):
        load(hub)
    assert "cannot be read" in caplog.text


def test_stratified_subset_keeps_shares_and_is_seeded():
    labels = np.repeat([0, 1, 2], [600, 300, 100])
    rows = select(labels, 50, labels, "stratified", seed=1)

    assert np.bincount(labels[rows]).tolist() == [30, 15, 5]
    assert rows.tolist() == sorted(set(rows.tolist()))
    assert rows.tolist() == select(labels, 50, labels, "stratified", seed=1).tolist()
    assert rows.tolist() != select(labels, 50, labels, "stratified", seed=2).tolist()


@pytest.mark.parametrize("n", range(1, 12))
def test_stratified_subset_has_any_size(n):
    labels = np.array(["a"] * 7 + ["b"] * 3 + ["c"])
    assert len(select(labels, n, labels, "stratified", seed=0)) == n


def test_subset_without_classes_head_and_all():
    rows = select(range(100), 10, None, "stratified", seed=0)

    assert len(set(rows.tolist())) == 10
    assert rows.tolist() != list(range(10))
    assert select(range(100), 3, None, "head", seed=0).tolist() == [0, 1, 2]
    assert select(range(5), None, None, "stratified", seed=0).tolist() == [0, 1, 2, 3, 4]
    assert select(range(5), 9, None, "head", seed=0).tolist() == [0, 1, 2, 3, 4]
    with pytest.raises(SmolbenchError, match="limit of 0"):
        select(range(5), 0, None, "head", seed=0)


def test_stratified_split_has_every_row_once_with_equal_shares():
    labels = np.repeat([0, 1], [80, 20])
    train, validation = stratified_split(labels, 0.1, seed=0)

    assert sorted([*train, *validation]) == list(range(100))
    assert np.bincount(labels[validation]).tolist() == [8, 2]
    assert validation.tolist() == sorted(validation.tolist())
    assert validation.tolist() == stratified_split(labels, 0.1, seed=0)[1].tolist()


@pytest.mark.parametrize(("labels", "fraction"), [([0, 0, 0, 1], 0.5), ([0, 1] * 5, 1.5)])
def test_split_that_cannot_be_made_is_a_sentence(labels, fraction):
    with pytest.raises(SmolbenchError, match="share"):
        stratified_split(np.array(labels), fraction, seed=0)
