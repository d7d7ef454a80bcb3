"""All that knows mmengine, xtuner and deepspeed: runs, checkpoints, memory plan, logs."""

from vesselseg.models.hub_kernels import keep_hub_kernels_out

keep_hub_kernels_out()  # mmengine imports bitsandbytes, which would fetch code
