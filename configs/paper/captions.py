"""Captions of common objects by an instruction-tuned model behind any OpenAI-compatible server.

    synth2 captions --config=configs/paper/captions.py --workdir=WORKDIR/captions \\
        --config.server.model=MODEL --config.server.base_url=http://localhost:8000/v1

The key is read from OPENAI_API_KEY in the environment; a server that asks for none takes any text.
Without base_url the server is OPENAI_BASE_URL, or OpenAI's own. `--config.classes=FILE` takes other
classes, `--config.template=FILE` another prompt. The same command goes on where it was stopped:
answers are kept in WORKDIR/captions/answers.jsonl.

Hardware: none for the captions themselves; a GPU or TPU where the server is your own.
Time: the server's; 20 requests at a time.
Score: none; dropped drafts, tokens and cost stand in the manifest.

From the paper: class-based prompting, and as many captions of each class. Left open, and chosen:
the list of classes, the prompt's words, styles, lengths and sampling, and what a good caption is.
"""

import ml_collections


def get_config(arg: str = "") -> ml_collections.ConfigDict:
    """`:tiny` asks for 2 captions of each of 3 classes, to see what a server costs."""
    tiny = arg == "tiny"
    return ml_collections.ConfigDict(
        {
            "server": {
                "model": "MODEL",
                "base_url": "",
                "temperature": 1.0,
                "top_p": 0.95,
                "max_tokens": 80,
                "concurrency": 20,
                "input_price": 0.0,
                "output_price": 0.0,
            },
            "classes": ("dog", "bicycle", "umbrella") if tiny else ("common_objects",),
            "captions_per_class": 2 if tiny else 1000,
            "max_rounds": 4,
            "template": "",
            "styles": (
                "plain, as in a caption data set",
                "detailed, with the surroundings",
                "short, of what happens",
            ),
            "lengths": (8, 12, 18),
            "filter": {
                "min_words": 4,
                "max_words": 40,
                "language": "en",
                "duplicates": "near",
                "similarity": 0.8,
            },
            "max_dropped_share": 0.5,
        }
    )
