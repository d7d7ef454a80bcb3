"""All that knows mmengine, xtuner and deepspeed."""
