"""Seeds of documents, and several replies to one."""

import pytest

from nsa_tasks.sampling import document_seed, mean_scores


def test_a_documents_seed_is_frozen_and_its_own():
    # As derived before this function had a name: a change here changes every published sample.
    assert document_seed(0, "needle_single", 4096, 0, 0) == 8464617037810499964
    seeds = {
        document_seed(s, t, i, j) for s in (0, 1) for t in ("a", "b") for i in range(3) for j in range(3)
    }
    assert len(seeds) == 36
    assert document_seed(0, "a", 1, 11) != document_seed(0, "a", 11, 1)


def test_a_documents_score_is_the_mean_over_its_replies():
    assert mean_scores([{"score": 1.0, "parsed": 1.0}, {"score": 0.0, "parsed": 1.0}]) == {
        "score": 0.5,
        "parsed": 1.0,
    }
    for bad in ([], [{"score": 1.0}, {"other": 1.0}]):
        with pytest.raises(ValueError, match="at least one reply, all with the same metrics"):
            mean_scores(bad)
