"""How models learn: one LightningModule per task."""

from smolbench.tasks.classical import ClassicalTask
from smolbench.tasks.classification import ClassificationTask
from smolbench.tasks.distill import DistillationTask
from smolbench.tasks.distill_summaries import SummaryDistillationTask
from smolbench.tasks.fine_tune import FineTuneTask
from smolbench.tasks.multiple_choice import MultipleChoiceTask
from smolbench.tasks.neural import NeuralBaselineTask
from smolbench.tasks.probe import ProbeTask
from smolbench.tasks.prompt import PromptTask
from smolbench.tasks.summarize import SummarizationTask
from smolbench.tasks.task import BaseTask

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
