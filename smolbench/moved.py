"""Where modules stand that had another place: old imports go on, with a warning.

Class paths in configurations are not concerned: ``smolbench.data`` and ``smolbench.tasks`` name
their classes themselves.
"""

from __future__ import annotations

import sys
import warnings
from collections.abc import Sequence
from importlib import import_module
from importlib.machinery import ModuleSpec
from types import ModuleType

MOVED = {
    "cache_folder": "utils.cache_folder",
    "data.ag_news": "data.datasets.ag_news",
    "data.grammar": "data.samples.grammar",
    "data.hellaswag": "data.datasets.hellaswag",
    "data.imdb": "data.datasets.imdb",
    "data.own_rows": "data.files.options",
    "data.readers": "data.files.readers",
    "data.readers.base": "data.files.readers.base",
    "data.readers.comma_separated": "data.files.readers.comma_separated",
    "data.readers.hub": "data.files.readers.hub",
    "data.readers.json_lines": "data.files.readers.json_lines",
    "data.readers.parquet": "data.files.readers.parquet",
    "data.readers.text": "data.files.readers.text",
    "data.sample": "data.samples.imdb",
    "data.sample_hellaswag": "data.samples.hellaswag",
    "data.sample_news": "data.samples.ag_news",
    "data.sample_samsum": "data.samples.samsum",
    "data.sample_tweets": "data.samples.sentiment140",
    "data.samsum": "data.datasets.samsum",
    "data.sentiment140": "data.datasets.sentiment140",
    "data.sources": "data.hub",
    "data.text_files": "data.files.texts",
    "data.text_pairs": "data.files.pairs",
    "data_of_run": "cli.data_of_run",
    "digest": "utils.digest",
    "estimate": "cli.estimate",
    "estimate.command": "cli.estimate.command",
    "estimate.cost": "cli.estimate.cost",
    "estimate.planned": "cli.estimate.planned",
    "estimate.rehearsal": "cli.estimate.rehearsal",
    "estimate.text": "cli.estimate.text",
    "export_cli": "cli.export",
    "extrapolate": "utils.extrapolate",
    "files": "utils.files",
    "footprint": "cli.footprint",
    "invocation": "cli.command_line",
    "model_card": "cli.model_card",
    "model_places": "cli.model_places",
    "models.adaptation": "models.pretrained.adaptation",
    "models.adapter_folder": "models.pretrained.adapter_folder",
    "models.backbone": "models.pretrained.backbone",
    "models.calibration": "models.prompting.calibration",
    "models.causal_lm": "models.pretrained.language_model",
    "models.causality": "models.pretrained.causality",
    "models.choice_rows": "models.choice.rows",
    "models.classical": "models.baselines.pipelines",
    "models.classifier": "models.pretrained.classifier",
    "models.cnn": "models.baselines.cnn",
    "models.conventions": "models.choice.conventions",
    "models.embedding": "models.baselines.embedding",
    "models.features": "models.frozen.features",
    "models.footprint": "models.memory.footprint",
    "models.freed_memory": "utils.freed_memory",
    "models.frozen_cache": "models.frozen.cache",
    "models.heads": "models.pretrained.heads",
    "models.label_words": "models.prompting.label_words",
    "models.live_bytes": "models.memory.live_bytes",
    "models.lstm": "models.baselines.lstm",
    "models.missing_packages": "models.pretrained.missing_packages",
    "models.output_files": "models.frozen.entry",
    "models.pass_part": "models.frozen.rehearsal",
    "models.positions": "models.pretrained.positions",
    "models.precision": "models.pretrained.precision",
    "models.quantization": "models.pretrained.quantization",
    "models.reach": "models.pretrained.reach",
    "models.scoring": "models.choice.scoring",
    "models.scoring_trials": "models.choice.scoring_trials",
    "models.seams": "models.encoding.seams",
    "models.shots": "models.prompting.shots",
    "models.summarizer": "models.summaries.summarizer",
    "models.summary_rows": "models.summaries.rows",
    "models.template": "models.encoding.template",
    "models.tiny_t5": "models.tiny.t5",
    "models.vocabulary": "models.baselines.vocabulary",
    "models.word_vectors": "models.baselines.word_vectors",
    "models.words": "models.baselines.words",
    "monitors": "cli.monitors",
    "notices": "utils.notices",
    "option_parser": "cli.option_parser",
    "predict_input": "cli.predict_input",
    "predict_output": "cli.predict_output",
    "prediction": "cli.predict",
    "processor": "utils.processor",
    "progress": "utils.progress",
    "ranks": "utils.ranks",
    "recipes": "runs.recipes",
    "run_folder": "cli.run_folder",
    "run_loggers": "cli.loggers",
    "runs.board": "runs.report.board",
    "runs.cells": "runs.report.cells",
    "runs.commands": "cli.report",
    "runs.curves": "runs.report.curves",
    "runs.details": "runs.report.details",
    "runs.leaderboard": "runs.report.leaderboard",
    "runs.listing": "runs.report.listing",
    "runs.markdown": "runs.report.markdown",
    "runs.mistakes": "runs.report.mistakes",
    "runs.page": "runs.report.page",
    "runs.pictures": "runs.report.pictures",
    "runs.published": "runs.report.published",
    "runs.significance": "runs.report.significance",
    "runs.summary": "runs.report.summary",
    "runs.tables_csv": "runs.report.tables_csv",
    "sweep": "cli.sweep",
    "sweep.check": "cli.sweep.check",
    "sweep.command": "cli.sweep.command",
    "sweep.definition": "cli.sweep.definition",
    "sweep.ledger": "cli.sweep.ledger",
    "sweep.options": "cli.sweep.options",
    "sweep.page": "cli.sweep.page",
    "sweep.process": "cli.sweep.process",
    "sweep.space": "cli.sweep.space",
    "sweep.table": "cli.sweep.table",
    "sweep.trial": "cli.sweep.trial",
    "tasks.adapting": "tasks.pretrained",
    "tasks.agreement": "tasks.distillation.agreement",
    "tasks.distill": "tasks.distillation.classification",
    "tasks.distill_summaries": "tasks.distillation.summarization",
    "tasks.exporting": "tasks.export",
    "tasks.find_teacher": "tasks.distillation.find_teacher",
    "tasks.neural": "tasks.words",
    "tasks.summary_teachers": "tasks.distillation.summarizing_teachers",
    "tasks.task": "tasks.base",
    "tasks.teacher": "tasks.distillation.teacher",
    "tasks.teacher_kinds": "tasks.distillation.classifying_teachers",
    "tasks.teacher_run": "tasks.distillation.teacher_run",
    "tasks.teaching": "tasks.distillation.student",
    "tasks.trained": "tasks.trained_run",
    "tasks.writing": "tasks.generation",
    "text_options": "cli.text_options",
    "trainer_checks": "cli.trainer_checks",
    "training_cli": "cli.lightning_cli",
    "training_command": "cli.train",
    "training_ends": "cli.training_ends",
    "versions": "utils.versions",
}
"""Old and new names behind ``smolbench.``, since December 2026."""


class _Finder:
    """Asked first: a folder of an old name may be left behind, with compiled files only.

    A finder and loader without their base classes, whose module every command would wait for.
    """

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        known = fullname.startswith("smolbench.") and fullname.partition(".")[2] in MOVED
        if not known:
            return None
        return ModuleSpec(fullname, self, is_package=True)  # type: ignore[arg-type]

    def create_module(self, spec: ModuleSpec) -> None:
        """Leave it to Python."""

    def exec_module(self, module: ModuleType) -> None:
        new = f"smolbench.{MOVED[module.__name__.partition('.')[2]]}"
        warnings.warn(f"{module.__name__} is {new} now.", FutureWarning, stacklevel=2)
        there = import_module(new)
        module.__getattr__ = lambda name: getattr(there, name)  # type: ignore[method-assign]


def install() -> None:
    """Let old names be imported."""
    if not any(isinstance(finder, _Finder) for finder in sys.meta_path):
        sys.meta_path.insert(0, _Finder())
