"""Where a training step or a frame spends its time, and how far each op is from what the machine can do.

`measure` runs a step or a frame and gives figures; `ranges` names the pipeline's stages in code that knows
nothing of it, for it and for NVTX; `counting` counts bytes and arithmetic from shapes; `ceilings` measures
what the machine can do. `raymarch/apps/profiling.py` shows what comes out.
"""
