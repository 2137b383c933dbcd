"""The engine: from a configuration to a trained model that survives being interrupted."""

from mrla_minimal.lab.engine.checkpoint import load_model, read_checkpoint, read_config
from mrla_minimal.lab.engine.config import TrainConfig
from mrla_minimal.lab.engine.folder import usable_root
from mrla_minimal.lab.engine.graph import GraphRun, open_run
from mrla_minimal.lab.engine.model import build_model, build_optimizer, learning_rate_at
from mrla_minimal.lab.engine.precision import choose_precision
from mrla_minimal.lab.engine.presets import PRESETS
from mrla_minimal.lab.engine.run import Run, TrainingDiverged, evaluate
from mrla_minimal.lab.engine.training import (
    Result,
    RunInUse,
    TrainingInterrupted,
    TrainingOutOfTime,
    train,
)

__all__ = [
    "PRESETS", "GraphRun", "Result", "Run", "RunInUse", "TrainConfig", "TrainingDiverged",
    "TrainingInterrupted", "TrainingOutOfTime", "build_model", "build_optimizer", "choose_precision",
    "evaluate", "learning_rate_at", "load_model", "open_run", "read_checkpoint", "read_config", "train",
    "usable_root",
]
