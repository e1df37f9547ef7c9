"""How long networks take to classify an image: one by one in this process, or in rounds of fresh ones."""

from lsmha.latency.rounds import Measured, Round, measure_in_rounds, measure_round
from lsmha.latency.timing import LatencyMeasurement, measure_latency

__all__ = ["LatencyMeasurement", "Measured", "Round", "measure_in_rounds", "measure_latency", "measure_round"]
