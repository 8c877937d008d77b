"""The learners' tanh is tanh: values and gradients."""

from __future__ import annotations

import torch

from pikv_agents.activation import Tanh


def test_values_and_gradients_are_those_of_tanh() -> None:
    x = torch.cat([torch.linspace(-8.0, 8.0, 4001), torch.tensor([-1e4, -100.0, 0.0, 1e-4, 100.0, 1e4])])
    ours, theirs = x.clone().requires_grad_(), x.clone().requires_grad_()
    values, expected = Tanh()(ours), torch.tanh(theirs)
    torch.testing.assert_close(values, expected, rtol=0.0, atol=3e-7)
    weights = torch.cos(x)
    (values * weights).sum().backward()
    (expected * weights).sum().backward()
    assert ours.grad is not None and theirs.grad is not None
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=0.0, atol=1e-6)
