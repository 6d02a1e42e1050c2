"""The ends of the spectrum of a symmetric matrix that is known by its products alone."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Product = Callable[[Tensor], Tensor]

DENSE = 24  # up to this size the matrix is assembled: as many products as Lanczos would begin with
RESTARTS = 100
TOLERANCE = 1e-4
NEEDS_SCIPY = "eigenvalues by Lanczos need scipy: pip install 'grasp-kernels[diagnose]'"


@dataclass(frozen=True)
class Ends:
    """The ends of a spectrum.

    Attributes:
        least, largest: eigenvalues, the least to within 1e-4 of the largest magnitude; NaN where
            Lanczos did not converge.
        products: matrix-vector products that were needed.
        method: "dense" or "Lanczos".
    """

    least: float
    largest: float
    products: int
    method: str


class Counted:
    """A product, counted, between numpy's vectors and torch's."""

    def __init__(self, product: Product, like: Tensor) -> None:
        self.product, self.like, self.products = product, like, 0

    def __call__(self, vector: np.ndarray) -> np.ndarray:
        self.products += 1
        given = torch.from_numpy(np.array(vector).reshape(-1)).to(self.like)
        return self.product(given).detach().double().cpu().numpy()


def ends(product: Product, like: Tensor) -> Ends:
    """The least and the largest eigenvalue of a symmetric matrix, `product(v (n,)) -> (n,)`.

    By implicitly restarted Lanczos (ARPACK, through `scipy.sparse.linalg.eigsh`). The least is
    found as the far end of the shifted matrix `largest I - M`: near 0 its own digits mean nothing,
    and asking for them would not end.

    Args:
        like: `(n,)`, of the dtype and device that `product` takes.
    """
    size, counted = like.numel(), Counted(product, like)
    if size <= DENSE:
        matrix = np.stack([counted(unit) for unit in np.eye(size)])
        values = np.linalg.eigvalsh((matrix + matrix.T) / 2)
        return Ends(float(values[0]), float(values[-1]), size, "dense")
    largest = _largest(counted, size)
    least = largest - _largest(lambda v: largest * v - counted(v), size)
    return Ends(least, largest, counted.products, "Lanczos")


def least_definite(product: Product, like: Tensor) -> tuple[float, int]:
    """The least eigenvalue of a positive matrix to four digits, by Lanczos, and the products.

    NaN where it did not converge: a matrix of condition 1e8 and more is beyond it.
    """
    counted = Counted(product, like)
    return _lanczos(counted, like.numel(), "SA", vectors=128), counted.products


def _largest(product: Callable[[np.ndarray], np.ndarray], size: int) -> float:
    return _lanczos(product, size, "LA", vectors=20)


def _lanczos(
    product: Callable[[np.ndarray], np.ndarray], size: int, which: str, *, vectors: int
) -> float:
    try:
        from scipy.sparse.linalg import ArpackNoConvergence, LinearOperator, eigsh
    except ImportError as error:
        raise ImportError(NEEDS_SCIPY) from error
    try:
        (value,) = eigsh(
            LinearOperator((size, size), matvec=product, dtype=np.float64),
            k=1,
            which=which,
            ncv=min(size, vectors),
            maxiter=RESTARTS,
            tol=TOLERANCE,
            v0=np.random.default_rng(0).standard_normal(size),  # the same numbers every time
            return_eigenvectors=False,
        )
    except ArpackNoConvergence:
        return float("nan")
    return float(value)
