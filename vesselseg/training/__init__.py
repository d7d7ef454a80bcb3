"""All that knows mmengine, xtuner and deepspeed: runs, checkpoints, memory plan, logs."""
