"""Images with captions as people have them; `synth2 tokenize` turns each into folders of pairs.

source       what all of them offer, and `open_source`, which finds the one that a config names
annotations  one JSON or text file and a folder of images: COCO, Karpathy's splits, NoCaps,
             Flickr30k, VQAv2 and OKVQA
json_lines   one JSON object a line and a folder of images
webdataset   tar files
tfrecord     TFRecord files of TF Examples
tfds         data sets of TensorFlow Datasets
scenes       the built-in pictures

Reading writes nothing, and no name in a file leads out of the folder of images.
"""
