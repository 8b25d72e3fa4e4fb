"""Reading and writing training data: the only package that imports TensorFlow and SeqIO.

`pipeline` is the entry to what training reads, `pair_writer` to what stages write, `sources` to
what people bring. `records`, `pair_writer` and `pipeline` import TensorFlow only when they read or
write examples.
"""
