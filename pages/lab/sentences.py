"""Sentences on an event of a microbatch: what is computed, or what is sent to which rank, how many bytes, and when."""

from __future__ import annotations

from engine.schedule import Action
from engine.spec import RunSpec
from pages.charts.units import in_bytes, in_time
from pages.charts.words import Words
from pages.lab.events import Communication, Event

_NAMED = 32  # ranks of a group that are listed, where it has more than twice as many


def headline(event: Event, say: Words) -> str:
    """The event in a few words, for a list: "F on rank 0", "5 × tp all_reduce"."""
    action, calls = event.action, event.communication
    if event.is_call and calls is not None:
        return say("{count} × {axis} {collective}", count=f"{calls.calls:,}", axis=calls.axis, collective=calls.collective)
    flows = {"activation": say("activation"), "gradient": say("gradient"), "": ""}
    name = f"{action.kind} {flows[action.flow]}".strip()
    return say("{action} on rank {rank}", action=name, rank=event.rank)


def sentences(event: Event, spec: RunSpec, say: Words, in_units: bool = False) -> list[str]:
    """What happens, what is sent to other ranks, and when. `in_units`: times are in the textbook's units, not in ns."""
    if event.is_call and event.communication is not None:
        what = [_call(event, event.communication, spec, say), _bytes(event.communication, say)]
    else:
        what = [_action(event, spec, say)]
        if event.communication is not None:
            what.append(say("The message is {size}.", size=in_bytes(event.communication.payload_bytes)))
    return [part for part in (*what, _when(event, say, in_units)) if part]


def _action(event: Event, spec: RunSpec, say: Words) -> str:
    action, rank = event.action, event.rank
    if action.kind in ("send", "recv"):
        return _message(event, spec, say)
    if action.kind in ("reduce", "tie", "step", "gather"):
        return _end(event, spec, say)
    held = {"rank": rank, "microbatch": action.microbatch, "parts": _held(action, spec, say)}
    if action.kind == "F":
        text = say("Rank {rank} runs microbatch {microbatch} forward through {parts}.", **held)
        if action.chunk == len(spec.layout.placement) - 1:
            text = say.together(text, say("Its loss comes out at the end."))
    elif action.kind == "B" and action.chunk == 0:
        text = say("Rank {rank} runs microbatch {microbatch} backward through {parts}: the gradients of the weights.", **held)
    elif action.kind == "B":
        text = say("Rank {rank} runs microbatch {microbatch} backward through {parts}: gradients of input and weights.", **held)
    elif action.kind == "I":
        text = say(
            "Rank {rank} runs the first half of backward, of microbatch {microbatch} through {parts}: the input's "
            "gradient, which the previous chunk needs.", **held)  # fmt: skip
    else:
        text = say(
            "Rank {rank} runs the other half of backward, of microbatch {microbatch} through {parts}: the gradients of "
            "the weights, which are needed only at the end of the step.", **held)  # fmt: skip
    if spec.layout.tp > 1:
        text = say.together(text, say("It holds 1/{tp} of each layer's weights.", tp=spec.layout.tp))
    return text


def _held(action: Action, spec: RunSpec, say: Words) -> str:
    """What a chunk holds: "the embedding and layers 0–1"."""
    counts = spec.layout.chunk_layers(spec.model.layers)
    first, count = sum(counts[: action.chunk]), counts[action.chunk]
    opens, closes = action.chunk == 0, action.chunk == len(counts) - 1
    layers = (
        say("layer {first}", first=first) if count == 1 else say("layers {first}–{last}", first=first, last=first + count - 1)
    )
    if not count:
        return say("a chunk without layers")
    if opens and closes:
        return say("the embedding, {layers} and the head", layers=layers)
    if opens:
        return say("the embedding and {layers}", layers=layers)
    return say("{layers} and the head", layers=layers) if closes else layers


def _message(event: Event, spec: RunSpec, say: Words) -> str:
    action, peer = event.action, spec.layout.mesh.peer("pp", event.rank, event.action.peer)
    of = {"rank": event.rank, "peer": peer, "microbatch": action.microbatch}
    of["stage"] = action.peer
    if action.kind == "send" and action.flow == "activation":
        return say(
            "Rank {rank} sends the activations of microbatch {microbatch} to rank {peer} at stage {stage}, and continues "
            "without waiting.", **of)  # fmt: skip
    if action.kind == "send":
        return say(
            "Rank {rank} sends the gradient of its input of microbatch {microbatch} back to rank {peer} at stage "
            "{stage}, and continues without waiting.", **of)  # fmt: skip
    if action.flow == "activation":
        return say("Rank {rank} receives the activations of microbatch {microbatch} from rank {peer} at stage {stage}.", **of)
    return say(
        "Rank {rank} receives the gradient of its output of microbatch {microbatch} from rank {peer} at stage {stage}.", **of
    )


def _end(event: Event, spec: RunSpec, say: Words) -> str:
    rank, layout, kind = event.rank, spec.layout, event.action.kind
    if kind == "reduce" and layout.mesh.replicas == 1:
        return say(
            "Rank {rank} waits until the gradients of the parameters that tp does not shard are summed over tp: once a "
            "step.",
                   rank=rank)  # fmt: skip
    if kind == "reduce":
        return say(
            "Rank {rank} waits until the gradients of its layers are summed over the {count} replicas; the sum includes "
            "all microbatches.", rank=rank, count=layout.mesh.replicas)  # fmt: skip
    if kind == "tie":
        return say(
            "Rank {rank} sums the gradients of the two copies of the token embedding, which the first and the last chunk "
            "hold.",
                   rank=rank)  # fmt: skip
    if kind == "gather":
        return say("Rank {rank} fetches the parameters that the other replicas updated: with ZeRO {zero} each updates its share.",
                   rank=rank, zero=layout.zero)  # fmt: skip
    return say("Rank {rank} takes the optimizer's step, once for all microbatches.", rank=rank)


def _call(event: Event, calls: Communication, spec: RunSpec, say: Words) -> str:
    ranks = [rank for rank in calls.group if rank != event.rank]
    others = ", ".join(map(str, ranks[:_NAMED] if len(ranks) > 2 * _NAMED else ranks))
    if len(ranks) > 2 * _NAMED:
        others = say("{ranks} and {count} more", ranks=others, count=f"{len(ranks) - _NAMED:,}")
    with_whom = say.plural("rank {ranks}", "ranks {ranks}", len(calls.group) - 1, ranks=others)
    text = say.plural(
        "Rank {rank} makes {count} call of {collective} along {axis} with {others}: {purpose}.",
        "Rank {rank} makes {count} calls of {collective} along {axis} with {others}: {purpose}.",
        calls.calls, rank=event.rank, collective=calls.collective, axis=calls.axis, others=with_whom,
        purpose=purpose(calls, spec, say),
    )  # fmt: skip
    if event.action.kind == "reduce":
        text = say.together(
            text, say("They start when the last backward pass of a layer ends, and overlap with the rest of backward.")
        )
    elif event.action.microbatch >= 0:
        text = say.together(text, say("This is part of {kind}.", kind=event.action.kind))
    return text


def _purpose_of_exchange(calls: Communication, say: Words) -> str:
    """Of a call over cp or ep."""
    if calls.axis == "ep":
        return say("rows of tokens go to the ranks that hold their experts, or come back")
    return {
        "send_recv": say("keys and values, and in backward their gradients too, are passed to the next rank of the ring"),
        "all_gather": say("the keys and values of all parts of the sequence are gathered"),
        "reduce_scatter": say("gradients of keys and values are summed, and each rank keeps those of its tokens"),
    }.get(calls.collective, say("heads are exchanged for tokens"))


def _purpose_over_dp(calls: Communication, say: Words) -> str:
    """Of a call for gradients, or for parameters that are used."""
    if calls.phase == "reduce":
        return say("with hybrid sharding, each share of the gradients is summed over the ranks that hold the same share")
    return {
        "all_gather": say("the parameters, of which each replica keeps a shard, are gathered for this use"),
        "reduce_scatter": say("gradients are summed over the replicas, and each keeps its shard of the sum"),
    }.get(calls.collective, say("gradients are summed over the replicas"))


def purpose(calls: Communication, spec: RunSpec, say: Words) -> str:
    """The purpose of a kind of call."""
    if calls.phase == "tie":
        return say("the gradients of both copies of the token embedding are summed")
    if calls.phase == "step":
        if calls.axis == "ep":
            return say("the norm of the gradients of experts is summed over the ranks that share them")
        if calls.axis != "dp":
            return say("the norm of all gradients is summed")
        return say("the loss, and with ZeRO the norm of all gradients, is summed over the replicas")
    if calls.phase == "gather":
        return say("each replica gathers the parameters that the others updated")
    if calls.axis == "dp":
        return _purpose_over_dp(calls, say)
    if calls.axis == "cp" or calls.collective == "all_to_all":
        return _purpose_of_exchange(calls, say)
    if calls.collective == "all_gather":
        return say("the slices' parts of the sequence are gathered")
    if calls.collective == "reduce_scatter":
        return say("the partial results of the slices are summed, and each keeps its part of the sequence")
    if spec.layout.sequence_parallel and calls.phase == "backward":
        return say(
            "gradients of the parameters that tp does not shard are summed, because each slice saw only its part of the sequence"
        )
    if spec.layout.sequence_parallel:
        return say("the loss is combined from the slices of the vocabulary")
    return say("the partial results of the slices of each layer are summed, so that all have the result")


def _bytes(calls: Communication, say: Words) -> str:
    sizes = {"payload": in_bytes(calls.payload_bytes), "wire": in_bytes(calls.wire_bytes)}
    if not calls.exact:
        return say(
            "About {payload} of payload in total, {wire} on the wire: both halves of backward are counted together, and "
            "this is the share by number of calls.", **sizes)  # fmt: skip
    return say("{payload} of payload in total; with the ring algorithm this rank sends {wire}.", **sizes)


def _when(event: Event, say: Words, in_units: bool) -> str:
    if event.start is None or event.end is None:
        return ""
    if in_units:
        times = {"start": f"{event.start:g}", "end": f"{event.end:g}"}
        if event.start == event.end:
            return say("At {start} units of time; in the textbook timeline this takes no time.", **times)
        return say("From {start} to {end} units of time.", **times)
    times = {"start": in_time(event.start), "end": in_time(event.end), "took": in_time(event.end - event.start)}
    if event.action.kind == "send":  # its span ends when the sender waits for it, which can be long after it was received
        return say("It was issued {start} after the step's start.", **times)
    return say("From {start} to {end} after the step's start: {took}.", **times)
