"""The user's own network behind CLIPScore and FID: a function of a module or of a file.

No network comes with this package. A file such as

    def features(inputs):
        if isinstance(inputs, list):          # texts, for CLIPScore
            return clip.encode_text(inputs)   # f[B, D]
        return clip.encode_image(inputs)      # u8[B, H, W, 3] -> f[B, D]

is named as FILE.py:features. Resizing and normalizing are the function's: it gets pixels as they
are.
"""

from collections.abc import Callable, Sequence

import numpy as np

from synth2_jax.errors import UserError
from synth2_jax.user_code import load_named

FeatureModel = Callable[[np.ndarray | Sequence[str]], np.ndarray]


def load(name: str) -> FeatureModel:
    """The function "MODULE:FUNCTION" or "FILE.py:FUNCTION", its results checked.

    It maps images u8[B, H, W, 3], in 0 to 255, to f[B, D]; for CLIPScore also a list of B texts, of
    the same D. It raises UserError where the user's own returns another shape, no floating numbers,
    or some that are not finite.

    Raises:
      UserError: a name of another form, no such module, file or function, or one that fails while
        it is imported.
    """
    start = f"feature model {name!r}"
    function = load_named(name, start)
    if not callable(function):
        raise UserError(f"{start}: expected a function, found {function!r:.60}")

    def features(inputs: np.ndarray | Sequence[str]) -> np.ndarray:
        found = np.asarray(function(inputs))
        what = "images" if isinstance(inputs, np.ndarray) else "texts"
        if found.ndim != 2 or len(found) != len(inputs) or not found.shape[1]:
            raise UserError(
                f"{start}: found shape {found.shape} of {len(inputs)} {what}, "
                f"expected ({len(inputs)}, D)"
            )
        if not np.issubdtype(found.dtype, np.floating):
            # A torch or JAX bfloat16 is no numpy number either.
            raise UserError(f"{start}: found {found.dtype}, expected float32 or float64")
        if not np.isfinite(found).all():
            raise UserError(f"{start}: found NaN or infinity among its features")
        return found

    return features
