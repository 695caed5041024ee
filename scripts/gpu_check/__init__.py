"""The parts of `scripts/gpu-check` that are not Darkroom: running stages, the report, the peer, comparing reports."""
