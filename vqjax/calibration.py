"""Calibration after training: one temperature, fitted on examples that were held out."""

import math

import numpy as np
from jax import Array
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp, softmax


def fit_temperature(probs: Array, labels: Array) -> float:
    """The temperature T at which softmax(log probs / T) fits labels best, 0.05 to 20.

    Guo et al. 2017, arXiv:1706.04599, section 4.2, to be fitted on a split that is neither trained
    nor tested on. The label counts (N + 1) / (N + 2), the other classes share the rest, as Platt
    1999 has it: without that a split told without a mistake would ask for T = 0.

    Args:
        probs: float [N, C] on the host, C at least 2.
        labels: int [N].

    Raises:
        ValueError: no rows, or one class.
    """
    probs, labels = np.asarray(probs, np.float64), np.asarray(labels)
    if probs.ndim != 2 or probs.shape[0] < 1 or probs.shape[1] < 2:
        raise ValueError(f'probs has shape {probs.shape}: need [N, C], N >= 1 and C >= 2')
    logits = _log(probs)
    other = 1 / (len(labels) + 2)
    targets = np.full(probs.shape, other / (probs.shape[1] - 1))
    targets[np.arange(len(labels)), labels] = 1 - other

    def loss(log_temperature: float) -> float:
        scaled = logits * math.exp(-log_temperature)
        return float(np.mean(logsumexp(scaled, axis=-1) - (targets * scaled).sum(-1)))

    bounds = math.log(0.05), math.log(20.0)
    # Convex in 1 / T, so that it has one minimum in log T as well.
    return math.exp(minimize_scalar(loss, bounds=bounds, method='bounded').x)


def at_temperature(probs: Array, temperature: float) -> np.ndarray:
    """softmax(log probs / temperature) of probs [N, C] -> float32 [N, C]: the order stays."""
    return softmax(_log(np.asarray(probs, np.float64)) / temperature, axis=-1).astype(np.float32)


def _log(probs: np.ndarray) -> np.ndarray:
    # A probability that float32 rounded to 0 is the smallest one that it holds.
    return np.log(np.maximum(probs, np.finfo(np.float32).tiny))
