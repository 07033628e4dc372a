"""Tasks: equal on every rank, learnable, and shared out without remainder."""

from __future__ import annotations

import pytest

torch = pytest.importorskip("torch")

from engines.rdma.training.data import Images, Reversal, SentencePairs, TokenStream  # noqa: E402 - torch is optional

TASKS = [
    Images(16, 10),
    Images(14, 10, channels=1, flat=True),
    TokenStream(64, 12),
    Reversal(16, 6),
    SentencePairs(256, 8),
    SentencePairs(256, 8, joined=True),
]


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_a_batch_is_decided_by_its_number_and_the_seed(task):
    same, again = task.batch(3, 8, seed=1), task.batch(3, 8, seed=1)
    for a, b in zip((*same.inputs, same.targets), (*again.inputs, again.targets), strict=True):
        assert torch.equal(a, b)
    for other in (task.batch(4, 8, seed=1), task.batch(3, 8, seed=2)):
        assert not torch.equal(same.inputs[0], other.inputs[0])


@pytest.mark.parametrize("task", TASKS, ids=str)
def test_shares_put_together_are_the_batch(task):
    batch = task.batch(0, 6, seed=0)
    shares = [batch.share(index, 3) for index in range(3)]
    for position, whole in enumerate(batch.inputs):
        assert torch.equal(torch.cat([share.inputs[position] for share in shares]), whole)
    assert torch.equal(torch.cat([share.targets for share in shares]), batch.targets)


def test_unequal_shares_are_refused():
    with pytest.raises(ValueError, match="a batch of 6 samples cannot be cut into 4 equal shares"):
        Images(8, 2).batch(0, 6, seed=0).share(0, 4)


def test_images_of_a_class_are_nearer_to_each_other_than_to_other_classes():
    batch = Images(16, 4, noise=0.2).batch(0, 64, seed=0)
    images, labels = batch.inputs[0].flatten(1), batch.targets
    distance = torch.cdist(images, images) + torch.eye(64) * 1e9
    assert (labels[distance.argmin(1)] == labels).float().mean() > 0.9


def test_a_token_has_few_successors_in_every_batch():
    task = TokenStream(64, 32)
    seen = {}
    for number in range(4):
        batch = task.batch(number, 16, seed=0)
        for now, then in zip(batch.inputs[0].flatten().tolist(), batch.targets.flatten().tolist(), strict=True):
            seen.setdefault(now, set()).add(then)
    assert max(map(len, seen.values())) <= task.successors


def test_a_translation_is_the_source_backwards_word_by_word():
    batch = Reversal(16, 6).batch(0, 32, seed=0)
    source, shown = batch.inputs
    dictionary = {}
    pairs = zip(source.flip(1).flatten().tolist(), batch.targets.flatten().tolist(), strict=True)
    for word, translation in pairs:
        assert dictionary.setdefault(word, translation) == translation
    assert len(set(dictionary.values())) == len(dictionary)
    assert torch.equal(shown[:, 1:], batch.targets[:, :-1])
    assert not shown[:, 0].any()
    assert batch.targets.min() > 0


def test_pairs_of_one_topic_use_words_that_other_pairs_of_it_use():
    task = SentencePairs(64, 16, topics=4)
    batch = task.batch(0, 64, seed=0)
    first, second = batch.inputs
    shared = torch.tensor([bool(set(a.tolist()) & set(b.tolist())) for a, b in zip(first, second, strict=True)])
    assert torch.equal(shared, batch.targets == 1)
    assert 0.25 < batch.targets.float().mean() < 0.75
