"""Scenes, the built-in data set: small procedural pictures, natural captions and an exact oracle.

Numpy only.
"""
