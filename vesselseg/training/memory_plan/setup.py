"""The settings of a config that determine the memory of a training."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from deepspeed.runtime.zero.config import DeepSpeedZeroConfig
from deepspeed.runtime.zero.offload_config import OffloadDeviceEnum

from vesselseg.config.settings import Loader, Schedule, Validation, read_section
from vesselseg.models.lora import Trainable


@dataclass(frozen=True)
class Setup:
    """A training on `gpus` processes. on_gpu: False for a run on the CPU. values: the whole checked config."""

    values: Mapping[str, Any]
    gpus: int
    on_gpu: bool = True

    @property
    def sa2va(self) -> Mapping[str, Any]:
        """Arguments of build_model."""
        return self.values["model"]["sa2va"]

    @property
    def zero(self) -> DeepSpeedZeroConfig:
        """DeepSpeed's own reading of its section, with its defaults."""
        return DeepSpeedZeroConfig(**dict(self.values["strategy"].get("zero_optimization") or {}))

    @property
    def stage(self) -> int:
        """ZeRO stage, 1 to 3."""
        return int(self.zero.stage)

    @property
    def whole_layers(self) -> bool:
        """Whether ZeRO-3 gathers a decoder layer's weights at once."""
        return self.stage == 3 and bool(self.values["strategy"]["whole_layers"])

    @property
    def optimizer_on_host(self) -> bool:
        """Whether optimizer states live in main memory."""
        offload = self.zero.offload_optimizer
        return offload is not None and offload.device != OffloadDeviceEnum.none

    @property
    def weights_on_host(self) -> bool:
        """Whether each GPU's share of the weights lives in main memory (ZeRO-3)."""
        offload = self.zero.offload_param
        return self.stage == 3 and offload is not None and offload.device != OffloadDeviceEnum.none

    @property
    def schedule(self) -> Schedule:
        """Micro-batch, accumulation and length."""
        return read_section(self.values, "schedule")

    @property
    def loader(self) -> Loader:
        """Loader processes."""
        return read_section(self.values, "loader")

    @property
    def validation(self) -> Validation:
        """Validation during training."""
        return read_section(self.values, "validation")

    @property
    def bytes_per_weight(self) -> int:
        """2 in bf16, 4 in float32."""
        precision = self.values["precision"]
        return 2 if precision == "bf16" or (precision == "auto" and self.on_gpu) else 4

    @property
    def llm(self) -> str:
        """Training of the language model: lora, full or frozen."""
        return Trainable(**(self.sa2va.get("trainable") or {})).llm

    @property
    def fused(self) -> bool:
        """Whether the adapted decoder is computed by `models.fused_decoder`."""
        setting = self.sa2va["fused"]
        if self.llm != "lora" or setting is False:
            return False
        return setting is True or (self.on_gpu and self.stage < 3)

    @property
    def embedding_on_host(self) -> bool:
        """Whether the frozen embedding table may be moved to main memory."""
        return bool(self.sa2va["embedding_on_host"]) and self.stage < 3 and self.on_gpu

    @property
    def quantised(self) -> bool:
        """Whether the decoder's frozen layers are in 4 bits."""
        return self.sa2va["quantise"] == "nf4"

    @property
    def activations_on_host(self) -> bool:
        """Whether the inputs of recomputed layers are kept in main memory."""
        return bool(self.sa2va["activations_on_host"])

    @property
    def store(self) -> str | None:
        """Where the frozen encoders' outputs are stored: `disk`, `memory`, or None."""
        return read_section(self.values, "features").store

    @property
    def views_per_image(self) -> int:
        """Augmented views per image in that store."""
        return int(read_section(self.values, "features").variants)

    def recomputed(self, layers: int) -> int:
        """Number of decoder layers that are recomputed and keep only their input."""
        setting = self.sa2va["gradient_checkpointing"]
        return layers * int(setting) if isinstance(setting, bool) else min(layers, int(setting))
