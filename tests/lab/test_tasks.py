"""A task has the images of its classes, all of them, under labels from 0."""

import re

import pytest
import torch

from lab.tasks import halves, of_classes


def test_a_task_has_all_images_of_its_classes_under_new_labels(digits):
    task = of_classes(digits, [7, 2])
    for own, whole in ((task.train, digits.train), (task.held_out, digits.held_out), (task.test, digits.test)):
        for new, old in ((0, 7), (1, 2)):
            assert torch.equal(own.images[own.labels == new], whole.images[whole.labels == old])
        assert len(own.labels) == int(((whole.labels == 7) | (whole.labels == 2)).sum())
    assert task.classes == 2 and task.fingerprint != digits.fingerprint
    assert (task.mean, task.std) == (digits.mean, digits.std), "networks of two tasks see pixels alike"


def test_halves_share_out_every_image(digits):
    first, second = halves(digits)
    assert first.classes == second.classes == 5
    assert len(first.test.labels) + len(second.test.labels) == len(digits.test.labels)


@pytest.mark.parametrize(
    ("classes", "message"),
    [([10], "has classes 0 to 9, and no 10"), ([1, 1], "each once: got [1, 1]"), ([], "each once: got []")],
)
def test_classes_that_make_no_task_are_refused(digits, classes, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        of_classes(digits, classes)
