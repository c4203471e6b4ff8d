from __future__ import annotations

import random

import pytest

from smolbench.runs.record import find_folders, read_records
from smolbench.runs.report.cells import BESIDE, comparison_tables
from smolbench.runs.report.leaderboard import build_report
from smolbench.runs.report.page import plot_of
from tests.helpers.written_runs import MULTIPLE_CHOICE, SUMMARIES, write_run


@pytest.fixture
def runs(tmp_path):
    """Write runs by their folder's name."""

    def write(name, *base, **changes):
        recipe = (base[0] if base else {}).get("recipe", "imdb_probe")
        return write_run(
            tmp_path / changes.get("recipe", recipe) / name, *base, **changes
        )  # fmt: skip

    return write


def report(tmp_path, **options):
    return build_report(read_records(find_folders([tmp_path]))[0], **options)


def only_board(tmp_path, **options):
    ((board,),) = [dataset.boards for dataset in report(tmp_path, **options)]
    return board


def ours(board):
    return [row for row in board.rows if not row.is_published]


def names(rows):
    return [[record.path.name for record in row.records] for row in rows]


def test_better_comes_first_and_equals_share_a_place(tmp_path, runs):
    for name, value in (("a", 0.7), ("b", 0.9), ("c", 0.8), ("d", 0.8), ("e", 0.6)):
        runs(name, test__accuracy=value, series_digest=name)
    board = only_board(tmp_path)
    assert names(ours(board)) == [["b"], ["c"], ["d"], ["a"], ["e"]]
    assert [row.rank for row in ours(board)] == [1, 2, 2, 4, 5]
    assert [row.spread for row in ours(board)] == [0.002] * 5


@pytest.mark.parametrize(
    ("seeds", "equal", "better"),
    [
        ((0.675, 0.65, 0.7), 0.675, 0.6751),  # their mean is 0.6750000000000002
        ((0.33333334, 0.6666667, 0.5), 0.5, 0.500001),  # digits of float32: 0.50000001
    ],
)
def test_equal_counts_share_a_place_whatever_the_last_bits_of_a_mean(
    tmp_path, runs, seeds, equal, better
):
    for seed, value in enumerate(seeds):
        runs(f"s{seed}", seed=seed, test__accuracy=value, series_digest="a")
    runs("b", test__accuracy=equal, series_digest="b")
    runs("c", test__accuracy=better, series_digest="c")
    board = only_board(tmp_path)
    assert sorted(row.rank for row in ours(board)) == [1, 2, 2]
    drawn = plot_of("board", board)["rows"]
    assert len({row["worth"] for row in drawn if row["kind"] == "run"}) == 2


def test_seeds_of_one_configuration_are_one_row(tmp_path, runs):
    for seed, value in enumerate((0.88, 0.90, 0.92)):
        runs(f"s{seed}", seed=seed, test__accuracy=value, cost__fit_s=100.0 * seed)
    (row,) = ours(only_board(tmp_path))
    assert row.seeds == 3
    assert row.value == pytest.approx(0.90)
    assert row.spread == pytest.approx(0.02)  # sample standard deviation
    assert row.costs["training_s"] == pytest.approx(900.0)


@pytest.mark.parametrize(
    "other",
    [
        {"series_digest": "another"},
        {"recipe": "copy"},
        {"hardware__name": "NVIDIA H100"},
        {"hardware__threads": 8},
        {"precision": "bf16-mixed"},
        {"checkpoint": "runs/a/b/checkpoints/last.ckpt"},
        {"data__revision": "another"},
        {"data__train_rows": "another"},
        {"model__revision": "another"},
        {"series_digest": ...},
        {"seed": ...},
    ],
)
def test_what_is_not_the_same_configuration_is_another_row(tmp_path, runs, other):
    runs("one", seed=0)
    runs("two", **{"seed": 1, **other})
    assert [row.seeds for row in ours(only_board(tmp_path))] == [1, 1]


def test_what_differs_among_the_seeds_of_a_row_is_told(tmp_path, runs):
    for seed, (torch, prefix) in enumerate([("2.12", True), ("2.13", True), ("2.13", False)]):
        runs(f"s{seed}", seed=seed, packages__torch=torch, paths__prefix=prefix)
    (row,) = ours(only_board(tmp_path))
    assert row.seeds == 3
    assert row.notes == (
        "torch is 2.13 and 2.12 among its runs",
        "paths/prefix is False and True among its runs",
    )


def test_the_same_texts_with_other_labels_are_another_board(tmp_path, runs):
    for name, rows in (("one", "a"), ("two", "b"), ("old", ...)):
        runs(name, series_digest=name, data__test_rows=rows)
    boards = [board for dataset in report(tmp_path) for board in dataset.boards]
    assert sorted(len(ours(board)) for board in boards) == [1, 1, 1]
    runs("two", series_digest="two", data__test_rows="a")
    (board,) = [board for dataset in report(tmp_path) for board in dataset.boards]
    assert len(ours(board)) == 3  # runs of earlier versions do not know their labels' digest


def test_a_seed_counts_once(tmp_path, runs):
    runs("old", seed=0, test__accuracy=0.5, started_at="2026-01-01")
    runs("new", seed=0, test__accuracy=0.9, started_at="2026-01-02")
    runs("other", seed=1, test__accuracy=0.8, started_at="2026-01-01")
    row, again = ours(only_board(tmp_path))
    assert (row.seeds, row.value) == (2, pytest.approx(0.85))
    assert (again.rank, again.marks) == (None, ("a newer run has this seed",))
    assert again.difference is None


@pytest.mark.parametrize(
    "other",
    [
        {"data__test_digest": "another"},
        {"test__n": 500, "data__limit_test": 500},
        {"data__id": "sample/imdb"},
    ],
)
def test_other_texts_are_another_board(tmp_path, runs, other):
    runs("one")
    runs("two", seed=1, **other)
    boards = [board for dataset in report(tmp_path) for board in dataset.boards]
    assert sorted(names(row for board in boards for row in ours(board))) == [["one"], ["two"]]
    assert [row.rank for board in boards for row in ours(board)] == [1, 1]


def test_a_limited_test_set_comes_last_and_says_so(tmp_path, runs):
    runs("part", data__limit_test=500, test__n=500, data__test_digest="part")
    runs("whole", data__limit_test=90_000)
    (dataset,) = report(tmp_path)
    assert [(board.n, board.limit) for board in dataset.boards] == [(25_000, None), (500, 500)]


def test_other_conventions_are_another_board(tmp_path, runs):
    runs("a", MULTIPLE_CHOICE)
    runs("b", MULTIPLE_CHOICE, convention="llm_c")
    ((one, two),) = [dataset.boards for dataset in report(tmp_path)]
    assert {one.convention, two.convention} == {"lm_eval", "llm_c"}
    assert one.metric == two.metric == "acc_norm"


def test_summaries_are_compared_by_how_they_were_written(tmp_path, runs):
    runs("full", SUMMARIES)
    runs("card", SUMMARIES, convention="card", recipe="samsum_card_flan-t5-base",
         training__max_epochs=5)  # fmt: skip
    runs("unicode", SUMMARIES, convention="full, unicode tokenizer")
    (boards,) = [dataset.boards for dataset in report(tmp_path)]
    found = {board.convention: board for board in boards}
    assert len(found) == 3
    assert len(found["full, unicode tokenizer"].rows) == 1  # beside no published figure
    assert found["full"].metric == "rouge1"
    (row,) = ours(found["full"])
    assert row.difference == pytest.approx(0.36 - 0.3522)
    (row,) = ours(found["card"])
    assert row.difference == pytest.approx(0.36 - 0.4724)
    assert {c.figure.metric for c in found["full"].comparisons} == {"rouge1", "rouge2"}


def test_a_prompt_is_ranked_with_trained_models_and_says_its_rule(tmp_path, runs):
    runs("probe", series_digest="a")
    runs("prompt", recipe="p", method="prompt", convention="top_50", attempts=..., test__accuracy=1)
    rows = ours(only_board(tmp_path))
    assert [row.rank for row in rows] == [1, 2]
    assert [row.notes for row in rows] == [("rule: top_50",), ()]


@pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
def test_an_unfinished_run_is_marked_and_not_mixed(tmp_path, runs, status):
    runs("one", seed=0, test__accuracy=0.8)
    runs("two", seed=1, test__accuracy=0.99, status=status)
    row, unfinished = ours(only_board(tmp_path))
    assert (row.rank, row.seeds, row.value) == (1, 1, 0.8)
    assert (unfinished.rank, unfinished.marks) == (None, (f"not finished: {status}",))
    assert unfinished.difference is None


def test_the_untrained_model_is_marked_and_not_ranked(tmp_path, runs):
    runs("trained", seed=0, test__accuracy=0.4)
    for seed in (0, 1):
        runs(f"not{seed}", seed=seed, attempts=..., cost__fit_s=..., test__accuracy=0.5)
    row, untrained = ours(only_board(tmp_path))
    assert (row.rank, row.seeds) == (1, 1)
    assert (untrained.rank, untrained.seeds, untrained.marks) == (None, 2, ("untrained",))
    assert "training_s" not in untrained.costs


def test_what_was_not_scored_is_listed_with_the_reason(tmp_path, runs):
    runs("fitted", test__accuracy=...)
    runs("running", test__accuracy=..., status="running")
    runs("older", data__test_digest=...)
    (dataset,) = report(tmp_path)
    assert dataset.boards == ()
    assert {row.records[0].path.name: row.obstacle for row in dataset.unscored} == {
        "fitted": "not tested",
        "running": "not finished: running",
        "older": "test set not known",
    }


def test_a_teacher_of_other_rows_is_noted(tmp_path, runs):
    runs("a", teacher__same_rows=False)
    (row,) = ours(only_board(tmp_path))
    assert (row.rank, row.marks) == (1, ("its teacher may have seen rows that it is scored on",))


def test_a_cost_that_one_seed_lacks_is_not_known(tmp_path, runs):
    runs("a", seed=0)
    runs("b", seed=1, cost__peak_rss_mib=None)
    (row,) = ours(only_board(tmp_path))
    assert "peak_rss_mib" not in row.costs
    assert row.costs["trainable_params"] == 225_026


def test_money_is_time_by_price(tmp_path, runs):
    runs("a", cost__fit_s=1700.0, cost__cache_s=100.0)
    (row,) = ours(only_board(tmp_path, price_per_hour=3.0))
    assert row.costs["money"] == pytest.approx(1.5)
    (row,) = ours(only_board(tmp_path))
    assert "money" not in row.costs


def test_a_test_apart_has_the_costs_of_its_training(tmp_path, runs):
    trained = runs("trained", cost__fit_s=3600.0, cost__cache_s=0.0, test__accuracy=...)
    for parent in (trained, "/moved/imdb_probe/trained"):
        runs("apart", attempts=..., parent_run=str(parent), checkpoint=f"{parent}/checkpoints/best",
             cost__fit_s=..., cost__cache_s=..., cost__checkpoint_mib=...)  # fmt: skip
        (row,) = ours(only_board(tmp_path))
        assert (row.costs["training_s"], row.costs["checkpoint_mib"]) == (3600.0, 0.9)


def test_a_test_apart_of_an_unfinished_training_is_marked(tmp_path, runs):
    trained = runs("trained", status="interrupted", test__accuracy=...)
    runs(
        "apart",
        attempts=...,
        parent_run=str(trained),
        checkpoint=f"{trained}/checkpoints/last.ckpt",
    )
    (row,) = ours(only_board(tmp_path))
    assert (row.rank, row.obstacle) == (None, "training not finished: interrupted")


def test_a_training_competes_once_and_its_other_tests_stand_below_it(tmp_path, runs):
    trained = runs("trained", seed=0, started_at="2026-01-01", cost__peak_rss_mib_fit=1400.0)
    runs("worse", series_digest="b", test__accuracy=0.7)
    again = {"attempts": ..., "parent_run": str(trained), "started_at": "2026-01-02",
             "cost__fit_s": ..., "cost__cache_s": ..., "data__n_train": ...}  # fmt: skip
    folder = f"{trained}/checkpoints"
    runs("again", seed=5, checkpoint=f"{folder}/best.ckpt", series_digest="c", **again,
         cost__peak_rss_mib=600.0, test__accuracy=0.99)  # fmt: skip
    runs("last", checkpoint=f"{folder}/last.ckpt", **again, cost__peak_rss_mib=1600.0)
    rows = ours(only_board(tmp_path))
    assert names(rows) == [["trained"], ["again"], ["last"], ["worse"]]
    assert [row.rank for row in rows] == [1, None, None, 2]
    assert {row.obstacle for row in rows[1:3]} == {"another test of imdb_probe/trained"}
    assert "tested under other settings than its training's" in rows[1].notes
    assert "scored last.ckpt" in rows[2].notes
    # of training and test the higher one, beside the time of the training
    assert [row.costs["peak_rss_mib"] for row in rows[:3]] == [1500.0, 1400.0, 1600.0]
    assert {row.costs["training_s"] for row in rows[:3]} == {900.0}
    assert {row.costs["n_train"] for row in rows[:3]} == {25_000}


def test_of_several_tests_apart_that_of_the_best_checkpoint_competes(tmp_path, runs):
    trained = runs("trained", test__accuracy=..., test__n=..., started_at="2026-01-01")
    for day, (name, digest) in enumerate(
        (("best", "fedcba9876543210"), ("best", "c"), ("last", "fedcba9876543210"))
    ):
        runs(f"{name}{day}", attempts=..., parent_run=str(trained), series_digest=digest,
             checkpoint=f"{trained}/checkpoints/{name}.ckpt",
             started_at=f"2026-01-0{day + 2}")  # fmt: skip
    rows = ours(only_board(tmp_path))
    assert names(rows) == [["best0"], ["best1"], ["last2"]]
    assert [row.rank for row in rows] == [1, None, None]


def test_what_time_has_cut_is_marked_and_no_seed_of_a_whole_training(tmp_path, runs):
    runs("whole", seed=0)
    runs("cut", seed=1, training__out_of_time=True)
    rows = {row.records[0].path.name: row for row in ours(only_board(tmp_path))}
    assert [row.seeds for row in rows.values()] == [1, 1]
    assert rows["cut"].notes == ("its training was cut: its time was up",)
    assert rows["whole"].notes == ()


def test_a_test_whose_training_is_elsewhere_says_so(tmp_path, runs):
    for seed in (0, 1):
        runs(f"apart{seed}", seed=seed, attempts=..., parent_run="/else/where",
             checkpoint="/else/where/checkpoints/best.ckpt")  # fmt: skip
    rows = ours(only_board(tmp_path))
    assert [row.seeds for row in rows] == [1, 1]
    assert {row.notes for row in rows} == {("the run that trained it is not in this report",)}
    assert all("peak_rss_mib" not in row.costs for row in rows), "the test's alone"


# -- published figures ----------------------------------------------------------------------------


def test_published_figures_stand_beside_the_runs_without_a_rank(tmp_path, runs):
    runs("a", test__accuracy=0.90)
    board = only_board(tmp_path)
    published = [row for row in board.rows if row.is_published]
    assert {row.rank for row in published} == {None}
    assert {row.marks[0] for row in published} == {"published"}
    assert all(row.source for row in published)
    (probe,) = [row for row in published if row.name == "imdb_probe"]
    assert (probe.value, probe.seeds) == (0.892, 0)
    (row,) = ours(board)
    assert (row.rank, row.difference) == (1, pytest.approx(0.008))


def test_every_published_metric_is_compared(tmp_path, runs):
    runs("a", recipe="imdb_naive_bayes", method="naive_bayes", model__id="tfidf-naive_bayes",
         test__accuracy=0.83, test__precision=0.84, test__recall=0.82)  # fmt: skip
    found = {c.figure.metric: (c.figure.value, c.ours) for c in only_board(tmp_path).comparisons}
    assert found == {
        "accuracy": (0.8228, 0.83),
        "precision": (0.8285, 0.84),
        "recall": (0.8174, 0.82),
    }


def test_untrained_is_compared_with_untrained(tmp_path, runs):
    gpt2 = {"recipe": "imdb_gpt2", "method": "full", "model__id": "openai-community/gpt2"}
    whole = {"data__n_train": 22_500, "training__max_epochs": 15}
    runs("trained", **gpt2, **whole, test__accuracy=0.94)
    runs("not", **gpt2, attempts=..., test__accuracy=0.51)
    differences = {row.obstacle: row.difference for row in ours(only_board(tmp_path))}
    assert differences == {None: pytest.approx(-0.0046), "untrained": pytest.approx(0.0099)}


@pytest.mark.parametrize(
    "other",
    [
        {"recipe": "imdb_probe+tiny"},
        {"test__n": 2_000},
        {"data__id": "sample/imdb"},
        {"status": "interrupted"},
    ],
)
def test_another_experiment_is_not_compared(tmp_path, runs, other):
    runs("a", **other)
    board = only_board(tmp_path)
    assert [row.difference for row in ours(board)] == [None]
    assert board.comparisons == ()


@pytest.mark.parametrize(
    ("other", "differs"),
    [
        ({"model__id": "openai-community/gpt2"}, "model openai-community/gpt2"),
        ({"method": "lora"}, "method lora"),
        ({"data__n_train": 250}, "training examples 250, not 25,000"),
        ({"data__n_train": 25_010}, None),
        ({"data__n_train": ...}, "training examples unknown, not 25,000"),
        ({"training__max_epochs": 1}, "epochs 1, not 10"),
        ({"training__max_epochs": ...}, "epochs unknown, not 10"),
        ({"training__out_of_time": True}, "its training was cut"),
    ],
)
def test_what_is_not_quite_the_experiment_stands_beside_it(tmp_path, runs, other, differs):
    runs("a", **other)
    board = only_board(tmp_path)
    (row,) = ours(board)
    assert (row.difference is None) == (differs is not None)
    (comparison,) = board.comparisons
    assert comparison.differs == (() if differs is None else (differs,))
    (title,) = comparison_tables(board)
    assert ("reproduce" in title) == (differs is None)


@pytest.mark.parametrize(
    ("n", "differs"),
    [
        (114_000, ("training examples not stated by the source",)),
        (250, ("training examples 250, not 114,000, the recipe's",
               "training examples not stated by the source")),
    ],
)  # fmt: skip
def test_what_a_source_leaves_open_is_no_reproduction(tmp_path, runs, n, differs):
    news = {"data__id": "fancyzhx/ag_news", "test__n": 7_600, "training__max_epochs": 15}
    gpt2 = {"recipe": "ag_news_gpt2", "method": "full", "model__id": "openai-community/gpt2"}
    runs("a", **news, **gpt2, data__n_train=n, test__accuracy=0.95, test__f1_macro=0.94)
    board = only_board(tmp_path)
    found = {c.figure.metric: c.differs for c in board.comparisons}
    assert found == {"accuracy": differs} | ({} if n == 250 else {"f1_macro": differs})
    assert list(comparison_tables(board)) == [BESIDE]
    (row,) = ours(board)
    assert row.difference == (None if n == 250 else pytest.approx(0.95 - 0.9442))


def test_epochs_of_an_earlier_version_stand_in_its_settings(tmp_path, runs):
    folder = runs("a", training__max_epochs=...)
    (folder / "config.yaml").write_text("trainer: {max_epochs: 10, max_steps: -1}")
    assert only_board(tmp_path).comparisons[0].differs == ()


def test_a_run_of_one_model_does_not_stand_beside_the_figures_of_others(tmp_path, runs):
    runs("a", MULTIPLE_CHOICE, convention="smollm2")
    (comparison,) = only_board(tmp_path).comparisons
    assert comparison.figure.model == comparison.row.model


def test_a_card_is_compared_by_its_convention_only(tmp_path, runs):
    runs("a", MULTIPLE_CHOICE)
    runs("b", MULTIPLE_CHOICE, convention="smollm2", test__acc_norm=0.42)
    (dataset,) = report(tmp_path)
    found = {board.convention: [row.value for row in board.rows] for board in dataset.boards}
    assert found == {"lm_eval": [0.43], "smollm2": [0.687, 0.545, 0.421, 0.42]}


def test_a_prompt_is_compared_by_its_rule_only(tmp_path, runs):
    prompt = {"recipe": "imdb_few_shot_smollm2-135m", "method": "prompt", "attempts": ...}
    runs("a", **prompt, convention="top_50", test__accuracy=0.6, series_digest="a")
    runs("b", **prompt, convention="verbalizer, none", test__accuracy=0.7, series_digest="b")
    board = only_board(tmp_path)
    assert {row.notes: row.difference for row in ours(board)} == {
        ("rule: top_50",): pytest.approx(0.01),
        ("rule: verbalizer, none",): None,
    }
    assert {0.59, 0.892} <= {row.value for row in board.rows if row.is_published}


# -- many runs ------------------------------------------------------------------------------------


def test_a_thousand_runs_are_read_once_each_and_in_any_order(tmp_path, runs, monkeypatch):
    for number in range(1000):
        configuration, seed = divmod(number, 4)
        runs(
            f"r{number}",
            series_digest=str(configuration),
            seed=seed,
            test__accuracy=round(0.5 + configuration / 1000 + seed / 10_000, 4),
        )
    import smolbench.runs.record as record

    read = []
    original = record.read_results
    monkeypatch.setattr(record, "read_results", lambda path: read.append(path) or original(path))
    folders = find_folders([tmp_path])
    first = build_report(read_records(folders)[0])
    assert len(read) == len(set(read)) == 1000
    rows = ours(first[0].boards[0])
    assert [row.rank for row in rows] == list(range(1, 251))
    assert {row.seeds for row in rows} == {4}
    assert rows[0].value == pytest.approx(0.5 + 0.249 + 0.00015)
    random.Random(0).shuffle(folders)
    assert build_report(read_records(folders)[0]) == first
