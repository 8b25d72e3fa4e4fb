"""TensorFlow without accelerators: it feeds jax, which wants all of their memory.

Modules of this package take `tf` from here.
"""

import tensorflow as tf

tf.config.set_visible_devices([], "GPU")
tf.config.set_visible_devices([], "TPU")
