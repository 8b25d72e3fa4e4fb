"""Both spaces are measured on one model, which differs in nothing else, and on one batch."""

from configs.scenes import models
from synth2_jax.experiments import image_space


def test_the_two_objectives_differ_in_their_image_space_alone(monkeypatch):
    calls = []

    def steps_per_second(objectives, tx, batch, *, rounds):
        calls.append((objectives, batch, rounds))
        return {"embedding": 3.0, "pixel": 2.0}

    monkeypatch.setattr(image_space, "steps_per_second", steps_per_second)
    model = {"tokenizer": models.tokenizer(), "vlm": models.vlm(), "text_length": 9}
    assert image_space.speed_by_space(model, 3, rounds=7) == {"embedding": 3.0, "pixel": 2.0}
    ((objectives, batch, rounds),) = calls
    tasks = {name: vars(objective.task).copy() for name, objective in objectives.items()}
    assert {name: task.pop("image_space") for name, task in tasks.items()} == {
        "embedding": "embedding",
        "pixel": "pixel",
    }
    assert tasks["embedding"] == tasks["pixel"] and rounds == 7
    assert batch["image_tokens"].shape == (3, models.NUM_TOKENS)
    # Rare codes too: their embeddings are looked up all over the codebook.
    assert batch["image_tokens"].max() > 16
