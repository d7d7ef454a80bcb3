"""InternVL3 with SAM2-L; a leaf sets model.sa2va.base. Defaults: build_model, Lora, Trainable and TotalLoss."""

from vesselseg.training.training_model import TrainingModel

model = dict(
    type=TrainingModel,
    sa2va=dict(
        base="weights/InternVL3-8B",
        sam2=dict(checkpoint="weights/sam2_hiera_large.pt"),
        lora=dict(),
        trainable=dict(),
        max_tiles=1,
        gradient_checkpointing=True,
        embedding_on_host=True,
    ),
    loss=dict(),
)
