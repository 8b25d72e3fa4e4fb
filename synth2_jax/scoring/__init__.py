"""Scores of captions, of caption sets, of pairs and of pictures; no TensorFlow.

`captions`: CIDEr-D, CIDEr, BLEU and ROUGE-L of candidates against references.
`meteor`: METEOR, the only one that needs Java. `vqa`: accuracy of answers to questions.
`clip_score`, `frechet`: CLIPScore and FID, by a `feature_model` that the user supplies.
`diversity`: how balanced caption sets are, by `caption_embedding` and `k_means`.
`n_grams`, `class_coverage`: what is said in a set, and of what.
`alignment`: whether an image fits its caption, by the models.
`words`: the tokenization that all of them use.
"""
