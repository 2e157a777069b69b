"""Stages in several processes: what ends one of them ends the call, as the error that it was."""

import os
import signal

import pytest

from anatogen.core.errors import ScanError, UserError
from anatogen.core.reasons import Reason
from anatogen.training.devices import build_fabric, launch


def _refuse(fabric):
    if fabric.global_rank == 1:
        raise ScanError(Reason.TOO_FEW_SLICES(num=3, least=4))
    fabric.barrier()


def _die(fabric):
    if fabric.global_rank == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    fabric.barrier()


@pytest.mark.usefixtures("forked_processes")
def test_a_process_that_is_killed_is_one_clear_line():
    with pytest.raises(UserError, match=r"one of 2 processes that trained died .* most likely memory"):
        launch(build_fabric("cpu", 2), _die)


def test_an_error_of_the_users_crosses_the_spawned_process_as_an_object():
    with pytest.raises(ScanError, match="only 3 slices, at least 4") as caught:
        launch(build_fabric("cpu", 2), _refuse)
    assert caught.value.refusal == Reason.TOO_FEW_SLICES(num=3, least=4)
