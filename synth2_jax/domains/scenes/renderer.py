"""Scene graph -> pixels.

A scene holds one to three objects on a plain background; each object lies in one cell of a 2x2
grid and is a little lighter or darker than its named colour. Shapes are drawn at four times the
resolution and averaged down.
"""

import dataclasses
import functools

import numpy as np

IMAGE_SIZE = 32  # pixels
CELL_SIZE = IMAGE_SIZE // 2  # pixels; a cell holds at most one object
MAX_SHADE = 0.06  # how far an object's brightness may lie from its named colour's, as a share
OVERSAMPLING = 4

COLOURS = {
    "red": (214, 39, 40),
    "green": (44, 160, 44),
    "blue": (31, 70, 214),
    "yellow": (245, 214, 30),
    "purple": (128, 40, 170),
    "cyan": (30, 200, 215),
}
SHAPES = ("circle", "square", "triangle", "cross", "ring")
SIZES = {"small": 4.4, "large": 7.0}  # radius in pixels
BACKGROUNDS = {"white": (246, 246, 246), "black": (16, 16, 16)}
CELLS = ((0, 0), (0, 1), (1, 0), (1, 1))  # (row, column)


@dataclasses.dataclass(frozen=True, order=True)
class SceneObject:
    """One object.

    `shade` (a share of the colour's brightness) varies freely and does not count for equality.
    """

    cell: tuple[int, int]
    colour: str
    shape: str
    size: str
    shade: float = dataclasses.field(default=0.0, compare=False)

    @property
    def combination(self) -> tuple[str, str]:
        """(colour, shape): what a class name names."""
        return self.colour, self.shape


@dataclasses.dataclass(frozen=True)
class Scene:
    """A background and its objects, ordered by cell."""

    objects: tuple[SceneObject, ...]
    background: str

    def __post_init__(self):
        object.__setattr__(self, "objects", tuple(sorted(self.objects)))


@functools.cache
def coverage(shape: str, size: str) -> np.ndarray:
    """Share of each pixel of a cell that the shape covers, f32[CELL_SIZE, CELL_SIZE] in [0, 1]."""
    fine = (np.arange(CELL_SIZE * OVERSAMPLING) + 0.5) / OVERSAMPLING - CELL_SIZE / 2
    radius = SIZES[size]
    y, x = fine[:, None] / radius, fine[None, :] / radius
    distance = np.hypot(y, x)
    inside = {
        "circle": lambda: distance <= 1,
        "ring": lambda: (distance <= 1) & (distance >= 0.55),
        "square": lambda: np.maximum(abs(y), abs(x)) <= 0.88,
        "cross": lambda: (np.minimum(abs(y), abs(x)) <= 0.34) & (np.maximum(abs(y), abs(x)) <= 1),
        "triangle": lambda: (abs(x) <= (y + 1) / 1.9) & (y <= 0.9),
    }[shape]()
    blocks = inside.reshape(CELL_SIZE, OVERSAMPLING, CELL_SIZE, OVERSAMPLING)
    return blocks.mean((1, 3)).astype(np.float32)


def render_cell(background: str, item: SceneObject | None) -> np.ndarray:
    """One cell of a picture, f32[CELL_SIZE, CELL_SIZE, 3] in [0, 255]."""
    paper = np.broadcast_to(np.float32(BACKGROUNDS[background]), (CELL_SIZE, CELL_SIZE, 3))
    if item is None:
        return paper
    alpha = coverage(item.shape, item.size)[:, :, None]
    ink = np.clip(np.float32(COLOURS[item.colour]) * np.float32(1 + item.shade), 0, 255)
    return alpha * ink + (1 - alpha) * paper


def render(scene: Scene) -> np.ndarray:
    """The scene's picture, u8[IMAGE_SIZE, IMAGE_SIZE, 3]."""
    by_cell = {item.cell: item for item in scene.objects}
    rows = [
        np.concatenate([render_cell(scene.background, by_cell.get((r, c))) for c in (0, 1)], axis=1)
        for r in (0, 1)
    ]
    return np.round(np.concatenate(rows, axis=0)).astype(np.uint8)
