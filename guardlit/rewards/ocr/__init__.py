"""OCR: whether an image shows the text that its prompt quotes. Imports errors, files, types, the modules of rewards."""

from guardlit.rewards.ocr.scorer import OCR as OCR
