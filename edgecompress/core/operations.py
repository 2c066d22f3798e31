"""Names of the operations that the label trace knows: functions, methods, or module classes.

An operation in none of these sets freezes the channels that it reads.
"""

from __future__ import annotations

IDENTITY = frozenset(
    """
    Identity Dropout Dropout1d Dropout2d Dropout3d AlphaDropout FeatureAlphaDropout dropout
    dropout1d dropout2d dropout3d alpha_dropout feature_dropout stochastic_depth
    StochasticDepth DropPath contiguous clone detach float double half to type ReLU ReLU6
    LeakyReLU ELU CELU SELU GELU SiLU Mish Sigmoid Tanh Hardtanh Hardsigmoid Hardswish
    Softplus Softsign Softshrink Hardshrink Tanhshrink LogSigmoid Threshold RReLU relu relu_
    relu6 leaky_relu leaky_relu_ elu elu_ celu selu selu_ gelu silu mish sigmoid sigmoid_ tanh
    tanh_ hardtanh hardtanh_ hardsigmoid hardswish softplus softsign logsigmoid threshold
    rrelu clamp clamp_ clip abs neg exp log sqrt rsqrt square sin cos reciprocal sign erf
    floor ceil round
    """.split()
)
"""One tensor in, one of the same shape out, computed value by value."""

ELEMENTWISE = frozenset(
    """
    add add_ iadd sub sub_ isub mul mul_ imul multiply div div_ truediv itruediv true_divide
    pow radd rsub rmul maximum minimum max_elementwise addcmul
    """.split()
)
"""Several tensors, broadcast; channels at the same position are coupled."""

SPATIAL = frozenset(
    """
    MaxPool1d MaxPool2d MaxPool3d AvgPool1d AvgPool2d AvgPool3d LPPool2d AdaptiveAvgPool1d
    AdaptiveAvgPool2d AdaptiveAvgPool3d AdaptiveMaxPool1d AdaptiveMaxPool2d AdaptiveMaxPool3d
    Upsample UpsamplingNearest2d UpsamplingBilinear2d ZeroPad2d ReflectionPad2d
    ReplicationPad2d ConstantPad2d BlurPool2d max_pool1d max_pool2d max_pool3d avg_pool1d
    avg_pool2d avg_pool3d adaptive_avg_pool1d adaptive_avg_pool2d adaptive_avg_pool3d
    adaptive_max_pool2d interpolate boolean_dispatch pad
    """.split()
)
"""Each channel by itself, over its feature map."""

MOVES = frozenset(
    """
    permute transpose swapaxes movedim t flip unbind squeeze unsqueeze expand expand_as
    flatten Flatten stack
    """.split()
)
"""Data moves, without a size in the code."""

REDUCTIONS = frozenset(
    """
    mean sum amax amin std var norm
    """.split()
)
"""Some dimensions are reduced."""

ALONG_OTHERS = frozenset(
    """
    softmax Softmax log_softmax LogSoftmax layer_norm LayerNorm rms_norm RMSNorm normalize
    """.split()
)
"""Mix some dimensions, and keep the channels of the others."""

RESHAPES = frozenset(
    """
    view reshape unflatten Unflatten
    """.split()
)
"""Data moves to sizes that may be numbers in the code."""

SPLITS = frozenset(
    """
    chunk split tensor_split
    """.split()
)
"""One tensor is split into several."""
