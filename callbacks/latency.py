"""Latency: how long a single text waits for its answer."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from time import perf_counter

import lightning.pytorch as pl
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from smolbench.errors import SmolbenchError
from smolbench.protocols import Answers, HasTexts, offered

log = logging.getLogger("smolbench")

WARMUP_TEXTS = 4
MIN_TEXTS = 8
"""Texts that are measured however long they take; fewer would say nothing of the spread."""
_GOLDEN = 0.618033988749895


class LatencyMonitor(pl.Callback):
    """Measures, behind a test, how long one text alone takes from its characters to its scores.

    What is timed, text by text: tokenisation, the whole network (also where the test has read the
    features of a frozen one from a cache), and the way of the scores back to the host, which waits
    for the device. What is not: loading, and a warm-up with the longest of the texts and three
    others.

    The texts are taken from the test split at equal distances of its order by length, so that the
    quantiles are those of the split. They are measured in an order in which any first part is
    spread over the lengths too, until ``max_s`` is over, but eight at least.

    It runs when the test has ended, outside of the test's own times and peaks, on the first rank
    only while the others wait. It is left out, without an error, if the module or the data do not
    take part, and where the weights are spread over processes (FSDP), since one alone cannot
    answer there. Stands in the list behind :class:`ResultsWriter`, so that the test is written
    before.

    The LightningModule takes part by a method ``start_answering()``, which loads what is needed and
    returns a function from a list of texts to a tensor on the host; the data by ``texts("test")``.

    Facts: ``cost/test_latency_ms_p50`` and ``cost/test_latency_ms_p95``, milliseconds per text, and
    ``cost/test_latency_n``, the number of texts that were measured.

    Args:
        examples: Texts to measure; 0 measures nothing.
        max_s: Seconds after which no further text is measured.

    Raises:
        SmolbenchError: If a number is negative.
    """

    def __init__(self, examples: int = 48, max_s: float = 20.0) -> None:
        """Check the arguments."""
        if examples < 0 or max_s < 0:
            raise SmolbenchError(
                f"latency.examples and latency.max_s must not be negative, but are {examples} and "
                f"{max_s}; `--latency.examples 0` switches the measurement off."
            )
        self.examples = examples
        self.max_s = max_s
        self._ms: list[float] = []

    def on_test_start(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Forget an earlier test's."""
        self._ms = []

    def on_test_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        """Measure, on the first rank."""
        whole = isinstance(trainer.strategy, SingleDeviceStrategy | DDPStrategy)
        trial = bool(trainer.fast_dev_run)  # type: ignore[attr-defined]
        if not self.examples or not whole or trial:
            return
        if trainer.is_global_zero:
            self._measure(trainer, pl_module)
        trainer.strategy.barrier("latency")

    def _measure(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        answers = offered(module, Answers)
        data = offered(getattr(trainer, "datamodule", None), HasTexts)
        if answers is None or data is None:
            return
        texts = spread_texts(data.texts("test"), self.examples)
        try:
            self._answer(trainer, answers, texts)
        except NotImplementedError:
            return
        except Exception as error:  # weights that are gone, memory that is full: the test stands
            self._ms = []
            log.warning("The latency of single texts is not measured: %s", error)

    def _answer(self, trainer: pl.Trainer, answers: Answers, texts: Sequence[str]) -> None:
        with trainer.precision_plugin.test_step_context(), torch.inference_mode():
            answer = answers.start_answering()
            for text in [max(texts, key=len), *texts[: WARMUP_TEXTS - 1]]:
                answer([text])
            began = perf_counter()
            for text in texts:
                before = perf_counter()
                if before - began > self.max_s and len(self._ms) >= MIN_TEXTS:
                    break
                answer([text])
                self._ms.append(1000 * (perf_counter() - before))

    def facts(self) -> dict[str, int | float | str | bool | None]:
        """The measured values; none if nothing was measured."""
        if not self._ms:
            return {}
        times = torch.tensor(self._ms, dtype=torch.float64)
        return {
            "cost/test_latency_ms_p50": float(times.quantile(0.5)),
            "cost/test_latency_ms_p95": float(times.quantile(0.95)),
            "cost/test_latency_n": len(self._ms),
        }


def spread_texts(texts: Sequence[str], n: int) -> list[str]:
    """Choose texts that stand for all by their lengths, always the same ones.

    Args:
        texts: All texts, of which there must be one at least.
        n: Texts wanted.

    Returns:
        ``n`` texts, or all if there are fewer, at equal distances of the order by length, in an
        order whose every first part is spread over the lengths.
    """
    by_length = sorted(range(len(texts)), key=lambda row: (len(texts[row]), row))
    n = min(n, len(texts))
    places = [by_length[(2 * i + 1) * len(texts) // (2 * n)] for i in range(n)]
    # multiples of the golden ratio fill an interval evenly
    order = sorted(range(n), key=lambda i: (i * _GOLDEN) % 1)
    return [texts[places[i]] for i in order]
