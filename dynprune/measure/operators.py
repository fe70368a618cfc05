"""Operators that hold no products: moves, sums, norms and functions of single values."""

from typing import Any

import torch

__all__ = ["has_no_products", "plain_name"]

#: Copies, choices and rearrangements.
_MOVES = (
    "_copy_from", "_reshape_alias", "_reshape_copy", "_to_copy", "_unsafe_view", "as_strided",
    "cat", "channel_shuffle", "col2im", "constant_pad_nd", "copy", "embedding", "embedding_renorm",
    "flip", "gather", "im2col", "index", "index_copy", "index_fill", "index_put", "index_select",
    "masked_scatter", "masked_select", "native_channel_shuffle", "nonzero", "pad_sequence",
    "pixel_shuffle", "pixel_unshuffle", "put", "reflection_pad1d", "reflection_pad2d",
    "reflection_pad3d", "repeat", "repeat_interleave", "replication_pad1d", "replication_pad2d",
    "replication_pad3d", "resize", "roll", "rot90", "scatter", "select_scatter", "set",
    "slice_scatter", "stack", "take", "tril", "triu", "unfold_copy", "unique_consecutive",
    "_unique2", "unique_dim", "unsafe_split", "unsafe_split_with_sizes", "contiguous", "clone",
)  # fmt: skip

#: New tensors, random numbers and questions about tensors.
_SOURCES = (
    "_assert_async", "_assert_scalar", "_assert_tensor_metadata", "_efficientzerotensor",
    "_local_scalar_dense", "_nested_tensor_from_mask", "_pin_memory", "arange", "bernoulli",
    "bincount", "empty", "empty_like", "empty_strided", "equal", "exponential", "eye", "fill",
    "full", "full_like", "is_same_size", "is_pinned", "item", "lift", "lift_fresh",
    "lift_fresh_copy", "linspace", "logspace", "multinomial", "new_empty", "new_empty_strided",
    "new_full", "new_ones", "new_zeros", "normal", "ones", "ones_like", "rand", "rand_like",
    "randint", "randint_like", "randn", "randn_like", "random", "randperm", "scalar_tensor",
    "sym_numel", "sym_size", "sym_storage_offset", "sym_stride", "tril_indices", "triu_indices",
    "uniform", "zero", "zeros", "zeros_like",
)  # fmt: skip

#: Sums, orders and norms along an axis.
_REDUCTIONS = (
    "_batch_norm_no_update", "_batch_norm_with_update", "_fused_rms_norm", "_log_softmax",
    "_native_batch_norm_legit", "_native_batch_norm_legit_no_training", "_safe_softmax",
    "_softmax", "_weight_norm_interface", "all", "amax", "amin", "aminmax", "any", "argmax",
    "argmin", "argsort", "batch_norm", "bucketize", "count_nonzero", "cummax", "cummin", "cumprod",
    "cumsum", "histc", "kthvalue", "linalg_vector_norm", "logcumsumexp", "logsumexp", "max",
    "mean", "median", "min", "mode", "nansum", "native_batch_norm", "native_dropout",
    "native_group_norm", "native_layer_norm", "native_norm", "norm", "prod", "rms_norm",
    "scatter_add", "scatter_reduce", "index_add", "index_reduce", "searchsorted", "segment_reduce",
    "sort", "std", "std_mean", "sum", "topk", "var", "var_mean",
)  # fmt: skip

#: Pooling and interpolation.
_POOLS = (
    "_adaptive_avg_pool2d", "_adaptive_avg_pool3d", "_upsample_bicubic2d_aa",
    "_upsample_bilinear2d_aa", "adaptive_max_pool2d", "adaptive_max_pool3d", "avg_pool2d",
    "avg_pool3d", "fractional_max_pool2d", "grid_sampler_2d", "grid_sampler_3d",
    "max_pool2d_with_indices", "max_pool3d_with_indices", "mkldnn_max_pool2d",
    "upsample_bicubic2d", "upsample_bilinear2d", "upsample_linear1d", "upsample_nearest1d",
    "upsample_nearest2d", "upsample_nearest3d", "upsample_trilinear3d",
)  # fmt: skip

_FREE = frozenset((*_MOVES, *_SOURCES, *_REDUCTIONS, *_POOLS))


def plain_name(operator: Any) -> str:
    """Return an ATen operator's name alone, and ``namespace::name`` of any other one."""
    namespace, _, name = operator._schema.name.partition("::")
    return name if namespace == "aten" else f"{namespace}::{name}"


def has_no_products(operator: Any) -> bool:
    """Whether it is known that an operator multiplies no matrices; of a foreign one it is not."""
    namespace, _, name = operator._schema.name.partition("::")
    if namespace not in ("aten", "prim", "prims"):
        return False
    if torch.Tag.pointwise in operator.tags or operator.is_view:
        return True
    return name.rstrip("_") in _FREE
