"""Sa2VAConfig: the shapes of one model, in the field names of the published InternVL and Sa2VA folders."""

from __future__ import annotations

import copy
import inspect
from typing import Any

from transformers import LlamaConfig, PretrainedConfig, Qwen2Config
from transformers.models.internvl.configuration_internvl import InternVLVisionConfig

NEW_TOKENS = ("[SEG]", "<p>", "</p>", "<vp>", "</vp>")  # in the order in which Sa2VA appends them to the vocabulary
IMAGE_TOKENS = ("<img>", "</img>", "<IMG_CONTEXT>")

# llm_config.model_type -> transformers' class of its configuration, by which transformers also finds the model's class.
# InternLM2 computes what Llama does; `checkpoints.published_layout` renames its weights.
LANGUAGE_MODELS: dict[str, type[PretrainedConfig]] = {
    "qwen2": Qwen2Config,
    "internlm2": LlamaConfig,
    "llama": LlamaConfig,
}

# Fields of llm_config that transformers' classes are given, beside the named parameters of the class itself: sizes and
# constants. A name that is not among them never reaches transformers, which resolves some to code of the hub.
LANGUAGE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "num_key_value_heads",
    "head_dim",
    "hidden_act",
    "max_position_embeddings",
    "initializer_range",
    "rms_norm_eps",
    "use_cache",
    "tie_word_embeddings",
    "rope_theta",
    "rope_scaling",
    "rope_parameters",
    "attention_bias",
    "bias",
    "attention_dropout",
    "use_sliding_window",
    "sliding_window",
    "max_window_layers",
    "layer_types",
    "bos_token_id",
    "eos_token_id",
    "pad_token_id",
)
_NOT_PASSED = {"self", "kwargs", "attn_implementation"}

SAM2_LARGE = {"variant": "large", "version": "2.0", "image_size": 1024}


class Sa2VAConfig(PretrainedConfig):
    """Sizes of vision tower, language model and SAM2, and what predicting needs to know of the training.

    llm_config, vision_config: as in config.json of the published InternVL folders (`qwen2` or `internlm2`; `llama`
    for an InternLM2 already converted).
    grounding_config: `variant` (tiny, small, base_plus, large), `version` (2.0, 2.1), `image_size` in pixels, and
    optionally `trunk`, sizes that replace the variant's, and one of `fine_masks` (`features`, `pixels`), masks at twice
    SAM2's resolution, and `vessel_head`, options of `VesselHead`. Published folders have none: SAM2-L at 1024.
    new_token_start: id of [SEG]; the five new tokens follow each other from there.
    threshold: probability above which a pixel is vessel, chosen on a validation split.
    mask_temperature: divisor of mask logits before the sigmoid (temperature scaling, Guo et al. 2017); 1: no change.
    (Not called temperature: transformers sets a field of that name, for text generation, in every config.)
    default_phrase: what is segmented if a request contains no phrase.
    training_loss: arguments of `losses.total.TotalLoss` that the model was trained with; none means its own defaults,
    which are the published code's.
    training_images: 12 hex digits for each image file that the model was trained on (`manifest.image_digests`),
    separated by blanks; empty if unknown.
    """

    model_type = "sa2va_chat"

    def __init__(
        self,
        llm_config: dict[str, Any] | None = None,
        vision_config: dict[str, Any] | None = None,
        grounding_config: dict[str, Any] | None = None,
        template: str = "qwen_chat",
        force_image_size: int = 448,
        dynamic_image_size: bool = True,
        min_dynamic_patch: int = 1,
        max_dynamic_patch: int = 12,
        use_thumbnail: bool = True,
        downsample_ratio: float = 0.5,
        new_token_start: int | None = None,
        threshold: float = 0.5,
        mask_temperature: float = 1.0,
        default_phrase: str = "blood vessel",
        training_loss: dict[str, Any] | None = None,
        training_images: str = "",
        **kwargs: Any,
    ) -> None:
        self.llm_config = dict(llm_config or {})
        self.vision_config = dict(vision_config or {})
        self.grounding_config = {**SAM2_LARGE, **(grounding_config or {})}
        self.template = template
        self.force_image_size = force_image_size
        self.dynamic_image_size = dynamic_image_size
        self.min_dynamic_patch = min_dynamic_patch
        self.max_dynamic_patch = max_dynamic_patch
        self.use_thumbnail = use_thumbnail
        self.downsample_ratio = downsample_ratio
        self.new_token_start = new_token_start
        self.threshold = threshold
        self.mask_temperature = mask_temperature
        self.default_phrase = default_phrase
        self.training_loss = dict(training_loss or {})
        self.training_images = training_images
        kwargs.setdefault("tie_word_embeddings", False)
        super().__init__(**kwargs)

    def add_training_images(self, digests: str) -> None:
        """Add further images that the model was trained on."""
        self.training_images = " ".join(sorted({*self.training_images.split(), *digests.split()}))

    @property
    def tokens_per_tile(self) -> int:
        """Language-model tokens that one tile becomes after pixel shuffle, 256 for 448 px."""
        side = self.force_image_size // int(self.vision_config.get("patch_size", 14)) * self.downsample_ratio
        return int(side) ** 2

    def text(self, attention: str = "sdpa") -> PretrainedConfig:
        """The language model's configuration as transformers' own class; InternLM2 becomes Llama."""
        kind = self.llm_config.get("model_type")
        if kind not in LANGUAGE_MODELS:
            raise ValueError(f"llm_config.model_type is {kind!r}; supported: {', '.join(LANGUAGE_MODELS)}")
        known = {*LANGUAGE_FIELDS, *inspect.signature(LANGUAGE_MODELS[kind].__init__).parameters} - _NOT_PASSED
        # transformers writes into the dicts that it is given, and the published code refuses what it adds to them.
        fields = {key: copy.deepcopy(value) for key, value in self.llm_config.items() if key in known}
        if LANGUAGE_MODELS[kind] is LlamaConfig:  # InternLM2 calls it bias
            fields["attention_bias"] = bool(fields.pop("bias", fields.get("attention_bias", False)))
        return LANGUAGE_MODELS[kind](**{**fields, "attn_implementation": attention})

    def vision(self, attention: str = "sdpa") -> InternVLVisionConfig:
        """The vision tower's configuration as transformers' own class."""
        given, how = self.vision_config, dict[str, Any](attn_implementation=attention)
        return InternVLVisionConfig(
            hidden_size=given["hidden_size"],
            num_hidden_layers=given["num_hidden_layers"],
            num_attention_heads=given["num_attention_heads"],
            intermediate_size=given["intermediate_size"],
            attention_bias=given.get("qkv_bias", False),
            use_qk_norm=given.get("qk_normalization", False),
            hidden_act=given.get("hidden_act", "gelu"),
            norm_type=given.get("norm_type", "layer_norm"),
            layer_norm_eps=given.get("layer_norm_eps", 1e-6),
            image_size=given.get("image_size", 448),
            patch_size=given.get("patch_size", 14),
            layer_scale_init_value=given.get("initializer_factor", 0.1),
            use_mean_pooling=True,  # that is: no norm after the last layer, as in the published tower
            **how,
        )
