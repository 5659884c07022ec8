"""Which pairs method `fit` accepts, and what it says of the others."""

from __future__ import annotations

import pytest

from mergenet_core.errors import PairingRefused
from mergenet_core.pairing.pair import pair
from mergenet_core.spec.job import TransferSpec
from tests.pairing.test_pairing import bert, cnn, mlp

FIT = TransferSpec(method="fit")


@pytest.mark.parametrize("build", [bert, cnn, mlp])
def test_every_weight_of_the_body_is_written_and_the_head_is_named(build) -> None:
    found = pair(build(), build(), FIT)
    assert (found.method, found.pairs) == ("fit", ())
    assert found.transferable_parameters > 0
    assert all("head" in name or "classifier" in name for name in found.unpaired)


def test_models_that_read_different_inputs_are_refused() -> None:
    with pytest.raises(PairingRefused, match="no solver for a target of kind cnn from a source of kind encoder"):
        pair(bert(), cnn(), FIT)


def test_models_with_other_tokenizers_are_refused() -> None:
    with pytest.raises(PairingRefused, match=r"different tokenizers; give target\.model\.tokenizer the source's"):
        pair(bert(), bert(16, 2, vocabulary="others"), FIT)
