"""Stages in several processes: what ends one of them ends the call, as the error that it was."""

import pytest

from anatogen.core.errors import ScanError
from anatogen.core.reasons import Reason
from anatogen.training.devices import build_fabric, launch


def _refuse(fabric):
    if fabric.global_rank == 1:
        raise ScanError(Reason.TOO_FEW_SLICES(num=3, least=4))
    fabric.barrier()


def test_an_error_of_the_users_crosses_the_spawned_process_as_an_object():
    with pytest.raises(ScanError, match="only 3 slices, at least 4") as caught:
        launch(build_fabric("cpu", 2), _refuse)
    assert caught.value.refusal == Reason.TOO_FEW_SLICES(num=3, least=4)
