"""DeepSpeed through xtuner's strategy: on GPUs and CPUs, with one or more processes, with partitioned weights."""

from __future__ import annotations

import contextlib
import functools
import os
import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import deepspeed
import mmengine.dist
import torch
from deepspeed.ops.adam import DeepSpeedCPUAdam
from deepspeed.utils import set_z3_leaf_modules
from mmengine._strategy.deepspeed import DeepSpeedOptimWrapper
from mmengine.logging import MMLogger
from mmengine.registry import OPTIMIZERS
from torch import Tensor, nn

from vesselseg.errors import UserError
from vesselseg.models.host_embedding import embedding_to_host
from vesselseg.registry import STRATEGIES, build
from vesselseg.training.checkpoint import load_trained
from vesselseg.training.feature_filling import encoders_on_device
from vesselseg.training.flat_parameters import FlatParameters, is_worth_flattening
from vesselseg.training.xtuner_imports import DeepSpeedStrategy

DEEPSPEED_OPTIMIZERS = ("DeepSpeedCPUAdam", "FusedAdam", "FusedLamb", "OnebitAdam", "OnebitLamb", "ZeroOneAdam")
PRECISION_TYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@STRATEGIES.register_module()
class VesselStrategy(DeepSpeedStrategy):
    """xtuner's DeepSpeedStrategy for a model that is mostly frozen.

    zero_optimization, activation_checkpointing, aio: DeepSpeed's own settings of these names.
    precision: `auto` (bf16 on a GPU, fp32 on a CPU), `bf16` or `fp32`.
    whole_layers: ZeRO-3 gathers a decoder layer's weights at once; else matrix by matrix, which is DeepSpeed's default.
    The optimizer is fused AdamW, or DeepSpeed's CPU Adam (AdamW rule) where optimizer states are offloaded.
    """

    _log_dir: str
    config_targets: ClassVar[dict[str, Any]] = {
        "zero_optimization": "deepspeed.runtime.zero.config.DeepSpeedZeroConfig",
    }

    def __init__(self, *, precision: str = "auto", whole_layers: bool = True, **settings: Any) -> None:
        self.device = local_device()
        self.precision = resolve_precision(precision, self.device)
        self.whole_layers = whole_layers
        # cuDNN plans attention again for every sequence length, which takes longer than a step's arithmetic.
        torch.backends.cuda.enable_cudnn_sdp(False)
        if self.precision == "bf16":
            settings["bf16"] = {"enabled": True, "check_grad_overflow": True}
        if _offloads_optimizer(settings.get("zero_optimization")):
            require_compiler()
        for (
            name
        ) in DEEPSPEED_OPTIMIZERS:  # mmengine registers them for every strategy, and fails if they are registered
            OPTIMIZERS.module_dict.pop(name, None)
        super().__init__(**settings)
        # While this object exists, transformers partitions weights itself when it builds a model; here `build_model`
        # does that, for the parts that need it.
        self.hf_deepspeed_config = None
        self.flat: FlatParameters | None = None
        self.load_from: str | None = None  # checkpoint whose trained weights the model starts from
        self._remove_log_folder()
        self._log_dir = self.work_dir

    @property
    def stage(self) -> int:
        """ZeRO stage, 1 to 3."""
        return int(self.config["zero_optimization"]["stage"])

    @property
    def dtype(self) -> torch.dtype:
        """Type of weights and activations."""
        return PRECISION_TYPES[self.precision]

    def build_model(self, model: nn.Module | dict) -> nn.Module:
        """Build from a dict in the run's precision: on the device, or, for ZeRO-3, partitioned from the start."""
        if isinstance(model, nn.Module):
            return model
        placement: dict[str, Any] = {"device": self.device, "dtype": self.dtype}
        if self.stage == 3:
            placement.update(device="cpu", construction=self._partitioned, assign=assign_partitioned)
        built = build({**model, **placement})
        if self.load_from is not None:
            load_trained(built.sa2va, Path(self.load_from))
        if self.stage == 3 and self.whole_layers:
            # Hooks around every matrix take longer than the transfers they start.
            set_z3_leaf_modules(built, [type(built.sa2va.language_model.model.layers[0])])
        if self.stage < 3 and built.sa2va.embedding_on_host:
            embedding_to_host(built.sa2va)
        return built

    def ready_to_predict(self) -> AbstractContextManager:
        """Within the context, a Predictor can use the model.

        Encoders that training does not need are moved back to the device; weights that are read outside of their
        module's forward are gathered (ZeRO-3).
        """
        sa2va = self.model.model.module.sa2va
        if self.stage < 3:
            return encoders_on_device(sa2va)
        return deepspeed.zero.GatheredParameters(_read_outside_forward(sa2va))

    def build_optim_wrapper(self, optim_wrapper: Any, model: nn.Module | None = None) -> DeepSpeedOptimWrapper:
        """The optimizer of the trainable parameters. optim_wrapper: lr, betas and weight_decay."""
        named = [(name, one) for name, one in model.named_parameters() if one.requires_grad] if model else []
        if not named:
            raise UserError("nothing trains: every setting of model.sa2va.trainable is off; switch one on")
        parameters = [parameter for _, parameter in named]
        if self.stage in (1, 2) and is_worth_flattening(sum(one.numel() for one in parameters)):
            self.flat = FlatParameters(named)
            parameters = self.flat.flat_buffers
        if _offloads_optimizer(self.config.get("zero_optimization")):
            optimizer = DeepSpeedCPUAdam(parameters, adamw_mode=True, **optim_wrapper)
        else:
            optimizer = torch.optim.AdamW(parameters, fused=self.device.type == "cuda", **optim_wrapper)
        return DeepSpeedOptimWrapper(optimizer)

    def build_logger(self, *_: Any, **__: Any) -> MMLogger:
        """mmengine's logger: errors only, and no log file."""
        return MMLogger.get_instance(self.experiment_name, logger_name="mmengine", log_level="ERROR")

    def _remove_log_folder(self) -> None:
        """Remove mmengine's log folder, which every process has created by now; everything is in the work folder."""
        mmengine.dist.barrier()
        with contextlib.suppress(FileNotFoundError):  # another process was first
            Path(self._log_dir).rmdir()

    def _setup_distributed(self, launcher: str | None = None, backend: str | None = None, **_: Any) -> None:
        """nccl on GPUs, gloo on CPUs, through DeepSpeed, which keeps its own communication state."""
        if self.device.type == "cuda":
            torch.cuda.set_device(self.device)
        # DeepSpeed would compile its shared-memory all-reduce with g++ at the first start; gloo does not need it.
        deepspeed.ops.__compatible_ops__["deepspeed_shm_comm"] = False
        deepspeed.init_distributed(
            dist_backend=backend or ("nccl" if self.device.type == "cuda" else "gloo"), verbose=False
        )

    def _init_model_weights(self, model: nn.Module) -> nn.Module:
        """Do nothing: weights are read or drawn while the model is built; mmengine would draw them again."""
        return model

    def _wrap_model(self, model: nn.Module) -> Any:
        """Run deepspeed.initialize, and restore the buffers that it casts: rotary frequencies need their precision."""
        buffers = {name: buffer.clone() for name, buffer in model.named_buffers() if buffer.is_floating_point()}
        with self.flat.registered_in(model) if self.flat is not None else contextlib.nullcontext():
            wrapper = super()._wrap_model(model)
        for name, buffer in buffers.items():
            owner, _, leaf = name.rpartition(".")
            model.get_submodule(owner)._buffers[leaf] = placed = buffer.to(self.device)
            torch.distributed.broadcast(placed, 0)  # a buffer may be random: the same one everywhere
        # Gradients that overflow skip the step on every process and leave the weights unchanged.
        if self.stage in (1, 2):
            wrapper.model.optimizer.check_grad_overflow = True
        wrapper.model.flat_parameters = self.flat
        if self.stage == 3:
            for parameter in _read_outside_forward(wrapper.model.module.sa2va):
                deepspeed.zero.register_external_parameter(model, parameter)
        return wrapper

    def _partitioned(self) -> AbstractContextManager:
        # Without a dtype it uses the config's; with one, it prefers fp16 or bf16 wherever the device supports them.
        return deepspeed.zero.Init(config_dict_or_path=self.config)


def local_device() -> torch.device:
    """This process's GPU, or the CPU where there is none."""
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", "0")))
    return torch.device("cpu")


def resolve_precision(precision: str, device: torch.device) -> str:
    """`auto` -> the device's native precision; raises UserError for a GPU without bf16."""
    if device.type == "cuda" and precision != "fp32" and not torch.cuda.is_bf16_supported(including_emulation=False):
        raise UserError(
            f"{torch.cuda.get_device_name(device)} does not support bf16, which needs compute capability 8.0 or "
            "newer (RTX 30, A100). Set precision=fp32 to train on this one, with twice the memory"
        )
    if precision == "auto":
        return "bf16" if device.type == "cuda" else "fp32"
    return precision


@functools.cache
def require_compiler() -> None:
    """Raise UserError if the CPU optimizer of an offload recipe cannot be compiled."""
    if shutil.which("g++") is None and shutil.which("c++") is None:
        raise UserError(
            "this config keeps the optimizer on the CPU, and DeepSpeed compiles its CPU Adam on first use, but no C++ "
            "compiler (g++) is on PATH; install one (Debian, Ubuntu: apt-get install g++) or use a config without "
            "offload"
        )


def _offloads_optimizer(zero: dict[str, Any] | None) -> bool:
    offload = (zero or {}).get("offload_optimizer") or {}
    return offload.get("device", "none") not in ("none", None)


def _read_outside_forward(sa2va: Any) -> list[nn.Parameter]:
    """Weights of modules whose forward is never called, so that DeepSpeed does not gather them.

    They are small: rows of the new tokens, SAM2's embeddings for missing memory and missing prompts.
    """
    sam2 = sa2va.grounding.sam2
    return [*sa2va.new_tokens.parameters(), *sam2.parameters(recurse=False), *sam2.sam_prompt_encoder.parameters()]


def assign_partitioned(target: Tensor, tensor: Tensor) -> None:
    """Copy a tensor that every process has read into a parameter that is partitioned over the processes."""
    if not hasattr(target, "ds_id"):
        target.copy_(tensor)
        return
    with deepspeed.zero.GatheredParameters([target], modifier_rank=0):
        if torch.distributed.get_rank() == 0:
            target.data.copy_(tensor)
