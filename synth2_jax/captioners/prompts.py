"""Prompts, in one place, so that training and sampling ask in the same words.

Flamingo prompts captions by "Output:" (arXiv 2204.14198, appendix C); the class-based prompt of
Synth² names a class and asks for a caption of a picture that contains it.
"""

CAPTION_PROMPT = "Output:"
CLASS_PROMPT = "Class: {class_name}. Output:"

# For models that follow instructions, in our own words.
DESCRIBE_PROMPT = (
    "Write a caption, as a person would, of a photograph that shows this object: {class_name}. "
    "Name the object in the caption. Style: {style}. Length: about {length} words. "
    "Answer with the caption alone."
)


def class_prompt(class_name: str) -> str:
    """The prompt for a caption of a picture that contains a `class_name`."""
    return CLASS_PROMPT.format(class_name=class_name)
