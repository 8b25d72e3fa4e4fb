"""Scores of captions and of caption sets; numpy and pure Python only, no Java, no TensorFlow.

`captions`: CIDEr-D, BLEU and ROUGE-L of candidates against references.
`diversity`: how balanced a set of captions is (clusters, entropy, distinct n-grams).
`words`: the tokenization both use.
"""
