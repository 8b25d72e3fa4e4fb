"""Synth2 in JAX: train caption models on images that were never drawn (arXiv 2403.07750)."""

__version__ = "0.1.0"
