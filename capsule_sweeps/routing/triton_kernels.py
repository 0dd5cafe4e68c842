"""Three Triton kernels for the routed pass on a GPU.

Letters as in `passes`. A thread holds the votes of one child at a time, for G parents at one place: votes, agreements
and their gradients stay in its registers, and the softmax over the parents is a sum over neighboring threads. Parents
are innermost in memory, except for the children, of which a thread reads whole poses:

    children (B, H, W, N, D), weight (i, x, d, M), poses and sums (p, E, M), coefficients (i, p, M)

Tensors within the kernels have the axes (M / G, P, DB, G): parents of different threads, places of a block, a block of
the columns of a pose (DB is the largest power of two that divides d), parents of one thread. A whole vote is a tuple of
such tensors, one for each row a and each block of columns.

`gpu` calls these kernels. Their arguments in capitals, and the sizes of grids, are constants of the compiled code.
"""

# mypy: ignore-errors
# ruff: noqa: RUF005

import triton
import triton.language as tl


@triton.jit
def _load(pointers, stride: tl.constexpr, mask, number: tl.constexpr):
    """`number` tensors, `stride` apart in memory; 0 where masked."""
    values = ()
    for n in tl.static_range(number):
        values = values + (tl.load(pointers + n * stride, mask=mask, other=0.0),)
    return values


@triton.jit
def _zeros(like, number: tl.constexpr):
    values = ()
    for _ in tl.static_range(number):
        values = values + (tl.zeros(like.shape, tl.float32),)
    return values


@triton.jit
def _add_products(totals, factor, values, number: tl.constexpr):
    """totals + factor · values."""
    results = ()
    for n in tl.static_range(number):
        results = results + (totals[n] + factor[:, :, None, :] * values[n],)
    return results


@triton.jit
def _inner_product(first, second, number: tl.constexpr):
    total = first[0] * second[0]
    for n in tl.static_range(1, number):
        total += first[n] * second[n]
    return tl.sum(total, 2)


@triton.jit
def _votes(child, weight, A: tl.constexpr, X: tl.constexpr, B: tl.constexpr):
    """V, from a child's pose (a, x) at each p and its weight (x, block of d) for each m."""
    votes = ()
    for a in tl.static_range(A):
        for b in tl.static_range(B):
            vote = child[a * X][None, :, None, None] * weight[b]
            for x in tl.static_range(1, X):
                vote += child[a * X + x][None, :, None, None] * weight[x * B + b]
            votes = votes + (vote,)
    return votes


@triton.jit
def _first_child(p, H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr, STRIDE: tl.constexpr):
    """The number (B, H, W) of the child at the first place under the kernel of place p = (B, h, w)."""
    return ((p // (h * w)) * H + (p // w) % h * STRIDE).to(tl.int64) * W + p % w * STRIDE


@triton.jit
def _under_kernel(i, W: tl.constexpr, N: tl.constexpr, L: tl.constexpr):
    """How many poses child i = (k, l, N) is in memory behind the first one under the kernel."""
    return ((i // (L * N)) * W + (i // N) % L) * N + i % N


@triton.jit
def _parents(one, G: tl.constexpr, M: tl.constexpr):
    """The numbers m of the parents (M, G).

    `one` is 1, which Triton must not know: it would give neighboring parents to one thread, to load them at once.
    """
    return tl.arange(0, M)[:, None] * (G * one) + tl.arange(0, G)[None, :]


@triton.jit
def _at_weights(m, NUM_M: tl.constexpr, DB: tl.constexpr):
    """Offsets of weights (M, DB, G)."""
    return tl.arange(0, DB)[None, :, None] * NUM_M + m[:, None, :]


@triton.jit
def _at_places(p, m, num_places, E: tl.constexpr, NUM_M: tl.constexpr, DB: tl.constexpr):
    """Which places exist (P,), with which parents (M, P, G); offsets of coefficients (M, P, G), poses (M, P, DB, G)."""
    at_p = p < num_places
    here = at_p[None, :, None] & (m < NUM_M)[:, None, :]
    p = p.to(tl.int64)  # all poses of a large batch may be more than 32 bits can count
    at_poses = p[None, :, None, None] * (E * NUM_M) + _at_weights(m, NUM_M, DB)[:, None, :, :]
    return at_p, here, p[None, :, None] * NUM_M + m[:, None, :], at_poses


@triton.jit(do_not_specialize=["one"])
def route_kernel(
    children, weight, parents, coefficients, sums, num_i, num_places, part, scale, one,
    A: tl.constexpr, X: tl.constexpr, D: tl.constexpr, N: tl.constexpr, L: tl.constexpr, NUM_M: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr, STRIDE: tl.constexpr,
    DB: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, KEEP: tl.constexpr,
):  # fmt: skip
    """One block of places, one part of the children: r, if KEEP, and the sum of r V over this part."""
    B: tl.constexpr = D // DB
    p, m = tl.program_id(0) * P + tl.arange(0, P), _parents(one, G, M)
    at_p, here, at_r, at_poses = _at_places(p, m, num_places, A * D, NUM_M, DB)
    children += _first_child(p, H, W, h, w, STRIDE) * (N * A * X)
    at_weights = at_poses - p[None, :, None, None] * (A * D * NUM_M)  # for each place, as each thread needs its own
    poses = _load(parents + at_poses, DB * NUM_M, here[:, :, None, :], A * B)
    totals = _zeros(at_poses, A * B)
    first = (tl.program_id(1) * part).to(tl.int64)
    for i in range(first, min(first + part, num_i)):
        child = _load(children + _under_kernel(i, W, N, L) * (A * X), 1, at_p, A * X)
        kernel = _load(weight + i * (X * D * NUM_M) + at_weights, DB * NUM_M, here[:, :, None, :], X * B)
        votes = _votes(child, kernel, A, X, B)
        s = tl.where((m < NUM_M)[:, None, :], _inner_product(votes, poses, A * B) * scale, -float("inf"))
        r = tl.exp(s - tl.max(tl.max(s, 2), 0)[None, :, None])
        r = r / tl.sum(tl.sum(r, 2), 0)[None, :, None]
        if KEEP:
            tl.store(coefficients + i * num_places * NUM_M + at_r, r, mask=here)
        totals = _add_products(totals, r, votes, A * B)
    sums += (tl.program_id(1) * num_places).to(tl.int64) * (A * D * NUM_M) + at_poses
    for e in tl.static_range(A * B):
        tl.store(sums + e * DB * NUM_M, totals[e], mask=here[:, :, None, :])


@triton.jit(do_not_specialize=["one"])
def route_backward_kernel(
    children, weight, parents, coefficients, grad, grad_s, grad_patches, grad_parents,
    num_i, num_places, part, scale, one,
    A: tl.constexpr, X: tl.constexpr, D: tl.constexpr, N: tl.constexpr, L: tl.constexpr, NUM_M: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr, STRIDE: tl.constexpr,
    DB: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr,
):  # fmt: skip
    """One block of places, one part of the children: ∂s, ∂P, and the sum of ∂s V over this part."""
    B: tl.constexpr = D // DB
    p, m = tl.program_id(0) * P + tl.arange(0, P), _parents(one, G, M)
    at_p, here, at_r, at_poses = _at_places(p, m, num_places, A * D, NUM_M, DB)
    children += _first_child(p, H, W, h, w, STRIDE) * (N * A * X)
    at_weights = at_poses - p[None, :, None, None] * (A * D * NUM_M)  # for each place, as each thread needs its own
    poses = _load(parents + at_poses, DB * NUM_M, here[:, :, None, :], A * B)
    g = _load(grad + at_poses, DB * NUM_M, here[:, :, None, :], A * B)
    totals = _zeros(at_poses, A * B)
    column = tl.arange(0, M)[:, None]
    first = (tl.program_id(1) * part).to(tl.int64)
    for i in range(first, min(first + part, num_i)):
        child = _load(children + _under_kernel(i, W, N, L) * (A * X), 1, at_p, A * X)
        kernel = _load(weight + i * (X * D * NUM_M) + at_weights, DB * NUM_M, here[:, :, None, :], X * B)
        r = tl.load(coefficients + i * num_places * NUM_M + at_r, mask=here, other=0.0)
        votes = _votes(child, kernel, A, X, B)
        r_grad_r = r * _inner_product(votes, g, A * B)
        ds = (r_grad_r - r * tl.sum(tl.sum(r_grad_r, 2), 0)[None, :, None]) * scale
        tl.store(grad_s + i * num_places * NUM_M + at_r, ds, mask=here)
        totals = _add_products(totals, ds, votes, A * B)
        grad_votes = ()
        for e in tl.static_range(A * B):
            grad_votes = grad_votes + (r[:, :, None, :] * g[e] + ds[:, :, None, :] * poses[e],)
        # Number n of ∂P is a sum over m. The thread of column n % M keeps it, so that a whole row is stored at once
        for block in tl.static_range((A * X + M - 1) // M):
            row = tl.zeros((M, P), tl.float32)
            for n in tl.static_range(block * M, min(block * M + M, A * X)):
                total = grad_votes[n // X * B] * kernel[n % X * B]
                for b in tl.static_range(1, B):
                    total += grad_votes[n // X * B + b] * kernel[n % X * B + b]
                row = tl.where(column == n - block * M, tl.sum(tl.sum(tl.sum(total, 3), 2), 0)[None, :], row)
            number = block * M + column
            at = (i * num_places + p[None, :]) * (A * X) + number
            tl.store(grad_patches + at, row, mask=at_p[None, :] & (number < A * X))
    grad_parents += (tl.program_id(1) * num_places).to(tl.int64) * (A * D * NUM_M) + at_poses
    for e in tl.static_range(A * B):
        tl.store(grad_parents + e * DB * NUM_M, totals[e], mask=here[:, :, None, :])


@triton.jit(do_not_specialize=["one"])
def grad_weight_kernel(
    children, parents, coefficients, grad, grad_s, grad_weight, num_i, num_places, part, one,
    A: tl.constexpr, X: tl.constexpr, D: tl.constexpr, N: tl.constexpr, L: tl.constexpr, NUM_M: tl.constexpr,
    H: tl.constexpr, W: tl.constexpr, h: tl.constexpr, w: tl.constexpr, STRIDE: tl.constexpr,
    DB: tl.constexpr, P: tl.constexpr, G: tl.constexpr, M: tl.constexpr, J: tl.constexpr,
):  # fmt: skip
    """J children, one part of the places: the sum of P ∂V over this part."""
    B: tl.constexpr = D // DB
    first = tl.program_id(1) * part
    m = _parents(one, G, M)
    at_p, here, at_r, at_poses = _at_places(first + tl.arange(0, P), m, num_places, A * D, NUM_M, DB)
    totals = _zeros(at_poses, J * X * B)
    for start in range(first, min(first + part, num_places), P):
        p = start + tl.arange(0, P)
        at_p, here, at_r, at_poses = _at_places(p, m, num_places, A * D, NUM_M, DB)
        poses = _load(parents + at_poses, DB * NUM_M, here[:, :, None, :], A * B)
        g = _load(grad + at_poses, DB * NUM_M, here[:, :, None, :], A * B)
        first_child = children + _first_child(p, H, W, h, w, STRIDE) * (N * A * X)
        results = ()
        for j in tl.static_range(J):
            i = (tl.program_id(0) * J + j).to(tl.int64)
            exists = i < num_i
            child = _load(first_child + _under_kernel(i, W, N, L) * (A * X), 1, at_p & exists, A * X)
            r = tl.load(coefficients + i * num_places * NUM_M + at_r, mask=here & exists, other=0.0)
            ds = tl.load(grad_s + i * num_places * NUM_M + at_r, mask=here & exists, other=0.0)
            grad_votes = ()
            for e in tl.static_range(A * B):
                grad_votes = grad_votes + (r[:, :, None, :] * g[e] + ds[:, :, None, :] * poses[e],)
            for x in tl.static_range(X):
                for b in tl.static_range(B):
                    total = totals[(j * X + x) * B + b]
                    for a in tl.static_range(A):
                        total += child[a * X + x][None, :, None, None] * grad_votes[a * B + b]
                    results = results + (total,)
        totals = results
    for j in tl.static_range(J):
        i = tl.program_id(0) * J + j
        at_child = ((tl.program_id(1) * num_i + i) * (X * D)).to(tl.int64) * NUM_M + _at_weights(m, NUM_M, DB)
        for n in tl.static_range(X * B):
            exists = (m < NUM_M)[:, None, :] & (i < num_i)
            tl.store(grad_weight + at_child + n * DB * NUM_M, tl.sum(totals[j * X * B + n], 1), mask=exists)
