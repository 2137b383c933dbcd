"""Attentions beside those of hosting.py that a configuration may name: started or wired otherwise."""

import functools

from torch import nn

from mrla_minimal.controls import DepthwiseCarry, DepthwiseValue
from mrla_minimal.layer_attention import MRLABase, MRLALight


def _light_with_lambda(channels: int, start: float) -> MRLALight:
    """MRLALight whose lambda_o starts at one number in place of N(0, 1)."""
    attention = MRLALight(channels)
    nn.init.constant_(attention.lambda_o, start)
    return attention


def _base_with_zero_query(channels: int) -> MRLABase:
    """MRLABase that starts as the uniform mean: its queries start at 0, so all of its weights at 1 / t."""
    attention = MRLABase(channels)
    nn.init.zeros_(attention.query.weight)
    return attention


def _light_with_zero_query(channels: int) -> MRLALight:
    """MRLALight that starts as half of v alone: queries at 0, so all gates at 1/2, and lambda_o at 0."""
    attention = _light_with_lambda(channels, 0.0)
    nn.init.zeros_(attention.query.weight)
    return attention


def _carry_with_zero_lambda(channels: int) -> DepthwiseCarry:
    """DepthwiseCarry that starts as v alone."""
    control = DepthwiseCarry(channels)
    nn.init.zeros_(control.lambda_o)
    return control


def _depthwise_with_relu(channels: int) -> DepthwiseValue:
    """v alone, and after the norm the ReLU that MRLABase and UniformMean have: their control."""
    control = DepthwiseValue(channels)
    control.relu_after_norm = True
    return control


# Names beside those of hosting.py, each a callable channels -> module: a configuration holds names only.
FURTHER_ATTENTIONS = {
    "mrla-light-lambda0": functools.partial(_light_with_lambda, start=0.0),
    "mrla-light-lambda1": functools.partial(_light_with_lambda, start=1.0),
    "light-zero-query": _light_with_zero_query,
    "depthwise-carry-lambda0": _carry_with_zero_lambda,
    "depthwise-relu": _depthwise_with_relu,
    "base-zero-query": _base_with_zero_query,
}
