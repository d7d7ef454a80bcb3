"""Our model and the published code's own answers, on the tiny reference weights, in float32 on the CPU.

The reference run cast its models to bf16 and back, buffers included: Qwen2's rotary frequencies and InternLM2's cosine
and sine tables are rounded to bf16 in its answers (without that, logits differ by 0.024 and 0.0034). The same rounding
is applied here, and only here.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from tests.tiny import TRUNK
from vesselseg.dataset.image_views import logits_to_image
from vesselseg.dataset.prompts import ANSWER
from vesselseg.inference.processor import Processor, processor_for
from vesselseg.models.build import build_model
from vesselseg.models.checkpoints.base_folder import read_base_folder
from vesselseg.models.internvl import encode_patches
from vesselseg.models.packing import Packed
from vesselseg.models.sa2va import Sa2VA

QUESTION = "Please segment blood vessel in this image."
TINY_TRUNK = {**TRUNK, "window_spec": [8, 4, 16, 8]}
FAMILIES = ["qwen2", "internlm2"]


def round_rotary_as_the_reference(model: Sa2VA) -> None:
    rotary = model.language_model.model.rotary_emb
    if model.config.llm_config["model_type"] == "qwen2":
        rotary.inv_freq = rotary.inv_freq.bfloat16().float()
        return
    exact = rotary.forward
    rotary.forward = lambda x, position_ids: tuple(table.bfloat16().float() for table in exact(x, position_ids))


class Reference:
    """One family's folder, model, processor and golden answers."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.model: Sa2VA = build_model(str(folder), sam2={"trunk": TINY_TRUNK}, trainable={"llm": "frozen"}).eval()
        round_rotary_as_the_reference(self.model)
        self.processor: Processor = processor_for(self.model.config, read_base_folder(folder).tokenizer)
        self.golden = np.load(folder / "golden.npz")

    def image(self, number: int) -> Image.Image:
        return Image.open(self.folder / f"image_{number}.png").convert("RGB")

    @torch.inference_mode()
    def hidden(self, number: int) -> tuple[Packed, torch.Tensor]:
        tiles = self.processor.views.tiles(self.image(number))
        ids, _ = self.processor.tokens.encode([(QUESTION, ANSWER)], len(tiles) * self.processor.tokens_per_tile)
        conversations = self.model.pack([ids])
        encoded = self.model.projector(encode_patches(self.model.vision_model, self.model.projector, tiles))
        return conversations, self.model.read(conversations, encoded)


@pytest.fixture(scope="module", params=FAMILIES)
def reference(request: pytest.FixtureRequest, shared: Path) -> Reference:
    return Reference(shared / "reference" / f"tiny_sa2va_{request.param}")


pytestmark = pytest.mark.shared


@pytest.mark.parametrize("number", [0, 1])
def test_token_ids_and_tiles(reference: Reference, number: int) -> None:
    tiles = reference.processor.views.tiles(reference.image(number))
    ids, _ = reference.processor.tokens.encode([(QUESTION, ANSWER)], len(tiles) * reference.processor.tokens_per_tile)
    golden = reference.golden[f"{number}/input_ids"][0]
    answer = reference.golden["answer_ids"].ravel()
    assert ids.tolist() == [*golden.tolist(), *answer.tolist()]
    np.testing.assert_allclose(tiles[..., :8, :8].numpy(), reference.golden[f"{number}/pixel_values_corner"], atol=1e-5)
    sums = reference.golden[f"{number}/pixel_values_sum"]
    np.testing.assert_allclose(tiles.double().sum((1, 2, 3)).numpy(), sums, rtol=1e-5, atol=1.0)


@pytest.mark.parametrize("number", [0, 1])
def test_step_logits_and_seg_vector(reference: Reference, number: int) -> None:
    conversations, hidden = reference.hidden(number)
    answer = len(reference.golden["answer_ids"].ravel())
    with torch.inference_mode():
        head = reference.model.language_model.get_output_embeddings()
        logits = reference.model.new_tokens.logits(head, hidden[-answer - 1 : -1])
        prompt = reference.model.prompts(hidden, conversations)
    np.testing.assert_allclose(logits.numpy(), reference.golden[f"{number}/step_logits"], atol=1e-4)
    np.testing.assert_allclose(prompt.numpy(), reference.golden[f"{number}/seg_embed"][0], atol=1e-4)


@pytest.mark.parametrize("number", [0, 1])
def test_mask(reference: Reference, number: int) -> None:
    if "internlm2" in reference.folder.name:
        pytest.skip("the InternLM2 reference holds no mask decoder")
    image = reference.image(number)
    conversations, hidden = reference.hidden(number)
    with torch.inference_mode():
        features = reference.model.grounding.encode(reference.processor.views.square(image).unsqueeze(0))
        prompts = reference.model.prompts(hidden, conversations)
        low = reference.model.grounding.decode(features, prompts, torch.tensor([0]))
    square = torch.nn.functional.interpolate(low.unsqueeze(1), size=(1024, 1024), mode="bilinear")
    golden = reference.golden[f"{number}/mask_logits_1024_stride8_f32norm"]
    np.testing.assert_allclose(square[..., ::8, ::8].numpy(), golden, atol=2e-2)
    mask = torch.sigmoid(logits_to_image(low, 1024, image.height, image.width)).numpy() > 0.5
    shape = tuple(reference.golden[f"{number}/mask_shape"])
    expected = np.unpackbits(reference.golden[f"{number}/mask_f32norm"], axis=-1).reshape(shape).astype(bool)
    assert (mask == expected).mean() >= 0.9995
    assert 0.001 < mask.mean() < 0.999  # a mask that says nothing would agree by accident
