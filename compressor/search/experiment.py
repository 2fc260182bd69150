"""NNI's experiment on this machine or others: its server, started, watched and stopped."""

import functools
import logging
import os
import socket
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from compressor.errors import CompressorError
from compressor.files import write_text
from compressor.recipe import read_yaml
from compressor.search.trial import PLAN
from compressor.search.tuning import Plan, Trial

# Seconds: for the server to start on a cold machine, and without any trial running before it is given up.
_START, _STALL, _POLL = 60, 120, 2
_MACHINE = {"host", "port", "user", "ssh_key_file", "python_path"}
_ENDED = {"SUCCEEDED", "FAILED", "EARLY_STOPPED", "USER_CANCELED", "SYS_CANCELED"}
# NNI's server listens on every interface, without asking who is there.
_LOOPBACK = """
const net = require('net');
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (port, ...rest) {
    if (typeof port !== 'number') return listen.call(this, port, ...rest);
    if (typeof rest[0] === 'string') rest.shift();
    return listen.call(this, port, 'localhost', ...rest);
};
"""


@dataclass(frozen=True)
class Machines:
    """Machines that NNI reaches by ssh, and that see the same folders and packages as this one.

    Attributes:
        manager_ip: of this machine, as the others reach it.
        machines: `host`, `port`, `user`, `ssh_key_file`, `python_path` (the folder of the interpreter) of each.
    """

    manager_ip: str
    machines: tuple[dict[str, Any], ...]

    @classmethod
    def read(cls, path: Path) -> "Machines":
        """From a YAML file.

        Raises:
            CompressorError: it cannot be read, or a key is missing or unknown.
        """
        try:
            value = read_yaml(path.read_text(encoding="utf-8"), str(path))
        except (OSError, UnicodeDecodeError) as error:
            raise CompressorError(f"--machines: {path} cannot be read: {error}") from error
        if set(value) != {"manager_ip", "machines"} or not isinstance(value["machines"], list):
            raise CompressorError(f"--machines: {path} needs manager_ip and a list of machines")
        for place, machine in enumerate(value["machines"]):
            if not isinstance(machine, dict) or not {"host", "user"} <= set(machine) <= _MACHINE:
                raise CompressorError(
                    f"{path}: machines[{place}] needs host and user, and may have {', '.join(sorted(_MACHINE))}"
                )
        return cls(str(value["manager_ip"]), tuple(value["machines"]))

    def configure(self, config: Any) -> None:
        """Set NNI's configuration of an experiment on remote machines.

        Raises:
            CompressorError: a key file is missing.
        """
        from nni.experiment.config.training_services.remote import RemoteMachineConfig

        for machine in self.machines:
            key = Path(machine.get("ssh_key_file", "~/.ssh/id_rsa")).expanduser()
            if not key.is_file():
                raise CompressorError(f"--machines: {machine['host']}: there is no ssh_key_file {key}")
        config.training_service.machine_list = [RemoteMachineConfig(**machine) for machine in self.machines]
        config.nni_manager_ip = self.manager_ip


def run_experiment(
    plan: Plan,
    space: Mapping[str, Any],
    folder: Path,
    *,
    algorithm: str,
    trials: int,
    parallel: int,
    seed: int,
    advance: Callable[[], None],
    machines: Machines | None = None,
) -> list[Trial]:
    """Run trials until there are so many; those that ended, in order.

    Args:
        folder: where NNI keeps what it writes, empty.
        advance: is called for each trial that ended.
        machines: that trials run on, by ssh; None is this one.

    Raises:
        CompressorError: NNI is not installed, its server does not start, or it stalls: trials are left, and none runs.
    """
    try:
        from nni.experiment import AlgorithmConfig, Experiment
    except ImportError as error:
        raise CompressorError(
            f"tune: nni cannot be imported here ({error}); its wheels are for x86-64 alone"
        ) from error
    code = folder / "code"
    code.mkdir()
    plan.write(code / PLAN)
    experiment = Experiment("remote" if machines else "local")
    config: Any = experiment.config
    config.trial_command = f"{sys.executable} -m compressor.search.trial"
    config.trial_code_directory = code
    config.experiment_working_directory = folder
    config.search_space = dict(space)
    config.max_trial_number, config.trial_concurrency = trials, parallel
    config.tuner = _tuner(algorithm, seed, code)
    config.assessor = AlgorithmConfig(name="Medianstop", class_args={"optimize_mode": "maximize", "start_step": 2})
    if machines:
        machines.configure(config)
    with _surroundings(folder, loopback=machines is None):
        try:
            experiment.start(_free_port())
            return _watched(experiment, trials, advance)
        except RuntimeError as error:
            raise CompressorError(f"tune: NNI's server did not start: {error}; see {folder}") from error
        finally:
            experiment.stop()


def _tuner(algorithm: str, seed: int, code: Path) -> Any:
    from nni.experiment import AlgorithmConfig, CustomAlgorithmConfig

    if algorithm == "random":
        return AlgorithmConfig(name="Random", class_args={"seed": seed})
    if algorithm == "evolution":
        return AlgorithmConfig(name="Evolution", class_args={"optimize_mode": "maximize", "population_size": 8})
    arguments = {"optimize_mode": "maximize", "seed": seed}
    return CustomAlgorithmConfig(
        class_name="compressor.search.safe_tuner.SafeTpe", code_directory=code, class_args=arguments
    )


@contextmanager
def _surroundings(folder: Path, loopback: bool) -> Iterator[None]:
    """Nothing of NNI outside the folder, nothing of it to be reached from outside, and time for it to start."""
    from nni.experiment import launcher

    script = folder / "loopback.js"
    write_text(script, _LOOPBACK)
    options = os.environ.get("NODE_OPTIONS")
    check, experiments = launcher._check_rest_server, launcher.Experiments
    # NNI's waits for three seconds, and it keeps its list in the home folder.
    launcher._check_rest_server = functools.partial(check, retry=_START)
    launcher.Experiments = functools.partial(experiments, home_dir=str(folder))
    if loopback:
        os.environ["NODE_OPTIONS"] = f"--require {script}"
    logging.getLogger("nni").setLevel(logging.ERROR)
    try:
        yield
    finally:
        launcher._check_rest_server, launcher.Experiments = check, experiments
        if options is None:
            os.environ.pop("NODE_OPTIONS", None)
        else:
            os.environ["NODE_OPTIONS"] = options


def _watched(experiment: Any, count: int, advance: Callable[[], None]) -> list[Trial]:
    """Wait for the trials; `Experiment.run` returns True when all of them failed, and waits for ever in a stall."""
    told, idle_since = 0, time.monotonic()
    while True:
        found = [_trial(job) for job in experiment.list_trial_jobs()]
        ended = [trial for trial in found if trial.status in _ENDED or trial.status == "LOST"]
        for _ in range(told, len(ended)):
            advance()
        if len(ended) > told or len(ended) < len(found):
            idle_since = time.monotonic()
        told = len(ended)
        status = experiment.get_status()
        if len(ended) >= count or status in ("DONE", "STOPPED"):
            return sorted(ended, key=lambda trial: trial.number)
        if status == "ERROR":
            raise CompressorError(f"tune: NNI reports an error after {told} trials; see its log in {experiment.id}/log")
        if time.monotonic() - idle_since > _STALL:
            raise CompressorError(
                f"tune: NNI has started no trial for {_STALL} seconds after {told} of {count}; see {experiment.id}/log"
            )
        time.sleep(_POLL)


def _trial(job: Any) -> Trial:
    values = dict(job.hyperParameters[0].parameters) if job.hyperParameters else {}
    value = float(str(job.finalMetricData[0].data).strip('"')) if job.finalMetricData else None
    status = "LOST" if job.status == "SUCCEEDED" and value is None else job.status
    begun, ended = job.startTime, job.endTime
    return Trial(job.sequenceId, status, value, (ended - begun) / 1000 if begun and ended else 0.0, values)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        return int(probe.getsockname()[1])
