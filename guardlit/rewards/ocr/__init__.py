"""OCR: whether an image shows the text its prompt quotes. Imports devices, errors, files, types, modules of rewards."""

from guardlit.rewards.ocr.scorer import OCR as OCR
