"""Scores of captions, of caption sets and of pairs; no Java, no TensorFlow.

`captions`: CIDEr-D, BLEU and ROUGE-L of candidates against references.
`diversity`: how balanced caption sets are, by `caption_embedding` and `k_means`.
`n_grams`, `class_coverage`: what is said in a set, and of what.
`alignment`: whether an image fits its caption, by the models.
`words`: the tokenization that all of them use.
"""
