"""OCR: whether an image shows the text that its prompt quotes. Imports rewards/ alone."""

from guardlit.rewards.ocr.scorer import OCR as OCR
