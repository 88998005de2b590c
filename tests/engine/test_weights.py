"""The trained weights that come with the program: every layout takes the same model from them, and it has learned the text."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from engine import catalog, weights
from engine.launch.trained_weights import HIGHEST, LOWEST, STEPS, learning_rate
from engine.spec import TRAINED, TRAINED_NAME, GenerateSpec, LayoutSpec, ModelSpec, RequestError, RunSpec, WorkloadSpec
from tests.runs import Runs

# Slices and stages, both ends of the pipeline on one rank, several chunks a stage, sharded weights with replicas.
LAYOUTS: dict[str, dict[str, Any]] = {
    "tp8": {"tp": 8},
    "pp8": {"pp": 8},
    "interleaved": {"tp": 2, "pp": 2, "schedule": "interleaved", "chunks": 2},
    "zero3": {"dp": 2, "tp": 2, "zero": 3},
}
MOST_LOSS = 1.2  # nats a byte, of text that it was trained on; of weights that are drawn it is log 256 = 5.5


def spec(layout: dict[str, Any] | None = None, parity: bool = False, generate: GenerateSpec | None = None) -> RunSpec:
    """One step of 16 sequences, whatever dp is, and so small that the weights stay what they are; then text."""
    of = LayoutSpec(**layout or {})
    workload = WorkloadSpec(steps=1, microbatches=4 // of.dp, microbatch_size=4, learning_rate=1e-9, weights="trained", seed=7)
    return RunSpec(model=TRAINED, layout=of, workload=workload, generate=generate or GenerateSpec(), parity=parity)


def generated(runs: Runs, layout: dict[str, Any] | None = None, temperature: float = 0.0, new_tokens: int = 12) -> str:
    asked = GenerateSpec(prompt="The pipeline ", new_tokens=new_tokens, temperature=temperature)
    return runs.result(spec(layout, generate=asked)).summary["generated"]["text"]


def test_it_has_learned_the_text(runs: Runs) -> None:
    assert runs.result(spec()).summary["loss_first"] < MOST_LOSS


def test_its_text_has_words_of_the_text_that_it_was_trained_on(runs: Runs) -> None:
    known = set((Path(weights.FILE).parent / "text.txt").read_text(encoding="utf-8").split())
    words = generated(runs, temperature=0.8, new_tokens=32).split()[:-1]  # the last one may be cut
    assert len([word for word in words if word in known]) > 0.6 * len(words)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_layout_continues_a_prompt_with_the_same_tokens(runs: Runs, layout: str) -> None:
    assert generated(runs, LAYOUTS[layout]) == generated(runs)


def test_sampled_text_is_the_same_in_another_layout(runs: Runs) -> None:
    assert generated(runs, LAYOUTS["interleaved"], 0.8) == generated(runs, temperature=0.8) != generated(runs)


def test_a_sharded_step_from_them_is_that_of_the_unsharded_model(runs: Runs) -> None:
    """Without tp as closely as from drawn weights. tp adds in another order, which the gradients of a trained model show more."""
    assert runs.result(spec({"dp": 2, "pp": 2}, parity=True)).summary["parity_max_rel"] < 1e-6
    run = runs.result(spec({"tp": 2, "pp": 2}, parity=True))
    assert run.summary["loss_max_abs"] < 1e-6
    assert run.summary["parity_max_rel"] < 1e-4


def test_what_a_run_started_from_is_saved_with_it(runs: Runs) -> None:
    assert runs.result(spec()).spec.workload.weights == "trained"
    assert WorkloadSpec().weights == "drawn"


def test_they_are_of_one_model_only() -> None:
    assert catalog.model(TRAINED_NAME) == TRAINED
    with pytest.raises(RequestError, match="trained weights are those of gpt-mini"):
        RunSpec(model=ModelSpec(), workload=WorkloadSpec(weights="trained"))


def test_they_are_plain_arrays(tmp_path: Path) -> None:
    """What is in the file is read, never run: an array of objects, which has to be unpickled, is refused."""
    for name, array in weights.read(weights.FILE).items():
        assert array.dtype == np.float16, name
    hidden = io.BytesIO()
    np.lib.format.write_array(hidden, np.array([{}], dtype=object), allow_pickle=True)
    with zipfile.ZipFile(tmp_path / "objects.npz", "w") as file:
        file.writestr("layers.0.weight.npy", hidden.getvalue())
    with pytest.raises(ValueError, match="allow_pickle=False"):
        weights.read(tmp_path / "objects.npz")


def test_the_same_weights_make_the_same_file(tmp_path: Path) -> None:
    """On one machine: another zlib may compress them to other bytes, so the file that is shipped is compared by its arrays."""
    shipped = weights.read(weights.FILE)
    for name in ("a", "b"):
        weights.write(shipped, tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    again = weights.read(tmp_path / "a")
    assert again.keys() == shipped.keys()
    assert all(np.array_equal(again[name], shipped[name]) for name in shipped)


def test_the_learning_rate_rises_stays_and_falls() -> None:
    rates = [learning_rate(step) for step in range(1, STEPS + 1)]
    assert max(rates) == HIGHEST == rates[STEPS // 2]
    assert rates[0] < HIGHEST / 10
    assert rates[-1] == LOWEST
