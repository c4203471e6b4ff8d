"""What exports of all tasks share: examples, and what the run's own path says of them."""

from __future__ import annotations

import importlib
import logging
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from smolbench.data import (
    BaseDataModule,
    HellaSwagDataModule,
    IMDbDataModule,
    SAMSumDataModule,
)
from smolbench.data.batching import IGNORE_LABEL
from smolbench.data.columns import column_values
from smolbench.data.hub import COMMIT, cached_only
from smolbench.data.run_rows import OfRun
from smolbench.data.token_cache import TokenTable, encode_to_cache
from smolbench.errors import SmolbenchError
from smolbench.models.choice.conventions import ChoiceEncoder
from smolbench.models.encoding.template import TemplateEncoder
from smolbench.models.export.check import PER_TOKEN, DTypeName, Expected, Trial
from smolbench.models.export.network import BATCH, mean_log_probability
from smolbench.models.export.tokenizer import plain_texts
from smolbench.models.summaries.rows import line_breaks, written_text
from smolbench.models.summaries.summarizer import NO_TOKEN, Decoding, start_token
from smolbench.tasks.base import BaseTask
from smolbench.tasks.classification import ClassificationTask
from smolbench.tasks.multiple_choice import MultipleChoiceTask
from smolbench.tasks.summarize import SummarizationTask
from smolbench.tasks.trained_run import TrainedRun, kept_by

log = logging.getLogger("smolbench")

EXAMPLES = 40
"""Examples of a run that its export is compared on."""
_WRITTEN = 6
"""Documents that both write summaries of, which takes long."""
_BUILT_IN: Mapping[str, type[BaseDataModule]] = {
    "classification": IMDbDataModule,
    "summarization": SAMSumDataModule,
    "multiple_choice": HellaSwagDataModule,
}
_SEED = 0


def trial_of_run(trained: TrainedRun) -> Trial:
    """Examples of the run's own test split, or built-in ones where that is not there.

    Nothing is downloaded for them.
    """
    mixed = torch.bfloat16 if trained.results.get("precision") == "bf16-mixed" else None
    try:
        with cached_only():
            data = _data_of(trained)
            test = data.split("test").examples
            digest = trained.results.get("data/test_digest")
            if digest not in (None, data.facts().get("data/test_digest")):
                raise SmolbenchError("It holds other rows than when the run was tested.")
    except Exception as error:  # the data may be of a class of the user's own
        log.warning(
            "The export is compared with its run on built-in examples, because the run's own test "
            "split cannot be read here: %s",
            " ".join(str(error).split()) or type(error).__name__,
        )
        return replace(built_in_trial(trained.task_class.kind), mixed=mixed)
    chosen = _spread(test, data.content, EXAMPLES)
    source = f"from the {len(test):,} of the run's test split, spread over their lengths"
    return Trial(chosen, source, mixed)


def built_in_trial(kind: str) -> Trial:
    """Built-in examples of a kind."""
    data = _BUILT_IN[kind](source="sample")
    examples = _spread(data.load_sample().splits["test"], data.content, EXAMPLES)
    return Trial(examples, "built-in ones, not the run's own")


def _data_of(trained: TrainedRun) -> BaseDataModule:
    """The run's data, of the commit that it has learned from."""
    data = trained.settings.get("data") or {}
    module, _, name = str(data.get("class_path")).rpartition(".")
    found = getattr(importlib.import_module(module), name)
    if not issubclass(found, BaseDataModule):
        raise SmolbenchError(f"{name} is no DataModule of smolbench.")
    options = dict(data.get("init_args") or {})
    commit = trained.results.get("data/revision")
    if "revision" in options and COMMIT.fullmatch(str(commit)):
        options["revision"] = commit
    made: BaseDataModule = found(**options)
    made.of_run(OfRun(kept_by(trained.run, trained.checkpoint), trained.results))
    return made


def _spread(examples: Any, content: Sequence[str], n: int) -> dict[str, list[Any]]:  # noqa: ANN401
    """Columns of some rows of a ``datasets.Dataset``: one of each part of its lengths, the longest.

    Rows are measured in characters, and the draw is always the same.
    """
    lengths = np.zeros(len(examples), dtype=np.int64)
    for column in content:
        lengths += [sum(map(len, _texts(value))) for value in column_values(examples, column)]
    order = np.argsort(lengths, kind="stable")
    if len(order) > n:
        draw = np.random.default_rng(_SEED)
        parts = np.array_split(order[:-1], n - 1)
        order = np.array([*(draw.choice(part) for part in parts), order[-1]])
    chosen = examples.select(order.tolist())
    return {name: list(chosen[name]) for name in chosen.column_names if name != "label"}


def _texts(value: str | Sequence[str]) -> Sequence[str]:
    return [value] if isinstance(value, str) else value


# -- what the run's path says ---------------------------------------------------------------------


@contextmanager
def as_in_a_test(task: BaseTask, trial: Trial) -> Iterator[None]:
    """Run a task as its Trainer does in a test."""
    task.eval()
    enabled = trial.mixed is not None
    with (
        torch.inference_mode(),
        torch.autocast(task.device.type, dtype=trial.mixed, enabled=enabled),
    ):
        yield


def computed_in(task: BaseTask, trial: Trial) -> DTypeName:
    """What a task computes in."""
    rounded = "bfloat16" in (task.facts().get("model/dtype"), str(trial.mixed)[6:])
    return "bfloat16" if rounded else "float32"


def expected_probabilities(
    task: ClassificationTask,
    trial: Trial,
    texts: Sequence[str],
    ask: Callable[[Any], torch.Tensor],
) -> Expected:
    """What a classifier says of texts, on the way that ``smolbench predict`` takes.

    Args:
        task: The classifier.
        trial: Where the texts come from.
        texts: ``N`` of them, from :func:`~smolbench.models.export.tokenizer.plain_texts`.
        ask: A loaded export to its probabilities of the same texts, shape ``(N, C)``.
    """
    with as_in_a_test(task, trial):
        answer = task.start_answering()
        said = [answer(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
    return Expected(torch.cat(said), computed_in(task, trial), _plain(trial), ask)


def _plain(trial: Trial) -> str:
    return f"texts, {trial.source}, and one made so long that it is cut"


def expected_of_probe(
    task: ClassificationTask,
    trial: Trial,
) -> Callable[[], Expected]:
    """What a probe says of texts; see :func:`expected_probabilities`."""
    encoder: TemplateEncoder = task.encoder  # type: ignore[assignment] # of all that export probes
    texts = plain_texts(trial.examples["text"], encoder)

    def ask(probe: Any) -> torch.Tensor:  # noqa: ANN401 - the script's own class
        said = [probe.logits(texts[n : n + BATCH]) for n in range(0, len(texts), BATCH)]
        return torch.cat(said).softmax(dim=1)

    return lambda: expected_probabilities(task, trial, texts, ask)


def expected_of_choices(task: MultipleChoiceTask, trial: Trial) -> Expected:
    """What a task says of the endings of questions: mean log-probabilities, shape ``(N, C)``."""
    # a question has several endings, so every second one will do, the longest among them
    examples = {name: values[::-2] for name, values in trial.examples.items()}
    said = []
    with as_in_a_test(task, trial), _encoded(task, examples) as table:
        rows = task.rows("compared", table, np.zeros(len(table), dtype=np.int64))
        for numbers in _batches(len(table)):
            batch = {name: value.to(task.device) for name, value in rows.batch(numbers).items()}
            said.append((task(batch) / batch["ending_tokens"]).cpu())

    def ask(loaded: tuple[Any, Any]) -> torch.Tensor:
        model, tokenizer = loaded
        encoder = ChoiceEncoder(tokenizer, task.encoder.convention, task.max_length)
        columns = encoder.encode(examples)
        return torch.tensor(
            [
                [
                    # the last token is predicted, not read
                    mean_log_probability(model, ending, input_ids=row[-task.max_length - 1 : -1])
                    for row, ending in _whole_rows(ids, sizes)
                ]
                for ids, sizes in zip(columns["input_ids"], columns["ending_tokens"], strict=True)
            ]
        )

    return Expected(
        scores=torch.cat(said),
        dtype=computed_in(task, trial),
        examples=f"questions, {trial.source}",
        ask=ask,
        unit=PER_TOKEN,
    )


def _whole_rows(
    ids: Sequence[int], sizes: Sequence[int]
) -> Iterator[tuple[Sequence[int], Sequence[int]]]:
    """Of each ending the context with it, and itself."""
    ends = np.cumsum([len(ids) - sum(sizes), *sizes]).tolist()
    for first, last in pairwise(ends):
        yield [*ids[: ends[0]], *ids[first:last]], ids[first:last]


def expected_summaries(task: SummarizationTask, trial: Trial, documents: Sequence[str]) -> Expected:
    """What a task says of summaries, the mean log-probability of each, and what it writes.

    Args:
        task: The task.
        trial: Examples, with their summaries.
        documents: ``N`` documents, from :func:`~smolbench.models.export.tokenizer.plain_texts`.
    """
    known = dict(zip(trial.examples["document"], trial.examples["summary"], strict=True))
    summaries = [known.get(document, "Too long.") for document in documents]
    said = []
    with (
        as_in_a_test(task, trial),
        _encoded(task, {"document": documents, "summary": summaries}) as table,
    ):
        rows = task.rows("compared", table, None)
        for numbers in _batches(len(table)):
            batch = {name: value.to(task.device) for name, value in rows.batch(numbers).items()}
            tokens = (batch["labels"] != IGNORE_LABEL).sum(dim=1, keepdim=True)
            said.append(-task(batch).sum(dim=1, keepdim=True).cpu() / tokens.cpu())
        targets = [table.ragged["labels"][row].tolist() for row in range(len(table))]

    def ask(loaded: tuple[Any, Any]) -> torch.Tensor:
        model, tokenizer = loaded
        found = []
        for document, target in zip(documents, targets, strict=True):
            ids: list[int] = tokenizer(document, truncation=True)["input_ids"]
            rows = {"input_ids": ids, "decoder_input_ids": [start_token(model), *target[:-1]]}
            if task.causal:
                rows = {"input_ids": [*ids, *target[:-1]]}
            found.append([mean_log_probability(model, target, **rows)])
        return torch.tensor(found)

    few = documents[:: -max(1, len(documents) // _WRITTEN)]
    return Expected(
        scores=torch.cat(said),
        dtype=computed_in(task, trial),
        examples=_plain(trial).replace("texts", "documents", 1),
        ask=ask,
        unit=PER_TOKEN,
        written=_written_by(task, trial, few),
        let_write=lambda loaded: _written_by_export(loaded, few, task.decoding, causal=task.causal),
    )


def _written_by(task: SummarizationTask, trial: Trial, documents: Sequence[str]) -> list[str]:
    """Summaries, written greedily and then as in a test."""
    usual, written = task.decoding, list[list[int]]()
    for decoding in _decodings(usual):
        task.decoding = decoding
        with as_in_a_test(task, trial):
            answer = task.start_answering()
            for numbers in _batches(len(documents)):
                written += answer([documents[number] for number in numbers]).tolist()
    task.decoding = usual
    return [task.encoder.texts([token for token in row if token != NO_TOKEN]) for row in written]


def _written_by_export(
    loaded: tuple[Any, Any], documents: Sequence[str], decoding: Decoding, *, causal: bool
) -> list[str]:
    """The same by transformers alone, document by document, as the model card has it."""
    from transformers import GenerationConfig  # lazy: import cost

    model, tokenizer = loaded
    how = GenerationConfig.from_pretrained(tokenizer.name_or_path)
    written = []
    for beams in (each.num_beams for each in _decodings(decoding)):
        for document in documents:
            rows = tokenizer(document, truncation=True, return_tensors="pt")
            ids = model.eval().generate(**rows, generation_config=how, num_beams=beams)
            behind = ids[0, rows["input_ids"].shape[1] if causal else 1 :].tolist()
            written.append(written_text(tokenizer, behind, line_breaks(tokenizer)))
    return written


def _decodings(usual: Decoding) -> list[Decoding]:
    """Greedily, and the usual way."""
    return list(dict.fromkeys((replace(usual, num_beams=1), usual)))


def _batches(n: int) -> list[npt.NDArray[np.int64]]:
    return [np.arange(first, min(first + BATCH, n)) for first in range(0, n, BATCH)]


@contextmanager
def _encoded(task: BaseTask, examples: Mapping[str, Sequence[Any]]) -> Iterator[TokenTable]:
    """Examples as a task reads them."""
    n = len(next(iter(examples.values())))

    def columns(start: int, stop: int) -> dict[str, Sequence[Any]]:
        return {name: values[start:stop] for name, values in examples.items()}

    with tempfile.TemporaryDirectory(prefix="smolbench-") as folder:
        yield encode_to_cache(Path(folder), "examples", columns, n, task.encode, "Encoding")
