"""Lists a model's parameters without computing anything."""

import functools
from typing import Any

import flax.linen as nn
import jax
from flax import traverse_util


def parameter_shapes(model: nn.Module, *inputs: Any, **options: Any) -> dict[str, Any]:
    """{"/"-joined path: ShapeDtypeStruct} of `model(*inputs, **options)`'s parameters.

    An input is (shape, dtype).
    """
    arrays = [jax.ShapeDtypeStruct(shape, dtype) for shape, dtype in inputs]
    init = functools.partial(model.init, **options)
    variables = nn.unbox(jax.eval_shape(init, jax.random.key(0), *arrays))
    return traverse_util.flatten_dict(variables["params"], sep="/")
