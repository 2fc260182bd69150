"""`python -m compressor`, which launchers of several processes start: `torchrun -m compressor run ...`."""

from compressor.cli import main

main()
