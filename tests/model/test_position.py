from __future__ import annotations

import math
from typing import Any

import torch

from engine.model.position import AttentionInputs, LearnedPosition, Rotation, SinusoidalPosition, sinusoid
from tests.model.build import CPU, fill, microbatch, shape


def test_sinusoid_is_the_formula():
    table = sinusoid(torch.arange(-3, 7), 6)
    for row, place in enumerate(range(-3, 7)):
        for i in range(3):
            angle = place / 10000 ** (2 * i / 6)
            assert math.isclose(table[row, 2 * i], math.sin(angle), abs_tol=1e-6)
            assert math.isclose(table[row, 2 * i + 1], math.cos(angle), abs_tol=1e-6)


def test_sinusoidal_positions_are_added_to_embeddings_scaled_by_the_root_of_the_width(alone):
    spec = shape("transformer", seq=8)
    x = torch.randn(2, 8, 32)
    torch.testing.assert_close(SinusoidalPosition(spec, alone)(x), x * 32**0.5 + sinusoid(torch.arange(8), 32))


def test_learned_positions_are_rows_of_a_table(alone):
    position = LearnedPosition(shape("gpt"), alone)
    fill(position)
    x = torch.randn(2, 16, 32)
    torch.testing.assert_close(position(x)[:, 3], x[:, 3] + position.weight[3])


def test_rotation_is_multiplication_of_complex_numbers():
    x = torch.randn(2, 3, 5, 8, dtype=torch.float64).float().requires_grad_()
    rotation = Rotation.of((range(5),), 8, CPU)
    y = rotation(x)
    pairs = torch.view_as_complex(x.detach().unflatten(-1, (4, 2)).contiguous())
    angles = torch.arange(5)[:, None] / 500_000 ** (torch.arange(0, 8, 2) / 8)
    turned = torch.view_as_real(pairs * torch.polar(torch.ones_like(angles), angles)).flatten(-2)
    torch.testing.assert_close(y.detach(), turned)
    gradient = torch.randn_like(y)
    y.backward(gradient)
    back = torch.view_as_complex(gradient.unflatten(-1, (4, 2)).contiguous()) * torch.polar(torch.ones_like(angles), -angles)
    assert x.grad is not None
    torch.testing.assert_close(x.grad, torch.view_as_real(back).flatten(-2))


def test_a_rotated_score_depends_on_the_distance_alone():
    rotation = Rotation.of((range(10),), 8, CPU)
    q, k = torch.randn(8), torch.randn(8)
    scores = rotation(q.expand(10, 8)) @ rotation(k.expand(10, 8)).T
    for distance in range(-4, 5):
        same = scores.diagonal(distance)
        torch.testing.assert_close(same, same[0].expand_as(same), atol=1e-5, rtol=1e-5)


def test_a_relative_position_selects_the_embedding_of_its_distance(alone):
    spec = shape("xlnet")
    feed = microbatch(spec)
    inputs: Any = AttentionInputs.of(spec, feed, alone)
    assert inputs.waves.shape == (2 * 16 - 1, 32)
    assert inputs.distance.shape == inputs.hidden.shape == (2, 1, spec.rows, 16)
    for row in (0, 7, 16, spec.rows - 1):
        for token in (0, 5, 15):
            place = int(feed.positions[1, row])
            expected = sinusoid(torch.tensor([place - token]), 32)[0]
            torch.testing.assert_close(inputs.waves[inputs.distance[1, 0, row, token]], expected)
