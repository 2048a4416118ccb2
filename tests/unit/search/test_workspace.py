from __future__ import annotations

import multiprocessing
from pathlib import Path

import numpy as np
import pytest

from tauten.errors import ConfigError
from tauten.make.search.workspace import Workspace


def test_two_runs_cannot_use_one_folder(tmp_path: Path) -> None:
    with (
        Workspace(tmp_path).opened(),
        pytest.raises(ConfigError, match="another run is using"),
        Workspace(tmp_path).opened(),
    ):
        pass
    with Workspace(tmp_path).opened():
        pass  # the first one's end frees it


def test_a_dead_run_holds_nothing(tmp_path: Path) -> None:
    process = multiprocessing.get_context("spawn").Process(target=_hold_and_die, args=(tmp_path,))
    process.start()
    process.join(30)
    assert process.exitcode == -9
    with Workspace(tmp_path).opened():
        pass


def _hold_and_die(path: Path) -> None:
    import os
    import signal

    with Workspace(path).opened():
        os.kill(os.getpid(), signal.SIGKILL)


def test_what_a_killed_run_left_half_written_is_swept_and_nothing_else(tmp_path: Path) -> None:
    (tmp_path / "candidates" / ".int8.1234.partial").mkdir(parents=True)
    (tmp_path / "candidates" / "int8").mkdir()
    (tmp_path / ".result.json.1234.partial").write_text("{")
    with Workspace(tmp_path).opened():
        assert [path.name for path in (tmp_path / "candidates").iterdir()] == ["int8"]
        assert not list(tmp_path.glob(".result*"))


def test_trained_weights_are_kept_and_damaged_ones_are_none(tmp_path: Path) -> None:
    space = Workspace(tmp_path)
    with space.opened():
        assert space.load_fitted("key") is None
        space.save_fitted("key", {"w": np.arange(3.0)})
        loaded = space.load_fitted("key")
        assert loaded is not None
        np.testing.assert_array_equal(loaded["w"], np.arange(3.0))
        (tmp_path / ".state" / "fitted-key.safetensors").write_bytes(b"half")
        assert space.load_fitted("key") is None


def test_a_folder_that_cannot_be_written_is_a_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigError, match="cannot write to"), Workspace(tmp_path / "file" / "out").opened():
        pass
