"""Counts the FLOPs of synthetic pairs against those of the VLM's training."""

from synth2_jax.errors import UserError
from synth2_jax.planning import model_flops
from synth2_jax.stages.train import TrainConfig
from synth2_jax.synthesis.token_generator import SynthesizeConfig
from synth2_jax.training.train_state import Objective


def equal_compute(
    vlm: tuple[TrainConfig, Objective],
    generator: tuple[TrainConfig, Objective],
    synthesize: SynthesizeConfig,
    num_captions: int,
) -> float:
    """Returns how many times its steps the VLM could be trained for what real + synthetic costs.

    That is 1 + (training of the generator + synthesis) / (training of the VLM), by the FLOPs that
    `model_flops` counts. The tokenizer, the language model and its captions are not counted.

    Raises:
      UserError: `model.freeze` leaves less than whole parts.
    """
    totals = []
    for cfg, objective in (vlm, generator):
        step = model_flops.train_step(objective.task, cfg.data.batch_size)
        if step is None:
            raise UserError(
                f"model.freeze: found {objective.frozen} in the config of the {cfg.model_name}, "
                "expected patterns of whole parts: other FLOPs cannot be counted. Leave out the "
                "arm of equal compute"
            )
        totals.append(cfg.train.steps * step.total)
    vlm_flops, generator_flops = totals
    images = num_captions * synthesize.samples_per_caption
    task = generator[1].task
    sampled = model_flops.sample(task, images, synthesize.sampler, synthesize.guidance).total
    return 1 + (generator_flops + sampled) / vlm_flops
