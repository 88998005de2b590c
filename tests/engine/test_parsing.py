"""Untrusted JSON: limited in size, without NaN, and without duplicate names."""

from __future__ import annotations

import pytest

from engine.spec import GenerateSpec, ModelSpec, RequestError, RunSpec


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('{"parity": true, "parity": false}', "'parity' is given twice in one object"),
        ('{"workload": {"steps": 1, "seed": 1, "steps": 2}}', "'steps' is given twice in one object"),
        ('{"workload": {"learning_rate": NaN}}', "this is not JSON: NaN is no number"),
        ('{"workload": {"learning_rate": 1e999}}', "this is not JSON: 1e999 is no number"),
        ('{"generate": {"prompt": "\\ud800"}}', "this has an unpaired surrogate in a text"),
        ("[" * 11 + "]" * 11, "this has lists or objects more than 10 deep"),
        ('{"workload": [' + "[]," * 100_001 + "1]}", "this has more than 200,000 values"),
        (" " * (1 << 20) + "{}", "this has 1,048,578 bytes; at most 1,048,576 are accepted"),
    ],
    ids=range(8),
)
def test_json_larger_than_any_spec_is_refused(text: str, said: str) -> None:
    with pytest.raises(RequestError) as caught:
        RunSpec.read_json(text)
    assert str(caught.value) == said


def test_brackets_in_strings_do_not_count_as_nesting() -> None:
    prompt = '[{"' * 2000 + "\\" + "]" * 3
    spec = RunSpec(generate=GenerateSpec(prompt=prompt, new_tokens=1), model=ModelSpec(seq=10_000))
    assert RunSpec.read_json(spec.model_dump_json()) == spec
    assert RunSpec.read_json("\ufeff" + spec.model_dump_json()) == spec  # some editors begin a file with it
