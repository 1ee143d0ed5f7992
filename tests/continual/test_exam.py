"""What a learner knows of every experience, counted."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from fedkd.continual.exam import Marks, examine, report
from fedkd.distill.trainer import Labelled


class Says(nn.Module):
    """Logits that are the inputs themselves."""

    def forward(self, x: Tensor) -> Tensor:
        return x


X = torch.tensor([[9.0, 0, 0, 0], [0, 9, 8, 0], [0, 9, 8, 0], [0, 0, 0, 9]])
Y = torch.tensor([0, 1, 2, 3])


def test_answers_are_counted_by_experience_and_class() -> None:
    marks = examine(Says(), [Labelled(X, Y)], [(0, 1), (2, 3)], told=False)
    assert marks.right.tolist() == [[1, 1, 0, 0], [0, 0, 0, 1]] and marks.asked.tolist() == [[1, 1, 0, 0], [0, 0, 1, 1]]
    assert marks.accuracy.tolist() == [1.0, 0.5] and marks.by_class.tolist() == [1, 1, 0, 1]
    again = Marks.from_record(marks.record())
    assert np.array_equal(again.right, marks.right) and np.array_equal(again.asked, marks.asked)


def test_a_task_that_is_told_is_chosen_from_its_own_classes() -> None:
    marks = examine(Says(), [Labelled(X, Y)], [(0, 1), (2, 3)], told=True)
    assert marks.accuracy.tolist() == [1.0, 1.0]


def test_each_domain_is_tested_as_it_looks() -> None:
    turned = Labelled(X.flip(1), Y)
    marks = examine(Says(), [Labelled(X, Y), turned], [(0, 1, 2, 3)] * 2, told=False)
    assert marks.accuracy.tolist() == [0.75, 0.25]


def test_an_experience_without_a_test_counts_as_unknown() -> None:
    marks = examine(Says(), [Labelled(X[:1], Y[:1])], [(0, 1), (2, 3)], told=False)
    assert marks.accuracy.tolist() == [1.0, 0.0]


def test_a_report_has_every_measure_and_forgetting_by_class() -> None:
    start = Marks(np.zeros((2, 2), int), np.array([[4, 0], [0, 4]]))
    rows = [Marks(np.array(right), start.asked) for right in ([[4, 0], [0, 0]], [[1, 0], [0, 4]])]
    found = report(rows, start, [(0,), (1,)])
    assert found["r"] == [[1.0, 0.0], [0.25, 1.0]] and found["forgetting"] == 0.75 and found["bwt"] == -0.75
    assert found["by_class"] == [[1.0, 0.0], [0.25, 1.0]] and found["class_forgetting"] == [0.75, None]
