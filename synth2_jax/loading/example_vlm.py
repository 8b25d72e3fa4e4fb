"""Captions pictures by the model in this folder: python load_example.py PICTURE ...

Needs the package synth2_jax and no TensorFlow. The parameters alone are read by any reader of
safetensors: safetensors.safe_open("model.safetensors", framework="numpy").
"""

import pathlib
import sys

import synth2_jax

if __name__ == "__main__":
    vlm = synth2_jax.load_vlm(pathlib.Path(__file__).parent)
    pictures = sys.argv[1:]  # paths; vlm.caption takes PIL images and u8[B, S, S, 3] too
    for path, caption in zip(pictures, vlm.caption(pictures), strict=True):
        print(f"{path}: {caption}")
