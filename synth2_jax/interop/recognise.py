"""Recognises a checkpoint from its files alone: its author and its model."""

import dataclasses
import os
import pathlib
import re
from collections.abc import Iterable

import jax
import orbax.checkpoint as ocp

from synth2_jax.errors import UserError
from synth2_jax.interop.json_file import read_object
from synth2_jax.interop.tensor_files import open_flax_msgpack, open_torch, safetensors_header

# The models that it knows: their names in the code and for a user.
KINDS = {
    "run": "a training run",
    "export": "what `synth2 export` writes",
    "t5x": "a t5x checkpoint",
    "hugging_face_t5": "a Hugging Face T5",
    "hugging_face_gemma": "a Hugging Face Gemma",
    "gemma": "a Gemma of the package gemma",
    "diffusers_vq": "a diffusers VQModel",
    "taming": "a VQGAN of taming-transformers",
    "ibq": "a tokenizer of IBQ",
    "open_muse_vqgan": "open-muse's VQGANModel",
    "taming_names": "a VQGAN with the names of taming-transformers, IBQ and open-muse alike",
    "open_muse_maskgit": "open-muse's MaskGitVQGAN",
    "llamagen": "a VQ tokenizer of LlamaGen",
    "maskgit_tokenizer": "a VQ-GAN of google-research/maskgit",
    "maskgit_transformer": "a class-conditional transformer of google-research/maskgit",
}
# Names of tensors, "." or "/" between their parts; the first kind whose names are all found.
_BY_NAMES = {
    "maskgit_tokenizer": (r"^params/quantizer/codebook$", r"^params/encoder/ResBlock_0/"),
    "maskgit_transformer": (r"^params/Embed_0/word_embeddings/", r"^params/MlmLayer_0/"),
    "diffusers_vq": (r"^encoder\.down_blocks\.0\.", r"^quantize\.embedding\.weight$"),
    "open_muse_maskgit": (r"^encoder\.mid\.0\.conv1\.", r"^encoder\.down\.0\.block\.0\."),
    "taming_names": (r"^encoder\.down\.0\.block\.0\.", r"^quantize\.embedding\.weight$"),
    "llamagen": (r"^encoder\.conv_blocks\.0\.res\.0\.", r"^quantize\.embedding\.weight$"),
    "hugging_face_t5": (r"^encoder\.block\.0\.layer\.0\.SelfAttention\.q\.weight$",),
    "hugging_face_gemma": (
        r"^(language_model\.)?model\..*layers\.0\.pre_feedforward_layernorm\.weight$",
    ),
    "gemma": (
        r"(^|/)embedder/input_embedding",
        r"(^|/)(layer_0|stacked_layers/attention_type_0)/attn/",
    ),
    "t5x": (r"^(state/)?target/(encoder|decoder|token_embedder)/",),
}
_HUGGING_FACE = {
    **dict.fromkeys(("t5", "mt5", "umt5"), "hugging_face_t5"),
    **dict.fromkeys(("gemma3", "gemma3_text"), "hugging_face_gemma"),
}
_CLASS_NAMES = {
    "VQModel": "diffusers_vq",
    "VQGANModel": "open_muse_vqgan",
    "MaskGitVQGAN": "open_muse_maskgit",
}
# What names do not tell is said in front of a path: "ibq:last.ckpt".
PREFIXES = {"taming": "taming", "ibq": "ibq", "open_muse": "open_muse_vqgan"}
_SHOWN = 4  # names of what is not known


@dataclasses.dataclass(frozen=True)
class Found:
    """`kind` is a key of KINDS, or "" if it is none of them; `description` is for a user."""

    kind: str
    description: str


def split_prefix(path: str | os.PathLike[str]) -> tuple[str, pathlib.Path]:
    """("ibq", "last.ckpt") of "ibq:last.ckpt"; "" and the path if it has no such prefix."""
    prefix, colon, rest = str(path).partition(":")
    if colon and prefix in PREFIXES and not os.path.lexists(path):
        return prefix, pathlib.Path(rest)
    return "", pathlib.Path(path)


def recognise(path: str | os.PathLike[str]) -> Found:
    """Looks at what is there; of tensors only the names are read.

    Raises:
      UserError: nothing is there, a file of a known format that is cut short, or something else
        than the path's prefix says.
    """
    prefix, path = split_prefix(path)
    if is_run(path):
        found = _known("run")
    elif path.is_dir():
        found = _folder(path)
    elif path.is_file():
        found = _of_names(_names_in_file(path))
    else:
        raise UserError(f"{path}: no such file or folder, expected a model")
    if not prefix or found.kind == PREFIXES[prefix]:
        return found
    if found.kind != "taming_names":
        raise UserError(
            f"{prefix}:{path}: found {found.description}, expected {KINDS[PREFIXES[prefix]]}"
        )
    return _known(PREFIXES[prefix])


def is_run(path: pathlib.Path) -> bool:
    """Tells a training run's folder, also one without a checkpoint, and an item of a checkpoint."""
    if path.name in ("params", "average") and (path.parent / "fingerprints").is_dir():
        path = path.parent
    if (path / "checkpoints").is_dir():
        return True
    return path.is_dir() and any(
        one.name.isdecimal() and (one / "params").is_dir() for one in (path, *path.iterdir())
    )


def _known(kind: str) -> Found:
    return Found(kind, KINDS[kind])


def _shown(names: Iterable[str]) -> str:
    names = sorted(names)
    return ", ".join(names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")


def _folder(path: pathlib.Path) -> Found:
    entries = sorted(entry.name for entry in path.iterdir())
    if "config.json" in entries:
        return _by_config(path / "config.json")
    if numbered := [name for name in entries if re.fullmatch(r"checkpoint_\d+", name)]:
        return _folder(path / numbered[-1])
    if "checkpoint" in entries and any(name.startswith("target.") for name in entries):
        return _known("t5x")
    if {"_METADATA", "_CHECKPOINT_METADATA", "_sharding"} & set(entries):
        return _of_names(_names_in_orbax(path))
    return Found("", f"a folder with {_shown(entries) or 'nothing in it'}")


def _by_config(config: pathlib.Path) -> Found:
    try:
        held = read_object(config)
    except UserError:
        return Found("", f"a folder whose {config.name} is not a JSON object")
    if str(held.get("format")).startswith("synth2_jax"):
        return _known("export")
    if "model_type" in held:
        names = held.get("architectures")
        kind = str(held["model_type"] or held.get("_class_name"))
        name = names[0] if isinstance(names, list) and names else kind
        return Found(_HUGGING_FACE.get(kind, ""), f"a Hugging Face {name}")
    if "_class_name" in held:
        name = str(held["_class_name"])
        known = _CLASS_NAMES.get(name, "")
        return _known(known) if known else Found("", f"a diffusers {name}")
    return Found("", f"a folder with a {config.name} of keys {sorted(held)[:_SHOWN]}")


def _names_in_file(path: pathlib.Path) -> Iterable[str]:
    if path.suffix == ".safetensors":
        return safetensors_header(path).keys() - {"__metadata__"}
    with open(path, "rb") as file:
        start = file.read(2)
    if start == b"PK" or path.suffix in (".ckpt", ".pt", ".pth", ".bin"):
        return open_torch(path)
    return open_flax_msgpack(path)


def _names_in_orbax(path: pathlib.Path) -> Iterable[str]:
    for folder in (path, path / "default", path / "state"):
        try:
            tree = ocp.PyTreeCheckpointHandler().metadata(folder).tree
        except Exception:  # Orbax raises many types where there is no tree
            continue
        leaves = jax.tree_util.tree_leaves_with_path(tree)
        return [jax.tree_util.keystr(where, simple=True, separator="/") for where, _ in leaves]
    return []


def _of_names(names: Iterable[str]) -> Found:
    for kind, patterns in _BY_NAMES.items():
        if all(any(re.search(pattern, name) for name in names) for pattern in patterns):
            return _known(kind)
    return Found("", f"tensors named {_shown(names)}" if names else "no tensors that can be read")
