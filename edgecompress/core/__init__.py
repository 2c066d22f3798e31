"""The core idea: choose which channels stay, then build the smaller network.

    graph = trace(model, example)      which channels must stay or go together   core/graph
    scores = {group: Tensor(C)}        how important each channel is             methods/scores
    keep = {group: BoolTensor(C)}      which channels stay                       core/select
    masked(model, keep)                the original size; consumers read zero    core/shrink
    shrink(model, keep)                the same function, physically smaller     core/shrink
    stack([a, b], example)             the reverse: one wide network from two    core/stack

A *channel* is not a property of one layer. Output 3 of a convolution is also entry 3 of the
BatchNorm behind it, input 3 of the next convolution, and, through a residual connection, output 3
of other layers. `trace` finds all these *positions*, so that a channel can be removed everywhere at
once. Channels that occupy the same axes of the same layers form a `ChannelGroup`; a keep mask
chooses among them freely.

Four laws hold, as property tests over all supported topologies:

1. Every position of every axis is in exactly one group.
2. Keeping all channels is the identity, and shrinking twice is shrinking once.
3. `masked(model, keep)(x) == shrink(model, keep)(x)` in eval mode.
4. `stack([a, b])(x) == (a(x) + b(x)) / 2`.

To read on, top to bottom:

    layers       which axis of which tensor; cutting one layer
    graph        trace: label, couple, group   (concrete, labels, rules, ledger, operations)
    proof        trace, and law 3 computed on the network itself; frozen counts what stays
    shrink       keep masks to smaller networks
    select       scores to keep masks          (price, ranking)
    stack        several networks as one       (placement, widen, heads)
    simplify     lossless folds of BatchNorms and pools
    constants    exact shrinking of zeroed networks
    convolutions correct gradients on every processor

This package imports torch only.
"""

from edgecompress.core.graph import ChannelGraph, ChannelGroup, Member, consumers, trace
from edgecompress.core.shrink import Keep, masked, shrink

__all__ = [
    "ChannelGraph",
    "ChannelGroup",
    "Keep",
    "Member",
    "consumers",
    "masked",
    "shrink",
    "trace",
]
