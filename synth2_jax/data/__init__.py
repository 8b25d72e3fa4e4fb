"""Reading and writing training data: the only package that imports TensorFlow and SeqIO.

records             pairs on disk: shards and their manifest
tasks, mixtures     what SeqIO knows by name: sources with preprocessing, and rates
preprocessors       task features from records
feature_converters  the batch that each model takes, from task features
iterators           a tf.data iterator whose position can be saved
pipeline            the entry: `DataConfig`, `train_iterator`, `eval_batches`

`records` and `pipeline` import TensorFlow only when they read or write examples.
"""
