"""What models are compared with: a Frangi filter, a U-Net, and anyone's masks."""
