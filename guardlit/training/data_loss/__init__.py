"""The flow-matching loss on images: which pairs an update gets, their latents, and the loss. Imports data, rounds."""
