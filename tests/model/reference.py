"""Float64 references, written as loops from the formulas, independent of the code under test."""

import numpy as np
import pytest

torch = pytest.importorskip("torch", reason="torch (CPU) is not installed: scripts/setup development installs it")


def visible(query: int, key: int, row: dict, window: int) -> bool:
    """May position `query` of a packed row see `key`? The rules of tokens/sequence.py, one pair at a time."""
    if row["segment"][query] == 0 or row["segment"][query] != row["segment"][key]:
        return False
    bq, bk = row["branch"][query], row["branch"][key]
    if bq != bk and not (bk == 0 and bq > 0):
        return False
    if key > query and not (row["group"][query] > 0 and row["group"][query] == row["group"][key]):
        return False
    return window == 0 or row["position"][query] - row["position"][key] < window


def mask(rows: dict, window: int) -> np.ndarray:
    B, T = rows["segment"].shape
    out = np.zeros((B, T, T), bool)
    for b in range(B):
        row = {k: v[b] for k, v in rows.items()}
        for i in range(T):
            for j in range(T):
                out[b, i, j] = visible(i, j, row, window)
    return out


def attention(q, k, v, mask, scale, soft_cap=0.0, bias=None):
    """torch float64, head by head: q [B,T,N,H], k and v [B,S,K,H], mask bool [B,T,S], bias [B,N,T,S]."""
    B, T, N, H = q.shape
    group = N // k.shape[2]
    rows = []
    for b in range(B):
        heads = []
        for n in range(N):
            scores = q[b, :, n] @ k[b, :, n // group].T * scale
            if soft_cap:
                scores = soft_cap * torch.tanh(scores / soft_cap)
            if bias is not None:
                scores = scores + bias[b, n]
            allowed = torch.tensor(mask[b])
            weights = torch.where(allowed, torch.exp(scores - scores.max()), torch.zeros_like(scores))
            total = weights.sum(-1, keepdim=True)
            heads.append((weights / torch.where(total > 0, total, torch.ones_like(total))) @ v[b, :, n // group])
        rows.append(torch.stack(heads, 1))
    return torch.stack(rows)


def rms_norm(x, scale, eps):
    return scale * x / np.sqrt(np.mean(x**2, -1, keepdims=True) + eps)


def gelu(x):
    return 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3)))


def packed_rows(rng, B=2, T=24):
    """Two documents and padding in each row; the first has a prefix with a two-way group, two branches and an isolated one."""
    segment = np.zeros((B, T), np.int32)
    branch, group, position = segment.copy(), segment.copy(), segment.copy()
    for b in range(B):
        cut = 14 + b
        segment[b, :cut], segment[b, cut:22] = 1, 2
        branch[b, 6:9], branch[b, 9:12], branch[b, 12:cut] = 1, 2, -1
        group[b, 2:5] = 1
        for s, bs in ((1, (0, 1, 2, -1)), (2, (0,))):
            for x in bs:
                at = np.flatnonzero((segment[b] == s) & (branch[b] == x))
                position[b, at] = np.arange(len(at)) + (6 if x > 0 else 0)
    return dict(segment=segment, branch=branch, group=group, position=position)
