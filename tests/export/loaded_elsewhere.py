"""What a user does with an exported folder, by an interpreter without vesselseg: python loaded_elsewhere.py FOLDER ...

Prints a line of JSON: the version of transformers, and for every folder the digests of probabilities as loaded, with
device_map, saved and loaded again and with weights in 8 bits, and the loss and gradient of a batch.
"""

import hashlib
import json
import sys
import tempfile

import numpy as np
import torch
import transformers
from PIL import Image
from transformers import AutoModel, AutoTokenizer, BitsAndBytesConfig

QUESTION = "<image>\nPlease segment the blood vessel."
PICTURE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (12, 15), dtype=np.uint8)).resize((150, 120))


def main(folders):
    found = {"transformers": transformers.__version__}
    for folder in folders:
        tokens = json.load(open(f"{folder}/config.json"))["model_type"] == "sa2va_chat"  # noqa: PTH123, SIM115
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True) if tokens else None
        model = load(folder)
        of_folder = {
            "loaded": answer(model, tokenizer),
            "device_map": answer(load(folder, device_map="auto"), tokenizer),
        }
        if tokens:
            with tempfile.TemporaryDirectory() as saved:
                model.save_pretrained(saved)
                again = AutoTokenizer.from_pretrained(saved, trust_remote_code=True)
                of_folder["saved"] = answer(load(saved), again)
            eight_bits = BitsAndBytesConfig(load_in_8bit=True)
            of_folder["8 bits"] = answer(load(folder, device_map="auto", quantization_config=eight_bits), tokenizer)
            of_folder["trained"] = trained(model.train(), tokenizer)
        found[folder] = of_folder
    print(json.dumps(found))


def load(folder, **how):
    return AutoModel.from_pretrained(folder, trust_remote_code=True, dtype=torch.float32, **how).eval()


def answer(model, tokenizer):
    probabilities = model.predict_forward(PICTURE, QUESTION, tokenizer=tokenizer)["prediction_probs"][0]
    return hashlib.sha256(np.ascontiguousarray(probabilities).tobytes()).hexdigest()


def trained(model, tokenizer):
    """Loss and norm of the gradient, with the language model's layers recomputed."""
    model.gradient_checkpointing_enable()
    seg, image = tokenizer.convert_tokens_to_ids(["[SEG]", "<IMG_CONTEXT>"])
    row = torch.tensor([image] * model.config.tokens_per_tile + [5, 6, seg, 7])
    labels = torch.where(torch.arange(len(row)) < len(row) - 3, -100, row)
    side, tile = model.config.grounding_config["image_size"], model.config.vision_config["image_size"]
    tile = tile[0] if isinstance(tile, (list, tuple)) else tile
    generator = torch.Generator().manual_seed(0)
    views = [torch.randn(1, 3, size, size, generator=generator) for size in (side, tile)]
    masks = [torch.ones(1, 40, 40, dtype=torch.uint8)]
    loss = model(*views, [row], [labels], masks, tiles_per_image=[1]).loss
    loss.backward()
    norms = [float(one.grad.norm()) for one in model.parameters() if one.grad is not None]
    return [float(loss), float(np.linalg.norm(norms))]


main(sys.argv[1:])
