"""Fréchet distance between two sets of features: FID of pictures, rFID of reconstructions.

The distance of the normal distributions with the features' means and covariances (Heusel et al.,
arXiv 1706.08500, eq. 6). What is called FID takes the 2048 pooled features of one Inception network
of 50,000 pictures; of another network, other preprocessing or fewer pictures the numbers do not
compare. The network is the user's (`feature_model`).

Legend: B batch, D feature width.
"""

import os
import pathlib

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.files import written_whole


class FeatureStatistics:
    """Mean and covariance of features that come batch by batch, in float64.

    Attributes:
      num_images: how many features are in it; None where a file does not say.
      mean: f64[D].
    """

    def __init__(
        self,
        num_images: int | None = 0,
        mean: np.ndarray | None = None,
        scatter_DD: np.ndarray | None = None,
    ):
        self.num_images, self.mean = num_images, mean
        # Sum of (x - mean)(x - mean)^T; of an unknown number of images their covariance.
        self._scatter_DD = scatter_DD

    @property
    def covariance(self) -> np.ndarray:
        """f64[D, D], of a sample: divided by num_images - 1. ValueError on fewer than 2 images."""
        if self.num_images is None:
            return self._scatter_DD
        if self.num_images < 2:
            raise ValueError(f"{self.num_images} features have no covariance, expected at least 2")
        return self._scatter_DD / (self.num_images - 1)

    def update(self, features_BD: np.ndarray) -> None:
        """Adds features [B, D]; ValueError on another width than before."""
        features_BD = np.asarray(features_BD, np.float64)
        if features_BD.ndim != 2:
            raise ValueError(f"features of shape {features_BD.shape}, expected [B, D]")
        if len(features_BD):
            mean_D = features_BD.mean(axis=0)
            deviations_BD = features_BD - mean_D
            scatter_DD = deviations_BD.T @ deviations_BD
            self.merge(FeatureStatistics(len(features_BD), mean_D, scatter_DD))

    def merge(self, other: "FeatureStatistics") -> None:
        """Adds all of `other`, such as what another process has seen (Chan et al., 1979).

        ValueError on other widths, or statistics of an unknown number of images.
        """
        if self.num_images is None or other.num_images is None:
            raise ValueError("statistics without num_images cannot be added to")
        if not other.num_images:
            return
        if not self.num_images:
            self.__dict__ |= other.__dict__
            return
        if self.mean.shape != other.mean.shape:
            raise ValueError(
                f"features of width {other.mean.size}, expected {self.mean.size} as before"
            )
        total = self.num_images + other.num_images
        delta_D = other.mean - self.mean
        between_DD = self.num_images * other.num_images / total * np.outer(delta_D, delta_D)
        self._scatter_DD = self._scatter_DD + other._scatter_DD + between_DD
        self.mean = self.mean + delta_D * (other.num_images / total)
        self.num_images = total

    def save(self, path: str | os.PathLike[str]) -> None:
        """Writes an .npz file of "mu" and "sigma", as published statistics are, and num_images."""
        arrays = {"mu": self.mean, "sigma": self.covariance}
        if self.num_images is not None:
            arrays["num_images"] = np.int64(self.num_images)
        with written_whole(pathlib.Path(path)) as temporary, open(temporary, "wb") as file:
            np.savez(file, **arrays)

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> "FeatureStatistics":
        """Reads what `save` wrote, or a published file of "mu" and "sigma" alone; or UserError."""
        path = pathlib.Path(path)
        if not path.is_file():
            raise UserError(f"{path}: no such file, expected feature statistics (.npz)")
        try:
            with np.load(path, allow_pickle=False) as found:
                # Published files may hold the images too, which are not to be read.
                mean, covariance = (np.asarray(found[n], np.float64) for n in ("mu", "sigma"))
                num_images = int(found["num_images"]) if "num_images" in found.files else None
        except (OSError, ValueError, KeyError, AttributeError, EOFError) as error:
            raise UserError(
                f"{path}: expected feature statistics, an .npz file of mu and sigma; {error}"
            ) from error
        if mean.ndim != 1 or covariance.shape != 2 * mean.shape:
            raise UserError(
                f"{path}: found mu of shape {mean.shape} and sigma of shape {covariance.shape}, "
                "expected [D] and [D, D]"
            )
        scale = 1 if num_images is None else num_images - 1
        return cls(num_images, mean, covariance * scale)


def frechet_distance(
    mean_a: np.ndarray, cov_a: np.ndarray, mean_b: np.ndarray, cov_b: np.ndarray
) -> float:
    """|a - b|^2 + tr(A + B - 2 (A B)^1/2) of means [D] and covariances [D, D]; 0 or more.

    The trace of the root is taken of A^1/2 B A^1/2, which has the eigenvalues of A B and is
    symmetric: covariances of fewer images than D, which have no inverse, need no special case.
    ValueError on shapes that do not fit.
    """
    arrays = [np.asarray(x, np.float64) for x in (mean_a, cov_a, mean_b, cov_b)]
    mean_a, cov_a, mean_b, cov_b = arrays
    shapes = [x.shape for x in arrays]
    if mean_a.ndim != 1 or shapes != [mean_a.shape, 2 * mean_a.shape] * 2:
        raise ValueError(f"means and covariances of shapes {shapes}, expected [D], [D, D] twice")
    values_D, vectors_DD = np.linalg.eigh(cov_a)
    root_DD = (vectors_DD * np.sqrt(np.maximum(values_D, 0))) @ vectors_DD.T
    product_D = np.linalg.eigvalsh(root_DD @ cov_b @ root_DD)
    trace_of_root = np.sqrt(np.maximum(product_D, 0)).sum()
    squared = np.sum((mean_a - mean_b) ** 2)
    return float(max(0.0, squared + np.trace(cov_a) + np.trace(cov_b) - 2 * trace_of_root))
