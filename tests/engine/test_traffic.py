"""Traffic: the counted rows equal rows computed by hand, and there are no others."""

from __future__ import annotations

from engine.tables import RunResult
from tests.runs import PLAIN, SMALL, Runs, buckets_held, parameters_held, rows_of, small

FLOAT = 4  # bytes of an fp32 number
B, S, H, L = 2, SMALL.seq, SMALL.hidden, SMALL.layers  # sequences in a microbatch, tokens, width, layers
HIDDEN = B * S * H * FLOAT  # the residual stream of one microbatch
TOKENS = B * S * FLOAT  # one number a token
M = 3  # microbatches

Row = tuple[int, str, str, str, str]  # rank, axis, collective, phase, group
Amount = tuple[int, int, int]  # calls, payload bytes, wire bytes


def table_of(result: RunResult) -> dict[Row, Amount]:
    traffic = rows_of(result, "traffic")
    table = {(t.rank, t.axis, t.collective, t.phase, t.group): (t.calls, t.payload_bytes, t.wire_bytes) for t in traffic}
    assert len(table) == len(traffic), "two rows for the same calls"
    return table


def test_tensor_parallel(runs: Runs) -> None:
    """tp4. Ring all-reduce over 4: each rank sends 2 × 3/4 of its payload."""
    expected: dict[Row, Amount] = {}
    # Forward: after the embedding, and in each layer after the attention's output and after the MLP, the residual stream;
    # in the loss the largest logit of each token, then the sum of exponentials and the target's logit in one.
    forward = M * ((1 + 2 * L) * HIDDEN + TOKENS + 2 * TOKENS)
    # Backward: the gradient of what qkv, the MLP's inner layer and the output layer read.
    backward = M * (2 * L + 1) * HIDDEN
    for rank in range(4):
        expected |= {
            (rank, "tp", "all_reduce", "forward", "0,1,2,3"): (M * (1 + 2 * L + 2), forward, forward * 3 // 2),
            (rank, "tp", "all_reduce", "backward", "0,1,2,3"): (M * (2 * L + 1), backward, backward * 3 // 2),
            (rank, "tp", "all_reduce", "step", "0,1,2,3"): (1, FLOAT, 6),  # the norm of all gradients
        }
    assert table_of(runs.result(small("tp4", microbatches=M, microbatch_size=B))) == expected


def test_data_parallel(runs: Runs) -> None:
    """dp2. Ring all-reduce over 2: each rank sends as much as its payload. Gradients are reduced once for all microbatches."""
    gradients = SMALL.parameters() * FLOAT
    assert gradients == parameters_held(SMALL, tp=1, layers=L, first=True, last=True) * FLOAT
    expected: dict[Row, Amount] = {}
    for rank in range(2):
        expected |= {
            # A bucket for the token table, for the positions, for each layer and for the last norm.
            (rank, "dp", "all_reduce", "backward", "0,1"): (2 + L + 1, gradients, gradients),
            (rank, "dp", "all_reduce", "step", "0,1"): (1, FLOAT, FLOAT),  # the loss
        }
    assert table_of(runs.result(small("dp2", microbatches=M, microbatch_size=B))) == expected


def test_pipeline_parallel(runs: Runs) -> None:
    """pp3. Only neighbours communicate, and the first and the last stage share the embedding's gradient."""
    table = SMALL.vocab * H * FLOAT
    norm = (1, FLOAT, 2 * 2 * FLOAT // 3)  # the norm of all gradients, over three ranks
    message = (M, M * HIDDEN, M * HIDDEN)
    taken = (M, M * HIDDEN, 0)  # a receive has no wire bytes: the sender counts them
    expected: dict[Row, Amount] = {
        (0, "pp", "send", "forward", "0,1"): message,
        (1, "pp", "recv", "forward", "0,1"): taken,
        (1, "pp", "send", "forward", "1,2"): message,
        (2, "pp", "recv", "forward", "1,2"): taken,
        (2, "pp", "send", "backward", "1,2"): message,
        (1, "pp", "recv", "backward", "1,2"): taken,
        (1, "pp", "send", "backward", "0,1"): message,
        (0, "pp", "recv", "backward", "0,1"): taken,
        (0, "pp", "all_reduce", "tie", "0,2"): (1, table, table),
        (2, "pp", "all_reduce", "tie", "0,2"): (1, table, table),
        (0, "pp", "all_reduce", "step", "0,1,2"): norm,
        (1, "pp", "all_reduce", "step", "0,1,2"): norm,
        (2, "pp", "all_reduce", "step", "0,1,2"): norm,
    }
    for schedule in PLAIN:  # a schedule changes the order and not the bytes
        assert table_of(runs.result(small("pp3", schedule, microbatches=M, microbatch_size=B))) == expected, schedule


def test_all_three_axes(runs: Runs) -> None:
    """dp2.tp2.pp2 with an odd vocabulary, three layers then two. Every group has two ranks, so wire equals payload."""
    odd = SMALL.model_copy(update={"vocab": 257})
    table = 129 * H * FLOAT  # half of 257, rounded up
    loss = 3 * TOKENS
    expected: dict[Row, Amount] = {}

    def both_ways(row: Row, calls: int, payload: int) -> None:
        expected[row] = (calls, payload, 0 if row[2] == "recv" else payload)

    for rank in range(8):
        first = rank < 4
        tp = ("0,1", "0,1", "2,3", "2,3", "4,5", "4,5", "6,7", "6,7")[rank]
        dp = ("0,2", "1,3", "0,2", "1,3", "4,6", "5,7", "4,6", "5,7")[rank]
        pp = ("0,4", "1,5", "2,6", "3,7", "0,4", "1,5", "2,6", "3,7")[rank]
        layers = 3 if first else 2
        gradients = parameters_held(odd, 2, layers, first, last=not first) * FLOAT
        both_ways((rank, "dp", "all_reduce", "backward", dp), buckets_held(layers, first, not first), gradients)
        both_ways((rank, "tp", "all_reduce", "step", tp), 1, FLOAT)
        both_ways((rank, "pp", "all_reduce", "step", pp), 1, FLOAT)
        both_ways((rank, "pp", "all_reduce", "tie", pp), 1, table)
        if first:
            both_ways((rank, "tp", "all_reduce", "forward", tp), M * (1 + 2 * 3), M * (1 + 2 * 3) * HIDDEN)
            both_ways((rank, "tp", "all_reduce", "backward", tp), M * 2 * 3, M * 2 * 3 * HIDDEN)
            both_ways((rank, "pp", "send", "forward", pp), M, M * HIDDEN)
            both_ways((rank, "pp", "recv", "backward", pp), M, M * HIDDEN)
        else:
            both_ways((rank, "dp", "all_reduce", "step", dp), 1, FLOAT)  # the loss, only on the last stage
            both_ways((rank, "tp", "all_reduce", "forward", tp), M * (2 * 2 + 2), M * (2 * 2 * HIDDEN + loss))
            both_ways((rank, "tp", "all_reduce", "backward", tp), M * (2 * 2 + 1), M * (2 * 2 + 1) * HIDDEN)
            both_ways((rank, "pp", "recv", "forward", pp), M, M * HIDDEN)
            both_ways((rank, "pp", "send", "backward", pp), M, M * HIDDEN)
    result = runs.result(small("dp2.tp2.pp2", microbatches=M, microbatch_size=B, model={"vocab": 257}))
    assert table_of(result) == expected


def test_a_single_rank_has_no_traffic(runs: Runs) -> None:
    assert runs.result(small()).tables["traffic"].empty


def test_the_summary_has_the_sum_of_what_ranks_send(runs: Runs) -> None:
    result = runs.result(small("pp3", microbatches=M, microbatch_size=B))
    sent = 2 * (2 * M * HIDDEN) + 2 * SMALL.vocab * H * FLOAT + 3 * 5
    assert result.summary["wire_bytes_per_rank"] == sent / 3
