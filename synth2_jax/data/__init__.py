"""Reading and writing training data: the only package that imports TensorFlow and SeqIO.

sources             images with captions in the formats that people have
images              bytes of a picture -> pixels, or why not
caption_text        a caption from anywhere -> clean text, or why not
records             pairs on disk: shards and their manifest
pair_writer         writing them, shard by shard
pair_example        a pair -> the bytes of a TF Example
shard_progress      which shards are finished, until the manifest is there
unique_keys         no key is in a folder twice
views               some of a folder's pairs, or with each other's images, without a copy
tasks, mixtures     what SeqIO knows by name: sources with preprocessing, and rates
preprocessors       task features from records
feature_converters  the batch that each model takes, from task features
stream              which examples and rows to read, for which model
train_batches       batches for training, whose position can be saved
saved_position      the file format of such a position
eval_batches        every example once, in order
fake_batches        random batches
pipeline            the entry: `DataConfig`, `train_iterator`, `eval_batches`

`records`, `pair_writer` and `pipeline` import TensorFlow only when they read or write examples.
"""
