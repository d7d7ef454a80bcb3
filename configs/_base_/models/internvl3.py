"""InternVL3 with SAM2-L; a leaf sets model.sa2va.base. Weights are looked for below the folder weights/."""

from vesselseg.training.training_model import TrainingModel

model = dict(
    type=TrainingModel,
    sa2va=dict(
        base="weights/InternVL3-8B",
        sam2=dict(
            variant="large",
            version="2.0",
            checkpoint="weights/sam2_hiera_large.pt",
            image_size=1024,
            fine_masks=None,  # "features" or "pixels": masks at twice SAM2's resolution
        ),
        lora=dict(r=64, alpha=128, dropout=0.0),  # dropout=0.1 makes a step a fifth longer and takes 0.8 GiB at 8B
        trainable=dict(
            llm="lora",
            new_tokens=True,
            projector=False,
            seg_projector=True,
            mask_decoder=True,
            high_res_convs=True,
            sam2_encoder=False,
            vision=False,
        ),
        max_tiles=1,
        gradient_checkpointing=True,
        activations_on_host=False,
        quantise=None,
        attention="sdpa",
        fused="auto",
        embedding_on_host=True,
        random_weights=False,
    ),
    loss=dict(
        lm=1.0,
        bce=2.0,
        dice=0.5,
        boundary=0.0,
        tversky=0.0,
        cldice=0.0,
        cldice_iterations=10,
        skeleton_recall=0.0,
        thin_weight=0.0,
        mask_target="area",
    ),
)
