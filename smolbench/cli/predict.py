"""``smolbench predict``: texts read, labelled or summarized by a model or two, and written."""

from __future__ import annotations

import gc
import sys
from contextlib import redirect_stdout

import smolbench.tasks
from smolbench.callbacks import BatchWatch, GracefulStop
from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.cli.command_line import Invocation
from smolbench.cli.lightning_cli import PREDICTED, TWO_KINDS, SmolCLI
from smolbench.cli.predict_input import read_inputs
from smolbench.cli.predict_output import Said, check_output, write_predictions
from smolbench.errors import SmolbenchError
from smolbench.runs.settings import flatten, read_settings
from smolbench.tasks.base import CHECKPOINT_KEY


def predict(call: Invocation, stop: GracefulStop, watch: BatchWatch) -> None:
    """Label or summarize texts, by two models if they are to stand side by side.

    Raises:
        SmolbenchError: If the texts cannot be read, the predictions not be written, or the two
            models do not say the same kind of thing.
    """
    inputs = read_inputs(
        call.texts,
        call.input,
        call.text_column,
        call.encoding,
        call.quoting,
        label_column=_label_column(call),
    )
    check_output(call.output, inputs)
    calls = [call] if call.before is None else [call.before, call]
    known = [labels for one in calls if (labels := _saved_labels(one)) is not None]
    if any(labels != known[0] for labels in known):
        raise SmolbenchError(
            f"The model before tells {', '.join(known[0])} apart and the model after "
            f"{', '.join(known[1])}: they must have the same labels, in the same order."
        )
    labels = known[0] if known else None
    kinds = {kind for one in calls if (kind := _saved_kind(one)) is not None}
    if len(kinds) > 1:
        raise SmolbenchError(TWO_KINDS)
    said: dict[int, Said] = {}
    # what a model without a checkpoint does, its own class says, before anything is loaded
    for one in sorted(calls, key=lambda one: one.checkpoint is not None):
        with redirect_stdout(sys.stderr):  # what is piped on is predictions alone
            found = SmolCLI(one, stop, watch, inputs.texts, labels, kinds).said
        assert found is not None, "predict has run"
        said[id(one)] = found
        if len(calls) > 1:
            gc.collect()  # memory holds one model at a time; trainer and model refer to each other
    if call.before is not None and call.before.checkpoint is call.checkpoint is None:
        raise SmolbenchError(
            "--before none is the same model, because nothing of it is trained: leave it out, or "
            "name another run."
        )
    before = said[id(call.before)] if call.before is not None else None
    if before is not None and type(before) is not type(said[id(call)]):
        raise SmolbenchError(TWO_KINDS)
    write_predictions(inputs, said[id(call)], call.output, before)


def _label_column(call: Invocation) -> str | None:
    """Name of the column in which the run's own files have their labels."""
    if call.run is None or not call.run.config.is_file():
        return None
    return flatten(read_settings(call.run.config)).get("data.label_column")


def _saved_kind(call: Invocation) -> str | None:
    """The kind of example of the checkpoint's task, if it is known and texts can be given to it."""
    if call.checkpoint is None:
        return None
    origin = read_checkpoint(call.checkpoint).get(CHECKPOINT_KEY)
    task = getattr(smolbench.tasks, str(origin.get("task")), None) if origin else None
    kind = getattr(task, "kind", None)
    return kind if kind in PREDICTED else None


def _saved_labels(call: Invocation) -> list[str] | None:
    """Names of the classes that the checkpoint's model tells apart."""
    if call.checkpoint is None:
        return None
    origin = read_checkpoint(call.checkpoint).get(CHECKPOINT_KEY)
    signature = origin.get("signature", {}) if isinstance(origin, dict) else {}
    labels: list[str] | None = signature.get("labels")
    return labels
