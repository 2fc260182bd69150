"""The version of the package: one line that setup.cfg reads without importing anything else."""

__version__ = "0.1.0"
