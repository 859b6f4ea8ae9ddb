# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sharpness: how much a loss can rise around a point.

At the logits z of a sequence's last token, which in a decoder has received all the others:

    φ = 100 · (max_{y ∈ C} f(z + y) − f(z)) / (1 + f(z)),    C = {y : |y_i| ≤ ε · (|z_i| + 1)}

with f the cross-entropy of the next token. Of f the maximum is known: it grows with every other
logit and falls with the target's, whatever the rest is, so that it lies in one corner of C,

    y_target = −ε · (|z_target| + 1),    y_i = +ε · (|z_i| + 1) else.

`"corner"` is that. `"gradient"` and `"lbfgsb"` are searches as the papers make them, and end at the
same place or below it.

In the space of weights, every array may move by at most ρ times its own norm:

    100 · (max_{|δ_l| ≤ ρ · |w_l|} L(w + δ) − L(w)) / (1 + L(w))

Source: Keskar and others, arXiv 1609.04836 (2017), for φ and C; Lee and others, arXiv 2405.18710
(2024), for the logits of the last token. The scaling by layers follows Kwon and others, arXiv
2102.11600 (2021).
"""

import functools
from collections.abc import Callable
from typing import Any, Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from pqt_jax.models import document_mask
from pqt_jax.training.loss import token_losses

Maximizer = Literal["corner", "gradient", "lbfgsb"]
EPSILON = 5e-4  # of Keskar and others


def relative(before: Any, after: Any) -> Any:
    """`100 · (after − before) / (1 + before)`, in percent."""
    return 100 * (after - before) / (1 + before)


def of_logits(
    logits: jax.Array,
    targets: jax.Array,
    *,
    epsilon: float = EPSILON,
    iterations: int = 10,
    maximizer: Maximizer = "corner",
) -> jax.Array:
    """φ of every sequence, at the logits of its last token.

    Example:
      >>> z = jnp.array([[2.0, 0.0, -1.0]])
      >>> phi = of_logits(z, jnp.array([0]))
      >>> [round(x.item(), 4) for x in (phi, *bounds(z, jnp.array([0]), EPSILON))]
      [0.0285, 0.0285, 0.2137]

    Args:
      logits: float32[batch, V].
      targets: int[batch].
      epsilon: ε, the size of C.
      iterations: of a search; "corner" needs none.
      maximizer: "corner", the maximum itself; "gradient", projected gradient ascent in units of C,
        its steps normalized to the largest slope; "lbfgsb", SciPy's L-BFGS-B: traced like the
        others, it is a callback to the host, where one sequence comes after the other.

    Returns:
      float32[batch], in percent, not negative.

    Raises:
      ValueError: for another maximizer, an ε that is not positive, and no iterations.
    """
    if maximizer not in get_args(Maximizer):
        names = ", ".join(get_args(Maximizer))
        raise ValueError(f"maximizer={maximizer!r}; it must be one of {names}")
    if not 0 < epsilon < np.inf or iterations < 1:
        raise ValueError(
            f"epsilon={epsilon}, iterations={iterations}; both must be positive and finite"
        )
    logits = jnp.asarray(logits, jnp.float32)
    return _of_logits(logits, targets, epsilon, iterations, maximizer)


def of_model(
    graph: nnx.GraphDef,
    params: nnx.State,
    tokens: jax.Array,
    end: int | None = None,
    **options: Any,
) -> jax.Array:
    """The mean φ of a model's windows, at the logits of their last tokens.

    Args:
      graph: the structure of a model of `pqt_jax.models`.
      params: its parameters; nothing is sampled.
      tokens: int[B, T + 1].
      end: as for `step.make_train_step`; windows whose last target does not count are left out.
      options: of `of_logits`.

    Returns:
      float32 scalar, in percent; NaN if all are left out.
    """
    model, (inputs, targets, of, counted) = (
        nnx.merge(graph, params),
        document_mask.window(tokens, end),
    )
    logits = model.logits(model.hidden(inputs, of)[:, -1:])[:, 0]
    phi = of_logits(logits, targets[:, -1], **options)
    return phi.mean() if counted is None else phi.mean(where=counted[:, -1])


def bounds(logits: jax.Array, targets: jax.Array, epsilon: float) -> tuple[jax.Array, jax.Array]:
    """What φ lies between, from f's slope and its convexity, with r_i = ε · (|z_i| + 1).

        (1 − p_t) · r_t + Σ_{i≠t} p_i · r_i  ≤  max f(z + y) − f(z)  ≤  r_t + max_{i≠t} r_i

    Below: the linear part of f, which is convex, at the corner. Above: along the way to the corner
    the slopes by the others sum to 1 − p_t ≤ 1, and that by the target is of the same size.

    Args:
      logits, targets, epsilon: as for `of_logits`.

    Returns:
      (float32[batch] below, float32[batch] above), in percent.
    """
    radius = epsilon * (jnp.abs(logits) + 1)
    others = 1 - jax.nn.one_hot(targets, logits.shape[-1])
    p, f = jax.nn.softmax(logits, -1), token_losses(logits, targets)
    own = jnp.sum(radius * (1 - others), -1)
    below = jnp.sum(p * others, -1) * own + jnp.sum(p * radius * others, -1)
    above = own + jnp.max(radius * others, -1)
    return 100 * below / (1 + f), 100 * above / (1 + f)


def of_weights(
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    rho: float = 1e-3,
    iterations: int = 1,
) -> jax.Array:
    """How much a loss rises, relatively, where every array of weights may move by ρ of its norm.

    Projected ascent: each array's step is its own gradient, scaled to the radius that it has. One
    step is the linear estimate that sharpness-aware minimization takes.

    Example:
      >>> of_weights(lambda w: jnp.sum(w**2), jnp.ones(4), rho=0.1).item()  # (1.1² − 1) · 4 / 5
      16.8...

    Args:
      loss: params → scalar, not negative.
      params: a tree of float arrays, which `loss` is given in float32; zeros do not move.
      rho: ρ.
      iterations: steps of the ascent; jitted by the caller, if at all.

    Returns:
      float32 scalar, in percent, of the best point met, the start included.

    Raises:
      ValueError: if ρ is not positive, and for no iterations.
    """
    if not 0 < rho < np.inf or iterations < 1:
        raise ValueError(f"rho={rho}, iterations={iterations}; both must be positive and finite")
    norm = lambda x: jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))  # noqa: E731
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)  # bfloat16 would not move
    radii = jax.tree.map(lambda w: rho * norm(w), params)
    moved = lambda delta: jax.tree.map(jnp.add, params, delta)  # noqa: E731

    def ascend(delta, gradient, radius):
        size = norm(gradient)
        delta += radius * gradient / jnp.where(size > 0, size, 1)
        length = norm(delta)
        return delta * jnp.minimum(1, radius / jnp.where(length > 0, length, 1))

    before = best = loss(params).astype(jnp.float32)
    delta = jax.tree.map(jnp.zeros_like, params)
    for _ in range(iterations):
        delta = jax.tree.map(ascend, delta, jax.grad(loss)(moved(delta)), radii)
        best = jnp.maximum(best, loss(moved(delta)))
    return relative(before, best)


def rise(logits: jax.Array, y: jax.Array, targets: jax.Array) -> jax.Array:
    """`f(z + y) − f(z) = log1p(Σ p_i · expm1(y_i)) − y_target`, whose digits do not cancel.

    Where a y is larger than one, `log Σ p_i · exp(y_i)` instead, which does not overflow.
    """
    small = jnp.max(jnp.abs(y), -1) < 1
    near = jnp.where(small[..., None], y, 0)
    grown = jnp.log1p(jnp.sum(jax.nn.softmax(logits, -1) * jnp.expm1(near), -1))
    far = jax.nn.logsumexp(jax.nn.log_softmax(logits, -1) + y, -1)
    own = jnp.take_along_axis(y, targets[..., None], axis=-1)[..., 0]
    return jnp.where(small, grown, far) - own


@functools.partial(jax.jit, static_argnums=(3, 4))
def _of_logits(z, targets, epsilon, iterations, maximizer):
    radius = epsilon * (jnp.abs(z) + 1)
    if maximizer == "lbfgsb":
        search = functools.partial(_lbfgsb, iterations=iterations)
        out = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        rises = jax.pure_callback(search, out, z, targets, radius, vmap_method="broadcast_all")
        return 100 * rises / (1 + token_losses(z, targets))
    if maximizer == "corner":
        y = (1 - 2 * jax.nn.one_hot(targets, z.shape[-1])) * radius
    else:
        slope = jax.grad(lambda u: rise(z, u * radius, targets).sum())

        def ascend(_, u):  # in units of C, whose sides differ
            g = slope(u)
            size = jnp.max(jnp.abs(g), -1, keepdims=True)
            return jnp.clip(u + g / jnp.where(size > 0, size, 1), -1, 1)

        y = radius * jax.lax.fori_loop(0, iterations, ascend, jnp.zeros_like(z))
    best = jnp.maximum(rise(z, y, targets), 0)  # that of y = 0, where digits fail
    return 100 * best / (1 + token_losses(z, targets))


def _lbfgsb(z, targets, radius, *, iterations):
    """The rise that is found, on the host: float[…, V], int[…], float[…, V] → float[…]."""
    import scipy.optimize  # here, since they are slow to import and a training run needs neither
    import scipy.special

    shape = np.shape(targets)
    z, radius = (np.asarray(x, np.float64).reshape(-1, np.shape(x)[-1]) for x in (z, radius))
    rises = np.full(len(z), np.nan, np.float32)
    for i, target in enumerate(np.ravel(targets)):
        if not np.isfinite(z[i]).all():
            continue
        log_p, unit = scipy.special.log_softmax(z[i]), radius[i].max()

        def descend(u, log_p=log_p, target=target, radius=radius[i], unit=unit):
            y = u * radius
            grown = scipy.special.logsumexp(log_p + y)
            slope = np.exp(log_p + y - grown)
            slope[target] -= 1
            return -(grown - y[target]) / unit, -slope * radius / unit

        start, box = np.zeros(log_p.size), [(-1, 1)] * log_p.size
        options = {"maxiter": iterations}
        best = scipy.optimize.minimize(
            descend, start, jac=True, method="L-BFGS-B", bounds=box, options=options
        )
        rises[i] = -best.fun * unit
    return rises.reshape(shape)
