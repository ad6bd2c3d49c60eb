"""The standard augmentation of small images: a shift by up to 4 pixels, and a mirror image half the time."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from .. import rng

PADDING = 4


def augmented(x: Tensor, seed: int, epoch: int, index: Tensor | None = None) -> Tensor:
    """Images as epoch ``epoch`` of a training with seed ``seed`` sees them: shifted, and mirrored or not.

    Each image gets a shift of at most 4 pixels down and to the right, uniform, zeros coming in from outside (which is
    the mean of normalised images), and is mirrored with probability 1/2.

    Args:
        x: all images of the training split, ``[n, C, H, W]``.
        seed: of the training.
        epoch: from 0.
        index: int64 [B], which images to return; None for all. An image does not depend on what else is asked for.

    Returns:
        ``[B, C, H, W]`` on the device of ``x``.

    Raises:
        TypeError, ValueError: ``x`` is no batch of images, or a seed or an epoch out of range.

    Source: He et al. 2016, Section 4.2.

    >>> x = torch.randn(3, 1, 8, 8)
    >>> torch.equal(augmented(x, seed=1, epoch=2, index=torch.tensor([2])), augmented(x, seed=1, epoch=2)[2:])
    True
    """
    if not isinstance(x, Tensor) or x.dim() != 4:
        raise ValueError(f"x: expected images [n, C, H, W], got {getattr(x, 'shape', x)!r}")
    if isinstance(epoch, bool) or not isinstance(epoch, int):
        raise TypeError(f"epoch: expected an int, got {epoch!r}")
    if not 0 <= epoch < 2**32:
        raise ValueError(f"epoch: expected 0 <= epoch < 2**32, got {epoch}")
    n = len(x)
    generator = rng.generator((rng.network_keys(seed, 1)[0][0], epoch), "augmentation")
    shifts = generator.integers(0, 2 * PADDING + 1, (2, n))
    mirrored = generator.integers(0, 2, n).astype(bool)
    chosen = np.arange(n) if index is None else index.cpu().numpy()
    return _shifted(x if index is None else x[index], shifts[:, chosen], mirrored[chosen])


def _shifted(x: Tensor, shifts: np.ndarray, mirrored: np.ndarray) -> Tensor:
    """Image i of ``x``, padded, from row ``shifts[0, i]`` and column ``shifts[1, i]`` on; mirrored if so said."""
    n, _, height, width = x.shape
    rows = shifts[0][:, None] + np.arange(height)
    columns = np.where(mirrored[:, None], np.arange(width)[::-1], np.arange(width)) + shifts[1][:, None]
    rows, columns = (torch.from_numpy(t).to(x.device) for t in (rows, columns))
    images = torch.arange(n, device=x.device)[:, None, None]
    padded = F.pad(x, (PADDING,) * 4)
    # an index on both sides of a slice moves the channels to the end
    return padded[images, :, rows[:, :, None], columns[:, None, :]].permute(0, 3, 1, 2).contiguous()
