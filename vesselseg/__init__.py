"""Fine-tune Sa2VA for blood vessel segmentation: from a LabelMe archive to a Hugging Face model and a report."""

__version__ = "0.1.0"
