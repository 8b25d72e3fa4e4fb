"""Pixels -> scene graph: compares each cell of a picture with every cell that can be drawn.

On generated pictures this makes faithfulness an exact count, as GenEval's detectors do for
photographs.
"""

import dataclasses
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
    looks = itertools.product(COLOURS, SHAPES, SIZES)
    items = (None, *(SceneObject((0, 0), *look) for look in looks))
    return items, np.stack([render_cell(background, item).reshape(-1) for item in items])


def read(images: np.ndarray) -> list[Scene]:
    """Reads pictures u8 or f32 [B, 32, 32, 3] in [0, 255] into scene graphs.

    Chooses the background whose cells come nearest to all four, then each cell's nearest on it.
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
        templates_MP = _templates(name)[1]
        distances_XM = (cells_XP**2).sum(1)[:, None] - 2 * (cells_XP @ templates_MP.T)
        distances_XM += (templates_MP**2).sum(1)[None]
        best.append(distances_XM.argmin(1).reshape(batch, 4))
        error.append(distances_XM.min(1).reshape(batch, 4).sum(1))
    background_B = np.argmin(error, axis=0)
    scenes = []
    for row, which in enumerate(background_B):
        items = [_templates(names[which])[0][index] for index in best[which][row]]
        cells = zip(CELLS, items, strict=True)
        found = [dataclasses.replace(item, cell=cell) for cell, item in cells if item]
        scenes.append(Scene(tuple(found), names[which]))
    return scenes
