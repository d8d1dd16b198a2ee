"""Items that the same users clicked: the co-occurrence baseline of candidate sources.

Shapes: U users, I items, K places of a list.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import csr_array

from pipeline.exact_search import NONE

USERS = 512


def co_occurrence_lists(
    clicks: tuple[NDArray[np.int64], NDArray[np.int64]],
    shape: tuple[int, int],
    excluded: tuple[NDArray[np.int64], NDArray[np.int64]],
    width: int,
) -> NDArray[np.int64]:
    """Return each user's items (U, K) by the sum over clicked items of the cosine between both items' users.

    A pair of items has the users of both over the root of the product of their users (Sarwar et al. 2001, section
    3.1.1, of clicks). A user without a click, and items that share no user with a clicked one, have no place: -1. Ties
    go to the smaller number.

    Args:
        clicks: users' and items' numbers, which may repeat.
        shape: number of users and of items.
        excluded: users' and items' numbers that are not listed.
        width: places of a list.
    """
    ones = csr_array((np.ones(len(clicks[0])), clicks), shape=shape)
    ones.data[:] = 1.0
    scaled = ones * (1 / np.sqrt(np.maximum(np.asarray(ones.sum(axis=0)).ravel(), 1.0)))
    alike = csr_array(scaled.T @ scaled)
    alike.setdiag(0.0)  # that an item was clicked is no reason to list it
    left_out = csr_array((np.ones(len(excluded[0])), excluded), shape=shape)
    parts = []
    for start in range(0, shape[0], USERS):
        rows = slice(start, start + USERS)
        scores = (ones[rows] @ alike).toarray()
        scores[left_out[rows].toarray() > 0] = 0.0
        best = np.argsort(-scores, axis=1, kind="stable")[:, :width]
        parts.append(np.where(np.take_along_axis(scores, best, axis=1) > 0, best, NONE))
    return np.concatenate(parts)
