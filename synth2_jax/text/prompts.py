"""Prompts, in one place, so that training and sampling ask in the same words.

Flamingo prompts captions by "Output:" (arXiv 2204.14198, appendix C); the class-based prompt of
Synth² names a class and asks for a caption of a picture that contains it.
"""

from synth2_jax.text.vocabulary import END_OF_TURN, START_OF_TURN

CAPTION_PROMPT = "Output:"
CLASS_PROMPT = "Class: {class_name}. Output:"

# For models that follow instructions, in our own words.
DESCRIBE_PROMPT = (
    "Write a caption, as a person would, of a photograph that shows this object: {class_name}. "
    "Name the object in the caption. Style: {style}. Length: about {length} words. "
    "Answer with the caption alone."
)


def in_turns(instruction: str) -> str:
    """Gemma's chat format: the user's turn, and the model's opened for what it is to write.

    What comes before all text, the start of sentence, is no part of a prompt (`models.gemma`).
    """
    return f"{START_OF_TURN}user\n{instruction}{END_OF_TURN}\n{START_OF_TURN}model\n"


CHAT_CAPTION_PROMPT = in_turns("Write a caption of this image.")
CHAT_CLASS_PROMPT = in_turns(
    "Write one short caption, as a person would, of a photograph that shows this object: "
    "{class_name}. Name the object in the caption. Answer with the caption alone."
)


def class_prompt(class_name: str) -> str:
    """The prompt for a caption of a picture that contains a `class_name`."""
    return CLASS_PROMPT.format(class_name=class_name)
