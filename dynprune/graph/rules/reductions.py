"""Operations along an axis: harmless beside the channels, fatal along them."""

from torch import fx

from dynprune.graph.labels import ids, varying
from dynprune.graph.walk import Labels, Rule, Walk, operation

__all__ = ["REDUCTIONS"]

_REDUCE = {
    "mean": "averages", "sum": "sums", "amax": "takes the maximum of",
    "amin": "takes the minimum of", "var": "takes the variance of",
    "std": "takes the deviation of", "prod": "multiplies", "linalg_vector_norm": "takes a norm of",
    "norm": "takes a norm of", "logsumexp": "sums",
}  # fmt: skip
_ALONG = {
    "softmax": "a softmax mixes", "_softmax": "a softmax mixes", "log_softmax": "a softmax mixes",
    "_log_softmax": "a softmax mixes", "cumsum": "a running sum mixes",
}  # fmt: skip
_SPATIAL = {
    "upsample_bilinear2d": 2, "upsample_nearest2d": 2, "upsample_bicubic2d": 2,
    "_upsample_bilinear2d_aa": 2, "_upsample_bicubic2d_aa": 2, "upsample_linear1d": 1,
    "upsample_nearest1d": 1, "upsample_trilinear3d": 3, "max_pool1d": 1, "max_pool2d": 2,
    "avg_pool1d": 1, "avg_pool2d": 2, "adaptive_avg_pool1d": 1, "adaptive_avg_pool2d": 2,
    "_adaptive_avg_pool2d": 2, "adaptive_max_pool2d": 2, "max_pool2d_with_indices": 2,
    "grid_sampler": 2, "grid_sampler_2d": 2, "_upsample_nearest_exact2d": 2,
    "avg_pool3d": 3, "max_pool3d": 3, "adaptive_avg_pool3d": 3,
}  # fmt: skip


def _reduce(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    source = a.get("self", node.args[0])
    labels = walk.labels(source)
    if labels is None:
        return None
    dims = a.get("dim")
    dims = [dims] if isinstance(dims, int) else list(dims or range(labels.dim()))
    axes = {d % labels.dim() for d in dims}
    name = operation(node)
    if axes & set(varying(labels)):
        walk.propagation.disqualify(labels, f"the model {_REDUCE[name]} its channels")
        return None
    keep = bool(a.get("keepdim"))
    walk.propagation.shifts.append(
        (ids(labels).long().numpy(), name)
    ) if name == "logsumexp" else None
    for axis in sorted(axes, reverse=True):
        labels = labels.narrow(axis, 0, 1) if keep else labels.select(axis, 0)
    return labels


def _along(walk: Walk, node: fx.Node) -> Labels:
    a = walk.arguments(node)
    labels = walk.labels(a["self"])
    if labels is None:
        return None
    if int(a["dim"]) % labels.dim() in varying(labels):
        walk.propagation.disqualify(labels, f"{_ALONG[operation(node)]} its channels")
    walk.propagation.shifts.append((ids(labels).long().numpy(), operation(node)))
    return labels


def _spatial(walk: Walk, node: fx.Node) -> Labels:
    source = node.args[0]
    labels = walk.labels(source)
    walk.disqualify_others(node, source)
    if labels is None:
        return None
    count = _SPATIAL[operation(node)]
    axes = range(labels.dim() - count, labels.dim())
    if any(axis in axes for axis in varying(labels)):
        walk.propagation.disqualify(labels, f"{operation(node)} mixes its channels")
        return None
    for axis in axes:
        labels = labels.narrow(axis, 0, 1)
    value = node.meta["val"]
    if isinstance(value, tuple | list):
        return [labels.expand(value[0].shape), None]
    return labels.expand(value.shape)


REDUCTIONS: dict[str, Rule] = {
    **dict.fromkeys(_REDUCE, _reduce),
    **dict.fromkeys(_ALONG, _along),
    **dict.fromkeys(_SPATIAL, _spatial),
}
