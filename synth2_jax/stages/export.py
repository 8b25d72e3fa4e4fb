"""`synth2 export DIR --output=FILE.safetensors`: the parameters of a checkpoint as one file.

    synth2 export workdir/demo/vlm_real_synthetic --output=vlm.safetensors
    synth2 export workdir/pod/checkpoints/1000 --output=resampler.safetensors \\
        --part=vlm/resampler --dtype=bfloat16

DIR is a training run, its checkpoints or one of them. Names are the parameters' paths with dots
("vlm.resampler.latents"); the file's metadata holds model, step, fingerprints and the resolved
config. One parameter at a time is in memory, so a laptop can export any model;
`interop.safetensors_file.read_params` is the way back.
"""

import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import synth2_jax
from synth2_jax import config as config_lib
from synth2_jax.errors import UserError, nearest
from synth2_jax.interop.safetensors_file import FORMAT, write_tensors
from synth2_jax.progress import Progress
from synth2_jax.training import checkpoints

MIB = 2**20


def run(
    config: Any,
    workdir: str,
    output: str = "",
    part: str = "",
    dtype: str = "",
    overwrite: str = "false",
) -> None:
    """Writes the file; there is nothing to configure."""
    del config
    target = pathlib.Path(output)
    if target.suffix != ".safetensors":
        raise UserError(f"--output={output}: expected a file that ends with .safetensors")
    if overwrite not in ("true", "false"):
        raise UserError(f"--overwrite={overwrite}: expected true or false")
    if target.exists() and overwrite == "false":
        raise UserError(f"--output={output}: is there already; --overwrite=true replaces it")
    step = checkpoints.latest_step(workdir)
    resolved, fingerprints = checkpoints.read_description(workdir, step)
    found = checkpoints.saved_arrays(workdir, step)
    names = sorted(name for name in found if f"{name}/".startswith(f"{part}/" if part else ""))
    if not names:
        parts = {"/".join(name.split("/")[:depth]) for name in found for depth in (1, 2)}
        raise UserError(f"--part={part}: the model has no such part; {nearest(part, parts)}")
    as_dtype = config_lib.dtype(dtype, "--dtype") if dtype else None
    shapes = {name: _cast_shape(found[name], as_dtype) for name in names}
    total = sum(leaf.size * leaf.dtype.itemsize for leaf in shapes.values()) // MIB

    def arrays() -> Iterator[np.ndarray]:
        done = 0
        with Progress("export", total, "MiB") as progress:
            for name, array in checkpoints.read_arrays(workdir, step, names):
                array = np.asarray(array).astype(shapes[name].dtype)
                yield array
                done += array.nbytes
                progress.add(done // MIB)
                done %= MIB

    write_tensors(
        target,
        {name.replace("/", "."): leaf for name, leaf in shapes.items()},
        arrays(),
        metadata={
            "format": FORMAT,
            "version": synth2_jax.__version__,
            "model_name": str(resolved.get("model_name")),
            "step": str(step),
            "fingerprints": json.dumps(fingerprints, sort_keys=True),
            "config": json.dumps(resolved, sort_keys=True),
        },
    )
    print(f"{target}: {len(names)} parameters of step {step}, {target.stat().st_size:,} bytes")


def _cast_shape(leaf: jax.ShapeDtypeStruct, dtype: Any) -> jax.ShapeDtypeStruct:
    floating = jnp.issubdtype(leaf.dtype, jnp.floating)
    chosen = dtype if dtype is not None and floating else leaf.dtype
    return jax.ShapeDtypeStruct(leaf.shape, np.dtype(chosen))
