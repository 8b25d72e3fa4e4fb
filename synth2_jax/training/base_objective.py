"""The base of objectives: what of a model is pretrained and frozen, and what its batches hold."""

import functools
import operator
import re
from collections.abc import Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp

from synth2_jax.layers.lora import is_adapter
from synth2_jax.text.vocabulary import Vocabulary
from synth2_jax.training import train_state
from synth2_jax.training.train_state import FlatParams, Params, Part

Spec = dict[str, jax.ShapeDtypeStruct]


class BaseObjective:
    """Base of objectives: all of `Objective` but the model and its loss.

    Attributes:
      task_class: dataclass of the section `config.model`, a `tasks.Task` to have its keys.
      batches: whose batches it takes, one of data's `feature_converters.MODELS`.
      text_part: field of the task that holds the part which reads text; "" where none does.
      part_paths: {name in `config.pretrained`: path among the parameters} of the parts that may be
        pretrained. The section `config.model` has the part at the same path, with dots.
      same: {key of the task: the key that it must equal}; `loading.derived` fills in the first.
      fresh_only: {key of the task that only serves fresh parameters: a path of these}.
      task: a `task_class`.
      parts: the pretrained parts that this model has, by their names in `config.pretrained`.
    """

    task_class: type
    batches: str
    text_part: str = ""
    part_paths: Mapping[str, str] = {}
    same: Mapping[str, str] = {}
    fresh_only: Mapping[str, str] = {}
    parts: Mapping[str, Part] = {}

    def __init__(self, task: Any):
        self.task = task
        if self.part_paths:
            get = lambda path: operator.attrgetter(_key(path))(task)  # noqa: E731
            paths = {name: path for name, path in self.part_paths.items() if get(path)}
            self.parts = {name: Part(path, get(path)) for name, path in paths.items()}

    @property
    def frozen(self) -> tuple[str, ...]:
        if self._freeze is not None:
            return self._freeze
        return tuple(f"^{part.path}/" for part in self.parts.values())

    @functools.cached_property
    def boxed_shapes(self) -> FlatParams:
        """Shapes of the parameters by path, in boxes with the names of their axes."""
        abstract = jax.eval_shape(lambda key: self.init(key)["params"], jax.random.key(0))
        return train_state.flatten(abstract)

    def is_frozen(self, name: str) -> bool:
        """Returns whether the model has this pretrained part, and training leaves all of it."""
        if name not in self.parts or self._freeze is None:
            return name in self.parts
        inside = (
            path for path in self.boxed_shapes if path.startswith(f"{self.parts[name].path}/")
        )
        return all(self._leaves(path) for path in inside if not is_adapter(path))

    def _leaves(self, path: str) -> bool:
        """Returns whether training leaves the parameter at a path as it is."""
        return any(re.search(pattern, path) for pattern in self.frozen)

    def check_freeze(self, where: str) -> None:
        """Raises UserError where the `freeze` of the task, which is at `where`, will not do."""
        if self._freeze is not None:
            train_state.select(self._freeze, self.boxed_shapes, f"{where}.freeze")
            train_state.split_params(self.boxed_shapes, self.frozen, f"{where}.freeze")

    @property
    def _freeze(self) -> tuple[str, ...] | None:
        return getattr(self.task, "freeze", None)

    @property
    def limits(self) -> dict[str, int]:
        limits = {}
        if tokenizer := getattr(self.task, "tokenizer", None):
            limits["image_tokens"] = tokenizer.codebook_size
        if self.text_part:
            limits["text_tokens"] = self._reader.vocab_size
        if hasattr(self.task, "images_per_text"):
            limits["image_of_text"] = self.task.images_per_text + 1
        return limits

    def check_vocabulary(self, vocabulary: Vocabulary, where: str, given: Set[str]) -> None:
        del given
        self._reader.check_vocabulary(vocabulary, f"{where}.{self.text_part}")

    def after_update(
        self, params: Params, model_state: dict[str, Any], seen: dict[str, Any], rng: jax.Array
    ) -> tuple[Params, dict[str, Any]]:
        del seen, rng
        return params, model_state

    def loaded_state(self, model_state: dict[str, Any], loaded: Set[str]) -> dict[str, Any]:
        del loaded
        return model_state

    @property
    def _reader(self) -> Any:
        return operator.attrgetter(self.text_part)(self.task)

    def _logits(self, params: Params, rngs: Any, train: bool, *inputs: Any) -> jax.Array:
        """Returns those of `self._model`, whose parameters are called as its batches are."""
        variables, dropout = {"params": params[self.batches]}, {"dropout": rngs["dropout"]}
        return self._model.apply(variables, *inputs, deterministic=not train, rngs=dropout)

    def _text_spec(self, batch_size: int, mask: str, length: int | None = None) -> Spec:
        text = (batch_size, length or self.task.text_length)
        return {
            "text_tokens": jax.ShapeDtypeStruct(text, jnp.int32),
            mask: jax.ShapeDtypeStruct(text, jnp.bool_),
        }


def _key(path: str) -> str:
    return path.replace("/", ".")
