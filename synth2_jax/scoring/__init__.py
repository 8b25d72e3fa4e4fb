"""Scores of captions, of caption sets, of pairs and of pictures; no TensorFlow."""
