"""Both spaces are measured on one model, which differs in nothing else, and on one batch."""

from synth2_jax.config import load_config
from synth2_jax.experiments import image_space
from synth2_jax.stages import train


def test_the_two_objectives_differ_in_their_image_space_alone(monkeypatch):
    calls = []

    def steps_per_second(objectives, tx, batch, *, rounds):
        calls.append((objectives, batch, rounds))
        return {"embedding": 3.0, "pixel": 2.0}

    monkeypatch.setattr(image_space, "steps_per_second", steps_per_second)
    cfg, _ = train.build(load_config("configs/scenes/vlm.py"))
    assert image_space.speed_by_space(cfg.model, 3, rounds=7) == {"embedding": 3.0, "pixel": 2.0}
    ((objectives, batch, rounds),) = calls
    tasks = {name: vars(objective.task).copy() for name, objective in objectives.items()}
    assert {name: task.pop("image_space") for name, task in tasks.items()} == {
        "embedding": "embedding",
        "pixel": "pixel",
    }
    assert tasks["embedding"] == tasks["pixel"] and rounds == 7
    assert batch["image_tokens"].shape == (3, 16)
    # Rare codes too: their embeddings are looked up all over the codebook.
    assert batch["image_tokens"].max() > 16
