"""What config.json and the settings in a checkpoint may hold: types and ranges, checked before any library sees them.

Ranges are those of published models with room above them; they keep a damaged file from taking all memory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from vesselseg.errors import WeightsError
from vesselseg.models.checkpoints.resolved_names import forbidden, shown

LISTED = 5  # findings in a message
Count = Annotated[int, Field(ge=1, le=65_536)]
Layers = Annotated[int, Field(ge=1, le=512)]
Width = Annotated[int, Field(ge=1, le=16_384)]
Pixels = Annotated[int, Field(ge=14, le=4096)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0, le=1e12)]
TokenId = Annotated[int, Field(ge=0, le=10_000_000)]
TokenIds = TokenId | Annotated[list[TokenId], Field(max_length=100)]
Text = Annotated[str, Field(max_length=500)]
Name = Annotated[str, Field(min_length=1, max_length=100)]  # `resolved_names` says which
Texts = Annotated[list[Text], Field(max_length=100)]
Scalar = bool | int | float | str | None


class Part(BaseModel):
    """An object of a JSON file. Types are strict; names that are not listed may hold anything and are not used."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, protected_namespaces=())


class Exact(Part):
    """An object whose names are all known."""

    model_config = ConfigDict(extra="forbid")


class LanguageModel(Part):
    """llm_config. What a folder leaves out is transformers' own default."""

    architectures: Texts | None = None
    vocab_size: Annotated[int, Field(ge=1, le=10_000_000)] = 151_936
    hidden_size: Width = 4096
    intermediate_size: Annotated[int, Field(ge=1, le=262_144)] = 22_016
    num_hidden_layers: Layers = 32
    hidden_act: Name = "silu"
    num_attention_heads: Annotated[int, Field(ge=1, le=1024)] = 32
    num_key_value_heads: Annotated[int, Field(ge=1, le=1024)] | None = None
    head_dim: Annotated[int, Field(ge=2, le=1024)] | None = None
    max_position_embeddings: Annotated[int, Field(ge=1, le=2**30)] = 32_768
    initializer_range: Annotated[float, Field(ge=0, le=10)] = 0.02
    rms_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6
    use_cache: bool = True
    tie_word_embeddings: bool = False
    rope_theta: Positive = 10_000.0
    rope_scaling: dict[str, Annotated[float, Field(ge=0, le=1e12)] | Text | bool | None] | None = None
    attention_bias: bool = False
    bias: bool = False
    attention_dropout: Fraction = 0.0
    use_sliding_window: bool = False
    sliding_window: Annotated[int, Field(ge=1, le=2**30)] | None = None
    max_window_layers: Annotated[int, Field(ge=0, le=65_536)] = 28
    layer_types: Annotated[list[Literal["full_attention", "sliding_attention"]], Field(max_length=512)] | None = None
    bos_token_id: TokenIds | None = None
    eos_token_id: TokenIds | None = None
    pad_token_id: TokenId | None = None

    @model_validator(mode="after")
    def _fits(self) -> LanguageModel:
        heads, groups = self.num_attention_heads, self.num_key_value_heads or self.num_attention_heads
        if self.head_dim is None and (self.hidden_size % heads or self.hidden_size // heads % 2):
            raise ValueError(f"hidden_size {self.hidden_size} is no even number of values for each of {heads} heads")
        if heads % groups:
            raise ValueError(f"num_attention_heads {heads} is no multiple of num_key_value_heads {groups}")
        if self.layer_types is not None and len(self.layer_types) != self.num_hidden_layers:
            raise ValueError(f"layer_types has {len(self.layer_types)} entries for {self.num_hidden_layers} layers")
        if self.pad_token_id is not None and self.pad_token_id >= self.vocab_size:
            raise ValueError(f"pad_token_id {self.pad_token_id} is outside of the vocabulary")
        if self.rope_scaling:
            kind = self.rope_scaling.get("rope_type", self.rope_scaling.get("type", "default"))
            problems = forbidden({"rope_type": kind})
            needed = ["factor"] if kind != "default" else []
            needed += ["low_freq_factor", "high_freq_factor", "original_max_position_embeddings"] * (kind == "llama3")
            problems += [f"lacks {name}" for name in needed if not isinstance(self.rope_scaling.get(name), float | int)]
            if problems:
                raise ValueError(f"rope_scaling: {', '.join(problems)}")
        return self


class TowerSizes(Part):
    """What both layouts of vision_config say alike."""

    hidden_size: Annotated[int, Field(ge=1, le=8192)] = 1024
    num_hidden_layers: Layers = 24
    hidden_act: Name = "gelu"
    num_attention_heads: Annotated[int, Field(ge=1, le=256)] = 16
    intermediate_size: Count = 4096
    norm_type: Literal["layer_norm", "rms_norm"] = "layer_norm"
    layer_norm_eps: Annotated[float, Field(gt=0, le=1)] = 1e-6


class VisionTower(TowerSizes):
    """vision_config of the published layout."""

    architectures: Texts | None = None
    qkv_bias: bool = False
    qk_normalization: bool = False
    image_size: Pixels = 448
    patch_size: Annotated[int, Field(ge=1, le=256)] = 14
    initializer_factor: Annotated[float, Field(ge=0, le=100)] = 0.1

    @model_validator(mode="after")
    def _fits(self) -> VisionTower:
        if self.hidden_size % self.num_attention_heads:
            raise ValueError(f"hidden_size {self.hidden_size} is no multiple of {self.num_attention_heads} heads")
        if self.image_size % self.patch_size:
            raise ValueError(f"image_size {self.image_size} is no multiple of patch_size {self.patch_size}")
        return self


Pair = Annotated[list[Annotated[int, Field(ge=1, le=4096)]], Field(min_length=2, max_length=2)]


class HfVisionTower(TowerSizes):
    """vision_config of transformers' own layout."""

    attention_bias: bool = False
    use_qk_norm: bool = False
    image_size: Pixels | Pair = 448
    patch_size: Annotated[int, Field(ge=1, le=256)] | Pair = 14


class Trunk(Exact):
    """Sizes of SAM2's image encoder."""

    embed_dim: Annotated[int, Field(ge=1, le=1024)] | None = None
    num_heads: Annotated[int, Field(ge=1, le=64)] | None = None
    stages: Annotated[list[Annotated[int, Field(ge=1, le=100)]], Field(min_length=4, max_length=4)] | None = None
    global_att_blocks: Annotated[list[Annotated[int, Field(ge=0, le=400)]], Field(max_length=400)] | None = None
    window_pos_embed_bkg_spatial_size: Pair | None = None
    window_spec: Annotated[list[Annotated[int, Field(ge=1, le=256)]], Field(min_length=4, max_length=4)] | None = None
    drop_path_rate: Fraction | None = None

    @model_validator(mode="after")
    def _fits(self) -> Trunk:
        if self.embed_dim and self.num_heads and self.embed_dim % self.num_heads:
            raise ValueError(f"embed_dim {self.embed_dim} is no multiple of num_heads {self.num_heads}")
        return self


Channels = Annotated[list[Annotated[int, Field(ge=1, le=2048)]], Field(min_length=1, max_length=12)]
Depth = Annotated[int, Field(ge=1, le=64)]


class VesselHead(Exact):
    """Options of the vessel head, see `VesselHeadOptions`."""

    channels: Channels = []
    depth: Depth | Annotated[list[Depth], Field(max_length=12)] = 1
    decoder_depth: Depth | Annotated[list[Depth], Field(max_length=12)] = 1
    object_channels: Channels = []
    residual: bool = True
    norm: Text = "group"
    side: Pixels | None = None
    at_once: Count | None = None
    compile: bool = False
    modulated: bool = True
    skips: bool = True
    sam2: bool = True


class Grounding(Part):
    """grounding_config, and `sam2` in a checkpoint's settings."""

    variant: Literal["tiny", "small", "base_plus", "large"] | None = None
    version: Literal["2.0", "2.1"] | None = None
    image_size: Annotated[int, Field(ge=32, le=4096, multiple_of=32)] | None = None
    trunk: Trunk | None = None
    fine_masks: Literal["features", "pixels"] | None = None
    vessel_head: VesselHead | None = None


class Answers(Part):
    """What an exported or distilled folder says about its answers."""

    architectures: Texts | None = None
    grounding_config: Grounding | None = None
    threshold: Fraction | None = None
    mask_temperature: Annotated[float, Field(gt=0, le=1e6)] | None = None
    training_images: str | None = None


class Published(Answers):
    """config.json of the published layout."""

    llm_config: LanguageModel
    vision_config: VisionTower
    template: Text | None = None
    force_image_size: Pixels | None = None
    dynamic_image_size: bool | None = None
    min_dynamic_patch: Annotated[int, Field(ge=1, le=256)] | None = None
    max_dynamic_patch: Annotated[int, Field(ge=1, le=256)] | None = None
    use_thumbnail: bool | None = None
    downsample_ratio: Annotated[float, Field(ge=0.125, le=1)] | None = None
    tie_word_embeddings: bool | None = None
    new_token_start: TokenId | None = None
    image_token_id: TokenId | None = None
    default_phrase: Text | None = None
    training_loss: dict[Text, Scalar] | None = None

    @model_validator(mode="after")
    def _fits(self) -> Published:
        side, patch, ratio = self.force_image_size or 448, self.vision_config.patch_size, self.downsample_ratio or 0.5
        if 1 / ratio % 1 or side % (patch * round(1 / ratio)):
            raise ValueError(
                f"patches of {patch} pixels, joined by downsample_ratio {ratio}, do not fill force_image_size {side}"
            )
        if (self.min_dynamic_patch or 1) > (self.max_dynamic_patch or 12):
            raise ValueError("min_dynamic_patch is larger than max_dynamic_patch")
        return self


class HfLayout(Part):
    """config.json of transformers' own layout."""

    text_config: LanguageModel
    vision_config: HfVisionTower
    downsample_ratio: Annotated[float, Field(ge=0.125, le=1)] = 0.5


class Prompted(Answers):
    """config.json of a distilled folder."""

    phrases: Annotated[list[Annotated[str, Field(min_length=1, max_length=500)]], Field(min_length=1, max_length=256)]
    head_width: Annotated[int, Field(ge=0, le=4096)] = 0


class Sam2Settings(Grounding):
    """`sam2` in a checkpoint's settings, with the file that it was started from."""

    model_config = ConfigDict(extra="forbid")
    checkpoint: Annotated[str, Field(max_length=4096)] | None = None


class Adapters(Exact):
    """Fields of `Lora`."""

    r: Annotated[int, Field(ge=1, le=4096)] = 64
    alpha: Annotated[float, Field(gt=0, le=1e6)] = 128
    dropout: Fraction = 0.0
    modules_to_save: list[Text] | tuple[Text, ...] = ()


class BuildSettings(Exact):
    """`model_config` of a training checkpoint: arguments of `build_model`."""

    base: Annotated[str, Field(min_length=1, max_length=4096)]
    sam2: Sam2Settings | None = None
    lora: Adapters | None = None
    trainable: dict[str, bool | Text] | None = None
    max_tiles: Count | None = None
    gradient_checkpointing: bool | Annotated[int, Field(ge=0, le=512)] = False
    activations_on_host: bool = False
    quantise: Literal["nf4", "int8"] | None = None
    attention: Text = "sdpa"
    fused: bool | Literal["auto"] = "auto"
    embedding_on_host: bool = False
    random_weights: bool = False
    device: Any = None
    dtype: Any = None


def check_content(schema: type[BaseModel], content: Any, where: Path | str) -> None:
    """Raise WeightsError with the first findings where a content is not as the schema says."""
    problems = forbidden(content)
    try:
        schema.model_validate(content)
    except ValidationError as error:
        problems += [_described(dict(one)) for one in error.errors(include_url=False)]
    except RecursionError:
        problems.append("nested too deeply")
    if problems:
        more = f"; and {len(problems) - LISTED} more" if len(problems) > LISTED else ""
        raise WeightsError(f"{where}: {'; '.join(problems[:LISTED])}{more}. Download it again or take another model")


def _described(error: dict[str, Any]) -> str:
    # what pydantic says of one kind of a union stands behind the name as if it were part of the path
    path = ".".join(str(part) for part in error["loc"] if not str(part).startswith(("function-", "constrained-")))
    if error["type"] == "value_error":
        return f"{path}: {error['ctx']['error']}" if path else str(error["ctx"]["error"])
    if error["type"] == "missing":
        return f"lacks {path}"
    return f"{path} is {shown(error['input'])}: {error['msg'][0].lower()}{error['msg'][1:]}"
