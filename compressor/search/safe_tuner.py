"""NNI's TPE, for NNI's server: its messages can come in another order than the tuner bears."""

from typing import Any

from nni.algorithms.hpo.tpe_tuner import TpeTuner


class SafeTpe(TpeTuner):
    """Takes a trial's value also after the trial's end.

    The server may tell that a trial ended before it tells the trial's value. `TpeTuner` forgets the trial then, and the
    value raises KeyError in the thread that serves the experiment, which dies without a word: the experiment stays
    `RUNNING` for ever.
    """

    def receive_trial_result(self, parameter_id: int, _parameters: Any, value: Any, **kwargs: Any) -> None:
        """Count a value in, whether or not the trial ended before."""
        self._running_params.setdefault(parameter_id, self._params[parameter_id])
        super().receive_trial_result(parameter_id, _parameters, value, **kwargs)
