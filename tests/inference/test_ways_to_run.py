"""A teacher-forced answer equals greedy decoding, in every precision and on every device placement."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from tests.command_line import parsed
from tests.samples import losses_of, processor_of
from tests.tiny import model_arguments, picture, save_checkpoint, shaken_model
from vesselseg.dataset.batch import Example
from vesselseg.dataset.collate import collate
from vesselseg.dataset.prompts import ANSWER, question_for
from vesselseg.errors import UserError
from vesselseg.export.convert import convert
from vesselseg.inference.greedy_decoding import greedy_decode, question_ids
from vesselseg.inference.load import load_predictor
from vesselseg.inference.options import LoadOptions
from vesselseg.inference.processor import Processor
from vesselseg.inference.sa2va_predictor import Sa2VAPredictor
from vesselseg.models.build import build_model
from vesselseg.models.quantised import Int8Linear, Nf4Linear
from vesselseg.models.sa2va import Sa2VA
from vesselseg.models.split_layers import LayerSplit, split_layers

IMAGES = [picture(0), picture(1, 300, 120), picture(2, 97, 203)]
PHRASES = ["blood vessel", "catheter", "left anterior descending artery"]
QUESTIONS = [question_for(phrase) for phrase in PHRASES]


@pytest.fixture(scope="module")
def talking(tiny_base: Path) -> Sa2VA:
    """A model that has learned the answer: every weight of its language model trained on the text alone."""
    model = shaken_model(tiny_base, trainable={"llm": "full"})
    processor = processor_of(model, tiny_base)
    rows = [processor.tokens.encode([(question, ANSWER)], processor.tokens_per_tile) for question in QUESTIONS]
    tile = torch.zeros(len(rows), processor.tokens_per_tile, model.new_tokens.head.shape[1])
    conversations = model.pack([ids for ids, _ in rows], [labels for _, labels in rows])
    optimizer = torch.optim.Adam([*model.language_model.parameters(), *model.new_tokens.parameters()], lr=3e-3)
    for _ in range(60):
        logits, labels = model.answers(model.read(conversations, tile), conversations)
        loss = nn.functional.cross_entropy(logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return model.eval()


@pytest.fixture(scope="module")
def predictor(talking: Sa2VA, tiny_base: Path) -> Sa2VAPredictor:
    return Sa2VAPredictor(talking, processor_of(talking, tiny_base))


def slowly(predictor: Sa2VAPredictor) -> list[np.ndarray]:
    """One image and one question at a time, the answer decoded token by token."""
    found = []
    for image in IMAGES:
        answers = [predictor.chat(image, question) for question in QUESTIONS]
        assert [answer.text for answer in answers] == [ANSWER] * len(QUESTIONS)
        found.append(np.concatenate([answer.probabilities for answer in answers]))
    return found


@pytest.mark.slow
def test_a_teacher_forced_answer_gives_what_greedy_decoding_gives(predictor: Sa2VAPredictor) -> None:
    quick = predictor.probabilities(IMAGES, [QUESTIONS] * len(IMAGES))
    for mine, theirs in zip(quick, slowly(predictor)):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)
        assert np.abs(mine[0] - mine[1]).max() > 1e-4


@pytest.mark.slow
def test_in_bf16_both_ways_are_as_near_to_float32_as_to_each_other(predictor: Sa2VAPredictor, tiny_base: Path) -> None:
    """Of the rounding, 0 to 0.48 is not common to both: that is for the CPU's kernels and the number of threads to say.

    Probabilities of random weights lie near each other; a trained model's masks are below.
    """
    model = build_model(**model_arguments(tiny_base, trainable={"llm": "full"}))
    model.load_state_dict(predictor.model.state_dict())
    half = Sa2VAPredictor(model.bfloat16().eval(), predictor.processor)
    exact, quick = (each.probabilities(IMAGES, [QUESTIONS] * len(IMAGES)) for each in (predictor, half))
    slow = slowly(half)
    rounding = apart(exact, quick)
    assert apart(slow, quick) < rounding
    assert apart(exact, slow) < 1.25 * rounding


@pytest.fixture(scope="module")
def segmenting(tiny_base: Path) -> Sa2VAPredictor:
    """A model with meaningful masks: trained on text and masks until it answers and follows the grey values."""
    model = shaken_model(tiny_base, trainable={"llm": "full", "sam2_encoder": True})
    processor = processor_of(model, tiny_base)
    batch = collate([by_brightness(processor, image) for image in IMAGES])
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    optimizer = torch.optim.Adam(trained, lr=3e-3)
    for _ in range(40):
        optimizer.zero_grad()
        torch.stack(list(losses_of(model.train(), batch).values())).sum().backward()
        nn.utils.clip_grad_norm_(trained, 1.0)
        optimizer.step()
    return Sa2VAPredictor(model.eval(), processor)


def by_brightness(processor: Processor, image: Image.Image) -> Example:
    """A different range of grey values for each phrase."""
    tiles, grey = processor.views.tiles(image), np.asarray(image.convert("L"))
    rounds = [(question, ANSWER) for question in QUESTIONS]
    ids, labels = processor.tokens.encode(rounds, len(tiles) * processor.tokens_per_tile)
    masks = torch.from_numpy(np.stack([grey > 150, grey < 90, grey > 110]).astype(np.uint8))
    return Example("grey", tiles, processor.views.square(image), ids, labels, masks, tuple(PHRASES))


@pytest.mark.slow
def test_in_bf16_masks_of_both_ways_agree_in_999_of_1000_pixels(segmenting: Sa2VAPredictor) -> None:
    half = Sa2VAPredictor(segmenting.model.bfloat16(), segmenting.processor)
    pairs = zip(half.probabilities(IMAGES, [QUESTIONS] * len(IMAGES)), slowly(half))
    quick, slow = (np.concatenate([found.ravel() > 0.5 for found in way]) for way in zip(*pairs))
    assert 0.2 < quick.mean() < 0.5
    assert (quick == slow).mean() >= 0.999


def apart(first: list[np.ndarray], second: list[np.ndarray]) -> float:
    """Mean difference of probabilities."""
    return float(np.mean([np.abs(mine - theirs).mean() for mine, theirs in zip(first, second)]))


def test_forced_tokens_and_the_limit_of_new_tokens(predictor: Sa2VAPredictor) -> None:
    model, tokens = predictor.model, predictor.processor.tokens
    tile = torch.zeros(1, predictor.processor.tokens_per_tile, model.new_tokens.head.shape[1])
    question = question_ids(tokens, QUESTIONS[0], predictor.processor.tokens_per_tile)
    words = [model.new_tokens.seg_id, 5, model.new_tokens.seg_id]
    answer = greedy_decode(model, question, tile, -1, 99, words)
    assert answer.ids == tuple(words) and answer.prompts.shape == (2, 256)
    assert len(greedy_decode(model, question, tile, -1, 3).ids) == 3
    chatted = predictor.chat(IMAGES[0], QUESTIONS[0], max_new_tokens=1)
    assert chatted.probabilities.shape == (0, IMAGES[0].height, IMAGES[0].width) and chatted.text


def test_special_tokens_are_refused_in_chat_too(predictor: Sa2VAPredictor) -> None:
    with pytest.raises(ValueError, match="a control token of the model"):
        predictor.chat(IMAGES[0], "Is <img> here?")


def test_the_shared_prefix_is_read_once_for_all_phrases(predictor: Sa2VAPredictor) -> None:
    """The image's tokens pass through the decoder once, not once per phrase."""
    read: list[int] = []
    layer = predictor.model.language_model.model.layers[0]
    handle = layer.register_forward_hook(lambda _, inputs, __: read.append(inputs[0].shape[:2].numel()))
    try:
        predictor.probabilities(IMAGES[:1], [QUESTIONS])
        predictor.probabilities(IMAGES[:1], [QUESTIONS[:1]])
    finally:
        handle.remove()
    several, one = read
    answers = [len(predictor.processor.tokens.encode([(q, ANSWER)], 0)[0]) for q in QUESTIONS]
    assert several <= one + sum(answers[1:]) + max(answers)


def test_the_same_phrase_twice_gives_the_same_mask_twice(predictor: Sa2VAPredictor) -> None:
    first, second = predictor.probabilities(IMAGES[:1], [[QUESTIONS[0]] * 2])[0]
    np.testing.assert_allclose(first, second, atol=1e-5)


def test_a_stream_gives_what_single_calls_give(predictor: Sa2VAPredictor) -> None:
    batches = [([image], [QUESTIONS[: number + 1]]) for number, image in enumerate(IMAGES)]
    found = list(predictor.stream(iter(batches)))
    assert len(found) == len(batches) and list(predictor.stream([])) == []
    for batch, (mine,) in zip(batches, found):
        np.testing.assert_allclose(mine, predictor.probabilities(*batch)[0], atol=1e-6)


def test_a_bad_question_in_a_stream_is_raised_after_the_batches_before_it(predictor: Sa2VAPredictor) -> None:
    stream = predictor.stream([(IMAGES[:1], [QUESTIONS[:1]]), (IMAGES[:1], [["<img>"]])])
    assert next(stream)[0].shape[0] == 1
    with pytest.raises(ValueError, match="a control token of the model"):
        next(stream)


@pytest.fixture(scope="module")
def exported(tiny_base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported")
    path = save_checkpoint(shaken_model(tiny_base), folder / "best.pth", model_arguments(tiny_base))
    IMAGES[0].save(folder / "0.png")
    convert(path, folder / "hf", [folder / "0.png"])
    return folder / "hf"


@pytest.fixture(scope="module")
def expected(exported: Path) -> np.ndarray:
    return load_predictor(exported, "cpu").probabilities(IMAGES[:1], [QUESTIONS])[0]


@pytest.mark.parametrize(
    ("loading", "layer", "off"),
    [
        (LoadOptions("cpu", quantise="int8"), Int8Linear, 0.02),
        (LoadOptions("cpu", quantise="nf4"), Nf4Linear, 0.2),
        (LoadOptions("cpu", dtype="bf16"), nn.Linear, 0.05),
        (LoadOptions("cpu", dtype="fp16"), nn.Linear, 0.02),
    ],
)
@pytest.mark.slow
def test_fewer_bits_give_nearly_the_same(
    exported: Path, expected: np.ndarray, loading: LoadOptions, layer: type, off: float
) -> None:
    predictor = loading.predictor(exported)
    blocks = predictor.model.language_model.model.layers
    assert type(blocks[0].mlp.up_proj) is layer and type(blocks[1].self_attn.q_proj) is layer
    found = predictor.probabilities(IMAGES[:1], [QUESTIONS])[0]
    assert 0 < np.abs(found - expected).max() < off


def test_fewer_bits_take_fewer_bytes(exported: Path) -> None:
    def weight_bytes(kind: str | None) -> int:
        layers = LoadOptions("cpu", quantise=kind).predictor(exported).model.language_model.model.layers
        return sum(weight.numel() * weight.element_size() for weight in layers.parameters())

    assert weight_bytes("int8") < 0.27 * weight_bytes(None) and weight_bytes("nf4") < 0.14 * weight_bytes(None)


def test_a_checkpoint_in_4_bits_keeps_its_adapters(tiny_base: Path, tmp_path: Path) -> None:
    path = save_checkpoint(shaken_model(tiny_base), tmp_path / "best.pth", model_arguments(tiny_base))
    dense, packed = (LoadOptions("cpu", quantise=kind).predictor(path) for kind in (None, "nf4"))
    both = [each.probabilities(IMAGES[:1], [QUESTIONS])[0] for each in (dense, packed)]
    assert 0 < np.abs(both[0] - both[1]).max() < 0.2
    with pytest.raises(UserError, match="weights in 8 bits are for predicting with an exported folder"):
        LoadOptions("cpu", quantise="int8").predictor(path)


def test_layers_are_distributed_by_bytes(tiny_base: Path) -> None:
    """The first GPU holds everything else, so it takes fewer layers; the others take equally many."""
    model = build_model(**model_arguments(tiny_base))
    language = model.language_model
    language.model.layers = nn.ModuleList([language.model.layers[0]] * 24)
    gpus = [torch.device("cuda", number) for number in range(4)]
    per_layer = sum(weight.numel() for weight in language.model.layers[0].parameters())
    small = nn.Linear(1, 1)
    tables = 2 * language.get_input_embeddings().weight.numel()
    vision = nn.Linear(per_layer * 4 - tables, 1, bias=False)
    split = split_layers(vision, language, gpus, torch.float32, None)
    counts = [split.layers.count(gpu) for gpu in gpus]
    assert counts == [3, 7, 7, 7] and list(split.layers) == sorted(split.layers, key=lambda gpu: gpu.index)
    assert (
        split.place("vision_model.embeddings.cls_token") == split.place("language_model.model.norm.weight") == gpus[0]
    )
    assert split.place("language_model.model.layers.10.mlp.up_proj.weight") == split.layers[10]
    huge = nn.Linear(per_layer * 50, 1, bias=False)
    assert [split_layers(huge, language, gpus, torch.float32, None).layers.count(gpu) for gpu in gpus] == [0, 8, 8, 8]
    in_bits = split_layers(vision, language, gpus, torch.float32, "nf4").layers
    assert in_bits.count(gpus[0]) < counts[0]
    assert split_layers(small, language, gpus[:1], torch.float32, None).layers == (gpus[0],) * 24


def test_a_split_model_computes_the_same(exported: Path, expected: np.ndarray, monkeypatch: pytest.MonkeyPatch) -> None:
    """Both shares are on the CPU here; the hooks that move hidden states between them are installed all the same."""
    devices = (torch.device("cpu"), torch.device("cpu"))
    monkeypatch.setattr("vesselseg.inference.load.choose_devices", lambda device: devices)
    predictor = LoadOptions("split").predictor(exported)
    decoder = predictor.model.language_model.model
    assert all(hasattr(module, "_hf_hook") for module in (*decoder.layers, decoder.norm))
    np.testing.assert_allclose(predictor.probabilities(IMAGES[:1], [QUESTIONS])[0], expected, atol=1e-6)


def test_split_without_a_gpu_is_refused(exported: Path) -> None:
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    with pytest.raises(UserError, match="--device split spreads a model over GPUs, and this machine has none"):
        LoadOptions("split").predictor(exported)


@pytest.mark.gpu
def test_a_model_split_over_gpus_computes_the_same(exported: Path, expected: np.ndarray) -> None:
    if torch.cuda.device_count() < 2:
        pytest.skip("needs two CUDA devices")
    found = LoadOptions("split", dtype="fp32").predictor(exported).probabilities(IMAGES[:1], [QUESTIONS])[0]
    np.testing.assert_allclose(found, expected, atol=1e-3)


def test_everything_is_on_one_device_without_a_split() -> None:
    assert LayerSplit(torch.device("cpu"), ()).place("language_model.model.layers.3.mlp.up_proj.weight").type == "cpu"


def test_options_of_commands() -> None:
    assert parsed("eval", "model", "data", "--out", "x")["loading"] == LoadOptions()
    given = ["--device", "cuda:1", "--dtype", "fp16", "--quantise", "nf4", "--base", "b"]
    assert parsed("predict", "m", "i", "--out", "x", *given)["loading"] == LoadOptions("cuda:1", "fp16", "nf4", "b")
