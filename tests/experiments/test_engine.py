"""Pieces of work on processes of this machine and on a local Ray cluster: every piece is done once, whatever becomes of a worker."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import worker_tasks
from respodiff.experiments.engine import Engine

pytestmark = pytest.mark.slow

ON_RAY = pytest.param(True, marks=pytest.mark.ray, id="ray")


@pytest.fixture(params=[pytest.param(False, id="local"), ON_RAY])
def engine(request: pytest.FixtureRequest) -> Engine:
    if request.param:
        request.getfixturevalue("ray_of_two")
    return Engine(2, ray=request.param)


def test_every_item_has_a_result_and_a_warning_is_given_once(engine: Engine) -> None:
    with pytest.warns(UserWarning, match="doubled") as told:
        assert sorted(engine.map(worker_tasks.doubled, range(5))) == [0, 2, 4, 6, 8]
    assert len([w for w in told if "doubled" in str(w.message)]) == 1
    assert list(engine.map(worker_tasks.doubled, [])) == []


def test_an_error_of_a_task_is_raised_as_it_is(engine: Engine) -> None:
    with pytest.raises(ValueError, match="number") as caught:
        list(engine.map(worker_tasks.refused, [7]))
    assert str(caught.value) == "number is 7; allowed: none"


def test_a_lost_worker_loses_no_piece(engine: Engine, tmp_path: Path) -> None:
    assert sorted(engine.map(worker_tasks.DeadlyOnce(tmp_path / "dead"), range(6))) == list(range(6))
    assert (tmp_path / "dead").exists()


def test_a_piece_that_ends_its_worker_every_time_is_an_error(engine: Engine) -> None:
    with pytest.raises(RuntimeError, match="workers"):
        list(engine.map(worker_tasks.deadly, [1]))


@pytest.mark.parametrize("how", ["killed", "closed"])
def test_workers_end_with_their_parent(how: str, tmp_path: Path) -> None:
    program = (
        "import sys, worker_tasks; from pathlib import Path; from respodiff.experiments.engine import Engine\n"
        "if __name__ == '__main__': list(Engine(2).map(worker_tasks.Sleeps(Path(sys.argv[1])), range(4)))\n"
    )
    (script := tmp_path / "script.py").write_text(program)
    (pids := tmp_path / "pids").mkdir()
    path = os.pathsep.join([str(Path(worker_tasks.__file__).parent), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen([sys.executable, script, pids], env=os.environ | {"PYTHONPATH": path}, stderr=subprocess.DEVNULL)
    _until(lambda: len(list(pids.iterdir())) == 2)
    workers = [int(p.name) for p in pids.iterdir()]
    parent.send_signal(signal.SIGKILL if how == "killed" else signal.SIGINT)
    parent.wait(60)
    _until(lambda: not any(_runs(pid) for pid in workers))


@pytest.mark.parametrize("changes", [{"workers": 0}, {"workers": -1, "ray": True}, {"gpus": 1.5}, {"gpus": -1.0}])
def test_engines_that_cannot_be_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ValueError, match=str(next(iter(changes)))):
        Engine(**changes)  # type: ignore[arg-type]


@pytest.mark.ray
def test_more_workers_than_the_cluster_has_are_refused(ray_of_two: None) -> None:
    with pytest.raises(ValueError, match="workers is 3"):
        list(Engine(3, ray=True).map(worker_tasks.doubled, range(3)))


@pytest.mark.ray
def test_workers_that_find_no_place_on_the_cluster_hold_up_nothing(ray_of_two: None) -> None:
    engine = Engine(0, ray=True, gpus=0.4)  # 5 in two GPUs, of which each takes 2; more than it has cores
    with pytest.warns(UserWarning, match="doubled"):
        assert sorted(engine.map(worker_tasks.doubled, range(8))) == [2 * n for n in range(8)]


def _until(done: object, seconds: float = 60.0) -> None:
    end = time.monotonic() + seconds
    while not done():  # type: ignore[operator]
        assert time.monotonic() < end, "it has not come to it"
        time.sleep(0.1)


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
