"""The model card beside exported weights; imports what `training` may import, and huggingface_hub."""
