"""How models learn: one LightningModule per task."""

from smolbench.tasks.base import BaseTask
from smolbench.tasks.classical import ClassicalTask
from smolbench.tasks.classification import ClassificationTask
from smolbench.tasks.distillation.classification import DistillationTask
from smolbench.tasks.distillation.summarization import SummaryDistillationTask
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.tasks.multiple_choice import MultipleChoiceTask
from smolbench.tasks.probe import ProbeTask
from smolbench.tasks.prompt import PromptTask
from smolbench.tasks.summarize import SummarizationTask
from smolbench.tasks.words import NeuralBaselineTask

__all__ = [
    "BaseTask",
    "ClassicalTask",
    "ClassificationTask",
    "DistillationTask",
    "FineTuneTask",
    "MultipleChoiceTask",
    "NeuralBaselineTask",
    "ProbeTask",
    "PromptTask",
    "SummarizationTask",
    "SummaryDistillationTask",
]
