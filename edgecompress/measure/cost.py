"""Parameters and multiply-accumulates (MACs) of a network, in total and for each layer.

MACs are per sample. The total counts every convolution and matrix product that runs, those of
attention, recurrent layers and the user's own classes included; a layer that is called twice counts
twice. A layer has those of its own calls.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypedDict

import torch
from torch import Tensor, nn

from edgecompress.core import ChannelGraph, layers, trace
from edgecompress.core.graph import meta_copy
from edgecompress.core.macs import macs_by_module
from edgecompress.core.select import Price, full_widths, pricer
from edgecompress.core.simplify import fold_batchnorm
from edgecompress.errors import UsageError
from edgecompress.formats import BIAS_SCALE, FORMATS, bits_by_layer


@dataclass(frozen=True)
class LayerCost:
    """One mixing layer: its widths, its parameters (with bias) and its MACs for one sample."""

    name: str
    kind: str
    inputs: int
    outputs: int
    params: int
    macs: int


class LayerRow(TypedDict):
    """One layer as results record it: pairs of before and after."""

    layer: str
    kind: str
    inputs: list[int]
    outputs: list[int]
    params: list[int]
    macs: list[int]


@dataclass(frozen=True)
class Cost:
    """Totals of a network; `params` counts every parameter, `macs` is per sample and includes what
    no mixing layer computes.
    """

    params: int
    macs: int
    layers: tuple[LayerCost, ...]


def cost(model: nn.Module, example: Tensor, graph: ChannelGraph | None = None) -> Cost:
    """Cost of `model` for one sample like `example` `(N, C, H, W)`; `graph`, if given, saves a
    trace. A network that cannot be traced (its code asks for values) is counted as it runs.
    """
    try:
        graph = graph if graph is not None else trace(model, example)
        macs, reached = graph.macs, set(graph.output_shapes)
    except UsageError:
        macs = macs_by_module(model, example)
        reached = set(macs)
    rows = []
    for name, layer in model.named_modules():
        if not layers.is_mixing(layer) or name not in reached:
            continue
        row = LayerCost(
            name=name,
            kind=type(layer).__name__,
            inputs=layers.axis_size(layer, "in"),
            outputs=layers.axis_size(layer, "out"),
            params=_param_count(layer, recurse=False),
            macs=macs.get(name, 0),
        )
        rows.append(row)
    return Cost(_param_count(model), sum(macs.values()), tuple(rows))


def _param_count(module: nn.Module, recurse: bool = True) -> int:
    return sum(parameter.numel() for parameter in module.parameters(recurse))


def mac_price(model: nn.Module, graph: ChannelGraph) -> Price:
    """The MACs of `model` for one sample, as a price over widths.

    A mixing layer applies each of its weights at so many positions, in all of its calls; products
    of activations go with the channels that they are made of; what else is computed has a fixed
    price.
    """
    per_weight = {
        name: graph.macs.get(name, 0) / layers.weight_count(model.get_submodule(name))
        for name in graph.output_shapes
    }
    price = Price(per_weight, {}, per_group=graph.product_macs)
    counted = pricer(model, graph, price).cost(full_widths(graph))
    return replace(price, fixed=round(sum(graph.macs.values()) - counted))


def param_price(model: nn.Module, graph: ChannelGraph) -> Price:
    """Every parameter of `model` as a price over widths, exact: weights, biases, normalisation, and
    those that no width changes.
    """
    weights: dict[str, float] = {}
    outputs: dict[str, float] = {}
    channels: dict[str, float] = {}
    for name, layer in model.named_modules():
        if layers.is_mixing(layer) and name in graph.output_shapes:
            weights[name] = 1.0
            outputs[name] = float(getattr(layer, "bias", None) is not None)
        elif "through" in layers.axes(layer):
            size = layers.axis_size(layer, "through")
            channels[name] = float(_param_count(layer, recurse=False) / size)
    counted = pricer(model, graph, Price(weights, outputs, 0.0, channels)).cost(full_widths(graph))
    return Price(weights, outputs, _param_count(model) - counted, channels)


def layer_table(before: Sequence[LayerCost], after: Cost) -> list[LayerRow]:
    """Widths, parameters and MACs of each layer, `before` and `after`;
    layers that are gone are left out.
    """
    now = {row.name: row for row in after.layers}
    return [_layer_row(row, now[row.name]) for row in before if row.name in now]


def _layer_row(old: LayerCost, new: LayerCost) -> LayerRow:
    return {
        "layer": old.name,
        "kind": old.kind,
        "inputs": [old.inputs, new.inputs],
        "outputs": [old.outputs, new.outputs],
        "params": [old.params, new.params],
        "macs": [old.macs, new.macs],
    }


def byte_price(model: nn.Module, graph: ChannelGraph, form: str, fixed: float) -> Price:
    """Bytes of the ONNX file of `model` in format `form` as a price over widths; `fixed` are the
    bytes of the graph itself.

    Each BatchNorm is folded into the layer before it where possible, which gives the layer a bias;
    one that stays (before its convolution, as in DenseNet) keeps four numbers per channel.
    """
    folded = fold_batchnorm(meta_copy(model), torch.zeros(graph.input_shape))
    numbers = FORMATS[form]
    outputs = {}
    for name in graph.output_shapes:
        layer = folded.get_submodule(name)
        outputs[name] = numbers.scale
        if getattr(layer, "bias", None) is not None:
            outputs[name] += numbers.bias
            if numbers.is_integer and not layers.is_conv(layer):
                outputs[name] += BIAS_SCALE
    each = 4 * (2.0 if form == "fp16" else 4.0)
    norms = {
        name: each
        for name, module in folded.named_modules()
        if isinstance(module, layers.BatchNorm)
    }
    bits = bits_by_layer(form, [*outputs])
    return Price({name: width / 8 for name, width in bits.items()}, outputs, fixed, norms)
