import numpy as np
import pytest

from synth2_jax.data import feature_converters, tasks
from synth2_jax.data.tensorflow_cpu import tf
from synth2_jax.testing.chat_vocabulary import chat_vocabulary
from synth2_jax.testing.user_errors import raises_line
from synth2_jax.text.caption_ids import vlm_text
from synth2_jax.text.prompts import in_turns
from synth2_jax.text.vocabulary import END_OF_TURN, load_vocabulary

PROMPT = load_vocabulary("scenes").encode("Output:")
RED = load_vocabulary("scenes").encode("a red circle")
TWO = load_vocabulary("scenes").encode("two blue squares in a row")
T = len(PROMPT) + len(RED) + 3
PAIRS = [
    {"image_tokens": [5, 6], "caption": "a red circle", "source": "real", "key": "real-0"},
    {
        "image_tokens": [7, 8],
        "caption": "two blue squares in a row",
        "source": "synthetic",
        "key": "synthetic-0",
    },
]


def convert(model_name, examples, lengths, vocabulary="scenes"):
    spec = feature_converters.converter_class(model_name).TASK_FEATURES
    examples = [{name: example[name] for name in spec} for example in examples]
    dataset = tf.data.Dataset.from_tensor_slices(
        {name: tf.constant([e[name] for e in examples], spec[name].dtype) for name in spec}
    )
    converter = feature_converters.converter_class(model_name)(tasks.sentencepiece(vocabulary))
    return list(converter(dataset, {**dict.fromkeys(spec, 0), **lengths}).as_numpy_iterator())


def assert_examples(found, expected):
    assert len(found) == len(expected)
    for one, other in zip(found, expected, strict=True):
        assert one.keys() == other.keys()
        for name, value in other.items():
            np.testing.assert_array_equal(one[name], value, err_msg=name)


def padded(ids):
    return np.array(ids + [0] * (T - len(ids)))


def mask(start, stop):
    return np.array([start <= i < stop for i in range(T)])


def test_vlm():
    examples = [{**pair, "prompt": "Output:"} for pair in PAIRS]
    room = T - len(PROMPT) - 1
    assert len(RED) < room < len(TWO)  # one caption is padded, the other cut
    padded_one = {
        "image_tokens": [5, 6],
        "text_tokens": padded([*PROMPT, *RED, 1]),
        "loss_mask": mask(len(PROMPT), len(PROMPT) + len(RED) + 1),
        "is_synthetic": False,
        "source": b"real",
        "key": b"real-0",
    }
    cut_one = {
        "image_tokens": [7, 8],
        "text_tokens": [*PROMPT, *TWO[:room], 1],
        "loss_mask": mask(len(PROMPT), T),
        "is_synthetic": True,
        "source": b"synthetic",
        "key": b"synthetic-0",
    }
    found = convert("vlm", examples, {"image_tokens": 2, "caption": T})
    assert_examples(found, [padded_one, cut_one])


def test_generator_has_no_prompt():
    assert_examples(
        convert("generator", PAIRS[:1], {"image_tokens": 2, "caption": T}),
        [
            {
                "image_tokens": [5, 6],
                "text_tokens": padded([*RED, 1]),
                "text_mask": mask(0, len(RED) + 1),
                "source": b"real",
                "key": b"real-0",
            }
        ],
    )


def test_language_model_takes_a_prompt_of_each_example():
    prompts = ["Output:", "Class: red circle. Output:", ""]
    examples = [
        {"prompt": prompt, "caption": "a red circle", "key": f"text-{i}"}
        for i, prompt in enumerate(prompts)
    ]
    found = convert("language_model", examples, {"caption": 40})
    for example, prompt in zip(found, prompts, strict=True):
        ids = load_vocabulary("scenes").encode(prompt)
        text = [*ids, *RED, 1]
        assert example["text_tokens"].tolist() == text + [0] * (40 - len(text))
        assert np.flatnonzero(example["loss_mask"]).tolist() == list(range(len(ids), len(text)))


def test_tokenizer():
    image = np.array([[[0, 255, 51]]], np.uint8)
    (found,) = convert("tokenizer", [{"image": image}], {"image": 1})
    assert found.keys() == {"image"} and found["image"].dtype == np.float32
    np.testing.assert_allclose(found["image"], [[[-1.0, 1.0, -0.6]]], atol=1e-6)


def test_a_caption_ends_with_the_turn_that_its_prompt_opens(tmp_path):
    chat = chat_vocabulary(tmp_path / "chat.model")
    prompts = [in_turns("Write."), "Output:", in_turns("Write.") + f"yes{END_OF_TURN} Output:"]
    length = max(len(chat.encode(prompt)) for prompt in prompts) + 3
    examples = [{**PAIRS[0], "prompt": prompt} for prompt in prompts]
    lengths = {"image_tokens": 2, "caption": length}
    found = convert("vlm", examples, lengths, vocabulary=chat.path)
    text_BT, mask_BT = vlm_text(["a red circle"] * 3, prompts, chat, length)
    for row, ids_T, mask_T in zip(found, text_BT, mask_BT, strict=True):
        np.testing.assert_array_equal(row["text_tokens"], ids_T)
        np.testing.assert_array_equal(row["loss_mask"], mask_T)
    ends = [row["text_tokens"][row["loss_mask"]][-1] for row in found]
    assert ends == [chat.encode(END_OF_TURN)[0], 1, 1]


def test_text_is_the_same_as_without_tensorflow():
    texts = ["a red circle", "two BLUE squäres, 3 of them", ""]
    found = tasks.sentencepiece("scenes").encode_tf(tf.constant(texts)).to_list()
    assert found == [load_vocabulary("scenes").encode(text) for text in texts]


@pytest.mark.parametrize("model_name", feature_converters.MODELS)
def test_order_and_number_survive_blocks(model_name):
    examples = [
        {
            "image": np.full((1, 1, 3), i % 256),
            "image_tokens": [i, i],
            "prompt": "Output:",
            "caption": "a red circle",
            "source": "real",
            "key": f"real-{i:03d}",
        }
        for i in range(300)  # more than two blocks
    ]
    taken = feature_converters.converter_class(model_name).TASK_FEATURES
    lengths = {"image": 1, "image_tokens": 2, "caption": T}
    found = convert(model_name, examples, {k: v for k, v in lengths.items() if k in taken})
    if model_name == "tokenizer":
        pixels = [round((example["image"][0, 0, 0] + 1) * 127.5) for example in found]
        assert pixels == [i % 256 for i in range(300)]
    else:
        assert [e["key"].decode() for e in found] == [e["key"] for e in examples]


def test_unknown_model():
    with raises_line("--config.model_name: no batches for 'vml'; did you mean 'vlm'"):
        feature_converters.converter_class("vml")
