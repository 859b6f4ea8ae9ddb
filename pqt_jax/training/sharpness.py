# SPDX-License-Identifier: Apache-2.0
# Copyright 2026 The pqt_jax Authors
"""Sharpness: how much a loss can rise around a point.

Sharpness at the logits. Let z be the logits at a sequence's last token (in a decoder they depend on
all tokens before it), and f the cross-entropy of the next token. Then

    φ = 100 · (max_{y ∈ C} f(z + y) − f(z)) / (1 + f(z)),    C = {y : |y_i| ≤ ε · (|z_i| + 1)}

The maximum is known in closed form. f falls with the logit of the target and rises with every other
logit, so the maximum lies in one corner of the box C:

    y_target = −ε · (|z_target| + 1),    y_i = +ε · (|z_i| + 1) for all other i

The maximizer `"corner"` evaluates f there. `"gradient"` and `"lbfgsb"` search for the maximum, as
the papers do; they find the same value or a smaller one.

Sharpness of the weights. Every array of weights w_l may move by at most ρ times its own norm:

    100 · (max_{|δ_l| ≤ ρ · |w_l|} L(w + δ) − L(w)) / (1 + L(w))

Source: Keskar and others, arXiv 1609.04836 (2017), for φ and C; Lee and others, arXiv 2405.18710
(2024), for the logits of the last token. The radius proportional to the norm of each array follows
Kwon and others, arXiv 2102.11600 (2021).
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
EPSILON = 5e-4  # as in Keskar and others


def relative_rise(before: Any, after: Any) -> Any:
    """The rise of a loss in percent, `100 · (after − before) / (1 + before)`."""
    return 100 * (after - before) / (1 + before)


def logit_sharpness(
    logits: jax.Array,
    targets: jax.Array,
    *,
    epsilon: float = EPSILON,
    iterations: int = 10,
    maximizer: Maximizer = "corner",
) -> jax.Array:
    """Sharpness φ of every sequence, at the logits of its last token.

    Example:
      >>> z = jnp.array([[2.0, 0.0, -1.0]])
      >>> phi = logit_sharpness(z, jnp.array([0]))
      >>> [round(x.item(), 4) for x in (phi, *sharpness_bounds(z, jnp.array([0]), EPSILON))]
      [0.0285, 0.0285, 0.2137]

    Args:
      logits: float32[batch, V].
      targets: int[batch].
      epsilon: ε, the size of C.
      iterations: steps of a search; not used by "corner".
      maximizer: "corner", the exact maximum; "gradient", projected gradient ascent in units of the
        sides of C, with each step scaled so that its largest entry is 1; "lbfgsb", SciPy's
        L-BFGS-B. The latter can be traced too: it is a callback to the host, which maximizes one
        sequence after the other.

    Returns:
      float32[batch], in percent, 0 or larger.

    Raises:
      ValueError: if the maximizer is unknown, or if ε or the number of iterations is not positive.
    """
    if maximizer not in get_args(Maximizer):
        names = ", ".join(get_args(Maximizer))
        raise ValueError(f"maximizer={maximizer!r}; it must be one of {names}")
    if not 0 < epsilon < np.inf or iterations < 1:
        raise ValueError(
            f"epsilon={epsilon}, iterations={iterations}; both must be positive and finite"
        )
    logits = jnp.asarray(logits, jnp.float32)
    return _logit_sharpness(logits, targets, epsilon, iterations, maximizer)


def model_sharpness(
    graph: nnx.GraphDef,
    params: nnx.State,
    tokens: jax.Array,
    end: int | None = None,
    **options: Any,
) -> jax.Array:
    """The mean φ of a model over windows of tokens, at the logits of their last tokens.

    Args:
      graph: the structure of a model of `pqt_jax.models`.
      params: its parameters. Weights are used as they are, without sampling.
      tokens: int[B, T + 1], windows of T inputs and their targets.
      end: as for `step.build_train_step`. A window whose last target does not count is left out.
      options: for `logit_sharpness`.

    Returns:
      float32 scalar, in percent; NaN if every window is left out.
    """
    model = nnx.merge(graph, params)
    inputs, targets, documents, counted = document_mask.make_windows(tokens, end)
    logits = model.logits(model.hidden(inputs, documents)[:, -1:])[:, 0]
    phi = logit_sharpness(logits, targets[:, -1], **options)
    return phi.mean() if counted is None else phi.mean(where=counted[:, -1])


def sharpness_bounds(
    logits: jax.Array, targets: jax.Array, epsilon: float
) -> tuple[jax.Array, jax.Array]:
    """Bounds of φ from the slope and the convexity of f, with r_i = ε · (|z_i| + 1).

        (1 − p_t) · r_t + Σ_{i≠t} p_i · r_i  ≤  max f(z + y) − f(z)  ≤  r_t + max_{i≠t} r_i

    t is the target and p the softmax of z. The lower bound is the linear part of f at the corner;
    f is convex and lies above it. For the upper bound, follow f on the way to the corner: its
    slopes by the other logits sum to 1 − p_t ≤ 1, and its slope by the target is −(1 − p_t).

    Args:
      logits, targets, epsilon: as for `logit_sharpness`.

    Returns:
      Lower and upper bound, each float32[batch], in percent.
    """
    radius = epsilon * (jnp.abs(logits) + 1)
    others = 1 - jax.nn.one_hot(targets, logits.shape[-1])
    p, f = jax.nn.softmax(logits, -1), token_losses(logits, targets)
    target_radius = jnp.sum(radius * (1 - others), -1)
    below = jnp.sum(p * others, -1) * target_radius + jnp.sum(p * radius * others, -1)
    above = target_radius + jnp.max(radius * others, -1)
    return 100 * below / (1 + f), 100 * above / (1 + f)


def weight_sharpness(
    loss: Callable[[Any], jax.Array],
    params: Any,
    *,
    rho: float = 1e-3,
    iterations: int = 1,
) -> jax.Array:
    """Sharpness of the weights: the relative rise if every array may move by ρ times its norm.

    The maximum is searched by projected gradient ascent. In each step an array moves along its own
    gradient by its full radius, and is projected back into its ball. One step is the linear
    estimate of sharpness-aware minimization.

    Example:
      >>> rise = weight_sharpness(lambda w: jnp.sum(w**2), jnp.ones(4), rho=0.1)
      >>> rise.item()  # 100 · (1.1² − 1) · 4 / 5
      16.8...

    Args:
      loss: parameters → scalar, 0 or larger.
      params: a tree of float arrays; `loss` receives them in float32. Arrays of zeros do not move.
      rho: ρ.
      iterations: steps of the ascent. The function is not jitted.

    Returns:
      float32 scalar, in percent: the rise at the best point visited, or 0 at the start.

    Raises:
      ValueError: if ρ or the number of iterations is not positive.
    """
    if not 0 < rho < np.inf or iterations < 1:
        raise ValueError(f"rho={rho}, iterations={iterations}; both must be positive and finite")
    # In bfloat16 a small step could round to no step at all.
    params = jax.tree.map(lambda w: w.astype(jnp.float32), params)
    radii = jax.tree.map(lambda w: rho * _norm(w), params)

    def ascend(delta, gradient, radius):
        size = _norm(gradient)
        delta += radius * gradient / jnp.where(size > 0, size, 1)
        length = _norm(delta)
        return delta * jnp.minimum(1, radius / jnp.where(length > 0, length, 1))

    def moved(delta):
        return jax.tree.map(jnp.add, params, delta)

    before = best = loss(params).astype(jnp.float32)
    delta = jax.tree.map(jnp.zeros_like, params)
    for _ in range(iterations):
        delta = jax.tree.map(ascend, delta, jax.grad(loss)(moved(delta)), radii)
        best = jnp.maximum(best, loss(moved(delta)))
    return relative_rise(before, best)


def _norm(x: jax.Array) -> jax.Array:
    return jnp.sqrt(jnp.sum(jnp.square(x.astype(jnp.float32))))


def loss_rise(logits: jax.Array, y: jax.Array, targets: jax.Array) -> jax.Array:
    """The rise of the cross-entropy, f(z + y) − f(z), without cancellation of digits.

        log1p(Σ p_i · expm1(y_i)) − y_target    if every |y_i| < 1
        log(Σ p_i · exp(y_i)) − y_target        otherwise, since expm1 could overflow

    Args:
      logits: z, float32[batch, V]; p is their softmax.
      y: float32[batch, V].
      targets: int[batch].
    """
    small = jnp.max(jnp.abs(y), -1) < 1
    near = jnp.where(small[..., None], y, 0)
    grown = jnp.log1p(jnp.sum(jax.nn.softmax(logits, -1) * jnp.expm1(near), -1))
    far = jax.nn.logsumexp(jax.nn.log_softmax(logits, -1) + y, -1)
    y_target = jnp.take_along_axis(y, targets[..., None], axis=-1)[..., 0]
    return jnp.where(small, grown, far) - y_target


@functools.partial(jax.jit, static_argnums=(3, 4))
def _logit_sharpness(z, targets, epsilon, iterations, maximizer):
    radius = epsilon * (jnp.abs(z) + 1)
    if maximizer == "lbfgsb":
        search = functools.partial(_lbfgsb, iterations=iterations)
        out = jax.ShapeDtypeStruct(targets.shape, jnp.float32)
        rises = jax.pure_callback(search, out, z, targets, radius, vmap_method="broadcast_all")
        return 100 * rises / (1 + token_losses(z, targets))
    if maximizer == "corner":
        y = (1 - 2 * jax.nn.one_hot(targets, z.shape[-1])) * radius
    else:
        slope = jax.grad(lambda u: loss_rise(z, u * radius, targets).sum())

        def ascend(_, u):  # u = y / radius, in the cube [−1, 1]^V
            g = slope(u)
            size = jnp.max(jnp.abs(g), -1, keepdims=True)
            return jnp.clip(u + g / jnp.where(size > 0, size, 1), -1, 1)

        y = radius * jax.lax.fori_loop(0, iterations, ascend, jnp.zeros_like(z))
    best = jnp.maximum(loss_rise(z, y, targets), 0)  # rounding could make it negative
    return 100 * best / (1 + token_losses(z, targets))


def _lbfgsb(z, targets, radius, *, iterations):
    """The rise found by L-BFGS-B, on the host; NaN for logits that are not finite.

    Args:
      z: float[…, V].
      targets: int[…].
      radius: float[…, V].
      iterations: at most so many.

    Returns:
      float32[…].
    """
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
