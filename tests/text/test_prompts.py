from synth2_jax.text import prompts


def test_the_prompts_are_those_of_the_papers():
    assert prompts.CAPTION_PROMPT == "Output:"
    assert prompts.class_prompt("golden retriever") == "Class: golden retriever. Output:"


def test_braces_in_a_class_name_stay():
    assert prompts.class_prompt("{x}") == "Class: {x}. Output:"


def test_both_prompts_end_alike_so_that_captions_follow_the_same_words():
    assert prompts.class_prompt("ring").endswith(prompts.CAPTION_PROMPT)
