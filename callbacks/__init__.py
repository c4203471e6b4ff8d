"""Callbacks that measure, guard and resume; usable in anyone's Lightning project.

They write into the trainer's ``default_root_dir``.
"""

from smolbench.callbacks.averaged_weights import AveragedWeights
from smolbench.callbacks.checkpoint import RunCheckpoint
from smolbench.callbacks.exact_resume import ExactResume
from smolbench.callbacks.graceful_stop import GracefulStop, RunInterrupted
from smolbench.callbacks.guards import TrainingGuard
from smolbench.callbacks.latency import LatencyMonitor
from smolbench.callbacks.memory import MemoryMonitor
from smolbench.callbacks.metrics_csv import MetricsCSV
from smolbench.callbacks.out_of_memory import BatchWatch
from smolbench.callbacks.plateau import TrainingPlateau
from smolbench.callbacks.results import ResultsWriter
from smolbench.callbacks.streamed_io import StreamedCheckpointIO
from smolbench.callbacks.threads import TrainingThreads
from smolbench.callbacks.throughput import ThroughputMonitor

__all__ = [
    "AveragedWeights",
    "BatchWatch",
    "ExactResume",
    "GracefulStop",
    "LatencyMonitor",
    "MemoryMonitor",
    "MetricsCSV",
    "ResultsWriter",
    "RunCheckpoint",
    "RunInterrupted",
    "StreamedCheckpointIO",
    "ThroughputMonitor",
    "TrainingGuard",
    "TrainingPlateau",
    "TrainingThreads",
]
