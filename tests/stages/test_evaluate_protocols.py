"""Data sets in their own file formats: tokenized, evaluated by their protocols, and scored alike.

Images are Scenes', written as PNG files; annotations are of COCO, NoCaps and VQA.
"""

import collections
import json
import pathlib
import shutil

import numpy as np
import PIL.Image
import pytest

from synth2_jax import sharding
from synth2_jax.data.pipeline import DataConfig
from synth2_jax.data.references import ReferencedImage
from synth2_jax.domains.scenes import dataset
from synth2_jax.errors import UserError
from synth2_jax.evaluation.coco_files import caption_annotations, predictions
from synth2_jax.evaluation.protocol import ProtocolConfig, make_prompts
from synth2_jax.evaluation.scorer import CaptionScorer, EvaluateConfig
from synth2_jax.files import read_json_lines
from synth2_jax.loading.run import Trained
from synth2_jax.loading.trained import load_trained
from synth2_jax.sampling.text_decode import TextDecodeConfig
from synth2_jax.scoring.captions import score_captions
from synth2_jax.text.vocabulary import EOS_ID, PAD_ID, load_vocabulary
from synth2_jax.training import train_state

ROOT = pathlib.Path(__file__).parents[2]
NUM_IMAGES = 12
DOMAINS = ("in-domain", "near-domain", "out-domain")
ANSWERS = ["red", "red", "a red", "Red.", "blue", "red", "green", "red", "red", "red"]


# --- prompts: no model, no files ---


def images_of(num_images, references=("a dog", "the dog"), prompt=""):
    return [
        ReferencedImage(f"image-{i}", np.full(4, i, np.int32), references, prompt)
        for i in range(num_images)
    ]


@pytest.fixture
def support(monkeypatch):
    """What stands in the folder of examples; sets it anew."""
    held = {"images": images_of(8)}

    def read(folder, fingerprint, max_images):
        assert (folder, fingerprint) == ("S", "tok")
        return held["images"][:max_images]

    monkeypatch.setattr("synth2_jax.evaluation.protocol.read_references", read)
    return held


def prompts_of(images, vocabulary=None, **config):
    config = ProtocolConfig(**{"support": "S", **config})
    return make_prompts(images, config, vocabulary or load_vocabulary("scenes"), "Output:", "tok")


def test_a_prompt_without_examples_is_start_token_and_prompt():
    vocabulary = load_vocabulary("scenes")
    (prompt,) = prompts_of(images_of(1))
    assert prompt.inputs == (PAD_ID, *vocabulary.encode("Output:"))
    assert set(prompt.image_of_text) == {1} and len(prompt.images) == 1
    (asked,) = prompts_of(images_of(1, prompt="Question: what? Answer:"))
    assert asked.inputs == (PAD_ID, *vocabulary.encode("Question: what? Answer:"))


def test_examples_stand_before_the_prompt_each_with_its_image(support):
    vocabulary = load_vocabulary("scenes")
    query = ReferencedImage("query", np.full(4, 99, np.int32), ("x",))
    (prompt,) = prompts_of([query], shots=2)
    starts = [i for i, token in enumerate(prompt.inputs) if token == PAD_ID]
    assert starts[0] == 0 and len(starts) == 3
    assert [image[0] for image in prompt.images][-1] == 99
    assert len({int(image[0]) for image in prompt.images}) == 3
    start_token, end = [PAD_ID, *vocabulary.encode("Output:")], [*starts[1:], len(prompt.inputs)]
    for number, (start, stop) in enumerate(zip(starts, end, strict=True), start=1):
        chunk = list(prompt.inputs[start:stop])
        assert chunk[: len(start_token)] == start_token
        assert set(prompt.image_of_text[start:stop]) == {number}
        if number < 3:
            assert chunk[-1] == EOS_ID
            assert vocabulary.decode(chunk[len(start_token) :]) in ("a dog", "the dog")
        else:
            assert chunk == start_token


def test_flamingos_zero_shot_has_the_words_of_examples_without_their_images(support):
    with_images = prompts_of(images_of(3), shots=2, seed=3)
    without = prompts_of(images_of(3), text_shots=2, seed=3)
    for one, other in zip(with_images, without, strict=True):
        assert one.inputs == other.inputs
        assert other.image_of_text == tuple(int(i == 3) for i in one.image_of_text)
        assert len(other.images) == 1 and other.images[0][0] == one.images[-1][0]


def test_examples_are_drawn_by_the_seed_for_each_image_or_for_all(support):
    queries = [ReferencedImage(f"q{i}", np.zeros(4, np.int32), ("x",)) for i in range(6)]

    def drawn(**config):
        return [tuple(int(i[0]) for i in p.images[:-1]) for p in prompts_of(queries, **config)]

    assert drawn(shots=3) == drawn(shots=3) != drawn(shots=3, seed=1)
    assert len(set(drawn(shots=3))) > 3
    assert len(set(drawn(shots=3, same_examples=True))) == 1
    # An image's examples do not depend on how many images there are.
    assert drawn(shots=3)[:2] == [
        tuple(int(i[0]) for i in p.images[:-1]) for p in prompts_of(queries[:2], shots=3)
    ]


def test_an_image_is_no_example_of_itself(support):
    for seed in range(20):
        for number, prompt in enumerate(prompts_of(support["images"], shots=4, seed=seed)):
            shown = [int(image[0]) for image in prompt.images]
            assert shown[-1] == number and len(set(shown)) == 5


def test_an_example_is_answered_as_most_people_did(support):
    support["images"] = images_of(8, ("no", "yes", "yes"), "Question: is it? Answer:")
    vocabulary = load_vocabulary("scenes")
    (prompt,) = prompts_of(images_of(1, prompt="Question: was it? Answer:"), shots=1, task="vqa")
    chunk = [*vocabulary.encode("Question: is it? Answer:"), *vocabulary.encode("yes"), EOS_ID]
    assert list(prompt.inputs[1 : len(chunk) + 1]) == chunk


@pytest.mark.parametrize(
    "config, message",
    [
        ({"task": "captions"}, "task: unknown 'captions'; did you mean 'caption'"),
        ({"shots": -1}, "expected at least 0"),
        ({"stem_answers": True}, "stem_answers: found True, expected False with `task`=caption"),
        (
            {"shots": 1, "text_shots": 1, "support": "S"},
            "text_shots: found 1, expected 0 with `shots`=1",
        ),
        ({"shots": 1}, "support: found none, expected a folder of pairs"),
        ({"shots": 4, "support": "S", "support_images": 4}, "found 4, expected more than the 4"),
    ],
)
def test_protocols_that_cannot_be(config, message):
    with pytest.raises(UserError, match=message):
        ProtocolConfig(**config)


def test_too_few_images_to_draw_from(support):
    with pytest.raises(UserError, match="support=S: found 8 images, expected more than the 8 exam"):
        prompts_of(images_of(1), shots=8)


# --- files of the data sets' own scorers ---


@pytest.mark.parametrize(
    "keys, ids",
    [
        (("in-domain/12", "out-domain/7"), [12, 7]),
        (("a/1", "b/1"), ["a/1", "b/1"]),
        (("0012", "13"), ["0012", "13"]),
        (("9" * 18,), [10**18 - 1]),
        (("9" * 18, "9" * 5000), ["9" * 18, "9" * 5000]),
    ],
)
def test_ids_are_the_data_sets_own(keys, ids):
    images, texts = [ReferencedImage(key, None, ("a", "b")) for key in keys], ["x", "y"]
    texts = texts[: len(keys)]
    for task, number, text in (
        ("caption", "image_id", "caption"),
        ("vqa", "question_id", "answer"),
    ):
        found = predictions(images, texts, task)
        assert found == [{number: i, text: t} for i, t in zip(ids, texts, strict=True)]


def test_annotations_hold_every_reference_under_its_image():
    images = [ReferencedImage("5", None, ("a", "b")), ReferencedImage("3", None, ("c",))]
    found = caption_annotations(images)
    assert found["images"] == [{"id": 5}, {"id": 3}]
    assert found["annotations"] == [
        {"id": 0, "image_id": 5, "caption": "a"},
        {"id": 1, "image_id": 5, "caption": "b"},
        {"id": 2, "image_id": 3, "caption": "c"},
    ]


# --- the whole way ---


@pytest.fixture(scope="module")
def examples():
    return dataset.examples("test", NUM_IMAGES)


@pytest.fixture(scope="module")
def picture_folder(tmp_path_factory, examples):
    """PNG files and annotations in COCO's, NoCaps' and VQA's formats."""
    folder = tmp_path_factory.mktemp("coco")
    (folder / "images").mkdir()
    rows = []
    for number, example in enumerate(examples):
        PIL.Image.fromarray(example.image).save(folder / "images" / f"{number + 100:012d}.png")
        rows.append({"id": number + 100, "file_name": f"{number + 100:012d}.png"})
    annotations = [
        {"id": 5 * number + i, "image_id": number + 100, "caption": caption}
        for number, example in enumerate(examples)
        for i, caption in enumerate(example.captions)
    ]
    coco = {"images": rows, "annotations": annotations}
    (folder / "captions.json").write_text(json.dumps(coco))
    domains = [row | {"domain": DOMAINS[i % 3]} for i, row in enumerate(rows)]
    (folder / "nocaps.json").write_text(json.dumps(coco | {"images": domains}))
    questions = [
        {"question_id": 10 * row["id"], "image_id": row["id"], "question": question}
        for row, question in zip(rows, ["what is it?", "which color has it?"] * 6, strict=True)
    ]
    (folder / "questions.json").write_text(json.dumps({"questions": questions}))
    answered = [
        {"question_id": question["question_id"], "answers": [{"answer": a} for a in ANSWERS]}
        for question in questions
    ]
    (folder / "answers.json").write_text(json.dumps({"annotations": answered}))
    return folder


@pytest.fixture(scope="module")
def tokenized(chain, picture_folder, tmp_path_factory):
    """tokenized(format, ...) -> its folder of pairs."""

    def run(source, path, **overrides):
        workdir = tmp_path_factory.mktemp(source)
        given = {
            "source__format": source,
            "source__path": picture_folder / path,
            "source__images": picture_folder / "images",
            "splits": "test",
            **overrides,
        }
        chain.run(chain.tokenization(workdir, **given))
        return workdir / "test"

    return run


@pytest.fixture(scope="module")
def coco_pairs(tokenized):
    return tokenized("coco", "captions.json")


@pytest.fixture(scope="module")
def open_vlm(chain):
    """The chain's VLM with gates open and strong attention: images and words change words."""
    trained = load_trained(str(chain.path("vlm_real")), "vlm")
    rng, flat = np.random.default_rng(0), train_state.flatten(trained.params)
    for path, leaf in flat.items():
        noise = rng.normal(size=leaf.shape).astype(leaf.dtype)
        if "language_model/decoder" in path and "/attention/" in path:
            flat[path] = leaf + noise
        if "cross_attention" in path:
            flat[path] = np.full_like(leaf, 3.0) if path.endswith("gate") else leaf + noise
    params = train_state.unflatten(flat)
    return Trained(**{**vars(trained), "params": params})


@pytest.fixture(scope="module")
def speaking_vlm(chain, tmp_path_factory):
    """Workdir of a VLM that is trained until it speaks."""
    folder = tmp_path_factory.mktemp("speaking")
    language_model = folder / "language_model"
    chain.run(
        chain.training("language_model", language_model, train__steps=500, train__log_every=100)
    )
    changes = {
        "pretrained__language_model": language_model,
        "train__steps": 300,
        "train__log_every": 100,
    }
    chain.run(chain.training("vlm", folder / "vlm", **changes))
    return folder / "vlm"


def scorer_of(trained, folder, protocol, batch_size=4):
    config = EvaluateConfig(
        str(folder),
        batch_size=batch_size,
        decode=TextDecodeConfig(max_length=8),
        protocol=ProtocolConfig(**protocol),
    )
    tokenizer = trained.fingerprint("tokenizer")
    mesh = sharding.make_mesh(sharding.MeshConfig())
    return CaptionScorer(trained.objective, config, DataConfig(), tokenizer, mesh)


def written(trained, folder, batch_size=4, **protocol):
    return scorer_of(trained, folder, protocol, batch_size).captions(trained.params)


def evaluation(chain, config, workdir, **overrides):
    """argv of `synth2 evaluate` with a config of configs/evaluation."""
    given = {"vlm": chain.path("vlm_real"), "batch_size": 8, "decode__max_length": 8, **overrides}
    return [
        "synth2",
        "evaluate",
        f"--config={ROOT / 'configs' / 'evaluation' / config}",
        f"--workdir={workdir}",
        *(f"--config.{key.replace('__', '.')}={value}" for key, value in given.items()),
    ]


@pytest.mark.slow
@pytest.mark.interop
def test_cider_is_pycocoevalcaps_on_the_written_predictions(
    chain, coco_pairs, picture_folder, speaking_vlm, tmp_path, monkeypatch, parity
):
    """From COCO's own files to a score, and from the written file to pycocoevalcap's."""
    if shutil.which("java") is None:
        pytest.fail("this test needs Java: install a JRE such as openjdk-17-jre-headless")
    monkeypatch.setenv("JAVA_TOOL_OPTIONS", "-Dfile.encoding=UTF-8")
    from pycocoevalcap.bleu.bleu import Bleu
    from pycocoevalcap.cider.cider import Cider
    from pycocoevalcap.rouge.rouge import Rouge
    from pycocoevalcap.tokenizer.ptbtokenizer import PTBTokenizer

    changes = {"folder": coco_pairs, "vlm": speaking_vlm, "decode__max_length": 20}
    chain.run(evaluation(chain, "coco.py", tmp_path, more_scores="meteor", **changes))
    results = json.loads((tmp_path / "results.json").read_text())

    given = json.loads((picture_folder / "captions.json").read_text())["annotations"]
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert len(predicted) == NUM_IMAGES and len({row["caption"] for row in predicted}) > 1
    gts = collections.defaultdict(list)
    for row in given:
        gts[row["image_id"]].append({"caption": row["caption"]})
    res = {row["image_id"]: [{"caption": row["caption"]}] for row in predicted}
    assert gts.keys() == res.keys()
    order = list(res)
    gts = PTBTokenizer().tokenize({i: gts[i] for i in order})
    res = PTBTokenizer().tokenize(res)
    expected = {
        "cider": Cider().compute_score(gts, res)[0],
        "bleu4": Bleu(4).compute_score(gts, res, verbose=0)[0][3],
        "rouge_l": Rouge().compute_score(gts, res)[0],
    }
    for name, value in expected.items():
        parity(
            f"{name} of `synth2 evaluate` on a folder in COCO's format",
            "pycocoevalcap on predictions.json, PTB tokens",
            "abs difference, x100",
            abs(results[name] - 100 * value),
            1e-6,
        )
    assert min(results[name] for name in ("cider", "rouge_l", "meteor")) > 1  # it says something
    assert "by meteor-1.5.jar" in results["provenance of meteor"]


@pytest.mark.slow
def test_written_references_are_those_that_came_in(chain, coco_pairs, picture_folder, tmp_path):
    chain.run(evaluation(chain, "coco.py", tmp_path, folder=coco_pairs))
    references = json.loads((tmp_path / "references.json").read_text())
    given = json.loads((picture_folder / "captions.json").read_text())

    def captions(rows):
        return sorted((row["image_id"], row["caption"]) for row in rows["annotations"])

    assert captions(references) == captions(given)
    rows = read_json_lines(tmp_path / "captions.jsonl")
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert [str(row["image_id"]) for row in predicted] == [row["key"] for row in rows]
    assert [row["caption"] for row in predicted] == [row["caption"] for row in rows]
    provenance = json.loads((tmp_path / "results.json").read_text())["provenance"]
    assert provenance == (
        "tokenizer=ptb-like, images=12, references per image=5, "
        "df=these references (12 images), scale=x100"
    )


@pytest.mark.slow
def test_few_shot_captions_depend_on_examples_and_their_images_alone(coco_pairs, open_vlm):
    support, zero = str(coco_pairs), written(open_vlm, coco_pairs)
    together = written(open_vlm, coco_pairs, shots=4, support=support)
    assert len(set(together)) > 1
    assert written(open_vlm, coco_pairs, batch_size=1, shots=4, support=support) == together
    told = written(open_vlm, coco_pairs, text_shots=4, support=support)
    assert together != told != zero != together
    # A support folder that nothing is drawn from changes nothing, not even which program runs.
    scorer = scorer_of(open_vlm, coco_pairs, {"shots": 0, "support": "nowhere", "seed": 5})
    assert scorer._prompts is None and scorer.captions(open_vlm.params) == zero


@pytest.mark.slow
def test_nocaps_domains_are_scored_apart(chain, tokenized, tmp_path):
    pairs = tokenized("nocaps", "nocaps.json")
    chain.run(evaluation(chain, "nocaps.py", tmp_path, folder=pairs))
    results = json.loads((tmp_path / "results.json").read_text())
    rows = read_json_lines(tmp_path / "captions.jsonl")
    for domain in DOMAINS:
        mine = [row for row in rows if row["key"].startswith(f"{domain}/")]
        assert len(mine) == NUM_IMAGES / 3
        alone = score_captions([r["caption"] for r in mine], [r["references"] for r in mine])
        for name, value in alone.items():
            assert results[f"{name}/{domain}"] == pytest.approx(value), name
    assert "images=4," in results["provenance/in-domain"]
    ids = [row["image_id"] for row in json.loads((tmp_path / "predictions.json").read_text())]
    assert sorted(ids) == list(range(100, 100 + NUM_IMAGES))


@pytest.fixture(scope="module")
def vqa_pairs(tokenized, picture_folder):
    return tokenized(
        "vqa",
        "answers.json",
        source__questions=picture_folder / "questions.json",
        source__images=f"{picture_folder}/images/{{image_id:012d}}.png",
        source__answers="all",
    )


@pytest.mark.slow
def test_questions_are_asked_and_answers_scored(chain, vqa_pairs, tmp_path):
    chain.run(evaluation(chain, "vqav2.py", tmp_path, folder=vqa_pairs))
    results = json.loads((tmp_path / "results.json").read_text())
    told = {"provenance", "vlm", "protocol", "decoding", "prompt", "pairs", "config"}
    assert results.keys() == {"vqa_accuracy"} | told
    assert "questions=12, answers per question=10" in results["provenance"]
    predicted = json.loads((tmp_path / "predictions.json").read_text())
    assert [row["question_id"] for row in predicted] == [1000 + 10 * i for i in range(NUM_IMAGES)]
    rows = read_json_lines(tmp_path / "captions.jsonl")
    assert rows[0]["prompt"] == "Question: what is it? Answer:"
    assert rows[0]["references"] == ANSWERS
    assert not (tmp_path / "references.json").exists()


@pytest.mark.slow
def test_right_answers_are_right(vqa_pairs, open_vlm):
    scorer = scorer_of(open_vlm, vqa_pairs, {"task": "vqa"})
    assert scorer.score(["The red"] * NUM_IMAGES)["vqa_accuracy"] == pytest.approx(100)
    assert scorer.score(["pink"] * NUM_IMAGES)["vqa_accuracy"] == 0
    mixed = scorer.per_image(["pink"] + ["The red"] * (NUM_IMAGES - 1))
    assert [row["vqa_accuracy"] for row in mixed] == [0] + [pytest.approx(100)] * (NUM_IMAGES - 1)
    stems = scorer_of(open_vlm, vqa_pairs, {"task": "vqa", "stem_answers": True})
    assert stems.score(["reds"] * NUM_IMAGES)["vqa_accuracy"] == pytest.approx(100)
    # One person of ten said it: left out once.
    assert scorer.score(["blue"] * NUM_IMAGES)["vqa_accuracy"] == pytest.approx(30)


@pytest.mark.slow
def test_answers_depend_on_their_own_questions_of_any_length(vqa_pairs, open_vlm):
    scorer = scorer_of(open_vlm, vqa_pairs, {"task": "vqa", "shots": 1, "support": str(vqa_pairs)})
    assert len({len(prompt.inputs) for prompt in scorer._prompts}) > 1
    together = scorer.captions(open_vlm.params)
    order = list(range(NUM_IMAGES))[::-1]
    scorer.images = [scorer.images[i] for i in order]
    scorer._prompts = [scorer._prompts[i] for i in order]
    assert scorer.captions(open_vlm.params) == together[::-1]


@pytest.mark.slow
def test_clip_scores_by_the_users_model(chain, coco_pairs, tmp_path):
    (tmp_path / "clip.py").write_text(
        "import numpy as np\n"
        "def features(inputs):\n"
        "    if isinstance(inputs, list):\n"
        "        assert all(text.startswith('A photo depicts ') for text in inputs)\n"
        "        return np.ones((len(inputs), 3), np.float32)\n"
        "    assert inputs.dtype == np.uint8 and inputs.shape[1:] == (32, 32, 3)\n"
        "    return np.tile(np.float32([1, 0, 0]), (len(inputs), 1))\n"
    )
    model = f"{tmp_path}/clip.py:features"
    chain.run(
        evaluation(chain, "coco.py", tmp_path / "scored", folder=coco_pairs, feature_model=model)
    )
    results = json.loads((tmp_path / "scored" / "results.json").read_text())
    score = 2.5 / 3**0.5
    assert results["clip_score"] == pytest.approx(100 * score)
    assert results["ref_clip_score"] == pytest.approx(100 * 2 * score / (score + 1))
    assert "clip.py:features, images=12" in results["provenance of clip_score"]


@pytest.mark.slow
@pytest.mark.parametrize(
    "config, changes, said",
    [
        ("nocaps", {}, "by_domain expects keys such as in-domain/42, found '100'"),
        ("vqav2", {}, "'100' has the prompt '' and 5 answers, expected a question"),
        ("coco", {"more_scores": "spice"}, "--config.more_scores: unknown 'spice'; "),
        ("vqav2", {"feature_model": "a:b"}, "expected none with --config.protocol.task=vqa: it "),
        ("coco", {"feature_model": "a"}, "expected MODULE:NAME or FILE.py:NAME"),
        ("coco", {"protocol__shots": 1}, "--config.protocol.support: found none"),
    ],
)
def test_mistakes(chain, coco_pairs, tmp_path, mistake, config, changes, said):
    argv = evaluation(chain, f"{config}.py", tmp_path, folder=coco_pairs, **changes)
    assert said in mistake(argv)
