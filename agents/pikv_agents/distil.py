"""The learner's first policy: an imitation of the start, so that training begins where the best heuristic stands.

A static start is the action layer's bias. One that depends on the state is fitted by regression of its actions on
what the survey saw, by the start itself and by others.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from gymnasium import spaces
from numpy.typing import NDArray
from stable_baselines3.common.base_class import BaseAlgorithm

from pikv_agents.static_grid import encode_control
from pikv_runtime.contract import Control, Telemetry
from pikv_runtime.control_views import make_view
from pikv_runtime.controllers import make_policy

STEPS, BATCH, RATE = 1500, 256, 3e-3
PAST_END = 0.1


def start_actions(
    spec: str, view: str, num_groups: int, told: Sequence[tuple[NDArray[np.float32], NDArray[np.float32]]]
) -> NDArray[np.float32]:
    """What the start would do in each of the situations `told` (groups (N, F), globals (G,)), as actions (S, A)."""
    policy, encoder = make_policy(spec), make_view(view, num_groups)
    control, rows = Control.zeros(num_groups), []
    for groups, globals_ in told:
        rows.append(encode_control(policy.decide(Telemetry(groups, globals_), control), encoder))
    return np.stack(rows).astype(np.float32)


def beyond_ends(actions: NDArray[np.float32]) -> NDArray[np.float32]:
    """Actions (S, A) with those at an end of their range moved past it by `PAST_END`.

    The network's answer is clipped, so this asks for the same. On the very end, half of its error would fall inside
    the range, and reading 98 % of the pages costs more than reading all of them: what is read must then be chosen.
    """
    return np.where(np.abs(actions) >= 1, np.sign(actions) * (1 + PAST_END), actions).astype(np.float32)


def distil(model: BaseAlgorithm, observations: NDArray[np.float32], actions: NDArray[np.float32], seed: int) -> float:
    """Fit the policy's mean to `actions` (S, A) at `observations` (S, D). Returns the root mean square error.

    The critic and the exploration noise stay as they are.

    Raises:
        ValueError: the action space is not continuous.
    """
    if not isinstance(model.action_space, spaces.Box):
        raise ValueError("a start that depends on the state needs a continuous control view: allowed coef, box")
    policy = model.policy
    parameters = [*policy.mlp_extractor.policy_net.parameters(), *policy.action_net.parameters()]
    optimiser = torch.optim.Adam(parameters, lr=RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, STEPS)
    generator = torch.Generator().manual_seed(seed)
    inputs, targets = torch.from_numpy(observations), torch.from_numpy(actions)
    for _ in range(STEPS):
        rows = torch.randint(len(inputs), (BATCH,), generator=generator)
        loss = (_mean(policy, inputs[rows]) - targets[rows]).square().mean()
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        schedule.step()
    with torch.no_grad():
        return float((_mean(policy, inputs) - targets).square().mean().sqrt())


def _mean(policy: torch.nn.Module, observations: torch.Tensor) -> torch.Tensor:
    """The deterministic action before clipping."""
    features = policy.extract_features(observations, policy.pi_features_extractor)  # type: ignore[operator]
    return policy.action_net(policy.mlp_extractor.forward_actor(features))  # type: ignore[operator]
