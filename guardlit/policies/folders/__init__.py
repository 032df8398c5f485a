"""Files of a policy: pipeline folders, their components, cached embeddings. Imports errors, types, assets, devices."""
