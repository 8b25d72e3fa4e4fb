"""Layers that know no model: attention, masks, MLPs, norms, embeddings, stacking.

Parameters are float32 and boxed with logical axis names; activations have the layer's dtype;
statistics, softmax and logits are float32.
"""
