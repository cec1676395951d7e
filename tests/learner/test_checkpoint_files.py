"""Checkpoint files that would run code are refused before a rank reads them."""

from __future__ import annotations

import os
import pickle
import zipfile
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from deepspeed.runtime.fp16.loss_scaler import LossScaler

from learner.checkpoint_files import data_only, require_data
from rlsys.errors import CheckpointUnsafe


class Calls:
    """An object whose pickle is a call of `os.mkdir`."""

    def __init__(self, folder: Path) -> None:
        self.folder = str(folder)

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, (self.folder,)


def test_a_file_that_names_a_function_is_refused_with_its_name(tmp_path: Path) -> None:
    file = tmp_path / "learner" / "mp_rank_00_model_states.pt"
    file.parent.mkdir()
    torch.save({"module": {"weight": torch.ones(2)}, "lr_scheduler": Calls(tmp_path / "was_here")}, file)
    with pytest.raises(CheckpointUnsafe, match=r"mp_rank_00_model_states\.pt: would call \w+\.mkdir"):
        require_data(tmp_path)
    assert not (tmp_path / "was_here").exists()


def test_no_call_of_torch_load_runs_code_regardless_of_its_caller(tmp_path: Path) -> None:
    torch.save(Calls(tmp_path / "was_here"), tmp_path / "a.pt")
    with data_only(), pytest.raises(pickle.UnpicklingError, match="mkdir"):
        torch.load(tmp_path / "a.pt", weights_only=False)
    assert not (tmp_path / "was_here").exists()
    torch.load(tmp_path / "a.pt", weights_only=False)
    assert (tmp_path / "was_here").exists()  # outside it is the caller's business, and the file was a real one


def test_the_environment_does_not_override_weights_only(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", "1")
    torch.save(Calls(tmp_path / "was_here"), tmp_path / "a.pt")
    with data_only(), pytest.raises(pickle.UnpicklingError):
        torch.load(tmp_path / "a.pt")
    assert os.environ["TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD"] == "1"


def test_objects_of_deepspeed_are_read(tmp_path: Path) -> None:
    torch.save({"loss_scaler": LossScaler(1.0), "step": torch.tensor(3.0)}, tmp_path / "a.pt")
    require_data(tmp_path)
    with data_only():
        assert torch.load(tmp_path / "a.pt", weights_only=False)["loss_scaler"].loss_scale == 1.0


def plain_pickle(file: Path) -> None:
    file.write_bytes(pickle.dumps({"a": 1}))


def class_of_ours(file: Path) -> None:
    torch.save(Namespace(a=1), file)


def code_in_a_later_protocol(file: Path) -> None:
    """Return a pickle that composes a global's name on the stack, where the opcodes do not show it."""
    torch.save({"a": 1}, file)
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a/data.pkl", pickle.dumps(Calls(file.parent / "was_here"), protocol=4))
        archive.writestr("a/version", "3\n")


def torchscript(file: Path) -> None:
    torch.jit.script(torch.nn.Linear(1, 1)).save(str(file))


def half(file: Path) -> None:
    torch.save({"a": torch.ones(1000)}, file)
    file.write_bytes(file.read_bytes()[:2000])


@pytest.mark.parametrize("write", [plain_pickle, class_of_ours, code_in_a_later_protocol, torchscript, half])
def test_any_other_file_is_refused(write: Callable[[Path], None], tmp_path: Path) -> None:
    write(tmp_path / "a.pt")
    with pytest.raises(CheckpointUnsafe, match=r"a\.pt: "):
        require_data(tmp_path)
    assert not (tmp_path / "was_here").exists()
