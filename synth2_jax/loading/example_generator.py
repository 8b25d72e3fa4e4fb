"""Draws captions by the model in this folder: python load_example.py "a red circle" ...

Needs the package synth2_jax and no TensorFlow. The parameters alone are read by any reader of
safetensors: safetensors.safe_open("model.safetensors", framework="numpy").
"""

import pathlib
import sys

from PIL import Image

import synth2_jax

if __name__ == "__main__":
    generator = synth2_jax.load_generator(pathlib.Path(__file__).parent)
    captions = sys.argv[1:]
    made = generator.generate(captions, seed=0)
    print("tokens", made.tokens.shape, "embeddings", made.embeddings.shape)
    for number, (caption, pixels) in enumerate(zip(captions, made.images, strict=True)):
        Image.fromarray(pixels).save(f"{number}.png")
        print(f"{number}.png: {caption}")
