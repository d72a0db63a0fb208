"""What was really saved: parameters, bytes, multiplications, latency and memory of a model, with their conditions."""

from noisyteacher.measure.costs import Costs, Latency, LayerCost, measure, ratios

__all__ = ["Costs", "Latency", "LayerCost", "measure", "ratios"]
