"""Images with captions as people have them; `synth2 tokenize` makes folders of pairs of them.

Reading writes nothing, and no name in a file leads out of the folder of images.
"""
