"""The box that actions stay in, and units of it."""

from __future__ import annotations

import planner_cases as cases
import torch
from grasp_planner.action_box import ActionBox
from grasp_planner.inputs import check_problem


def box(low: object, high: object) -> ActionBox:
    config = cases.config(action_low=low, action_high=high)
    return ActionBox(check_problem(cases.arithmetic, config, *cases.problems(1), None, None))


def test_units_go_there_and_back() -> None:
    bounded = box((2.0, -1.0), (3.0, 5.0))
    assert bounded.centre.tolist() == [2.5, 2.0]
    assert bounded.half_width.tolist() == [0.5, 3.0]
    actions = torch.tensor([[2.0, 5.0], [2.5, 2.0], [2.75, -1.0]])
    units = bounded.to_units(actions)
    torch.testing.assert_close(units, torch.tensor([[-1.0, 1.0], [0.0, 0.0], [0.5, -1.0]]))
    torch.testing.assert_close(bounded.from_units(units), actions)
    beyond = torch.tensor([[-3.0, 3.0]])
    assert bounded.clip_units(beyond).tolist() == [[-1.0, 1.0]]
    assert bounded.from_units(beyond).tolist() == [[2.0, 5.0]]


def test_an_open_box_and_one_point_have_a_unit_of_1() -> None:
    open_above = box((1.0, 0.25), (torch.inf, 0.25))
    assert open_above.centre.tolist() == [1.0, 0.25]
    assert open_above.half_width.tolist() == [1.0, 1.0]
    free = box(None, None)
    assert free.centre.tolist() == [0.0, 0.0]
    assert free.clip(torch.tensor([1e9, -1e9])).tolist() == [1e9, -1e9]


def test_a_step_is_in_units_and_stays_inside() -> None:
    bounded = box((2.0, -1.0), (3.0, 5.0))
    values = torch.zeros(3, 1, 2)
    gradient = torch.tensor([[[1.0, 1.0]], [[torch.nan, -10.0]], [[0.0, 0.0]]])
    bounded.descend_(values, gradient, {}, lr=0.1, optimizer="sgd")
    expected = torch.tensor([[[-0.05, -0.3]], [[0.0, 1.0]], [[0.0, 0.0]]])
    torch.testing.assert_close(values, expected)
