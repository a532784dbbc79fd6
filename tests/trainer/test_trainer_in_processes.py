"""Training one style in several processes: real ones, which torch's launcher starts."""

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from clipcap.checkpoint import load_mapper
from clipcap.language_model import LanguageModel
from clipcap.training import (
    EpochEnd,
    Progress,
    TrainingResult,
)
from clipcap.training import processes as training_processes
from tests.servers import PATIENCE, free_port
from tests.trainer.models import OPTIONS, Train, model_for

# A pass is four steps of two rows and one of a single row, which leaves the second process without any.
TWICE = dataclasses.replace(OPTIONS, epochs=2)


def losses(result: TrainingResult) -> list[float]:
    return [loss for epoch in result.history for loss in epoch]


def started() -> list[int]:
    """The training processes that a launcher, a child of this process, has started: another test's child has others."""
    found = [process for child in children(os.getpid()) for process in children(child)]
    return [process for process in found if training_processes.PROCESS in about(process, "cmdline").split("\0")]


def children(process: int) -> list[int]:
    return [int(child) for child in about(process, f"task/{process}/children").split()]


def about(process: int, name: str) -> str:
    """What the system says of a process; nothing once it has ended."""
    try:
        return Path(f"/proc/{process}/{name}").read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""


def test_two_processes_with_half_a_batch_each_learn_what_one_learns(
    train: Train, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    before, model, seen = tiny_lm.fingerprint(), model_for(tiny_lm, "finetuned"), list[int]()
    alone = train(model=model_for(tiny_lm, "finetuned"), options=TWICE, folder=tmp_path / "alone")

    def look(epoch: EpochEnd) -> None:
        """What is told of an epoch is told in this process, with that epoch's weights."""
        seen.append(epoch.epoch)
        best = load_mapper(tmp_path / "run" / "mapper.safetensors").mapper
        assert all(torch.equal(a, b) for a, b in zip(best.parameters(), model.mapper.parameters(), strict=True))

    options = dataclasses.replace(TWICE, accumulation=2)
    together = train(model=model, options=options, on_epoch=look, processes=2)
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    assert together.trainable_parameters == alone.trainable_parameters
    assert seen == [1, 2]
    assert tiny_lm.fingerprint() == before
    mine, theirs = together.model.weights.state_dict(), alone.model.weights.state_dict()
    assert all(torch.allclose(mine[name], theirs[name], atol=1e-3) for name in theirs)
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == ["mapper.safetensors", "state.pt"]


def test_a_process_that_is_killed_is_noticed_and_the_run_goes_on_from_the_last_state_to_the_end(
    train: Train, tiny_lm: LanguageModel, tmp_path: Path
) -> None:
    alone = train(model=model_for(tiny_lm, "adapters"), options=TWICE, folder=tmp_path / "alone")
    steps: list[int] = []
    at_work: list[set[int]] = []

    def kill_one_in_the_fourth_step(progress: Progress) -> bool:
        steps.append(progress.step)
        at_work.append({*started()})
        if steps == [1, 2, 3, 4]:
            os.kill(started()[0], signal.SIGKILL)
        return True

    together = train(
        model=model_for(tiny_lm, "adapters"),
        options=TWICE,
        on_progress=kill_one_in_the_fourth_step,
        state_every=2,
        processes=2,
    )
    assert losses(together) == pytest.approx(losses(alone), abs=1e-4)
    # From the state of the second step, or of the fourth if the death took a moment.
    assert {*steps[4:]} in ({*range(3, 11)}, {*range(5, 11)})
    assert len(at_work[0]) == len(at_work[-1]) == 2
    assert not at_work[0] & at_work[-1], "the end was reached by processes started after the death"


PROGRAM = """
import json, sys
from pathlib import Path
import torch
from torch import distributed
from clipcap.language_model import LanguageModel
from clipcap.training import train_mapper
from tests.trainer.models import OPTIONS, images_of, model_for

torch.set_num_threads(1)
distributed.init_process_group("gloo")
lm, training, validation = LanguageModel.load(sys.argv[1], device="cpu"), images_of(9), images_of(3, seed=1)
result = train_mapper(model_for(lm, "adapters"), lm, "encoder@1", training, validation, OPTIONS, Path(sys.argv[2]))
Path(sys.argv[2] + ".json").write_text(json.dumps([loss for epoch in result.history for loss in epoch]))
distributed.destroy_process_group()
"""


def test_two_machines_that_share_no_folder_learn_what_one_process_learns(
    train: Train, tiny_lm: LanguageModel, tiny_lm_dir: Path, tmp_path: Path
) -> None:
    alone = train(model=model_for(tiny_lm, "adapters"), folder=tmp_path / "alone")
    program, port = tmp_path / "program.py", free_port()
    program.write_text(PROGRAM)
    options = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-id=1", "--rdzv-backend=c10d", "--local-addr=127.0.0.1"]
    command = [sys.executable, "-m", "torch.distributed.run", *options, f"--rdzv-endpoint=127.0.0.1:{port}"]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).parents[2]), *sys.path]),
        "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
        "OMP_NUM_THREADS": "1",
    }
    folders = [tmp_path / "first", tmp_path / "second"]
    agents = [
        subprocess.Popen([*command, program, f"local-dir:{tiny_lm_dir}", folder], env=environment) for folder in folders
    ]
    assert [agent.wait(PATIENCE) for agent in agents] == [0, 0]
    found = [json.loads(folder.with_suffix(".json").read_text()) for folder in folders]
    assert found[0] == found[1] == pytest.approx(losses(alone), abs=1e-4)
    written = [sorted(path.name for path in folder.rglob("*")) for folder in folders]
    assert sorted(written) == [[], ["mapper.safetensors", "state.pt"]], "one of them alone writes"


def test_processes_that_keep_dying_are_an_error_that_says_where_to_look(
    train: Train, tiny_lm: LanguageModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(training_processes, "RESTARTS", 0)
    steps: list[int] = []

    def kill_one(progress: Progress) -> bool:
        steps.append(progress.step)
        os.kill(started()[0], signal.SIGKILL)
        return True

    with pytest.raises(RuntimeError, match="died 1 times; the log"):
        train(model=model_for(tiny_lm, "adapters"), options=TWICE, on_progress=kill_one, processes=2)
    assert steps[0] == 1


def test_a_process_whose_starter_has_gone_ends(tmp_path: Path) -> None:
    command = [
        sys.executable,
        "-P",
        "-m",
        training_processes.PROCESS,
        str(tmp_path / "job.pt"),
        str(tmp_path / "s"),
        "gloo",
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=PATIENCE)
    assert (done.returncode, done.stderr) == (1, "the process that started the training has gone\n")
