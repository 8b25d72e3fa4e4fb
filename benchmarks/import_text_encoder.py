"""Memory and bytes read while a T5 encoder of 2 GB is imported from Hugging Face's files.

    python benchmarks/import_text_encoder.py [--layers=9] [--folder=workdir/import_text_encoder]

Writes a T5 1.1 of T5-XL's width in files of about 500 MB, as float32 and as bfloat16, and imports
it onto meshes of one, two and four processes of one device each, as `synth2 train` does. Of each
process it takes the peak of its memory over what it was before the import, and the bytes that it
read; our parameters are float32 whatever the files hold. Required: memory < 1.2 x (the largest file
+ the process's own parameters), and no more bytes than its own part has in the files. Writes
benchmarks/results/DEVICE/import_text_encoder.json. Linux only: both come from /proc.
"""

import argparse
import dataclasses
import json
import math
import pathlib
import re
import shutil
import subprocess
import sys
import time

ROOT = pathlib.Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

import jax  # noqa: E402
import ml_dtypes  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from benchmarks.processes import start  # noqa: E402
from benchmarks.result import write_result  # noqa: E402
from synth2_jax import distributed, sharding  # noqa: E402
from synth2_jax.config import build  # noqa: E402
from synth2_jax.files import write_json  # noqa: E402
from synth2_jax.interop.hugging_face import load_text_encoder, text_encoder_config  # noqa: E402
from synth2_jax.interop.safetensors_file import write_tensors  # noqa: E402
from synth2_jax.models.text_encoder import TextEncoder, TextEncoderConfig  # noqa: E402
from synth2_jax.training import train_state  # noqa: E402

FILE_SIZE = 500 * 10**6
DTYPES = {"float32": np.dtype(np.float32), "bfloat16": np.dtype(ml_dtypes.bfloat16)}
MESHES = ({}, {"fsdp": 2}, {"tensor": 2}, {"fsdp": 4}, {"fsdp": 2, "tensor": 2})
LIMIT = 1.2


# --- the checkpoint ---


def hugging_face_config(num_layers: int) -> dict:
    """config.json of a T5 1.1 XL of this depth."""
    return {
        "model_type": "t5",
        "architectures": ["T5EncoderModel"],
        "num_layers": num_layers,
        "d_model": 2048,
        "num_heads": 32,
        "d_kv": 64,
        "d_ff": 5120,
        "feed_forward_proj": "gated-gelu",
    }


def tensor_shapes(config: TextEncoderConfig) -> dict[str, tuple[int, ...]]:
    """By transformers' names."""
    width, inner = config.embed_dim, config.num_heads * config.head_dim
    shapes = {"shared.weight": (config.vocab_size, width)}
    for i in range(config.num_layers):
        attention, mlp = (f"encoder.block.{i}.layer.{j}" for j in (0, 1))
        if i == 0:
            bias = f"{attention}.SelfAttention.relative_attention_bias.weight"
            shapes[bias] = (config.relpos_buckets, config.num_heads)
        shapes |= {f"{attention}.SelfAttention.{name}.weight": (inner, width) for name in "qkv"}
        shapes[f"{attention}.SelfAttention.o.weight"] = (width, inner)
        for name in ("wi_0", "wi_1"):
            shapes[f"{mlp}.DenseReluDense.{name}.weight"] = (config.mlp_dim, width)
        shapes[f"{mlp}.DenseReluDense.wo.weight"] = (width, config.mlp_dim)
        shapes |= {f"{layer}.layer_norm.weight": (width,) for layer in (attention, mlp)}
    return {**shapes, "encoder.final_layer_norm.weight": (width,)}


def write_checkpoint(folder: pathlib.Path, num_layers: int, dtype: np.dtype) -> int:
    """Returns the bytes of the largest file."""
    write_json(folder / "config.json", hugging_face_config(num_layers))
    files: list[dict[str, jax.ShapeDtypeStruct]] = [{}]
    size = 0
    for name, shape in tensor_shapes(text_encoder_config(folder)).items():
        num_bytes = math.prod(shape) * dtype.itemsize
        if size + num_bytes > FILE_SIZE:
            files.append({})
            size = 0
        files[-1][name] = jax.ShapeDtypeStruct(shape, dtype)
        size += num_bytes
    random = np.random.default_rng(0).standard_normal(2**16, np.float32).astype(dtype)
    weight_map = {}
    for i, shapes in enumerate(files, start=1):
        name = f"model-{i:05}-of-{len(files):05}.safetensors"
        arrays = (np.resize(random, shape.shape) for shape in shapes.values())
        write_tensors(folder / name, shapes, arrays, {"format": "pt"})
        weight_map |= dict.fromkeys(shapes, name)
    index = {"metadata": {}, "weight_map": weight_map}
    write_json(folder / "model.safetensors.index.json", index)
    return max(file.stat().st_size for file in folder.glob("*.safetensors"))


# --- one process ---


@dataclasses.dataclass(frozen=True)
class Encoder:
    """A train_state.Objective as far as a state is created of it."""

    config: TextEncoderConfig
    frozen: tuple[str, ...] = ()

    def init(self, key: jax.Array) -> dict:
        token_BT = np.zeros((1, 1), np.int32)
        return TextEncoder(self.config).init(key, token_BT, token_BT > 0, deterministic=True)


def import_once(folder: pathlib.Path, mesh_config: dict) -> dict:
    """What this process took for its own part."""
    mesh = sharding.make_mesh(build(sharding.MeshConfig, {"data": 1, **mesh_config}))
    config = text_encoder_config(folder)
    objective, optimizer = Encoder(config), optax.identity()
    layout = train_state.state_layout(objective, optimizer, mesh)
    memory, read, start = _memory("VmRSS"), _bytes_read(), time.monotonic()
    params = load_text_encoder(folder, config)
    state = train_state.create_train_state(
        objective, optimizer, layout, seed=0, initial_params={"": params}
    )
    jax.block_until_ready(state.params)
    own = sum(
        shard.data.nbytes
        for leaf in jax.tree.leaves(state.params)
        for shard in leaf.addressable_shards
    )
    return {
        "seconds": time.monotonic() - start,
        "own_parameter_bytes": own,
        "peak_memory_bytes": _memory("VmHWM") - memory,
        "read_bytes": _bytes_read() - read,
    }


def _memory(name: str) -> int:
    """VmRSS, the memory of this process now, or VmHWM, its peak; bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return int(re.search(rf"^{name}:\s*(\d+) kB", status, re.MULTILINE)[1]) * 1024


def _bytes_read() -> int:
    """What all reads of this process returned."""
    return int(re.search(r"^rchar: (\d+)", pathlib.Path("/proc/self/io").read_text())[1])


# --- all of them ---


def measure(folder: pathlib.Path, mesh_config: dict, itemsize: int, largest: int) -> dict:
    """Imports in as many processes as the mesh has devices, at once; the worst of them counts."""
    num_processes = math.prod(mesh_config.values())
    command = [sys.executable, __file__, f"--folder={folder}", f"--mesh={json.dumps(mesh_config)}"]
    processes = start(command, num_processes, {}, stdout=subprocess.PIPE, text=True)
    outputs = [process.communicate()[0] for process in processes]
    if any(process.returncode for process in processes):
        raise RuntimeError(f"exit codes {[process.returncode for process in processes]}")
    found = [json.loads(output.splitlines()[-1]) for output in outputs]
    worst = {name: max(one[name] for one in found) for name in found[0]}
    in_files = worst["own_parameter_bytes"] * itemsize // 4
    return {
        "mesh": mesh_config,
        "processes": num_processes,
        **worst,
        "memory_ratio": worst["peak_memory_bytes"] / (largest + worst["own_parameter_bytes"]),
        "read_ratio": worst["read_bytes"] / in_files,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--layers", type=int, default=9)
    parser.add_argument("--folder", type=pathlib.Path, default="workdir/import_text_encoder")
    parser.add_argument("--mesh", type=json.loads, help="of the processes that this one starts")
    arguments = parser.parse_args()
    if arguments.mesh is not None:
        distributed.start(distributed.from_environment())
        print(json.dumps(import_once(arguments.folder, arguments.mesh)))
        return
    result = {"limit": LIMIT, "model": hugging_face_config(arguments.layers), "checkpoints": []}
    for name, dtype in DTYPES.items():
        folder = arguments.folder / name
        shutil.rmtree(folder, ignore_errors=True)
        largest = write_checkpoint(folder, arguments.layers, dtype)
        files = [file.stat().st_size for file in folder.glob("*.safetensors")]
        imports = []
        for mesh_config in MESHES:
            found = measure(folder, mesh_config, dtype.itemsize, largest)
            imports.append(found)
            print(
                f"{name}, {found['processes']} processes, mesh {mesh_config}: "
                f"{found['seconds']:.1f} s, {found['memory_ratio']:.2f} x memory, "
                f"{found['read_ratio']:.3f} x bytes read"
            )
        checkpoint = {"dtype": name, "bytes": sum(files), "largest_file_bytes": largest}
        result["checkpoints"].append({**checkpoint, "files": len(files), "imports": imports})
        shutil.rmtree(folder)
    print(f"written to {write_result('import_text_encoder', result)}")


if __name__ == "__main__":
    main()
