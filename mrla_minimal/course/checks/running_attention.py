"""Checkers of notebook 02: a causal window, merging two softmaxes, and a running state that forgets."""

import torch

from mrla_minimal.course.checks.common import Wrong, blame, checker, close, numbers, pair, run, tensor


def _window_mask(tokens, first, last):
    """True where the distance t - s from the reader to the read lies in first..last."""
    position = torch.arange(tokens)
    distance = position[:, None] - position[None, :]        # (tokens, tokens): t - s
    return (distance >= first) & (distance <= last)


@checker("exercise 1")
def check_causal_window(answer: object) -> None:
    """causal_window(tokens, window) -> boolean mask (tokens, tokens)."""
    for tokens, window in ((7, 3), (5, 1), (4, 9)):
        mask = tensor(run(answer, tokens, window), (tokens, tokens), "mask")
        if mask.dtype != torch.bool:
            raise Wrong(f"your mask is of {mask.dtype}, it should be boolean, True = may attend")
        reach = f"with window={window} a token reads itself and {window - 1} before it"
        mistakes = {
            "your mask is turned round: True means may attend": ~_window_mask(tokens, 0, window - 1),
            "your mask lets tokens read the future: row t is the "
            "token that reads, column s the one that is read":
                _window_mask(tokens, 1 - window, 0),
            "your mask has no lower limit: the future has a negative distance t - s":
                _window_mask(tokens, -tokens, window - 1),
            "your window also reaches forward: token t may not read a later one":
                _window_mask(tokens, 1 - window, window - 1),
            f"your window is one token too wide: {reach}": _window_mask(tokens, 0, window),
            f"your window is one token too narrow: {reach}": _window_mask(tokens, 0, window - 2),
            "your mask is causal, but has no window: a token may read no further back than window - 1":
                _window_mask(tokens, 0, tokens),
            "your tokens may not read themselves; the window begins with the token itself":
                _window_mask(tokens, 1, window),
        }
        if torch.equal(mask, _window_mask(tokens, 0, window - 1)):
            continue
        for said, mistaken in mistakes.items():
            if torch.equal(mask, mistaken):
                raise Wrong(said)
        raise Wrong(f"for {tokens} tokens and window={window}: token "
                    "t may attend to s where 0 <= t - s < window")


def _entries(count, seed):
    """One query's attention over `count` entries: logits (3, count) and values (3, count, 5)."""
    return numbers(3, count, seed=seed), numbers(3, count, 5, seed=seed + 1)


MERGED = ("the merged output", "the merged log_sum")


def _attend(logits, values):
    """The outputs (3, 5) and the logarithms of the sums of exponentials (3,)."""
    output = torch.einsum("nm,nme->ne", logits.softmax(dim=-1), values)
    return output, logits.logsumexp(dim=-1)


@checker("exercise 2")
def check_merge(answer: object) -> None:
    """merge(output_a (n, e), log_sum_a (n,), output_b, log_sum_b) -> (output (n, e), log_sum (n,))."""
    (logits_a, values_a), (logits_b, values_b) = _entries(4, seed=10), _entries(2, seed=20)
    # neither basket always has the larger sum
    logits_b = logits_b + logits_b.new_tensor([[3.0], [0.0], [-1.0]])
    (output_a, sum_a), (output_b, sum_b) = _attend(logits_a, values_a), _attend(logits_b, values_b)
    right, right_sum = _attend(torch.cat([logits_a, logits_b], dim=1), torch.cat([values_a, values_b], dim=1))
    given = pair(run(answer, output_a, sum_a, output_b, sum_b), *MERGED)
    output, log_sum = tensor(given[0], (3, 5), "output"), tensor(given[1], (3,), "log_sum")
    share = torch.sigmoid(sum_a - sum_b)[:, None]               # (3, 1): A's part of all exponentials
    mistakes = {
        "the outputs are averaged evenly; each counts as much as its sum of exponentials":
            (output_a + output_b) / 2,
        "the outputs are averaged by the number of entries; each counts as much as its sum of exponentials":
            (4 * output_a + 2 * output_b) / 6,
        "the outputs are weighed by the logarithms of the sums; undo the logarithm with exp()":
            (sum_a[:, None] * output_a + sum_b[:, None] * output_b) / (sum_a + sum_b)[:, None],
        "the two weights are swapped": (1 - share) * output_a + share * output_b,
        "the outputs are weighed and added, but not divided by the whole sum":
            sum_a.exp()[:, None] * output_a + sum_b.exp()[:, None] * output_b,
    }
    blame(output, right, mistakes,
          "your output is not the attention over all entries: weigh each by its own sum of exponentials")
    sums = {
        "log_sum adds the two logarithms; add the sums themselves, then take the logarithm": sum_a + sum_b,
        "you subtracted the larger log_sum and did not add it back at the end":
            right_sum - torch.maximum(sum_a, sum_b),
        "log_sum is the larger of the two; both sums count": torch.maximum(sum_a, sum_b),
        "log_sum is the sum itself; take its logarithm, so that the result can be merged again":
            sum_a.exp() + sum_b.exp(),
    }
    blame(log_sum, right_sum, sums, "log_sum should be log(exp(log_sum_a) + exp(log_sum_b))",
          prefix="your output is right, but ")
    _check_merge_far_apart(answer)


def _check_merge_far_apart(answer):
    """Logits near 1000 and near -1000: exp() of the one overflows, of the other it is 0.

    The last case has one shift a query.
    """
    shifts = (1000, 1001), (-1000, -1001), (1000, -1000), ((1000, -1000, 1000), (1001, -1001, -1000))
    for shift_a, shift_b in shifts:
        (logits_a, values_a), (logits_b, values_b) = _entries(4, seed=30), _entries(2, seed=40)
        logits_a, logits_b = (logits + logits.new_tensor(shift).reshape(-1, 1)
                              for logits, shift in ((logits_a, shift_a), (logits_b, shift_b)))
        logits, values = torch.cat([logits_a, logits_b], dim=1), torch.cat([values_a, values_b], dim=1)
        right, right_sum = _attend(logits, values)
        parts = *_attend(logits_a, values_a), *_attend(logits_b, values_b)
        output, log_sum = pair(run(answer, *parts), *MERGED)
        if not (close(output, right) and close(log_sum, right_sum)):
            raise Wrong(f"right for small logits, but not for log sums near {shift_a} and {shift_b}, where "
                        "exp() is inf or 0: subtract the larger log_sum of each query from both before exp()")


def _decayed(query, key, value, decay, old=False):
    """Outputs (batch, heads, tokens, e); decay broadcasts against (tokens, batch, heads); `old` asks S_(t-1).
    """
    state = key.new_zeros(*key.shape[:2], key.shape[-1], value.shape[-1])
    outputs = []
    for t in range(query.shape[2]):
        entry = torch.einsum("bhd,bhe->bhde", key[:, :, t], value[:, :, t])
        before, state = state, decay[t][..., None, None] * state + entry
        outputs.append(torch.einsum("bhd,bhde->bhe", query[:, :, t], before if old else state))
    return torch.stack(outputs, dim=2)


@checker("exercise 3")
def check_decayed_state(answer: object) -> None:
    """decayed_state(query, key, value, decay) -> outputs (batch, heads, tokens, e).

    query and key (batch, heads, tokens, d), value (batch, heads, tokens, e), decay (tokens, heads).
    """
    batch, heads, tokens, d, e = 2, 3, 5, 4, 6
    query, key = numbers(batch, heads, tokens, d, seed=50), numbers(batch, heads, tokens, d, seed=51)
    value, decay = numbers(batch, heads, tokens, e, seed=52), numbers(tokens, heads, seed=53)
    shape = (batch, heads, tokens, e)
    output = tensor(run(answer, query, key, value, decay), shape)
    lambdas = decay[:, None, :]                                 # (tokens, 1, heads)
    right = _decayed(query, key, value, lambdas)
    late = torch.cat([torch.ones_like(lambdas[:1]), lambdas[:-1]])
    powers = torch.cumprod(lambdas[:1].expand(tokens, 1, heads), dim=0)
    ones, own_entry = torch.ones_like(query[..., :1]), (query * key).sum(dim=-1, keepdim=True) * value
    mistakes = {
        "your state does not decay: decay[t] multiplies the old state at each step":
            _decayed(query, key, value, torch.ones_like(lambdas)),
        "your decay also multiplies the new entry; it should multiply the old state alone":
            _decayed(query, key, lambdas.permute(1, 2, 0)[..., None] * value, lambdas),
        "your decay comes one token late: at token t the old "
        "state is multiplied by decay[t], not by decay[t - 1]":
            _decayed(query, key, value, late),
        "all heads decay like head 0; decay[t] holds one number a head":
            _decayed(query, key, value, lambdas[:, :, :1]),
        "all tokens decay by decay[0]; each token brings its own":
            _decayed(query, key, value, lambdas[:1].expand(tokens, 1, heads)),
        "decay[0] is raised to powers; each token brings its own decay, used once":
            _decayed(query, key, value, powers),
        "token t asks the old state; update the state first, then ask it":
            _decayed(query, key, value, lambdas, old=True),
        "token t asks the decayed old state; its own entry is missing": right - own_entry,
        "one state is used for the whole batch (summed over it); each sample needs its own":
            _shared_state(query, key, value, lambdas, keep=slice(None)),
        "the first sample's state is used for the whole batch; each sample needs its own":
            _shared_state(query, key, value, lambdas, keep=slice(0, 1)),
        "you carry the old output instead of the old state: the new query never asks what the state holds":
            _decayed(ones, ones, own_entry, lambdas),
    }
    first = next((t for t in range(tokens) if not close(output[:, :, t], right[:, :, t])), tokens - 1)
    blame(output, right, mistakes, f"wrong from token {first + 1} on: S_t should be "
                                   "decay_t * S_(t-1) + k_t^T v_t, and O_t = q_t S_t")
    again = run(answer, query, key, value, decay)
    if not close(tensor(again, shape), right):
        raise Wrong("right on the first call, wrong on the second: your code keeps a state between calls")


def _shared_state(query, key, value, decay, keep):
    """The wrong outputs when one state, made of the samples `keep`, answers every sample."""
    keys, values = key[keep], value[keep]
    state = key.new_zeros(key.shape[1], key.shape[-1], value.shape[-1])
    outputs = []
    for t in range(query.shape[2]):
        entry = torch.einsum("bhd,bhe->hde", keys[:, :, t], values[:, :, t])
        state = decay[t, 0][:, None, None] * state + entry
        outputs.append(torch.einsum("bhd,hde->bhe", query[:, :, t], state))
    return torch.stack(outputs, dim=2)
