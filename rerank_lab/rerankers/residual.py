"""ColBERTv2's compression: a vector is the nearest of some centroids, and a few bits a dimension for what is left.

    code = argmax_c  v . centroid_c          residual = v - centroid_code, each dimension in one of 2^bits buckets
    v'   = unit(centroid_code + weight of each dimension's bucket)

Santhanam et al., ColBERTv2, NAACL 2022, section 3.3. https://arxiv.org/abs/2112.01488. As in the authors'
`indexing/codecs/residual.py` and `collection_indexer.py`: 2^floor(log2(16 sqrt(n))) centroids by k-means, scaled to
length 1, in half precision; buckets are bounded by the quantiles i/2^bits of the residuals of vectors held out from
k-means, and stand for the quantiles (i + 0.5)/2^bits.
"""

from __future__ import annotations

from math import isqrt
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from rerank_lab.core import DataError, InputError

__all__ = ["BITS", "ResidualCodec", "centroid_count", "pack", "unpack"]

BITS = (1, 2, 4)
ROUNDS = 4  # of k-means, the authors' default
SAMPLE = 64  # vectors a centroid that k-means looks at
STRIDE = 1 << 12  # vectors at a time


def centroid_count(vectors: int) -> int:
    """How many centroids n vectors get: 2^floor(log2(16 sqrt(n))), but at least two vectors a centroid.

    >>> [centroid_count(n) for n in (1, 3, 300, 10_000, 1_000_000)]
    [1, 1, 128, 1024, 8192]
    """
    return 1 << max(0, min(isqrt(256 * vectors), vectors // 2).bit_length() - 1)


def pack(buckets: np.ndarray, bits: int) -> np.ndarray:
    """Put 8/bits numbers into each byte, the first one highest.

    Args:
        buckets: numbers below 2^bits, uint8, shape (N, d); d * bits must be a multiple of 8.

    Returns:
        Bytes, uint8, shape (N, d * bits / 8).

    >>> pack(np.array([[3, 0, 1, 2]], dtype=np.uint8), bits=2).tolist()
    [[198]]
    """
    apart = buckets.reshape(len(buckets), buckets.shape[1] * bits // 8, 8 // bits)  # (N, bytes, numbers a byte)
    return np.bitwise_or.reduce(apart << _shifts(bits), axis=-1)


def unpack(packed: np.ndarray, bits: int) -> np.ndarray:
    """Undo `pack`: numbers below 2^bits, uint8, shape (N, d).

    >>> unpack(np.array([[198]], dtype=np.uint8), bits=2).tolist()
    [[3, 0, 1, 2]]
    """
    apart = (packed[..., None] >> _shifts(bits)) & np.uint8((1 << bits) - 1)  # (N, bytes, numbers a byte)
    return apart.reshape(len(packed), packed.shape[1] * (8 // bits))


def _shifts(bits: int) -> np.ndarray:
    return np.arange(8 - bits, -1, -bits, dtype=np.uint8)


class ResidualCodec:
    """Turns unit vectors into a code and a few bits a dimension, and back.

    Args:
        centroids: unit vectors, shape (C, d).
        cutoffs: bounds between the buckets, ascending, shape (2^bits - 1,).
        weights: what each bucket stands for, shape (2^bits,).
    """

    def __init__(self, centroids: Tensor, cutoffs: Tensor, weights: Tensor):
        self.centroids, self.cutoffs, self.weights = centroids, cutoffs, weights
        self.bits = len(weights).bit_length() - 1
        self.code_type = np.dtype(np.uint16 if len(centroids) <= 1 << 16 else np.int32)

    @classmethod
    def train(cls, vectors: Tensor | np.ndarray, bits: int = 2, seed: int = 0) -> ResidualCodec:
        """Find centroids and buckets.

        Args:
            vectors: unit vectors, shape (N, d); of very many, a sample is looked at.
            bits: 1, 2 or 4 a dimension.
            seed: of the sample and of the first centroids.

        Raises:
            InputError: other bits, no vectors, or dimensions whose bits do not fill bytes.
        """
        if bits not in BITS:
            raise InputError(f"bits is {bits}: give 1, 2 or 4")
        n, dimensions = vectors.shape
        if n == 0 or dimensions * bits % 8:
            raise InputError(f"{n} vectors of {dimensions} dimensions with {bits} bits do not fill bytes")
        chance, centroids = np.random.default_rng(seed), centroid_count(n)
        # sorted, so that a file is read in one sweep; then shuffled
        sample = np.sort(chance.permutation(n)[: centroids * SAMPLE])
        seen = torch.from_numpy(np.asarray(vectors[sample], dtype=np.float32)[chance.permutation(len(sample))])
        held_out = seen[: max(1, min(len(seen) // 20, 50_000))]
        means = F.normalize(_k_means(seen[len(held_out) :] if n > 1 else seen, centroids), dim=-1).half().float()
        residuals = (held_out - means[_nearest(held_out, means)]).numpy()
        steps = np.arange(1 << bits) / (1 << bits)
        bounds, middles = np.quantile(residuals, steps[1:]), np.quantile(residuals, steps + 0.5 / (1 << bits))
        return cls(means, torch.from_numpy(bounds).float(), torch.from_numpy(middles).float())

    @property
    def bytes_per_vector(self) -> int:
        """What a compressed vector takes: its code and its bits."""
        return self.code_type.itemsize + self.centroids.shape[1] * self.bits // 8

    def compress(self, vectors: Tensor) -> tuple[np.ndarray, np.ndarray]:
        """Codes (N,), uint16 or int32, and packed buckets (N, d * bits / 8), uint8, of unit vectors (N, d)."""
        codes = np.empty(len(vectors), dtype=self.code_type)
        packed = np.empty((len(vectors), self.centroids.shape[1] * self.bits // 8), dtype=np.uint8)
        for start in range(0, len(vectors), STRIDE):
            part = vectors[start : start + STRIDE].float()
            nearest = _nearest(part, self.centroids)
            buckets = torch.bucketize(part - self.centroids[nearest], self.cutoffs)  # (n, d)
            codes[start : start + STRIDE] = nearest.numpy()
            packed[start : start + STRIDE] = pack(buckets.numpy().astype(np.uint8), self.bits)
        return codes, packed

    def decompress(self, codes: np.ndarray, packed: np.ndarray) -> Tensor:
        """Unit vectors (N, d), float32."""
        buckets = torch.from_numpy(unpack(packed, self.bits).astype(np.int64))  # (N, d)
        return F.normalize(self.centroids[torch.from_numpy(codes.astype(np.int64))] + self.weights[buckets], dim=-1)

    def save(self, file: str | Path) -> None:
        """Write the codec as safetensors; centroids are kept in half precision, in which they were trained."""
        from safetensors.torch import save_file

        save_file({"centroids": self.centroids.half(), "cutoffs": self.cutoffs, "weights": self.weights}, file)

    @classmethod
    def load(cls, file: str | Path) -> ResidualCodec:
        """Read what `save` wrote.

        Raises:
            DataError: the file is missing, damaged or no codec.
        """
        from safetensors import SafetensorError
        from safetensors.torch import load_file

        try:
            tensors = load_file(file)
            return cls(tensors["centroids"].float(), tensors["cutoffs"], tensors["weights"])
        except (OSError, SafetensorError, KeyError) as error:
            raise DataError(f"{file} is no residual codec ({error}): build the index again") from error


def _nearest(vectors: Tensor, centroids: Tensor) -> Tensor:
    """The centroid with the largest dot product, shape (N,)."""
    return torch.cat([(part @ centroids.T).argmax(dim=1) for part in vectors.split(STRIDE)])


def _k_means(vectors: Tensor, count: int) -> Tensor:
    """Lloyd's algorithm from the first `count` of shuffled vectors; a centroid that nothing is near to stays."""
    means = vectors[:count].clone()
    for _ in range(ROUNDS):
        # |v - m|^2 = |v|^2 - 2 (v . m - |m|^2 / 2)
        half = means.square().sum(dim=1) / 2
        nearest = torch.cat([(part @ means.T - half).argmax(dim=1) for part in vectors.split(STRIDE)])
        members = torch.bincount(nearest, minlength=len(means))
        sums = torch.zeros_like(means).index_add_(0, nearest, vectors)
        means = torch.where(members[:, None] > 0, sums / members.clamp(min=1)[:, None], means)
    return means
