"""The captions that a VLM writes of images with references, and their scores.

Legend: B batch, I images a text, N image tokens, P prompt tokens, T text tokens.
"""

import collections
import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from synth2_jax import config as config_lib
from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.references import ReferencedImage, read_references
from synth2_jax.domains.scenes import dataset
from synth2_jax.domains.scenes import scores as scenes_scores
from synth2_jax.errors import UserError, naming, nearest
from synth2_jax.evaluation.document_frequencies import read_document_frequencies
from synth2_jax.evaluation.more_scores import MORE_SCORES, each_alone, more_score
from synth2_jax.evaluation.protocol import ProtocolConfig, is_plain, make_prompts
from synth2_jax.models.vlm import VLM
from synth2_jax.sampling.captions import make_caption, make_prompted_caption
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.scoring.captions import PAPER_SCALE, Pairs, as_printed, cider_d, score_captions
from synth2_jax.scoring.meteor import check_meteor
from synth2_jax.scoring.vqa import vqa_accuracy
from synth2_jax.stop_signal import StopSignal
from synth2_jax.text.vocabulary import load_vocabulary
from synth2_jax.training.objectives import VLMObjective
from synth2_jax.training.train_state import Objective, Params

_PROMPT_STEP = 32  # prompts are padded to multiples: one compilation for all lengths up to one


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Settings of captioning and scoring.

    Attributes:
      folder: pairs of images with references.
      vlm: workdir or export of a VLM.
      max_images: scores only the first so many images; None for all.
      batch_size: images a batch, over all devices.
      decode: greedy, or beam (Flamingo: 3 beams).
      protocol: the prompt, and the examples in front of it.
      document_frequencies: a folder of pairs or a COCO file of captions whose images CIDEr counts;
        "" for the references that are scored.
      more_scores: "cider_plain", CIDEr as first defined; "meteor", which needs Java.
      feature_model: MODULE:FUNCTION or FILE.py:FUNCTION of a CLIP (see `scoring.feature_model`), by
        which captions get their CLIPScore; of the pictures as the tokenizer decodes them. Unused
        while a VLM is trained.
      scenes_split: when the images are of this split of Scenes, objects are scored too, and CIDEr
        apart for pictures with and without a combination that the split `real` never shows.
      mesh: where the model lies.
    """

    folder: str
    vlm: str = ""
    max_images: int | None = None
    batch_size: int = 128
    decode: TextDecodeConfig = TextDecodeConfig()
    protocol: ProtocolConfig = ProtocolConfig()
    document_frequencies: str = ""
    more_scores: tuple[str, ...] = ()
    feature_model: str = ""
    scenes_split: str = ""
    mesh: sharding.MeshConfig = sharding.MeshConfig()

    def __post_init__(self):
        if self.scenes_split not in ("", *dataset.SPLITS):
            near = nearest(self.scenes_split, dataset.SPLITS)
            raise UserError(f"scenes_split: unknown {self.scenes_split!r}; {near}")
        config_lib.check_counts(self, "batch_size", "max_images")
        if self.decode.method == "nucleus":
            raise UserError("decode.method: found nucleus, expected greedy or beam")
        for name in self.more_scores:
            if name not in MORE_SCORES:
                raise UserError(f"more_scores: unknown {name!r}; {nearest(name, MORE_SCORES)}")
        if "meteor" in self.more_scores:
            check_meteor()  # now, not after an hour of captions
        if self.protocol.task == "vqa":
            for name in ("scenes_split", "document_frequencies", "more_scores", "feature_model"):
                if value := getattr(self, name):
                    raise UserError(
                        f"{name}: found {value!r}, expected none with `protocol.task`=vqa: it "
                        "scores captions"
                    )


class CaptionScorer:
    """Captions the same images with one VLM after another, or with one as it is trained.

    Args:
      objective: the VLM's, for its models and configs.
      data: what the VLM is trained on; its vocabulary and prompt are used.
      tokenizer: fingerprint of the tokenizer that must have made the images.
      mesh: where the parameters lie; each process reads the images of its own devices.
      rules: how logical axes are split over it.
      stop: polled between batches.
    """

    def __init__(
        self,
        objective: Objective,
        config: EvaluateConfig,
        data: DataConfig,
        tokenizer: str,
        mesh: Mesh,
        rules: sharding.AxisRules = sharding.AXIS_RULES,
        stop: StopSignal | None = None,
    ):
        if not isinstance(objective, VLMObjective):
            raise UserError(f"captions: a {type(objective).__name__} writes none, expected a VLM")
        self._config, self._stop, self._mesh = config, stop, mesh
        self._vocabulary = load_vocabulary(data.vocabulary)
        protocol = config.protocol
        with naming("--config.folder", config.folder):
            self.images = read_references(config.folder, tokenizer, config.max_images)
            if protocol.task == "vqa":
                _check_questions(config.folder, self.images)
            if protocol.by_domain:
                _domains(config.folder, self.images)  # raises where there are none
        split, first = config.scenes_split, self.images[0].key
        if split and not first.startswith(f"{split}-"):
            raise UserError(
                f"--config.scenes_split: found {split!r}, but the first image is {first!r}"
            )
        self._prompts = None
        if not is_plain(protocol, self.images):
            self._prompts = make_prompts(
                self.images, protocol, self._vocabulary, data.prompt, tokenizer
            )
        self._frequency = None
        if config.document_frequencies:
            self._frequency = read_document_frequencies(config.document_frequencies)
        model, prompt = VLM(objective.task.vlm), self._vocabulary.encode(data.prompt)
        end_id = self._vocabulary.end_id(prompt)
        caption = make_caption(model, prompt, config.decode, end_id)
        prompted_caption = make_prompted_caption(model, config.decode, end_id)

        def tokens(params: Params, batch: Mapping[str, jax.Array]) -> jax.Array:
            image_tokens = batch["image_tokens"]  # [B, N], or [B, I, N] for prompts
            with sharding.constraints(mesh, rules):
                embeddings = objective.image_embeddings(params, image_tokens)
                if self._prompts is None:
                    return caption(params["vlm"], embeddings)[0]
                of_text = batch["inputs"], batch["image_of_text"], batch["length"]
                return prompted_caption(params["vlm"], embeddings, *of_text)[0]

        # Gathered here, once: every process then has the captions of all.
        self._tokens = jax.jit(tokens, out_shardings=NamedSharding(mesh, PartitionSpec()))
        sharding.check_rows(config.batch_size, mesh, "--config.batch_size")

    def captions(self, params: Params) -> list[str]:
        """One caption an image, on every process."""
        written: dict[int, str] = {}
        for numbers in self._batches():
            if self._stop and self._stop.requested():
                self._stop.exit("nothing is written yet")
            ids_BT = np.asarray(self._written(params, numbers))
            for number, ids in zip(numbers, ids_BT, strict=False):  # the rest fills the batch up
                written[number] = self._vocabulary.decode(ids.tolist())
        return [written[number] for number in range(len(self.images))]

    def _batches(self) -> Iterator[list[int]]:
        """Numbers of images; those of one batch have prompts of one length."""
        groups: dict[int, list[int]] = collections.defaultdict(list)
        for number in range(len(self.images)):
            groups[len(self._prompts[number].inputs) if self._prompts else 0].append(number)
        size = self._config.batch_size
        for _, numbers in sorted(groups.items()):
            yield from (numbers[start : start + size] for start in range(0, len(numbers), size))

    def _written(self, params: Params, numbers: Sequence[int]) -> jax.Array:
        """Token ids of a batch; it is filled up with its last image: one shape, one compilation."""
        size = self._config.batch_size
        filled = np.array([*numbers, *[numbers[-1]] * (size - len(numbers))])
        mine = filled[sharding.data_layout(self._mesh).rows(size)]
        if not self._prompts:
            arrays = {"image_tokens": np.stack([self.images[n].image_tokens for n in mine])}
            return self._tokens(params, sharding.put_batch(arrays, self._mesh))
        prompts = [self._prompts[number] for number in mine]
        length = len(prompts[0].inputs)
        padding = (0,) * (-length % _PROMPT_STEP)
        texts = {
            name: np.array([getattr(prompt, name) + padding for prompt in prompts], np.int32)
            for name in ("inputs", "image_of_text")
        }
        image_tokens_BIN = np.stack([np.stack(prompt.images) for prompt in prompts])
        batch = sharding.put_batch({"image_tokens": image_tokens_BIN, **texts}, self._mesh)
        return self._tokens(params, {**batch, "length": np.int32(length)})

    def scores(self, params: Params) -> dict[str, float]:
        """Numbers only, for training's metrics; a score that fails is a warning."""
        captions = self.captions(params)
        more, failed = each_alone(self.more_scores(captions))
        for line in failed:
            logging.warning("--config.validation.captions.%s", line)
        results = self.score(captions) | more
        return {name: value for name, value in results.items() if isinstance(value, float)}

    def score(self, captions: Sequence[str]) -> dict[str, Any]:
        """Scores x100 as papers print them, and with `scenes_split` shares of objects right."""
        if self._config.protocol.task == "vqa":
            references = [image.references for image in self.images]
            score = vqa_accuracy(captions, references, stem=self._config.protocol.stem_answers)
            return as_printed(score.provenance, vqa_accuracy=score.corpus)
        results = self._in_all_and_by_domain(score_captions, captions)
        return results | (self._scenes_results(captions) if self._config.scenes_split else {})

    def per_image(self, captions: Sequence[str]) -> list[dict[str, Any]]:
        """A row for each image: its key and the score that is compared, x100."""
        references = [image.references for image in self.images]
        if self._config.protocol.task == "vqa":
            name = "vqa_accuracy"
            score = vqa_accuracy(captions, references, stem=self._config.protocol.stem_answers)
        else:
            name, score = "cider", cider_d(Pairs(captions, references), self._frequency)
        scores = (PAPER_SCALE * score.per_image).tolist()
        return [{"key": i.key, name: s} for i, s in zip(self.images, scores, strict=True)]

    def more_scores(self, captions: Sequence[str]) -> dict[str, Callable[[], dict[str, Any]]]:
        """{config key: what computes that score}, of those that the config asks for."""
        return {
            f"more_scores={name}": functools.partial(
                self._in_all_and_by_domain, functools.partial(more_score, name), captions
            )
            for name in self._config.more_scores
        }

    def _in_all_and_by_domain(
        self, score: Callable[..., dict[str, Any]], captions: Sequence[str]
    ) -> dict[str, Any]:
        """`score(captions, references)` of all images, and where it is asked for of each domain."""
        domains = {"": range(len(captions))}
        if self._config.protocol.by_domain:
            domains |= _domains(self._config.folder, self.images)
        results = {}
        for domain, numbers in domains.items():
            references = [self.images[i].references for i in numbers]
            found = score([captions[i] for i in numbers], references, frequency=self._frequency)
            results |= {f"{name}/{domain}".rstrip("/"): value for name, value in found.items()}
        return results

    def _scenes_results(self, captions: Sequence[str]) -> dict[str, float | None]:
        """objects_right, and CIDEr by whether the picture shows an unseen combination.

        None where there are no such pictures.
        """
        scenes = [scenes_scores.scene_of(image.key) for image in self.images]
        results = {"objects_right": scenes_scores.caption_objects_right(captions, scenes)}
        # One document frequency, that of all images, so that the two parts compare.
        per_image = np.array([row["cider"] for row in self.per_image(captions)])
        unseen = np.array([scenes_scores.has_unseen(scene) for scene in scenes])
        for name, chosen in (("unseen", unseen), ("seen", ~unseen)):
            results[f"cider_{name}"] = float(per_image[chosen].mean()) if chosen.any() else None
        return results


def _check_questions(folder: str, images: Sequence[ReferencedImage]) -> None:
    for image in images:
        if not image.prompt or len(image.references) < 2:
            raise UserError(
                f"pairs {folder}: {image.key!r} has the prompt {image.prompt!r} and "
                f"{len(image.references)} answers, expected a question and the answers of several "
                "people; tokenize with --config.source.format=vqa and --config.source.answers=all"
            )


def _domains(folder: str, images: Sequence[ReferencedImage]) -> dict[str, list[int]]:
    """{NAME: numbers of the images whose keys are NAME/...}."""
    domains: dict[str, list[int]] = collections.defaultdict(list)
    for number, image in enumerate(images):
        name, slash, _ = image.key.partition("/")
        if not slash:
            raise UserError(
                f"pairs {folder}: evaluate.protocol.by_domain expects keys such as in-domain/42, "
                f"found {image.key!r}"
            )
        domains[name].append(number)
    return dict(sorted(domains.items()))
