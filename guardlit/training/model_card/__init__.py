"""The model card next to exported weights; imports what `training` may import, and huggingface_hub."""
