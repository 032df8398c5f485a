"""GARDO's advantage by loops in float64."""

from __future__ import annotations

import numpy as np


def nearest(features: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """1 - cos to the most similar other of the group, by loops in float64; NaN where there is none."""
    out = np.full(len(ids), np.nan)
    for i, one in enumerate(features):
        others = [j for j in range(len(ids)) if j != i and ids[j] == ids[i] and np.isfinite(features[j]).all()]
        if others and np.isfinite(one).all():
            cosines = [one @ features[j] / np.linalg.norm(one) / np.linalg.norm(features[j]) for j in others]
            out[i] = min(1 - c for c in cosines)
    return out


def gardo(rewards: np.ndarray, features: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """GARDO's advantage without a deviation, group by group; failed images have NaN."""
    out = np.zeros(len(ids))
    near = nearest(np.where(np.isfinite(rewards)[:, None], features, np.nan), ids)
    for g in np.unique(ids):
        rows = [i for i in np.flatnonzero(ids == g) if np.isfinite(rewards[i])]
        known = [near[i] for i in rows if np.isfinite(near[i])]
        for i in rows:
            out[i] = rewards[i] - np.mean([rewards[j] for j in rows])
            if out[i] > 0 and np.isfinite(near[i]) and np.mean(known) > 0:
                out[i] *= near[i] / np.mean(known)
    return out
