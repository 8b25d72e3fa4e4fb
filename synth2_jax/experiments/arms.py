"""The arms of a comparison: what each of them trains a VLM on."""

# What each arm of a comparison draws its batches from: {folder of pairs: rate}. `real` is in all
# but one; the other half is the same synthetic captions, with different pictures.
ARMS = {
    "real": {"real": 1.0},
    "real_synthetic": {"real": 0.5, "synthetic": 0.5},
    "synthetic": {"synthetic": 1.0},
    "captions_only": {"real": 0.5, "blank": 0.5},
    "shuffled": {"real": 0.5, "shuffled": 0.5},
    "rendered": {"real": 0.5, "rendered": 0.5},
}
