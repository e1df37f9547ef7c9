"""Training: one loop for one rank or many, and for several seeds at once, resumable after every epoch."""

from lsmha.training.evaluation import Evaluation, evaluate, predict_logits, score_logits
from lsmha.training.stacked import StackedTrainer
from lsmha.training.state import EpochMetrics, TrainState
from lsmha.training.trainer import Trainer, train

__all__ = [
    "EpochMetrics",
    "Evaluation",
    "StackedTrainer",
    "TrainState",
    "Trainer",
    "evaluate",
    "predict_logits",
    "score_logits",
    "train",
]
