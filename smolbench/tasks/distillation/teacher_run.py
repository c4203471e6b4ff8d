"""A finished run as a teacher: its checkpoint, its settings, and the data it has learned from."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

from smolbench.callbacks.checkpoint import read_checkpoint
from smolbench.data.datamodule import BaseDataModule
from smolbench.data.kept_rows import among
from smolbench.errors import SmolbenchError
from smolbench.identity import compare, said
from smolbench.runs.run_dir import Run
from smolbench.runs.settings import read_settings
from smolbench.tasks.base import BaseTask
from smolbench.tasks.trained_run import (
    kept_by,
    pinned_options,
    say_own_code,
    signature_of,
    task_class_of,
)
from smolbench.utils.digest import digest, file_digest


class TaughtRun:
    """What all finished runs have in common that teach.

    Args:
        run: Its folder.
        checkpoint: One of its checkpoints; the best if not given.
        tasks: Classes of the tasks that can teach.
        wanted: Which runs those are, in words.
        backbone: Where its pretrained network lies now, if its folder was moved.

    Raises:
        SmolbenchError: If the run is unfinished, has no such checkpoint or is of another task.
    """

    def __init__(
        self,
        run: Run,
        checkpoint: Path | None,
        tasks: tuple[type[BaseTask], ...],
        wanted: str,
        backbone: str | None,
    ) -> None:
        self._backbone = backbone
        self.run = run = Run(run.path.resolve())
        self.name = str(run.path)
        self.checkpoint = checkpoint or run.checkpoint("best")
        self.results = run.results()
        self._same_rows: bool | None = None
        if self.results.get("status") != "finished" or "attempts" not in self.results:
            status = self.results.get("status") if "attempts" in self.results else "only scored"
            raise SmolbenchError(
                f"The teacher {self.name} is no finished training (it is {status}): finish it "
                f"with `smolbench fit --run_dir {self.name} --ckpt_path last`, or name another."
            )
        if not self.checkpoint.is_file():
            raise SmolbenchError(
                f"The teacher {self.name} has no checkpoint {self.checkpoint.name}: train it "
                "anew, or name another."
            )
        self.settings = read_settings(run.config)
        say_own_code((self.settings.get("model") or {}).get("init_args") or {})
        self._task_class = task_class_of(self.settings, run.path)
        if not issubclass(self._task_class, tasks):
            raise SmolbenchError(
                f"The teacher {run.path} is of a {self._task_class.__name__}, which cannot teach: "
                f"name {wanted}."
            )

    @cached_property
    def identity(self) -> str:
        """Digest of the checkpoint and the model's settings."""
        content = file_digest([self.checkpoint])
        return digest({"checkpoint": content, "model": self.settings["model"]})

    @cached_property
    def signature(self) -> Mapping[str, Any]:
        """Settings that the checkpoint's state is only valid with."""
        return signature_of(read_checkpoint(self.checkpoint), self.checkpoint)

    def compare_data(self, data: BaseDataModule) -> str | None:
        """Refuse another dataset than the student's.

        Returns:
            What there is to be known if the teacher may have seen rows that are scored.

        Raises:
            SmolbenchError: If it was trained on another dataset.
        """
        facts = data.facts()
        options: Mapping[str, Any] = (self.settings.get("data") or {}).get("init_args") or {}
        shared = [name for name in options if hasattr(data, name)]
        before = {f"data.{name}": options[name] for name in shared}
        now = {f"data.{name}": getattr(data, name) for name in shared}
        for name in ("data/id", "data/revision"):
            before[name], now[name] = self.results.get(name), facts.get(name)
        found = compare("teach", before, now)
        if "data/id" in found.refused:
            there, here = found.refused["data/id"]
            raise SmolbenchError(
                f"The teacher {self.name} was trained on {there}, but this run learns from {here}: "
                "train a teacher on the same data."
            )
        own, theirs = data.kept_rows(), kept_by(self.run, self.checkpoint)
        if own is not None and theirs is not None:
            # its own validation rows have chosen its checkpoint, as they will choose the student's
            pairs = (
                ("test", own.test[own.drawn], theirs.seen, own.seen),
                ("validation", own.val, theirs.train, own.train),
            )
            seen = []
            for name, scored, theirs_seen, own_seen in pairs:
                n = among(scored.rows, theirs_seen.rows) & ~among(scored.rows, own_seen.rows)
                if n.any():
                    seen.append(f"{n.sum():,} of {len(n):,} {name} rows")
            self._same_rows = not seen
            told = f"{' and '.join(seen)} are among those it was trained on"
        else:
            self._same_rows = not found.told
            told = f"it was trained on another choice of rows: {said(found.told)}"
        if self._same_rows:
            return None
        return f"The teacher may have learned from rows that this run is scored on, because {told}."

    def task(self) -> Any:  # noqa: ANN401 - one of the tasks that can teach
        """The task without weights; the pretrained ones are of the commit it was trained on."""
        return self._task_class(**self.options())

    def options(self) -> dict[str, Any]:
        """The options of the task.

        Raises:
            SmolbenchError: If its pretrained network is not where it was.
        """
        return pinned_options(
            self.settings,
            self.signature,
            f"The teacher {self.name}",
            backbone=self._backbone,
            option="--model.teacher_backbone",
        )

    def fill(self, task: BaseTask) -> None:
        """Give a task whose network is loaded the weights that were trained.

        Raises:
            SmolbenchError: If they do not fit.
        """
        checkpoint = read_checkpoint(self.checkpoint)
        try:
            task.on_load_checkpoint(checkpoint)
        except SmolbenchError as error:
            raise SmolbenchError(f"The teacher {self.name} cannot be rebuilt. {error}") from error
        task.load_state_dict(checkpoint["state_dict"], strict=False)

    def facts(self) -> dict[str, Any]:
        """What results say of the teacher."""
        return {
            "teacher/id": self.results.get("model/id"),
            "teacher/run": self.name,
            "teacher/method": self.results.get("method"),
            "teacher/same_rows": self._same_rows,
        }
