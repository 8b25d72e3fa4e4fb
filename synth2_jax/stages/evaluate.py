"""`synth2 evaluate`: captions images by a trained VLM and scores the captions.

Writes to the workdir: captions.jsonl (key, caption, references) and results.json. Only parameters
are restored, on however many devices there are.

Legend: B batch, N image tokens, T text tokens.
"""

import dataclasses
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.references import ReferencedImage, read_references
from synth2_jax.errors import UserError
from synth2_jax.files import write_json, write_json_lines
from synth2_jax.models.vlm import VLM
from synth2_jax.sampling.captions import make_caption
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.scenes import dataset
from synth2_jax.scenes import scores as scenes_scores
from synth2_jax.scoring.captions import cider_d, score_captions
from synth2_jax.training.objectives import VLMObjective
from synth2_jax.training.stop_signal import StopSignal
from synth2_jax.training.train_state import Objective, Params
from synth2_jax.training.trained import load_trained
from synth2_jax.vocabulary import load_vocabulary


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """How to caption and score.

    Attributes:
      folder: pairs of images with references.
      vlm: workdir of the VLM's training run.
      max_images: the first so many; None for all.
      batch_size: images a batch, over all devices.
      decode: greedy, or beam (Flamingo: 3 beams).
      scenes_split: when the images are of this split of Scenes, objects are scored too, and CIDEr
        apart for pictures with and without a combination that the split `real` never shows.
      mesh: where the model lies.
    """

    folder: str
    vlm: str = ""
    max_images: int | None = None
    batch_size: int = 128
    decode: TextDecodeConfig = TextDecodeConfig()
    scenes_split: str = ""
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.scenes_split:
            dataset.split_size(self.scenes_split)  # raises on an unknown name
        config_lib.check_counts(self, "evaluate", "batch_size", "max_images")


class CaptionScorer:
    """Captions the same images with one VLM after another, or with one as it is trained.

    Args:
      objective: the VLM's; its models and configs are used, not its loss.
      config: see EvaluateConfig.
      data: what the VLM is trained on; its vocabulary and prompt are used.
      fingerprints: the images must have been made by the tokenizer of fingerprints["tokenizer"].
      mesh: where the parameters lie; each process reads the images of its own devices.
      rules: which logical axis lies where on it.
      stop: polled between batches.
    """

    def __init__(
        self,
        objective: Objective,
        config: EvaluateConfig,
        data: DataConfig,
        fingerprints: Mapping[str, str],
        mesh: Mesh,
        rules: sharding.AxisRules = sharding.AXIS_RULES,
        stop: StopSignal | None = None,
    ):
        if not isinstance(objective, VLMObjective):
            raise UserError(f"captions: a {type(objective).__name__} writes none, expected a VLM")
        if config.decode.method == "nucleus":
            raise UserError("evaluate.decode.method: found nucleus, expected greedy or beam")
        self._config = config
        self._stop = stop
        self._vocabulary = load_vocabulary(data.vocabulary)
        self.images = read_references(config.folder, fingerprints["tokenizer"], config.max_images)
        split, first = config.scenes_split, self.images[0].key
        if split and not first.startswith(f"{split}-"):
            raise UserError(
                f"evaluate.scenes_split: found {split!r}, but the first image is {first!r}"
            )
        prompt = self._vocabulary.encode(data.prompt)
        caption = make_caption(VLM(objective.task.vlm), prompt, config.decode)

        def caption_tokens(params: Params, image_tokens_BN: jax.Array) -> jax.Array:
            with sharding.constraints(mesh, rules):
                embeddings_BNC = objective.image_embeddings(params, image_tokens_BN)
                return caption(params["vlm"], embeddings_BNC)[0]

        # Gathered here, once: every process then has the captions of all.
        self._caption_tokens = jax.jit(
            caption_tokens, out_shardings=NamedSharding(mesh, PartitionSpec())
        )
        self._mesh = mesh
        sharding.check_rows(config.batch_size, mesh, "evaluate.batch_size")

    def captions(self, params: Params) -> list[str]:
        """One caption an image, on every process."""
        written: list[str] = []
        size = self._config.batch_size
        rows = size // jax.process_count()
        mine = slice(jax.process_index() * rows, (jax.process_index() + 1) * rows)
        for start in range(0, len(self.images), size):
            if self._stop and self._stop.requested():
                self._stop.exit()
            tokens = [image.image_tokens for image in self.images[start : start + size]]
            num_images = len(tokens)
            tokens += [tokens[-1]] * (size - num_images)  # one shape, one compilation
            batch = sharding.put_batch({"image_tokens": np.stack(tokens[mine])}, self._mesh)
            ids_BT = np.asarray(self._caption_tokens(params, batch["image_tokens"]))[:num_images]
            written += [self._vocabulary.decode(ids.tolist()) for ids in ids_BT]
        return written

    def scores(self, params: Params) -> dict[str, float]:
        """Numbers only, for training's metrics."""
        results = self.score(self.captions(params))
        return {name: value for name, value in results.items() if isinstance(value, float)}

    def score(self, captions: Sequence[str]) -> dict[str, Any]:
        """Scores x100 as papers print them, and with `scenes_split` shares of objects right."""
        results = score_captions(captions, [image.references for image in self.images])
        if self._config.scenes_split:
            results |= _scenes_results(captions, self.images)
        return results


def run(config: Any, workdir: str) -> dict[str, Any]:
    """Evaluates and writes; returns the results."""
    cfg = config_lib.build(EvaluateConfig, config)
    mesh, rules = sharding.make_mesh(cfg.mesh), sharding.axis_rules(cfg.mesh)
    trained = load_trained(cfg.vlm, "vlm", mesh=mesh, rules=rules)
    with StopSignal() as stop:
        fingerprints = {"tokenizer": trained.fingerprint("tokenizer")}
        data = config_lib.build(DataConfig, trained.config["data"])
        scorer = CaptionScorer(trained.objective, cfg, data, fingerprints, mesh, rules, stop)
        captions = scorer.captions(trained.params)
    results = scorer.score(captions) | {"vlm": trained.provenance("vlm")}
    if jax.process_index():
        return results
    folder = pathlib.Path(workdir)
    write_json_lines(
        folder / "captions.jsonl",
        [
            {"key": image.key, "caption": caption, "references": image.references}
            for image, caption in zip(scorer.images, captions, strict=True)
        ],
    )
    write_json(folder / "results.json", results)
    for name, value in results.items():
        print(f"{name:>16}  {value:.4g}" if isinstance(value, float) else f"{name:>16}  {value}")
    return results


def _scenes_results(
    captions: Sequence[str], images: Sequence[ReferencedImage]
) -> dict[str, float | None]:
    """objects_right, and CIDEr by whether the picture shows an unseen combination.

    None where there are no such pictures.
    """
    scenes = [scenes_scores.scene_of(image.key) for image in images]
    results = {"objects_right": scenes_scores.caption_objects_right(captions, scenes)}
    # One document frequency, that of all images, so that the two parts compare.
    per_image = cider_d(captions, [image.references for image in images]).per_image * 100
    unseen = np.array([scenes_scores.has_unseen(scene) for scene in scenes])
    for name, chosen in (("unseen", unseen), ("seen", ~unseen)):
        results[f"cider_{name}"] = float(per_image[chosen].mean()) if chosen.any() else None
    return results
