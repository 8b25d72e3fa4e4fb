import numpy as np
import pytest
import seqio

from synth2_jax.data import tasks
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.testing.user_errors import raises_line

pytestmark = pytest.mark.usefixtures("clean_registry")


def test_features_of_pairs(write_folder):
    task = tasks.add_pairs_task("real", write_folder("real", 5), "scenes", prompt="Say:")
    assert task.splits == ("train",)
    first = next(task.get_dataset(shuffle=False).as_numpy_iterator())
    assert first.keys() == {"image_tokens", "prompt", "caption", "source", "key"}
    assert first["image_tokens"].dtype == np.int32 and first["image_tokens"].shape == (4,)
    del first["image_tokens"]
    assert first == {
        "prompt": b"Say:",
        "caption": b"a red circle",
        "source": b"real",
        "key": b"real-000",
    }


def test_an_epoch_has_each_pair_once(write_folder):
    task = tasks.add_pairs_task("real", write_folder("real", 300, num_shards=3), "scenes")
    epochs = [
        [e["key"].decode() for e in task.get_dataset(seed=seed).as_numpy_iterator()]
        for seed in (0, 0, 1)
    ]
    assert sorted(epochs[0]) == [f"real-{i:03d}" for i in range(300)]
    assert epochs[0] == epochs[1] != epochs[2]


def test_the_same_task_twice_is_one(write_folder):
    folder, other = write_folder("real", 5), write_folder("real", 6, name="other")
    task = tasks.add_pairs_task("real", folder, "scenes")
    assert tasks.add_pairs_task("real", folder, "scenes") is task
    taken = "--config.data.folders.real: a task of this name is registered"
    with raises_line(taken, "other"):
        tasks.add_pairs_task("real", other, "scenes")
    with raises_line(taken, "Say"):
        tasks.add_pairs_task("real", folder, "scenes", prompt="Say:")
    assert tasks.add_pairs_task("real", other, "scenes", replace=True) is not task


def test_tasks_of_others_are_not_replaced(write_folder):
    source = seqio.FunctionDataSource(lambda split, shuffle_files: None, splits=["train"])
    seqio.TaskRegistry.add("real", source=source, output_features=tasks.image_features())
    with raises_line("a source of its own"):
        tasks.add_pairs_task("real", write_folder("real", 5), "scenes", replace=True)


def test_a_name_that_seqio_refuses(write_folder):
    with raises_line("--config.data.folders.my/real: "):
        tasks.add_pairs_task("my/real", write_folder("real", 5), "scenes")


def test_arrays_are_shuffled_in_each_epoch_and_sharded_without_overlap():
    def drawn(count, **options):
        source = tasks.ArraySource({"train": lambda: {"image": np.arange(count)}}, {})
        dataset = seqio.Task(
            "numbers",
            source=source,
            output_features={"image": seqio.ContinuousFeature(dtype=tf.int64, rank=0)},
            preprocessors=[],
            shuffle_buffer_size=None,
        ).get_dataset(seed=0, try_in_mem_cache=False, **options)
        return [int(example["image"]) for example in dataset]

    both = drawn(200, num_epochs=2)
    first, second = both[:200], both[200:]
    assert sorted(first) == sorted(second) == list(range(200))
    assert first != second and first != sorted(first)
    parts = [drawn(10, shard_info=seqio.ShardInfo(i, 3)) for i in range(3)]
    assert sorted(sum(parts, [])) == list(range(10))
    assert [len(part) for part in parts] == [4, 3, 3]


def test_scenes(monkeypatch):
    monkeypatch.setitem(tasks.scenes.SPLITS, "text", 10)
    monkeypatch.setitem(tasks.scenes.SPLITS, "images", 3)
    tasks.add_scenes_tasks()
    tasks.add_scenes_tasks()
    images = seqio.get_mixture_or_task("scenes_images").get_dataset(shuffle=False)
    np.testing.assert_array_equal([e["image"] for e in images], tasks.scenes.images("images"))

    text = seqio.get_mixture_or_task("scenes_text")
    lines = list(text.get_dataset(shuffle=False).as_numpy_iterator())
    assert [line["caption"].decode() for line in lines] == [c for _, c in tasks.scenes.texts()]
    name = tasks.scenes.texts()[1][0]
    assert [line["prompt"].decode() for line in lines[:2]] == [
        "Output:",
        f"Class: {name}. Output:",
    ]
    held_out = text.get_dataset(split="validation", shuffle=False).as_numpy_iterator()
    assert not {line["key"] for line in held_out} & {line["key"] for line in lines}
