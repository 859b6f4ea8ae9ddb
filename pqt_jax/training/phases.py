# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""The phases of a run: which method trains which steps.

    until the share `pqt.begin_at` of the steps     method bf16
    in the middle                                   the run's own method
    from the share `pqt.round_at` on                method ste, to the format `pqt.round_to`

Where `pqt.round_share` of the blocks is rounded, a phase of method ste is two: from the share
`pqt.round_all_at` of the steps on, it rounds all blocks.

The state is the same in all phases. Outside the run's own phase, bit-widths stay as they are.
"""

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from pqt_jax.training.config.schema import RunConfig
from pqt_jax.transform.recipes import first_step


class Phase(NamedTuple):
    """Steps that one method trains.

    Attributes:
      first: the number of steps before it.
      config: the run's configuration, with the method of the phase and its format.
      is_own: whether that is the run's own method.
    """

    first: int
    config: RunConfig
    is_own: bool = True


def list_phases(config: RunConfig) -> list[Phase]:
    """The phases of a run, in their order; none is empty.

    Example:
      >>> from pqt_jax.models import Llama2Config
      >>> from pqt_jax.training.config.schema import PqtConfig
      >>> model = Llama2Config(256, d_model=64, num_layers=2, num_heads=4, d_ff=128)
      >>> config = RunConfig(model=model, pqt=PqtConfig(begin_at=0.5, round_at=0.9))
      >>> [(phase.first, phase.config.method) for phase in list_phases(config)]
      [(0, 'bf16'), (500, 'gaussws'), (900, 'ste')]

    Args:
      config: the run's configuration.
    """
    steps, pqt = config.steps, config.pqt
    begin, rounding, all_blocks = (
        first_step(share, steps) for share in (pqt.begin_at, pqt.round_at, pqt.round_all_at)
    )
    fine = dataclasses.replace(config, method="bf16")
    coarse = dataclasses.replace(pqt, dtype=pqt.round_to)
    phases = {0: Phase(0, fine, is_own=False), begin: Phase(begin, config)}
    last = dataclasses.replace(config, method="ste", pqt=coarse)
    phases[rounding] = Phase(rounding, last, is_own=False)
    for phase in list(phases.values()):  # of two that begin with the same step, the later stays
        if phase.config.method == "ste" and pqt.round_share < 1:
            first = max(phase.first, all_blocks)
            phases[first] = _round_all_blocks(phase)._replace(first=first)
    in_order = sorted(phases.values(), key=lambda phase: phase.first)
    return [phase for phase in in_order if phase.first < steps]


def _round_all_blocks(phase: Phase) -> Phase:
    pqt = dataclasses.replace(phase.config.pqt, round_share=1.0)
    return phase._replace(config=dataclasses.replace(phase.config, pqt=pqt), is_own=False)


def phase_index(phases: Sequence[Phase], number: int) -> int:
    """The index of the phase of a step, which is counted from 1."""
    return max(i for i, phase in enumerate(phases) if phase.first < number)
