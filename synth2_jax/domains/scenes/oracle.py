"""Pixels -> scene graph: compares each cell of a picture with every cell that can be drawn.

On generated pictures this makes faithfulness an exact count, as GenEval's detectors do for
photographs.
"""

import functools
import itertools

import numpy as np

from synth2_jax.domains.scenes.renderer import (
    BACKGROUNDS,
    CELL_SIZE,
    CELLS,
    COLOURS,
    IMAGE_SIZE,
    SHAPES,
    SIZES,
    Scene,
    SceneObject,
    render_cell,
)


@functools.cache
def _templates(background: str) -> tuple[tuple[SceneObject | None, ...], np.ndarray]:
    """Every drawable cell on this background: its object (None: empty) and pixels f32[M, P]."""
    items: list[SceneObject | None] = [None]
    for colour, shape, size in itertools.product(COLOURS, SHAPES, SIZES):
        items.append(SceneObject((0, 0), colour, shape, size))
    pixels = np.stack([render_cell(background, item).reshape(-1) for item in items])
    return tuple(items), pixels


def _squared_distances(cells_XP: np.ndarray, templates_MP: np.ndarray) -> np.ndarray:
    cross_XM = cells_XP @ templates_MP.T
    return (cells_XP**2).sum(1)[:, None] - 2 * cross_XM + (templates_MP**2).sum(1)[None]


def read(images: np.ndarray) -> list[Scene]:
    """Reads pictures u8 or f32 [B, IMAGE_SIZE, IMAGE_SIZE, 3] in [0, 255] into scene graphs.

    The background whose best cells lie nearest to all four cells is chosen first, then each cell's
    nearest template on it.
    """
    batch = len(images)
    images = np.asarray(images, np.float32)
    if images.shape[1:] != (IMAGE_SIZE, IMAGE_SIZE, 3):
        raise ValueError(f"images: found shape {images.shape}, expected [B, 32, 32, 3]")
    cells = images.reshape(batch, 2, CELL_SIZE, 2, CELL_SIZE, 3).transpose(0, 1, 3, 2, 4, 5)
    cells_XP = cells.reshape(batch * 4, -1)
    names = list(BACKGROUNDS)
    best, error = [], []
    for name in names:
        distances_XM = _squared_distances(cells_XP, _templates(name)[1])
        best.append(distances_XM.argmin(1).reshape(batch, 4))
        error.append(distances_XM.min(1).reshape(batch, 4).sum(1))
    background_B = np.argmin(error, axis=0)
    scenes = []
    for row, which in enumerate(background_B):
        items = _templates(names[which])[0]
        found = []
        for cell, index in zip(CELLS, best[which][row], strict=True):
            item = items[index]
            if item is not None:
                found.append(SceneObject(cell, item.colour, item.shape, item.size))
        scenes.append(Scene(tuple(found), names[which]))
    return scenes
