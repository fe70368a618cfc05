"""The experts of one group on the way: a router, then neuron sets, then consumers.

Whoever runs the model feeds what the group reads and makes, call after call, in three passes. So
the same experts are fitted to what a dense model does, or layer by layer to what the pruned layers
before a group really give: the target of each consumer is the caller's.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from dynprune.gate.predictor import pool_tokens
from dynprune.gate.route import Experts, Reader
from dynprune.gate.router import Grain
from dynprune.gate.topr import top_r
from dynprune.planning.clusters import k_means, nearest_of

__all__ = ["RIDGE", "Consumer", "GroupDraft"]

RIDGE = 3e-3
"""Of the mean square of a kept neuron: how firmly weights hold to what they were."""

MOST_TOKENS = 16384
"""Tokens that are kept to find clusters of tokens."""


@dataclass(frozen=True, eq=False)
class Consumer:
    """A layer that reads the group, as it is before.

    Attributes:
        matrix: (out, neurons) weight, to which the fitted one is held.
        bias: (out,), or None.
    """

    matrix: Tensor
    bias: Tensor | None

    def __call__(self, hidden: Tensor) -> Tensor:
        """Return what the layer makes of (..., neurons)."""
        return torch.nn.functional.linear(hidden, self.matrix, self.bias)


@dataclass
class _Sums:
    """Second moments of one consumer over the tokens of one cluster."""

    square: Tensor
    across: Tensor
    read: Tensor
    made: Tensor
    tokens: int = 0


class GroupDraft:
    r"""The experts of one group, fitted in three passes over the same calls.

    `see` every call, then `cluster`; `measure` every call, then `choose_sets`; `add` every call for
    every consumer, then `solve`. Inputs (the mean token, or every token) fall into clusters. In
    each, the neurons of largest deviation times the norm of their consumers' columns are kept, and
    every consumer is fitted to its target y over the cluster's tokens:

    .. math:: \min_{W', b'} \; \mathrm{mean} \, \| y - W' z_S - b' \|^2
        + \lambda \| W' - W_S \|^2

    Args:
        consumers: module -> the layer as it is.
        features: weights and biases of one neuron in all of the group's producers and carriers.
        kept: neurons of every expert.
        experts: M, at most; clusters that stay empty have none.
        grain: what is clustered, and will choose.

    Source: reconstruction by least squares as in ThiNet, arXiv 1707.06342.
    """

    def __init__(
        self,
        consumers: Mapping[str, Consumer],
        *,
        features: int,
        kept: int,
        experts: int,
        grain: Grain,
    ) -> None:
        self.consumers, self.features = consumers, features
        self.kept, self.wanted, self.grain = kept, experts, grain
        norms = [consumer.matrix.float().norm(dim=0) for consumer in consumers.values()]
        self.norm = torch.stack(norms).norm(dim=0)
        self._seen: list[Tensor] = []
        self._sums: dict[str, list[_Sums]] = {}
        self.readers: dict[str, Reader] = {}
        self._off = self._left = 0.0
        self.rows = 0

    @property
    def bytes(self) -> int:
        """Of second moments in double precision that the last pass holds."""
        width = sum(self.kept + len(consumer.matrix) for consumer in self.consumers.values())
        return 8 * self.wanted * self.kept * width

    def see(self, tokens: Tensor, real: Tensor | None = None) -> None:
        """Note what the router would read: (B, T, C), of which the tokens in ``real`` count."""
        self._seen.append(self._features(tokens, real))
        if sum(map(len, self._seen)) > 2 * MOST_TOKENS:
            self._seen = [torch.cat(self._seen)[::2]]

    def cluster(self) -> None:
        """Find the clusters of all that was seen."""
        seen = torch.cat(self._seen)
        self._seen = []
        self.scale = 1.0 / seen.std(0, unbiased=False).clamp_min(1e-5)
        self.centres = k_means(seen * self.scale, self.wanted) / self.scale
        self._set_sharpness(seen)
        size = (len(self.centres), len(self.norm))
        self._first = torch.zeros(size, dtype=torch.float64, device=seen.device)
        self._second = self._first.clone()
        self._count = torch.zeros(size[0], dtype=torch.float64, device=seen.device)

    def _clusters(self, tokens: Tensor, real: Tensor | None, count: int) -> Tensor:
        """Return the cluster of every token that consumers read, (B, count)."""
        features = self._features(tokens, None if self.grain == "token" else real)
        found = nearest_of(features * self.scale, self.centres * self.scale)
        if self.grain == "token":
            return found.view(tokens.shape[:2])
        return found[:, None].expand(-1, count)

    def assigned(
        self, tokens: Tensor, real: Tensor | None, count: int
    ) -> tuple[Tensor, Tensor | None]:
        """Return the cluster of every token that counts, (n,), and which these are.

        Args:
            tokens: (B, T, C) that the group's first producer read.
            real: (B, T) those of them that count; None where all do.
            count: tokens that consumers read: others than T where a layer between changes them, of
                which all count.
        """
        every = self._clusters(tokens, real, count)
        if real is None or count != tokens.shape[1]:
            return every.flatten(), None
        return every[real], real

    def measure(self, tokens: Tensor, hidden: Tensor, real: Tensor | None = None) -> None:
        """Add up the neurons' moments: hidden is (B, T, neurons) at the consumers' input."""
        cluster, real = self.assigned(tokens, real, hidden.shape[1])
        rows = _counting(hidden, real).double()
        self._first.index_add_(0, cluster, rows)
        self._second.index_add_(0, cluster, rows.square())
        self._count += torch.bincount(cluster, minlength=len(self._count))

    def choose_sets(self) -> None:
        """Choose the neurons that each expert keeps."""
        count = self._count.clamp_min(1.0)[:, None]
        mean, square = self._first / count, self._second / count
        score = (square - mean.square()).clamp_min(0.0).sqrt() * self.norm.to(mean)
        index = top_r(score, self.kept).sort(1).values
        self.take_sets(index)

    def take(self, index: Tensor, centres: Tensor, scale: Tensor) -> None:
        """Take sets and a router that were found elsewhere; what is left is `add` and `solve`.

        Args:
            index: (M, K) neurons of each expert.
            centres: (M, C) nearest of which an input's mean token lies.
            scale: (C,) by which both are multiplied first.
        """
        self.centres, self.scale = centres, scale
        self._set_sharpness(centres)
        self.take_sets(index)

    def take_sets(self, index: Tensor) -> None:
        """Take (M, K) neurons for the experts, as `choose_sets` would have chosen them."""
        self.index, kept = index, index.shape[1]
        double = torch.float64
        self._sums = {
            name: [
                _Sums(
                    own.matrix.new_zeros(kept, kept, dtype=double),
                    own.matrix.new_zeros(len(own.matrix), kept, dtype=double),
                    own.matrix.new_zeros(kept, dtype=double),
                    own.matrix.new_zeros(len(own.matrix), dtype=double),
                )
                for _ in index
            ]
            for name, own in self.consumers.items()
        }

    def add(
        self, name: str, tokens: Tensor, hidden: Tensor, target: Tensor, real: Tensor | None = None
    ) -> None:
        """Add what one consumer reads (B, T, neurons), and what it is to make of it (B, T, out)."""
        cluster, real = self.assigned(tokens, real, hidden.shape[1])
        read, made = _counting(hidden, real), _counting(target, real)
        for m, sums in enumerate(self._sums[name]):
            own = cluster == m
            z = read[own][:, self.index[m].to(read.device)].double()
            y = made[own].double()
            sums.square += z.t() @ z
            sums.across += y.t() @ z
            sums.read += z.sum(0)
            sums.made += y.sum(0)
            sums.tokens += len(z)

    def solve(self, *, ridge: float = RIDGE) -> None:
        """Fit the consumers to all that was added."""
        for name in self.consumers:
            self.solve_one(name, ridge=ridge)

    def solve_one(self, name: str, *, ridge: float = RIDGE) -> None:
        """Fit one consumer to all that was added for it."""
        self.readers[name] = self._reader(name, ridge)
        del self._sums[name]

    def make(self, name: str, tokens: Tensor, hidden: Tensor, real: Tensor | None) -> Tensor:
        """Return what one fitted consumer makes (B, T, out) of all neurons (B, T, neurons)."""
        cluster, reader = self._clusters(tokens, real, hidden.shape[1]), self.readers[name]
        y = hidden.new_empty(*hidden.shape[:2], reader.bias.shape[1])
        for m, index in enumerate(self.index):
            own = cluster == m
            z = hidden[own][:, index.to(hidden.device)]
            y[own] = torch.nn.functional.linear(z, reader.weight[m].to(z), reader.bias[m].to(z))
        return y

    def experts(self) -> Experts:
        """Return what was fitted."""
        return Experts(
            self.index, self.centres, self.scale, self.readers, self.grain, self.sharpness
        )

    def score(
        self, name: str, tokens: Tensor, hidden: Tensor, target: Tensor, real: Tensor | None = None
    ) -> None:
        """Measure what one fitted consumer makes against its target; see `add`."""
        cluster, real = self.assigned(tokens, real, hidden.shape[1])
        reader = self.readers[name]
        read, made = _counting(hidden, real), _counting(target, real)
        self._off += float((made - made.mean(0)).double().square().sum())
        self.rows += len(made) if name == next(iter(self.consumers)) else 0
        for m, index in enumerate(self.index):
            own = cluster == m
            z = read[own][:, index.to(read.device)]
            y = torch.nn.functional.linear(z, reader.weight[m].to(z), reader.bias[m].to(z))
            self._left += float((y - made[own]).double().square().sum())

    @property
    def error(self) -> float:
        """Mean square of what was off, over the variance of the targets, of all that was scored."""
        return self._left / max(self._off, 1e-30)

    @property
    def stored(self) -> int:
        """Bytes of the group's consumers, each expert's own, and of its rows, each written once."""
        experts, kept = self.index.shape
        rows = len(self.index.unique()) * self.features
        columns = sum(len(consumer.matrix) + 1 for consumer in self.consumers.values())
        router = experts * (len(self.scale) + 1) if experts > 1 else 0
        size = next(iter(self.consumers.values())).matrix.element_size()
        return size * (rows + experts * kept * columns + router)

    def _reader(self, name: str, ridge: float) -> Reader:
        consumer = self.consumers[name]
        matrix = consumer.matrix.double()
        weights, biases = [], []
        for index, sums in zip(self.index, self._sums[name], strict=True):
            old = matrix[:, index.to(matrix.device)]
            if not sums.tokens:  # a cluster that no token of these calls fell into
                bias = matrix.new_zeros(len(matrix)) if consumer.bias is None else consumer.bias
                weights.append(old)
                biases.append(bias.double())
                continue
            read, made = sums.read / sums.tokens, sums.made / sums.tokens
            square = sums.square / sums.tokens - read.outer(read)
            across = sums.across / sums.tokens - made.outer(read)
            hold = (ridge * square.diagonal().mean()).clamp_min(1e-12)
            system = square + hold * torch.eye(len(square)).to(square)
            new = torch.linalg.solve(system, (across + hold * old).t()).t()
            weights.append(new)
            biases.append(made - new @ read)
        return Reader(torch.stack(weights), torch.stack(biases))

    def _set_sharpness(self, seen: Tensor) -> None:
        apart = -0.5 * torch.cdist(seen * self.scale, self.centres * self.scale).square()
        spread = float(apart.std(1).mean()) if len(self.centres) > 1 else 1.0
        self.sharpness = 1.0 / max(spread, 1e-5)

    def _features(self, tokens: Tensor, real: Tensor | None) -> Tensor:
        tokens = tokens.detach().float()
        return (
            _counting(tokens, real) if self.grain == "token" else pool_tokens(tokens, "mean", real)
        )


def _counting(tokens: Tensor, real: Tensor | None) -> Tensor:
    """Return (n, C): the tokens that are no padding."""
    tokens = tokens.detach()
    return tokens.flatten(0, 1) if real is None else tokens[real]
