"""The list of methods and the names that a job may use."""

from typing import get_args

from mergenet_core.spec.job import MethodName
from mergenet_core.transfer.methods import METHODS, method_named


def test_every_method_that_moves_weights_is_in_the_list_and_no_other_except_the_baseline():
    listed = [method.name for method in METHODS]
    assert len(listed) == len(set(listed))
    assert set(listed) - {"copy"} == set(get_args(MethodName)) - {"auto", "fit"}


def test_a_method_is_found_by_its_name():
    assert [method_named(method.name) for method in METHODS] == list(METHODS)
